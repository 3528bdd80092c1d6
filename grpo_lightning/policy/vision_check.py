"""Which ways of training a policy do not go together with a vision tower."""

from __future__ import annotations

from grpo_lightning.finetuning.settings import FinetuningSettings


def check_vision(vision_tower: str, settings: FinetuningSettings) -> None:
    """Refuses what would not train what the config says.

    Raises:
        ValueError: With a way out.
    """
    if settings.is_quantized:
        raise ValueError(
            f"model.vision_tower={vision_tower} and model.finetuning_type=qlora: a vision tower in 4 bits is not covered. Use "
            "finetuning_type=lora."
        )
    if vision_tower == "trained" and settings.has_adapters:
        raise ValueError(
            "model.vision_tower=trained and adapters: they freeze the model that they are put on, and are put on its language "
            "part. Use vision_tower=frozen, or finetuning_type=full."
        )
