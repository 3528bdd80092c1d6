"""Training with a real vLLM engine: the loop closes, a broken sync is noticed, and ranks share or keep their engines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import fit, make_data, make_module, make_trainer
from vllm_cases import eager_torch, even_tokens, needs_vllm, small_engine

from grpo_lightning.generation import VLLMColocate
from grpo_lightning.generation.vllm.server_process import RANK_VARIABLES
from grpo_lightning.rollouts.sampler_canary import MISMATCH, StaleSamplerError

pytestmark = needs_vllm

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _eager():
    with eager_torch():
        yield


def large_steps(params):
    return torch.optim.SGD(params, lr=20.0)


def test_training_sends_its_weights_before_every_step_and_ends_the_engine(tiny_model_dir, tmp_path):
    generator = small_engine()
    module = fit(  # after another step of this size all samples are alike in 0.25, and there is nothing to compare
        tiny_model_dir, tmp_path, max_steps=2, generator=generator, optimizer=large_steps, rewards=[even_tokens]
    )
    assert module.step_metrics[MISMATCH] < 1e-4
    assert module.step_metrics["weight_sync/megabytes"] == pytest.approx(0.461056)
    assert generator._engine is None
    assert not torch.distributed.is_initialized()


def test_a_sync_that_is_broken_on_purpose_stops_the_run(tiny_model_dir, tmp_path, monkeypatch):
    sent = []

    def send_twice(self, engine, policy, kind):
        sent.append(1)
        return original(self, engine, policy, kind) if len(sent) <= 2 else {}

    original = VLLMColocate._send_weights
    monkeypatch.setattr(VLLMColocate, "_send_weights", send_twice)
    settings = {"optimizer": large_steps, "rewards": [even_tokens]}
    with pytest.raises(StaleSamplerError, match=r"Step 3: .*They agreed at step 2, so the sampler's weights are stale"):
        fit(tiny_model_dir, tmp_path, max_steps=8, generator=small_engine(), **settings)
    assert not torch.distributed.is_initialized()  # the engine is ended after an error too


def test_several_updates_of_a_step_and_lora_learn_from_the_engines_samples(tiny_model_dir, tmp_path):
    settings = {
        "finetuning_type": "lora",
        "num_iterations": 2,
        "rewards": [even_tokens],
        "importance_sampling_mode": "token_truncate",
    }
    module = fit(tiny_model_dir, tmp_path, max_steps=4, generator=small_engine(), **settings)
    assert module.steps_done == 2
    assert module.step_metrics[MISMATCH] < 1e-4
    assert module.step_metrics["sampling/effective_sample_size"] == pytest.approx(1.0, abs=1e-3)
    assert module.step_metrics["sampling/importance_sampling_truncated"] == 0.0


def test_the_way_that_auto_has_chosen_is_kept_by_a_resumed_run(tiny_model_dir, tmp_path):
    settings = {"finetuning_type": "lora", "rewards": [even_tokens]}
    first = fit(tiny_model_dir, tmp_path, max_steps=9, generator=small_engine(lora_sync="auto"), **settings)
    assert first.step_metrics[MISMATCH] < 1e-4
    chosen = first.source.generator.state_dict()
    assert chosen["lora_sync"] in ("hot", "merge")
    other = {"lora_sync": "merge" if chosen["lora_sync"] == "hot" else "hot"}
    for state in (chosen, other):  # whatever it was
        first.source.generator.load_state_dict(state)
        first.trainer.save_checkpoint(tmp_path / "saved.ckpt")
        generator = small_engine(lora_sync="auto")
        resumed = make_module(tiny_model_dir, generator=generator, **settings)
        data = make_data(tmp_path)
        make_trainer(tmp_path, 10).fit(resumed, datamodule=data, ckpt_path=tmp_path / "saved.ckpt")
        assert resumed.steps_done == 10
        assert resumed.step_metrics[MISMATCH] < 1e-4
        assert generator.state_dict() == state
        assert generator.adapter_route.way == state["lora_sync"]


@pytest.mark.slow
def test_two_ranks_train_alike_with_an_engine_each_or_one_between_them(tiny_model_dir, tmp_path):
    found = {size: train_on_two_ranks(tiny_model_dir, tmp_path, size) for size in (1, 2)}
    for ranks in found.values():
        assert [rank["group"] for rank in ranks] == [2, 2]  # Lightning's process group outlived the engines
        assert ranks[0]["weights"] == ranks[1]["weights"]
        assert ranks[0]["sampled"] != ranks[1]["sampled"]  # each has prompts of its own
        assert all(rank["metrics"][MISMATCH] < 1e-4 for rank in ranks)
    assert [rank["sampled"] for rank in found[1]] == [rank["sampled"] for rank in found[2]]
    assert found[1][0]["weights"] == pytest.approx(found[2][0]["weights"], rel=1e-7)


@pytest.mark.slow
def test_a_rank_with_nothing_to_sample_takes_part_in_the_engine_that_it_shares(tiny_model_dir, tmp_path):
    first, second = train_on_two_ranks(tiny_model_dir, tmp_path, 2, "uneven")
    assert len(first["sampled"]) == len(second["sampled"])
    is_empty = [(not mine, not theirs) for mine, theirs in zip(first["sampled"], second["sampled"], strict=True)]
    assert {(False, False), (False, True), (True, False)} <= set(is_empty)  # steps, refills, evaluations
    assert first["weights"] == second["weights"]


def train_on_two_ranks(model_dir: Path, work_dir: Path, tensor_parallel_size: int, *workload: str) -> list[dict]:
    # Lightning starts no second rank where these say that somebody else does, and the first one waits for it.
    environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    environment["OMP_NUM_THREADS"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    arguments = [str(model_dir), str(work_dir), str(tensor_parallel_size), *workload]
    command = [sys.executable, str(TESTS / "vllm_ranks.py"), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads((work_dir / f"found{rank}.json").read_text()) for rank in range(2)]
