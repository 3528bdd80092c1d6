from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from runs import make_data, make_module, make_trainer, write_prompts

from grpo_lightning.callbacks import BeforeAfterSummary, HeldOutLine
from grpo_lightning.report.headline import headline
from grpo_lightning.report.run import Run


class Judge:
    """Evaluation n, from 0, finds ``rights[n]`` of 4 held-out prompts right; of training nothing is judged."""

    def __init__(self, *rights: int) -> None:
        self.rights = list(rights)

    def __call__(self, completions: list[str], **columns: Any) -> list[float]:
        right = self.rights.pop(0)
        return [float(n < right) for n in range(len(completions))]


def train(tiny_model_dir, tmp_path, judge, steps, callbacks, ckpt_path=None, evals=1, count=4):
    files = [str(write_prompts(tmp_path / f"eval{i}.jsonl", count)) for i in range(evals)]
    data = make_data(
        tmp_path,
        eval_dataset=files[0] if evals == 1 else {f"set{i}": file for i, file in enumerate(files)},
        eval_batch_size=4,
    )

    def judged(completions: list[str], **columns: Any) -> list[float]:
        return judge(completions)

    module = make_module(tiny_model_dir, eval_rewards=[judged], success_reward="judged")
    settings = {"val_check_interval": 1, "check_val_every_n_epoch": None, "callbacks": callbacks}
    trainer = make_trainer(tmp_path, steps, **settings)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=False)
    return trainer


def accuracies(text: str) -> list[str]:
    return [line for line in text.splitlines() if " accuracy " in line and line.startswith("step")]


def test_each_evaluation_is_compared_with_the_last_and_the_first(tiny_model_dir, tmp_path, capsys):
    train(tiny_model_dir, tmp_path, Judge(1, 2, 4), 3, [HeldOutLine()])
    assert accuracies(capsys.readouterr().out) == [
        "step 1  held-out accuracy 25.0%",
        "step 2  held-out accuracy 50.0% (was 25.0%, 25.0% at step 1)",
        "step 3  held-out accuracy 100.0% (was 50.0%, 25.0% at step 1)",
    ]


def test_the_start_is_what_was_measured_before_training(tiny_model_dir, tmp_path, capsys):
    summary = BeforeAfterSummary(lenient="judged", strict="judged")
    train(tiny_model_dir, tmp_path, Judge(0, 2, 3, 3), 2, [HeldOutLine(), summary])
    assert accuracies(capsys.readouterr().out) == [
        "step 0  held-out accuracy 0.0%",
        "step 1  held-out accuracy 50.0% (start 0.0%)",
        "step 2  held-out accuracy 75.0% (was 50.0%, start 0.0%)",
    ]


def test_a_resumed_run_remembers_both(tiny_model_dir, tmp_path, capsys):
    trainer = train(tiny_model_dir, tmp_path, Judge(1, 2), 2, [HeldOutLine()])
    trainer.save_checkpoint(tmp_path / "2.ckpt")
    capsys.readouterr()
    train(tiny_model_dir, tmp_path, Judge(3), 3, [HeldOutLine()], tmp_path / "2.ckpt")
    assert accuracies(capsys.readouterr().out) == ["step 3  held-out accuracy 75.0% (was 50.0%, 25.0% at step 1)"]


def test_what_a_summary_measures_in_a_run_that_had_begun_is_no_start(tiny_model_dir, tmp_path, capsys):
    trainer = train(tiny_model_dir, tmp_path, Judge(1), 1, [])
    trainer.save_checkpoint(tmp_path / "1.ckpt")
    capsys.readouterr()
    late = BeforeAfterSummary(lenient="judged", strict="judged")
    train(tiny_model_dir, tmp_path, Judge(1, 2, 3, 3), 3, [HeldOutLine(), late], tmp_path / "1.ckpt")
    assert accuracies(capsys.readouterr().out) == [
        "step 2  held-out accuracy 50.0% (25.0% at step 1)",
        "step 3  held-out accuracy 75.0% (was 50.0%, 25.0% at step 1)",
    ]


def test_a_checkpoint_that_does_not_say_when_the_first_was_measured_claims_nothing():
    line = HeldOutLine()
    line.load_state_dict({"first": {"val/accuracy": 0.25}, "last": {"val/accuracy": 0.5}})
    assert line._line("val/accuracy", "accuracy", 0.75, 3) == "accuracy 75.0% (was 50.0%, first 25.0%)"


def test_several_datasets_have_a_line_each(tiny_model_dir, tmp_path, capsys):
    train(tiny_model_dir, tmp_path, Judge(1, 2, 3, 4), 2, [HeldOutLine()], evals=2)
    assert accuracies(capsys.readouterr().out) == [
        "step 1  held-out set0 accuracy 25.0%",
        "step 1  held-out set1 accuracy 50.0%",
        "step 2  held-out set0 accuracy 75.0% (was 25.0%, 25.0% at step 1)",
        "step 2  held-out set1 accuracy 100.0% (was 50.0%, 50.0% at step 1)",
    ]


def test_a_share_of_float32_is_said_as_the_summary_says_it():
    measured = torch.tensor(351 / 400)  # 0.87749999 in float32
    assert (
        HeldOutLine()._line("val/accuracy", "accuracy", float(measured), 1)
        == "accuracy 87.8%"
        == f"accuracy {351 / 400:.1%}"
    )


@pytest.mark.parametrize("steps", [1])
def test_reward_is_said_beside_accuracy(steps, tiny_model_dir, tmp_path, capsys):
    trainer = train(tiny_model_dir, tmp_path, Judge(4), steps, [HeldOutLine()])
    value = float(trainer.callback_metrics["val/reward"])
    assert f"step 1  held-out reward {value:.3f}" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("count", [2, 4])
def test_a_resumed_run_compares_with_nothing_that_was_measured_on_other_prompts(
    count, tiny_model_dir, tmp_path, capsys, recwarn
):
    def callbacks() -> list[Any]:
        summary = BeforeAfterSummary(path=str(tmp_path / "summary.json"), lenient="judged", strict="judged")
        return [HeldOutLine(), summary]

    first = train(tiny_model_dir, tmp_path, Judge(0, 1, 1), 1, callbacks())
    first.save_checkpoint(tmp_path / "first.ckpt")
    capsys.readouterr()
    judge = Judge(1, 2, 2) if count == 2 else Judge(2, 2)
    train(tiny_model_dir, tmp_path, judge, 2, callbacks(), tmp_path / "first.ckpt", count=count)
    (line,) = accuracies(capsys.readouterr().out)
    written = json.loads((tmp_path / "summary.json").read_text())
    said = " ".join(str(warning.message) for warning in recwarn)
    if count == 2:  # it was the first two of the four: zip() ended the run, and with as many others it compared them
        assert line == "step 2  held-out accuracy 100.0% (50.0% at step 1)"
        assert (written["strict_before"], written["strict_after"]) == (0.5, 1.0)
        assert [row["prompt"] for row in written["samples"]] == ["0+1=", "01+2="]
        assert "measured again: before means after step 1" in said and "held-out data has changed" in said
    else:
        assert line == "step 2  held-out accuracy 50.0% (was 25.0%, start 0.0%)"
        assert (written["strict_before"], written["strict_after"]) == (0.0, 0.5)
        assert "before means" not in said and "held-out data has changed" not in said


def test_a_summary_that_joins_a_run_on_a_resume_names_the_step_it_first_measured(tiny_model_dir, tmp_path, capsys):
    """It called that before, on the screen, in the first sentence of a report and in a model card."""
    first = train(tiny_model_dir, tmp_path, Judge(0), 1, [])
    first.save_checkpoint(tmp_path / "first.ckpt")
    summary = BeforeAfterSummary(path=str(tmp_path / "summary.json"), lenient="judged", strict="judged")
    capsys.readouterr()
    train(tiny_model_dir, tmp_path, Judge(1, 2, 2), 2, [summary], tmp_path / "first.ckpt")
    printed = capsys.readouterr().out
    assert "The same held-out prompts after step 1 and at the end" in " ".join(printed.split())
    assert "correct step 1" in printed and "before" not in printed
    written = json.loads((tmp_path / "summary.json").read_text())
    assert (written["step_before"], written["strict_before"], written["strict_after"]) == (1, 0.25, 0.5)
    run = Run("run", {}, 2, 0.0, summary=written)
    assert headline(run) == "held-out accuracy rose from 25% to 50% between steps 1 and 2"


def test_an_evaluation_that_measured_nothing_is_not_said_to_have_found_what_the_last_one_did(
    tiny_model_dir, tmp_path, capsys
):
    def rewarded_once(completions: list[str], trainer_state: Any, **columns: Any) -> list[float | None]:
        return [0.5 if trainer_state.global_step < 2 else None for _ in completions]

    data = make_data(tmp_path, eval_dataset=str(write_prompts(tmp_path / "eval.jsonl", 4)))
    settings = {"val_check_interval": 1, "check_val_every_n_epoch": None, "callbacks": [HeldOutLine()]}
    make_trainer(tmp_path, 3, **settings).fit(make_module(tiny_model_dir, rewards=[rewarded_once]), datamodule=data)
    said = [line for line in capsys.readouterr().out.splitlines() if "held-out reward" in line]
    assert said == ["step 1  held-out reward 0.500"]
