"""GRPOModule: the order of a GRPO step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grpo_lightning.algorithm.advantages import AdvantageEstimator, combine_rewards
from grpo_lightning.datamodules.outcomes import GroupOutcomes
from grpo_lightning.distributed.gather import gather_objects
from grpo_lightning.metrics.step_record import StepRecord
from grpo_lightning.metrics.step_report import StepReport
from grpo_lightning.modules.lookahead import LookaheadModule
from grpo_lightning.numerics.float32_defaults import with_float32_defaults
from grpo_lightning.rewards import RewardTable
from grpo_lightning.rollouts.dynamic_sampling import DynamicSampler, DynamicSampling, ScoredGroups
from grpo_lightning.rollouts.sampler_canary import SamplerCanary, mismatch_limit
from grpo_lightning.seeds import seed_everything
from grpo_lightning.types import PromptBatch, Rollouts

NO_DYNAMIC_SAMPLING = DynamicSampling()


class GRPOModule(LookaheadModule):
    """Group Relative Policy Optimization (DeepSeekMath, arXiv:2402.03300) as a LightningModule.

    One batch of prompts in, one improvement of the policy out. A checkpoint between two steps is the whole state:
    nothing else is kept between them, but for the batch in flight of async_rollouts, which it holds too.

    Args:
        scale_rewards: What advantages are divided by: the standard deviation of the group, of the batch, or none.
        multi_objective_aggregation: sum_then_normalize, or normalize_then_sum (GDPO, arXiv:2601.05242).
        partial_rewards: For a completion that only some rewards scored: sum what is there, renormalize the weights, or
            drop the completion.
        dynamic_sampling: What happens to groups whose completions all earn the same (DAPO): nothing, or they are
            dropped or replaced.
        max_sampler_mismatch: Stop the run where the sampler's and the trainer's logprobs of the sampled tokens differ
            by more than this on average, in nats: one of them has other weights. Rounding gives 0.00001 in float32 and
            0.01 to 0.06 in bfloat16; with async_rollouts, what one step changes comes on top. null for no check; there is none
            where top_p, top_k, min_p, repetition_penalty, structured_outputs or replayed groups make them differ.
        **lookahead: Arguments of LookaheadModule.
    """

    def __init__(
        self,
        scale_rewards: str | bool = "group",
        multi_objective_aggregation: str = "sum_then_normalize",
        partial_rewards: str = "sum",
        dynamic_sampling: DynamicSampling = NO_DYNAMIC_SAMPLING,
        max_sampler_mismatch: float | None = 0.1,
        **lookahead: Any,
    ) -> None:
        super().__init__(**lookahead)
        if self.sampling.num_generations < 2:
            raise ValueError(
                f"model.num_generations={self.sampling.num_generations}: advantages compare the completions of a "
                "prompt, so at least 2 are needed."
            )
        if self.sampling.temperature == 0:
            raise ValueError("model.temperature=0 gives one completion many times over. Use 1.0 to train.")
        self.estimate_advantages = AdvantageEstimator(scale_rewards, multi_objective_aggregation, partial_rewards)
        self._check_composition(partial_rewards, multi_objective_aggregation)
        self._check_replay(dynamic_sampling)
        per_reward = multi_objective_aggregation == "normalize_then_sum"
        self.dynamic_sampler = DynamicSampler(dynamic_sampling, self.seed, per_reward)
        replays = dynamic_sampling.replay_groups > 0
        reshapes = self.sampling.reshapes_distribution or bool(self.sampling.structured_outputs)
        limit = mismatch_limit(max_sampler_mismatch, reshapes, replays)
        self.canary = SamplerCanary(limit, self.async_rollouts)
        self.num_tokens = 0
        """Prompt and completion tokens of all completions so far, over all ranks."""
        self.step_metrics: dict[str, float] = {}
        """What the last step logged, the same on every rank."""
        self.last_step: StepRecord | None = None
        """What the last step generated, for callbacks."""

    def setup(self, stage: str) -> None:
        """Checks that further prompts can be had where dynamic sampling asks for them."""
        super().setup(stage)
        refills = stage == "fit" and self.dynamic_sampler.settings.mode == "refill"
        if refills and getattr(self.datamodule, "train_prompts", None) is None:
            raise ValueError(
                "model.dynamic_sampling.mode=refill draws further prompts from GRPODataModule, and the Trainer has "
                "another source of data. Use mode=drop, or GRPODataModule."
            )

    def prompts_in_a_step(self) -> int:
        """With those that are replayed."""
        return super().prompts_in_a_step() + self.dynamic_sampler.settings.replay_groups

    @with_float32_defaults
    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """One iteration of Algorithm 1 of DeepSeekMath: sample, score, compare inside groups, improve."""
        report = self.begin_step()
        with report.phase("generate"):
            # Scoring starts with the first completion that ends.
            batch, rollouts, await_rewards = self.sample_groups(batch, report)
        with report.phase("old_and_reference"):
            # Old and reference logprobs, no gradient; of all ranks that share this one's passes.
            experience = self.experience(self.replica.rollouts(rollouts), self.num_updates)
        with report.phase("rewards"):
            rewards = await_rewards()  # (N, R)
            advantages = self.advantages(rollouts, rewards, report)  # (N,)
            experience = experience.with_advantages(self.replica.rows(advantages))
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
        seed_everything(self.seed, "step", self.steps_done, self.replica.index)
        return StepReport(lambda phase: self.rank_watch.enter(f"step {self.steps_done + 1}, phase {phase}"))

    def sample_groups(
        self, batch: PromptBatch, report: StepReport
    ) -> tuple[PromptBatch, Rollouts, Callable[[], RewardTable]]:
        """The step's groups and a function that waits for their rewards; with dynamic sampling, the chosen groups."""
        if self.dynamic_sampler.settings.mode == "off":
            rollouts, await_rewards = self.sample_and_score(batch)
            return batch, rollouts, lambda: self.noted(batch, rollouts, await_rewards(), report)

        def sample(prompts: PromptBatch, number: int) -> ScoredGroups:
            rollouts, await_rewards = self.sample_and_score(prompts, f"refill {number}" if number else "train")
            return ScoredGroups(prompts, rollouts, self.noted(prompts, rollouts, await_rewards(), report))

        def idle() -> None:
            self.sample_nothing(self.sampling)

        groups, numbers = self.dynamic_sampler.collect(
            batch, sample, self.draw_prompts, self.composed, self.steps_done, idle
        )
        for name, values in numbers.items():
            report.add_mean(name, values)
        return groups.batch, groups.rollouts, lambda: groups.rewards

    def noted(self, prompts: PromptBatch, rollouts: Rollouts, rewards: RewardTable, report: StepReport) -> RewardTable:
        """The rewards, how each prompt did having been noted for the data: of all groups, trained on or not."""
        totals = combine_rewards(*self.composed(rewards))
        index = min(self.success_index, len(rewards.names) - 1)
        name = self.eval_reward_runner.names[self.success_index]
        correct = rewards.values[:, index] if rewards.names[index] == name else totals
        report.outcomes.append(GroupOutcomes.of(prompts.uids, rollouts.group, totals, correct))
        return rewards

    def draw_prompts(self, count: int) -> PromptBatch:
        """Further prompts of the training data, in an order of their own."""
        prompts = self.datamodule.train_prompts  # checked in setup
        rows = self.dynamic_sampler.next_rows(count, len(prompts), self.global_rank, self.trainer.world_size)
        return prompts.batch(rows)

    def composed(self, rewards: RewardTable) -> tuple[Tensor, Tensor]:
        """Values and weights of rewards after gates and composition; their weighted sum is a completion's total."""
        return self.compose_rewards(rewards.values, rewards.names, rewards.weights)

    def advantages(self, rollouts: Rollouts, rewards: RewardTable, report: StepReport) -> Tensor:
        """(N,) advantages; computed over the completions of all ranks, of which this rank's are returned."""
        ranks = gather_objects((rewards.values, rollouts.group, rollouts.num_prompts, rewards.metrics))
        groups, offset = [], 0  # group ids that differ between ranks
        for _, group, num_prompts, metrics in ranks:
            groups.append(group + offset)
            offset += num_prompts
            for name, value in metrics.items():
                report.add_mean(name, torch.tensor([value]))
        values = torch.cat([rank_values for rank_values, *_ in ranks])
        composed, weights = self.compose_rewards(values, rewards.names, rewards.weights)
        result = self.estimate_advantages(composed, torch.cat(groups), weights)
        report.add(result.metrics())
        report.add_rollouts(rollouts)
        report.add_rewards(rewards, values)
        mine = sum(len(rank_values) for rank_values, *_ in ranks[: self.global_rank])
        return result.advantages[mine : mine + rollouts.num_completions].float()

    def end_step(self, report: StepReport) -> None:
        """Brings the metrics of all ranks together in one collective, logs them, and counts the step."""
        self.steps_done += 1
        gauge = self.memory_gauge()
        if gauge is not None:
            report.add_peak_memory(gauge.peak())
        self.move_reference()
        if self.weight_sample is not None:
            report.add_mean("update/changed_since_start", self.weight_sample.changed())
        if hasattr(self.datamodule, "record"):
            for name, values in self.datamodule.record(GroupOutcomes.joined(report.outcomes)).items():
                report.add_mean(name, values)
        numbers = self.objective.summarize(report.close().over_ranks()) | self.generator_metrics
        self.canary.check(numbers, self.steps_done)
        for name in ("loss", "policy_loss"):  # means over the optimizer steps of this GRPO step
            numbers[name] = numbers.get(name, 0.0) / self.num_updates
        completion_tokens = numbers.pop("tokens/completion")
        self.num_tokens += int(numbers.pop("tokens/prompt_and_completion"))
        numbers |= {
            "num_tokens": float(self.num_tokens),
            "learning_rate": float(self.trainer.optimizers[0].param_groups[0]["lr"]),
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
        """Adds the count of tokens, and what dynamic sampling remembers."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["num_tokens"] = self.num_tokens
        checkpoint["dynamic_sampler"] = self.dynamic_sampler.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores both."""
        super().on_load_checkpoint(checkpoint)
        self.num_tokens = checkpoint["num_tokens"]
        ranks = (self.global_rank, self.trainer.world_size)
        self.dynamic_sampler.load_state_dict(checkpoint["dynamic_sampler"], self.reward_runner.names, *ranks)

    def _check_composition(self, partial_rewards: str, aggregation: str) -> None:
        how = self.compose_rewards.how
        if how != "sum" and (partial_rewards, aggregation) != ("sum", "sum_then_normalize"):
            raise ValueError(
                f"model.reward_composition.how={how} leaves one number per completion, so that model.partial_rewards="
                f"{partial_rewards} or model.multi_objective_aggregation={aggregation} has no effect. Leave both out."
            )

    def _check_replay(self, settings: DynamicSampling) -> None:
        if settings.replay_groups and not self.objective.importance_sampling_correction:
            raise ValueError(
                f"model.dynamic_sampling.replay_groups={settings.replay_groups} trains on tokens of an older policy, which "
                "model.importance_sampling_correction=false would treat as its own. Turn the correction on."
            )
        if settings.mode != "off" and self.num_minibatches > 1:
            raise ValueError(
                f"model.dynamic_sampling.mode={settings.mode} may leave fewer groups than model.num_minibatches="
                f"{self.num_minibatches} needs. Use num_minibatches=1, or mode=off."
            )
        if settings.mode == "refill" and self.async_rollouts:
            raise ValueError(
                f"model.dynamic_sampling.mode=refill samples further prompts in mid-step, when model.async_rollouts="
                f"{self.async_rollouts} has the server at work on the next batch. Use mode=drop, or async_rollouts=0."
            )
