"""A module that notes which rows it is trained on, and trains one number on them."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor
from toy_models import build_tokenizer

from grpo_lightning.types import PromptBatch


class BatchRecorder(L.LightningModule):
    """Manual optimization of one number; ``seen`` has the row numbers of each batch.

    Args:
        fail_at: The step that raises RuntimeError.
    """

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.tokenizer = build_tokenizer()
        self.fail_at = fail_at
        self.seen: list[list[int]] = []

    def loss(self, batch: PromptBatch) -> Tensor:
        """Its gradient tells batches apart."""
        return self.weight * sum(batch.uids)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        if self.fail_at == self.global_step:
            raise RuntimeError("the machine is gone")
        self.seen.append(batch.uids)
        optimizer = self.optimizers()
        self.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)
