"""The gradient of a whole GRPO step does not depend on how its completions are laid out and split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import fit
from torch import Tensor
from toy_models import save_toy_model
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from grpo_lightning.generation import Generator, SamplingSettings
from grpo_lightning.modules import GRPOModule
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.types import Rollouts

SIZE = 6
"""Completions per prompt; there are 3 prompts."""


class Given(Generator):
    """Gives the same ragged completions of 1 to 24 tokens to every module, whatever its weights and precision."""

    def start(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model_name_or_path: str) -> None:
        self.size = policy.config.vocab_size

    def update_weights(self, policy: PreTrainedModel) -> dict[str, float]:
        return {}

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], sampling: SamplingSettings, seeds: Sequence[int], *_: Any
    ) -> Rollouts:
        draw = torch.Generator().manual_seed(7)
        lengths = torch.randint(1, 25, (len(prompt_ids) * SIZE,), generator=draw).tolist()
        completions = [torch.randint(3, self.size, (length,), generator=draw).tolist() for length in lengths]
        group = [n // SIZE for n in range(len(completions))]
        logprobs = [[-6.0] * length for length in lengths]
        return Rollouts.from_lists(
            [list(ids) for ids in prompt_ids], completions, logprobs, [False] * len(group), group
        )


def share_of_even_ids(completions_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completions_ids]


def step_gradient(model_dir: Path, tmp_path: Path, unshared: bool = False, **settings: Any) -> dict[str, Tensor]:
    """The gradient with which a step of GRPOModule meets its optimizer, float32 by name, and how many passes made it."""
    gradient: dict[str, Tensor] = {}
    passes = []

    def watch(module: GRPOModule) -> None:
        step, accumulate = module.optimization.step, module.optimization.accumulate_gradient

        def recorded() -> Tensor:
            assert module.policy.model is not None
            gradient.update({name: p.grad.float().clone() for name, p in module.policy.model.named_parameters()})
            return step()

        module.optimization.step = recorded
        module.optimization.accumulate_gradient = lambda *arguments: passes.append(1) or accumulate(*arguments)
        if unshared:
            module.passes.make_scorer = lambda model: Scorer(
                model, module.sampling.temperature, "packed", share_prompts=False
            )

    defaults: dict[str, Any] = {
        "generator": Given(),
        "rewards": [share_of_even_ids],
        "num_generations": SIZE,
        "max_completion_length": 24,
        "temperature": 0.9,
        "importance_sampling_correction": False,
        "max_sampler_mismatch": None,  # no policy sampled these completions
    }
    fit(model_dir, tmp_path, on_module=watch, **(defaults | settings))
    return gradient | {"number of passes": torch.tensor(float(len(passes)))}


def flat(gradient: dict[str, Tensor]) -> Tensor:
    return torch.cat([values.flatten().double() for name, values in sorted(gradient.items()) if "." in name])


def relative_distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return float((flat(found) - flat(expected)).norm() / flat(expected).norm())


@pytest.mark.parametrize("objective", [{}, {"loss_type": "grpo", "beta": 0.1, "entropy_coef": 0.01}])
def test_a_steps_gradient_is_the_same_padded_or_packed_shared_or_not_under_any_budget(
    tiny_model_dir, tmp_path, objective
):
    def gradient(**settings: Any) -> dict[str, Tensor]:
        return step_gradient(tiny_model_dir, tmp_path, **objective, **settings)

    padded = gradient(microbatch_layout="padded", max_tokens_per_microbatch=4096)
    assert padded["number of passes"] == 1
    assert flat(padded).norm() > 1e-3
    for budget in (1, 70, 4096):
        packed = gradient(microbatch_layout="packed", max_tokens_per_microbatch=budget)
        unshared = gradient(unshared=True, max_tokens_per_microbatch=budget)
        rows = gradient(microbatch_layout="padded", max_tokens_per_microbatch=budget)
        passes = [int(found["number of passes"]) for found in (packed, unshared, rows)]
        assert {1: passes == [18] * 3, 70: 1 < passes[0] < passes[1] < 18, 4096: passes == [1] * 3}[budget]
        for found in (packed, unshared, rows):
            assert relative_distance(found, padded) < 1e-5


def test_in_bfloat16_packed_is_as_close_to_a_float32_reference_as_padded_is(tmp_path):
    model_dir = save_toy_model(tmp_path / "model", num_hidden_layers=4)
    # Weights that bfloat16 holds exactly: what is compared is the arithmetic.
    AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).save_pretrained(model_dir)
    exact = step_gradient(model_dir, tmp_path, microbatch_layout="padded", dtype="float32")

    def error(**settings: Any) -> float:
        return relative_distance(step_gradient(model_dir, tmp_path, dtype="bfloat16", **settings), exact)

    padded = error(microbatch_layout="padded")
    assert 0.01 < padded < 0.3
    for settings in ({}, {"max_tokens_per_microbatch": 70}, {"unshared": True}):
        assert error(**{"microbatch_layout": "packed"} | settings) < 1.1 * padded
