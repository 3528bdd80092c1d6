"""Supervised fine-tuning and distillation that are killed, twice, go on as if nothing had happened: bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import yaml
from command_runs import CommandRun
from fake_vllm_server import fake_vllm
from runs import write_rows
from safetensors.torch import load_file
from taught_by_server import answers_of
from test_resume import logged
from toy_models import save_toy_model

STEPS = 7
"""Three epochs begin, of three steps each."""
KILLS = {"step": 3, "save": 5}
"""Inside of the fourth step, and while the checkpoint of the fifth is put together."""
WAITING = """
import os, time
from lightning.pytorch import Callback

class Waits(Callback):
    '''At the moment that KILL_IN names, until the test kills it there.'''

    def _wait(self, moment, module, step):
        if os.environ.get("KILL_IN") == moment and module.steps_done == step:
            open("reached", "w").close()
            time.sleep(60)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self._wait("step", module, {step})

    def on_save_checkpoint(self, trainer, module, checkpoint):
        self._wait("save", module, {save})
"""
WRITTEN = [
    {"prompt": f"{i}+{i}=", "completion": str(2 * i), "who": "abcd"[i % 4], "way": f"{i} twice"} for i in range(9)
]
DISTILLED: dict[str, Any] = {
    "rewards": ["runs.share_of_digits"],
    "generator": {"class_path": "TransformersGenerator"},
    "num_generations": 2,
    "max_completion_length": 6,
    "sync_ref_model": True,
    "ref_model_sync_steps": 2,
}


def config_of(folder: Path, model_dir: Path, stage: str, own: dict[str, Any]) -> None:
    """``run.yaml``, with adapters, a warm-up, evaluations and a checkpoint of each step."""
    (folder / "waiting.py").write_text(WAITING.format(**KILLS))
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}
    warm_up = {
        "class_path": "grpo_lightning.modules.schedules.WarmupSchedule",
        "init_args": {"warmup_steps": 3, "total_steps": 20, "shape": "cosine"},
    }
    rows = write_rows(folder / "rows.jsonl", WRITTEN)
    config = {
        "trainer": {
            **{"default_root_dir": str(folder / "run"), "accelerator": "cpu", "devices": 1, "max_steps": STEPS},
            **{"enable_progress_bar": False, "val_check_interval": 2, "check_val_every_n_epoch": None},
            "callbacks": [{"class_path": "waiting.Waits"}],
        },
        "model": {
            **{"model_name_or_path": str(model_dir), "finetuning_type": "lora", "optimizer": optimizer},
            **({"lr_scheduler": warm_up} | own),
        },
        "data": {
            "dataset": rows,
            "eval_dataset": rows,
            "batch_size": 3,
            **({"converter": "sft"} if stage == "sft" else {}),
        },
        "checkpoint": {"every_n_train_steps": 1},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))


def assert_the_same_when_killed(folder: Path, stage: str, *prepared: Any) -> None:
    """Runs once undisturbed, and once in three launches of which two are killed."""
    for name in ("whole", "killed"):
        (folder / name).mkdir()
        config_of(folder / name, *prepared)
    command, killed = (stage, "--config", "run.yaml"), folder / "killed"
    status, output = CommandRun(folder / "whole", *command).finish()
    assert status == 0, output
    for number, moment in enumerate(KILLS):
        going_on = ("--ckpt_path", "last") if number else ()
        run = CommandRun(killed, *command, *going_on, KILL_IN=moment)
        run.wait_for(killed / "reached")
        run.send_signal(signal.SIGKILL)
        run.finish()
        (killed / "reached").unlink()
    status, output = CommandRun(killed, *command, "--ckpt_path", "last").finish()
    assert status == 0, output
    found = logged(killed)
    assert found == logged(folder / "whole") and len(found) == STEPS
    exports = [load_file(folder / name / "run/hf/last/model.safetensors") for name in ("whole", "killed")]
    assert exports[0].keys() == exports[1].keys()
    assert all(weight.equal(exports[1][name]) for name, weight in exports[0].items())


def test_supervised_fine_tuning_resumes_bit_for_bit(tiny_model_dir, tmp_path):
    assert_the_same_when_killed(tmp_path, "sft", tiny_model_dir, "sft", {"lora_dropout": 0.2})


def test_distillation_resumes_bit_for_bit_whoever_teaches(tiny_model_dir, tmp_path):
    teacher = save_toy_model(tmp_path / "teacher", seed=5)
    with fake_vllm() as server:
        server.answer_to = answers_of(teacher)
        teachers = {
            "a": f"http://127.0.0.1:{server.server_address[1]}",
            **{"b": str(teacher), "c": "self", "d": "reference"},
        }
        taught = {"teacher": teachers, "teacher_column": "who", "teacher_prompt": "{prompt} ({way}) ", "top_k": 5}
        own = {**DISTILLED, "distillation": taught}
        assert_the_same_when_killed(tmp_path, "fit", tiny_model_dir, "fit", own)
        assert server.calls.count("/v1/completions") > STEPS
