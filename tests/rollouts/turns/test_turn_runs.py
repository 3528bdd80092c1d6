"""Whole runs with turns: resume, sampling ahead, dynamic sampling, LoRA, evaluation, files."""

from __future__ import annotations

import json
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from async_copy_generator import AsyncCopyGenerator
from rollouts.turns.calculators import MODEL, AddUp, make_run, train, write_rows
from transformers import AutoTokenizer

from grpo_lightning.report.completions import read_completions
from grpo_lightning.rollouts.dynamic_sampling import DynamicSampling
from grpo_lightning.rollouts.turns.settings import Turns


def same_steps(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert [one[key] for key in ("uids", "ids", "mask", "rewards")] == [
            other[key] for key in ("uids", "ids", "mask", "rewards")
        ]
        assert one["metrics"]["loss"] == other["metrics"]["loss"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder)


def test_a_run_with_tools_resumes_bit_for_bit(whole, tmp_path):
    folder, expected = whole
    resumed = train(tmp_path, ckpt_path=folder / "step=2.ckpt")
    same_steps(resumed["steps"], expected["steps"][2:])
    torch.testing.assert_close(resumed["weights"], expected["weights"], rtol=0, atol=0)


def test_what_tools_say_is_not_trained_on_and_turns_are_counted(whole):
    _, run = whole
    for step in run["steps"]:
        assert 0 < sum(step["mask"]) < len(step["mask"])
        metrics = step["metrics"]
        assert metrics["tools/call_frequency"] > 0.5 and metrics["rollouts/turns"] > 1.5
        assert metrics["rollouts/stop/fault"] == 0.0


def test_the_table_and_the_report_show_calls_and_results(whole):
    folder, _ = whole
    rows = pq.read_table(folder / "completions").to_pylist()
    shown = [json.loads(row["completion"]) for row in rows if row["completion"].startswith("[{")]
    with_calls = [messages for messages in shown if len(messages) > 2]
    assert with_calls
    for assistant, tool, *_ in with_calls:
        call = assistant["tool_calls"][0]["function"]
        a, b = call["arguments"]["a"], call["arguments"]["b"]
        assert tool["role"] == "tool" and int(tool["content"]) == (a + b if call["name"] == "add" else a - b)
    found = read_completions(folder, 100)
    assert found is not None and found["completion"] == [row["completion"] for row in rows]


def test_a_batch_in_flight_keeps_the_rewards_of_environments_that_a_checkpoint_cannot_keep(tmp_path):
    ahead = {"async_rollouts": 1, "max_sampler_mismatch": None}
    expected = train(tmp_path / "whole", generator=AsyncCopyGenerator(), **ahead)
    resumed = train(
        tmp_path / "resumed", ckpt_path=tmp_path / "whole" / "step=2.ckpt", generator=AsyncCopyGenerator(), **ahead
    )
    same_steps(resumed["steps"], expected["steps"][2:])
    torch.testing.assert_close(resumed["weights"], expected["weights"], rtol=0, atol=0)


def test_rewards_of_environments_that_keep_state_count_a_batch_in_flight_once(tmp_path):
    class Counting:
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, completions, environments, **columns):
            self.calls += 1
            return [
                (len(e.results) + len(str(c)) / 1000) / self.calls
                for e, c in zip(environments, completions, strict=True)
            ]

        def state_dict(self):
            return {"calls": self.calls}

        def load_state_dict(self, state):
            self.calls = state["calls"]

    def run(name: str, **options: Any) -> tuple[dict[str, Any], int]:
        reward = Counting()
        ahead = {"async_rollouts": 1, "max_sampler_mismatch": None, "generator": AsyncCopyGenerator()}
        return train(tmp_path / name, rewards=[reward], **ahead, **options), reward.calls

    expected, calls = run("whole")
    resumed, calls_of_resumed = run("resumed", ckpt_path=tmp_path / "whole" / "step=2.ckpt")
    assert calls == calls_of_resumed == 4
    same_steps(resumed["steps"], expected["steps"][2:])
    torch.testing.assert_close(resumed["weights"], expected["weights"], rtol=0, atol=0)


def test_a_run_whose_template_writes_earlier_turns_anew_samples_what_it_scores_and_resumes_bit_for_bit(tmp_path):
    own = AutoTokenizer.from_pretrained(MODEL).chat_template
    marked = own.replace(
        "{{ '<|end|>' }}", "{% if message['role'] == 'assistant' and not loop.last %}0{% endif %}<|end|>"
    )
    assert marked != own
    anew = {
        "turns": Turns(max_turns=4, history="as_template"),
        "max_completion_length": 200,
        "chat_template_kwargs": {"chat_template": marked},
        "beta": 0.1,
        "num_iterations": 2,
    }
    expected = train(tmp_path / "whole", 3, **anew)
    for step in expected["steps"]:
        assert step["metrics"]["rollouts/histories"] > 1.3
        assert step["metrics"]["sampling/sampling_logp_difference/mean"] < 1e-5
    resumed = train(tmp_path / "resumed", 3, ckpt_path=tmp_path / "whole" / "step=2.ckpt", **anew)
    same_steps(resumed["steps"], expected["steps"][1:])
    torch.testing.assert_close(resumed["weights"], expected["weights"], rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["drop", "refill"])
def test_groups_without_signal_are_dropped_or_replaced(tmp_path, mode):
    def by_row(completions, environments, ground_truth, **columns):
        return [
            0.0 if truth in ("23", "175") else len(e.results) + len(str(c)) / 1000
            for e, truth, c in zip(environments, ground_truth, completions, strict=True)
        ]

    run = train(tmp_path, 3, rewards=[by_row], dynamic_sampling=DynamicSampling(mode=mode, max_rounds=2))
    kept = [uid for step in run["steps"] for uid in step["uids"]]
    assert not {0, 2} & set(kept) and kept
    record = run["module"].last_step
    assert len(record.rollouts.conversations) == record.rollouts.num_completions


def test_adapters_learn_from_turns(tmp_path):
    run = train(tmp_path, 2, finetuning_type="lora", lora_rank=2)
    adapters = [tensor for name, tensor in run["weights"].items() if "lora_B" in name]
    assert adapters and all(bool(tensor.any()) for tensor in adapters)
    assert any(not own for step in run["steps"] for own in step["mask"])


def test_evaluation_and_prediction_play_turns(tmp_path):
    held_out = write_rows(tmp_path / "heldout.jsonl")
    module, trainer, data, _ = make_run(
        tmp_path, 1, num_generations_eval=2, data={"eval_dataset": str(held_out), "test_dataset": str(held_out)}
    )
    [found] = trainer.validate(module, datamodule=data)
    assert 0.0 <= found["val/accuracy"] <= 1.0 and found["val/rewards/results"] >= 0.1
    predictions = trainer.predict(module, datamodule=data)
    rows = [row for of_batch in predictions for row in of_batch]
    assert any(message["role"] == "tool" for row in rows for message in row["completion"])
    assert any(row["rewards"]["results"] > 0 for row in rows)


def test_what_an_environment_gives_each_turn_tells_turns_apart(tmp_path):
    reward = {"class_path": "grpo_lightning.rewards.EnvironmentReward", "init_args": {"per_turn": True}}
    gamma = {"class_path": "grpo", "init_args": {"gamma": 0.5}}
    run = train(tmp_path, 1, environment=AddUp, rewards=[reward], advantages=gamma)
    record = run["module"].last_step
    prompts = json.loads(pq.read_table(tmp_path / "completions")["prompt"][0].as_py())
    assert prompts[-1]["content"].endswith("= And?")
    assert all(conversation.turns <= 2 for conversation in record.rollouts.conversations)
    assert run["steps"][0]["metrics"]["rollouts/turns"] > 1.0
