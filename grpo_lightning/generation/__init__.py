"""Generators: prompts in, completions out.

A name is imported when it is first used: processes of a vLLM server, and the command that starts one, need neither
Lightning nor the generators.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpo_lightning.generation.base import Generator, OnCompleted, SamplingSettings
    from grpo_lightning.generation.choice import chosen_generator, default_generator
    from grpo_lightning.generation.transformers.generator import TransformersGenerator
    from grpo_lightning.generation.vllm.colocate import VLLMColocate
    from grpo_lightning.generation.vllm.server import VLLMServer

__all__ = [
    "Generator",
    "OnCompleted",
    "SamplingSettings",
    "TransformersGenerator",
    "VLLMColocate",
    "VLLMServer",
    "chosen_generator",
    "default_generator",
]

_PLACES = {
    "Generator": "base",
    "OnCompleted": "base",
    "SamplingSettings": "base",
    "TransformersGenerator": "transformers.generator",
    "VLLMColocate": "vllm.colocate",
    "VLLMServer": "vllm.server",
    "chosen_generator": "choice",
    "default_generator": "choice",
}

if not TYPE_CHECKING:  # a type checker would take any name for one of the package

    def __getattr__(name: str) -> Any:
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
