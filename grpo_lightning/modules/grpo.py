"""GRPOModule: the order of a GRPO step."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from grpo_lightning.advantages import AdvantageEstimator
from grpo_lightning.averaging import StepTotals
from grpo_lightning.experience import Experience, MicroBatch
from grpo_lightning.gather import gather_objects
from grpo_lightning.modules.objective import ObjectiveModule
from grpo_lightning.rewards import RewardTable
from grpo_lightning.seeds import derive_seed, seed_everything
from grpo_lightning.step_record import StepRecord
from grpo_lightning.step_report import StepReport
from grpo_lightning.types import PromptBatch, Rollouts


class GRPOModule(ObjectiveModule):
    """Group Relative Policy Optimization (DeepSeekMath, arXiv:2402.03300) as a LightningModule.

    One batch of prompts in, one improvement of the policy out. Nothing is kept between steps, so a checkpoint between
    two steps is the whole state.

    Args:
        num_iterations: Passes over the rollouts of a step (mu in the paper); from the second on they are off-policy.
        num_minibatches: Optimizer steps per pass; whole groups are dealt out to them at random.
        scale_rewards: What advantages are divided by: the standard deviation of the group, of the batch, or none.
        multi_objective_aggregation: sum_then_normalize, or normalize_then_sum (GDPO, arXiv:2601.05242).
        partial_rewards: For a completion that only some rewards scored: sum what is there, renormalize the weights, or
            drop the completion.
        **objective: Arguments of ObjectiveModule.
    """

    def __init__(
        self,
        num_iterations: int = 1,
        num_minibatches: int = 1,
        scale_rewards: str | bool = "group",
        multi_objective_aggregation: str = "sum_then_normalize",
        partial_rewards: str = "sum",
        **objective: Any,
    ) -> None:
        super().__init__(**objective)
        for name, value in (("num_iterations", num_iterations), ("num_minibatches", num_minibatches)):
            if value < 1:
                raise ValueError(f"model.{name}={value} trains on nothing. Use 1 or more.")
        if self.sampling.num_generations < 2:
            raise ValueError(
                f"model.num_generations={self.sampling.num_generations}: advantages compare the completions of a "
                "prompt, so at least 2 are needed."
            )
        if self.sampling.temperature == 0:
            raise ValueError("model.temperature=0 gives one completion many times over. Use 1.0 to train.")
        self.num_iterations = num_iterations
        self.num_minibatches = num_minibatches
        self.num_updates = num_iterations * num_minibatches
        self.estimate_advantages = AdvantageEstimator(scale_rewards, multi_objective_aggregation, partial_rewards)
        self.num_tokens = 0
        """Prompt and completion tokens of all completions so far, over all ranks."""
        self.step_metrics: dict[str, float] = {}
        """What the last step logged, the same on every rank."""
        self.last_step: StepRecord | None = None
        """What the last step generated, for callbacks."""

    def setup(self, stage: str) -> None:
        """Checks the batch size against the minibatches before weights load."""
        super().setup(stage)
        prompts = getattr(getattr(self.trainer, "datamodule", None), "batch_size", self.num_minibatches)
        if stage == "fit" and prompts < self.num_minibatches:
            raise ValueError(
                f"data.batch_size={prompts} prompts cannot be dealt out to model.num_minibatches="
                f"{self.num_minibatches}: a group stays in one minibatch. Use fewer minibatches or more prompts."
            )

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """One iteration of Algorithm 1 of DeepSeekMath: sample, score, compare inside groups, improve."""
        report = self.begin_step()
        with report.phase("generate"):
            rollouts = self.sample_rollouts(batch)
        with report.phase("rewards"):
            rewards = self.score(batch, rollouts)  # (N, R)
            advantages = self.advantages(rollouts, rewards, report)  # (N,)
        with report.phase("old_and_reference"):
            experience = self.experience(rollouts, advantages, self.num_updates)  # old and reference logprobs
        with report.phase("train"):
            for micro_batches in self.updates(experience):
                for micro_batch in micro_batches:
                    loss = self.policy_loss(experience, micro_batch, report)
                    self.accumulate_gradient(loss, micro_batch)
                report.add_update(self.step_optimizer())
        self.last_step = StepRecord(batch, rollouts, rewards, advantages)
        self.end_step(report)

    def begin_step(self) -> StepReport:
        """Seeds everything that draws from global generators during the step."""
        seed_everything(self.seed, "step", self.steps_done, self.global_rank)
        return StepReport()

    def advantages(self, rollouts: Rollouts, rewards: RewardTable, report: StepReport) -> Tensor:
        """(N,) advantages; computed over the completions of all ranks, of which this rank's are returned."""
        ranks = gather_objects((rewards.values, rollouts.group, rollouts.num_prompts))
        groups, offset = [], 0  # group ids that differ between ranks
        for _, group, num_prompts in ranks:
            groups.append(group + offset)
            offset += num_prompts
        values = torch.cat([rank_values for rank_values, _, _ in ranks])
        result = self.estimate_advantages(values, torch.cat(groups), rewards.weights)
        report.add(result.metrics())
        report.add_rollouts(rollouts)
        report.add_rewards(rewards, values)
        mine = sum(len(rank_values) for rank_values, _, _ in ranks[: self.global_rank])
        return result.advantages[mine : mine + rollouts.num_completions].float()

    def updates(self, experience: Experience) -> Iterator[list[MicroBatch]]:
        """The micro-batches of each optimizer step: num_iterations passes over num_minibatches."""
        for iteration in range(self.num_iterations):
            for rows in self.minibatches(experience.rollouts, iteration):
                yield self.micro_batches(experience, rows)

    def minibatches(self, rollouts: Rollouts, iteration: int) -> list[Tensor]:
        """Completion indices of each optimizer step of a pass; whole groups, dealt out at random."""
        if self.num_minibatches == 1:
            return [torch.arange(rollouts.num_completions)]
        seed = derive_seed(self.seed, "minibatches", self.steps_done, iteration, self.global_rank)
        order = torch.randperm(rollouts.num_prompts, generator=torch.Generator().manual_seed(seed))
        return [torch.isin(rollouts.group, prompts).nonzero()[:, 0] for prompts in order.chunk(self.num_minibatches)]

    def micro_batches(self, experience: Experience, rows: Tensor) -> list[MicroBatch]:
        """The forward and backward passes of one optimizer step, equally many on every rank.

        Completions that can have no gradient are left out, but counted in the totals that averages divide by.
        """
        tokens = self._tokens_per_completion(experience, experience.mask)
        uncertain = (
            tokens
            if experience.is_uncertain is None
            else self._tokens_per_completion(experience, experience.is_uncertain)
        )
        trained = rows[(tokens[rows] > 0) & self.has_gradient(experience)[rows]]
        plan = self.scorer.plan(experience.rollouts, trained, self.max_tokens_per_microbatch)
        ranks = gather_objects((len(rows), int(tokens[rows].sum()), len(plan), int(uncertain[rows].sum())))
        totals = StepTotals(*(sum(rank[i] for rank in ranks) for i in (0, 1, 3)))
        count = max(rank[2] for rank in ranks)
        plan += [rows[:0]] * (count - len(plan))
        return [MicroBatch(rows, totals, is_last=i == count - 1) for i, rows in enumerate(plan)]

    def _tokens_per_completion(self, experience: Experience, flags: Tensor) -> Tensor:
        """(N,) int64, CPU: tokens of each completion with a True flag."""
        counts = torch.zeros(experience.rollouts.num_completions, dtype=torch.int64)
        return counts.index_add_(0, experience.rollouts.token_rows(), flags.cpu().long())

    def has_gradient(self, experience: Experience) -> Tensor:
        """(N,) bool: False for a completion with advantage 0, where nothing but its advantage could train it."""
        if self.objective.needs_reference or self.objective.entropy_has_gradient:
            return torch.ones_like(experience.advantages, dtype=torch.bool).cpu()
        return (experience.advantages != 0).cpu()

    def accumulate_gradient(self, loss: Tensor, micro_batch: MicroBatch) -> None:
        """Adds the gradient of a micro-batch; ranks exchange gradients in the last one of an optimizer step only."""
        strategy = self.trainer.strategy
        if micro_batch.is_last or not isinstance(strategy, ParallelStrategy):
            self.manual_backward(loss)
        else:
            with strategy.block_backward_sync():
                self.manual_backward(loss)

    def end_step(self, report: StepReport) -> None:
        """Brings the metrics of all ranks together in one collective, logs them, and counts the step."""
        self.steps_done += 1
        self.move_reference()
        metrics = report.close()
        if self.trainer.world_size > 1:
            metrics = metrics.over_ranks(cast(Tensor, self.all_gather(metrics.to_vector().to(self.device))))
        numbers = self.objective.summarize(metrics)
        for name in ("loss", "policy_loss"):  # means over the optimizer steps of this GRPO step
            numbers[name] = numbers.get(name, 0.0) / self.num_updates
        completion_tokens = numbers.pop("tokens/completion")
        self.num_tokens += int(numbers.pop("tokens/prompt_and_completion"))
        numbers |= {
            "num_tokens": float(self.num_tokens),
            "learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"],
        }
        numbers["tokens_per_second"] = completion_tokens / numbers["step_time"]
        if self.entropy_controller is not None:
            numbers["entropy_coef"] = self.entropy_controller.coefficient
            if "entropy_of_trained_tokens" in numbers:
                self.entropy_controller.update(numbers["entropy_of_trained_tokens"])
        self.step_metrics = numbers
        shown = {name for name in ("reward", "loss", "tokens_per_second") if name in numbers}
        self.log_dict({name: value for name, value in numbers.items() if name not in shown})
        self.log_dict({name: numbers[name] for name in sorted(shown)}, prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the count of tokens."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["num_tokens"] = self.num_tokens

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the count of tokens."""
        super().on_load_checkpoint(checkpoint)
        self.num_tokens = checkpoint["num_tokens"]
