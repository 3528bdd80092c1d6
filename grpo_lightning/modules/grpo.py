"""GRPOModule: the order of a GRPO step, and the parts that act in it."""

from functools import partial
from typing import Any

from lightning.pytorch import Callback
from torch import Tensor

from grpo_lightning.algorithm.experience import Experience, MicroBatch, per_completion
from grpo_lightning.algorithm.objective import Objective
from grpo_lightning.algorithm.token_marks import mark_tokens
from grpo_lightning.callbacks.predictions import PredictionWriter
from grpo_lightning.callbacks.release import ReleaseOnError
from grpo_lightning.distributed.strategies import allow_waits
from grpo_lightning.generation.base import SamplingSettings
from grpo_lightning.memory.workload import Workload
from grpo_lightning.metrics.evaluation import NamedMeans
from grpo_lightning.metrics.step_report import StepNumbers, StepRecord, StepReport
from grpo_lightning.modules.checks.data import check_data, check_held_out
from grpo_lightning.modules.checks.settings import check_settings, check_strategy
from grpo_lightning.modules.grpo_settings import GRPOSettings
from grpo_lightning.modules.policy_module import HasState, PolicyModule
from grpo_lightning.modules.rehearsed_step import RehearsedStep, most_shown, wake
from grpo_lightning.modules.step_source import most_prompts, staleness_of, step_sources
from grpo_lightning.modules.workload import workload_of
from grpo_lightning.numerics.dtypes import with_float32_defaults
from grpo_lightning.policy.policy import Policy
from grpo_lightning.policy.settings import PolicySettings
from grpo_lightning.rollouts.base import Moment
from grpo_lightning.rollouts.chain import Chain
from grpo_lightning.rollouts.evaluation import Evaluation, EvaluationSettings
from grpo_lightning.rollouts.further_prompts import FurtherPrompts
from grpo_lightning.rollouts.run_state import LogHistory, epoch_after, state_of_run
from grpo_lightning.rollouts.sampler_canary import UNREPORTED, make_canary
from grpo_lightning.rollouts.source import RolloutSettings, RolloutSource
from grpo_lightning.rollouts.turns.make import make_source
from grpo_lightning.rollouts.turns.settings import ToolSettings
from grpo_lightning.settings.flat import part_of, takes
from grpo_lightning.training.distillation.lesson_maker import LessonMaker
from grpo_lightning.training.distillation.teachers import Teachers
from grpo_lightning.training.experience_maker import ExperienceMaker, ExperienceSettings
from grpo_lightning.training.load_balance import LoadBalanceSettings, make_load_balance
from grpo_lightning.training.micro_batch_loss import MicroBatchLoss
from grpo_lightning.training.optimization import Optimization, OptimizationSettings
from grpo_lightning.training.passes import Passes, PassSettings
from grpo_lightning.training.reference_passes import ReferencePasses, ReferenceSettings
from grpo_lightning.training.router_replay import replay_gaps
from grpo_lightning.training.step_advantages import AdvantageSettings, StepAdvantages
from grpo_lightning.training.step_rewards import StepRewards
from grpo_lightning.training.steps import Steps
from grpo_lightning.training.updates import Updates, UpdateSettings
from grpo_lightning.types import PromptBatch, Rollouts
from grpo_lightning.vision.settings import VisionSettings


class GRPOModule(PolicyModule):
    """Group Relative Policy Optimization (DeepSeekMath, arXiv:2402.03300) as a LightningModule.

    One batch of prompts in, one improvement of the policy out. A checkpoint between two steps is the whole state:
    nothing else is kept between them, but for what async_rollouts and partial_rollouts have under way, which it holds too.
    """

    stage = "fit"

    @takes(GRPOSettings)
    def __init__(self, settings: GRPOSettings) -> None:
        super().__init__()
        self.settings, self.seed = settings, settings.seed
        teach, vision_tower = settings.distillation, part_of(settings, VisionSettings).vision_tower

        # The policy, and what samples from it and scores.
        self.policy = Policy(part_of(settings, PolicySettings), self.seed, vision_tower)
        self.sampling, self.objective = part_of(settings, SamplingSettings), part_of(settings, Objective)
        self.source = self.make_source(part_of(settings, RolloutSettings))
        self.policy.context_length = self.source.generator.max_model_length
        self.evaluation = Evaluation(part_of(settings, EvaluationSettings), self.source)

        # Passes over the policy and its reference.
        self.passes = Passes(part_of(settings, PassSettings), self.policy, self.sampling.temperature)
        needs_reference = self.objective.needs_reference or (teach is not None and teach.needs_reference)
        without, reference = None if needs_reference else "model.beta=0", part_of(settings, ReferenceSettings)
        self.reference_passes = ReferencePasses(reference, without, "Set model.beta.", self.passes)
        experience = part_of(settings, ExperienceSettings)
        self.experience_maker = ExperienceMaker(experience, self.objective, self.passes, self.reference_passes)

        # From rewards to a better policy.
        self.step_advantages = StepAdvantages(part_of(settings, AdvantageSettings), self.source.compose_rewards)
        success = self.evaluation.success_reward
        self.teachers = None
        if teach is not None:
            told = (settings.chat_template_kwargs, self.source.reward_runner.names, success)
            lesson_maker = LessonMaker(teach, self.policy.tokenizer, *told)
            self.teachers = Teachers(teach, lesson_maker, self.passes, self.reference_passes)
        load_balance = make_load_balance(part_of(settings, LoadBalanceSettings), self.passes)
        self.loss = MicroBatchLoss(self.objective, self.passes, self.teachers, load_balance)
        trains_all = self.objective.trains_all_completions or teach is not None
        self.updates = Updates(part_of(settings, UpdateSettings), self.passes, self.seed, trains_all, load_balance)
        self.num_updates = self.updates.settings.num_updates
        self.objective.policy_loss.check_updates(self.num_updates)
        self.optimization = Optimization(part_of(settings, OptimizationSettings), self.policy, self)
        self.steps = Steps(self.optimization, self.passes, self.seed)

        # What steps sample from, and what is noted of them.
        check_settings(settings, self.policy.config, self.source)
        further = FurtherPrompts(self, self.num_updates)
        self.noted, self.step_source = step_sources(settings, self.source, success, further)
        replays = settings.dynamic_sampling.replay_groups > 0
        self.canary = make_canary(settings.max_sampler_mismatch, self.sampling, replays, staleness_of(settings))
        self.numbers, self.log_history = StepNumbers(), LogHistory()
        self.last_step: StepRecord | None = None
        """What the last step generated, for callbacks."""

    @with_float32_defaults
    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """One iteration of Algorithm 1 of DeepSeekMath: sample, score, compare inside groups, improve."""
        report = self.begin_step()
        with report.phase("generate"):
            # Scoring starts with the first completion that ends.
            sampled = self.step_source.sample(batch, self.moment())
            report.add_entries(sampled.entries)
            report.add_rollouts(sampled.rollouts)
        with report.phase("old_and_reference"):
            # Old and reference logprobs, no gradient; of all ranks that share this one's passes.
            experience = self.experience(self.replica.rollouts(sampled.rollouts))
            report.add_entries(replay_gaps(self.passes, experience.rollouts))
        with report.phase("rewards"):
            rewards = self.step_advantages.together(sampled.rollouts, sampled.await_rewards())  # (N, R), and all ranks'
            report.add(self.step_advantages.reward_metrics(rewards))
            advantages = self.advantages(sampled.rollouts, rewards, report)  # (N,)
            experience = experience.with_advantages(self.replica.rows(advantages))
            experience = self.mark_tokens(experience)
            if self.teachers is not None:
                experience = self.teachers.taught(experience, sampled.batch, rewards.own)
        with report.phase("train"):
            for micro_batches in self.updates.of_step(experience, self.steps_done):
                for micro_batch in micro_batches:
                    loss = self.policy_loss(experience, micro_batch, report)
                    self.optimization.accumulate_gradient(loss, micro_batch)
                report.add_update(self.optimization.step())
        of_completions = per_completion(advantages, sampled.rollouts)
        self.last_step = StepRecord(sampled.batch, sampled.rollouts, rewards.own, of_completions)
        self.end_step(report)

    def begin_step(self) -> StepReport:
        """Seeds everything that draws from global generators during the step."""
        return self.steps.begin(lambda phase: self.rank_watch.enter(f"step {self.steps_done + 1}, phase {phase}"))

    def moment(self) -> Moment:
        """Where the run stands."""
        if self._trainer is None:
            return Moment(self.steps_done)
        run = state_of_run(self.trainer, self.num_updates, self.log_history)
        return Moment(self.steps_done, run.global_step, run.max_steps, run.epoch, run)

    def experience(self, rollouts: Rollouts) -> Experience:
        """The rollouts with the logprobs that the loss compares; advantages are 0 until rewards are known."""
        return self.experience_maker.make(rollouts, self.num_updates)

    def advantages(self, rollouts: Rollouts, rewards: StepRewards, report: StepReport) -> Tensor:
        """(N,) advantages of this rank's completions, or (T,) of their tokens; compared with those of all ranks."""
        return self.step_advantages(rewards)

    def mark_tokens(self, experience: Experience) -> Experience:
        """With the tokens of the step that the loss treats differently; most losses treat none."""
        replica, seed = self.replica, (self.seed, "marks", self.steps_done)
        return mark_tokens(experience, self.objective.policy_loss, replica.of_all, replica.index, *seed)

    def policy_loss(self, experience: Experience, micro_batch: MicroBatch, report: StepReport) -> Tensor:
        """This micro-batch's share of the step's loss: a forward pass, then ``algorithm/objective.py``."""
        loss, metrics = self.loss(experience, micro_batch)
        report.add(metrics)
        return loss

    def end_step(self, report: StepReport) -> None:
        """Counts the step, brings the metrics of all ranks together in one collective, and logs them."""
        step = self.steps.count()
        gauge = self.memory_gauge()
        if gauge is not None:
            report.add_peak_memory(gauge.peak())
            report.add_mean("system/gpu_utilization", self.utilization.take())
        self.reference_passes.move(step)
        report.add_entries(self.noted.tell(self.datamodule))
        numbers = self.objective.summarize(self.steps.end(report)) | self.source.transfer
        self.canary.check(numbers, step)
        numbers.pop(UNREPORTED, None)
        numbers = self.numbers.complete(numbers, self.num_updates)
        self.steps.log(numbers | self.loss.end_step(numbers), shown={"reward", "loss", "tokens_per_second"})
        self.log_history.note(self.trainer.global_step, epoch_after(self.trainer), self.step_metrics)

    def make_source(self, settings: RolloutSettings) -> RolloutSource:
        """What samples and scores; another loop is a subclass of RolloutSource, made here."""
        talks_to = part_of(self.settings, ToolSettings)
        return make_source(settings, talks_to, self.sampling, self.policy, self.seed)

    @property
    def can_repeat_step(self) -> bool:
        """Whether a step that failed before it improved the policy has changed nothing that a checkpoint holds."""
        return not self.settings.async_rollouts and self.settings.dynamic_sampling.mode == "off"

    def configure_callbacks(self) -> list[Callback]:
        """Adds what releases the engine after an error and what writes predictions; refuses generators in vain."""
        check_strategy(self.settings, self.trainer.strategy, self.source.generator)
        teach = self.settings.distillation
        allow_waits(
            self.trainer.strategy, self.source.longest_wait + (teach.longest_wait if teach is not None else 0.0)
        )
        return [*super().configure_callbacks(), ReleaseOnError(), PredictionWriter()]

    def setup(self, stage: str) -> None:
        """Checks the data before weights load."""
        self.reference_passes.is_for_fit = stage == "fit"
        for runner in (self.source.reward_runner, self.evaluation.reward_runner):
            runner.guard.device = self.trainer.strategy.root_device
        self.source.expect(self.trainer.strategy.precision_plugin.forward_context, self.start_times.mark)
        if stage == "fit":
            check_data(self.settings, self.datamodule, self.policy.config, self.source)
        if stage in ("fit", "validate"):
            check_held_out(self.settings, self.datamodule, self.evaluation.reward_runner)

    def on_fit_start(self) -> None:
        """Copies the reference and loads teachers, once the weights are what training starts from."""
        self.reference_passes.start()
        if self.teachers is not None:
            self.teachers.start()

    def workload(self) -> Workload:
        """See ``PolicyModule.workload``."""
        joint_threshold = self.trainer.world_size > 1 and self.objective.needs_entropy_threshold
        return workload_of(
            self,
            run_pass=RehearsedStep(self.experience, self.policy_loss, self.optimization, self.teachers),
            wake=partial(wake, self.source),
            prompts_in_a_step=most_prompts(self.settings, self.prompts_in_a_step()),
            max_completion_length=self.sampling.max_completion_length,
            group_size=self.sampling.num_generations,
            is_joint=self.policy.is_sharded or joint_threshold,
            generator=self.source.generator,
            shown=most_shown(self.datamodule, self.policy),
            copies_reference=self.reference_passes.copies_reference,
        )

    def evaluate_batch(self, batch: PromptBatch, means: NamedMeans) -> list[dict[str, Any]]:
        """Scores held-out prompts into ``means``; one row per prompt."""
        return self.evaluation.evaluate(batch, means, self.moment())

    def evaluation_means(self) -> NamedMeans:
        """An empty accumulator for ``evaluate_batch``."""
        return self.evaluation.means().to(self.device)

    @with_float32_defaults
    def validation_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Greedy accuracy and pass@k of held-out prompts; leaves no trace in training."""
        self.evaluate_batch(batch, self.held_out.of(dataloader_idx, self.evaluation_means()))

    def log_means(self, stage: str) -> dict[str, float]:
        """Logs them, and tells them to rewards that look at the history."""
        logged = super().log_means(stage)
        if stage == "val":
            self.log_history.note_evaluation(self.trainer.global_step, logged)
        return logged

    def test_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As validation, on the test split."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    @with_float32_defaults
    def predict_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """``num_generations`` completions per prompt with their rewards; PredictionWriter puts them into a file."""
        return self.evaluation.predict(batch, self.moment())

    def teardown(self, stage: str) -> None:
        """Ends what runs outside Python: the next batch before the engine, then reward workers."""
        Chain(self.step_source, self.steps_done).close()
        self.evaluation.close()
        if self.teachers is not None:
            self.teachers.close()

    def parts_with_state(self) -> dict[str, HasState]:
        """See ``PolicyModule``."""
        own: dict[str, HasState] = {
            "reference": self.reference_passes,
            "loss": self.loss,
            "numbers": self.numbers,
            "log_history": self.log_history,
            "sources": Chain(self.step_source, self.steps_done),
        }
        return super().parts_with_state() | own
