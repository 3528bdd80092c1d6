"""Training with a real vLLM engine: the loop closes, a broken sync is noticed, and ranks share or keep their engines."""

from __future__ import annotations

import pytest
import torch
from runs import fit, make_data, make_module, make_trainer
from vllm_cases import eager_torch, even_tokens, needs_vllm, small_engine
from vllm_forks import run_engine_ranks
from vllm_ranks import shared_memory_of_an_engine, train

from grpo_lightning.generation.vllm.engine.weights import EngineWeights
from grpo_lightning.rollouts.sampler_canary import MISMATCH, StaleSamplerError

pytestmark = needs_vllm


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

    def send_twice(self, engine):
        sent.append(1)
        return original(self, engine) if len(sent) <= 2 else {}

    original = EngineWeights.send
    monkeypatch.setattr(EngineWeights, "send", send_twice)
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


@pytest.fixture(scope="module")
def of_ranks(tiny_model_dir, tmp_path_factory) -> dict[str, list[dict]]:
    """What both ranks found, with an engine each, with one between them, and with one that some of them need."""
    runs = {"own": (1, "even"), "shared": (2, "even"), "uneven": (2, "uneven")}
    arguments = [(tiny_model_dir, tmp_path_factory.mktemp(name), *run) for name, run in runs.items()]
    return dict(zip(runs, run_engine_ranks(train, arguments), strict=True))


@pytest.mark.slow
def test_two_ranks_train_alike_with_an_engine_each_or_one_between_them(of_ranks):
    own, shared = of_ranks["own"], of_ranks["shared"]
    for ranks in (own, shared):
        assert [rank["group"] for rank in ranks] == [2, 2]  # Lightning's process group outlived the engines
        assert ranks[0]["weights"] == ranks[1]["weights"]
        assert ranks[0]["sampled"] != ranks[1]["sampled"]  # each has prompts of its own
        assert all(rank["metrics"][MISMATCH] < 1e-4 for rank in ranks)
    assert [rank["sampled"] for rank in own] == [rank["sampled"] for rank in shared]
    assert own[0]["weights"] == pytest.approx(shared[0]["weights"], rel=1e-7)


@pytest.mark.slow
def test_a_rank_with_nothing_to_sample_takes_part_in_the_engine_that_it_shares(of_ranks):
    first, second = of_ranks["uneven"]
    assert len(first["sampled"]) == len(second["sampled"])
    is_empty = [(not mine, not theirs) for mine, theirs in zip(first["sampled"], second["sampled"], strict=True)]
    assert {(False, False), (False, True), (True, False)} <= set(is_empty)  # steps, refills, evaluations
    assert first["weights"] == second["weights"]


@pytest.mark.slow
def test_an_engine_between_ranks_starts_beside_others_and_leaves_no_shared_memory():
    names = set[str]()
    # The ranks of the first run end as if they were killed.
    for first, second in run_engine_ranks(shared_memory_of_an_engine, [(), ()]):
        assert first["mapped"] == second["mapped"]  # a segment of each rank, both of which have both
        assert len(first["mapped"]) == 2
        assert all(name.endswith(" (deleted)") for name in first["mapped"])
        assert not names & first["mapped"]
        assert first["sampled"] == second["sampled"]
        names |= first["mapped"]
