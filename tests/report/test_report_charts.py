from __future__ import annotations

import csv
import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from browser import console_errors, needs_chromium, texts, type_into, wait
from report_runs import completion_row, report, write_completions, write_metrics

pytest.importorskip("selenium")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of one config and a run of another; curves of 80 steps, completions at steps 1 and 80."""
    folder = tmp_path_factory.mktemp("charts")
    runs = []
    for name, seed, beta in (("one", 0, 0.0), ("two", 1, 0.0), ("other", 0, 0.5)):
        run = folder / name
        metrics = [
            {"step": s, "reward": 10.0 ** (s % 3 - 1) if seed == 0 else 3.0, "step_time": 2.0, "num_tokens": 1000 * (s + 1),
             "kl": 26.4 + 1e-4 * s, "entropy": 0.0, "reward_std": 0.5, "constructor": 1.0, "__proto__": 2.0, "generation/tokens_per_second": 5e3}
            for s in range(80)
        ]  # fmt: skip
        write_metrics(run, 0, metrics)
        config = f"seed_everything: {seed}\ntrainer:\n  default_root_dir: {name}\nmodel:\n  beta: {beta}\n"
        (run / "logs" / "version_0" / "config.yaml").write_text(config)
        rows = [completion_row(s, 11, n, length=10 * (n + 1)) for s in (0, 79) for n in range(4)]
        write_completions(run, rows)
        runs.append(run)
    sample = {"prompt": "1 + 1?", "before": "It is 3.", "after": "It is 2.", "reward_before": 0.0, "reward_after": 1.0}
    (runs[0] / "summary.json").write_text(json.dumps({"samples": [sample, sample | {"before": "It is 2."}]}))
    return report(folder, *runs)


def show(driver: Any, page: Path, address: str = "") -> None:
    driver.get("about:blank")  # a change of the address alone would not load the page
    driver.get(page.as_uri() + address)
    wait(driver, "document.body.dataset.ready === 'yes'")
    wait(driver, "document.querySelectorAll('.card canvas').length >= 1")


def bring_into_view(driver: Any, metric: str) -> None:
    """Cards draw themselves once they are seen."""
    driver.execute_script(f"document.querySelector('[data-metric={metric}]').scrollIntoView({{block: 'center'}})")


def hover(driver: Any, metric: str, share: float, click: bool = False) -> None:
    """Puts the mouse over a card's curve, at a share of its width."""
    over = driver.find_element(By.CSS_SELECTOR, f"[data-metric='{metric}'] .u-over")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", over)
    width = over.size["width"]
    move = ActionChains(driver, duration=0).move_to_element_with_offset(over, int(width * (share - 0.5)), 0)
    (move.click() if click else move).perform()


def evaluate(driver: Any, script: str, before: str = "") -> Any:
    """A value of functions that the page's script keeps to itself, told by a copy of its sources."""
    parts = Path(__file__).parents[2] / "grpo_lightning" / "report" / "page"
    sources = "\n".join((parts / f"{name}.js").read_text() for name in ("format", "metrics", "axes"))
    return driver.execute_script(f"{before}{sources}\nreturn {script}")


def test_axes_end_at_the_last_step_and_no_two_ticks_look_alike(driver, page):
    show(driver, page)
    assert evaluate(driver, "endingTicks(0, 79, 4, true)") == [0, 20, 40, 60, 79]
    assert evaluate(driver, "endingTicks(0, 2, 4, true)") == [0, 1, 2]
    assert evaluate(driver, "endingTicks(5, 5, 4, true)") == [5]
    assert evaluate(driver, "tickTexts([26.4, 26.402, 26.404])") == ["26.4", "26.402", "26.404"]
    assert evaluate(driver, "tickTexts([0, 0.5, 1])") == ["0", "0.5", "1"]
    assert evaluate(driver, "tickTexts([-1.00001, -1.00002, null])") == ["−1.00001", "−1.00002", ""]


def test_metrics_named_like_javascripts_own_things_are_drawn(driver, page):
    show(driver, page)
    driver.execute_script("document.querySelector('#charts details').open = true")
    driver.execute_script("document.querySelector('[data-metric=constructor]').scrollIntoView()")
    wait(driver, "document.querySelector('[data-metric=constructor] canvas')")
    assert {"constructor", "__proto__"} <= set(texts(driver, "#charts details .card .name"))
    assert console_errors(driver) == []


def test_a_tooltip_on_the_line_says_step_and_values(driver, page):
    show(driver, page)
    hover(driver, "reward", 0.5)
    wait(driver, "!document.querySelector('[data-metric=reward] .tip').hidden")
    tip = driver.execute_script("return document.querySelector('[data-metric=reward] .tip').innerText")
    lines = tip.splitlines()
    step = int(lines[0].removeprefix("step "))
    assert 37 <= step <= 42
    assert [line.split()[1] for line in lines[1:]] == ["one", "two", "other"]
    assert float(lines[1].split()[0]) == 10.0 ** ((step - 1) % 3 - 1) and float(lines[2].split()[0]) == 3.0
    others = "return [...document.querySelectorAll('.tip')].filter(tip => !tip.hidden).length"
    assert driver.execute_script(others) == 1


def test_a_click_on_a_curve_lists_the_completions_of_the_nearest_step_that_has_some(driver, page):
    show(driver, page)
    hover(driver, "reward", 0.9, click=True)
    wait(driver, "document.querySelector('#count').textContent.startsWith('12 of')")
    assert set(texts(driver, "#rows .row .step")) == {"80"}
    assert driver.execute_script("return document.querySelector('#from-step').value") == "80"


def test_a_log_axis_draws_positive_values_and_leaves_others_as_they_are(driver, page):
    show(driver, page)
    drawn = "document.querySelector('[data-metric={0}] canvas')"
    driver.execute_script("window.linear = {}")
    for metric in ("reward", "entropy"):  # from 0.1 to 10, and 0 throughout
        bring_into_view(driver, metric)
        wait(driver, drawn.format(metric))
        driver.execute_script(f"linear.{metric} = {drawn.format(metric)}.toDataURL()")
    driver.execute_script("document.querySelector('#log').click()")
    wait(driver, "location.hash.includes('log=true')")
    bring_into_view(driver, "reward")
    wait(driver, f"{drawn.format('reward')} && {drawn.format('reward')}.toDataURL() !== linear.reward")
    bring_into_view(driver, "entropy")
    wait(driver, drawn.format("entropy"))
    assert driver.execute_script(f"return {drawn.format('entropy')}.toDataURL() === linear.entropy")
    assert console_errors(driver) == []


def test_a_card_grows_and_escape_brings_it_back(driver, page):
    show(driver, page)
    width = "document.querySelector('[data-metric=reward]').clientWidth"
    before = driver.execute_script(f"return {width}")
    driver.execute_script("document.querySelector('[data-metric=reward] .enlarge').click()")
    wait(driver, f"{width} > 2 * {before} && document.querySelector('[data-metric=reward] canvas')")
    ActionChains(driver).send_keys("\ue00c").perform()
    wait(driver, f"{width} === {before}")


def test_a_chart_is_saved_as_values_and_as_a_picture(driver, page, downloads):
    show(driver, page)
    for kind in ("csv", "png"):
        driver.execute_script(f"document.querySelector('[data-metric=\"reward\"] .{kind}').click()")
    for name in ("reward.csv", "reward.png"):
        wait_for(downloads / name)
    rows = list(csv.reader((downloads / "reward.csv").read_text().splitlines()))
    assert rows[0] == ["step", "one: reward", "two: reward", "other: reward"]
    assert rows[1:4] == [["1", "0.1", "3", "0.1"], ["2", "1", "3", "1"], ["3", "10", "3", "10"]] and len(rows) == 81
    head = (downloads / "reward.png").read_bytes()[:24]
    width, height = struct.unpack(">II", head[16:])
    assert head[:8] == b"\x89PNG\r\n\x1a\n" and width > 200 and height > 200


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} was not saved"
        time.sleep(0.02)


def test_seeds_of_one_config_become_one_mean_with_a_spread(driver, page):
    show(driver, page)
    driver.execute_script("document.querySelector('#together').click()")
    wait(driver, "document.querySelectorAll('[data-metric=reward] .now .dot').length === 2")
    driver.execute_script("document.querySelector('#smoothing').value = 0")
    hover(driver, "reward", 0.5)
    wait(driver, "!document.querySelector('[data-metric=reward] .tip').hidden")
    lines = driver.execute_script("return document.querySelector('[data-metric=reward] .tip').innerText").splitlines()
    step = int(lines[0].removeprefix("step "))
    mean, deviation = lines[1].split(" mean of 2 seeds: one, two")[0].split(" ± ")
    value = 10.0 ** ((step - 1) % 3 - 1)
    assert float(mean) == pytest.approx((value + 3) / 2, rel=1e-2)
    assert float(deviation) == pytest.approx(abs(value - 3) / 2**0.5, rel=1e-2)  # of two values, with n - 1
    assert lines[2].endswith("other")
    assert console_errors(driver) == []


def test_the_address_keeps_what_was_chosen(driver, page):
    show(driver, page)
    driver.execute_script("document.querySelector('#log').click()")
    driver.execute_script("document.querySelectorAll('#runs input')[1].click()")
    driver.execute_script("""const axis = document.querySelector('#axis');
        axis.value = 'tokens'; axis.dispatchEvent(new Event('change'))""")
    type_into(driver, "#from-step", "80")
    wait(driver, "location.hash.includes('fromStep=80')")
    driver.execute_script("document.querySelector('[data-sort=length]').click()")
    driver.execute_script("document.querySelector('#rows .row').click()")
    address = driver.execute_script("return location.hash")
    show(driver, page, address)
    state = """return [document.querySelector('#log').checked, document.querySelector('#axis').value,
        [...document.querySelectorAll('#runs input')].map(box => box.checked), document.querySelector('#count').textContent,
        document.querySelector('#rows .row.selected .length').textContent, location.hash]"""
    assert driver.execute_script(state) == [True, "tokens", [True, False, True], "8 of 24", "40", address]
    assert "Step 80" in texts(driver, "#detail .title")[0]
    assert console_errors(driver) == []


def test_each_reward_is_a_column_under_its_heading(driver, page):
    show(driver, page)
    heads = driver.execute_script(
        "return [...document.querySelectorAll('#columns button')].map(e => [e.dataset.sort, e.getBoundingClientRect().left])"
    )
    cells = driver.execute_script(
        "return [...document.querySelector('#rows .row').children].map(e => [e.dataset.column, e.getBoundingClientRect().left])"
    )
    assert [name for name, _ in heads] == [name for name, _ in cells]
    assert "rewards/accuracy" in dict(heads)
    edge = 3  # of a row of several runs, in pixels; its padding is smaller by as much
    assert all(abs(dict(heads)[name] - left) <= edge for name, left in cells)
    driver.execute_script("document.querySelector('[data-sort=\"rewards/accuracy\"]').click()")
    arrow = driver.execute_script("""const head = document.querySelector('#columns').getBoundingClientRect();
        const box = document.querySelector('[data-sort="rewards/accuracy"] .arrow').getBoundingClientRect();
        return box.width > 0 && box.right <= head.right""")
    assert arrow


def test_names_of_cards_are_whole_and_the_completion_has_the_most_room(driver, page):
    show(driver, page)
    names = driver.execute_script(
        "return [...document.querySelectorAll('.card .name')].map(e => [e.textContent, e.scrollWidth > e.clientWidth])"
    )
    assert ["Reward spread in a batch", False] in names and not any(is_cut for _, is_cut in names)
    widths = driver.execute_script(
        "return [...document.querySelector('#rows .row').children].map(e => [e.getBoundingClientRect().width, e.dataset.column])"
    )
    assert max(widths)[1] == "completion"


def test_a_curve_at_zero_has_an_axis_up_to_one(driver, page):
    show(driver, page)
    assert evaluate(driver, "isNothing([[0, 1, 2], [0, null, 0], [null, 0, 0]])") is True
    assert evaluate(driver, "isNothing([[0, 1, 2], [0, 0, 0], [0, 1e-9, 0]])") is False


def test_held_out_samples_are_compared_and_equal_texts_are_said_to_be(driver, page):
    show(driver, page)
    driver.execute_script("document.querySelector('#held-out details').open = true")
    first, second = texts(driver, "#held-out .text")
    assert first.startswith("only in before (reward 0) only in after (reward 1)")
    assert second == "Word for word the same in before (reward 0) and after (reward 1).It is 2."
    marks = driver.execute_script(
        "return [...document.querySelectorAll('#held-out .text > del, #held-out .text > ins')].map(e => e.textContent)"
    )
    assert marks == ["3", "2"]


def test_percentiles_of_length_have_curves(driver, page):
    show(driver, page, "#metrics=length_p")
    assert texts(driver, ".card .name") == ["Length, 10th percentile", "Length, median", "Length, 90th percentile"]
    values = [
        texts(driver, f"[data-metric='completions/length_p{share}'] .now span:not(.dot)")[0] for share in (10, 50, 90)
    ]
    assert values == ["10", "20", "40"]  # of 10, 20, 30 and 40 tokens


def test_a_phone_shows_the_prompt_of_a_row_and_hints_that_headings_scroll(driver, page):
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        show(driver, page)
        assert texts(driver, "#rows .row .prompt")[0] == "What is 11?"
        assert driver.execute_script("return document.querySelector('#columns').classList.contains('more-right')")
        assert driver.execute_script("return document.documentElement.scrollWidth") == 390
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("kl", "nats"),
        ("val/hard/accuracy", "share"),
        ("update/changed_since_start", "share"),
        ("generation/tokens_per_second", "tokens/s"),
        ("time/train", "seconds"),
        ("memory/peak_gib", "GiB"),
        ("constructor", ""),
        ("reward", ""),
    ],
)
def test_the_vertical_axis_has_the_metrics_unit_and_the_other_says_over_what(driver, page, metric, said):
    if driver.current_url == "data:,":
        show(driver, page)
    sources = "const state = {axis: 'tokens'}, cssColor = () => '';\n"
    labels = evaluate(driver, f"axesOf('{metric}', false, 300).map(axis => axis.label ?? '')", sources)
    assert labels == ["tokens", said]
