"""Ranks that start with the command: they import beside the first one, and leave nothing behind whatever happens to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from two_rank_runs import NEVER_ENDS, NOTES_THE_IMPORT, environment, trained, write_run

from grpo_lightning import __version__
from grpo_lightning.commands.settings.ranks import LAUNCHERS, ranks_here, visible_gpus
from grpo_lightning.distributed import early_ranks
from grpo_lightning.distributed.early_ranks import PROGRAM, EarlyRank, dismiss_early, run_rank, start_early

T = TypeVar("T")
SECONDS = 300
REWARDS = """
import json, os, signal, sys
from pathlib import Path

def digits(completions, **columns):
    main, rank = sys.modules["__main__"], os.environ.get("LOCAL_RANK", "0")
    Path(f"rank{rank}.json").write_text(json.dumps({
        "pid": os.getpid(),
        "started": int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]),
        "command": Path("/proc/self/cmdline").read_text().split("\\0")[1:-1],
        "arguments": sys.argv[1:],
        "main": getattr(main.__spec__, "name", None),
        "path": sys.path,
        "variables": dict(os.environ),
        "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        "input": os.readlink("/proc/self/fd/0"),
    }))
    return [sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions]
"""


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A config for two ranks, and its reward beside it."""
    write_run(tmp_path, tiny_model_dir, REWARDS, {"trainer": {"devices": 2, "max_steps": 2}})
    return tmp_path


def start(
    folder: Path, *options: str, run: str = "run", program: tuple[str, ...] = (), **more: str
) -> subprocess.Popen:
    """A run as from a shell, in a process group of its own, as a terminal gives it."""
    return subprocess.Popen(
        [
            *(program or (sys.executable, "-m", "grpo_lightning")),
            *("fit", "--config", "run.yaml", "--trainer.default_root_dir", run, *options),
        ],
        cwd=folder,
        env=environment(folder, FOLDER=str(folder), **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def processes(folder: Path) -> Iterator[tuple[int, list[str]]]:
    """Process ids and arguments of what was started in this folder and still runs, its children too."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and f"FOLDER={folder}" in (entry / "environ").read_text().split("\0"):
                yield int(entry.name), (entry / "cmdline").read_text().split("\0")[1:-1]
        except (OSError, UnicodeDecodeError):  # ended meanwhile, or another user's
            continue


def waiting(folder: Path) -> list[list[str]]:
    """Arguments of the ranks that were started with the command."""
    return [arguments for _, arguments in processes(folder) if PROGRAM in arguments]


def soon(read: Callable[[], T]) -> T:
    """What ``read`` gives as soon as that is something, or once ``SECONDS`` have gone by."""
    limit = time.monotonic() + SECONDS
    while not (found := read()) and time.monotonic() < limit:
        time.sleep(0.02)
    return found


def all_have_ended(folder: Path) -> bool:
    return not list(processes(folder))


def told(folder: Path, rank: int) -> dict:
    return json.loads((folder / f"rank{rank}.json").read_text())


def test_the_second_rank_starts_with_the_command_and_is_what_lightning_would_have_started(folder):
    (folder / "sitecustomize.py").write_text(NOTES_THE_IMPORT)
    begun = start(folder)
    output, _ = begun.communicate(timeout=SECONDS)
    assert begun.returncode == 0, output
    first, second = told(folder, 0), told(folder, 1)
    assert second["command"][:2] == ["-m", PROGRAM] and second["command"][4:] == second["arguments"]
    # Before the first one's imports: Lightning, which would have started it otherwise, has not been loaded then.
    assert first["started"] <= second["started"] <= float((folder / "torch0").read_text())
    assert second["main"] == first["main"] == "grpo_lightning.__main__"
    for same in ("arguments", "path", "interrupt", "blocked", "input"):
        assert second[same] == first[same], same
    own = {"LOCAL_RANK"}
    assert {name: value for name, value in second["variables"].items() if name not in own} == {
        name: value for name, value in first["variables"].items() if name not in own
    }
    assert output.count("importing torch, Lightning and transformers") == 1
    assert output.count("First step done ") == 1
    assert all_have_ended(folder)

    script = folder / "train.py"  # a script's other ranks are that script: Lightning starts them, in fit
    script.write_text("from grpo_lightning.__main__ import main\nmain()\n")
    output, _ = (by_lightning := start(folder, run="script", program=(sys.executable, "train.py"))).communicate()
    assert by_lightning.returncode == 0, output
    assert told(folder, 1)["command"][0].endswith("train.py")
    torch.testing.assert_close(trained(folder / "run"), trained(folder / "script"), rtol=0, atol=0)


def test_the_installed_command_starts_ranks_early_too(folder):
    script = folder / "bin" / "grpo_lightning"
    script.parent.mkdir()
    script.write_text("import sys\nfrom grpo_lightning.__main__ import main\nsys.exit(main())\n")  # as pip writes it
    begun = start(folder, program=(sys.executable, str(script)))
    (second,) = soon(lambda: waiting(folder))
    assert second[:2] == ["-m", PROGRAM] and second[4:] == begun.args[2:]
    assert begun.poll() is None, "the first rank had not trained yet"
    begun.kill()
    begun.communicate(timeout=SECONDS)
    assert soon(lambda: all_have_ended(folder))


@contextmanager
def one_waiting(folder: Path, monkeypatch) -> Iterator[EarlyRank]:
    """A rank that waits to be told what to run, as the command has started it."""
    monkeypatch.setenv("FOLDER", str(folder))
    start_early(2, "json", ["--version"])
    try:
        yield early_ranks._waiting[1]
    finally:
        dismiss_early()
    assert all_have_ended(folder)


def version_told_by(rank: subprocess.Popen, capfd) -> str:
    assert rank.wait(timeout=SECONDS) == 0
    return capfd.readouterr().out.split()[-1]


def test_a_rank_that_waits_runs_what_it_is_told(tmp_path, monkeypatch, capfd):
    with one_waiting(tmp_path, monkeypatch) as early:
        rank = run_rank(1, ["--version"], {**os.environ, "MASTER_PORT": "77"})
        assert rank is early.process
        assert version_told_by(rank, capfd) == __version__


@pytest.mark.parametrize("change", [{"HF_HUB_DOWNLOAD_TIMEOUT": "77"}, {"OMP_NUM_THREADS": "7"}])
def test_a_variable_that_is_read_at_import_and_was_set_too_late_for_that_starts_the_rank_anew(
    tmp_path, monkeypatch, change, capfd
):
    with one_waiting(tmp_path, monkeypatch) as early:
        rank = run_rank(1, ["--version"], {**os.environ, **change})
        assert rank is not early.process
        assert early.process.poll() is not None
        assert version_told_by(rank, capfd) == __version__


def test_a_rank_that_was_lost_while_it_waited_is_started_anew(tmp_path, monkeypatch, capfd):
    with one_waiting(tmp_path, monkeypatch) as early:
        early.process.kill()
        early.process.wait()
        rank = run_rank(1, ["--version"], {**os.environ})
        assert rank is not early.process
        assert version_told_by(rank, capfd) == __version__


def test_ranks_that_nobody_asks_for_end(folder):
    (folder / "rewards_here.py").write_text(NEVER_ENDS)
    (folder / "one.yaml").write_text("trainer: {devices: 1, strategy: auto}\n")  # a later file, which has the last word
    begun = start(folder, "--trainer.devices", "2", "--config", "one.yaml")
    assert soon(lambda: waiting(folder)), "no rank was started with the command"
    assert soon((folder / "reached").exists), "the run does not start"
    # Beside it is only what watches over rewards.
    assert [pid for pid, words in processes(folder) if words[:1] == ["-m"]] == [begun.pid]
    assert json.loads((folder / "run" / "system.json").read_text())["ranks"] == 1
    begun.kill()
    begun.communicate(timeout=SECONDS)


def test_a_run_that_is_refused_leaves_no_rank_and_says_why_once(folder):
    begun = start(folder, "--trainer.strategy", "nonsense")
    assert soon(lambda: waiting(folder)), "no rank was started with the command"
    output, _ = begun.communicate(timeout=SECONDS)  # until the waiting rank, which writes here too, has ended
    assert begun.returncode == 2, output
    assert output.count("trainer.strategy=nonsense") == 1
    assert "Traceback" not in output
    assert all_have_ended(folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("seconds", [0.0, 1.5])
def test_the_end_of_the_first_rank_ends_those_that_wait_without_a_word(folder, number, seconds):
    """Ctrl-C reaches all of them, as from a terminal; the other signals the first one alone."""
    begun = start(folder)
    assert soon(lambda: waiting(folder)), "no rank was started with the command"
    time.sleep(seconds)
    assert begun.poll() is None
    if number == signal.SIGINT:
        os.killpg(begun.pid, number)
    else:
        begun.send_signal(number)
    output, _ = begun.communicate(timeout=SECONDS)
    assert begun.returncode != 0
    assert soon(lambda: all_have_ended(folder)), "a rank goes on"
    assert output.count("KeyboardInterrupt") <= (number == signal.SIGINT)  # the first one's own
    assert PROGRAM.rpartition(".")[2] not in output


def test_a_first_rank_that_is_killed_before_the_ranks_are_connected_leaves_none(folder):
    (folder / "slow_data.py").write_text(
        "import os, time\n"
        "def rows(row):\n"
        "    open('reached' + os.environ['LOCAL_RANK'], 'w').close()\n"
        "    time.sleep(300)\n"
    )
    begun = start(folder, "--data.converter", "slow_data.rows")
    assert soon((folder / "reached0").exists), "no data was read"
    assert waiting(folder), "there is a second rank to be left behind"
    begun.kill()
    output, _ = begun.communicate(timeout=SECONDS)
    assert begun.returncode == -signal.SIGKILL
    assert soon(lambda: all_have_ended(folder)), "a rank goes on"
    assert not (folder / "run" / "checkpoints").exists(), output


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--trainer.devices", "3"], 3),
        (["--trainer.devices=3", "--trainer.devices=2"], 2),
        (["--trainer.devices", "0,1"], 2),
        (["--trainer.devices", "[0, 2, 3]"], 3),
        (["--trainer.devices", "auto"], 1),
        (["--trainer.devices", "-1"], 1),
        (["--trainer.devices", "1000"], 4),
        (["--trainer", "trainer.yaml"], 1),
        ([], 2),
    ],
)
def test_the_number_of_ranks_is_read_from_the_settings(tmp_path, monkeypatch, options, expected):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    (tmp_path / "run.yaml").write_text("trainer: {devices: 2, accelerator: cpu}\n")
    words = ["--config", str(tmp_path / "run.yaml"), *options]
    assert ranks_here(words) == expected
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert ranks_here(words) == 1


def test_gpus_are_counted_by_the_systems_files_and_the_users_choice(tmp_path, monkeypatch):
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    for chosen, count in (("0,1", 2), ("", 0), ("-1", 0), ("1", 1), ("GPU-8932f937,GPU-46da7a13", 2)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        assert visible_gpus(tmp_path) == count
        assert visible_gpus(tmp_path / "none") == 0
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus(tmp_path) == 3
