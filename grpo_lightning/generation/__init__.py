"""Generators: prompts in, completions out."""

from lightning.pytorch.utilities import rank_zero_info

from grpo_lightning.generation.base import Generator, OnCompleted, SamplingSettings
from grpo_lightning.generation.transformers.generator import TransformersGenerator
from grpo_lightning.generation.vllm.colocate import VLLMColocate
from grpo_lightning.generation.vllm.compat import why_unusable
from grpo_lightning.generation.vllm.server import VLLMServer

__all__ = [
    "Generator",
    "OnCompleted",
    "SamplingSettings",
    "TransformersGenerator",
    "VLLMColocate",
    "VLLMServer",
    "default_generator",
]


def default_generator() -> Generator:
    """What ``model.generator`` is when a config does not say: VLLMColocate where vLLM can run, said once if not."""
    reason = why_unusable()
    if reason is None:
        return VLLMColocate()
    rank_zero_info(f"Completions are sampled with TransformersGenerator. {reason} to choose it without this message.")
    return TransformersGenerator()
