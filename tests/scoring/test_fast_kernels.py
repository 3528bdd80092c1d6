import sys
from copy import deepcopy
from importlib.util import find_spec

import lightning as L
import pytest
import torch
from test_scorer import TEMPERATURE, assert_relatively_close, loss_gradient, one_by_one, some_rollouts, toy

from grpo_lightning import GRPODataModule, GRPOModule
from grpo_lightning.scoring.fast_kernels import compile_layers, fused_modules, plain_kernels, use_liger_kernels
from grpo_lightning.scoring.scorer import Scorer

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
    found = Scorer(model, TEMPERATURE).score(some_rollouts(), ROWS, "cpu")
    assert not fused_modules(model)
    assert caplog.text.count("is trained without Liger's kernels") == 1
    torch.testing.assert_close(found.logprobs, one_by_one(toy("qwen2"), some_rollouts(), ROWS).logprobs)


def test_a_kernel_that_fails_on_this_machine_is_removed_with_its_error(caplog):
    def failing_norm(self, x):
        raise OSError("no compiler")

    model = with_kernel(toy("qwen2"), failing_norm)
    Scorer(model, TEMPERATURE).score(some_rollouts(), ROWS, "cpu")
    assert not fused_modules(model)
    assert "OSError: no compiler" in caplog.text


def test_a_kernel_that_agrees_stays(caplog):
    model = with_kernel(toy("qwen2"), right_norm)
    Scorer(model, TEMPERATURE).score(some_rollouts(), ROWS, "cpu")
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
        found = [scorer.score(rollouts, part, "cpu", with_entropy=True, entropy_grad=True) for part in parts]
        expected = [plain_scorer.score(rollouts, part, "cpu", with_entropy=True, entropy_grad=True) for part in parts]
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.logprobs, other.logprobs)
        gradient = loss_gradient(model, found, rollouts, parts)
        assert_relatively_close(gradient, loss_gradient(plain, expected, rollouts, parts))


@pytest.mark.gpu
@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="liger-kernel is not installed")
@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama", "mistral", "gemma2"])
def test_liger_gives_the_same_scores_and_gradient(name):
    rollouts = some_rollouts()
    model, plain = toy(name).cuda(), toy(name).cuda()
    classes = dict(vars(sys.modules[type(model).__module__]))
    assert use_liger_kernels(model)
    assert vars(sys.modules[type(model).__module__]) == classes
    scorer, plain_scorer = Scorer(model, TEMPERATURE), Scorer(plain, TEMPERATURE)
    found = [scorer.score(rollouts, ROWS, "cuda", with_entropy=True, entropy_grad=True)]
    expected = [plain_scorer.score(rollouts, ROWS, "cuda", with_entropy=True, entropy_grad=True)]
    assert fused_modules(model)
    torch.testing.assert_close(found[0].logprobs, expected[0].logprobs, rtol=1e-4, atol=1e-5)
    gradient = loss_gradient(model, found, rollouts, [ROWS])
    assert_relatively_close(gradient, loss_gradient(plain, expected, rollouts, [ROWS]), 1e-4)
