"""When a rank ends, the others end too, soon, and say which rank it was and where."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from ranks import run_ranks
from runs import make_data, make_module, make_trainer, write_prompts

from grpo_lightning.lifeline import Lifeline

SECONDS = 60
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


def fail_in_the_second_step(folder: Path, model_dir: Path) -> None:
    module = make_module(model_dir)
    policy_loss = module.policy_loss

    def loss(*args: object) -> torch.Tensor:
        if module.steps_done == 1 and module.global_rank == 1:
            raise ArithmeticError("one rank only")
        return policy_loss(*args)

    module.policy_loss = loss
    make_trainer(folder, 3, devices=2, strategy="ddp").fit(module, datamodule=make_data(folder))


def test_an_error_on_one_rank_is_named_on_the_others(tiny_model_dir, tmp_path):
    with pytest.raises(AssertionError) as failure:
        run_ranks(2, fail_in_the_second_step, tmp_path, tiny_model_dir)
    ours, theirs = str(failure.value).split("rank 1: Traceback")
    assert "On rank 1, in step 2, phase train." in theirs
    assert "failed in step 2, phase train: ArithmeticError: one rank only" in ours
    assert "Rank 1 (process" in ours


def test_ranks_that_are_stuck_end_after_the_first_rank_was_killed(tiny_model_dir, tmp_path):
    (tmp_path / "waiting_rewards.py").write_text(REWARDS)
    config = {
        "trainer": {"default_root_dir": str(tmp_path / "run"), "accelerator": "cpu", "devices": 2, "strategy": "ddp"},
        "model": {
            "model_name_or_path": str(tiny_model_dir),
            "rewards": ["waiting_rewards.digits"],
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
    first = Lifeline(0, "127.0.0.1", lambda value: shared.append(value) or value, lost[0].append)
    second, third = (Lifeline(rank, "127.0.0.1", lambda value: shared[0], lost[rank].append) for rank in (1, 2))
    port, _ = shared[0]
    socket.create_connection(("127.0.0.1", port)).close()
    second.close()
    third.say({"place": "step 7, phase generate"})
    time.sleep(1.0)  # both are heard
    assert lost == {0: [], 1: [], 2: []}
    for peer in list(third._peers):  # its own thread takes them out as it notices
        peer.shutdown(socket.SHUT_RDWR)  # what the kernel does when a process is killed
    while not lost[0]:
        time.sleep(0.05)
    assert lost[0][0].startswith("Rank 2 (") and lost[0][0].endswith(") ended in step 7, phase generate.")
    first.close()
