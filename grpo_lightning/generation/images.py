"""What a generator does that can show images to the policy."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from transformers import PretrainedConfig

from grpo_lightning.generation.base import Generator, OnCompleted, SamplingSettings
from grpo_lightning.generation.room import naming_rows
from grpo_lightning.types import PromptBatch, PromptImages, Rollouts
from grpo_lightning.vision.probe import image_prompts
from grpo_lightning.vision.processing import ImageProcessing


@runtime_checkable
class SamplesWithImages(Protocol):
    """A generator whose ``generate`` takes ``images`` too: B of them, of prompts of which some show images.

    The prompts then have a placeholder token for each feature of an image.
    """

    def see_images(self, processing: ImageProcessing, config: PretrainedConfig) -> None:
        """Tells it that prompts will show images; called before weights load.

        Args:
            processing: What prompts with images go through.
            config: Of the model.

        Raises:
            ValueError: If it cannot show any to this model here.
        """

    def check_images(self, prompts: Sequence[tuple[list[int], PromptImages]]) -> None:
        """Makes sure of it once, after ``start``, on two prompts that show an image each.

        Raises:
            ValueError: If the policy would see something else than in training.
        """


def takes_images(generator: Generator) -> bool:
    """Whether ``generate`` can be called with ``images=``."""
    parameters = inspect.signature(generator.generate).parameters
    by_name = "images" in parameters and parameters["images"].kind is not inspect.Parameter.POSITIONAL_ONLY
    return by_name or any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())


def sample_batch(
    generator: Generator,
    batch: PromptBatch,
    sampling: SamplingSettings,
    seeds: Sequence[int],
    on_completed: OnCompleted | None = None,
) -> Rollouts:
    """G completions of each prompt of a batch, which may show images; arguments as of ``Generator.generate``."""
    # The check of the settings has made sure that it takes them.
    shown = {"images": batch.images} if batch.images else {}
    generate: Callable[..., Rollouts] = generator.generate
    with naming_rows(batch.row_name):
        rollouts = generate(batch.prompt_ids, sampling, seeds, on_completed, **shown)
    return replace(rollouts, images=batch.images) if shown else rollouts


def check_sees_images(generator: Generator, processing: ImageProcessing | None) -> None:
    """Has a generator that was started make sure that it samples prompts with images as they are scored.

    Args:
        generator: Of the policy.
        processing: None of a policy that sees text alone.

    Raises:
        ValueError: If it does not.
    """
    if processing is not None:
        assert isinstance(generator, SamplesWithImages)
        generator.check_images(image_prompts(processing))
