"""What settings of different parts refuse of each other and of the model, in the words of the config, before weights load."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from transformers import PretrainedConfig

from grpo_lightning.generation.base import Generator
from grpo_lightning.generation.images import SamplesWithImages, takes_images
from grpo_lightning.generation.transformers.generator import TransformersGenerator
from grpo_lightning.modules.checks.data import check_positions
from grpo_lightning.modules.checks.partial_rollouts import check_partial_rollouts
from grpo_lightning.modules.grpo_settings import GRPOSettings
from grpo_lightning.numerics.routers import router_form
from grpo_lightning.rollouts.source import RolloutSource


def check_settings(settings: GRPOSettings, config: Any, source: RolloutSource) -> None:
    """Refuses what the module's settings, the model and what samples from it cannot do together.

    Args:
        settings: Of the module.
        config: Of the model, in transformers' form.
        source: What samples and scores.

    Raises:
        ValueError: With a way out.
    """
    check_together(settings)
    check_weights(settings, source)
    check_async_rollouts(settings, source.generator)
    check_partial_rollouts(settings, source.generator)
    check_graphs(settings, source.generator)
    check_router_replay(settings, config, source.generator)
    check_positions(settings, config, source.generator)
    check_vision_settings(settings, config, source)
    if settings.vision_tower is None:
        source.generator.check_model(config)


def check_graphs(settings: GRPOSettings, generator: Generator) -> None:
    """Refuses graphs of training passes, whose memory stays taken, beside an engine that needs that memory for itself.

    Raises:
        ValueError: With a way out.
    """
    if settings.cuda_graphs and getattr(generator, "sleep_level", False):
        raise ValueError(
            "model.cuda_graphs=true keeps the memory of training passes, which an engine of "
            "model.generator.init_args.enable_sleep_mode=true takes back between them. Leave one of them out."
        )


def check_weights(settings: GRPOSettings, source: RolloutSource) -> None:
    """Refuses a run that learns from nothing.

    Raises:
        ValueError: With a way out.
    """
    runner = source.reward_runner
    if settings.distillation is None and not any(reward.weight for reward in runner.rewards):
        raise ValueError(
            f"Every weight of {', '.join(runner.names)} is 0 (model.reward_weights), so no reward is trained on. Give one "
            "of them another weight, or a teacher by model.distillation."
        )


def check_together(settings: GRPOSettings) -> None:
    """Refuses settings that cannot work beside each other.

    Raises:
        ValueError: With a way out.
    """
    if settings.num_generations < 2:
        raise ValueError(
            f"model.num_generations={settings.num_generations}: advantages compare the completions of a "
            "prompt, so at least 2 are needed."
        )
    if settings.turns.history == "as_template" and settings.distillation is not None:
        raise ValueError(
            "model.turns.history=as_template divides a rollout into histories that begin with its prompt, and a teacher of "
            "model.distillation may read another prompt. Use history=append, or leave distillation out."
        )
    if settings.temperature == 0:
        raise ValueError("model.temperature=0 gives one completion many times over. Use 1.0 to train.")
    dynamic = settings.dynamic_sampling
    if dynamic.replay_groups and not settings.importance_sampling_correction:
        raise ValueError(
            f"model.dynamic_sampling.replay_groups={dynamic.replay_groups} trains on tokens of an older policy, which "
            "model.importance_sampling_correction=false would treat as its own. Turn the correction on."
        )
    if dynamic.mode != "off" and settings.num_minibatches > 1:
        raise ValueError(
            f"model.dynamic_sampling.mode={dynamic.mode} may leave fewer groups than model.num_minibatches="
            f"{settings.num_minibatches} needs. Use num_minibatches=1, or mode=off."
        )
    if dynamic.mode == "refill" and settings.async_rollouts:
        raise ValueError(
            f"model.dynamic_sampling.mode=refill samples further prompts in mid-step, when model.async_rollouts="
            f"{settings.async_rollouts} has the server at work on the next batch. Use mode=drop, or async_rollouts=0."
        )


def check_strategy(settings: GRPOSettings, strategy: Strategy, generator: Generator) -> None:
    """Refuses what the strategy cannot do: spread what the generator, a teacher or a vision tower needs whole.

    Raises:
        ValueError: With a way out.
    """
    check_generator(strategy, generator)
    check_distillation(settings, strategy)
    check_vision_strategy(settings, strategy)


def check_distillation(settings: GRPOSettings, strategy: Strategy) -> None:
    """Refuses a teacher where the policy's head is not whole, or computes otherwise than the divergence does.

    Raises:
        ValueError: With a way out.
    """
    if settings.distillation is None:
        return
    if isinstance(strategy, ModelParallelStrategy):
        raise ValueError(
            "trainer.strategy spreads the policy's weights over ranks, and model.distillation needs its output head whole. Use "
            "ddp."
        )
    if settings.float32_head:
        raise ValueError(
            "model.float32_head=true has no effect on model.distillation, whose logits come from the head as it is held. Leave "
            "one of them out."
        )
    if settings.distillation.is_clip is not None and settings.num_iterations * settings.num_minibatches == 1:
        raise ValueError(
            f"model.distillation.is_clip={settings.distillation.is_clip} has no effect: with one optimizer step on a batch no token "
            "has become likelier than it was sampled. Raise model.num_iterations or num_minibatches, or leave it out."
        )


def check_async_rollouts(settings: GRPOSettings, generator: Generator) -> None:
    """Refuses async rollouts where they are not possible.

    Raises:
        ValueError: With a way out.
    """
    if not settings.async_rollouts:
        return
    setting, name = f"model.async_rollouts={settings.async_rollouts}", type(generator).__name__
    if settings.async_rollouts not in (0, 1):
        raise ValueError(
            f"{setting} is not possible. Use 0 (sample, then train) or 1: the server samples a step ahead. Further "
            "ahead, completions would be sampled by weights that change under them, and no run could be repeated."
        )
    if not generator.supports_async_rollouts:
        raise ValueError(
            f"{setting} samples while the policy is trained, and model.generator={name} needs the policy or its "
            "device for it. Use model.generator=VLLMServer, or async_rollouts=0."
        )
    if not settings.importance_sampling_correction:
        raise ValueError(
            f"{setting} trains on tokens of the policy one step before, which "
            "model.importance_sampling_correction=false would treat as its own. Turn the correction on."
        )


def check_router_replay(settings: GRPOSettings, config: Any, generator: Generator) -> None:
    """Asks the generator for the experts of each token where the run replays them, and refuses where that is not possible.

    Raises:
        ValueError: With a way out.
    """
    if not settings.router_replay:
        return
    refused = {
        "model.partial_rollouts puts completions together from parts": bool(settings.partial_rollouts.carry_over),
        "model.tools, model.environment and model.rollout_func put tokens between those that were sampled": bool(
            settings.tools or settings.environment or settings.rollout_func
        ),
        "model.distillation scores other texts than those that were sampled": settings.distillation is not None,
    }
    for reason, is_so in refused.items():
        if is_so:
            raise ValueError(f"model.router_replay=true is not possible: {reason}. Leave one of them out.")
    try:
        router_form(config)
    except ValueError as error:
        raise ValueError(f"model.router_replay=true is not possible: {error}. Leave it out.") from error
    generator.record_routed_experts(config)


def check_generator(strategy: Strategy, generator: Generator) -> None:
    """Refuses a generator that needs what the strategy spreads over ranks.

    Raises:
        ValueError: Naming the generators that work.
    """
    if isinstance(strategy, ModelParallelStrategy) and isinstance(generator, TransformersGenerator):
        raise ValueError(
            "trainer.strategy spreads the policy's weights over ranks, and model.generator=TransformersGenerator needs "
            "them whole on every rank. Use VLLMColocate or VLLMServer as model.generator, or trainer.strategy=ddp."
        )


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
    if not takes_images(generator):
        raise ValueError(
            f"{name} shows images to the policy, and model.generator={type(generator).__name__} has a generate that does not "
            "take images. Write def generate(self, prompt_ids, sampling, seeds, on_completed=None, images=()); it is called "
            "in place of generate_with_images."
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
