"""The tables: TRL's fields and ours, name by name and default by default."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from jsonargparse import Namespace
from parsed_config import BASE, FIELDS, parse, trl_default, written

from grpo_lightning.algorithm.losses.clipped import ClippedLoss
from grpo_lightning.algorithm.losses.sapo import SAPOLoss
from grpo_lightning.algorithm.losses.vespo import VESPOLoss
from grpo_lightning.migration import ALIASES, COMPOSED, REFUSED, SAME, migrate
from grpo_lightning.migration.same import IMPLIED

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


@pytest.fixture(scope="module")
def our_defaults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("defaults") / "config.yaml"
    path.write_text("model: {model_name_or_path: some/model, rewards: accuracy}\n")
    return {key: value for key, value in vars(parse(path).clone(with_meta=False).as_flat()).items()}


def test_every_field_of_trl_stands_in_exactly_one_table():
    tables = [set(SAME), set(COMPOSED), set(REFUSED)]
    assert FIELDS.keys() - set().union(*tables) == set()
    assert len(set().union(*tables)) == sum(map(len, tables))


SAMPLES: dict[str, Any] = {
    "loss_type": "grpo",
    "importance_sampling_level": "sequence",
    "multi_objective_aggregation": "normalize_then_sum",
    "scale_rewards": "batch",
    "model_name_or_path": "other/model",
    "output_dir": "runs/elsewhere",
    "attn_implementation": "eager",
    "epsilon_high": 0.28,
    "delta": 1.5,
    "off_policy_mask_threshold": 0.5,
    "beta": 0.04,
    "entropy_coef": 0.01,
    "entropy_coef_min": 0.001,
    "router_aux_loss_coef": 0.01,
}


def another_value(name: str) -> Any:
    """A valid value of a field that is not its default."""
    default = trl_default(name)
    if name in SAMPLES:
        return SAMPLES[name]
    return not default if isinstance(default, bool) else default + 1 if isinstance(default, int) else default / 2


@pytest.mark.parametrize("name", sorted(SAME.keys() & FIELDS.keys()))
def test_a_field_with_the_same_meaning_keeps_its_value(name, tmp_path):
    value = another_value(name)
    assert value != trl_default(name)
    loss = next((each for each in ("sapo", "vespo") if name.startswith(each)), None)  # others refuse its settings
    config = written(BASE | ({"loss_type": loss} if loss else {}) | {name: value}, tmp_path)
    found = config[SAME[name]]
    assert (found.as_dict() if isinstance(found, Namespace) else found) == value


OF_A_LOSS = {
    field.name: field.default
    for loss in (ClippedLoss, SAPOLoss, VESPOLoss)
    for field in dataclasses.fields(loss)
    if field.default is not None
}


@pytest.mark.parametrize("name", sorted(SAME.keys() & FIELDS.keys()))
def test_a_field_that_is_left_out_has_trls_default(name, our_defaults):
    default = {"seed": 0, "output_dir": "runs/grpo"}.get(name, trl_default(name))  # run identity, not mathematics
    if name in OF_A_LOSS:  # null in ours: the default of the loss that has it
        assert our_defaults[SAME[name]] is None and OF_A_LOSS[name] == default
        return
    assert default in (IMPLIED.get(name, our_defaults[SAME[name]]), None, dataclasses.MISSING) or (
        our_defaults[SAME[name]] in (None, 0) and default in (None, False)
    )


@pytest.mark.parametrize("name", sorted(REFUSED.keys() & FIELDS.keys()))
def test_a_field_without_a_counterpart_is_listed_with_its_reason_in_the_file(name):
    result = migrate(BASE | {name: "some value"})
    assert result.refused[name] == REFUSED[name] and len(REFUSED[name]) > 10
    assert f"#   {name}: {REFUSED[name]}" in result.to_yaml("old.yaml")


def test_all_of_trls_defaults_at_once_lose_nothing_that_was_on(tmp_path):
    defaults = {name: trl_default(name) for name in FIELDS if trl_default(name) is not dataclasses.MISSING}
    defaults |= {"model_name_or_path": "some/model", "reward_funcs": ["accuracy_reward"], "output_dir": "out"}
    result = migrate(defaults)
    assert result.given.keys() <= result.mapped.keys() | result.refused.keys()
    config = written(defaults, tmp_path)
    assert (config.data.batch_size, config.model.num_minibatches, config.trainer.max_epochs) == (1, 1, 3)
    assert config.model.max_completion_length == 512 and config.model.lora_rank == 8


def test_no_name_is_an_alias_and_a_setting_at_once():
    assert not ALIASES.keys() & (SAME.keys() | COMPOSED.keys() | REFUSED.keys())
    assert set(ALIASES.values()) <= SAME.keys() | COMPOSED.keys()


def test_of_two_names_for_one_setting_the_current_one_decides():
    result = migrate(BASE | {"torch_dtype": "float16", "dtype": "float32"})
    assert result.config["model.dtype"] == "float32"
    assert result.refused["torch_dtype"] == "dtype says the same, and decides."


def test_an_unknown_key_is_named():
    reason = migrate(BASE | {"learning_rat": 1}).refused["learning_rat"]
    assert reason.startswith("Unknown: no setting of TRL") and "Check its spelling." in reason
