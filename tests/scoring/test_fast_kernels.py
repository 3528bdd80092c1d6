import sys
from copy import deepcopy
from importlib.util import find_spec
from itertools import product
from types import MethodType

import lightning as L
import pytest
import torch
from peft import LNTuningConfig, get_peft_model
from test_scorer import TEMPERATURE, assert_relatively_close, loss_gradient, one_by_one, some_rollouts, toy
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from grpo_lightning import GRPODataModule, GRPOModule
from grpo_lightning.policy.activation_checkpointing import enable_checkpointing
from grpo_lightning.scoring import norms
from grpo_lightning.scoring.fast_kernels import (
    compile_layers,
    fused_modules,
    plain_kernels,
    replaced_in_this_model_alone,
    use_liger_kernels,
)
from grpo_lightning.scoring.norms import NORMS_FEED_LINEAR_LAYERS, compile_norms
from grpo_lightning.scoring.scorer import Scorer
from tests.vision.toy_vision import CONFIGS, toy_vision_model

ROWS = torch.arange(some_rollouts().num_completions)


def with_kernel(model, forward):
    """The model with a forward pass from elsewhere in its first norm, as Liger's would be there."""
    forward.__module__ = "liger_kernel.of_this_test"
    norm = model.model.layers[0].input_layernorm
    norm.__dict__["forward"] = forward.__get__(norm)
    return model


def right_norm(self, x):
    return torch.nn.functional.rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)


def wrong_norm(self, x):
    return x * self.weight


def test_a_kernel_that_computes_something_else_is_removed_with_a_warning(caplog):
    model = with_kernel(toy("qwen2"), wrong_norm)
    found = Scorer(model, TEMPERATURE).score(some_rollouts(), ROWS)
    assert not fused_modules(model)
    assert caplog.text.count("is trained without Liger's kernels") == 1
    torch.testing.assert_close(found.logprobs, one_by_one(toy("qwen2"), some_rollouts(), ROWS).logprobs)


def test_a_kernel_that_fails_on_this_machine_is_removed_with_its_error(caplog):
    def failing_norm(self, x):
        raise OSError("no compiler")

    model = with_kernel(toy("qwen2"), failing_norm)
    Scorer(model, TEMPERATURE).score(some_rollouts(), ROWS)
    assert not fused_modules(model)
    assert "OSError: no compiler" in caplog.text


def test_a_kernel_that_agrees_stays(caplog):
    model = with_kernel(toy("qwen2"), right_norm)
    Scorer(model, TEMPERATURE).score(some_rollouts(), ROWS)
    assert fused_modules(model) == [model.model.layers[0].input_layernorm]
    assert not caplog.text


def test_a_copy_of_a_model_with_kernels_uses_its_own_weights():
    model = with_kernel(toy("qwen2"), right_norm)
    copied = deepcopy(model)
    with torch.no_grad():
        copied.model.layers[0].input_layernorm.weight.fill_(3.0)
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))[:, : model.config.hidden_size]
    norm, copied_norm = (one.model.layers[0].input_layernorm for one in (model, copied))
    with torch.no_grad():
        norm.weight.fill_(1.0)
        torch.testing.assert_close(copied_norm(x), 3.0 * norm(x))


def test_plain_kernels_are_the_models_own_code_and_fused_ones_come_back():
    model = with_kernel(toy("qwen2"), wrong_norm)
    norm = model.model.layers[0].input_layernorm
    x = torch.ones(1, model.config.hidden_size) * 5
    with torch.no_grad():
        norm.weight.fill_(1.0)
        with plain_kernels(model):
            torch.testing.assert_close(norm(x), torch.ones_like(x))
        torch.testing.assert_close(norm(x), x)


def unturned(q, k, cos, sin, unsqueeze_dim=1):
    """What a rotary embedding is without positions."""
    return q, k


def test_a_function_replaced_in_transformers_source_is_that_of_one_model_and_its_copies():
    model, other = toy("qwen2"), toy("qwen2")
    source = vars(sys.modules[type(model).__module__])
    before = dict(source)
    with replaced_in_this_model_alone(model):
        source["apply_rotary_pos_emb"] = unturned
    assert source == before
    attentions = [layer.self_attn for layer in model.model.layers]
    assert fused_modules(model) == attentions
    ids = torch.tensor([[5, 6, 7, 8]])
    places = torch.tensor([[0, 2, 9, 30]])
    with torch.no_grad():
        for one in (model, deepcopy(model)):  # no position changes what follows
            torch.testing.assert_close(one(ids).logits, one(ids, position_ids=places).logits)
        assert (other(ids).logits - other(ids, position_ids=places).logits).abs().max() > 0.01
        with plain_kernels(model):
            torch.testing.assert_close(model(ids).logits, other(ids).logits, rtol=0, atol=0)
        assert (model(ids).logits - other(ids).logits).abs().max() > 0.01


class InPlace(torch.autograd.Function):
    """A quarter turn of the first half of each head into the second, in place and unseen by torch, as Triton's kernels do it."""

    @staticmethod
    def forward(ctx, q, k):
        for tensor in (q, k):
            heads = tensor.detach().numpy()  # the same memory
            half = heads.shape[-1] // 2
            heads[..., :half], heads[..., half:] = -heads[..., half:].copy(), heads[..., :half].copy()
        return q, k

    @staticmethod
    def backward(ctx, *gradients):
        half = gradients[0].shape[-1] // 2
        return tuple(torch.cat([g[..., half:], -g[..., :half]], dim=-1) for g in gradients)


def turned_in_place(q, k, cos, sin, unsqueeze_dim=1):
    return InPlace.apply(q, k)


def turned(q, k, cos, sin, unsqueeze_dim=1):
    """The same, written out."""
    half = q.shape[-1] // 2
    return tuple(torch.cat([-x[..., half:], x[..., :half]], dim=-1) for x in (q, k))


@pytest.mark.parametrize("checkpointing", [False, True, "selective"])
def test_a_rotation_in_place_leaves_what_checkpointing_keeps_alone(checkpointing):
    """Selective checkpointing keeps the outputs of linear layers: turned twice, they gave attention wrong gradients."""
    gradients = []
    for rotate in (turned_in_place, turned):
        model = toy("qwen2").train()
        enable_checkpointing(model, checkpointing)
        with replaced_in_this_model_alone(model):
            vars(sys.modules[type(model).__module__])["apply_rotary_pos_emb"] = rotate
        ids = torch.arange(2, 40)[None]
        logits = model(ids, use_cache=False).logits
        logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None]).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, found in gradients[0].items():
        torch.testing.assert_close(found, gradients[1][name], msg=lambda said, name=name: f"{name}: {said}")


@pytest.mark.parametrize("family", CONFIGS)
def test_the_norms_of_towers_for_images_stay_as_they_are(family):
    model = toy_vision_model(family)
    compile_norms(model)
    changed = [name for name, module in model.named_modules() if "forward" in vars(module)]
    assert changed == [name for name in changed if "language_model" in name or "text_model" in name]


@pytest.mark.parametrize("name", NORMS_FEED_LINEAR_LAYERS)
def test_norms_that_return_what_linear_layers_cast_to_change_no_logit(name):
    """Whatever reads the norm's output in float32 would see other numbers."""
    model, plain = toy(name), toy(name)
    compile_norms(model)
    norm = model.model.layers[1].post_attention_layernorm
    ids = torch.arange(2, 60)[None]
    with torch.autocast("cpu", torch.bfloat16):
        logits, expected = model(ids).logits, plain(ids).logits
        assert norm(torch.randn(1, 4, 32)).dtype == torch.bfloat16
    assert torch.equal(logits, expected)
    for output in (logits, expected):
        output.float().log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None]).sum().backward()
    gradients = [torch.cat([p.grad.flatten() for p in one.parameters()]) for one in (model, plain)]
    assert_relatively_close(*gradients, 0.02)
    assert norm(torch.randn(1, 4, 32)).dtype == torch.float32  # outside autocast
    copied = deepcopy(model).model.layers[1].post_attention_layernorm
    with torch.no_grad():
        copied.weight.zero_()
    assert not copied(torch.randn(1, 4, 32)).any()
    assert norm(torch.randn(1, 4, 32)).all()


@pytest.mark.parametrize("checkpointing", [False, True, "selective"])
def test_compiled_norms_have_the_gradient_of_plain_ones_whatever_is_recomputed(checkpointing):
    gradients = []
    for changed in (compile_norms, lambda model: None):
        model = toy("qwen3").train()
        enable_checkpointing(model, checkpointing)
        changed(model)
        for tokens in (38, 21, 1):
            ids = torch.arange(2, 2 + tokens + 1)[None]
            logits = model(ids, use_cache=False).logits
            logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None]).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert_relatively_close(*gradients, 1e-5)


def test_norms_are_compiled_once_for_any_number_of_tokens():
    torch._dynamo.reset()
    compiled = torch._dynamo.utils.counters["stats"]
    compiled.clear()
    model = toy("qwen2").train()
    compile_norms(model)
    for tokens in (38, 21, 7):
        model(torch.arange(2, 2 + tokens)[None], use_cache=False).logits.sum().backward()
    assert compiled["unique_graphs"] == 1


def test_norms_are_compiled_in_every_form_that_a_run_has():
    """With gradient and without, trained and frozen, one token and many, inside autocast and outside: more than torch's 8."""
    torch._dynamo.reset()
    compiled = torch._dynamo.utils.counters["stats"]
    compiled.clear()
    norm = Qwen2RMSNorm(32)
    norm.__dict__["forward"] = MethodType(norms.forward, norm)
    with torch._dynamo.config.patch(recompile_limit=norms.VARIANTS):
        for frozen, grad, mixed, rows in product((False, True), (False, True), (False, True), (1, 2, 3)):
            norm.requires_grad_(not frozen)
            with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                assert norm(torch.randn(1, rows, 32)).dtype == (torch.bfloat16 if mixed else torch.float32)
    assert 8 < compiled["unique_graphs"] <= 16
    compile_norms(toy("qwen2"))
    assert torch._dynamo.config.recompile_limit >= norms.VARIANTS


def test_norms_inside_compiled_code_of_somebody_else_compute_the_same():
    model, plain = toy("qwen2"), toy("qwen2")
    compile_norms(model)
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model)(ids).logits, plain(ids).logits)


def test_norms_that_peft_trains_something_beside_stay_as_they_are():
    names = ["input_layernorm", "post_attention_layernorm"]
    config = LNTuningConfig(task_type="CAUSAL_LM", target_modules=names)
    model = get_peft_model(toy("qwen2"), config)
    compile_norms(model)
    ids = torch.arange(2, 40)[None]
    model(ids).logits.log_softmax(-1)[0, :, 5].sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * model.config.num_hidden_layers
    assert all(parameter.grad.any() for parameter in trained)


def test_fused_kernels_are_refused_without_a_gpu(tiny_model_dir, tmp_path):
    module = GRPOModule(model_name_or_path=str(tiny_model_dir), rewards="format", use_liger_kernel=True)
    trainer = L.Trainer(accelerator="cpu", max_steps=1, default_root_dir=tmp_path, logger=False)
    with pytest.raises(ValueError, match=r"model.use_liger_kernel=true: Liger's kernels run on a GPU"):
        trainer.fit(module, datamodule=GRPODataModule(dataset=[{"prompt": "1"}], batch_size=1))


def test_fused_kernels_and_a_compiler_that_makes_its_own_are_refused_together(tiny_model_dir):
    with pytest.raises(ValueError, match=r"use_liger_kernel=true and model.torch_compile=true.*Leave one of them out"):
        GRPOModule(model_name_or_path=str(tiny_model_dir), rewards="format", use_liger_kernel=True, torch_compile=True)


def test_compiled_layers_give_the_same_scores_and_gradient_for_any_number_of_tokens():
    rollouts = some_rollouts()
    model, plain = toy("qwen2"), toy("qwen2")
    compile_layers(model)
    for parts in ([ROWS], [ROWS[:2], ROWS[2:]]):
        scorer, plain_scorer = Scorer(model, TEMPERATURE), Scorer(plain, TEMPERATURE)
        found = [scorer.score(rollouts, part, with_entropy=True, entropy_grad=True) for part in parts]
        expected = [plain_scorer.score(rollouts, part, with_entropy=True, entropy_grad=True) for part in parts]
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.logprobs, other.logprobs)
        gradient = loss_gradient(model, found, rollouts, parts)
        assert_relatively_close(gradient, loss_gradient(plain, expected, rollouts, parts))


@pytest.mark.gpu
@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="liger-kernel is not installed")
@pytest.mark.parametrize("checkpointing", [False, "selective"])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama", "mistral", "gemma2"])
def test_liger_gives_the_same_scores_and_gradient(name, mixed, checkpointing):
    rollouts = some_rollouts()
    model, plain = toy(name).cuda().train(), toy(name).cuda().train()
    enable_checkpointing(model, checkpointing)
    classes = dict(vars(sys.modules[type(model).__module__]))
    assert use_liger_kernels(model)
    assert vars(sys.modules[type(model).__module__]) == classes
    scorer, plain_scorer = Scorer(model, TEMPERATURE), Scorer(plain, TEMPERATURE)
    with torch.autocast("cuda", torch.bfloat16, enabled=mixed):
        found = [scorer.score(rollouts, ROWS, with_entropy=True, entropy_grad=True)]
        expected = [plain_scorer.score(rollouts, ROWS, with_entropy=True, entropy_grad=True)]
    assert model.model.layers[0].self_attn in fused_modules(model)  # the rotary embedding's
    scale = expected[0].logprobs.abs().mean()
    error = (found[0].logprobs - expected[0].logprobs).abs().max()
    assert error < scale * (0.02 if mixed else 1e-5)
    gradient = loss_gradient(model, found, rollouts, [ROWS])
    assert_relatively_close(gradient, loss_gradient(plain, expected, rollouts, [ROWS]), 0.02 if mixed else 1e-4)
    small = 0.01 * gradient.norm()  # such as those of the keys' biases, which are rounding alone
    for (parameter, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        distance = (one.grad - other.grad).norm() / (other.grad.norm() + small)
        assert distance < (0.1 if mixed else 1e-3), parameter


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama", "gemma2"])
def test_layers_are_compiled_with_their_flash_attention_as_one_graph(name, share_prompts):
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    rollouts = some_rollouts()
    model, plain = toy(name).cuda().train(), toy(name).cuda().train()
    compile_layers(model)
    scorer, plain_scorer = (Scorer(each, TEMPERATURE, share_prompts=share_prompts) for each in (model, plain))
    parts = [ROWS, ROWS[:2], ROWS[2:]]
    with torch.autocast("cuda", torch.bfloat16):
        found, expected = (
            [each.score(rollouts, part, with_entropy=True, entropy_grad=True) for part in parts]
            for each in (scorer, plain_scorer)
        )
        gradient = loss_gradient(model, found, rollouts, parts)
        assert_relatively_close(gradient, loss_gradient(plain, expected, rollouts, parts), 0.05)
        is_whole = name != "gemma2"  # whose soft cap no flash kernel has: attention in blocks stays between two graphs
        assert bool(counters["graph_break"]) is not is_whole
        compiled = counters["stats"]["unique_graphs"]  # with prompts in common and without
        assert compiled <= 2 or not is_whole
        for part in (ROWS[:3], ROWS[1:], ROWS[:1]):
            scorer.score(rollouts, part, with_entropy=True, entropy_grad=True)
        assert counters["stats"]["unique_graphs"] == compiled or not is_whole


def test_layers_are_compiled_for_training_alone_and_not_for_what_a_probe_compares():
    compiled = torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()
    model = toy("qwen2").train()
    compile_layers(model)
    scorer = Scorer(model, TEMPERATURE)
    compiled.clear()
    scorer.check()
    assert compiled["unique_graphs"] == 0
    passes = [scorer.score(some_rollouts(), part).logprobs.sum() for part in (ROWS, ROWS[:2])]
    after_one = compiled["unique_graphs"]
    sum(passes).backward()
    assert 0 < compiled["unique_graphs"] == after_one
