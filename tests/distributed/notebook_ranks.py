"""A fit and an evaluation in processes that Lightning forks, as in a notebook with several devices: model directory, folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from runs import make_data, make_module, make_trainer, share_of_digits, weights

from grpo_lightning import GRPOModule

MENDED: list[bool] = []


def broken_at_first(completions: list[str], **columns: Any) -> list[float]:
    """A reward with a fault that a user mends."""
    return share_of_digits(completions) if MENDED else [float("inf")] * len(completions)


def main(model_dir: str, folder: Path) -> None:
    """Writes what the notebook's own process has afterwards to ``seen.pt``: held-out metrics, weights, and errors of fits."""
    module = make_module(model_dir)
    make_trainer(folder, 2, strategy="ddp_notebook").fit(module, datamodule=make_data(folder))
    data = make_data(folder, eval_dataset=str(folder / "train.jsonl"))
    held_out = make_trainer(folder, strategy="ddp_notebook").validate(module, datamodule=data, verbose=False)
    module.configure_model()
    seen = {"held_out": held_out, "weights": weights(module), "here": error_of_fit(module, folder, "auto")}

    loaded = make_module(model_dir)
    loaded.configure_model()
    make_trainer(folder, 1, strategy="ddp_notebook").fit(loaded, datamodule=make_data(folder))
    seen["forked"] = error_of_fit(loaded, folder, "ddp_notebook")

    failed = make_module(model_dir, rewards=[broken_at_first])
    seen["of a reward"] = error_of_fit(failed, folder, "ddp_notebook")
    own = module.state_dict()
    failed.load_state_dict(own, strict=False)
    MENDED.append(True)
    seen["mended"] = error_of_fit(failed, folder, "ddp_notebook")
    after_own_weights(seen, module, make_module(model_dir), folder)
    torch.save(seen, folder / "seen.pt")


def after_own_weights(seen: dict[str, Any], module: GRPOModule, other: GRPOModule, folder: Path) -> None:
    """Fits here: of another module with the trained weights, then of the first, after a checkpoint's and a user's weights."""
    other.load_state_dict(module.state_dict())
    trainer = make_trainer(folder, 1)
    trainer.fit(other, datamodule=make_data(folder))
    trainer.save_checkpoint(folder / "other.ckpt")
    data = make_data(folder, eval_dataset=str(folder / "train.jsonl"))
    make_trainer(folder).validate(module, datamodule=data, ckpt_path=folder / "other.ckpt", verbose=False)
    seen["evaluated"] = error_of_fit(module, folder, "auto")
    module.load_state_dict(other.state_dict())
    seen["given"] = error_of_fit(module, folder, "auto")


def error_of_fit(module: GRPOModule, folder: Path, strategy: str) -> str:
    """The message of a fit's error; nothing of a fit that ends."""
    try:
        make_trainer(folder, 1, strategy=strategy).fit(module, datamodule=make_data(folder))
    except Exception as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
