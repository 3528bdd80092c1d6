"""When a rank ends, the others end too, soon, and say which rank it was and where."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from ending_ranks import SECONDS, end_of_ranks, fail, fail_and_hang, fit_until, interrupt, kill
from runs import write_prompts

from grpo_lightning.distributed.lifeline import Lifeline

REWARDS = """
import os, time

def digits(completions, trainer_state, **columns):
    '''Share of digits; in the second step every rank says that it is there and waits for its end.'''
    if trainer_state.global_step == 1:
        with open(f"reached{os.environ['LOCAL_RANK']}", "w") as file:
            file.write(str(os.getpid()))
        time.sleep(300)
    return [sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions]
"""


def ended_in(phase: str) -> str:
    return "evaluation" if phase == "evaluation" else f"step 2, phase {phase}"


@pytest.mark.parametrize("leaving", [0, 1])
@pytest.mark.parametrize("phase", ["generate", "rewards", "train", "evaluation"])
def test_a_rank_that_is_killed_ends_the_others_which_name_it_and_its_phase(tiny_model_dir, tmp_path, phase, leaving):
    ranks = end_of_ranks(3, fit_until, tmp_path, tiny_model_dir, phase, leaving, kill)
    assert ranks.pop(leaving).code == -signal.SIGKILL
    for rank in ranks:
        assert (rank.code, rank.seconds < SECONDS) == (1, True)
        assert re.search(rf"Rank {leaving} \(process \d+ on \S+\) ended in {ended_in(phase)}\.", rank.output)
        assert " failed in " not in rank.output  # a collective that broke is a consequence, not the reason


@pytest.mark.parametrize(("phase", "leaving"), [("rewards", 1), ("train", 0), ("evaluation", 2)])
def test_an_error_on_one_rank_is_named_on_the_others(tiny_model_dir, tmp_path, phase, leaving):
    ranks = end_of_ranks(3, fit_until, tmp_path, tiny_model_dir, phase, leaving, fail)
    failed = ranks.pop(leaving)
    assert failed.code == 1
    assert f"ArithmeticError: one rank only\n[rank{leaving}]: On rank {leaving}, in {ended_in(phase)}." in failed.output
    for rank in ranks:
        assert rank.code == 1
        assert f") failed in {ended_in(phase)}: ArithmeticError: one rank only" in rank.output
        assert set(re.findall(r"Rank (\d) \(", rank.output)) == {str(leaving)}


@pytest.mark.parametrize(("phase", "leaving"), [("generate", 1), ("train", 0), ("train", 1), ("evaluation", 2)])
def test_ctrl_c_ends_all_ranks_with_one_message_and_no_traceback(tiny_model_dir, tmp_path, phase, leaving):
    ranks = end_of_ranks(3, fit_until, tmp_path, tiny_model_dir, phase, leaving, interrupt)
    assert [rank.code for rank in ranks] == [1, 1, 1]
    together = "".join(rank.output for rank in ranks)
    assert "Traceback" not in together and "cannot go on" not in together
    assert len(re.findall(r"^Stopped in .*\. No checkpoint has been saved yet", together, re.MULTILINE)) == 1


def test_a_rank_that_is_stuck_in_what_it_releases_after_its_error_ends_too(tiny_model_dir, tmp_path):
    ranks = end_of_ranks(2, fit_until, tmp_path, tiny_model_dir, "train", 1, fail_and_hang)
    assert [rank.code for rank in ranks] == [1, 1]
    assert "ArithmeticError: one rank only\nOn rank 1, in step 2, phase train." in ranks[1].output


def test_ranks_that_are_stuck_end_after_the_first_rank_was_killed(tiny_model_dir, tmp_path):
    (tmp_path / "waiting_rewards.py").write_text(REWARDS)
    config = {
        "trainer": {"default_root_dir": str(tmp_path / "run"), "accelerator": "cpu", "devices": 2, "strategy": "ddp"},
        "model": {
            "model_name_or_path": str(tiny_model_dir),
            "rewards": ["waiting_rewards.digits"],
            "generator": "TransformersGenerator",
            "num_generations": 2,
            "max_completion_length": 4,
        },
        "data": {"dataset": str(write_prompts(tmp_path / "train.jsonl")), "batch_size": 2},
    }
    config["trainer"] |= {"max_steps": 3, "enable_progress_bar": False}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    process = subprocess.Popen(
        [sys.executable, "-m", "grpo_lightning", "fit", "--config", "run.yaml"],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not all((tmp_path / f"reached{rank}").exists() for rank in range(2)):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=SECONDS)  # until the other rank, which writes here too, has ended
    assert "[rank 1] Rank 0 (" in output
    assert ") ended in step 2, phase" in output


def test_goodbyes_and_strangers_are_no_alarm_and_a_cut_connection_is():
    lost: dict[int, list[str]] = {0: [], 1: [], 2: []}
    shared: list[object] = []

    def note(rank: int):
        return lambda message, is_asked_for: lost[rank].append(message)

    first = Lifeline(0, "127.0.0.1", lambda value: shared.append(value) or value, note(0))
    second, third = (Lifeline(rank, "127.0.0.1", lambda value: shared[0], note(rank)) for rank in (1, 2))
    port, _ = shared[0]
    with socket.create_connection(("127.0.0.1", port), timeout=60) as stranger:
        stranger.shutdown(socket.SHUT_WR)
        assert stranger.recv(1) == b""  # its end was noticed
    second.close()
    third.say({"place": "step 7, phase generate"})
    while [peer.place for peer in list(first._peers.values())] != ["step 7, phase generate"]:  # both are heard
        time.sleep(0.01)
    assert lost == {0: [], 1: [], 2: []}
    for peer in list(third._peers):  # its own thread takes them out as it notices
        peer.shutdown(socket.SHUT_RDWR)  # what the kernel does when a process is killed
    while not lost[0]:
        time.sleep(0.05)
    assert lost[0][0].startswith("Rank 2 (") and lost[0][0].endswith(") ended in step 7, phase generate.")
    first.close()
