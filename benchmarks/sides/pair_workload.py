"""What all sides of a comparison of preference training are given: model, pairs, lengths. Standard library only."""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass, replace
from typing import Any

from sides.saved_settings import SavedSettings
from sides.workload import sentences


@dataclass(frozen=True)
class PairWorkload(SavedSettings):
    """One comparison of DPO. Lengths in words, of 1.5 tokens or so."""

    shape: str = "tiny"
    """Of the model: a key of ``make_model.SHAPES``."""
    device: str = "cpu"
    dtype: str = "float32"
    """Of the weights; ``mixed`` is float32 weights computed with in bfloat16."""
    steps: int = 4
    """Optimizer steps that count, after ``warmup_steps`` that do not."""
    warmup_steps: int = 1
    pairs_per_step: int = 16
    prompt_words: int = 40
    """Median; spread by a factor of 1.5, at most twice as many."""
    completion_words: int = 60
    """The same, of either completion."""
    per_device_batch: int = 8
    """TRL: pairs in one forward and backward pass; this is its default."""
    max_tokens_per_microbatch: int = 16384
    """This project: tokens in one forward and backward pass."""
    learning_rate: float = 1e-6
    max_grad_norm: float = 1.0
    beta: float = 0.1
    threads: int = 1
    """Of torch on the CPU."""
    seed: int = 42
    model: str = ""
    """Model directory."""
    pairs: str = ""
    """JSONL with ``prompt``, ``chosen`` and ``rejected``, as text."""

    def options(self) -> dict[str, Any]:
        """Everything but the places of files."""
        return {name: value for name, value in asdict(self).items() if name not in ("model", "pairs")}

    def rows(self) -> list[dict[str, str]]:
        """As many pairs as the steps take. A completion begins with a space, so that no token lies over its beginning."""
        draw = random.Random(self.seed)

        def text(words: int) -> str:
            return sentences(draw, min(math.exp(draw.gauss(0.0, 0.4)), 2.0) * words).rstrip()

        count = (self.warmup_steps + self.steps) * self.pairs_per_step
        completion = {"chosen": self.completion_words, "rejected": self.completion_words}
        return [
            {"prompt": text(self.prompt_words)} | {kind: " " + text(words) for kind, words in completion.items()}
            for _ in range(count)
        ]


TINY = PairWorkload()
NANO = replace(TINY, shape="nano", steps=2, pairs_per_step=4, prompt_words=12, completion_words=12, per_device_batch=2)
LARGE = replace(TINY, steps=5, warmup_steps=2, pairs_per_step=64, prompt_words=100, completion_words=160)
PAIR_WORKLOADS = {
    "nano": NANO,
    "tiny": TINY,
    "0.5b": replace(LARGE, shape="0.5b"),
    "1.5b": replace(LARGE, shape="1.5b"),
}
"""Defaults by shape; every field can be changed on the command line."""
