"""SFTModule: imitation of written completions, to warm up a policy that earns no reward yet."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from grpo_lightning.algorithm.experience import MicroBatch
from grpo_lightning.algorithm.metric_sums import MetricSums
from grpo_lightning.datamodules.prompts.mixture import prompts_in_memory
from grpo_lightning.datamodules.written.demonstrations import (
    COLUMN,
    WrittenSettings,
    check_demonstrated,
    demonstrations,
    with_replaced,
)
from grpo_lightning.datamodules.written.reading_ahead import ReadAhead
from grpo_lightning.memory.workload import Workload
from grpo_lightning.metrics.evaluation import NamedMeans
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
from grpo_lightning.training.steps import Steps
from grpo_lightning.training.written_update import WrittenUpdate
from grpo_lightning.types import PromptBatch, Rollouts

NO_ROLLOUTS = Rollouts.from_lists([], [], [], [], [])


@dataclass(frozen=True, kw_only=True)
class SFTSettings(WrittenSettings, PassSettings, LoadBalanceSettings, OptimizationSettings, PolicySettings):
    """All of ``model.*`` for demonstrations.

    Args:
        seed: With the step, decides every dropout mask of the run.
    """

    seed: int = 0


class SFTModule(PolicyModule):
    """Supervised fine-tuning on the completion tokens alone, through the same packed scorer as GRPO.

    One batch of rows is one optimizer step. A cold model that never earns a reward has nothing to compare inside its
    groups; a few hundred demonstrations of the answer's form are usually enough.
    """

    stage = "sft"

    @takes(SFTSettings)
    def __init__(self, settings: SFTSettings) -> None:
        super().__init__()
        self.settings, self.written = settings, part_of(settings, WrittenSettings)
        self.policy = Policy(part_of(settings, PolicySettings), settings.seed)
        self.passes = Passes(part_of(settings, PassSettings), self.policy)
        self.optimization = Optimization(part_of(settings, OptimizationSettings), self.policy, self)
        self.load_balance = make_load_balance(part_of(settings, LoadBalanceSettings), self.passes)
        self.read = ReadAhead(self.laid_out)
        self.steps = Steps(self.optimization, self.passes, settings.seed)
        self.update = WrittenUpdate(self.optimization, self.passes, self.read, self.load_balance)

    def demonstrations(self, batch: PromptBatch) -> Rollouts:
        """The batch's completions, with data.replace_text applied as to the prompts."""
        batch = with_replaced(batch, [COLUMN], self.replacements())
        rollouts = demonstrations(batch, self.policy.tokenizer, self.written, self.policy.end_ids)
        check_written(rollouts, positions_of(self.policy.config), batch.uids, "model.max_completion_length")
        return rollouts

    def laid_out(self, batch: PromptBatch) -> Rollouts:
        """The same, with the first pass over them ready to go to the GPU."""
        rollouts = self.demonstrations(batch)
        self.passes.lay_out_ahead(rollouts)
        return rollouts

    def setup(self, stage: str) -> None:
        """Checks the rows that are there before weights load.

        Raises:
            ValueError: See ``check_demonstrated``.
        """
        for prompts in prompts_in_memory(self.datamodule):
            check_demonstrated(prompts.columns)

    @with_float32_defaults
    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """One optimizer step on the mean negative logprob of the batch's completion tokens, over all ranks."""
        report = self.steps.begin()
        rollouts = self.replica.rollouts(self.read(batch))
        self.update(self.micro_batches(rollouts), partial(self.imitation_loss, rollouts), report)
        self.steps.count()
        self.steps.log(self.steps.end(report).result())

    def micro_batches(self, rollouts: Rollouts) -> list[MicroBatch]:
        """The forward and backward passes of the step, equally many on every rank."""
        rows = torch.arange(rollouts.num_completions)
        return self.update.micro_batches(rollouts, self.passes.plan(rollouts, rows), len(rows))

    def imitation_loss(self, rollouts: Rollouts, micro_batch: MicroBatch) -> tuple[Tensor, MetricSums]:
        """This micro-batch's share of the mean negative logprob, in nats per completion token, and what is logged of it.

        With its share of the loss that keeps experts in use, where there is one.
        """
        is_empty = not len(micro_batch.rows)  # a pass that other ranks' collectives wait for
        rows = torch.tensor([0]) if is_empty else micro_batch.rows
        balance = self.load_balance
        scores = self.passes.scorer.score(rollouts, rows, with_loads=balance is not None)
        loss = -scores.logprobs.sum() * (0.0 if is_empty else 1.0 / micro_batch.totals.tokens)
        metrics = MetricSums()
        if balance is not None and scores.loads is not None and not is_empty:
            share, metrics = balance.loss(scores.loads, micro_batch.loads_of_step)
            loss = loss + share
        return loss, MetricSums(totals={"loss": loss.detach().double()}, means=metrics.means)

    def workload(self) -> Workload:
        """See ``PolicyModule.workload``: nothing is sampled, and each completion has a prompt of its own."""

        def run_pass(rollouts: Rollouts, micro_batch: MicroBatch) -> None:
            self.optimization.accumulate_gradient(self.imitation_loss(rollouts, micro_batch)[0], micro_batch)

        return workload_of(
            self,
            run_pass=run_pass,
            max_completion_length=self.written.max_completion_length,
        )

    @with_float32_defaults
    def validation_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Mean negative logprob of held-out completion tokens."""
        means = self.held_out.of(dataloader_idx, NamedMeans(["loss"]).to(self.device))
        rollouts = self.replica.rollouts(self.read(batch) if len(batch) else NO_ROLLOUTS)
        for part in self.passes.plan_everywhere(self.passes.scorer, rollouts):
            logprobs = self.passes.scorer.score(rollouts, part).logprobs
            means.update({"loss": (-logprobs).tolist()})

    def teardown(self, stage: str) -> None:
        """Ends the thread that reads."""
        self.read.close()
