"""DPOModule: learning from completions that people preferred to others, or judged one by one."""

from functools import partial
from typing import Any

from torch import Tensor

from grpo_lightning.algorithm.experience import MicroBatch
from grpo_lightning.algorithm.metric_sums import MetricSums
from grpo_lightning.algorithm.preferences.metrics import logged, mean_entries, metric_names, with_margin
from grpo_lightning.datamodules.prompts.mixture import prompts_in_memory
from grpo_lightning.datamodules.written.demonstrations import COLUMN, WrittenSettings, with_replaced
from grpo_lightning.datamodules.written.preferences import (
    CHOSEN,
    REJECTED,
    Preferences,
    check_columns,
    read_preferences,
)
from grpo_lightning.datamodules.written.reading_ahead import ReadAhead
from grpo_lightning.memory.workload import Workload
from grpo_lightning.metrics.evaluation import NamedMeans
from grpo_lightning.modules.dpo_settings import DPOSettings
from grpo_lightning.modules.policy_module import PolicyModule
from grpo_lightning.modules.workload import workload_of
from grpo_lightning.numerics.dtypes import with_float32_defaults
from grpo_lightning.policy.policy import Policy
from grpo_lightning.policy.positions import check_written, positions_of
from grpo_lightning.policy.settings import PolicySettings
from grpo_lightning.settings.flat import part_of, takes
from grpo_lightning.training.load_balance import LoadBalanceSettings, make_load_balance
from grpo_lightning.training.optimization import Optimization, OptimizationSettings
from grpo_lightning.training.passes import Passes, PassSettings
from grpo_lightning.training.precomputed_logps import PrecomputedLogps
from grpo_lightning.training.preference_passes import PreferencePasses, plan_examples
from grpo_lightning.training.reference_passes import ReferencePasses, ReferenceSettings
from grpo_lightning.training.steps import Steps
from grpo_lightning.training.written_update import WrittenUpdate
from grpo_lightning.types import PromptBatch, Rollouts


class DPOModule(PolicyModule):
    """Direct preference optimization (arXiv:2305.18290) and its relatives, through the same packed scorer as GRPO.

    One batch of rows is one optimizer step. The prompt of a pair is computed once, for policy and reference alike.
    """

    stage = "dpo"

    @takes(DPOSettings)
    def __init__(self, settings: DPOSettings) -> None:
        super().__init__()
        self.settings, self.written = settings, part_of(settings, WrittenSettings)
        self.loss = settings.loss()
        without = settings.without_reference(self.loss)
        reference = part_of(settings, ReferenceSettings)
        self.policy = Policy(part_of(settings, PolicySettings), settings.seed)
        self.passes = Passes(part_of(settings, PassSettings), self.policy)
        self.optimization = Optimization(part_of(settings, OptimizationSettings), self.policy, self)
        self.load_balance = make_load_balance(part_of(settings, LoadBalanceSettings), self.passes)
        self.read = ReadAhead(self.own_preferences)
        self.steps = Steps(self.optimization, self.passes, settings.seed)
        self.update = WrittenUpdate(self.optimization, self.passes, self.read, self.load_balance)
        references = ReferencePasses(reference, without, "Leave one of them out.", self.passes)
        precomputed = PrecomputedLogps() if settings.precompute_ref_log_probs else None
        self.preference_passes = PreferencePasses(self.loss, self.passes, None if without else references, precomputed)

    def own_preferences(self, batch: PromptBatch) -> Preferences:
        """The batch's completions, with data.replace_text applied as to the prompts."""
        batch = with_replaced(batch, [CHOSEN, REJECTED, COLUMN], self.replacements())
        policy, in_pairs = self.policy, self.loss.in_pairs
        read = read_preferences(batch, policy.tokenizer, self.written, in_pairs, policy.end_ids)
        uids = [batch.uids[b] for b in read.rollouts.group.tolist()]
        check_written(read.rollouts, positions_of(self.policy.config), uids, "model.max_completion_length")
        return read

    def preferences(self, batch: PromptBatch) -> Preferences:
        """The batch's completions, and those of ranks that share this one's passes."""
        own = self.read(batch)
        return Preferences(self.replica.rollouts(own.rollouts), self.replica.rows(own.is_chosen), own.in_pairs)

    @with_float32_defaults
    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """One optimizer step on the mean loss of the batch's examples, over all ranks."""
        report = self.steps.begin()
        preferences = self.preferences(batch)
        ref_logps, kl = self.preference_passes.reference_logps(preferences), self.preference_passes.kl(preferences)
        loss = partial(self.preference_loss, preferences, ref_logps, kl)
        self.update(self.micro_batches(preferences), loss, report)
        if self.loss.needs_kl:
            report.add_mean("kl", kl[None])
        self.preference_passes.move(self.steps.count())
        self.steps.log(with_margin(self.steps.end(report).result()))

    def micro_batches(self, preferences: Preferences) -> list[MicroBatch]:
        """The forward and backward passes of the step, equally many on every rank."""
        plan, rollouts = plan_examples(self.passes, preferences), preferences.rollouts
        losses = preferences.num_examples if self.loss.in_pairs else rollouts.num_completions
        return self.update.micro_batches(rollouts, plan, losses)

    def preference_loss(
        self, preferences: Preferences, ref_logps: Tensor, kl: Tensor, micro_batch: MicroBatch
    ) -> tuple[Tensor, MetricSums]:
        """This micro-batch's share of the mean loss, and what is logged of it."""
        if not len(micro_batch.rows):  # a pass that other ranks' collectives wait for
            return self.passes.scorer.idle(), MetricSums()
        balance, rows = self.load_balance, micro_batch.rows
        scores, loads = self.preference_passes.scores(preferences, rows, ref_logps, kl, with_loads=balance is not None)
        losses = self.loss.per_example(scores)
        loss, metrics = losses.sum() / micro_batch.totals.completions, mean_entries(logged(self.loss, scores, losses))
        if balance is not None and loads is not None:
            share, added = balance.loss(loads, micro_batch.loads_of_step)
            # The loss that is logged is that of preferences.
            loss, metrics = loss + share, metrics + MetricSums(means=added.means)
        return loss, metrics

    def setup(self, stage: str) -> None:
        """Checks what the loss needs of the data before weights load.

        Raises:
            ValueError: In the words of the config.
        """
        self.preference_passes.expect(is_for_fit=stage == "fit")
        for prompts in prompts_in_memory(self.datamodule):
            check_columns(prompts.columns, self.loss.in_pairs)
        if self.loss.needs_kl and self.prompts_in_a_step() < 2:
            raise ValueError(
                f"data.batch_size=1: model.loss_type={self.settings.loss_type!r} compares each prompt with the completion of "
                "another one of the batch. Use 2 or more."
            )
        if self.preference_passes.precomputed is not None and getattr(self.datamodule, "streaming", False):
            raise ValueError(
                "model.precompute_ref_log_probs=true needs all rows before training. Use data.streaming=false."
            )

    def on_fit_start(self) -> None:
        """Copies the reference, once the weights are what training starts from."""
        self.start_reference()

    def on_train_start(self) -> None:
        """As for every policy; then scores the data under the reference, where that is done once."""
        super().on_train_start()
        self.precompute("train_prompts", "eval_prompts")

    def on_validation_start(self) -> None:
        """A validation without training needs the reference too."""
        self.start_reference()
        self.precompute("eval_prompts")

    def start_reference(self) -> None:
        """Makes it, once."""
        self.preference_passes.start()

    @with_float32_defaults
    def precompute(self, *roles: str) -> None:
        """Reference logprobs of the data's rows, by the policy before its first step; every rank has all of them."""
        if self.preference_passes.precomputed is None or self.steps_done:
            return
        for role in roles:
            found = getattr(self.datamodule, role, None) or {}
            for prompts in found.values() if isinstance(found, dict) else [found]:
                self.preference_passes.precompute(prompts, self.preferences)

    def workload(self) -> Workload:
        """See ``PolicyModule.workload``: nothing is sampled; a pair stays together, as one completion of twice the length."""

        def run_pass(rollouts: Rollouts, micro_batch: MicroBatch) -> None:
            # The loss of pairs takes no memory to speak of beside their logprobs.
            logprobs = self.passes.scorer.score(rollouts, micro_batch.rows).logprobs
            self.optimization.accumulate_gradient(-logprobs.mean(), micro_batch)

        return workload_of(
            self,
            run_pass=run_pass,
            max_completion_length=2 * self.written.max_completion_length,
            length_setting=("max_completion_length", self.written.max_completion_length),
            copies_reference=self.preference_passes.copies_reference,
        )

    @with_float32_defaults
    def validation_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss and rewards of held-out completions; of pairs, how often the chosen one earns more."""
        names = metric_names(self.loss)
        means = self.held_out.of(dataloader_idx, NamedMeans(names).to(self.device))
        preferences = self.preferences(batch)
        ref_logps, kl = self.preference_passes.reference_logps(preferences), self.preference_passes.kl(preferences)
        plan = plan_examples(self.passes, preferences)
        for rows in self.passes.in_step_with_others(self.passes.scorer, plan):
            scores, _ = self.preference_passes.scores(preferences, rows, ref_logps, kl)
            entries = logged(self.loss, scores, self.loss.per_example(scores))
            means.update({name: values.tolist() for name, values in entries.items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds a reference that has moved, or the numbers in its place."""
        super().on_save_checkpoint(checkpoint)
        checkpoint.update(self.preference_passes.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores them."""
        super().on_load_checkpoint(checkpoint)
        self.preference_passes.load_state_dict(checkpoint)

    def teardown(self, stage: str) -> None:
        """Ends the thread that reads."""
        self.read.close()
