"""Files of a run directory that another program wrote, or a bad disk: each costs no more than itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_runs import completion_row, write_completions, write_metrics

from grpo_lightning.commands.report import main
from grpo_lightning.report import read_run, render_page
from grpo_lightning.report.headline import headline
from grpo_lightning.report.model_card import model_card
from grpo_lightning.report.run import Run

PARQUET = "completions/step-00000001.rank0.parquet"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_metrics(tmp_path, 0, [{"step": 0, "reward": 0.5, "step_time": 1.0, "time/train": 0.5}])
    write_metrics(tmp_path, 1, [{"step": 1, "reward": 0.7, "step_time": 1.0, "time/train": 0.5}])
    write_completions(tmp_path, [completion_row(step, 1, sample) for step in range(2) for sample in range(2)])
    return tmp_path


def shown(folder: Path) -> Run:
    """The run, of which the page and the card can be made."""
    run = read_run(folder)
    assert render_page([run]) and model_card(run, "org/base")
    return run


@pytest.mark.parametrize(
    "text",
    [
        '{"steps": null}', '{"steps": "x"}', '{"steps": 1e999}', '{"steps": NaN}', '{"steps": [1]}', '{"other": Infinity}',
        f'{{"steps": {"9" * 400}}}', '{"strict_before": NaN, "strict_after": 1}', '{"samples": 5}', "[" * 100_000,
    ],
)  # fmt: skip
def test_a_summary_of_something_else_leaves_the_metrics_to_be_told(text: str, folder: Path) -> None:
    (folder / "summary.json").write_text(text)
    assert headline(shown(folder)) == "mean reward rose from 0.5 to 0.7 in 2 steps"


def test_a_share_beyond_all_bounds_is_written_all_the_same(folder: Path) -> None:
    (folder / "summary.json").write_text('{"strict_before": 0.5, "strict_after": 1e306, "steps": 2}')
    assert headline(shown(folder)) == "held-out accuracy rose from 50% to 1e+308% in 2 steps"


@pytest.mark.parametrize("text", ['{"packages": [1]}', '{"packages": null}', '{"ranks": NaN}', '{"cpu_cores": 1e999}'])
def test_a_system_of_something_else_costs_its_own_entries(text: str, folder: Path) -> None:
    (folder / "system.json").write_text(text)
    assert not any(shown(folder).system.values())


@pytest.mark.parametrize(
    "text",
    ["a: &a [*a]", "a: &a {b: *a}", "a: 2001-99-99", "a: !!timestamp x", "a: !!int x", "a: !!float x", "[" * 5000],
)
def test_a_config_that_yaml_cannot_make_sense_of_is_shown_as_text(text: str, folder: Path) -> None:
    (folder / "logs/version_1/config.yaml").write_text(text)
    run = shown(folder)
    assert (run.config, run.settings) == (text, {})


@pytest.mark.parametrize("name", ["system.json", "summary.json", "logs/version_1/config.yaml", PARQUET])
def test_a_folder_in_the_place_of_a_file_is_no_file(name: str, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    assert shown(folder).metrics["reward"].values == [0.5, 0.7]


@pytest.mark.parametrize("line", ["9" * 5000 + ",1", "1,1e308\n2,1e308", "1,1e400", "\u0663,1"])
def test_numbers_that_no_curve_can_show_are_left_out(line: str, folder: Path) -> None:
    (folder / "logs/version_1/metrics.csv").write_text(f"step,step_time\n{line}\n", encoding="utf-8")
    assert shown(folder).metrics["step_time"].values == [1.0]


def test_metrics_that_are_a_folder_are_no_launch(folder: Path) -> None:
    (folder / "logs/version_1/metrics.csv").unlink()
    (folder / "logs/version_1/metrics.csv").mkdir()
    assert shown(folder).metrics["reward"].values == [0.5]


def with_column(name: str, values: pa.Array) -> Callable[[Path], None]:
    """Puts a column in the place of one of a file's own."""

    def change(path: Path) -> None:
        table = pq.read_table(path)
        pq.write_table(table.set_column(table.column_names.index(name), name, values), path)

    return change


NO_UTF8 = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")]
)


@pytest.mark.parametrize(
    ("name", "values", "steps"),
    [
        ("step", pa.nulls(2, pa.int32()), [1, 1]),
        ("length", pa.nulls(2, pa.int32()), [1, 1]),
        ("truncated", pa.nulls(2, pa.bool_()), [1, 1]),
        ("prompt", pa.nulls(2, pa.string()), [1, 1]),
        ("completion", NO_UTF8, [1, 1]),
        ("reward", pa.nulls(2, pa.float64()), [1, 1, 2, 2]),
        ("reward", pa.array([float("inf"), float("-inf")]), [1, 1, 2, 2]),
        ("advantage", pa.array([float("inf"), float("nan")]), [1, 1, 2, 2]),
    ],
)  # fmt: skip
def test_completions_with_gaps_are_someone_elses(name: str, values: pa.Array, steps: list[int], folder: Path) -> None:
    with_column(name, values)(folder / PARQUET)
    completions = shown(folder).completions
    assert completions is not None and completions["step"] == steps


def test_a_bit_that_has_flipped_in_a_parquet_file_ends_no_report(folder: Path) -> None:
    whole, chance = (folder / PARQUET).read_bytes(), random.Random(0)
    for _ in range(300):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        (folder / PARQUET).write_bytes(data)
        completions = read_run(folder).completions
        assert completions is not None and set(completions["step"]) >= {1}


def test_a_page_that_cannot_be_written_is_said_in_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "taken").touch()
    assert main([str(folder), "--output", str(folder / "taken/report.html")]) == 1
    assert "report.html could not be written" in capsys.readouterr().err
    (folder / "report.html").mkdir()
    assert main([str(folder)]) == 1
    assert not (folder / "report.html.part").exists()


def test_a_folder_whose_name_is_not_utf_8_and_half_a_character_have_their_page(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "summary.json").write_text('{"samples": [{"prompt": "\\ud83d", "before": "b", "after": "\\ud83d"}]}')
    named = folder.rename(folder.with_name("caf" + chr(0xDCE9)))
    page = named.with_name("page.html")
    assert main([str(named), "--output", str(page)]) == 0
    assert "caf\\udce9" in page.read_text(encoding="utf-8")
    assert str(page) in capsys.readouterr().out
