"""Before and after: measured on held-out prompts, printed, written down."""

from __future__ import annotations

import json

import pytest
from runs import fit, make_data, make_module, make_trainer, write_prompts

from grpo_lightning.callbacks import BeforeAfterSummary


def test_the_summary_holds_both_accuracies_and_is_printed(tiny_model_dir, tmp_path, capsys):
    calls = []

    def judged_once(completions, **columns):
        """0.25 of the held-out prompts right the first time, all right the second."""
        calls.append(len(completions))
        return [1.0, 0.0, 0.0, 0.0] if len(calls) == 1 else [1.0] * len(completions)

    def constant(completions, **columns):
        return [0.5] * len(completions)

    summary = BeforeAfterSummary(lenient="constant", strict="judged_once")
    fit(
        tiny_model_dir,
        tmp_path,
        max_steps=2,
        trainer={"callbacks": [summary]},
        data={"eval_dataset": str(write_prompts(tmp_path / "eval.jsonl", 4)), "eval_batch_size": 4},
        eval_rewards=[judged_once, constant],
        success_reward="judged_once",
    )
    written = json.loads((tmp_path / "summary.json").read_text())
    samples = written.pop("samples")
    assert samples and {*samples[0]} == {"prompt", "before", "after", "reward_before", "reward_after"}
    assert all(sample["prompt"] for sample in samples)
    seconds = written.pop("seconds")
    assert seconds > 0
    assert written == {
        "accuracy_before": 0.5,
        "accuracy_after": 0.5,
        "strict_before": 0.25,
        "strict_after": 1.0,
        "steps": 2,
    }
    assert calls == [4, 4]
    printed = capsys.readouterr().out
    assert "25.0%" in printed
    assert "100.0%" in printed
    assert "02+3=" in printed  # a sample


def test_the_accuracy_of_sampled_completions_is_kept_where_they_are_sampled(tiny_model_dir, tmp_path):
    def right(completions, **columns):
        """Greedy completions are all right, of the two sampled ones of a prompt the first is."""
        return [1.0] * 4 if len(completions) == 4 else [1.0, 0.0] * 4

    fit(
        tiny_model_dir,
        tmp_path,
        trainer={"callbacks": [BeforeAfterSummary(lenient="right", strict="right")]},
        data={"eval_dataset": str(write_prompts(tmp_path / "eval.jsonl", 4)), "eval_batch_size": 4},
        eval_rewards=[right],
        success_reward="right",
        num_generations_eval=2,
    )
    written = json.loads((tmp_path / "summary.json").read_text())
    assert (written["strict_before"], written["sampled_before"], written["sampled_after"]) == (1.0, 0.5, 0.5)


def test_the_samples_shown_are_spread_over_the_held_out_prompts_and_the_same_after_training(
    tiny_model_dir, tmp_path, monkeypatch
):
    summary = BeforeAfterSummary(lenient="share_of_digits", strict="share_of_digits", num_samples=3)
    seen = []
    monkeypatch.setattr(summary, "_print", lambda before, after, *_: seen.extend([before["samples"], after["samples"]]))
    fit(
        tiny_model_dir,
        tmp_path,
        trainer={"callbacks": [summary]},
        data={"eval_dataset": str(write_prompts(tmp_path / "eval.jsonl", 7)), "eval_batch_size": 2},
    )
    assert [[row["uid"] for row in rows] for rows in seen] == [[0, 3, 6], [0, 3, 6]]


def test_an_unknown_reward_is_refused_before_weights_load(tiny_model_dir, tmp_path):
    with pytest.raises(ValueError, match="no reward called 'accuracy_lenient'"):
        fit(
            tiny_model_dir,
            tmp_path,
            trainer={"callbacks": [BeforeAfterSummary()]},
            data={"eval_dataset": str(write_prompts(tmp_path / "eval.jsonl", 2))},
        )


def test_a_run_with_nothing_to_evaluate_is_refused_before_weights_load(tiny_model_dir, tmp_path):
    with pytest.raises(ValueError, match=r"evaluates data.eval_dataset, which is not set\."):
        fit(tiny_model_dir, tmp_path, trainer={"callbacks": [BeforeAfterSummary()]})


def test_a_test_run_needs_no_eval_dataset(tiny_model_dir, tmp_path):
    trainer = make_trainer(
        tmp_path, callbacks=[BeforeAfterSummary(lenient="share_of_digits", strict="share_of_digits")]
    )
    data = make_data(tmp_path, test_dataset=str(write_prompts(tmp_path / "test.jsonl", 2)))
    (found,) = trainer.test(make_module(tiny_model_dir), datamodule=data)
    assert 0.0 <= found["test/rewards/share_of_digits"] <= 1.0
    assert not (tmp_path / "summary.json").exists()  # nothing was trained


def test_a_reward_that_applies_to_no_held_out_prompt_costs_no_summary(tiny_model_dir, tmp_path, capsys):
    """A judge whose server is gone when training ends: it was a KeyError, and what comes after it, such as an export, was lost."""
    calls = []

    def judged_once(completions, **columns):
        calls.append(len(completions))
        return [1.0 if len(calls) == 1 else None for _ in completions]

    fit(
        tiny_model_dir,
        tmp_path,
        trainer={"callbacks": [BeforeAfterSummary(lenient="judged_once", strict="judged_once")]},
        data={"eval_dataset": str(write_prompts(tmp_path / "eval.jsonl", 4)), "eval_batch_size": 4},
        eval_rewards=[judged_once],
        success_reward="judged_once",
    )
    written = json.loads((tmp_path / "summary.json").read_text())
    assert (written["strict_before"], written["strict_after"], written["steps"]) == (1.0, None, 1)
    assert {(sample["reward_before"], sample["reward_after"]) for sample in written["samples"]} == {(1.0, None)}
    assert "100.0%" in capsys.readouterr().out
