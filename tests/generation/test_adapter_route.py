"""The way of an adapter to an engine: given, or chosen by what a sampled token cost."""

from __future__ import annotations

import pytest
from peft import LoraConfig, get_peft_model
from toy_models import build_model

from grpo_lightning.generation.vllm.weights import adapter_route
from grpo_lightning.generation.vllm.weights.adapter_route import AdapterRoute


def lora_policy():
    return get_peft_model(build_model(), LoraConfig(r=4, target_modules=["q_proj"]))


def started(setting, policy=None, state=None):
    route = AdapterRoute(setting)
    route.load_state_dict(state or {})
    route.start(policy or lora_policy())
    return route


def ways_of(route, updates: list[float], batches: list[tuple[float, int]]) -> list[str]:
    """The way of each update, given its seconds, and seconds and tokens of the batch after it."""
    ways = []
    for update, (seconds, tokens) in zip(updates, batches, strict=True):
        route.next_update()
        ways.append(route.way)
        route.updated(update)
        route.sampled(seconds, tokens)
        route.sampled(1000.0, 1)  # an evaluation with the same weights
    return ways


TRIAL = ["hot"] * 4 + ["merge"] * 4


def test_auto_takes_each_way_four_times_and_keeps_the_cheaper_one_per_token():
    # The first of each does not count, then the best does: hot (1 + 9) / 100 = 0.1 s a token, merge (4 + 8) / 200 = 0.06.
    route = started("auto")
    hot, merge = [(0.0, 100), (9.0, 100), (9.5, 100), (30.0, 100)], [(0.0, 1), (70.0, 200), (8.0, 200), (9.0, 200)]
    updates = [0.0, 1.0, 1.0, 1.0, 0.0, 4.0, 4.0, 4.0, 0.0, 0.0]
    assert ways_of(route, updates, [*hot, *merge, (5.0, 5), (5.0, 5)]) == [*TRIAL, "merge", "merge"]
    assert route.state_dict() == {"lora_sync": "merge"}


def test_a_long_update_counts_against_merging():
    # Hot 10 / 100 = 0.1, merge (14 + 8) / 200 = 0.11: faster sampling does not make up for it.
    route = started("auto")
    updates, batches = [0.0, 1.0, 1.0, 1.0, 0.0, 14.0, 14.0, 14.0, 0.0], [(9.0, 100)] * 4 + [(8.0, 200)] * 5
    assert ways_of(route, updates, batches) == [*TRIAL, "hot"]
    assert route.state_dict() == {"lora_sync": "hot"}


def test_ranks_choose_together(monkeypatch):
    other = {"hot": 0.5, "merge": 0.1}  # this rank alone would choose hot: 0.1 against 0.3
    monkeypatch.setattr(adapter_route, "gather_objects", lambda costs: [costs, other])
    route = started("auto")
    ways = ways_of(route, [0.0] * 9, [(1.0, 10)] * 4 + [(3.0, 10)] * 5)
    assert ways == [*TRIAL, "merge"]


def test_a_rank_that_has_sampled_nothing_has_no_say(monkeypatch):
    monkeypatch.setattr(adapter_route, "gather_objects", lambda costs: [costs, {}, {"merge": 0.001}])
    route = started("auto")
    assert ways_of(route, [0.0] * 9, [(1.0, 10)] * 4 + [(3.0, 10)] * 5) == [*TRIAL, "hot"]


def test_without_any_sample_the_trial_begins_again():
    route = started("auto")
    assert ways_of(route, [0.0] * 9, [(1.0, 0)] * 9) == [*TRIAL, "hot"]
    assert ways_of(route, [0.0] * 8, [(1.0, 10)] * 4 + [(0.5, 10)] * 4) == [*TRIAL[1:], "merge"]


@pytest.mark.parametrize("chosen", ["hot", "merge"])
def test_a_choice_that_was_saved_is_kept(chosen):
    route = started("auto", state={"lora_sync": chosen})
    assert route.engine_adds_adapters
    assert ways_of(route, [0.0] * 6, [(1.0, 10)] * 6) == [chosen] * 6
    assert route.state_dict() == {"lora_sync": chosen}


@pytest.mark.parametrize(("setting", "way"), [(None, "hot"), ("hot", "hot"), ("merge", "merge")])
def test_a_way_that_is_given_is_taken_whatever_was_saved(setting, way):
    route = started(setting, state={"lora_sync": "merge" if way == "hot" else "hot"})
    assert ways_of(route, [9.0] * 6, [(9.0, 1)] * 6) == [way] * 6


def test_what_cannot_be_hot_is_merged_without_a_trial():
    dora = get_peft_model(build_model(), LoraConfig(r=4, target_modules=["q_proj"], use_dora=True))
    route = started("auto", dora)
    assert not route.engine_adds_adapters
    assert ways_of(route, [0.0] * 6, [(1.0, 10)] * 6) == ["merge"] * 6
    assert route.state_dict() == {}
