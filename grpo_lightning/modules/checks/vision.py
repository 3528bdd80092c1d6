"""What a policy that sees images cannot be combined with, in the words of the config, before weights load."""

from __future__ import annotations

from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from transformers import PretrainedConfig

from grpo_lightning.generation.images import SamplesWithImages
from grpo_lightning.modules.grpo_settings import GRPOSettings
from grpo_lightning.rollouts.source import RolloutSource


def check_vision_settings(settings: GRPOSettings, config: PretrainedConfig, source: RolloutSource) -> None:
    """Tells the generator that prompts show images, and refuses what those are not covered by.

    Raises:
        ValueError: With a way out.
    """
    generator, processing = source.generator, source.policy.image_processing
    if settings.vision_tower is None or processing is None:
        return
    name = f"model.vision_tower={settings.vision_tower}"
    if not isinstance(generator, SamplesWithImages):
        raise ValueError(
            f"{name} shows images to the policy, and model.generator={type(generator).__name__} samples text alone. Use "
            "VLLMColocate, VLLMServer or TransformersGenerator."
        )
    dynamic = settings.dynamic_sampling
    refused = {
        "model.tools, model.environment or model.rollout_func": settings.has_turns or settings.rollout_func is not None,
        f"model.async_rollouts={settings.async_rollouts}": bool(settings.async_rollouts),
        "model.partial_rollouts": settings.partial_rollouts.carry_over > 0,
        f"model.dynamic_sampling.mode={dynamic.mode}": dynamic.mode == "refill",
        f"model.dynamic_sampling.replay_groups={dynamic.replay_groups}": dynamic.replay_groups > 0,
        "model.distillation": settings.distillation is not None,
        "model.router_replay=true": settings.router_replay,
    }
    for setting, is_set in refused.items():
        if is_set:
            raise ValueError(f"{name} and {setting}: prompts with images are not covered there. Leave one of them out.")
    generator.see_images(processing, config)


def check_vision_strategy(settings: GRPOSettings, strategy: Strategy) -> None:
    """Refuses weights in parts.

    Raises:
        ValueError: With a way out.
    """
    if settings.vision_tower is not None and isinstance(strategy, ModelParallelStrategy):
        raise ValueError(
            f"trainer.strategy spreads the policy's weights over ranks, which model.vision_tower={settings.vision_tower} is not "
            "covered with. Use ddp."
        )
