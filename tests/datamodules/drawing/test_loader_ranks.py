"""Two real processes under Lightning's DDP strategy share every global batch and every evaluation row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from toy_models import build_tokenizer

from grpo_lightning.datamodules import GRPODataModule
from grpo_lightning.types import PromptBatch
from tests.distributed.ranks import run_ranks

ROWS = [{"prompt": f"question {index}"} for index in range(13)]
EVAL_ROWS = ROWS[:5]


class Recorder(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.tokenizer = build_tokenizer()
        self.seen: list[list[int]] = []
        self.validated: list[list[int]] = []

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.seen.append(batch.uids)
        optimizer = self.optimizers()
        self.manual_backward(self.weight * 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.validated.append(batch.uids)
        self.log("rows", float(len(batch)), batch_size=1, sync_dist=True)  # a collective in every batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def train(directory: Path, batch_size: int, ranks: int, **trainer: Any) -> Recorder:
    module = Recorder()
    data = GRPODataModule(ROWS, EVAL_ROWS, batch_size=batch_size, eval_batch_size=batch_size, seed=2)
    ckpt_path = trainer.pop("ckpt_path", None)
    L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[ModelCheckpoint(directory, every_n_train_steps=1, save_top_k=-1, filename="{step}")],
        **{"max_epochs": 2} | trainer,
    ).fit(module, data, ckpt_path=ckpt_path, weights_only=False)
    return module


def of_two_ranks(directory: Path) -> dict[str, list[list[int]]]:
    whole = train(directory, batch_size=2, ranks=2)
    resumed = train(directory / "on", batch_size=2, ranks=2, ckpt_path=str(directory / "step=2.ckpt"))
    return {"seen": whole.seen, "validated": whole.validated, "resumed": resumed.seen}


def test_two_processes_train_on_the_batches_of_one_and_evaluate_each_row_once(tmp_path: Path) -> None:
    first, second = run_ranks(2, of_two_ranks, tmp_path)
    alone = train(tmp_path / "alone", batch_size=4, ranks=1)

    assert [mine + other for mine, other in zip(first["seen"], second["seen"], strict=True)] == alone.seen
    assert len(alone.seen) == 6
    assert (first["resumed"], second["resumed"]) == (first["seen"][2:], second["seen"][2:])
    # 5 rows in 2 batches, twice: sizes 1 and 1, then 1 and 2.
    assert first["validated"] == [[0], [2]] * 2
    assert second["validated"] == [[1], [3, 4]] * 2


def test_one_process_resumes_what_two_began_when_the_global_batch_is_the_same(tmp_path: Path) -> None:
    """Order and place are global, so the number of ranks may change inside an epoch."""
    from grpo_lightning.datamodules.converters import GRPODatasetConverter
    from grpo_lightning.datamodules.drawing.loader import TrainingLoader
    from grpo_lightning.datamodules.prompts.dataset import PromptDataset
    from grpo_lightning.datamodules.prompts.form import PromptForm

    prompts = PromptDataset(ROWS, GRPODatasetConverter(), PromptForm(build_tokenizer()), "rows")
    whole = [batch.uids for batch in TrainingLoader(prompts, batch_size=4)]
    of_two = TrainingLoader(prompts, batch_size=2, rank=1, world_size=2)
    next(iter(of_two))
    alone = TrainingLoader(prompts, batch_size=4)
    alone.load_state_dict(of_two.state_dict())
    assert [batch.uids for batch in alone] == whole[1:]
