"""Recomputed activations: the same gradient to the bit, from less memory."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.profiler import ProfilerActivity, profile
from toy_models import build_model
from transformers.modeling_layers import GradientCheckpointingLayer

from grpo_lightning.memory.worst_case import filling_rollouts
from grpo_lightning.policy.activation_checkpointing import check_checkpointing, enable_checkpointing, is_recomputed
from grpo_lightning.scoring.scorer import Scorer

SETTINGS = [False, 0.25, 0.5, "selective", True]
"""From the most memory to the least, for the toy models of 4 layers."""


def trained(setting, architecture="qwen2", adapters=False, precision=torch.float32):
    """Bytes that a forward pass leaves behind for its backward pass, and the gradient, of the second of two passes."""
    model = build_model(architecture, num_hidden_layers=4)
    enable_checkpointing(model, setting)
    if adapters:
        torch.manual_seed(0)
        model = get_peft_model(
            model, LoraConfig(target_modules="all-linear", lora_dropout=0.1, init_lora_weights=False)
        )
    model.train()
    scorer = Scorer(model, 0.9)
    rollouts = filling_rollouts(330, 15, 40, 4, model.config.vocab_size, "packed")
    rows = torch.arange(rollouts.num_completions)
    torch.manual_seed(1)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        for watched in (nullcontext(), profile(activities=[ProfilerActivity.CPU], profile_memory=True)):
            with watched as profiler:
                scores = scorer.score(rollouts, rows, with_entropy=True, entropy_grad=True)
            (scores.logprobs.sin() + 0.1 * scores.entropy).sum().backward()
    assert profiler is not None
    kept = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    assert scorer.layout == "packed"
    return kept, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "how",
    [{}, {"architecture": "gemma2"}, {"adapters": True}, {"precision": torch.bfloat16}],
    ids=["float32", "gemma2", "lora with dropout", "autocast"],
)
def test_the_gradient_is_the_same_to_the_bit_and_the_memory_falls(how):
    everything, expected = trained(False, **how)
    sizes = [everything]
    for setting in SETTINGS[1:]:
        kept, found = trained(setting, **how)
        sizes.append(kept)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            assert torch.equal(gradient, expected[name]), (setting, name)
    assert sizes[1] < 0.85 * everything  # a quarter of the layers
    assert sizes[2] < 0.65 * everything
    assert sizes[3] < 0.75 * everything  # the costly part of all layers; adapters have more products than others
    assert sizes[4] < 0.25 * everything


def test_a_share_is_spread_evenly_over_the_layers():
    model = build_model("llama", num_hidden_layers=6)
    enable_checkpointing(model, 1 / 3)
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert [layer.gradient_checkpointing for layer in layers] == [False, False, True, False, False, True]
    for share in (0.0, 0.1, 0.3, 0.7, 1.0):
        assert sum(is_recomputed(number, share) for number in range(40)) == round(40 * share)


def test_false_and_0_leave_the_model_as_it_is():
    for setting in (False, 0.0):
        model = build_model("qwen2")
        enable_checkpointing(model, setting)
        assert not model.is_gradient_checkpointing


def test_selective_is_refused_where_compiled_layers_do_the_same():
    with pytest.raises(ValueError, match=r"selective has no effect with model\.torch_compile=true"):
        check_checkpointing("selective", torch_compile=True)
    check_checkpointing(True, torch_compile=True)


@pytest.mark.parametrize("setting", ["all", -0.5, 2.0])
def test_other_settings_are_refused(setting):
    with pytest.raises(ValueError, match=r"model\.gradient_checkpointing=.* is neither true, false, selective nor"):
        check_checkpointing(setting)
