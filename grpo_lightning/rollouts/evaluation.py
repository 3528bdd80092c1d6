"""Evaluation: how good the policy is on held-out prompts, and its completions written down."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from grpo_lightning.algorithm.advantages import combine_rewards, successes
from grpo_lightning.generation.base import SamplingSettings
from grpo_lightning.metrics.evaluation import NamedMeans, none_if_nan, pass_at_k
from grpo_lightning.rewards import RewardRunner, RewardSpec, RewardTable, resolve_rewards
from grpo_lightning.rewards.resolve import eval_rewards
from grpo_lightning.rollouts.base import Moment
from grpo_lightning.rollouts.source import RolloutSource
from grpo_lightning.types import PromptBatch, Rollouts


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What held-out prompts are evaluated with.

    Args:
        num_generations_eval: Completions sampled per held-out prompt for pass@k; 0 for the greedy one only.
        temperature_eval: Temperature of those samples.
        top_p_eval: top_p of those samples.
        eval_rewards: Further rewards that are reported in evaluation and never trained on.
        success_reward: The reward that says whether a completion is correct (1 or more), for ``accuracy`` and
            pass@k; by default the one called accuracy, else the first. Completions that it does not score (None) count for
            neither; pass@k is over prompts with k that it does.
    """

    num_generations_eval: int = 0
    temperature_eval: float = 1.0
    top_p_eval: float = 1.0
    eval_rewards: RewardSpec | None = None
    success_reward: str | None = None

    def __post_init__(self) -> None:
        rules = {
            "num_generations_eval": (self.num_generations_eval >= 0, "0 (none) or more"),
            "temperature_eval": (0 <= self.temperature_eval < math.inf, "a number of 0 (greedy) or more"),
            "top_p_eval": (0 < self.top_p_eval <= 1, "a number above 0 and at most 1"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"model.{name}={getattr(self, name)!r} cannot be sampled with: choose {rule}.")
        for name in ("temperature_eval", "top_p_eval"):
            if not self.num_generations_eval and getattr(self, name) != 1.0:
                raise ValueError(
                    f"model.{name}={getattr(self, name)!r} has no effect with model.num_generations_eval=0: held-out prompts have "
                    "one greedy completion. Set num_generations_eval, or leave it out."
                )
        if self.num_generations_eval > 1 and self.temperature_eval == 0:
            raise ValueError(
                f"model.temperature_eval=0 gives one completion {self.num_generations_eval} times over, so that pass@k says no "
                "more than the greedy one. Use a number above 0, or num_generations_eval=0."
            )


class Evaluation:
    """Scores one greedy completion per held-out prompt, estimates pass@k from sampled ones.

    Args:
        settings: See there.
        source: Samples, and has the rewards that are trained on.
    """

    def __init__(self, settings: EvaluationSettings, source: RolloutSource) -> None:
        self.source = source
        plain = replace(source.sampling, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0)
        self.greedy = replace(plain, num_generations=1, temperature=0.0)
        self.sampling: SamplingSettings | None = None
        if settings.num_generations_eval:
            self.sampling = replace(
                plain,
                num_generations=settings.num_generations_eval,
                temperature=settings.temperature_eval,
                top_p=settings.top_p_eval,
            )
        trained_on = source.reward_runner
        rewards = [*trained_on.rewards, *eval_rewards(settings.eval_rewards)]
        self.reward_runner = RewardRunner(resolve_rewards(rewards), **asdict(trained_on.runtime))
        self.success_index = self._find_success_reward(settings.success_reward)

    def _find_success_reward(self, name: str | None) -> int:
        names = self.reward_runner.names
        name = name or ("accuracy" if "accuracy" in names else names[0])
        if name not in names:
            raise ValueError(f"model.success_reward={name!r} is not among the rewards: {', '.join(names)}.")
        return names.index(name)

    @property
    def success_reward(self) -> str:
        """The reward that says whether a completion is correct."""
        return self.reward_runner.names[self.success_index]

    def means(self) -> NamedMeans:
        """An empty accumulator for ``evaluate``."""
        names = [f"rewards/{name}" for name in self.reward_runner.names]
        names += ["reward", "accuracy", "completions/mean_length", "completions/clipped_ratio"]
        if self.sampling is not None:
            names += [f"pass@{k}" for k in _ks(self.sampling)]
        return NamedMeans(names)

    def _score(self, batch: PromptBatch, rollouts: Rollouts, moment: Moment) -> RewardTable:
        """With what the rewards remember of training, to which nothing is added."""
        with self.source.reward_runner.kept_state.put_back():
            return self.source.score(batch, rollouts, moment, self.reward_runner)

    def evaluate(self, batch: PromptBatch, means: NamedMeans, moment: Moment) -> list[dict[str, Any]]:
        """Scores one greedy completion per prompt, and samples for pass@k, into ``means``.

        Returns:
            One row per prompt: prompt, greedy completion, the dataset columns and each reward.
        """
        if not len(batch):
            self.source.sample_nothing(self.greedy, self.sampling)
            return []
        rollouts = self.source.sample_as(batch, self.greedy, "eval", moment.step)
        table = self._score(batch, rollouts, moment)
        means.update({f"rewards/{name}": table.values[:, r].tolist() for r, name in enumerate(table.names)})
        trained_on = len(self.source.reward_runner.rewards)
        trained = (table.values[:, :trained_on], table.names[:trained_on], table.weights[:trained_on])
        totals = combine_rewards(*self.source.compose_rewards(*trained))
        means.update({"reward": totals.tolist(), "accuracy": self._success(table).tolist()})
        lengths, clipped = rollouts.completion_lengths.double().tolist(), rollouts.truncated.double().tolist()
        means.update({"completions/mean_length": lengths, "completions/clipped_ratio": clipped})
        if self.sampling is not None:
            means.update(self._pass_at_ks(batch, self.sampling, moment))
        return self._rows(batch, rollouts, table)

    def predict(self, batch: PromptBatch, moment: Moment) -> list[dict[str, Any]]:
        """Rows of completions sampled as in training, with their rewards."""
        if not len(batch):
            self.source.sample_nothing(self.source.sampling)
            return []
        rollouts = self.source.sample_as(batch, self.source.sampling, "train", moment.step)
        return self._rows(batch, rollouts, self._score(batch, rollouts, moment))

    def _pass_at_ks(self, batch: PromptBatch, sampling: SamplingSettings, moment: Moment) -> dict[str, list[float]]:
        rollouts = self.source.sample_as(batch, sampling, "eval", moment.step)
        table = self._score(batch, rollouts, moment)
        success = self._success(table)
        scored, correct = (
            torch.zeros(len(batch), dtype=torch.int64).index_add_(0, rollouts.group, counted.long()).tolist()
            for counted in (~success.isnan(), success == 1)
        )
        return {
            f"pass@{k}": [pass_at_k(n, c, k) if n >= k else math.nan for n, c in zip(scored, correct, strict=True)]
            for k in _ks(sampling)
        }

    def _success(self, table: RewardTable) -> Tensor:
        """(N,) float64: 1 for a correct completion, 0 for another, NaN for one that the reward did not score."""
        return successes(table.values[:, self.success_index])

    def _rows(self, batch: PromptBatch, rollouts: Rollouts, table: RewardTable) -> list[dict[str, Any]]:
        texts = self.source.texts.completions(batch, rollouts)
        rows = []
        for n, b in enumerate(rollouts.group.tolist()):
            scores = {name: none_if_nan(table.values[n, r].item()) for r, name in enumerate(table.names)}
            columns = {name: values[b] for name, values in batch.columns.items()}
            identity = {"uid": batch.uids[b], "prompt": rollouts.asked(n, batch.prompts[b]), "completion": texts[n]}
            logged = {name: values[n] for name, values in table.extra.items()}
            own = {**identity, "rewards": scores, "truncated": bool(rollouts.truncated[n])}
            rows.append({**identity, **columns, **logged, **own})  # columns may have the same names
        return rows

    def close(self) -> None:
        """Ends the workers of its rewards."""
        self.reward_runner.close()


def _ks(sampling: SamplingSettings) -> list[int]:
    """1, 2, 4, ... up to the number of samples."""
    samples = sampling.num_generations
    return sorted({2**i for i in range(samples.bit_length()) if 2**i <= samples} | {samples})
