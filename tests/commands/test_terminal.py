"""A whole run as a person sees it: in a terminal of 80 columns, with the bar below everything else."""

from __future__ import annotations

import json
import os
import re
import sys

import pytest
from pseudo_terminal import run_in_terminal
from runs import write_prompts

REWARDS = """
def share_of_digits(completions, **columns):
    return [sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions]


def always(completions, **columns):
    return [1.0] * len(completions)
"""


@pytest.fixture(scope="module")
def shown(tiny_model_dir, tmp_path_factory) -> list[str]:
    """The lines of a run of 6 steps, evaluated every 2, with a table every 3."""
    folder = tmp_path_factory.mktemp("terminal")
    (folder / "own_rewards.py").write_text(REWARDS)
    config = {
        "trainer": {
            "default_root_dir": str(folder / "run"), "accelerator": "cpu", "devices": 1, "max_steps": 6,
            "val_check_interval": 2, "check_val_every_n_epoch": None,
            "callbacks": [{
                "class_path": "grpo_lightning.callbacks.BeforeAfterSummary",
                "init_args": {"lenient": "always", "strict": "share_of_digits", "num_samples": 2},
            }],
        },
        "model": {
            "model_name_or_path": str(tiny_model_dir), "rewards": ["own_rewards.share_of_digits"],
            "eval_rewards": ["own_rewards.always"], "success_reward": "always",
            "generator": {"class_path": "TransformersGenerator"}, "num_generations": 4, "max_completion_length": 8,
        },
        "data": {
            "dataset": str(write_prompts(folder / "train.jsonl")), "batch_size": 3, "eval_batch_size": 4,
            "eval_dataset": str(write_prompts(folder / "eval.jsonl", 4)),
        },
        "samples": {"every_n_steps": 3},
    }  # fmt: skip
    (folder / "the_run.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "grpo_lightning", "fit", "--config", "the_run.yaml"]
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    return run_in_terminal(command, folder, environment)


def bars(lines: list[str]) -> list[str]:
    return [line for line in lines if "━" in line and re.match(r"step \d+/6 ", line)]


def test_the_bar_erases_no_table_and_no_line(shown):
    titles = [line for line in shown if re.match(r"Step \d+: reward", line)]
    assert [title.split(":")[0] for title in titles] == ["Step 1", "Step 3", "Step 6"]
    # Every table that begins ends: two prompts of two rows each at most, so three of samples and two of the summary.
    assert sum(line.startswith("┏") for line in shown) == sum(line.startswith("└") for line in shown) == 5
    for text in (
        "prompts before and after",
        "held-out greedy",
        "strict (and",
        "6 steps in",
        "The trained policy is in",
    ):
        assert sum(text in line for line in shown) == 1, text
    assert any("`max_steps=6` reached" in line for line in shown)  # by a logger that holds the stream


def test_held_out_numbers_are_said_each_time_with_the_last_and_the_first(shown):
    lines = [line for line in shown if re.match(r"step \d  held-out accuracy", line)]
    assert lines == [
        "step 0  held-out accuracy 100.0%",
        "step 2  held-out accuracy 100.0% (start 100.0%)",
        "step 4  held-out accuracy 100.0% (was 100.0%, start 100.0%)",
        "step 6  held-out accuracy 100.0% (was 100.0%, start 100.0%)",
    ]
    rewards = [re.findall(r"\d\.\d{3}", line) for line in shown if re.match(r"step \d  held-out reward", line)]
    assert [len(numbers) for numbers in rewards] == [1, 2, 3, 3]
    assert len({numbers[-1] for numbers in rewards}) == 1  # the same start each time
    assert [rewards[1][0], rewards[2][0]] == [rewards[2][1], rewards[3][1]]  # what was


def test_sentences_break_between_words_and_paths_are_those_to_type(shown):
    at = next(i for i, line in enumerate(shown) if line.startswith("fit: settings of "))
    said = " ".join(shown[at : at + 2])
    assert said.startswith("fit: settings of the_run.yaml are read; importing torch, Lightning and transformers.")
    at = next(i for i, line in enumerate(shown) if line.startswith("Each GRPO step: "))
    said = " ".join(shown[at : at + 3])
    assert re.match(
        r"Each GRPO step: 3 .* 1 optimizer step, micro-batches of up to [\d,]+ tokens; 1 rank\. 6 GRPO", said
    )
    (end,) = [line for line in shown if "6 steps in" in line]
    assert end.endswith("written to run/summary.json")
    assert any(line.startswith("The trained policy is in run/hf/last,") for line in shown)


def test_the_bar_is_one_line_with_the_time_to_the_end(shown):
    (bar,) = bars(shown)
    assert re.fullmatch(r"step 6/6 ━{16} 0 s left reward \d\.\d{3}  [\d,]+ tok/s", bar.rstrip())
    text = "\n".join(shown)
    assert "v_num" not in text and "Epoch" not in text and "it/s" not in text


def test_nothing_is_shown_that_is_no_news(shown):
    text = "\n".join(shown)
    for noise in ("GPU available", "TPU available", "💡", "litlogger", "FLOPs", "0.00 GiB", "Loading weights"):
        assert noise not in text
    assert "GRPO steps; an epoch is" in text and re.search(r"weights \d+\.\d MiB", text)
