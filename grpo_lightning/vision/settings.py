"""The setting of vision-language training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class VisionSettings:
    """Whether prompts may show images.

    Args:
        vision_tower: frozen or trained: load a vision-language model whole and show it the images of the prompts, with its
            vision tower and projector as they are, or trained along. null trains the language part of such a model, on text.
    """

    vision_tower: Literal["frozen", "trained"] | None = None

    def __post_init__(self) -> None:
        if self.vision_tower not in (None, "frozen", "trained"):
            raise ValueError(f"model.vision_tower={self.vision_tower!r} is unknown. Use frozen, trained or null.")
