"""What goes on from a checkpoint: the stage that wrote it, and no other."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import make_data, make_module, make_trainer, train_stage, write_rows

from grpo_lightning import DPOModule, GRPODataModule, GRPOModule, RewardModelModule, SFTModule
from grpo_lightning.commands import stage_cli
from grpo_lightning.distributed.checkpoint_check import CheckpointNotReadableError

PAIRS = [{"prompt": f"{i}+{i}=", "chosen": f"{2 * i}", "rejected": "no"} for i in range(3)]
WRITTEN = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
OTHERS = {"sft": (SFTModule, "sft", WRITTEN), "dpo": (DPOModule, "dpo", PAIRS), "rm": (RewardModelModule, "dpo", PAIRS)}
STAGES = ("sft", "dpo", "rm", "fit")


def run(stage: str, model_dir: Path, folder: Path, resume_from: str | None = None, **trainer: Any) -> Any:
    """The module after a step of a stage, after two where it goes on from one."""
    folder.mkdir(exist_ok=True)
    if stage == "fit":
        module, data = make_module(model_dir, num_generations=2, max_completion_length=2), make_data(folder)
        make_trainer(folder, 2 if resume_from else 1, **trainer).fit(module, datamodule=data, ckpt_path=resume_from)
        return module
    steps, settings = 2 if resume_from else 1, {"trainer": trainer, "resume_from": resume_from}
    return train_stage(*OTHERS[stage], model_dir, folder, steps, **settings)


@pytest.fixture(scope="module")
def checkpoints(tiny_model_dir, tmp_path_factory) -> dict[str, str]:
    """One of each stage."""
    found = {}
    for stage in STAGES:
        folder = tmp_path_factory.mktemp(stage)
        kept = {"callbacks": [ModelCheckpoint(folder, stage, every_n_train_steps=1)], "enable_checkpointing": True}
        run(stage, tiny_model_dir, folder, **kept)
        found[stage] = str(folder / f"{stage}.ckpt")
    return found


@pytest.mark.parametrize(("written_by", "stage"), permutations(STAGES, 2))
def test_a_stage_does_not_go_on_from_the_checkpoint_of_another(
    checkpoints, tiny_model_dir, tmp_path, written_by, stage
):
    with pytest.raises(CheckpointNotReadableError, match=rf"written by `{written_by}`, and this is `{stage}`.*hf/last"):
        run(stage, tiny_model_dir, tmp_path, checkpoints[written_by])


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_goes_on_from_its_own(checkpoints, tiny_model_dir, tmp_path, stage):
    module = run(stage, tiny_model_dir, tmp_path, checkpoints[stage])
    assert module.steps_done == 2
    assert module.trainer.global_step == 2


def test_a_module_is_not_loaded_from_the_checkpoint_of_another_stage(checkpoints):
    with pytest.raises(CheckpointNotReadableError, match="written by `dpo`, and this is `sft`"):
        SFTModule.load_from_checkpoint(checkpoints["dpo"])
    assert isinstance(DPOModule.load_from_checkpoint(checkpoints["dpo"]), DPOModule)


@pytest.mark.parametrize("subcommand", ["fit", "validate"])
def test_a_command_refuses_it_before_weights_load(
    checkpoints, tiny_model_dir, tmp_path, monkeypatch, capsys, subcommand
):
    monkeypatch.setattr(SFTModule, "configure_model", lambda self: pytest.fail("weights have loaded"))
    rows = write_rows(tmp_path / "rows.jsonl", WRITTEN)
    config = {
        "trainer": {"default_root_dir": str(tmp_path / "run"), "accelerator": "cpu", "devices": 1, "max_steps": 2},
        "model": {"model_name_or_path": str(tiny_model_dir)},
        "data": {"dataset": rows, "eval_dataset": rows, "batch_size": 3},
    }
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit):
        stage_cli.main("sft", [subcommand, "--config", str(tmp_path / "sft.yaml"), "--ckpt_path", checkpoints["dpo"]])
    assert "The checkpoint was written by `dpo`, and this is `sft`" in capsys.readouterr().err


def damaged(checkpoint: str, folder: Path) -> Path:
    path = folder / "cut.ckpt"
    path.write_bytes(Path(checkpoint).read_bytes()[:-100])
    return path


def test_python_says_of_a_damaged_checkpoint_what_the_command_says(checkpoints, tiny_model_dir, tmp_path, capsys):
    path = damaged(checkpoints["dpo"], tmp_path)
    (tmp_path / "whole.ckpt").write_bytes(Path(checkpoints["dpo"]).read_bytes())
    message = f"cut off, or not a checkpoint.*go on with --ckpt_path '{tmp_path / 'whole.ckpt'}'"
    with pytest.raises(CheckpointNotReadableError, match=message):
        run("dpo", tiny_model_dir, tmp_path, str(path))
    with pytest.raises(CheckpointNotReadableError, match=message):
        DPOModule.load_from_checkpoint(path)
    rows = write_rows(tmp_path / "rows.jsonl", PAIRS)
    data = GRPODataModule(dataset=rows, eval_dataset=rows, converter="dpo", batch_size=3)
    with pytest.raises(CheckpointNotReadableError, match=message):
        make_trainer(tmp_path).validate(DPOModule(model_name_or_path=str(tiny_model_dir)), data, ckpt_path=str(path))
    with pytest.raises(CheckpointNotReadableError, match=r"gone.ckpt cannot be used: there is no such file"):
        run("dpo", tiny_model_dir, tmp_path, str(tmp_path / "gone.ckpt"))
    command = ["--data.dataset", str(tmp_path / "rows.jsonl"), "--model.model_name_or_path", str(tiny_model_dir)]
    with pytest.raises(SystemExit):
        stage_cli.main("dpo", [*command, "--trainer.default_root_dir", str(tmp_path / "run"), "--ckpt_path", str(path)])
    assert "the file is cut off, or not a checkpoint. The newest intact one beside it is" in capsys.readouterr().err


def test_a_checkpoint_plugin_of_the_users_stays(tiny_model_dir, tmp_path):
    from lightning.pytorch.plugins.io import TorchCheckpointIO

    class Own(TorchCheckpointIO):
        """Of a user."""

    module, own = make_module(tiny_model_dir, num_generations=2, max_completion_length=2), Own()
    trainer = make_trainer(tmp_path, plugins=[own])
    trainer.fit(module, datamodule=make_data(tmp_path))
    assert trainer.strategy.checkpoint_io.plugin is own
    assert isinstance(module, GRPOModule)
