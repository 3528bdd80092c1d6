"""A fit and an evaluation in processes that Lightning forks, as in a notebook with several devices: model directory, folder."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from runs import make_data, make_module, make_trainer, weights


def main(model_dir: str, folder: Path) -> None:
    """Writes what the notebook's own process has afterwards to ``seen.pt``: steps, held-out metrics, the policy's weights."""
    module = make_module(model_dir)
    make_trainer(folder, 2, strategy="ddp_notebook").fit(module, datamodule=make_data(folder))
    steps = module.steps_done
    data = make_data(folder, eval_dataset=str(folder / "train.jsonl"))
    held_out = make_trainer(folder, strategy="ddp_notebook").validate(module, datamodule=data, verbose=False)
    module.configure_model()
    torch.save({"steps": steps, "held_out": held_out, "weights": weights(module)}, folder / "seen.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
