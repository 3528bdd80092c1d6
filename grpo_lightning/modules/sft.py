"""SFTModule: imitation of written completions, to warm up a policy that earns no reward yet."""

import math
import time
from typing import Any, Literal

import torch
from torch import Tensor

from grpo_lightning.algorithm.averaging import StepTotals
from grpo_lightning.algorithm.experience import MicroBatch
from grpo_lightning.datamodules.demonstrations import COLUMN, demonstrations
from grpo_lightning.datamodules.prompts import replaced_text
from grpo_lightning.distributed.gather import gather_objects
from grpo_lightning.metrics.evaluation import NamedMeans
from grpo_lightning.modules.optimizer import OptimizerModule
from grpo_lightning.numerics.float32_defaults import with_float32_defaults
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.seeds import seed_everything
from grpo_lightning.types import PromptBatch, Rollouts

NO_ROLLOUTS = Rollouts.from_lists([], [], [], [], [])


class SFTModule(OptimizerModule):
    """Supervised fine-tuning on the completion tokens alone, through the same packed scorer as GRPO.

    One batch of rows is one optimizer step. A cold model that never earns a reward has nothing to compare inside its
    groups; a few hundred demonstrations of the answer's form are usually enough.

    Args:
        max_completion_length: Tokens; longer completions are cut off.
        max_tokens_per_microbatch: Tokens in one forward and backward pass: the memory knob. It does not change the
            gradient.
        microbatch_layout: packed (no padding), padded (any architecture), or auto.
        chat_template_kwargs: Further arguments of the chat template (such as enable_thinking).
        **policy: Arguments of OptimizerModule.
    """

    def __init__(
        self,
        max_completion_length: int = 2048,
        max_tokens_per_microbatch: int = 16384,
        microbatch_layout: Literal["auto", "packed", "padded"] = "auto",
        chat_template_kwargs: dict[str, Any] | None = None,
        **policy: Any,
    ) -> None:
        super().__init__(**policy)
        for name, value in (
            ("max_completion_length", max_completion_length),
            ("max_tokens_per_microbatch", max_tokens_per_microbatch),
        ):
            if value < 1:
                raise ValueError(f"model.{name}={value} holds no token. Use 1 or more.")
        self.max_completion_length = max_completion_length
        self.max_tokens_per_microbatch = max_tokens_per_microbatch
        self.microbatch_layout = microbatch_layout
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.steps_done = 0
        """Optimizer steps finished; saved in checkpoints, and with the seed the source of all randomness."""
        self.step_metrics: dict[str, float] = {}
        """What the last step logged, the same on every rank."""
        self._scorer: Scorer | None = None

    @property
    def scorer(self) -> Scorer:
        """Scores the policy at temperature 1; made on first use, when weights exist."""
        assert self.policy is not None
        if self._scorer is None or self._scorer.model is not self.policy:
            self._scorer = Scorer(self.policy, 1.0, self.microbatch_layout, float32_head=self.float32_head)
        return self._scorer

    def demonstrations(self, batch: PromptBatch) -> Rollouts:
        """The batch's completions, with data.replace_text applied as to the prompts."""
        replace = {**(self.replace_text or {}), **(getattr(self.datamodule, "replace_text", None) or {})}
        if replace and COLUMN in batch.columns:
            replaced = [replaced_text(completion, replace) for completion in batch.columns[COLUMN]]
            batch = PromptBatch(batch.prompts, batch.prompt_ids, batch.uids, {**batch.columns, COLUMN: replaced})
        return demonstrations(batch, self.tokenizer, self.chat_template_kwargs, self.max_completion_length)

    @with_float32_defaults
    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """One optimizer step on the mean negative logprob of the batch's completion tokens, over all ranks."""
        started = time.perf_counter()
        seed_everything(self.seed, "step", self.steps_done, self.replica.index)  # dropout
        rollouts = self.replica.rollouts(self.demonstrations(batch))
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        micro_batches = self.micro_batches(rollouts)
        for micro_batch in micro_batches:
            loss = self.imitation_loss(rollouts, micro_batch)
            total += loss.detach().double()
            self.accumulate_gradient(loss * self.replica.count, micro_batch)
        norm = self.step_optimizer()
        self.end_step(total, norm, micro_batches[0].totals.tokens, started)

    def micro_batches(self, rollouts: Rollouts) -> list[MicroBatch]:
        """The forward and backward passes of the step, equally many on every rank."""
        rows = torch.arange(rollouts.num_completions)
        plan = self.scorer.plan(rollouts, rows, self.max_tokens_per_microbatch)
        replicas = self.replica.of_all((len(rows), int(rollouts.completion_lengths.sum()), len(plan)))
        totals = StepTotals(sum(replica[0] for replica in replicas), sum(replica[1] for replica in replicas))
        count = max(replica[2] for replica in replicas)
        plan += [rows[:0]] * (count - len(plan))
        return [MicroBatch(part, totals, is_last=i == count - 1) for i, part in enumerate(plan)]

    def imitation_loss(self, rollouts: Rollouts, micro_batch: MicroBatch) -> Tensor:
        """This micro-batch's share of the mean negative logprob, in nats per completion token."""
        is_empty = not len(micro_batch.rows)  # a pass that other ranks' collectives wait for
        rows = torch.tensor([0]) if is_empty else micro_batch.rows
        logprobs = self.scorer.score(rollouts, rows, self.device).logprobs
        return -logprobs.sum() * (0.0 if is_empty else 1.0 / micro_batch.totals.tokens)

    def end_step(self, loss: Tensor, norm: Tensor, tokens: int, started: float) -> None:
        """Logs the step, the same on every rank, and counts it."""
        self.steps_done += 1
        total = sum(self.replica.of_all(loss.item()))
        grad_norm, seconds = norm.item(), max(gather_objects(time.perf_counter() - started))
        finite = math.isfinite(grad_norm)
        changed = [] if self.weight_sample is None else gather_objects(self.weight_sample.changed().mean().item())
        self.step_metrics = {
            "loss": total,
            **({"update/changed_since_start": sum(changed) / len(changed)} if changed else {}),
            "grad_norm": grad_norm if finite else 0.0,
            "skipped_updates": float(not finite),
            "learning_rate": float(self.trainer.optimizers[0].param_groups[0]["lr"]),
            "step_time": seconds,
            "tokens_per_second": tokens / seconds,
        }
        self.log_dict(self.step_metrics, prog_bar=True)

    def on_validation_epoch_start(self) -> None:
        """Starts with empty means, one per held-out dataset."""
        self._means: dict[int, NamedMeans] = {}

    @with_float32_defaults
    def validation_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Mean negative logprob of held-out completion tokens."""
        means = self._means.setdefault(dataloader_idx, NamedMeans(["loss"]).to(self.device))
        rollouts = self.replica.rollouts(self.demonstrations(batch) if len(batch) else NO_ROLLOUTS)
        rows = torch.arange(rollouts.num_completions)
        plan = self.scorer.plan(rollouts, rows, self.max_tokens_per_microbatch)
        if self.is_sharded:  # ranks gather the weights of every pass together
            for _ in range(max(gather_objects(len(plan))) - len(plan)):
                self.scorer.idle(self.device)
        for part in plan:
            means.update({"loss": (-self.scorer.score(rollouts, part, self.device).logprobs).tolist()})

    def on_validation_epoch_end(self) -> None:
        """Logs ``val/loss``, or ``val/<dataset>/loss`` where there are several."""
        loaders = self.trainer.val_dataloaders
        names = list(loaders) if isinstance(loaders, dict) else []
        for index, means in self._means.items():
            prefix = f"val/{names[index]}" if len(names) > 1 else "val"
            self.log_dict({f"{prefix}/{name}": value for name, value in means.compute().items()}, prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the step counter."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["steps_done"] = self.steps_done

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the step counter."""
        super().on_load_checkpoint(checkpoint)
        self.steps_done = checkpoint["steps_done"]
