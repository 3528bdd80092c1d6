"""EvaluationModule: how good the policy is on held-out prompts, and its completions written down."""

from dataclasses import asdict, replace
from typing import Any

import torch
from lightning.pytorch import Callback

from grpo_lightning.algorithm.advantages import combine_rewards
from grpo_lightning.callbacks.predictions import PredictionWriter
from grpo_lightning.generation import SamplingSettings
from grpo_lightning.metrics.evaluation import NamedMeans, pass_at_k
from grpo_lightning.modules.rollout import RolloutModule
from grpo_lightning.numerics.float32_defaults import with_float32_defaults
from grpo_lightning.rewards import RewardRunner, RewardSpec, RewardTable, resolve_rewards
from grpo_lightning.types import PromptBatch, Rollouts


class EvaluationModule(RolloutModule):
    """Scores one greedy completion per held-out prompt, estimates pass@k from sampled ones, writes predictions.

    Args:
        num_generations_eval: Completions sampled per held-out prompt for pass@k; 0 for the greedy one only.
        temperature_eval: Temperature of those samples.
        top_p_eval: top_p of those samples.
        eval_rewards: Further rewards that are reported in evaluation and never trained on.
        success_reward: The reward that says whether a completion is correct (1 or more), for ``accuracy`` and
            pass@k; by default the one called accuracy, else the first.
        **rollout: Arguments of RolloutModule.
    """

    def __init__(
        self,
        num_generations_eval: int = 0,
        temperature_eval: float = 1.0,
        top_p_eval: float = 1.0,
        eval_rewards: RewardSpec | None = None,
        success_reward: str | None = None,
        **rollout: Any,
    ) -> None:
        super().__init__(**rollout)
        plain = replace(self.sampling, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0)
        self.greedy = replace(plain, num_generations=1, temperature=0.0)
        self.eval_sampling: SamplingSettings | None = None
        if num_generations_eval:
            sampled = {"num_generations": num_generations_eval, "temperature": temperature_eval, "top_p": top_p_eval}
            self.eval_sampling = replace(plain, **sampled)  # type: ignore[arg-type]  # names of its fields
        extra = resolve_rewards(eval_rewards) if eval_rewards else []
        self.eval_reward_runner = RewardRunner(
            resolve_rewards([*self.reward_runner.rewards, *extra]), **asdict(self.reward_runner.runtime)
        )
        self.success_index = self._find_success_reward(success_reward)

    def _find_success_reward(self, name: str | None) -> int:
        names = self.eval_reward_runner.names
        name = name or ("accuracy" if "accuracy" in names else names[0])
        if name not in names:
            raise ValueError(f"model.success_reward={name!r} is not among the rewards: {', '.join(names)}.")
        return names.index(name)

    def evaluation_means(self) -> NamedMeans:
        """An empty accumulator for ``evaluate_batch``."""
        names = [f"rewards/{name}" for name in self.eval_reward_runner.names]
        names += ["reward", "accuracy", "completions/mean_length", "completions/clipped_ratio"]
        if self.eval_sampling is not None:
            names += [f"pass@{k}" for k in self._ks()]
        return NamedMeans(names).to(self.device)

    def _ks(self) -> list[int]:
        """1, 2, 4, ... up to the number of samples."""
        assert self.eval_sampling is not None
        samples = self.eval_sampling.num_generations
        return sorted({2**i for i in range(samples.bit_length()) if 2**i <= samples} | {samples})

    def evaluate_batch(self, batch: PromptBatch, means: NamedMeans) -> list[dict[str, Any]]:
        """Scores one greedy completion per prompt, and samples for pass@k, into ``means``.

        Returns:
            One row per prompt: prompt, greedy completion, the dataset columns and each reward.
        """
        if not len(batch):
            self.sample_nothing(self.greedy, self.eval_sampling)
            return []
        rollouts = self.sample_rollouts(batch, self.greedy)
        table = self.score(batch, rollouts, self.eval_reward_runner)
        lengths = rollouts.completion_lengths.double().tolist()
        success = (table.values[:, self.success_index] >= 1).double()
        means.update({f"rewards/{name}": table.values[:, r].tolist() for r, name in enumerate(table.names)})
        trained_on = len(self.reward_runner.rewards)
        trained = (table.values[:, :trained_on], table.names[:trained_on], table.weights[:trained_on])
        totals = combine_rewards(*self.compose_rewards(*trained))
        means.update({"reward": totals.tolist(), "accuracy": success.tolist()})
        clipped = rollouts.truncated.double().tolist()
        means.update({"completions/mean_length": lengths, "completions/clipped_ratio": clipped})
        if self.eval_sampling is not None:
            means.update(self._pass_at_ks(batch, self.eval_sampling))
        return self._rows(batch, rollouts, table)

    def _pass_at_ks(self, batch: PromptBatch, sampling: SamplingSettings) -> dict[str, list[float]]:
        rollouts = self.sample_rollouts(batch, sampling)
        table = self.score(batch, rollouts, self.eval_reward_runner)
        success = (table.values[:, self.success_index] >= 1).double()
        correct = torch.zeros(len(batch), dtype=torch.float64).index_add_(0, rollouts.group, success)
        samples = sampling.num_generations
        return {f"pass@{k}": [pass_at_k(samples, int(c), k) for c in correct.tolist()] for k in self._ks()}

    def _rows(self, batch: PromptBatch, rollouts: Rollouts, table: RewardTable) -> list[dict[str, Any]]:
        texts = self.completion_texts(batch, rollouts)
        rows = []
        for n, b in enumerate(rollouts.group.tolist()):
            scores = {name: _none_if_nan(table.values[n, r].item()) for r, name in enumerate(table.names)}
            columns = {name: values[b] for name, values in batch.columns.items()}
            identity = {"uid": batch.uids[b], "prompt": batch.prompts[b], "completion": texts[n]}
            logged = {name: values[n] for name, values in table.extra.items()}
            rows.append({**identity, **columns, **logged, "rewards": scores, "truncated": bool(rollouts.truncated[n])})
        return rows

    def on_validation_epoch_start(self) -> None:
        """Starts with empty accumulators, one per held-out dataset."""
        self._means: dict[int, NamedMeans] = {}

    @with_float32_defaults
    def validation_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Greedy accuracy and pass@k of held-out prompts; leaves no trace in training."""
        self.evaluate_batch(batch, self._means.setdefault(dataloader_idx, self.evaluation_means()))

    def on_validation_epoch_end(self) -> None:
        """Logs the means as ``val/...``, or ``val/<dataset>/...`` where there are several."""
        self._log_means("val")

    def on_test_epoch_start(self) -> None:
        """As for validation."""
        self.on_validation_epoch_start()

    @with_float32_defaults
    def test_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As validation, on the test split."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """Logs the means as ``test/...``."""
        self._log_means("test")

    def _log_means(self, stage: str) -> None:
        loaders = self.trainer.test_dataloaders if stage == "test" else self.trainer.val_dataloaders
        names = list(loaders) if isinstance(loaders, dict) else []
        for index, means in self._means.items():
            prefix = f"{stage}/{names[index]}" if len(names) > 1 else stage
            self.log_dict({f"{prefix}/{name}": value for name, value in means.compute().items()})

    @with_float32_defaults
    def predict_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """``num_generations`` completions per prompt with their rewards; PredictionWriter puts them into a file."""
        if not len(batch):
            self.sample_nothing(self.sampling)
            return []
        rollouts = self.sample_rollouts(batch)
        return self._rows(batch, rollouts, self.score(batch, rollouts, self.eval_reward_runner))

    def configure_callbacks(self) -> list[Callback]:
        """Predictions are written to disk unless the user brings another PredictionWriter."""
        return [*super().configure_callbacks(), PredictionWriter()]

    def teardown(self, stage: str) -> None:
        """Ends the workers of the evaluation rewards too."""
        super().teardown(stage)
        self.eval_reward_runner.close()


def _none_if_nan(value: float) -> float | None:
    return None if value != value else value
