"""How many tokens a model can tell apart by their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grpo_lightning.errors import RefusedRowError
from grpo_lightning.types import Rollouts


def positions_of(config: Any) -> int | None:
    """Tokens of a sequence; None where the config does not say, or rotary positions are stretched beyond what it says.

    Args:
        config: Of the model, in transformers' form.
    """
    text = config.get_text_config()
    scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    is_stretched = isinstance(scaling, dict) and scaling.get("rope_type", "default") != "default"
    return None if is_stretched else getattr(text, "max_position_embeddings", None)


def check_written(rollouts: Rollouts, limit: int | None, uids: Sequence[int], setting: str, behind: int = 0) -> None:
    """Refuses written texts that reach beyond the last position: some models fail there, others only read badly.

    Args:
        rollouts: Prompts with their completions.
        limit: Of ``positions_of``.
        uids: Row of the data, of each completion.
        setting: That cuts them off.
        behind: Tokens that stand behind each text and are not read.

    Raises:
        RefusedRowError: Naming the row.
    """
    if limit is None:
        return
    lengths = (rollouts.prompt_lengths[rollouts.group] + rollouts.completion_lengths - behind).tolist()
    too_long = next((n for n, length in enumerate(lengths) if length > limit), None)
    if too_long is not None:
        raise RefusedRowError(
            f"row {uids[too_long]} has {lengths[too_long]} tokens, prompt and completion, which reach beyond the {limit} positions of the "
            f"model (max_position_embeddings). Lower {setting}, or leave long prompts out with data.max_prompt_length."
        )
