"""Which of TRL's settings of the policy's loss a loss reads: here others are refused, in TRL they do nothing."""

from __future__ import annotations

from grpo_lightning.migration.migration import Migration

CLIPPED = frozenset({"epsilon", "epsilon_high", "delta"})
OWN: dict[str, frozenset[str]] = {
    "cispo": frozenset({"epsilon_high"}),
    "sapo": frozenset({"sapo_temperature_pos", "sapo_temperature_neg"}),
    "vespo": frozenset({"vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"}),
}
"""Loss -> the settings that are its own; the others clip a surrogate."""
OF_SINGLE_LOSSES = CLIPPED.union(*OWN.values())
EPSILON = 0.2
"""TRL's default."""


def is_of_another_loss(key: str, loss_type: str) -> bool:
    """Whether a setting is one of single losses, and the run's loss is none of them.

    Example:
        >>> is_of_another_loss("sapo_temperature_neg", "dapo"), is_of_another_loss("vespo_k_pos", "vespo")
        (True, False)
    """
    return key in OF_SINGLE_LOSSES - OWN.get(loss_type, CLIPPED)


def compose_largest_weight(m: Migration) -> None:
    """CISPO's largest weight, which has to be given here: TRL takes epsilon where epsilon_high is left out."""
    if m.get("loss_type") != "cispo" or m.get("epsilon_high") is not None:
        return
    weight = EPSILON if m.get("epsilon") is None else m.get("epsilon")
    m.refused.pop(m.written.get("epsilon", "epsilon"), None)
    m.put("model.epsilon_high", weight, "epsilon")
    m.say(
        "epsilon_high",
        f"TRL takes epsilon for it, so no token of cispo weighs more than {weight}; the papers use about 5.0.",
    )
