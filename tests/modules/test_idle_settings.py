"""Settings that would have no effect beside others are refused, each where it is made; given with what they need, they are taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from grpo_lightning import GRPODataModule
from grpo_lightning.generation import SamplingSettings
from grpo_lightning.generation.vllm.server import VLLMServer
from grpo_lightning.modules.schedules import TransformersSchedule, WarmupSchedule
from grpo_lightning.rewards import AccuracyReward, RewardComposition
from grpo_lightning.rollouts.evaluation import EvaluationSettings


def on(schedule: type, **settings: Any) -> Any:
    return schedule(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0), **settings)


def warmup(**settings: Any) -> Any:
    return on(WarmupSchedule, **settings)


def of_transformers(**settings: Any) -> Any:
    return on(TransformersSchedule, **settings)


DECAY = {"shape": "linear", "total_steps": 10}
IDLE: list[tuple[Callable[..., Any], dict[str, Any], dict[str, Any], str]] = [
    (RewardComposition, {"threshold": 0.5}, {"gates": {"accuracy": "format"}}, "threshold=0.5 has no effect without"),
    (AccuracyReward, {"ignore_case": True}, {"mode": "exact"}, "ignore_case=True has no effect with mode=math"),
    (AccuracyReward, {"mode": "exact", "tolerance": 0.1}, {"mode": "numeric"}, "tolerance=0.1 has no effect with mode"),
    (AccuracyReward, {"mode": "numeric", "workers": 4}, {"mode": "math"}, "workers=4 has no effect .* use mode=math"),
    (
        VLLMServer,
        {"weight_transfer": "nccl", "weight_directory": "/tmp"},
        {"weight_transfer": "files"},
        "weight_directory has no effect with weight_transfer=nccl",
    ),
    (
        VLLMServer,
        {"weight_transfer": "files", "trainer_address": "10.0.0.1"},
        {"weight_transfer": "nccl"},
        "trainer_address has no effect with weight_transfer=files",
    ),
    (
        GRPODataModule,
        {"dataset": "x", "overlong_prompts": "refuse"},
        {"max_prompt_length": 8},
        "data.overlong_prompts=refuse has no effect without data.max_prompt_length",
    ),
    (warmup, {"min_ratio": 0.1}, DECAY, "min_ratio=0.1 has no effect with shape=constant"),
    (of_transformers, {"name": "constant", "warmup_steps": 9}, {"name": "constant_with_warmup"}, "Use constant_with"),
    (
        of_transformers,
        {"name": "constant_with_warmup", "arguments": {"timescale": 9}},
        {"name": "inverse_sqrt"},
        "arguments=.* has no effect with name=constant_with_warmup",
    ),
]


@pytest.mark.parametrize(("made", "settings", "needed", "message"), IDLE, ids=[case[3] for case in IDLE])
def test_a_setting_without_effect_is_refused_and_taken_with_what_it_needs(made, settings, needed, message):
    with pytest.raises(ValueError, match=message):
        made(**settings)
    made(**(settings | needed))


@pytest.mark.parametrize(
    ("made", "settings", "message"),
    [
        (warmup, DECAY | {"shape": "linaer"}, "shape='linaer' is unknown. Choose one of constant, linear, cosine"),
        (warmup, DECAY | {"min_ratio": -1.0}, "min_ratio=-1.0 is no share of the peak"),
        (warmup, {"warmup_steps": 1.5}, "warmup_steps=1.5 is neither a whole number of steps nor a share"),
        (of_transformers, {"warmup_steps": -3}, "warmup_steps=-3 is neither"),
        (EvaluationSettings, {"num_generations_eval": 4, "temperature_eval": 0.0}, "one completion 4 times over"),
        (SamplingSettings, {"stop": ["a", ""]}, 'model.stop=.* cannot be sampled with: choose no ""'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_meant_is_refused(made, settings, message):
    with pytest.raises(ValueError, match=message):
        made(**settings)


def test_one_string_that_ends_completions_is_one():
    """It was each of its characters."""
    assert SamplingSettings(stop="###").stop == ("###",)
    with pytest.raises(ValueError, match=r"model.stop=\('',\) cannot be sampled with"):
        SamplingSettings(stop="")
