"""A run in the folder of an earlier one loses nothing of it, and is told how to go on from what it has saved itself."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from fork_server import CONTEXT
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import make_data, make_module, make_trainer

from grpo_lightning.callbacks import CompletionWriter, EarlierRun, HuggingFaceExport
from grpo_lightning.callbacks.earlier_run import check_own_start, goes_on_in_place, newest_checkpoint, put_aside
from grpo_lightning.commands.cli import main
from grpo_lightning.commands.saved_policy import find_config
from grpo_lightning.distributed import moved_folder
from grpo_lightning.distributed.checkpoint_io import AtomicCheckpointIO
from grpo_lightning.distributed.rank_watch import how_to_continue
from grpo_lightning.errors import ExplainedError
from grpo_lightning.report.metrics import launch_directories

WAITED = 77
"""An exit status that nothing else has."""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def options(tiny_model_dir, tmp_path):
    """Of a run in ``tmp_path/run``, whose data lie beside it."""
    make_data(tmp_path)
    settings = {
        "trainer.default_root_dir": tmp_path / "run",
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
    return [f"--{name}={value}" for name, value in settings.items()]


def steps_saved(place):
    return torch.load(place / "checkpoints" / "last.ckpt", weights_only=True)["steps_done"]


def test_a_fresh_start_puts_the_earlier_run_aside_and_a_continued_one_goes_on_in_its_place(
    options, tiny_model_dir, tmp_path, capsys, monkeypatch, recwarn
):
    root = tmp_path / "run"

    def run(max_steps, *further):
        main(["fit", *options, f"--trainer.max_steps={max_steps}", *further])

    run(3)
    kept = ["checkpoints", "completions", "hf", "logs", "run.lock", "system.json"]
    assert len(names(root / "completions")) == 3 and names(root) == kept
    said = r"other settings, which apply from the next step on: model.epsilon was not set, is 0.3\."
    with pytest.warns(UserWarning, match=said):
        run(4, "--ckpt_path=last", "--model.epsilon=0.3")
    assert len(names(root / "completions")) == 4 and names(root) == kept
    assert "earlier" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(1, "--data.batch_size=100")  # refused once the data are there
    with pytest.raises(SystemExit):
        run(1, f"--model.model_name_or_path={root / 'hf' / 'last'}")  # which would be put aside
    assert "Set another trainer.default_root_dir." in capsys.readouterr().err
    run(1, "--trainer.fast_dev_run=true")
    assert names(root) == sorted([*kept, "fast_dev_run"]) and steps_saved(root) == 4
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run(5)  # the same command, queued again
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    assert steps_saved(root) == 5
    shutil.rmtree(root / "fast_dev_run")
    run(1)
    assert len(names(root / "completions")) == 1
    assert len(names(root / "earlier" / "1" / "completions")) == steps_saved(root / "earlier" / "1") == 5
    earlier = root / "earlier" / "1"
    assert names(earlier) == [name for name in kept if name != "run.lock"]
    assert names(earlier / "logs") == [f"version_{number}" for number in range(4)]
    assert names(root / "logs") == ["version_4"]
    page = Path(__file__).parents[2].joinpath("docs/quickstart.md").read_text(encoding="utf-8")
    left = re.findall(r"^\| `([\w./]+)` \|", page, re.MULTILINE)
    assert "checkpoints/last.ckpt" in left
    assert not [path for path in left if not [*root.glob(path.replace("_N", "_*"))]], "docs/quickstart.md names them"
    assert find_config(earlier / "checkpoints" / "last.ckpt") == earlier / "logs" / "version_3" / "config.yaml"
    assert launch_directories(root) == [root / "logs" / "version_4"]
    moved = f"All of it is now in {earlier}; --trainer.default_root_dir {earlier} --ckpt_path last"
    assert moved in capsys.readouterr().out
    evaluate = [option for option in options if "--checkpoint." not in option]
    evaluate += [f"--data.eval_dataset={tmp_path / 'train.jsonl'}", "--trainer.limit_val_batches=1"]
    main(["validate", *evaluate])
    assert f"Weights of {tiny_model_dir} as they were before training" in capsys.readouterr().out
    recwarn.clear()
    main(["validate", *evaluate, "--ckpt_path=last"])  # with an eval_dataset that training did not have
    assert not [warning for warning in recwarn if "other settings" in str(warning.message)]
    run(1)
    assert names(root) == [*kept[:2], "earlier", *kept[2:]]
    assert names(root / "earlier") == ["1", "2"]
    assert f"{root / 'earlier'} holds 2 earlier runs, 0.0 GB; remove those" in capsys.readouterr().out


def test_a_folder_without_results_is_left_alone(tmp_path):
    assert put_aside(tmp_path / "new") is None
    (tmp_path / "checkpoints").mkdir()
    assert put_aside(tmp_path) is None and names(tmp_path) == ["checkpoints"]


def test_forty_earlier_runs_are_one_entry_of_the_folder_and_no_number_is_used_twice(tmp_path):
    for number in range(1, 41):
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "last.ckpt").write_text(str(number))
        place = put_aside(tmp_path)
        assert place == tmp_path / "earlier" / str(number)
        assert (place / "checkpoints" / "last.ckpt").read_text() == str(number)
    assert names(tmp_path) == ["earlier"]
    shutil.rmtree(tmp_path / "earlier" / "7")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert put_aside(tmp_path) == tmp_path / "earlier" / "41"  # not among older ones


def test_the_newest_of_the_last_checkpoints_counts_and_another_name_where_there_is_none(tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    assert newest_checkpoint(tmp_path, [folder]) is None  # a first start with --ckpt_path last, as job scripts do
    (folder / "epoch=0-step=2.ckpt").touch()
    assert newest_checkpoint(tmp_path, [folder]) == folder / "epoch=0-step=2.ckpt"
    (folder / "last.ckpt").symlink_to("epoch=0-step=1.ckpt")  # killed before the link was renewed
    assert newest_checkpoint(tmp_path, [folder]) == folder / "epoch=0-step=2.ckpt"
    (folder / "last.ckpt").unlink()
    (tmp_path / "hpc_ckpt_1.ckpt").touch()
    assert newest_checkpoint(tmp_path, [folder]) == tmp_path / "hpc_ckpt_1.ckpt"
    (folder / "last.ckpt").touch()
    os.utime(tmp_path / "hpc_ckpt_1.ckpt", (1, 1))
    assert newest_checkpoint(tmp_path, [folder]) == folder / "last.ckpt"
    os.utime(folder / "last.ckpt", (0, 0))
    assert newest_checkpoint(tmp_path, [folder]) == tmp_path / "hpc_ckpt_1.ckpt"


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


def is_in_a_job_of_slurms(monkeypatch):
    job = {"NTASKS": "1", "JOB_NAME": "grpo", "JOB_ID": "7", "PROCID": "0", "LOCALID": "0", "NODELIST": "localhost"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


class LooksAround:
    """Notes what is in a folder while it is being saved."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        SEEN.extend(names(self.folder))
        return (str, ())


SEEN = []


def test_a_script_goes_on_from_what_was_saved_for_it_though_a_later_one_was_half_written(
    tiny_model_dir, tmp_path, monkeypatch
):
    """Only the command line removed it, and Lightning looked for the checkpoint that it would have become."""
    root = tmp_path / "run"
    trainer = make_trainer(root, 1)
    trainer.fit(make_module(tiny_model_dir), datamodule=make_data(tmp_path))
    trainer.save_checkpoint(root / "hpc_ckpt_1.ckpt")
    AtomicCheckpointIO().save_checkpoint({"looks": LooksAround(root)}, root / "hpc_ckpt_2.ckpt")
    (root / "hpc_ckpt_2.ckpt").unlink()
    (half,) = {name for name in SEEN if name.endswith(".part")}
    (root / half).write_bytes(b"half of it")
    is_in_a_job_of_slurms(monkeypatch)
    trainer = make_trainer(root, 2)
    trainer.fit(make_module(tiny_model_dir), datamodule=make_data(tmp_path))
    assert trainer.global_step == 2 and trainer.ckpt_path == str(root / "hpc_ckpt_1.ckpt")


@pytest.mark.parametrize("of_before", [False, True])
@pytest.mark.parametrize("is_directory", [False, True], ids=["file", "directory"])
@pytest.mark.parametrize("saved", [0, 1])
def test_a_job_goes_on_from_what_was_saved_for_it_though_a_later_one_was_half_written(
    saved, is_directory, of_before, options, tmp_path, monkeypatch
):
    """Lightning looks for the highest number, which it reads of half-written ones as well."""
    root = tmp_path / "run"
    main(["fit", *options, "--trainer.max_steps=1"])
    if saved:
        (root / "checkpoints" / "last.ckpt").rename(root / "hpc_ckpt_1.ckpt")
    target = root / f"hpc_ckpt_{saved + 1}.ckpt"
    half = target.with_name(f"{target.name}.part") if of_before else moved_folder.part_of(target)
    half.mkdir() if is_directory else half.write_bytes(b"half of it")
    is_in_a_job_of_slurms(monkeypatch)
    main(["fit", *options, "--trainer.max_steps=2"])
    assert steps_saved(root) == 2 and not half.exists()
    assert (root / "earlier").exists() == (not saved)


def be_the_second_rank(options):
    """Of a job of SLURM's, until it waits for the first."""
    job = {
        "NTASKS": "2",
        "NTASKS_PER_NODE": "2",
        "JOB_NAME": "grpo",
        "JOB_ID": "7",
        "NODELIST": "localhost",
        "NODEID": "0",
    }
    os.environ.update({f"SLURM_{name}": value for name, value in (job | {"PROCID": "1", "LOCALID": "1"}).items()})

    def sleep(seconds):
        os._exit(WAITED)

    moved_folder.sleep = sleep
    main(["fit", *options, "--trainer.max_steps=1", "--trainer.devices=2"])


def test_a_rank_without_the_lock_removes_nothing_that_a_run_may_be_writing(options, tmp_path):
    part = tmp_path / "run" / "hpc_ckpt_1.ckpt.part"
    part.parent.mkdir()
    part.write_bytes(b"half of it")
    process = CONTEXT.Process(target=be_the_second_rank, args=(options,))
    process.start()
    process.join()
    assert process.exitcode == WAITED and part.read_bytes() == b"half of it"


def test_files_in_places_of_their_own_are_put_aside_too(tiny_model_dir, tmp_path):
    make_data(tmp_path)
    places = {name: tmp_path / name for name in ("checkpoints", "completions", "exports")}

    def run(max_steps):
        folders = [
            ModelCheckpoint(places["checkpoints"], save_last=True),
            CompletionWriter(str(places["completions"])),
            HuggingFaceExport(str(places["exports"])),
        ]
        trainer = make_trainer(
            tmp_path / "run", max_steps=max_steps, callbacks=[EarlierRun(), *folders], enable_checkpointing=True
        )
        trainer.fit(make_module(tiny_model_dir), datamodule=make_data(tmp_path))

    run(2)
    run(1)
    assert [len(names(tmp_path / f"completions{number}")) for number in ("", "-earlier/1")] == [1, 2]
    assert names(tmp_path / "exports-earlier/1") == names(tmp_path / "exports") == ["last"]
    assert (tmp_path / "checkpoints-earlier/1" / "last.ckpt").exists()


def train(model_dir, root, max_steps, folders, ckpt_path=None):
    """A run in ``root`` whose callbacks write into ``folders``: checkpoints, completions, exports."""
    callbacks = [
        EarlierRun(),
        ModelCheckpoint(folders[0], save_last=True),
        CompletionWriter(str(folders[1])),
        HuggingFaceExport(str(folders[2])),
    ]
    trainer = make_trainer(root, max_steps, callbacks=callbacks, enable_checkpointing=True)
    trainer.fit(make_module(model_dir), datamodule=make_data(root.parent), ckpt_path=ckpt_path)
    return trainer


def test_a_folder_that_is_the_runs_own_or_holds_it_loses_nothing_but_an_earlier_runs_files(tiny_model_dir, tmp_path):
    root = tmp_path / "run"
    (root / "logs" / "mine").mkdir(parents=True)
    for name in ("run.lock", "logs/mine/metrics.csv", "../notes.txt"):
        (root / name).write_text("kept")
    folders = [root, root / "texts", tmp_path]
    train(tiny_model_dir, root, 2, folders)
    assert not (root / "earlier").exists() and not (tmp_path.parent / f"{tmp_path.name}-earlier").exists()
    trainer = train(tiny_model_dir, root, 1, folders)
    for name in ("run.lock", "logs/mine/metrics.csv", "../notes.txt"):
        assert (root / name).read_text() == "kept"
    old = root / "earlier" / "1"
    assert torch.load(root / "last.ckpt", weights_only=True)["steps_done"] == 1
    assert torch.load(old / "last.ckpt", weights_only=True)["steps_done"] == 2
    assert [len(names(place / "texts")) for place in (root, old)] == [1, 2]
    exports = tmp_path.parent / f"{tmp_path.name}-earlier" / "1"
    assert names(exports) == ["last"] and (tmp_path / "last" / "model.safetensors").exists()
    with pytest.raises(ValueError, match=r"model\.model_name_or_path=.* would put its own results in its place"):
        check_own_start(trainer, model_name_or_path=str(tmp_path / "last"))
    check_own_start(trainer, model_name_or_path=str(exports / "last"))


def test_a_run_that_goes_on_from_another_runs_checkpoint_overwrites_nothing_of_the_one_that_was_there(
    tiny_model_dir, tmp_path
):
    one, two = tmp_path / "one", tmp_path / "two"
    for root, steps in ((one, 1), (two, 3)):
        train(tiny_model_dir, root, steps, [root / "checkpoints", root / "completions", root / "hf"])
    folders = [two / "checkpoints", two / "completions", two / "hf"]
    train(tiny_model_dir, two, 2, folders, ckpt_path=one / "checkpoints" / "last.ckpt")
    assert steps_saved(two / "earlier" / "1") == 3 and len(names(two / "earlier" / "1" / "completions")) == 3
    assert steps_saved(two) == 2 and names(two / "completions") == ["step-00000001.rank0.parquet"]
    train(tiny_model_dir, two, 3, folders, ckpt_path=two / "checkpoints" / "last.ckpt")
    assert names(two / "earlier") == ["1"] and steps_saved(two) == 3
    train(tiny_model_dir, two, 4, folders, ckpt_path=two / "earlier" / "1" / "checkpoints" / "last.ckpt")
    assert names(two / "earlier") == ["1", "2"] and steps_saved(two / "earlier" / "1") == 3 and steps_saved(two) == 4


def test_which_checkpoints_a_run_goes_on_from_in_its_place(tmp_path):
    outside = tmp_path / "outside"
    mine = [tmp_path / "run" / "copy.ckpt", tmp_path / "run" / "checkpoints" / "last.ckpt", outside / "last.ckpt"]
    others = [None, tmp_path / "run" / "earlier" / "1" / "checkpoints" / "last.ckpt", outside / "below" / "last.ckpt"]
    places = [*mine, "s3://bucket/last.ckpt", *others]
    assert [goes_on_in_place(path, tmp_path / "run", [outside]) for path in places] == [True] * 4 + [False] * 3


def test_a_start_that_was_killed_while_it_put_a_run_aside_is_completed_by_the_next(tmp_path, monkeypatch):
    for name in ("checkpoints/last.ckpt", "completions/a.parquet", "hf/last/x", "logs/version_0/metrics.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    replace, moved = os.replace, []

    def killed_after_two(source, target):
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(source.name)
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed_after_two)
        put_aside(tmp_path)
    assert moved == ["checkpoints", "completions"] and names(tmp_path / "earlier") == ["moving"]
    place = put_aside(tmp_path)
    assert place == tmp_path / "earlier" / "1" and names(tmp_path / "earlier") == ["1"]
    assert names(place) == ["checkpoints", "completions", "hf", "logs"] and put_aside(tmp_path) is None


def test_a_run_that_cannot_be_put_aside_is_said_in_one_line(tiny_model_dir, tmp_path):
    root = tmp_path / "run"
    folders = [root / "checkpoints", root / "completions", root / "hf"]
    train(tiny_model_dir, root, 1, folders)
    (root / "earlier").touch()
    with pytest.raises(ExplainedError, match="holds an earlier run, which cannot be put aside"):
        train(tiny_model_dir, root, 2, folders)
    assert steps_saved(root) == 1


def test_a_move_that_a_kill_left_and_that_cannot_be_finished_is_said_in_one_line(tiny_model_dir, tmp_path, monkeypatch):
    root = tmp_path / "run"
    folders = [root / "checkpoints", root / "completions", root / "hf"]
    train(tiny_model_dir, root, 1, folders)
    (root / "checkpoints" / "gone.ckpt.old").mkdir()

    def fails(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(moved_folder, "finish_move", fails)
    with pytest.raises(ExplainedError, match=r"cannot be put aside \(.*Permission denied.*gone\.ckpt"):
        train(tiny_model_dir, root, 2, folders)
    assert steps_saved(root) == 1


def test_settings_of_data_that_cannot_go_on_are_not_said_to_apply(options, capsys, recwarn):
    """They were in a warning, and refused right behind it."""
    main(["fit", *options, "--trainer.max_steps=1"])
    recwarn.clear()
    with pytest.raises(SystemExit):
        main(["fit", *options, "--trainer.max_steps=4", "--ckpt_path=last", "--data.batch_size=3"])
    assert "data.batch_size times devices was 2 and is 3" in capsys.readouterr().err
    assert not [warning for warning in recwarn if "other settings" in str(warning.message)]
