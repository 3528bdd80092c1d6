"""Tests of ``python -m grpo_lightning rewards``."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_lightning.commands.rewards import columns_of, main
from grpo_lightning.rewards import list_reward_functions

CONFIG = """
model:
  model_name_or_path: nowhere/to-be-found
  rewards:
    - class_path: grpo_lightning.rewards.AccuracyReward
      init_args: {mode: numeric}
    - format
  reward_weights: [1.0, 0.5]
  reward_composition: {gates: {accuracy: format}}
"""
GOOD = "<think>6 * 7</think><answer>42</answer>"
ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))


def test_every_registered_reward_is_listed_with_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    for name in list_reward_functions():
        assert f"\n{name}: " in f"\n{shown}"
    assert "mode='math', extraction='lenient'" in shown and "_pool" not in shown


def test_help_names_the_three_forms(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "rewards try ..." in capsys.readouterr().out


def test_one_reward_is_shown_with_what_each_argument_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repetition"]) == 0
    shown = capsys.readouterr().out
    assert "ngram_size: Units in one n-gram." in shown and "accuracy" not in shown
    assert main(["reptition"]) == 2
    assert "no reward is called reptition. There are accuracy" in capsys.readouterr().out


def test_a_reward_of_ones_own_is_shown_by_its_import_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_rewards_to_show.py").write_text(
        "def near(completions, answer, within=0.5, **columns):\n    '''Closeness.'''\n\ndef bare(completions): ...\nNO = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["own_rewards_to_show.near", "own_rewards_to_show.bare"]) == 0
    shown = capsys.readouterr().out
    assert "own_rewards_to_show.near: Closeness." in shown and "within=0.5" in shown
    assert "own_rewards_to_show.bare: no docstring" in shown
    for path, message in [
        ("own_rewards_to_show.nearer", "has no attribute 'nearer'. Did you mean near? It has: near, bare"),
        ("own_rewards_nowhere.near", "there is no module 'own_rewards_nowhere'"),
        ("own_rewards_to_show.NO", "neither a reward class nor a function"),
        ("near", "goes by its import path, as in fit"),
    ]:
        assert main([path]) == 2
        assert message in capsys.readouterr().out


def test_completions_are_scored_as_in_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    assert main(["try", "--config", str(path), "--completion", GOOD, "--completion", "42", "--ground_truth", "42"]) == 0
    out, err = capsys.readouterr()
    first, second = out.split("completion 1:")
    assert [line.split() for line in first.splitlines()[1:4]] == [
        ["accuracy", "1.0000"],
        ["format", "1.0000", "weight", "0.5"],
        ["total", "1.5000"],
    ]
    assert [line.split()[1] for line in second.splitlines()[1:4]] == ["1.0000", "0.0000", "0.0000"]  # gated
    assert "extracted_answer: '42'" in first and "longest call: accuracy" in second
    assert "nowhere/to-be-found is not on this disk" in err


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_rewards_of_every_shipped_config_can_be_tried(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["try", "--config", str(path), "--completion", GOOD, "--ground_truth", "42"]) == 0
    earned = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.startswith("  "))
    assert earned["accuracy"] == earned.get("format", "1.0000") == "1.0000"


def test_rewards_of_ones_own_are_found_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_rewards_to_try.py").write_text(
        "def late(completions, trainer_state, **columns):\n"
        "    return [float(trainer_state.global_step) for _ in completions]\n"
        "def broken(completions, **columns):\n    raise KeyError('oh')\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["try", "--rewards", "own_rewards_to_try.late", "--completion", "x", "--step", "7"]) == 0
    assert "7.0000" in capsys.readouterr().out
    assert main(["try", "--rewards", "own_rewards_to_try.broken", "--completion", "x"]) == 1
    assert "KeyError: 'oh'" in capsys.readouterr().err


def test_tokens_are_those_of_the_tokenizer(tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["try", "--rewards", "length", "--completion", "The quick brown fox", "--tokenizer", str(tiny_model_dir)]
    assert main(command) == 0
    assert "0.0000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--completion", "x"], "give --config with a run's config, or --rewards"),
        (["--rewards", "acuracy", "--completion", "x"], "'acuracy' not found"),
        (["--rewards", "format", "--completion", "x", "stray"], "is not made of columns"),
        (["--config", "/nowhere.yaml", "--completion", "x"], "/nowhere.yaml"),
    ],
)
def test_mistakes_are_usage_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["try", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_column_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["try", "--rewards", "accuracy", "--completion", "42"]) == 1
    error = capsys.readouterr().err
    assert "looked for the column ground_truth or answer or solution" in error
    assert "Set answer_key in the reward's init_args to the column" in error
    assert columns_of(["--a=--b", "--c", ""]) == {"a": "--b", "c": ""}
