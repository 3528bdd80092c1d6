"""Settings of single losses: a migrated config has those that its loss reads, and fit takes it."""

from __future__ import annotations

from dataclasses import fields

import pytest

from grpo_lightning.algorithm.losses import LOSSES
from grpo_lightning.algorithm.objective import Objective
from grpo_lightning.migration import migrate
from grpo_lightning.migration.migrate import OF_SINGLE_LOSSES, OWN


@pytest.mark.parametrize("loss", [*OWN, "grpo", "dapo", None])
def test_a_whole_config_of_any_loss_has_the_settings_of_that_loss_alone(loss: str | None):
    whole = {"epsilon": 0.2, "epsilon_high": 5.0, "delta": 4.0} | {
        name: 1.5 for name in sorted(OWN["sapo"] | OWN["vespo"])
    }
    result = migrate(whole | ({} if loss is None else {"loss_type": loss}))
    ours = {key.removeprefix("model."): value for key, value in result.config.items() if key[6:] in OF_SINGLE_LOSSES}
    own = {field.name for field in fields(LOSSES[loss or "dapo"])} & OF_SINGLE_LOSSES
    assert ours.keys() == own == whole.keys() - result.refused.keys()
    corrects = result.config.get("model.importance_sampling_correction", True)
    Objective(**ours, loss_type=loss or "dapo", importance_sampling_correction=corrects)  # refuses what fit refuses


@pytest.mark.parametrize(
    ("written", "largest"), [({}, 0.2), ({"epsilon": 3.0}, 3.0), ({"epsilon_high": 5.0, "epsilon": 0.2}, 5.0)]
)
def test_the_largest_weight_of_cispo_is_what_trl_takes_for_it(written: dict[str, float], largest: float):
    """``epsilon_high if not None else epsilon``, as GRPOTrainer has it; `fit` refused a cispo without epsilon_high."""
    result = migrate({"loss_type": "cispo", **written})
    assert result.config["model.epsilon_high"] == largest and "model.epsilon" not in result.config
    assert ("epsilon" in result.refused) == ("epsilon_high" in written)
    assert any("no token of cispo weighs more than" in note for note in result.notes) == ("epsilon_high" not in written)
