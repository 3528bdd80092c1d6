"""What the page shows of one completion, and how much room the list has without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from browser import console_errors, needs_chromium, open_page, texts, wait
from report_runs import completion_row, report, write_completions, write_metrics

pytestmark = needs_chromium

LIST_OF_TOOLS = '[{"name": "add", "arguments": {"a": 1}}, {"name": "stop"}]'


def one_row(folder: Path, **values: Any) -> Path:
    """The page of a run with one completion."""
    write_metrics(folder / "run", 0, [{"step": 0, "reward": 1.0}])
    write_completions(folder / "run", [completion_row(0, 1, 0, **values)])
    return report(folder, folder / "run")


def shown_values(driver: Any) -> dict[str, str]:
    """Of the completion that is open, by name."""
    cells = texts(driver, "#detail .values span")
    return dict(zip(cells[::2], cells[1::2], strict=True))


def open_first(driver: Any) -> None:
    driver.execute_script("document.querySelector('#rows .row').click()")


@pytest.mark.parametrize(
    ("columns", "name", "said"),
    [
        ('{"seen": NaN, "ground_truth": "6"}', "columns", '{"seen": NaN, "ground_truth": "6"}'),  # of another program
        ("no JSON", "columns", "no JSON"),
        (json.dumps({"ground_truth": "6", "seen": [1, None]}), "seen", "[1,null]"),
        ("null", "tokens", "4"),
    ],
)
def test_columns_that_json_has_no_form_for_are_shown_as_they_are(columns, name, said, driver, tmp_path):
    open_page(driver, one_row(tmp_path, columns=columns))
    open_first(driver)
    assert shown_values(driver)[name] == said
    assert texts(driver, "#detail .text")[1] == "It is 1."
    assert console_errors(driver) == []


def test_not_a_number_breaks_no_part_of_the_page(driver, tmp_path):
    """In metrics, rewards, a group's columns and the summary, as Python and other programs write them."""
    run = tmp_path / "run"
    nan = float("nan")
    write_metrics(
        run, 0, [{"step": s, "reward": nan if s == 1 else 0.5, "kl": nan, "val/accuracy": 0.5} for s in range(3)]
    )
    rows = [completion_row(s, 1, n, columns='{"x": NaN}', mean_logprob=nan) for s in (0, 2) for n in (0, 1)]
    rows[0] |= {"reward": nan, "rewards/accuracy": nan, "advantage": nan}
    write_completions(run, rows)
    sample = {"prompt": "1?", "before": "2", "after": "3", "reward_before": nan, "reward_after": 1.0}
    (run / "summary.json").write_text(json.dumps({"strict_before": nan, "strict_after": 0.5, "samples": [sample]}))
    open_page(driver, report(tmp_path, run))
    wait(driver, "document.querySelectorAll('.card canvas').length >= 1")
    assert texts(driver, "#count") == ["4 of 4"]
    open_first(driver)
    assert shown_values(driver)["columns"] == '{"x": NaN}'
    assert not any("could not be drawn" in text for text in texts(driver, "#notices"))
    assert console_errors(driver) == []


def test_a_list_that_a_policy_wrote_is_no_conversation(driver, tmp_path):
    open_page(driver, one_row(tmp_path, completion=LIST_OF_TOOLS))
    assert texts(driver, "#rows .row .completion") == [LIST_OF_TOOLS]
    open_first(driver)
    assert texts(driver, "#detail .text")[1] == LIST_OF_TOOLS
    assert console_errors(driver) == []


@pytest.mark.parametrize("width", [1280, 1600])
def test_the_list_has_the_whole_width_until_a_completion_is_open(width, driver, small, tmp_path):
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    share = "return document.querySelector('.grid').clientWidth / document.querySelector('.browser').clientWidth"
    try:
        open_page(driver, report(tmp_path, small))
        assert driver.execute_script(share) > 0.99
        assert not driver.execute_script("return document.querySelector('.grid').classList.contains('more-right')")
        cut = "return [...document.querySelectorAll('#columns .title')].some(title => title.scrollWidth > title.clientWidth)"
        assert not driver.execute_script(cut)
        open_first(driver)
        assert driver.execute_script(share) < 0.75 and texts(driver, "#detail .title")
        driver.execute_script("document.querySelector('#detail .close').click()")
        assert driver.execute_script(share) > 0.99 and not texts(driver, "#detail .title")
        rows = driver.execute_script(
            "return new Set([...document.querySelectorAll('#filters > *')].map(e => e.offsetTop + e.offsetHeight / 2 | 0)).size"
        )
        assert rows == 1  # the filters stand in one line
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
