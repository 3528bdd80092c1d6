"""How many tokens a model can tell apart by their place."""

from __future__ import annotations

from typing import Any


def positions_of(config: Any) -> int | None:
    """Tokens of a sequence; None where the config does not say, or rotary positions are stretched beyond what it says.

    Args:
        config: Of the model, in transformers' form.
    """
    text = config.get_text_config()
    scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    is_stretched = isinstance(scaling, dict) and scaling.get("rope_type", "default") != "default"
    return None if is_stretched else getattr(text, "max_position_embeddings", None)
