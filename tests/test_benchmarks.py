"""The benchmarks' arithmetic by hand, and both commands at the smallest size."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command_runs import CommandRun, run_command

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from profile_step import kind_of, phase_boundaries  # noqa: E402
from sampler_mismatch import differences  # noqa: E402
from sides.clock import PhaseClock  # noqa: E402
from sides.compare import ratios, summarize  # noqa: E402
from sides.host_stacks import HostStacks  # noqa: E402
from sides.pair_workload import PAIR_WORKLOADS  # noqa: E402
from sides.record import versions  # noqa: E402
from sides.workload import NANO, Workload, conversations, even_fraction, word_problems  # noqa: E402

PROMISED = ("step_ratio", "training_ratio", "generation_ratio", "peak_memory_ratio", "step_cpu_ratio")


def record(scale: float, peak: int) -> dict[str, Any]:
    steps = [
        {
            "wall_s": {"generate": 4 * s, "forward": 2 * s, "backward": 3 * s, "optimizer": s, "other": 0.5 * s},
            "cpu_s": {"generate": 2 * s, "forward": s, "backward": s, "optimizer": s, "other": s},
            "peak_bytes": {"generate": peak, "backward": peak // 2},
            "counts": {
                "completions": 4,
                "prompt_tokens": 40,
                "completion_tokens": 60,
                "trained_tokens": 150,
                "longest_completion": 30,
            },
            "notes": {"sampler_mismatch": s / 100},
        }
        for s in (scale, 3 * scale, 2 * scale)
    ]
    described = {"program": "some", "device": "d", "versions": {}, "parameters": 10**9}
    return described | {"bytes_before_training": 100, "reserved_bytes": 0, "steps": steps}


def test_a_summary_takes_medians_of_seconds_and_totals_of_tokens():
    found = summarize(record(1.0, 500), record(1.0, 500)["steps"])
    assert (found["step_s"], found["generation_s"], found["training_s"]) == (21.0, 8.0, 12.0)
    assert (found["step_cpu_s"], found["training_cpu_s"]) == (12.0, 6.0)
    assert (found["peak_bytes"], found["training_peak_bytes"]) == (500, 250)
    assert found["sampler_mismatch"] == 0.02
    assert found["tokens"]["trained_per_useful_token"] == 1.5
    assert found["completion_tokens_per_s"] == round(180 / 63, 2)
    assert found["training_tflops_on_useful_tokens"] == round(6e-12 * 1e9 * 300 / 36, 4)


def test_ratios_are_trls_figure_over_ours():
    trl, ours = (summarize(made, made["steps"]) for made in (record(2.0, 900), record(0.5, 300)))
    found = ratios(trl, ours)
    assert found["step_ratio"] == found["generation_ratio"] == found["training_cpu_ratio"] == 4.0
    assert found["peak_memory_ratio"] == found["training_peak_memory_ratio"] == 3.0
    assert found["added_memory_ratio"] == 4.0  # 900 - 100 over 300 - 100
    assert found["step_ratio_per_token"] == pytest.approx(4.0, abs=0.01)
    assert set(PROMISED) <= found.keys()


def test_the_clock_charges_a_nested_phase_to_itself_alone_and_forgets_a_finished_step():
    clock = PhaseClock("cpu")
    clock.start()
    started = time.perf_counter()
    with clock.phase("outer"), clock.phase("inner"):
        time.sleep(0.02)
    clock.count(tokens=3)
    clock.end_step()
    total = time.perf_counter() - started
    clock.end_step()
    first, second = clock.steps
    assert first["wall_s"].keys() == {"other", "outer", "inner"}
    assert 0.02 <= first["wall_s"]["inner"] <= sum(first["wall_s"].values()) <= total
    assert first["counts"] == {"tokens": 3}
    assert second["wall_s"].keys() == {"other"}
    assert second["counts"] == {}


def test_the_clock_charges_phases_that_belong_together_to_one_name_and_others_inside_them_to_themselves():
    clock = PhaseClock("cpu", together={"forward": "training", "backward": "training"})
    clock.start()
    with clock.phase("forward"), clock.phase("backward"):
        time.sleep(0.01)
        with clock.phase("rewards"):
            time.sleep(0.02)
        with clock.phase("forward"):
            time.sleep(0.01)
    clock.end_step()
    (step,) = clock.steps
    assert step["wall_s"].keys() == {"other", "training", "rewards"}
    assert step["wall_s"]["training"] >= 0.02
    assert step["wall_s"]["rewards"] >= 0.02


def test_marks_of_a_trace_become_the_innermost_phase_at_any_time():
    def mark(name: str, start: float, end: float) -> SimpleNamespace:
        return SimpleNamespace(name=f"phase:{name}", time_range=SimpleNamespace(start=start, end=end))

    times, names = phase_boundaries([mark("inner", 20.0, 30.0), mark("outer", 10.0, 40.0)])
    assert times == [0.0, 10.0, 20.0, 30.0, 40.0]
    assert names == ["other", "outer", "inner", "outer", "other"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mm", "matrix products"),
        ("aten::addmm", "matrix products"),
        ("aten::mul", "elementwise and other"),
        ("aten::t", "views and allocations"),
        ("aten::to", "elementwise and other"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("void cutlass::device_kernel<flash::enable_sm90>", "attention"),
        ("nvjet_tst_128x256_64x4", "matrix products"),
        ("Memcpy HtoD (Pinned -> Device)", "copies and indexing"),
    ],
)
def test_operators_and_kernels_are_sorted_by_what_they_do(name, kind):
    assert kind_of(name) == kind


def test_looks_at_the_host_name_what_runs_above_a_function_and_not_what_runs_beside_it():
    def busy() -> None:
        started = time.perf_counter()
        while time.perf_counter() - started < 0.2:
            pass

    def watched() -> None:
        busy()

    with HostStacks("tests/test_benchmarks.py:watched") as stacks:
        watched()
        busy()
    assert stacks.shares(1) == {"tests/test_benchmarks.py:busy": 100.0}
    assert stacks.looks > 10


def test_both_sides_are_given_the_same_workload_and_reward(tmp_path):
    NANO.save(tmp_path / "workload.json")
    assert Workload.load(tmp_path / "workload.json") == NANO
    ids = [[2, 3, 4], [1]]
    expected = [pytest.approx(2 / 3), 0.0]
    assert even_fraction(["a", "b"], completions_ids=ids) == expected  # ours
    assert even_fraction(["a", "b"], completion_ids=ids) == expected  # TRL's
    assert word_problems(3) == word_problems(3)
    rows = conversations(iter(['{"question": "1+1?", "answer": "2"}', '{"prompt": "x"}']), limit=1)
    assert rows == [{"prompt": [{"role": "user", "content": "1+1?"}]}]


def run(folder: Path, script: str, *arguments: str) -> str:
    """A benchmark and all that it starts, without the seconds that their imports take."""
    status, output = run_command(folder, *arguments, script=ROOT / "benchmarks" / script)
    assert status == 0, output
    return output


@pytest.mark.slow
def test_what_a_benchmark_has_started_ends_with_it_also_when_its_own_time_is_over(tmp_path):
    # As `timeout` ends a benchmark whose run has ranks: these hold a GPU's memory until they are gone.
    grandchild = "import time; print('runs', flush=True); time.sleep(600)"
    of_run = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    benchmark = f"import sys; from sides import child; child.run([sys.executable, '-c', {of_run!r}])"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "benchmarks")}
    process = subprocess.Popen([sys.executable, "-c", benchmark], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "runs\n"
    process.terminate()
    nothing, _ = process.communicate(timeout=60)  # ends when nobody holds the pipe any more
    assert (nothing, process.returncode) == ("", 128 + signal.SIGTERM)


def test_a_named_commit_is_taken_before_that_of_a_repository_that_was_copied(monkeypatch):
    monkeypatch.setenv("MEASURED_COMMIT", "abc1234+")
    assert versions()["commit"] == "abc1234+"
    monkeypatch.setenv("MEASURED_COMMIT", "")
    assert versions()["commit"] != "abc1234+"


def test_the_comparison_stores_phases_tokens_versions_and_ratios_of_both_sides(tmp_path):
    out = tmp_path / "result.json"
    sizes = ("--device=cpu", "--shape=nano", "--steps=1")
    table = run(tmp_path, "vs_trl.py", *sizes, f"--folder={tmp_path}", f"--out={out}")
    assert "step_cpu_ratio" in table
    found = json.loads(out.read_text())
    assert all(found[name] > 0 for name in PROMISED)
    assert found["command"].startswith("python benchmarks/vs_trl.py --device=cpu --shape=nano")
    assert str(tmp_path) not in out.read_text()
    assert found["options"]["max_completion_length"] == 16
    for side in (found["trl"], found["grpo_lightning"]):
        assert {"generate", "training", "rewards", "other"} <= side["phase_s"].keys()
        assert not {"forward", "backward", "optimizer"} & side["phase_s"].keys()
        assert side["phase_s"].keys() == side["phase_cpu_s"].keys()
        assert side["tokens"]["completions"] == 8
        assert side["versions"]["trl"] == "1.16.0"
        assert side["peak_bytes"] > side["bytes_before_training"] > 0
        assert side["completion_tokens_per_s"] > 0
    prompts = [side["tokens"]["prompt_tokens"] for side in (found["trl"], found["grpo_lightning"])]
    assert prompts[0] == prompts[1] > 0
    run(tmp_path, "vs_trl.py", *sizes, f"--folder={tmp_path}", f"--out={out}", "--reuse")
    again = json.loads(out.read_text())  # of the same records
    assert (again["trl"], again["grpo_lightning"]) == (found["trl"], found["grpo_lightning"])


def test_pairs_are_the_same_every_time_and_fit_into_the_length_that_trl_cuts_at():
    rows = PAIR_WORKLOADS["0.5b"].rows()
    assert rows == PAIR_WORKLOADS["0.5b"].rows() and len(rows) == 7 * 64
    words = [len(row["prompt"].split()) + len(row[kind].split()) for row in rows for kind in ("chosen", "rejected")]
    assert 250 < sum(words) / len(words) < 350 and 1.8 * max(words) < 1024  # tokens
    assert all(row["chosen"].startswith(" ") and row["chosen"] != row["rejected"] for row in rows)


@pytest.mark.slow
def test_preference_training_of_both_sides_learns_the_same_from_as_many_tokens(tmp_path):
    out = tmp_path / "dpo.json"
    sizes = ("--device=cpu", "--shape=nano", "--learning-rate=0.001", "--sides", "trl", "ours")
    run(tmp_path, "stages_vs_trl.py", *sizes, f"--folder={tmp_path}", f"--out={out}")
    found = json.loads(out.read_text())
    trl, ours = found["sides"]["trl"], found["sides"]["ours"]
    assert len(trl["losses"]) == 3 and trl["losses"][1] != pytest.approx(trl["losses"][0], abs=1e-3)
    assert ours["losses"] == pytest.approx(trl["losses"], rel=1e-4)
    assert ours["tokens_per_step"] == trl["tokens_per_step"]
    assert ours["positions_per_useful_token"] < 1 < trl["positions_per_useful_token"]
    expected = round(ours["tokens_per_s"] / trl["tokens_per_s"], 3)
    assert found["ratios"]["tokens_per_s: ours / trl"] == expected
    assert str(tmp_path) not in out.read_text()


@pytest.mark.slow
def test_distillation_of_both_sides_learns_from_the_same_teacher_and_is_put_together_from_records(tmp_path):
    out = tmp_path / "distillation.json"
    sizes = ("--stage=distillation", "--device=cpu", "--shape=nano", "--steps=1", f"--folder={tmp_path}")
    for side in ("trl", "ours"):  # as on two GPUs, one for each
        run(tmp_path, "stages_vs_trl.py", *sizes, "--only", side)
    assert not out.exists()
    run(tmp_path, "stages_vs_trl.py", *sizes, "--recorded", f"--out={out}")
    found = json.loads(out.read_text())
    assert list(found["sides"]) == ["trl", "ours"]
    trl, ours = found["sides"]["trl"], found["sides"]["ours"]
    assert len(trl["losses"]) == len(ours["losses"]) == 2
    assert ours["losses"] == pytest.approx(trl["losses"], rel=0.2)  # of other completions
    assert ours["positions_per_useful_token"] < 1 < trl["positions_per_useful_token"]
    assert ours["generation_s"] > 0 and trl["generation_s"] > 0
    assert ours["training_tokens_per_s"] > ours["tokens_per_s"]
    assert set(ours["slow_ways"]) == {"attention", "head", "kernels"}  # of a CPU; none of them on a GPU


@pytest.mark.slow
def test_a_side_that_fails_is_left_out_of_a_comparison_of_stages(tmp_path):
    out, sizes = tmp_path / "dpo.json", ("--shape=nano", "--steps=1", "--seconds-per-side=0.1", "--sides", "ours")
    script = ROOT / "benchmarks" / "stages_vs_trl.py"
    status, output = run_command(tmp_path, *sizes, f"--folder={tmp_path}", f"--out={out}", script=script)
    assert status == 1 and "ours: ours came to no step that counts" in output
    assert not out.exists()


@pytest.mark.slow
def test_scaling_is_measured_over_runs_on_different_numbers_of_ranks(tmp_path):
    out = tmp_path / "scaling.json"
    sizes = ("--device=cpu", "--shape=nano", "--gpus", "1", "2", "--steps=1", "--warmup-steps=1")
    run(tmp_path, "multi_gpu.py", *sizes, f"--folder={tmp_path}", f"--out={out}")
    alone, both = json.loads(out.read_text())["runs"]
    assert (alone["gpus"], both["gpus"]) == (1, 2)
    assert len(both["peak_memory_gib"]) == 2
    expected = both["tokens_per_second"] / (2 * alone["tokens_per_second"])
    assert both["efficiency"] == pytest.approx(expected, abs=1e-3)
    assert {"generate", "rewards", "train"} <= both["phases"].keys()


@pytest.mark.slow
def test_what_a_run_came_to_is_written_when_its_benchmark_is_ended(tmp_path):
    """As `timeout` does it, whose time on a GPU is all there is."""
    out, folder = tmp_path / "scaling.json", tmp_path / "runs"
    sizes = [
        "--device=cpu",
        "--shape=nano",
        "--gpus",
        "1",
        "--steps=3000",
    ]  # minutes; it writes a prompt for each first
    script = ROOT / "benchmarks" / "multi_gpu.py"
    benchmark = CommandRun(tmp_path, *sizes, f"--folder={folder}", f"--out={out}", script=script)
    try:
        rows: list[str] = []
        while len(rows) < 6 and benchmark.is_alive():  # a header, two steps for warming up, and some that count
            time.sleep(0.2)
            rows = [
                row for path in folder.glob("*/logs/version_*/metrics.csv") for row in path.read_text().splitlines()
            ]
    finally:
        benchmark.send_signal(signal.SIGTERM)
    assert benchmark.finish()[0] == 128 + signal.SIGTERM
    (run,) = json.loads(out.read_text())["runs"]
    assert run["is_cut_off"] and run["steps"] >= 1 and run["tokens_per_second"] > 0


@pytest.mark.slow
def test_the_profile_divides_every_phase_of_a_step_by_kind_of_work(tmp_path):
    out = tmp_path / "profile.json"
    run(tmp_path, "profile_step.py", "--shape=nano", "--steps=1", f"--folder={tmp_path}", f"--out={out}")
    found = json.loads(out.read_text())
    assert {"generate", "forward", "backward", "optimizer", "other"} <= found["phases"].keys()
    assert sum(phase["ms"] for phase in found["phases"].values()) == pytest.approx(found["step_ms"], rel=1e-3)
    for name in ("generate", "forward", "backward"):
        kinds = found["phases"][name]["profiled_ms_by_kind"]
        assert kinds["matrix products"] > 0
        assert kinds["attention"] > 0
        assert sum(kinds.values()) == pytest.approx(found["phases"][name]["profiled_ms"], rel=0.05)


def test_differences_of_logprobs_are_told_apart_by_position():
    found = differences(torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([-1.5, -2.0, -3.0]), torch.tensor([0, 15, 16]))
    assert (found["mean_size"], found["mean"], found["largest"]) == (0.5, pytest.approx(-1 / 6, abs=1e-5), 1.0)
    assert found["by_position"] == {"0-15": 0.25, "16-63": 1.0}


@pytest.mark.slow
def test_on_a_cpu_rounding_of_a_4_bit_policy_is_all_that_sampler_and_trainer_differ_by(tmp_path):
    out = tmp_path / "mismatch.json"
    sizes = ("--shape=nano", "--type=qlora", "--prompts=2")
    run(tmp_path, "sampler_mismatch.py", *sizes, f"--folder={tmp_path}", f"--out={out}")
    found = json.loads(out.read_text())
    assert (found["layout"], found["tokens"] > 64) == ("packed", True)
    ways = found["from_float32"]
    assert list(ways) == ["sampler", "trainer", "policy, plain code", "merged, bfloat16"]
    assert all(0 < way["mean_size"] < 2e-3 for way in ways.values())
    assert found["sampler_and_trainer"]["mean_size"] < 1e-3


@pytest.mark.slow
def test_training_passes_of_all_variants_are_as_near_to_float32_as_rounding_allows(tmp_path):
    out = tmp_path / "passes.json"
    sizes = ("--shape=nano", "--prompts=1", "--exact-prompts=1", "--repeats=1")
    run(tmp_path, "training_passes.py", *sizes, f"--out={out}", "--variants", "padded", "packed", "shared 8k")
    variants = json.loads(out.read_text())["variants"]
    assert list(variants) == ["padded", "packed", "shared 8k"]
    assert all(found["gradient_error"] < 1e-5 and found["useful_tflops"] >= 0 for found in variants.values())
    assert len({found["useful_tokens"] for found in variants.values()}) == 1
