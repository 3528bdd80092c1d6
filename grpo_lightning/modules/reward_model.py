"""RewardModelModule: a language model with a head of one number learns which of two texts people prefer."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from grpo_lightning.algorithm.experience import MicroBatch
from grpo_lightning.algorithm.metric_sums import MetricSums
from grpo_lightning.algorithm.preferences.metrics import logged_rewards, mean_entries
from grpo_lightning.algorithm.preferences.pairs import bradley_terry_loss
from grpo_lightning.datamodules.prompts.mixture import prompts_in_memory
from grpo_lightning.datamodules.written.compared_texts import MARGIN, check_compared, compared_texts
from grpo_lightning.datamodules.written.demonstrations import with_replaced
from grpo_lightning.datamodules.written.preferences import CHOSEN, REJECTED, Preferences
from grpo_lightning.datamodules.written.reading_ahead import ReadAhead
from grpo_lightning.memory.workload import Workload
from grpo_lightning.metrics.evaluation import NamedMeans
from grpo_lightning.modules.policy_module import PolicyModule
from grpo_lightning.modules.workload import workload_of
from grpo_lightning.numerics.device_copy import to_device
from grpo_lightning.numerics.dtypes import with_float32_defaults
from grpo_lightning.policy.positions import check_written, positions_of
from grpo_lightning.policy.reward_policy import RewardPolicy
from grpo_lightning.policy.settings import PolicySettings
from grpo_lightning.scoring.value_readout import ValueReadout
from grpo_lightning.settings.flat import part_of, takes
from grpo_lightning.training.optimization import Optimization, OptimizationSettings
from grpo_lightning.training.passes import Passes, PassSettings
from grpo_lightning.training.preference_passes import plan_examples
from grpo_lightning.training.steps import Steps
from grpo_lightning.training.written_update import WrittenUpdate
from grpo_lightning.types import PromptBatch, Rollouts


@dataclass(frozen=True, kw_only=True)
class RewardModelSettings(PassSettings, OptimizationSettings, PolicySettings):
    """All of ``model.*`` for reward models.

    Args:
        center_rewards_coefficient: Weight of the square of the sum of a pair's rewards, which keeps rewards around 0 (TRL
            suggests 0.01); null for none.
        max_length: Tokens of prompt and completion; a longer text loses its beginning, as the reward reads it with a
            max_length of its own.
        seed: Of the head that is drawn, and with the step of every dropout mask.
    """

    center_rewards_coefficient: float | None = None
    max_length: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        """The settings of each part check themselves; these are the module's own."""
        if self.max_length < 2:
            raise ValueError(f"model.max_length={self.max_length} leaves nothing to compare. Use 2 or more.")
        if (self.center_rewards_coefficient or 0.0) < 0:
            raise ValueError(
                f"model.center_rewards_coefficient={self.center_rewards_coefficient} would drive rewards apart. Use 0 or more."
            )
        if self.float32_head:
            raise ValueError(
                "model.float32_head=true has no effect on a reward model, which has no logits. Leave it out."
            )


class RewardModelModule(PolicyModule):
    """A Bradley-Terry reward model, through the same packed passes as GRPO.

    One batch of pairs is one optimizer step. What the two texts of a pair begin with is computed once. The export loads as the
    reward ``reward_model`` by its path.
    """

    stage = "rm"

    @takes(RewardModelSettings)
    def __init__(self, settings: RewardModelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.policy = RewardPolicy(part_of(settings, PolicySettings), settings.seed)
        self.passes = Passes(part_of(settings, PassSettings), self.policy, make_readout=ValueReadout)
        self.optimization = Optimization(part_of(settings, OptimizationSettings), self.policy, self)
        self.read = ReadAhead(self.texts)
        self.steps = Steps(self.optimization, self.passes, settings.seed)
        self.update = WrittenUpdate(self.optimization, self.passes, self.read)

    def configure_callbacks(self) -> list[Callback]:
        """As for every policy; refuses weights in parts."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise ValueError("trainer.strategy spreads weights over ranks, and a reward model is whole. Use ddp.")
        return super().configure_callbacks()

    def use_of_export(self, path: Path) -> str:
        """As a reward."""
        return (
            f"The reward model is in {path}: model.rewards: [{{class_path: reward_model, init_args: {{model: {path}}}}}] in a "
            "config of fit scores with it."
        )

    def texts(self, batch: PromptBatch) -> Preferences:
        """The batch's texts in pairs, with data.replace_text applied as to the prompts."""
        batch = with_replaced(batch, [CHOSEN, REJECTED], self.replacements())
        texts = compared_texts(batch, self.policy.tokenizer, self.settings.max_length)
        uids = [uid for uid in batch.uids for _ in (CHOSEN, REJECTED)]
        check_written(texts.rollouts, positions_of(self.policy.config), uids, "model.max_length", behind=1)
        return texts

    def pairs(self, batch: PromptBatch) -> tuple[Preferences, Tensor | None]:
        """The batch's texts, and the margins where the data has some."""
        pairs, margins = self.read(batch), batch.columns.get(MARGIN)
        return pairs, None if margins is None else self.replica.rows(torch.tensor([float(each) for each in margins]))

    def setup(self, stage: str) -> None:
        """Checks the rows that are there before weights load.

        Raises:
            ValueError: See ``check_compared``.
        """
        for prompts in prompts_in_memory(self.datamodule):
            columns = {name: prompts.values(name) if name == MARGIN else [] for name in prompts.columns}
            check_compared(columns, prompts.uids)

    @with_float32_defaults
    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """One optimizer step on the mean loss of the batch's pairs, over all ranks."""
        report = self.steps.begin()
        pairs, margins = self.pairs(batch)
        micro_batches = self.update.micro_batches(pairs.rollouts, plan_examples(self.passes, pairs), pairs.num_examples)
        self.update(micro_batches, partial(self.pair_loss, pairs, margins), report)
        self.steps.count()
        self.steps.log(self.steps.end(report).result())

    def rewards(self, pairs: Preferences, rows: Tensor) -> Tensor:
        """``(M,)``, of whole pairs, in one pass."""
        return self.passes.scorer.score(pairs.rollouts, rows).logprobs

    def losses(self, rewards: Tensor, margins: Tensor | None, rows: Tensor) -> Tensor:
        """``(P,)``, of the pairs that ``rows`` are."""
        of_pairs = None if margins is None else to_device(margins[rows[0::2] // 2], rewards.device).to(rewards.dtype)
        return bradley_terry_loss(rewards, of_pairs, self.settings.center_rewards_coefficient or 0.0)

    def pair_loss(
        self, pairs: Preferences, margins: Tensor | None, micro_batch: MicroBatch
    ) -> tuple[Tensor, MetricSums]:
        """This micro-batch's share of the mean loss, and what is logged of it."""
        rows = micro_batch.rows
        if not len(rows):  # a pass that other ranks' collectives wait for
            return self.passes.scorer.idle(), MetricSums()
        rewards = self.rewards(pairs, rows)
        losses, now = self.losses(rewards, margins, rows), rewards.detach()
        ends = MetricSums(minima={"min_reward": now.min()}, maxima={"max_reward": now.max()})
        return losses.sum() / micro_batch.totals.completions, mean_entries(logged_rewards(now, losses.detach())) + ends

    def workload(self) -> Workload:
        """See ``PolicyModule.workload``: nothing is sampled; a pair stays together, as one completion of twice the length."""

        def run_pass(rollouts: Rollouts, micro_batch: MicroBatch) -> None:
            rewards = self.passes.scorer.score(rollouts, micro_batch.rows).logprobs
            self.optimization.accumulate_gradient(rewards.mean(), micro_batch)

        return workload_of(
            self,
            run_pass=run_pass,
            max_completion_length=2 * self.settings.max_length,
            length_setting=("max_length", self.settings.max_length),
        )

    @with_float32_defaults
    def validation_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Of held-out pairs, how often the chosen text earns more, and by how much."""
        names = ["loss", "accuracy", "margin", "mean_reward"]
        means = self.held_out.of(dataloader_idx, NamedMeans(names).to(self.device))
        pairs, margins = self.pairs(batch)
        for rows in plan_examples(self.passes, pairs):
            rewards = self.rewards(pairs, rows)
            entries = logged_rewards(rewards, self.losses(rewards, margins, rows))
            means.update({name: values.tolist() for name, values in entries.items()})

    def teardown(self, stage: str) -> None:
        """Ends the thread that reads."""
        self.read.close()
