"""What a command could not write is said in a line, with what to do, and not in a traceback."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest
from commands.test_export_and_chat import make_run
from runs import write_prompts

from grpo_lightning.__main__ import main
from grpo_lightning.callbacks.run_lock import RunLock
from grpo_lightning.commands import export
from grpo_lightning.distributed.checkpoint_io import AtomicCheckpointIO, CheckpointNotWrittenError
from grpo_lightning.metrics.diagnostics import skipped_if_not_written
from grpo_lightning.rewards.runtime.process_state import ProcessState


@contextmanager
def bytes_in_a_file(limit: int) -> Iterator[None]:
    """Inside, this process writes so many bytes into a file at most: a real failed write, as on a full disk.

    Not a fixture, which would end after pytest has written the test's dot, maybe into a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def refused(tiny_model_dir, tmp_path, monkeypatch, capsys):
    """Runs a command in ``tmp_path``/run that cannot write there, and returns what it says about that."""

    def run(command: str) -> str:
        prompts = str(write_prompts(tmp_path / "prompts.jsonl"))
        options = {
            "trainer.default_root_dir": str(tmp_path / "run"),
            "trainer.accelerator": "cpu",
            "trainer.max_steps": "1",
            "trainer.enable_progress_bar": "false",
            "model.model_name_or_path": str(tiny_model_dir),
            "model.rewards": "accuracy",
            "model.generator": "TransformersGenerator",
            "data.dataset": prompts,
            "data.eval_dataset": prompts,
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        monkeypatch.setattr("sys.argv", ["grpo_lightning", command, *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        assert ended.value.code == 1
        assert "First step" not in shown.out
        return shown.err

    return run


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_config_that_cannot_be_written_is_named_before_weights_load(command, refused):
    said = "run/logs/version_0/config.yaml could not be written ([Errno 27] File too large). Free disk space, or set a trainer"
    with bytes_in_a_file(1024):
        assert said in refused(command)


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_folder_for_numbers_that_cannot_be_made_is_named_before_weights_load(command, refused, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/logs").write_text("a note of the user's")
    assert re.search(
        r"run/logs/version_0 could not be written \(.*\)\. Free disk space, or set a trainer", refused(command)
    )


def test_an_export_that_cannot_be_written_is_one_line(tiny_model_dir, tmp_path, capsys):
    make_run(tmp_path / "run", tiny_model_dir)
    with bytes_in_a_file(1024):
        assert export.main([str(tmp_path / "run"), str(tmp_path / "hf")]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(r"The export .*hf could not be written \(.*\)\. Free disk space", said)
    assert not (tmp_path / "hf").exists()


def test_a_folder_is_released_though_its_lock_file_took_no_word(tmp_path):
    with bytes_in_a_file(0):
        RunLock(tmp_path).release()
    assert (tmp_path / "run.lock").read_text() == ""
    RunLock(tmp_path).release()


@contextmanager
def no_further_file() -> Iterator[None]:
    """Inside, this process can open no file: one that is open has the last number that it may have."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(30)]  # fills holes in the numbers below the limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(held), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for each in held:
            os.close(each)


def test_too_many_open_files_are_no_full_disk_and_no_change_of_a_reward(tmp_path, caplog):
    """A reward that leaves its connections open had a run say to free disk space, and was said to have changed os.umask."""
    state = ProcessState()
    with pytest.warns(UserWarning, match=r"log.csv could not be written .*ulimit -n") as said, no_further_file():
        with pytest.raises(
            CheckpointNotWrittenError, match=r"Too many open files.*ulimit -n.*then go on with"
        ) as ended:
            AtomicCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt")
        with skipped_if_not_written(tmp_path / "log.csv"):
            (tmp_path / "log.csv").touch()
    assert not any("disk" in str(each) for each in (ended.value, *(warning.message for warning in said)))
    with no_further_file_after(state.call("leaky")):
        pass
    assert not caplog.records


@contextmanager
def no_further_file_after(call: AbstractContextManager[None]) -> Iterator[None]:
    """A call that begins with files to open and ends without."""
    with ExitStack() as inside:
        inside.enter_context(call)
        with no_further_file():
            yield
            inside.close()
