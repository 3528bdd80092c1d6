"""Which generator samples: what ``model.generator`` gives, or the best that runs here."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from grpo_lightning.generation.base import Generator
from grpo_lightning.generation.transformers.generator import TransformersGenerator
from grpo_lightning.generation.vllm.colocate import VLLMColocate
from grpo_lightning.generation.vllm.compat import why_unusable
from grpo_lightning.generation.vllm.server import VLLMServer  # noqa: F401 - by its name alone jsonargparse finds it only here


def default_generator() -> Generator:
    """What ``model.generator`` is when a config does not say: VLLMColocate where vLLM can run, said once if not."""
    reason = why_unusable()
    if reason is None:
        return VLLMColocate()
    rank_zero_info(f"Completions are sampled with TransformersGenerator. {reason} to choose it without this message.")
    return TransformersGenerator()


def chosen_generator(given: Any) -> Generator:
    """``model.generator``, or the default where it is None.

    Raises:
        ValueError: If it is a name or a class, which configs have: from Python it is the object.
    """
    if given is None:
        return default_generator()
    if isinstance(given, Generator):
        return given
    name = given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)
    raise ValueError(
        f"model.generator={name!r} is no Generator. From Python, give the object: "
        f"generator={name.rpartition('.')[2]}(...), of a subclass of grpo_lightning.generation.Generator."
    )
