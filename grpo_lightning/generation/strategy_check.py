"""Whether a generator can sample from the policy as the strategy holds it."""

from __future__ import annotations

from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from grpo_lightning.generation.base import Generator
from grpo_lightning.generation.transformers.generator import TransformersGenerator


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
