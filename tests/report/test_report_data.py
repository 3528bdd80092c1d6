from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from importlib.resources import files

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lightning.pytorch.loggers import CSVLogger
from report_runs import completion_row, write_completions, write_metrics
from runs import fit

from grpo_lightning.commands.report import main
from grpo_lightning.report import read_run, render_page
from grpo_lightning.report.completions import evenly_spaced_steps, read_completions
from grpo_lightning.report.headline import headline, num_steps
from grpo_lightning.report.metrics import Series, launch_directories, read_metrics
from grpo_lightning.report.notices import notices
from grpo_lightning.report.page import phase_seconds
from grpo_lightning.report.run import Run


def test_a_resumed_launch_replaces_the_steps_it_repeats(tmp_path):
    write_metrics(tmp_path, 0, [{"step": s, "reward": 0.1 * s} for s in range(5)])
    write_metrics(tmp_path, 1, [{"step": s, "reward": 1.0} for s in (3, 4, 5)])
    write_metrics(tmp_path, 10, [{"step": 5, "reward": 2.0}])
    series = read_metrics(launch_directories(tmp_path))["reward"]
    assert series.steps == [1, 2, 3, 4, 5, 6]  # counted from 1, as the run itself says
    assert series.values == pytest.approx([0.0, 0.1, 0.2, 1.0, 1.0, 2.0])  # version_10 comes after version_1


def test_a_run_that_started_again_replaces_everything(tmp_path):
    write_metrics(tmp_path, 0, [{"step": s, "reward": 0.5, "kl": 0.1} for s in range(5)])
    write_metrics(tmp_path, 1, [{"step": 0, "reward": 0.7}])
    metrics = read_metrics(launch_directories(tmp_path))
    assert metrics["reward"].steps == [1] and "kl" not in metrics


@pytest.mark.parametrize("command", ["val", "test"])
def test_an_evaluation_after_training_takes_nothing_from_the_run_s_curves(command, tmp_path):
    """Its one line says step 0: it replaced all that the run had logged, and a model card said that it had trained for 0 steps."""
    write_metrics(tmp_path, 0, [{"step": s, "reward": 0.1 * s, "val/accuracy": 0.3} for s in range(5)])
    write_metrics(tmp_path, 1, [{"step": 0, "epoch": 0, f"{command}/accuracy": 0.9, f"{command}/reward": 0.9}])
    for version, beta in ((0, 0.1), (1, 0.2)):
        (tmp_path / f"logs/version_{version}/config.yaml").write_text(f"model: {{beta: {beta}}}")
    run = read_run(tmp_path)
    assert run.metrics["reward"].steps == [1, 2, 3, 4, 5] and set(run.metrics) == {"reward", "val/accuracy"}
    assert run.metrics["val/accuracy"].values == [0.3] * 5
    assert num_steps(run) == 5 and run.launches == 1 and run.settings == {"model.beta": "0.1"}


def test_a_folder_of_evaluations_alone_shows_them(tmp_path):
    write_metrics(tmp_path, 0, [{"step": 0, "epoch": 0, "val/accuracy": 0.9}])
    assert read_run(tmp_path).metrics["val/accuracy"].values == [0.9]


def test_a_line_that_is_being_written_and_values_that_are_not_numbers_are_left_out(tmp_path):
    rows = [{"step": 0, "reward": 1.0, "kl": "nan"}, {"step": 1, "reward": "", "val/accuracy": 0.5}]
    write_metrics(tmp_path, 0, rows, tail="0.3,0.")
    metrics = read_metrics(launch_directories(tmp_path))
    assert {name: (s.steps, s.values) for name, s in metrics.items()} == {
        "reward": ([1], [1.0]),
        "val/accuracy": ([2], [0.5]),
    }


def test_groups_with_equal_rewards_are_marked_dead_and_others_are_not(tmp_path):
    rows = [completion_row(0, 7, s, reward=1.0, advantage=0.0) for s in range(2)]
    rows += [completion_row(0, 8, s, reward=float(s), advantage=2.0 * s - 1) for s in range(2)]
    rows += [completion_row(1, 7, s, reward=float(s), advantage=2.0 * s - 1) for s in range(2)]
    rows += [completion_row(1, 9, s, reward=None, advantage=0.0) for s in range(2)]
    write_completions(tmp_path, rows)
    columns = read_completions(tmp_path, max_rows=100)
    assert columns["dead"] == [1, 1, 0, 0, 0, 0, 1, 1]
    assert columns["reward"][-1] is None and columns["rewards"] == {"accuracy": columns["reward"]}
    assert columns["prompts"] == ["What is 7?", "What is 8?", "What is 9?"]
    assert columns["prompt"] == [0, 0, 1, 1, 0, 0, 2, 2]


def test_too_many_completions_are_thinned_by_whole_steps(tmp_path):
    write_completions(tmp_path, [completion_row(step, 1, s) for step in range(10) for s in range(2)])
    columns = read_completions(tmp_path, max_rows=11)
    assert sorted(set(columns["step"])) == [1, 4, 7, 10] and columns["total"] == 20
    assert evenly_spaced_steps({0: 50, 1: 50, 2: 50}, max_rows=10) == [0, 2]


def test_an_unreadable_file_of_a_running_run_is_passed_over(tmp_path):
    write_completions(tmp_path, [completion_row(0, 1, 0)])
    (tmp_path / "completions" / "step-00000001.rank0.parquet").write_bytes(b"PAR1 torn")
    (tmp_path / "completions" / "step-00000002.rank0.parquet.part").write_bytes(b"")
    assert read_completions(tmp_path, max_rows=10)["step"] == [1]


@pytest.mark.parametrize(
    ("metric", "values", "title", "level"),
    [
        ("frac_reward_zero_std", [0.0] * 8 + [0.6, 0.6], "Dead groups", "warn"),
        ("frac_reward_zero_std", [1.0] * 10, "Dead groups", "bad"),
        ("completions/clipped_ratio", [0.0] * 8 + [0.2, 0.2], "Truncated completions", "warn"),
        ("rewards/accuracy/errors", [0.0, 3.0], "Reward errors", "bad"),
        ("frac_reward_none", [0.25], "Completions without a reward", "bad"),
        ("skipped_updates", [0.0, 1.0], "Skipped updates", "bad"),
        ("sampling/sampling_logp_difference/mean", [0.1], "Sampler and trainer disagree", "warn"),
        ("reward", [0.5] * 10 + [0.4] * 10, "Reward has not risen", "warn"),
        ("entropy", [1.0] * 10 + [0.01] * 10, "Entropy has collapsed", "warn"),
    ],
)
def test_what_stands_out_is_said(metric, values, title, level):
    (notice,) = notices({metric: Series(list(range(len(values))), values)}, {})
    assert (notice.title, notice.level) == (title, level)


@pytest.mark.parametrize(
    ("reward", "title", "level"),
    [
        (0.97, "Dead groups, too easy", "warn"),
        (0.02, "Dead groups, too hard", "bad"),
        (0.5, "Dead groups", "bad"),
    ],
)
def test_dead_groups_are_too_easy_or_too_hard_by_their_mean_reward(reward, title, level):
    steps = list(range(10))
    metrics = {"frac_reward_zero_std": Series(steps, [0.96] * 10), "reward": Series(steps, [reward] * 10)}
    (notice,) = notices(metrics, {})
    assert (notice.title, notice.level) == (title, level)
    assert "96% of the groups" in notice.text and f"mean reward there is {reward}" in notice.text


def test_a_run_that_learns_from_its_teacher_alone_has_no_dead_groups():
    """Its rewards are only watched, with weight 0: it was told that its prompts are too hard."""
    steps, zeros = list(range(20)), [0.0] * 20
    metrics = {
        "frac_reward_zero_std": Series(steps, [1.0] * 20),
        "reward": Series(steps, zeros),
        "rewards/accuracy/mean": Series(steps, [0.4] * 20),
    }
    assert [notice.title for notice in notices(metrics, {})] == ["Dead groups, too hard", "Reward has not risen"]
    taught = metrics | {"distillation/divergence": Series(steps, [0.1] * 20)}
    for weights in ("[0.0]", "[0, 0.0]", "0,0.0", "0"):
        assert notices(taught, {"model.reward_weights": weights}) == []
    (notice,) = notices(taught | {"reward": Series(steps, [n / 40 for n in steps])}, {})
    assert "were taught by the teacher alone" in notice.text


@pytest.mark.parametrize("settings", [{}, {"model.reward_weights": "[0.0, 1.0]"}, {"model.reward_weights": "null"}])
def test_a_run_with_a_teacher_and_rewards_that_are_never_earned_is_told_so(settings):
    """One step of ``distillation/divergence`` silenced both notices, whatever the rewards counted for."""
    steps, zeros = list(range(20)), [0.0] * 20
    taught = {"frac_reward_zero_std": Series(steps, [1.0] * 20), "reward": Series(steps, zeros)}
    taught |= {"distillation/divergence": Series(steps, [0.1] * 20)}
    assert [notice.title for notice in notices(taught, settings)] == ["Dead groups, too hard", "Reward has not risen"]
    run = Run("a", taught, launches=1, age=0.0, settings=settings)
    assert headline(run) == "mean reward stayed at 0 in 19 steps"


def run_with(summary=None, weights="null", **metrics) -> Run:
    series = {name.replace("__", "/"): Series(list(range(1, len(v) + 1)), v) for name, v in metrics.items()}
    settings = {"model.reward_weights": weights}
    return Run("a", series, launches=1, age=0.0, settings=settings, summary=summary or {})


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (
            run_with({"strict_before": 0.3425, "strict_after": 0.94, "steps": 80}, reward=[0.0] * 80),
            "held-out accuracy rose from 34% to 94% in 80 steps",
        ),
        (
            run_with(reward=[0.0] * 40, val__accuracy=[0.5, 0.9, 0.03]),
            "held-out accuracy fell from 50% to 3% between steps 1 and 3",
        ),
        (
            run_with(reward=[0.25] * 2 + [0.5] * 18, val__accuracy=[0.5]),
            "mean reward rose from 0.25 to 0.5 in 20 steps",
        ),
        (run_with(reward=[0.25]), "mean reward stayed at 0.25 in 1 step"),
        (run_with(kl=[0.0]), ""),
        (
            run_with(loss=[0.7] * 6, val__accuracy=[0.6, 0.7]),
            "held-out accuracy rose from 60% to 70% between steps 1 and 2",
        ),
        (
            run_with(weights="[0.0]", reward=[0.0] * 3, distillation__divergence=[0.5, 0.25, 0.125]),
            "divergence from the teacher fell from 0.5 to 0.125 in 3 steps",
        ),
    ],
)
def test_the_top_says_what_happened(run, said):
    assert headline(run) == said


def test_phases_exclude_calls_of_rewards_and_add_up_to_the_step():
    steps = {
        "step_time": [4.0, 6.0], "time/generate": [2.0, 4.0], "time/rewards": [1.0, 0.0], "time/train": [0.5, 0.5],
        "time/rewards/wait": [1.0, 0.0], "time/rewards/judge": [2.0, 2.0], "time/rewards/judge/max": [3.0, 3.0],
    }  # fmt: skip
    phases = phase_seconds({name: Series([0, 1], values) for name, values in steps.items()})
    assert phases == {"generate": 3.0, "rewards": 0.5, "train": 0.5, "other": 1.0}  # of a mean step of 5 s


def test_phases_of_ranks_that_wait_for_each_other_are_no_more_than_the_step():
    slowest = {"step_time": 4.0, "time/generate": 3.0, "time/train": 2.0}  # rank 0 generated long, rank 1 trained long
    phases = phase_seconds({name: Series([0], [seconds]) for name, seconds in slowest.items()})
    assert phases == pytest.approx({"generate": 2.4, "train": 1.6})


def test_a_run_that_has_logged_no_step_has_its_config_all_the_same(tmp_path):
    write_completions(tmp_path, [completion_row(0, 0, 0)])
    for version, beta in ((0, 0.1), (1, 0.2)):
        (tmp_path / f"logs/version_{version}").mkdir(parents=True)
        (tmp_path / f"logs/version_{version}/config.yaml").write_text(f"model: {{beta: {beta}}}")
    assert read_run(tmp_path).settings == {"model.beta": "0.2"}


def test_the_phases_of_a_real_run_are_those_of_the_step(tiny_model_dir, tmp_path):
    logger = CSVLogger(tmp_path, name="logs", flush_logs_every_n_steps=1)
    fit(tiny_model_dir, tmp_path, max_steps=2, trainer={"logger": logger, "log_every_n_steps": 1})
    metrics = read_metrics(launch_directories(tmp_path))
    assert "time/rewards/share_of_digits/max" in metrics  # a call, no phase
    phases = phase_seconds(metrics)
    assert set(phases) == {"generate", "old_and_reference", "rewards", "train", "other"}
    assert sum(phases.values()) == pytest.approx(sum(metrics["step_time"].values) / 2)


def test_a_healthy_run_has_no_notice():
    rising = Series(list(range(20)), [i / 20 for i in range(20)])
    flat = Series(list(range(20)), [0.1] * 20)
    healthy = {
        "reward": rising,
        "entropy": rising,
        "frac_reward_zero_std": flat,
        "rewards/a/errors": Series([0], [0.0]),
    }
    assert notices(healthy, {}) == []


def embedded(page: str, name: str):
    text = re.search(rf'id="data-{name}">([^<]*)</script>', page)[1]
    return json.loads(gzip.decompress(base64.b64decode(text)))


def test_the_page_embeds_the_data_and_allows_its_own_script_alone(tmp_path):
    write_metrics(tmp_path / "one", 0, [{"step": 0, "reward": 0.123456789}])
    write_completions(tmp_path / "one", [completion_row(0, 1, 0, completion="</script><b>hi</b>")])
    page = render_page([read_run(tmp_path / "one")])
    assert embedded(page, "overview")["runs"][0]["metrics"]["reward"] == [[1], [0.123457]]
    assert embedded(page, "completions")[0]["completion"] == ["</script><b>hi</b>"]
    assert "<b>hi</b>" not in page
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(script) == 1  # no part of it holds </script>
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page and "default-src 'none'" in page
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)


def test_the_command_writes_the_page_into_the_run_and_refuses_a_directory_without_one(tmp_path, capsys):
    write_metrics(tmp_path / "one", 0, [{"step": 0, "reward": 0.5}])
    assert main([str(tmp_path / "one")]) == 0
    assert (tmp_path / "one" / "report.html").read_text().startswith("<!DOCTYPE html>")
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 1
    assert "no metrics.csv" in capsys.readouterr().err


def test_the_plotting_library_is_the_one_from_its_package():
    folder = files("grpo_lightning.report") / "vendor" / "uplot"
    manifest = json.loads((folder / "package.json").read_text())
    for name, checksum in manifest["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum
    assert "MIT" in (folder / "LICENSE").read_text()


def test_cut_and_foreign_files_cost_no_more_than_themselves(tmp_path):
    write_metrics(tmp_path, 0, [{"step": 0, "reward": 0.5, "constructor": 1.0}])
    write_metrics(tmp_path, 1, [{"step": 1, "reward": 0.7}])
    write_completions(tmp_path, [completion_row(0, 1, s) for s in range(2)])
    folder = tmp_path / "completions"
    pq.write_table(pa.table({"other": [1]}), folder / "step-00000001.rank0.parquet")
    pq.write_table(pa.table({"x": ["a"]}), folder / "step-foreign.parquet")
    whole = (folder / "step-00000000.rank0.parquet").read_bytes()
    (folder / "step-00000002.rank0.parquet").write_bytes(whole[: len(whole) // 2])
    for junk in (b"", b'{"python": ', b"[1]", b"\xff\xfe\x00", b"a: [1", b"just text"):
        for name in ("system.json", "summary.json", "logs/version_1/config.yaml"):
            (tmp_path / name).write_bytes(junk)
        run = read_run(tmp_path)
        assert run.metrics["reward"].values == [0.5, 0.7]
        assert run.completions["step"] == [1, 1]
        assert (run.system, run.summary, run.settings) == ({}, {}, {})
        assert render_page([run])
        (tmp_path / "logs/version_2").mkdir(exist_ok=True)
        (tmp_path / "logs/version_2/metrics.csv").write_bytes(junk)
        assert read_run(tmp_path).metrics["reward"].values == [0.5, 0.7]
        (tmp_path / "logs/version_2/metrics.csv").unlink()


def test_images_are_thumbnails_of_the_run_and_nothing_else(tmp_path):
    small = "data:image/jpeg;base64,AAAA"
    hostile = ["https://elsewhere/pixel.png", "data:image/svg+xml,<svg/>", small + "A" * 20_000, small]
    write_completions(tmp_path, [completion_row(0, 1, s, images=hostile) for s in range(2)] + [completion_row(0, 2, 0)])
    columns = read_completions(tmp_path, max_rows=10)
    assert columns["thumbnails"] == [(small,), ()] and columns["images"] == [0, 0, 1]


def test_files_of_versions_without_images_are_read(tmp_path):
    write_completions(tmp_path, [completion_row(0, 1, 0)])
    (path,) = (tmp_path / "completions").iterdir()
    pq.write_table(pq.ParquetFile(path).read().drop_columns(["images"]), path)
    columns = read_completions(tmp_path, max_rows=10)
    assert columns["completion"] == ["It is 1."] and columns["thumbnails"] == [()]
