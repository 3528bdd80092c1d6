"""Generators: prompts in, completions out."""

from grpo_lightning.generation.base import Generator, OnCompleted, SamplingSettings
from grpo_lightning.generation.transformers import TransformersGenerator

__all__ = ["Generator", "OnCompleted", "SamplingSettings", "TransformersGenerator", "default_generator"]


def default_generator() -> Generator:
    """What ``model.generator`` is when a config does not say."""
    return TransformersGenerator()
