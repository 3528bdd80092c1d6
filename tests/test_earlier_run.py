"""A run in the folder of an earlier one loses nothing of it, and is told how to go on from what it has saved itself."""

from __future__ import annotations

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import make_data, make_module, make_trainer

from grpo_lightning.callbacks.earlier_run import check_last, put_aside
from grpo_lightning.callbacks.rank_watch import how_to_continue
from grpo_lightning.cli import main
from grpo_lightning.commands.saved_policy import find_config
from grpo_lightning.report.metrics import launch_directories


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_fresh_start_puts_the_earlier_run_aside_and_a_continued_one_goes_on_in_its_place(
    tiny_model_dir, tmp_path, capsys
):
    root = tmp_path / "run"
    make_data(tmp_path)
    options = {
        "trainer.default_root_dir": root,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "model.model_name_or_path": tiny_model_dir,
        "model.rewards": "runs.share_of_digits",
        "model.generator": "TransformersGenerator",
        "model.num_generations": 2,
        "model.max_completion_length": 4,
        "data.dataset": tmp_path / "train.jsonl",
        "data.batch_size": 2,
        "checkpoint.every_n_train_steps": 1,
    }

    def run(max_steps, *further):
        main(
            [
                "fit",
                *(f"--{name}={value}" for name, value in options.items()),
                f"--trainer.max_steps={max_steps}",
                *further,
            ]
        )

    run(3)
    kept = ["checkpoints", "completions", "hf", "logs", "system.json"]
    assert len(names(root / "completions")) == 3 and names(root) == kept
    with pytest.warns(UserWarning, match=r"that was made with other settings: model.epsilon was 0.2, is 0.3\."):
        run(4, "--ckpt_path=last", "--model.epsilon=0.3")
    assert len(names(root / "completions")) == 4 and names(root) == kept
    assert "earlier" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(1, "--data.batch_size=100")  # refused once the data are there
    assert names(root) == kept
    run(1)
    assert len(names(root / "completions")) == 1
    assert len(names(root / "earlier-1" / "completions")) == 4
    earlier = root / "earlier-1"
    assert names(earlier) == kept
    assert names(earlier / "logs") == ["version_0", "version_1", "version_2"]  # the last one was refused
    assert names(root / "logs") == ["version_3"]
    assert find_config(earlier / "checkpoints" / "last.ckpt") == earlier / "logs" / "version_1" / "config.yaml"
    assert launch_directories(root) == [root / "logs" / "version_3"]
    assert f"All of it is now in {earlier}." in capsys.readouterr().out
    main(
        [
            "validate",
            *(f"--{name}={value}" for name, value in options.items() if "checkpoint." not in name),
            f"--data.eval_dataset={tmp_path / 'train.jsonl'}",
            "--trainer.limit_val_batches=1",
        ]
    )
    assert f"Weights of {tiny_model_dir} as they were before training" in capsys.readouterr().out
    run(1)
    assert names(root) == [*kept[:2], "earlier-1", "earlier-2", *kept[2:]]


def test_an_empty_folder_and_one_that_slurm_has_queued_again_are_left_alone(tmp_path):
    assert put_aside(tmp_path / "new") is None
    (tmp_path / "checkpoints").mkdir()
    assert put_aside(tmp_path) is None
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "hpc_ckpt_1.ckpt").touch()
    assert put_aside(tmp_path) is None and names(tmp_path) == ["checkpoints", "hpc_ckpt_1.ckpt"]


def test_last_is_refused_where_only_another_checkpoint_is_there(tmp_path):
    check_last(tmp_path)  # a first start with --ckpt_path last, as job scripts do
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "epoch=0-step=2.ckpt").touch()
    with pytest.raises(ValueError, match=r"has no last.ckpt.* --ckpt_path '.*epoch=0-step=2.ckpt'"):
        check_last(tmp_path)
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    check_last(tmp_path)


def test_the_way_to_continue_is_a_checkpoint_that_this_run_has_saved(tiny_model_dir, tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoints = ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)
    trainer = make_trainer(tmp_path, callbacks=[checkpoints], enable_checkpointing=True)
    nothing = "No checkpoint has been saved yet: without --ckpt_path, the run starts again."
    assert how_to_continue(trainer) == nothing
    trainer.fit(make_module(tiny_model_dir), datamodule=make_data(tmp_path))
    assert how_to_continue(trainer) == "Continue with --ckpt_path last."
    (folder / "last.ckpt").unlink()
    (other,) = folder.iterdir()
    assert how_to_continue(trainer) == f"Continue with --ckpt_path '{other}'."
    other.unlink()
    assert how_to_continue(trainer) == nothing
    trainer.ckpt_path = "hpc_ckpt_1.ckpt"  # of a run that went on from it and was stopped early
    assert how_to_continue(trainer) == "Continue with --ckpt_path 'hpc_ckpt_1.ckpt'."
