"""Scores of whole rollouts, packed, padded and from full logits, against the model on one sequence at a time."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from toy_models import build_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from grpo_lightning.scoring.fast_kernels import use_liger_kernels
from grpo_lightning.scoring.planning import count_tokens
from grpo_lightning.scoring.readout import TokenScores
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.scoring.value_readout import ValueReadout
from grpo_lightning.types import Rollouts

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    # Small default weights make every distribution uniform, which hides a wrong position.
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
ARCHITECTURES = {
    "qwen2": {},
    "qwen2 with windows in some layers": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {},
    "llama": {},
    "gemma2": {"sliding_window": 4, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 1.0},
    "gemma3_text": {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "mistral": {"sliding_window": 4},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.5},
    "phi": {"head_dim": None},  # a biased output head
}
TEMPERATURE = 0.7


def toy(name: str, **overrides) -> PreTrainedModel:
    """A random float32 model; eager attention, the definition, where transformers' default leaves a soft cap out."""
    architecture = name.split()[0]
    sizes = {key: value for key, value in (SIZES | ARCHITECTURES.get(name, {}) | overrides).items() if value != ""}
    if sizes["head_dim"] is None:
        del sizes["head_dim"]
    config = AutoConfig.for_model(architecture, **sizes)
    torch.manual_seed(0)
    attention = "eager" if architecture == "gemma2" else None
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)


def some_rollouts(vocab_size: int = 97) -> Rollouts:
    """Three groups, one of them a single completion, in no order."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda length: torch.randint(vocab_size, (length,), generator=generator).tolist()  # noqa: E731
    lengths = [5, 1, 12, 3, 8, 2, 7]
    return Rollouts.from_lists(
        [draw(6), draw(3), draw(1)],
        [draw(length) for length in lengths],
        [[0.0] * length for length in lengths],
        [False] * 7,
        [0, 1, 0, 2, 1, 0, 0],
    )


def one_by_one(model: PreTrainedModel, rollouts: Rollouts, rows: Tensor) -> TokenScores:
    """The definition: full logits of each unpadded sequence on its own."""
    logprobs, entropy = [], []
    for row in rows.tolist():
        prompt, completion = rollouts.prompts()[int(rollouts.group[row])], rollouts.completions()[row]
        device = next(model.parameters()).device
        logits = model(input_ids=torch.cat([prompt, completion])[None].to(device), use_cache=False).logits[0]
        logits = logits[len(prompt) - 1 : -1].float() / TEMPERATURE
        distribution = torch.distributions.Categorical(logits=logits)
        logprobs.append(distribution.log_prob(completion.to(device)))
        entropy.append(distribution.entropy())
    return TokenScores(torch.cat(logprobs), torch.cat(entropy))


def loss_gradient(model: PreTrainedModel, scores: list[TokenScores], rollouts: Rollouts, parts: list[Tensor]) -> Tensor:
    """Gradient of a token-weighted sum of logprobs and entropies over all micro-batches, flat."""
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(2, rollouts.completion_ids.numel(), generator=generator)
    model.zero_grad()
    for score, rows in zip(scores, parts, strict=True):
        of_logprob, of_entropy = weights[:, rollouts.tokens_of(rows)].to(score.logprobs.device)
        (score.logprobs @ of_logprob + score.entropy @ of_entropy).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_relatively_close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert (found - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("layout", "share_prompts"), [("packed", True), ("packed", False), ("padded", True)])
def test_scores_and_gradients_equal_plain_forward_passes(name, layout, share_prompts):
    model = toy(name)
    rollouts = some_rollouts()
    rows = torch.tensor([4, 0, 6, 3, 1, 2, 5])
    expected = one_by_one(model, rollouts, rows)
    expected_gradient = loss_gradient(model, [expected], rollouts, [rows])
    scorer = Scorer(model, TEMPERATURE, layout, share_prompts)
    scores = scorer.score(rollouts, rows, with_entropy=True, entropy_grad=True)
    assert scorer.layout == layout
    assert not scorer.is_plain
    torch.testing.assert_close(scores.logprobs, expected.logprobs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.entropy, expected.entropy, rtol=1e-5, atol=1e-5)
    assert_relatively_close(loss_gradient(model, [scores], rollouts, [rows]), expected_gradient)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("max_tokens", [1, 12, 20, 33, 1000])
def test_the_gradient_of_a_step_is_the_same_under_any_budget(layout, max_tokens):
    model, rollouts = toy("qwen2"), some_rollouts()
    everything = torch.arange(rollouts.num_completions)
    expected = loss_gradient(model, [one_by_one(model, rollouts, everything)], rollouts, [everything])
    scorer = Scorer(model, TEMPERATURE, layout)
    parts = scorer.plan(rollouts, everything, max_tokens)
    scores = [scorer.score(rollouts, rows, with_entropy=True, entropy_grad=True) for rows in parts]
    assert_relatively_close(loss_gradient(model, scores, rollouts, parts), expected)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_pass_that_was_laid_out_ahead_has_the_scores_of_its_own_rows(layout):
    scorer, rollouts, others = Scorer(toy("qwen2"), TEMPERATURE, layout), some_rollouts(), some_rollouts()
    rows, fewer = torch.tensor([0, 2, 3]), torch.tensor([1, 2])
    expected = [scorer.score(each, part).logprobs for each, part in [(rollouts, rows), (rollouts, fewer)]]
    others.completion_ids[0] += 1
    for asked, answer in [((rollouts, rows.clone()), expected[0]), ((rollouts, fewer), expected[1])]:
        scorer.lay_out_ahead(rollouts, rows)
        assert torch.equal(scorer.score(*asked).logprobs, answer)
    scorer.lay_out_ahead(rollouts, rows)
    assert not torch.equal(scorer.score(others, rows).logprobs, expected[0])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_runs_layers_again_with_the_same_packing(use_reentrant):
    model, rollouts = toy("mistral"), some_rollouts()
    everything = torch.arange(rollouts.num_completions)
    expected = loss_gradient(model, [one_by_one(model, rollouts, everything)], rollouts, [everything])
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    model.train()
    scorer = Scorer(model, TEMPERATURE, "packed")
    parts = [everything[:3], everything[3:]]
    # Both forward passes come first: the second pass must not replace what the first one's layers run again with.
    scores = [scorer.score(rollouts, rows, with_entropy=True, entropy_grad=True) for rows in parts]
    assert_relatively_close(loss_gradient(model, scores, rollouts, parts), expected)


def test_changing_one_completion_leaves_the_others_logprobs_bit_equal():
    model, rollouts = toy("qwen2"), some_rollouts()
    everything = torch.arange(rollouts.num_completions)
    scorer = Scorer(model, TEMPERATURE, "packed")
    with torch.no_grad():
        before = scorer.score(rollouts, everything).logprobs
        tokens = rollouts.tokens_of(torch.tensor([2]))
        rollouts.completion_ids[tokens] = (rollouts.completion_ids[tokens] + 1) % 97
        after = scorer.score(rollouts, everything).logprobs
    changed = torch.zeros_like(before, dtype=torch.bool)
    changed[tokens] = True
    assert torch.equal(before[~changed], after[~changed])
    assert (before[changed] != after[changed]).all()


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_lora_is_scored_with_its_adapters_and_without_them(targets):
    base = toy("qwen2", tie_word_embeddings=False)
    plain = copy.deepcopy(base)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    rollouts, rows = some_rollouts(), torch.arange(7)
    scorer = Scorer(model, TEMPERATURE, "packed")
    expected = one_by_one(model, rollouts, rows)
    expected_gradient = loss_gradient(model, [expected], rollouts, [rows])
    scores = scorer.score(rollouts, rows, with_entropy=True, entropy_grad=True)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    assert_relatively_close(loss_gradient(model, [scores], rollouts, [rows]), expected_gradient)
    with model.disable_adapter(), torch.no_grad():
        reference = scorer.score(rollouts, rows).logprobs
    torch.testing.assert_close(reference, one_by_one(plain, rollouts, rows).logprobs, rtol=1e-5, atol=1e-5)
    assert (reference - scores.logprobs).abs().max() > 0.1


@pytest.mark.parametrize(
    ("name", "overrides", "reason"),
    [
        ("bloom", {"n_layer": 2, "n_head": 4, "hidden_dropout": 0.0, "attention_dropout": 0.0}, "padded micro-batches"),
        ("mamba", {}, "linear_attention look across"),
        ("qwen2", {"attention_dropout": 0.1}, "attention_dropout=0.1"),
    ],
)
def test_a_model_that_cannot_be_packed_is_padded_and_says_so_once(name, overrides, reason, caplog):
    model, rollouts, rows = toy(name, **overrides).eval(), some_rollouts(), torch.arange(7)
    scorer = Scorer(model, TEMPERATURE)
    with caplog.at_level(logging.WARNING, "grpo_lightning"):
        for _ in range(2):
            scores = scorer.score(rollouts, rows, with_entropy=True)
    assert scorer.layout == "padded"
    assert [record.name for record in caplog.records].count("grpo_lightning.scoring.settling") == 1
    assert reason in caplog.text
    torch.testing.assert_close(scores, one_by_one(model, rollouts, rows), rtol=1e-5, atol=1e-5)


def test_a_model_whose_scores_depend_on_the_positions_beside_it_is_refused():
    """Phi-3.5-MoE of transformers scales its attention by the longest sequence of the pass."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 32,
        "short_mscale": 1.0,
        "long_mscale": 1.3,
        "factor": 8.0,
    }
    model = toy("phimoe", num_local_experts=2, original_max_position_embeddings=32, rope_parameters=rope)
    with pytest.raises(ValueError, match=r"PhimoeForCausalLM cannot be trained.*position 255 is in the same pass"):
        Scorer(model, TEMPERATURE).check()
    model.config.num_labels = 1
    classifier = AutoModelForSequenceClassification.from_config(model.config)  # its one logit is no distribution
    with pytest.raises(ValueError, match="PhimoeForSequenceClassification cannot be trained"):
        Scorer(classifier, TEMPERATURE, readout=ValueReadout(classifier)).check()


def test_layers_that_make_a_mask_of_their_own_are_not_packed():
    """Doge adds learnt terms to its mask, which packed attention would leave out; freshly made they are all zero."""
    scorer = Scorer(toy("doge"), TEMPERATURE)
    with pytest.raises(ValueError, match="the mask that DogeAttention makes of its own"):
        Scorer(toy("doge"), TEMPERATURE, "packed").check()
    scorer.check()
    assert scorer.layout == "padded"


def test_packed_that_was_asked_for_and_is_not_possible_is_an_error():
    with pytest.raises(ValueError, match="layout='packed' does not work with BloomForCausalLM"):
        Scorer(toy("bloom", n_layer=2, n_head=4), TEMPERATURE, "packed").check()


def test_a_head_that_hidden_states_do_not_explain_is_scored_from_full_logits(caplog):
    class Shifted(type(toy("llama"))):
        """Does something to its logits that no config field tells."""

        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits + torch.arange(97) / 20
            return output

    rollouts, rows = some_rollouts(), torch.tensor([6, 2, 3])
    model = toy("llama")
    model.__class__ = Shifted
    with caplog.at_level(logging.WARNING, "grpo_lightning"):
        scorer = Scorer(model, TEMPERATURE)
        scores = scorer.score(rollouts, rows, with_entropy=True, entropy_grad=True)
    assert "full logits" in caplog.text
    expected = one_by_one(model, rollouts, rows)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    gradient = loss_gradient(model, [scores], rollouts, [rows])
    assert_relatively_close(gradient, loss_gradient(model, [expected], rollouts, [rows]))


def test_a_plan_counts_tokens_as_the_layout_uses_them_and_warns_once_above_the_budget(caplog):
    model, rollouts = build_model(), some_rollouts()
    rows, sizes = torch.arange(7), (rollouts.prompt_lengths, rollouts.completion_lengths, rollouts.group)
    shared, unshared = (Scorer(model, TEMPERATURE, share_prompts=share) for share in (True, False))
    with caplog.at_level(logging.WARNING, "grpo_lightning"):
        assert len(shared.plan(rollouts, rows, 48)) == 1  # 38 completion tokens and prompts of 6, 3 and 1
        assert len(unshared.plan(rollouts, rows, 48)) == 2  # 24 + 6 + 1 prompt tokens
        assert not caplog.records
        for _ in range(2):
            parts = shared.plan(rollouts, rows, 15)
    assert [count_tokens(*sizes, part) > 15 for part in parts].count(True) == 1
    assert [record.name for record in caplog.records].count("grpo_lightning.scoring.scorer") == 1
    assert "18 tokens, more than model.max_tokens_per_microbatch=15" in caplog.text


def test_the_check_leaves_training_modes_and_random_state_as_they_were():
    model = toy("qwen2").train()
    model.model.layers[0].eval()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    Scorer(model, TEMPERATURE).check()
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.model.layers[0].training
    assert model.model.layers[1].training


def test_under_autocast_a_pass_without_gradient_does_not_cost_the_next_one_its_gradient():
    """Torch keeps cast weights for a whole autocast region; since 2.11, the oldest supported, cast with their gradient."""
    model, rollouts, rows = toy("qwen2"), some_rollouts(), torch.arange(7)
    scorer = Scorer(model, TEMPERATURE)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            scorer.score(rollouts, rows)
        scorer.score(rollouts, rows).logprobs.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_every_slower_way_of_a_pass_is_named_with_its_reason():
    scorer = Scorer(toy("qwen2"), TEMPERATURE)
    scorer.check()
    ways = scorer.slow_ways()
    assert list(ways) == ["attention", "head", "kernels"]
    assert "runs on a GPU, and training runs on cpu" in ways["attention"]
    padded = Scorer(toy("qwen2"), TEMPERATURE, "padded")
    padded.check()
    assert padded.slow_ways()["layout"] == "padded micro-batches, not packed ones"
    wrapped = toy("qwen2")
    wrapped.lm_head.register_forward_hook(lambda *ignored: None)
    hooked = Scorer(wrapped, TEMPERATURE)
    hooked.check()
    assert "more than one matrix" in hooked.slow_ways()["head"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_mixed_precision_takes_no_slow_way_on_a_gpu_and_float32_says_which_it_takes(caplog):
    model = toy("qwen2").to("cuda")
    use_liger_kernels(model)
    with torch.autocast("cuda", torch.bfloat16):
        mixed = Scorer(model, TEMPERATURE)
        mixed.check()
    assert mixed.slow_ways() == {}
    assert [
        record for record in caplog.records if record.name != "torch.__trace"
    ] == []  # which a test before may turn on
    Scorer(model, TEMPERATURE).check()
    assert (
        "attention: padded blocks, because flash attention computes in half precision, and this run in float32"
        in caplog.text
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bfloat16_on_a_gpu_is_as_close_to_float32_as_the_plain_model_is(name):
    rollouts, rows = some_rollouts(), torch.arange(7)
    exact_model = toy(name).double()
    model = copy.deepcopy(exact_model).to("cuda", torch.bfloat16)
    exact = one_by_one(exact_model, rollouts, rows)
    wanted = loss_gradient(exact_model.float(), [one_by_one(exact_model.float(), rollouts, rows)], rollouts, [rows])
    plain = one_by_one(model, rollouts, rows)
    plain_error = (plain.logprobs.cpu() - exact.logprobs).norm()
    plain_gradient = loss_gradient(model, [plain], rollouts, [rows]).float().cpu()
    scorer = Scorer(model, TEMPERATURE)
    scores = scorer.score(rollouts, rows, with_entropy=True, entropy_grad=True)
    assert scorer.layout == "packed"
    assert (scores.logprobs.cpu() - exact.logprobs).norm() < 1.5 * plain_error
    gradient = loss_gradient(model, [scores], rollouts, [rows]).float().cpu()
    assert (gradient - wanted).norm() < 1.5 * (plain_gradient - wanted).norm()
