"""What partial rollouts refuse of other settings, in the words of the config, before weights load."""

from __future__ import annotations

from grpo_lightning.generation.base import Generator
from grpo_lightning.generation.parts import CutsCompletions
from grpo_lightning.modules.grpo_settings import GRPOSettings


def check_partial_rollouts(settings: GRPOSettings, generator: Generator) -> None:
    """Refuses to carry completions over where they could not be gone on with.

    Raises:
        ValueError: With a way out.
    """
    if not settings.partial_rollouts.carry_over:
        return
    setting = f"model.partial_rollouts.carry_over={settings.partial_rollouts.carry_over}"
    refused = {
        f"model.async_rollouts={settings.async_rollouts} samples whole batches ahead": bool(settings.async_rollouts),
        "model.tools and model.environment are rollouts of several turns": bool(settings.tools or settings.environment),
        f"model.stop={list(settings.stop or ())} may lie across two parts of a completion": bool(settings.stop),
        "model.structured_outputs would begin anew in the middle of a completion": bool(settings.structured_outputs),
        "model.dynamic_sampling.mode=refill waits for the longest completions of further prompts": (
            settings.dynamic_sampling.mode == "refill"
        ),
    }
    for reason, is_so in refused.items():
        if is_so:
            raise ValueError(f"{setting} is not possible: {reason}. Leave one of them out.")
    if not settings.importance_sampling_correction:
        raise ValueError(
            f"{setting} trains on tokens of the policy of earlier steps, which model.importance_sampling_correction=false "
            "would treat as its own. Turn the correction on."
        )
    _check_generator(setting, generator)


def _check_generator(setting: str, generator: Generator) -> None:
    name = type(generator).__name__
    if not isinstance(generator, CutsCompletions):
        raise ValueError(
            f"{setting} cuts completions short, which model.generator={name} cannot. Use VLLMColocate or "
            "TransformersGenerator, or with VLLMServer model.async_rollouts=1."
        )
    if generator.tensor_parallel_size > 1:
        raise ValueError(
            f"{setting}: each rank decides for itself when to stop, and ranks that share an engine "
            f"(model.generator.init_args.tensor_parallel_size={generator.tensor_parallel_size}) cannot. Use 1."
        )
    if getattr(generator, "max_batch_size", None) is not None:
        raise ValueError(
            f"{setting} decodes all completions together, and model.generator.init_args.max_batch_size="
            f"{getattr(generator, 'max_batch_size', None)} some after others. Leave it out."
        )


def check_carried(settings: GRPOSettings, num_prompts: int) -> None:
    """Refuses a share that carries no group, and steps too small for their minibatches.

    Args:
        settings: Of the module.
        num_prompts: data.batch_size.

    Raises:
        ValueError: With a way out.
    """
    partial = settings.partial_rollouts
    if not partial.carry_over:
        return
    left = partial.left(0, num_prompts)
    setting = f"model.partial_rollouts.carry_over={partial.carry_over} of data.batch_size={num_prompts} prompts"
    if num_prompts < 2:
        raise ValueError(
            f"{setting}: a step that leaves its only prompt unfinished trains on nothing. Use 2 or more prompts."
        )
    if left == 0:
        raise ValueError(f"{setting} is less than one group, so nothing is carried over. Raise one of them.")
    if num_prompts - left < settings.num_minibatches:
        raise ValueError(
            f"{setting} leaves {num_prompts - left} groups for the first step, fewer than model.num_minibatches="
            f"{settings.num_minibatches}. Use fewer minibatches, or carry less."
        )
