"""GRPOModule: the order of a GRPO step."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from grpo_lightning.advantages import AdvantageEstimator
from grpo_lightning.averaging import StepTotals
from grpo_lightning.canary import SamplerCanary, mismatch_limit
from grpo_lightning.default_dtype import with_float32_defaults
from grpo_lightning.dynamic_sampling import DynamicSampler, DynamicSampling, ScoredGroups
from grpo_lightning.experience import Experience, MicroBatch
from grpo_lightning.gather import gather_objects
from grpo_lightning.memory_budget import MemoryPlan
from grpo_lightning.memory_gauge import MemoryGauge, gauge_of
from grpo_lightning.minibatches import minibatch_of_prompts
from grpo_lightning.modules.lookahead import LookaheadModule
from grpo_lightning.rehearsal import rehearse
from grpo_lightning.rewards import RewardTable
from grpo_lightning.seeds import seed_everything
from grpo_lightning.step_record import StepRecord
from grpo_lightning.step_report import StepReport
from grpo_lightning.types import PromptBatch, Rollouts

NO_DYNAMIC_SAMPLING = DynamicSampling()


class GRPOModule(LookaheadModule):
    """Group Relative Policy Optimization (DeepSeekMath, arXiv:2402.03300) as a LightningModule.

    One batch of prompts in, one improvement of the policy out. A checkpoint between two steps is the whole state:
    nothing else is kept between them, but for the batch in flight of async_rollouts, which it holds too.

    Args:
        num_iterations: Passes over the rollouts of a step (mu in the paper); from the second on they are off-policy.
        num_minibatches: Optimizer steps per pass; whole groups are dealt out to them at random.
        scale_rewards: What advantages are divided by: the standard deviation of the group, of the batch, or none.
        multi_objective_aggregation: sum_then_normalize, or normalize_then_sum (GDPO, arXiv:2601.05242).
        partial_rewards: For a completion that only some rewards scored: sum what is there, renormalize the weights, or
            drop the completion.
        dynamic_sampling: What happens to groups whose completions all earn the same (DAPO): nothing, or they are
            dropped or replaced.
        max_sampler_mismatch: Stop the run where the sampler's and the trainer's logprobs of the sampled tokens differ
            by more than this on average, in nats: one of them has other weights. Rounding gives 0.00001 in float32 and
                0.02
            in bfloat16; with async_rollouts, what one step changes comes on top. null for no check; there is none where
            top_p, top_k, min_p, repetition_penalty, structured_outputs or replayed groups make them differ.
        **lookahead: Arguments of LookaheadModule.
    """

    def __init__(
        self,
        num_iterations: int = 1,
        num_minibatches: int = 1,
        scale_rewards: str | bool = "group",
        multi_objective_aggregation: str = "sum_then_normalize",
        partial_rewards: str = "sum",
        dynamic_sampling: DynamicSampling = NO_DYNAMIC_SAMPLING,
        max_sampler_mismatch: float | None = 0.1,
        **lookahead: Any,
    ) -> None:
        super().__init__(**lookahead)
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
        self.memory_plan: MemoryPlan | None = None
        """What the start of training measured; None where memory cannot be measured."""
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
        refills = stage == "fit" and self.dynamic_sampler.settings.mode == "refill"
        if refills and getattr(getattr(self.trainer, "datamodule", None), "train_prompts", None) is None:
            raise ValueError(
                "model.dynamic_sampling.mode=refill draws further prompts from GRPODataModule, and the Trainer has "
                "another source of data. Use mode=drop, or GRPODataModule."
            )

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

    def settle_memory(self) -> None:
        """Makes sure, once and before the first step, that training passes fit into the GPU; auto chooses their size.

        Raises:
            MemoryError: If they do not fit, with what to change.
        """
        gauge = self.memory_gauge()
        if gauge is None or self.memory_plan is not None:
            return
        self.rank_watch.enter("the measurement of memory before the first step")
        budget = self.max_tokens_per_microbatch if self.has_token_budget else self.saved_token_budget
        self.memory_plan = rehearse(self, gauge, budget, self.has_token_budget)
        self.max_tokens_per_microbatch = self.memory_plan.budget
        if budget not in (None, self.max_tokens_per_microbatch):
            rank_zero_warn(
                f"The checkpoint's micro-batches of {budget} tokens do not fit into memory here: this run has "
                f"{self.max_tokens_per_microbatch}, and its numbers will differ from those of the first one in rounding."
            )

    def memory_gauge(self) -> MemoryGauge | None:
        """What measures the device that the policy is trained on; None where memory cannot be measured."""
        return gauge_of(self.device)

    def on_train_start(self) -> None:
        """Settles memory, and lets DDP settle its buckets.

        Their layout rounds the sums over ranks, and a resumed run must not differ.
        """
        self.settle_memory()
        if isinstance(self.trainer.strategy.model, DistributedDataParallel):
            self.manual_backward(self.scorer.idle(self.device))
            self.zero_grad(set_to_none=True)

    @with_float32_defaults
    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """One iteration of Algorithm 1 of DeepSeekMath: sample, score, compare inside groups, improve."""
        report = self.begin_step()
        with report.phase("generate"):
            # Scoring starts with the first completion that ends.
            batch, rollouts, await_rewards = self.sample_groups(batch, report)
        with report.phase("old_and_reference"):
            experience = self.experience(rollouts, self.num_updates)  # old and reference logprobs, no gradient
        with report.phase("rewards"):
            rewards = await_rewards()  # (N, R)
            advantages = self.advantages(rollouts, rewards, report)  # (N,)
            experience = experience.with_advantages(advantages)
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
        return StepReport(lambda phase: self.rank_watch.enter(f"step {self.steps_done + 1}, phase {phase}"))

    def sample_groups(
        self, batch: PromptBatch, report: StepReport
    ) -> tuple[PromptBatch, Rollouts, Callable[[], RewardTable]]:
        """The step's groups and a function that waits for their rewards; with dynamic sampling, the chosen groups."""
        if self.dynamic_sampler.settings.mode == "off":
            return batch, *self.sample_and_score(batch)

        def sample(prompts: PromptBatch, number: int) -> ScoredGroups:
            rollouts, await_rewards = self.sample_and_score(prompts, f"refill {number}" if number else "train")
            return ScoredGroups(prompts, rollouts, await_rewards())

        def idle() -> None:
            self.sample_nothing(self.sampling)

        groups, numbers = self.dynamic_sampler.collect(
            batch, sample, self.draw_prompts, self.composed, self.steps_done, idle
        )
        for name, values in numbers.items():
            report.add_mean(name, values)
        return groups.batch, groups.rollouts, lambda: groups.rewards

    def draw_prompts(self, count: int) -> PromptBatch:
        """Further prompts of the training data, in an order of their own."""
        prompts = self.trainer.datamodule.train_prompts  # type: ignore[attr-defined]  # checked in setup
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

    def updates(self, experience: Experience) -> Iterator[list[MicroBatch]]:
        """The micro-batches of each optimizer step: num_iterations passes over num_minibatches."""
        for iteration in range(self.num_iterations):
            for rows in self.minibatches(experience.rollouts, iteration):
                yield self.micro_batches(experience, rows)

    def minibatches(self, rollouts: Rollouts, iteration: int) -> list[Tensor]:
        """Completion indices of each optimizer step of a pass; whole groups, dealt out at random."""
        if self.num_minibatches == 1:
            return [torch.arange(rollouts.num_completions)]
        first, seed = self.global_rank * rollouts.num_prompts, (self.seed, "minibatches", self.steps_done, iteration)
        dealt = minibatch_of_prompts(first, rollouts.num_prompts, self.num_minibatches, *seed)
        return [(dealt[rollouts.group] == i).nonzero()[:, 0] for i in range(self.num_minibatches)]

    def micro_batches(self, experience: Experience, rows: Tensor) -> list[MicroBatch]:
        """The forward and backward passes of one optimizer step; at least one on every rank, unless none has any.

        Sharded weights are gathered for each pass, so then every rank has equally many. Completions that can have no
        gradient are left out, but counted in the totals that averages divide by.
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
        passes = max(rank[2] for rank in ranks)
        plan += [rows[:0]] * ((passes if self.is_sharded else min(passes, 1)) - len(plan))
        return [MicroBatch(rows, totals, is_last=i == len(plan) - 1) for i, rows in enumerate(plan)]

    def _tokens_per_completion(self, experience: Experience, flags: Tensor) -> Tensor:
        """(N,) int64, CPU: tokens of each completion with a True flag."""
        counts = torch.zeros(experience.rollouts.num_completions, dtype=torch.int64)
        return counts.index_add_(0, experience.rollouts.token_rows(), flags.cpu().long())

    def has_gradient(self, experience: Experience) -> Tensor:
        """(N,) bool: False for a completion with advantage 0, where nothing but its advantage could train it."""
        if self.objective.needs_reference or self.objective.entropy_has_gradient:
            return torch.ones_like(experience.advantages, dtype=torch.bool).cpu()
        return (experience.advantages != 0).cpu()

    def end_step(self, report: StepReport) -> None:
        """Brings the metrics of all ranks together in one collective, logs them, and counts the step."""
        self.steps_done += 1
        gauge = self.memory_gauge()
        if gauge is not None:
            report.add_peak_memory(gauge.peak())
        self.move_reference()
        numbers = self.objective.summarize(report.close().over_ranks()) | self.generator_metrics
        self.canary.check(numbers, self.steps_done)
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
