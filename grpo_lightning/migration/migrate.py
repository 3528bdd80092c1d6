"""Applies the tables and everything that is composed to a config."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from grpo_lightning.migration.compose import COMPOSERS
from grpo_lightning.migration.composed import COMPOSED
from grpo_lightning.migration.migration import Migration
from grpo_lightning.migration.names import with_current_names
from grpo_lightning.migration.numbers import processes_of
from grpo_lightning.migration.refused import HARMLESS, REFUSED
from grpo_lightning.migration.same import GRPO_ARGUMENTS_IMPLIED, GRPO_ARGUMENTS_KEYS, IMPLIED, SAME
from grpo_lightning.migration.versions import (
    DEFAULTS,
    LAST,
    LEARNING,
    NEWEST,
    OLDEST,
    WITH_ENGINE,
    Version,
    default_at,
    history,
    parse_version,
    shown,
    version_range,
)

UNKNOWN = "Unknown: no setting of TRL, of a recipe we know, nor of GRPOArguments. Check its spelling."


def migrate(
    settings: dict[str, Any],
    devices: int | None = None,
    total_steps: int | None = None,
    trl_version: str | None = None,
) -> Migration:
    """A config of TRL or of GRPOArguments in our keys.

    Args:
        settings: Their flat keys.
        devices: Processes that the run was made for: TRL's generation_batch_size counts over all of them. By default
            num_processes, where that is among the settings, else 1.
        total_steps: Optimizer steps of the run, for shares of the run; by default max_steps.
        trl_version: Whose defaults apply to what is left out; by default what the keys tell, else 1.16.

    Returns:
        Every key of ``settings`` is in ``mapped`` or in ``refused``, or in both where only a part fits.
    """
    current, written, overridden = with_current_names(settings)
    is_grpo_arguments = bool(GRPO_ARGUMENTS_KEYS & settings.keys())
    first, last = (NEWEST, NEWEST) if is_grpo_arguments else version_range(set(settings))
    if trl_version is not None and not is_grpo_arguments:
        first = last = parse_version(trl_version)
    defaults = IMPLIED | (GRPO_ARGUMENTS_IMPLIED if is_grpo_arguments else _older_defaults(last, current))
    processes = processes_of(current, devices)
    migration = Migration(
        {**defaults, **current},
        dict(settings),
        written,
        processes,
        total_steps,
        counts_prompts=last == OLDEST,
        is_grpo_arguments=is_grpo_arguments,
    )
    migration.refused.update(overridden)
    for key, value in migration.source.items():
        _place(migration, key, value, last, is_given=key in current)
    for compose in (compose_largest_weight, *COMPOSERS):
        compose(migration)
    if not is_grpo_arguments:
        migration.notes[:0] = _version_notes(migration, first, last, is_told=trl_version is not None)
    return migration


def migrate_with_own(
    settings: dict[str, Any],
    own: Collection[str],
    implied: Mapping[str, Any],
    devices: int | None,
    total_steps: int | None,
) -> Migration:
    """The same of a trainer of TRL 1.16's that has GRPOConfig's settings, but for some of its own.

    Args:
        settings: Their flat keys.
        own: Settings that GRPOConfig does not have, or has with another meaning; they are yet to be composed.
        implied: Its defaults of the others, where they are not GRPOConfig's.
        devices, total_steps: See ``migrate``.
    """
    shared = {key: value for key, value in settings.items() if key not in own}
    migration = migrate({**implied, **shared}, devices, total_steps, "1.16")
    migration.source |= {key: value for key, value in settings.items() if key in own}
    migration.given = dict(settings)
    for noted in (migration.mapped, migration.refused):  # nobody has written what is implied
        for key in noted.keys() - settings.keys():
            del noted[key]
    migration.notes[0] = "What is left out has the defaults of TRL 1.16."
    return migration


def _place(migration: Migration, key: str, value: Any, version: Version, is_given: bool) -> None:
    if key in HARMLESS and value == HARMLESS[key]:
        migration.needs_nothing(key)
    elif value is not None and is_of_another_loss(
        key, loss_type := migration.get("loss_type") or default_at("loss_type", version)
    ):
        migration.refuse(key, f"loss_type is {loss_type}, so it has no effect in TRL either.")
    elif key in SAME:
        if value is not None or is_given:
            migration.put(SAME[key], value, key)
    elif key in REFUSED:
        migration.refuse(key, REFUSED[key])
    elif key not in COMPOSED:
        migration.refuse(key, UNKNOWN)


def _older_defaults(version: Version, settings: dict[str, Any]) -> dict[str, Any]:
    """What an older version of TRL had, as far as it differs from 1.16."""
    defaults = {key: default_at(key, version) for key in DEFAULTS}
    defaults = {key: value for key, value in defaults.items() if value != default_at(key, NEWEST)}
    if version < (0, 16) and settings.get("use_vllm"):
        defaults.pop("top_k", None)  # GenerationConfig's 50; the engine had no limit
    if not settings.get("sync_ref_model"):
        defaults = {key: value for key, value in defaults.items() if not key.startswith("ref_model_")}
    if not settings.get("beta", defaults.get("beta", 0.0)):
        defaults.pop("use_bias_correction_kl", None)
    if not settings.get("use_vllm"):
        defaults = {key: value for key, value in defaults.items() if not key.startswith("vllm_")}
    return defaults


def _version_notes(m: Migration, first: Version, last: Version, is_told: bool) -> list[str]:
    """Whose defaults were taken; and, where the keys leave several versions, what depends on the choice."""
    if is_told or (first == last == NEWEST and not LAST.keys() & m.given.keys()):
        tells = "as --trl_version says" if is_told else "no key tells of an older one; else give --trl_version 0.17"
        return [f"What is left out has the defaults of TRL {shown(last)} ({tells})."]
    told = ", ".join(key for key in LAST if key in m.given)
    notes = [f"What is left out has the defaults of TRL {shown(last)}, the last version with {told}."]
    for key in (*LEARNING, *(WITH_ENGINE if m.get("use_vllm") else ())):
        changed = history(key, first, last)
        if changed and not m.has(key):
            notes.append(f"{key} is not set, and its default was {changed}. If the run was older, give --trl_version.")
    return notes


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
