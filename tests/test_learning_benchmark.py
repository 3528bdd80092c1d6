"""benchmarks/learning.py: its task, its arithmetic by hand, and both sides at toy size."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from command_runs import run_command

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from learning_plot import load, over_completions, over_seconds, plot  # noqa: E402
from sides.addition import WORKED, addition_rows, right_sum  # noqa: E402
from sides.learning_summary import common_level, seconds_to, summarize, table  # noqa: E402


def record(side: str, seed: int, accuracies: list[float], step_seconds: float, finished: bool = True) -> dict[str, Any]:
    """A run of 10 steps an evaluation, 100 completions a step."""
    steps = [{"step": n + 1, "step_seconds": step_seconds, "reward": 0.5} for n in range(10 * (len(accuracies) - 1))]
    evaluations = [
        {"step": 10 * n, "completions": 1000 * n, "seconds": 10 * n * step_seconds, "accuracy": accuracy}
        for n, accuracy in enumerate(accuracies)
    ]
    return {"side": side, "seed": seed, "steps": steps, "evaluations": evaluations, "finished": finished}


RUNS = [
    record("ours", 0, [0.2, 0.5, 0.8], 1.0),
    record("ours", 1, [0.2, 0.6, 0.9], 1.0),
    record("trl", 0, [0.2, 0.4, 0.7], 5.0),
    record("trl", 1, [0.2, 0.7, 0.8], 5.0),
]


def sums(rows: list[dict[str, Any]]) -> set[tuple[int, int]]:
    """The operands of each question, the smaller one first."""
    words = [row["prompt"][-1]["content"].removeprefix("What is ").removesuffix("?").split(" + ") for row in rows]
    return {(min(int(a), int(b)), max(int(a), int(b))) for a, b in words}


def test_no_held_out_or_worked_sum_is_trained_on_in_either_order():
    train, held_out = addition_rows("add2")
    assert len(train) + len(held_out) == 90 * 90 - 2 * len(WORKED)
    assert not sums(train) & sums(held_out)
    assert not (sums(train) | sums(held_out)) & {(11, 63), (48, 57), (34, 44)}
    assert addition_rows("add2") == (train, held_out)
    first = train[0]
    assert [turn["role"] for turn in first["prompt"]] == ["user", "assistant"] * 3 + ["user"]
    a, b = first["prompt"][-1]["content"].removeprefix("What is ").removesuffix("?").split(" + ")
    assert first["ground_truth"] == str(int(a) + int(b))


def test_the_last_number_of_a_completion_counts_in_either_sides_form():
    texts = ["24 + 18 = 42", "42, or 41", "It is 1,042.", "none", "142"]
    assert right_sum(texts, ["42", "42", "1042", "42", "42"]) == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert right_sum([[{"role": "assistant", "content": "= 42"}]], ["42"], trainer_state=None) == [1.0]


def test_seconds_to_an_accuracy_lie_on_a_straight_line_between_evaluations():
    assert seconds_to(RUNS[0], 0.2) == 0.0
    assert seconds_to(RUNS[0], 0.65) == pytest.approx(15.0)  # halfway from 10 s to 20 s
    assert seconds_to(RUNS[0], 0.85) is None
    assert common_level(RUNS) == 0.7


def test_sides_are_compared_over_their_seeds():
    found = summarize(RUNS, level=0.6)
    assert found["ours"]["final_accuracy_mean"] == 0.85
    assert found["ours"]["final_accuracy_deviation"] == pytest.approx(0.05 * 2**0.5, abs=1e-4)
    assert found["ours"]["seconds_to_level"] == [13.33, 10.0]
    assert found["trl"]["seconds_to_level"] == [83.33, 40.0]
    assert found["mean_seconds_to_level_ratio"] == round(61.67 / 11.67, 2)
    assert found["step_seconds_ratio"] == 5.0
    # At 0, 1000 and 2000 completions ours have 0.2, 0.55, 0.85 on average, TRL's seeds 0.2, 0.4 to 0.7, 0.7 to 0.8.
    assert found["accuracy"]["evaluations"] == 3
    assert found["accuracy"]["within_spread"] == 2
    assert found["accuracy"]["not_below_spread"] == 3
    assert found["accuracy"]["last_difference"] == pytest.approx(0.1)


def test_partial_rollouts_are_compared_with_the_steps_that_wait():
    runs = [*RUNS, record("partial", 0, [0.2, 0.5, 0.7], 0.5), record("partial", 1, [0.2, 0.5, 0.7], 0.5)]
    found = summarize(runs, level=0.6)
    assert found["accuracy"] == summarize(RUNS, level=0.6)["accuracy"]
    assert found["partial"]["mean_seconds_to_level"] == 7.5
    # At 0, 1000 and 2000 completions 0.2, 0.5, 0.7, where steps that wait have 0.2, 0.5 to 0.6, 0.8 to 0.9.
    expected = {"evaluations": 3, "within_spread": 2, "not_below_spread": 2}
    assert found["accuracy_partial"].items() >= expected.items()
    assert found["accuracy_partial"]["last_difference"] == pytest.approx(-0.15)
    assert "partial seed 1" in table(runs)


def test_a_run_that_was_cut_off_counts_as_far_as_it_came():
    runs = [*RUNS[:3], record("trl", 1, [0.2, 0.7], 5.0, finished=False), record("trl", 2, [0.2], 5.0, finished=False)]
    found = summarize(runs)
    assert found["trl"]["finished"] == [True, False]
    assert found["accuracy"]["evaluations"] == 2
    assert "trl     seed 1" in table(runs)
    assert "trl     seed 2" not in table(runs)  # evaluated before its first step alone
    assert "No run" in table(runs[-1:])


def test_curves_are_drawn_over_what_all_seeds_have_come_to(tmp_path):
    file = tmp_path / "result.json"
    file.write_text(json.dumps({"runs": RUNS}))
    ours = [run for run in load([file, file])[:4] if run["side"] == "ours"]
    completions, accuracies = over_completions(ours)
    assert completions.tolist() == [0, 1000, 2000]
    assert accuracies.tolist() == [[0.2, 0.5, 0.8], [0.2, 0.6, 0.9]]
    seconds, accuracies = over_seconds([ours[0], record("ours", 1, [0.2, 0.6], 1.0)])
    assert seconds[-1] == 10.0
    assert accuracies[:, -1].tolist() == [0.5, 0.6]
    pytest.importorskip("matplotlib")
    plot(RUNS, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def call(folder: Path, *arguments: str) -> tuple[int, str]:
    return run_command(folder, "--device=cpu", *arguments, script=ROOT / "benchmarks" / "learning.py")


@pytest.mark.slow
def test_both_sides_train_several_seeds_from_the_same_weights_and_a_side_may_be_run_again(tiny_model_dir, tmp_path):
    out = tmp_path / "result.json"
    sizes = ("--steps=1", "--held-out=4", "--num-generations=4", "--max-completion-length=8")
    settings = (f"--model={tiny_model_dir}", f"--folder={tmp_path}", f"--out={out}", *sizes)
    status, output = call(tmp_path, "--seeds=0,1", *settings)
    assert status == 0, output
    found = json.loads(out.read_text())
    assert [(run["side"], run["seed"]) for run in found["runs"]] == [("ours", 0), ("ours", 1), ("trl", 0), ("trl", 1)]
    for run in found["runs"]:
        assert (run["finished"], run["weights"]) == (True, "float32")
        assert [place["step"] for place in run["evaluations"]] == [0, 1]
        assert [place["completions"] for place in run["steps"]] == [2 * 4]
        assert run["evaluations"][1]["seconds"] == run["steps"][0]["seconds"] > 0  # evaluating takes no training time
    assert str(tmp_path) not in out.read_text()
    assert "trl     seed 1" in output

    status, output = call(tmp_path, "--side=ours", "--seeds=0", "--seconds-per-side=0.1", *settings)
    assert status == 1
    assert "Ended after 0 s: ours" in output
    kept = json.loads(out.read_text())["runs"]
    assert [(run["side"], run["seed"]) for run in kept] == [("ours", 1), ("trl", 0), ("trl", 1)]
    assert kept == found["runs"][1:]

    status, output = call(tmp_path, "--side=partial", "--seeds=1", *settings)
    assert status == 0, output
    partial = json.loads(out.read_text())
    assert [run["side"] for run in partial["runs"]] == ["ours", "trl", "trl", "partial"]
    assert (
        partial["runs"][-1]["evaluations"][0]["accuracy"] == kept[0]["evaluations"][0]["accuracy"]
    )  # the same weights
    assert partial["runs"][-1]["steps"][0]["completions"] == 2 * 4
    assert partial["summary"]["accuracy_partial"]["evaluations"] == 2


def test_a_model_that_is_not_there_is_named_with_what_makes_it(tmp_path):
    status, output = call(tmp_path, f"--model={tmp_path / 'none'}", f"--folder={tmp_path}")
    assert status == 1
    assert "python benchmarks/smollm2.py makes such a directory" in output
