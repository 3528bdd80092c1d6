"""Steps of KTO against TRL 1.16.0's KTOTrainer as it is, in float64: the same rows in the same batches.

TRL encodes prompt and completion of plain text together; these prompts end where no token reaches over, so that both train on the
same tokens.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from runs import train_stage
from toy_models import save_toy_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_lightning import DPOModule

trl = pytest.importorskip("trl")
if trl.__version__ != "1.16.0":
    pytest.skip(f"parity is defined against TRL 1.16.0, found {trl.__version__}", allow_module_level=True)

LABELLED = [
    {"prompt": "0" * (i % 3) + f"{i}+{i}=", "completion": f"{2 * i}" * (1 + i % 2), "label": bool(i % 3)}
    for i in range(6)
]
PAIRS = [
    {"prompt": row["prompt"], "chosen": row["completion"], "rejected": "7" * (1 + i)} for i, row in enumerate(LABELLED)
]
STEPS, RATE, WEIGHTS = 4, 0.05, {"desirable_weight": 1.2, "undesirable_weight": 0.1}
NUMBERS = ("loss", "kl", "grad_norm")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    """GPT-2: the norms of most other models are float32 always."""
    no_dropout = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    return save_toy_model(tmp_path_factory.mktemp("gpt2"), "gpt2", **no_dropout)


class DoubleKTO(DPOModule):
    """In float64, and keeping what each step logged."""

    told: list[dict[str, float]]

    def configure_model(self) -> None:
        super().configure_model()
        self.policy.model.double()
        self.told = []

    def start_reference(self) -> None:
        super().start_reference()
        self.preference_passes.reference_passes.reference.model.double()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        torch.set_default_dtype(torch.float64)
        try:
            DPOModule.training_step.__wrapped__(self, batch, batch_idx)
        finally:
            torch.set_default_dtype(torch.float32)
        self.told.append({name: self.step_metrics[name] for name in ("loss", "kl", "grad_norm")})


def theirs(model_dir: Path, folder: Path, rows: list[dict], batch_size: int, passes: int = 1) -> list[dict[str, float]]:
    """What TRL logs of each step."""
    model = AutoModelForCausalLM.from_pretrained(model_dir).double()
    settings = {
        **{"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": passes, "max_steps": STEPS},
        **{"optim": "sgd", "learning_rate": RATE, "lr_scheduler_type": "constant", "max_grad_norm": 0.0},
        **{"logging_steps": 1, "report_to": [], "use_cpu": True, "bf16": False, "disable_tqdm": True},
        **{"gradient_checkpointing": False, "save_strategy": "no", **WEIGHTS},
    }
    trainer = trl.KTOTrainer(
        model=model,
        ref_model=copy.deepcopy(model),
        args=trl.KTOConfig(output_dir=str(folder / "trl"), **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
    )
    trainer.train()
    return [{name: float(log[name]) for name in NUMBERS} for log in trainer.state.log_history if "loss" in log]


def ours(model_dir: Path, folder: Path, rows: list[dict], batch_size: int) -> list[dict[str, float]]:
    data = {"batch_size": batch_size, "converter": "kto" if "label" in rows[0] else "dpo"}
    settings = {"optimizer": lambda p: torch.optim.SGD(p, lr=RATE), "loss_type": "kto", "microbatch_layout": "packed"}
    settings |= WEIGHTS
    return train_stage(DoubleKTO, "kto", rows, model_dir, folder, STEPS, data=data, **settings).told


@pytest.mark.parametrize(
    ("rows", "batch_size", "of_trl"),
    [(LABELLED, 3, 3), (LABELLED, 6, 6), (PAIRS, 6, 12)],
    ids=["half of the rows", "all rows", "pairs"],
)
def test_steps_of_the_same_batches_are_those_of_trls_trainer(model_dir, tmp_path, rows, batch_size, of_trl):
    mine, trls = ours(model_dir, tmp_path, rows, batch_size), theirs(model_dir, tmp_path, rows, of_trl)
    assert len(mine) == len(trls) == STEPS
    for one, other in zip(mine, trls, strict=True):
        # TRL's fused head makes its logprobs in float32.
        assert one == pytest.approx(other, rel=2e-5, abs=2e-6)
    assert max(step["kl"] for step in trls) > 0.05


def test_the_kl_divergence_is_of_a_whole_step_however_it_is_split_and_trls_of_each_batch_on_a_device(
    model_dir, tmp_path
):
    mine = ours(model_dir, tmp_path, LABELLED, 6)
    split = theirs(model_dir, tmp_path, LABELLED, 3, passes=2)
    assert mine[0] == pytest.approx(split[0], rel=2e-5, abs=2e-6)  # of weights that are the reference's still
    assert all(abs(one["kl"] - other["kl"]) > 1e-3 for one, other in zip(mine[1:], split[1:], strict=True))
