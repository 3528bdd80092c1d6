"""benchmarks/tools_vs_trl.py: its turns, its arithmetic by hand, and both sides at the smallest size."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from command_runs import run_command

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from sides.clock import PhaseClock  # noqa: E402
from sides.make_model import train_tokenizer  # noqa: E402
from sides.tool_watch import GenerationWatch  # noqa: E402
from sides.tool_workload import (  # noqa: E402
    CHAT_TEMPLATE,
    RESULT,
    TOOL_WORKLOADS,
    Store,
    ToolWorkload,
    call_in_every_turn,
)
from sides.workload import word_problems  # noqa: E402
from tools_vs_trl import at_least, compared  # noqa: E402


def test_a_generation_that_was_ended_says_the_least_that_it_takes_and_how_long_at_its_rate():
    workload = ToolWorkload(prompts_per_step=2, num_generations=4, turns=3)  # 2 * 4 * 2 = 16 calls
    cut_off = at_least(30.0, 4, workload)
    assert cut_off == {
        "generation_s_at_least": 30.0,
        "calls": 4,
        "calls_of_a_step": 16,
        "generation_s_at_this_rate": 120.0,
    }
    assert "generation_s_at_this_rate" not in at_least(30.0, 0, workload)
    assert compared(cut_off, {"generation_s": 12.0}) == {"generation_ratio_at_least": 2.5}
    with pytest.raises(SystemExit, match="grpo_lightning was ended"):
        compared({"generation_s": 12.0}, cut_off)


def test_turns_are_read_as_calls_until_a_rollout_has_as_many_results_as_it_should(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    rows = word_problems(20)
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = train_tokenizer(prompts, 1024)
    tokenizer.chat_template = CHAT_TEMPLATE
    call_in_every_turn(tokenizer, turns=3)
    said, history = [5, 6, 7], list(rows[0]["prompt"])
    for turn in range(3):
        prefix = tokenizer.apply_chat_template(history, add_generation_prompt=True, return_dict=False)
        message = tokenizer.parse_response(said, prefix=prefix, tools=None)
        assert ("tool_calls" in message) == (turn < 2)
        again = tokenizer.parse_response(said, prefix=prefix)
        assert again == message  # the wait depends on what was said alone
        history += [message, {"role": "tool", "name": "count_stock", "content": RESULT}]


def test_the_tool_answers_at_once_in_steps_that_warm_up_and_what_counts_is_written_down(tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "seconds", (0.0, 0.0))
    monkeypatch.setattr("sides.tool_watch.EVERY_SECONDS", 0.01)
    workload = ToolWorkload(warmup_steps=1, shortest_call=0.3, longest_call=0.3)
    clock, file = PhaseClock("cpu"), tmp_path / "under_way"
    generate = GenerationWatch(workload, clock, file).watched(lambda: [Store().count_stock(1), Store().count_stock(2)])
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        assert generate() == [RESULT, RESULT]
        seconds.append(time.perf_counter() - started)
        clock.end_step()
    assert seconds[0] < 0.3 < 0.6 <= seconds[1]
    assert [step["notes"]["calls"] for step in clock.steps] == [2, 2]
    come = json.loads(file.read_text())
    assert come["calls"] in (0, 1) and 0 < come["generation_s"] < seconds[1]


def test_the_shapes_defaults_leave_room_for_all_turns():
    large = TOOL_WORKLOADS["0.5b"]
    assert (large.prompts_per_step, large.num_generations, large.calls) == (64, 8, 1024)
    for workload in TOOL_WORKLOADS.values():
        assert workload.max_completion_length > 4 * workload.turns * workload.mean_length


@pytest.mark.slow
def test_both_sides_play_the_same_turns_with_the_same_class(tmp_path):
    out = tmp_path / "result.json"
    sizes = ("--device=cpu", "--shape=nano", f"--folder={tmp_path}", f"--out={out}")
    script = ROOT / "benchmarks" / "tools_vs_trl.py"
    status, output = run_command(tmp_path, *sizes, script=script)
    assert status == 0, output
    found = json.loads(out.read_text())
    for side in (found["trl"], found["grpo_lightning"]):
        assert side["calls"] == 2 * 4 * 2  # two calls in each of 8 rollouts
        assert side["tokens"]["completions"] == 8
        assert side["generation_s"] > 2 * 0.01
    lengths = [found[side]["tokens"]["mean_completion_length"] for side in ("trl", "grpo_lightning")]
    assert 0.7 < lengths[0] / lengths[1] < 1.4  # results of the tool are most of it
    assert found["generation_ratio"] > 0
    assert str(tmp_path) not in out.read_text()
    status, output = run_command(tmp_path, *sizes, "--reuse", script=script)
    assert status == 0, output
    assert json.loads(out.read_text())["trl"] == found["trl"]
