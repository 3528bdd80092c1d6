"""Checkpoints that a plugin of the Trainer's writes are read again as those that it writes itself."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from runs import make_data, make_module, make_trainer, weights
from torch.optim.lr_scheduler import LambdaLR

from grpo_lightning.distributed.checkpoint_io import AtomicCheckpointIO, whole_files


class OwnIO(TorchCheckpointIO):
    """A plugin of the user's, which writes as Lightning does."""


@pytest.mark.parametrize("make", [OwnIO, AsyncCheckpointIO, lambda: AsyncCheckpointIO(OwnIO())])
def test_a_run_whose_learning_rate_is_numpys_goes_on_from_what_a_plugin_has_written(tiny_model_dir, tmp_path, make):
    def train(max_steps, ckpt_path=None):
        schedule = partial(LambdaLR, lr_lambda=lambda step: np.cos(step / 10))
        module = make_module(tiny_model_dir, lr_scheduler=schedule)
        trainer = make_trainer(tmp_path, max_steps, plugins=[make()])
        trainer.fit(module, datamodule=make_data(tmp_path), ckpt_path=ckpt_path)
        trainer.save_checkpoint(tmp_path / f"{max_steps}.ckpt")
        trainer.strategy.teardown()  # waits for a thread
        return weights(module)

    train(2)
    saved = torch.load(tmp_path / "2.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == float(0.1 * np.cos(0.2))
    resumed, whole = train(3, tmp_path / "2.ckpt"), train(3)
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_what_writes_in_a_thread_writes_whole_files():
    plugin = whole_files(AsyncCheckpointIO(TorchCheckpointIO()))
    assert type(plugin.plugin) is AsyncCheckpointIO and type(plugin.plugin.checkpoint_io) is AtomicCheckpointIO
    assert whole_files(plugin) is plugin


def test_a_plugin_that_writes_otherwise_is_given_pythons_scalars_and_its_own_arrays(tmp_path):
    class Kept(CheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            self.written, self.options = checkpoint, storage_options

        def load_checkpoint(self, path, map_location=None, weights_only=None):
            return self.written

        def remove_checkpoint(self, path):
            self.removed = path

    kept, array = Kept(), np.zeros(2)
    plugin = whole_files(kept)
    plugin.save_checkpoint({"lr": np.float64(0.5), "curve": array}, tmp_path / "a", {"option": 1})
    assert type(kept.written["lr"]) is float and kept.written["curve"] is array and kept.options == {"option": 1}
    plugin.remove_checkpoint(tmp_path / "a")
    assert plugin.load_checkpoint(tmp_path / "a") is kept.written and kept.removed == tmp_path / "a"
