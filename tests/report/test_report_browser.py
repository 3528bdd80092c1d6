from __future__ import annotations

import json
from typing import Any

import pytest
from browser import console_errors, needs_chromium, open_page, texts, type_into, wait
from PIL import Image
from report_runs import HOSTILE, completion_row, report, write_completions, write_large_run, write_metrics

from grpo_lightning.vision.thumbnails import thumbnails

pytestmark = needs_chromium


def steps_listed(driver: Any) -> list[str]:
    return texts(driver, "#rows .row .step")


def test_the_page_draws_curves_notices_and_settings_without_an_error(driver, small, tmp_path):
    open_page(driver, report(tmp_path, small))
    titles = texts(driver, ".card .name")
    assert {"Reward", "Length", "Entropy", "KL to the reference", "Step time", "Dead groups"} <= set(titles)
    wait(driver, "document.querySelectorAll('.card canvas').length >= 3")
    drawn = """const canvas = document.querySelector('[data-metric=reward] canvas');
    const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    return pixels.some(value => value !== 0)"""
    assert driver.execute_script(drawn)
    assert "Reward errors" in texts(driver, "#notices")[0] and "Dead groups" in texts(driver, "#notices")[0]
    assert "beta: 0.04" in texts(driver, "pre.config")[0]
    assert console_errors(driver) == []


def test_tile_card_notice_and_headline_say_one_number(driver, tmp_path):
    run = tmp_path / "one"
    metrics = [
        {"step": s, "reward": 0.02 * s, "frac_reward_zero_std": 0.5 + 0.01 * s, "val/accuracy": 0.3 + 0.02 * s}
        for s in range(25)
    ]
    write_metrics(run, 0, metrics)
    open_page(driver, report(tmp_path, run))
    tiles = dict(zip(texts(driver, ".tile > .muted"), texts(driver, ".tile .value"), strict=True))
    wait(driver, "document.querySelectorAll('.card canvas').length >= 3")
    cards = dict(zip(texts(driver, ".card .name"), texts(driver, ".card .now"), strict=True))
    # The last tenth of 25 steps is steps 24 and 25, as is the first in Python: round(2.5) is 2.
    assert tiles["Dead groups"].startswith("74%") and cards["Dead groups"] == "74%"
    assert "74% of the groups" in texts(driver, "#notices")[0]
    assert tiles["Reward"].startswith("0.47") and cards["Reward"] == "0.47"
    assert texts(driver, ".headline") == ["Held-out accuracy rose from 30% to 78% between steps 1 and 25"]
    assert tiles["Held-out accuracy"].startswith("78%") and cards["Held out: accuracy"] == "78%"
    assert console_errors(driver) == []


def test_the_bar_of_times_has_a_colour_for_each_phase_and_none_for_calls_of_rewards(driver, tmp_path):
    run = tmp_path / "one"
    times = {
        "step_time": 4.0,
        "time/generate": 2.0,
        "time/rewards": 0.5,
        "time/train": 0.5,
        "time/old_and_reference": 0.5,
    }
    calls = {f"time/rewards/r{i}{end}": 2.0 for i in range(4) for end in ("", "/max")}
    write_metrics(run, 0, [{"step": s, "reward": 1.0, **times, **calls} for s in range(2)])
    open_page(driver, report(tmp_path, run))
    keys = texts(driver, ".shares .keys span:not(.dot)")
    assert sorted(keys) == sorted(["generate 50%", "rewards 13%", "train 13%", "old and reference 13%", "other 13%"])
    inks = "return [...document.querySelectorAll('.stack i')].map(part => part.style.background)"
    assert len(set(driver.execute_script(inks))) == 5


def test_completions_are_text_whatever_they_contain(driver, small, tmp_path):
    open_page(driver, report(tmp_path, small))
    type_into(driver, "#uid", "13")
    wait(driver, "document.querySelector('#count').textContent.startsWith('4 of')")
    driver.execute_script("document.querySelector('#rows .row').click()")
    assert HOSTILE in texts(driver, "#detail .text")[1]
    assert driver.execute_script("return document.querySelectorAll('img').length") == 0
    assert "hacked" not in driver.title and driver.title.startswith("small")
    assert console_errors(driver) == []


def test_turns_show_calls_and_results_and_what_is_masked(driver, tmp_path):
    call = {"type": "function", "id": "call00000", "function": {"name": "add", "arguments": {"a": 2, "b": 40}}}
    turns = [
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
        {"role": "tool", "name": "add", "content": f"42 {HOSTILE}", "tool_call_id": "call00000"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "It is 42."},
    ]
    run = tmp_path / "turns"
    write_metrics(run, 0, [{"step": 0, "reward": 1.0}])
    prompt = json.dumps([{"role": "user", "content": "2+40?"}])
    write_completions(run, [completion_row(0, 1, 0, prompt=prompt, completion=json.dumps(turns))])
    open_page(driver, report(tmp_path, run))
    type_into(driver, "#search", "42")
    wait(driver, "document.querySelectorAll('#rows .row').length === 1")
    driver.execute_script("document.querySelector('#rows .row').click()")
    assert texts(driver, "#detail .text")[0] == "user: 2+40?"
    said, given = texts(driver, "#detail .own"), texts(driver, "#detail .given")
    assert said == ['assistant: Let me see.\nadd({"a":2,"b":40})', "assistant: It is 42."]
    assert given == [f"tool add: 42 {HOSTILE}", "user: And?"]
    assert texts(driver, "#detail .text")[1] == "\n\n".join([said[0], *given, said[1]])
    colours = driver.execute_script(
        "return ['.own', '.given'].map(kind => getComputedStyle(document.querySelector(`#detail ${kind}`)).color)"
    )
    assert colours[0] != colours[1]
    assert "not trained on" in driver.execute_script("return document.querySelector('#detail .given').title")
    assert texts(driver, "#detail mark") == ["42", "42"]
    assert console_errors(driver) == []


def test_filters_narrow_the_list_and_clear_brings_it_back(driver, small, tmp_path):
    open_page(driver, report(tmp_path, small))
    assert len(steps_listed(driver)) == 12
    type_into(driver, "#search", "SURELY")
    wait(driver, "document.querySelector('#count').textContent === '1 of 12'")
    assert texts(driver, "#rows .row .completion") == ["it is surely nine"]
    driver.execute_script("document.querySelector('#filters button').click()")
    wait(driver, "document.querySelector('#count').textContent === '12 of 12'")
    type_into(driver, "#from-step", "2")
    type_into(driver, "#from-reward", "0.5")
    wait(driver, "document.querySelector('#count').textContent === '1 of 12'")
    driver.execute_script("document.querySelector('#filters button').click()")
    for box, count in (("dead", 4), ("truncated", 2), ("missing", 4)):
        driver.execute_script(f"document.querySelector('#{box}').click()")
        wait(driver, f"document.querySelector('#count').textContent === '{count} of 12'")
        driver.execute_script(f"document.querySelector('#{box}').click()")


def test_a_column_sorts_both_ways_and_missing_rewards_come_last(driver, small, tmp_path):
    open_page(driver, report(tmp_path, small))
    click = "document.querySelector('[data-sort=reward]').click()"
    driver.execute_script(click)
    assert texts(driver, "#rows .row .reward") == ["1", "1", *["0.25"] * 4, "0", "0", *["–"] * 4]
    driver.execute_script(click)
    assert texts(driver, "#rows .row .reward") == ["0", "0", *["0.25"] * 4, "1", "1", *["–"] * 4]


def test_the_diff_compares_the_best_completions_of_the_first_and_the_last_step(driver, small, tmp_path):
    open_page(driver, report(tmp_path, small))
    driver.execute_script("document.querySelector('#rows .row').click()")
    # The best are "it must be seven" (step 1) and "it is surely nine" (step 6).
    parts = driver.execute_script(
        "return [...document.querySelector('#diff').childNodes].slice(1).map(n => [n.nodeName.toLowerCase(), n.textContent])"
    )
    without = {kind: "".join(text for name, text in parts if name != kind) for kind in ("del", "ins")}
    assert without["ins"] == "it must be seven" and without["del"] == "it is surely nine"
    assert parts[0] == ["#text", "it "]
    driver.execute_script(
        "const to = document.querySelector('#diff-to'); to.value = '1'; to.dispatchEvent(new Event('change'))"
    )
    assert texts(driver, "#diff") == ["One text, compared with itself.it must be seven"]
    assert driver.execute_script("return document.querySelectorAll('#diff ins, #diff del').length") == 0


def test_several_runs_are_overlaid_and_can_be_switched_off(driver, small, tmp_path):
    other = tmp_path / "other"
    write_metrics(other, 0, [{"step": s, "reward": 1.0} for s in range(3)])
    (other / "logs" / "version_0" / "config.yaml").write_text("model:\n  beta: 0.1\n")
    write_completions(other, [completion_row(0, 1, 0)])
    open_page(driver, report(tmp_path, small, other))
    assert len(texts(driver, "#runs label")) == 2
    assert [text.strip() for text in texts(driver, "#summary tbody tr td:first-child")] == ["small", "other"]
    differing = driver.execute_script("return document.querySelector('#configs table').textContent")
    assert "model.beta" in differing and "0.04" in differing and "0.1" in differing
    values = "document.querySelectorAll('[data-metric=reward] .now .dot').length"
    wait(driver, f"{values} === 2")
    driver.execute_script("document.querySelector('#runs input').click()")
    wait(driver, f"{values} === 1")
    assert len(steps_listed(driver)) == 1
    assert console_errors(driver) == []


def test_a_phone_sees_everything_without_scrolling_sideways(driver, small, tmp_path):
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        open_page(driver, report(tmp_path, small))
        assert driver.execute_script("return document.documentElement.scrollWidth") == 390
        driver.execute_script("document.querySelector('#rows .row').click()")
        box = driver.execute_script("return document.querySelector('#detail').getBoundingClientRect().toJSON()")
        assert (box["left"], box["width"], box["height"]) == (0, 390, 844)
        driver.execute_script("document.querySelector('#detail .close').click()")
        assert driver.execute_script("return getComputedStyle(document.querySelector('#detail')).display") == "none"
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.slow
def test_a_hundred_thousand_completions_are_listed_searched_and_sorted(driver, tmp_path):
    page = report(tmp_path, write_large_run(tmp_path / "large", steps=50, prompts=250, samples=8))
    open_page(driver, page)
    assert driver.execute_script("return document.querySelector('#count').textContent") == "100,000 of 100,000"
    assert driver.execute_script("return document.querySelectorAll('#rows .row').length") < 60
    driver.execute_script("document.querySelector('#rows').scrollTop = 1e9")
    wait(driver, "[...document.querySelectorAll('#rows .row')].some(e => e.dataset.at === '99999')")
    driver.execute_script("document.querySelector('[data-sort=reward]').click()")
    assert texts(driver, "#rows .row .reward")[0] == "1"
    type_into(driver, "#search", "word7 word77 ")
    wait(driver, "!document.querySelector('#count').textContent.startsWith('100,000')")
    shown = texts(driver, "#rows .row .completion")
    assert shown and all("word7 word77 " in text for text in shown)
    driver.execute_script("document.querySelector('#rows .row').click()")
    assert len(texts(driver, "#detail mark")) >= 1
    assert console_errors(driver) == []


def test_a_prompt_with_images_is_shown_with_their_thumbnails(driver, tmp_path):
    small = thumbnails([Image.new("RGB", (300, 150), "red")])
    blocks = [{"type": "image"}, {"type": "text", "text": "<b>How</b> wide?"}]
    prompt = json.dumps([{"role": "user", "content": blocks}])
    hostile = "https://localhost/x.png"
    write_completions(tmp_path / "one", [completion_row(0, 1, 0, prompt=prompt, images=[hostile, *small])])
    write_metrics(tmp_path / "one", 0, [{"step": 0, "reward": 1.0}])
    open_page(driver, report(tmp_path, tmp_path / "one"))
    driver.execute_script("document.querySelector('#rows .row').click()")
    wait(driver, "document.querySelector('#detail img')?.naturalWidth === 128")
    assert driver.execute_script("return document.querySelectorAll('#detail img').length") == 1
    assert "user: [image]<b>How</b> wide?" in texts(driver, "#detail .text")[0]
    assert console_errors(driver) == []
