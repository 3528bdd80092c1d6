"""A GRPO step is the same on 1, 2 and 3 ranks: order, rollouts, gradients, metrics; under Lightning's DDP over gloo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_numbers import FloatsAreDoubles, load_doubles
from ranks import run_ranks
from runs import make_data, make_module, make_trainer, weights
from toy_models import save_toy_model

from grpo_lightning.generation import TransformersGenerator
from grpo_lightning.rollouts.dynamic_sampling import DynamicSampling

PROMPTS_PER_STEP = 6


class SamplerOfItsOwn(TransformersGenerator):
    """Tells logprobs that differ from the trainer's by up to 0.4 nats, by the token: what is compared is then no rounding."""

    def generate(self, *args, **kwargs):
        rollouts = super().generate(*args, **kwargs)
        return replace(rollouts, sampling_logprobs=rollouts.sampling_logprobs - 0.1 * (rollouts.completion_ids % 5))


def digits_of_later_prompts(prompts, completions, ground_truth, **columns):
    """Share of digits; equal, so that nothing is to be learnt, for the first three prompts of every step."""
    shares = [sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions]
    number = [int(answer) // 2 for answer in ground_truth]
    return [0.5 if n % PROMPTS_PER_STEP < 3 else share for n, share in zip(number, shares, strict=True)]


SCENARIOS: dict[str, dict[str, Any]] = {
    "one_update": {"max_tokens_per_microbatch": 24},
    "minibatches_and_iterations": {
        "max_tokens_per_microbatch": 24,
        "num_minibatches": 2,
        "num_iterations": 2,
        "beta": 0.1,
        "scale_rewards": "batch",
        "top_entropy_quantile": 0.7,
        "max_grad_norm": 0.5,
    },
    # Two completions of a prompt are often equal in reward, so some rank is left without any group in some step.
    "dropped_groups": {"dynamic_sampling": DynamicSampling(mode="drop"), "num_generations": 2},
    # With 2 ranks the first has no gradient of its own, with 3 the first neither and the second half of one.
    "idle_rank": {"max_tokens_per_microbatch": 24, "rewards": [digits_of_later_prompts]},
    # What an expert's load is worth is known once every rank has counted.
    "balanced_experts": {"max_tokens_per_microbatch": 24, "num_minibatches": 2, "router_aux_loss_coef": 0.5},
}


def train(folder: Path, model_dir: Path, ranks: int, scenario: str) -> dict[str, Any]:
    """Three GRPO steps; what this rank has seen and ended with.

    In float64: other numbers of ranks round otherwise, and in float32 that turns a sampled token into its neighbour now and
    then, after which nothing is comparable.
    """
    module = make_module(model_dir, generator=SamplerOfItsOwn(), max_sampler_mismatch=0.5, **SCENARIOS[scenario])
    load_doubles(module)
    seen: dict[str, list[Any]] = {"uids": [], "completions": [], "metrics": []}
    end_step = module.end_step

    def note(report: Any) -> None:
        end_step(report)
        seen["uids"].append(module.last_step.batch.uids)
        seen["completions"].append([ids.tolist() for ids in module.last_step.rollouts.completions()])
        seen["metrics"].append(module.step_metrics)

    module.end_step = note
    steps = 3 * module.num_updates
    trainer = make_trainer(folder, steps, devices=ranks, strategy="ddp" if ranks > 1 else "auto")
    data = make_data(folder / "data", batch_size=PROMPTS_PER_STEP // ranks, shuffle=scenario != "idle_rank")
    with FloatsAreDoubles():
        trainer.fit(module, datamodule=data)
    return seen | {"weights": weights(module)}


@pytest.fixture(scope="module", params=sorted(SCENARIOS))
def runs(request, tiny_model_dir, tmp_path_factory) -> dict[int, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "data").mkdir()
    has_experts = request.param == "balanced_experts"
    model_dir = save_toy_model(folder / "model", "qwen3_moe") if has_experts else tiny_model_dir
    return {count: run_ranks(count, train, folder, model_dir, count, request.param) for count in (1, 2, 3)}


def joined(ranks: list[dict[str, Any]], what: str) -> list[Any]:
    """One list per step: the ranks' parts end to end."""
    return [[entry for part in parts for entry in part] for parts in zip(*(rank[what] for rank in ranks), strict=True)]


def test_steps_are_the_same_on_any_number_of_ranks(runs):
    (alone,) = runs[1]
    assert {weight.dtype for weight in alone["weights"].values()} == {torch.float64}  # or the bounds were too narrow
    for count in (2, 3):
        assert joined(runs[count], "uids") == alone["uids"]
        assert joined(runs[count], "completions") == alone["completions"]
        torch.testing.assert_close(runs[count][0]["weights"], alone["weights"], rtol=1e-10, atol=1e-12)
        for rank in runs[count][1:]:
            torch.testing.assert_close(rank["weights"], runs[count][0]["weights"], rtol=0, atol=0)


def test_metrics_are_the_same_on_any_number_of_ranks(runs):
    (alone,) = runs[1]
    timed = ("time", "tokens_per_second", "seconds", "packing/fill")  # and what depends on the split by its nature
    for ranks in (runs[2], runs[3]):
        for step, expected in enumerate(alone["metrics"]):
            expected = {name: value for name, value in expected.items() if not any(word in name for word in timed)}
            assert expected.keys() >= {"loss", "reward", "entropy", "grad_norm", "clip_ratio/low_mean"}
            for rank in ranks:
                found = {name: value for name, value in rank["metrics"][step].items() if name in expected}
                assert found == pytest.approx(expected, rel=1e-9, abs=1e-10)
