"""What both sides are given: model shape, prompts, lengths, sampling settings, reward. Standard library only."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sides.saved_settings import SavedSettings


@dataclass(frozen=True)
class Workload(SavedSettings):
    """One comparison. Lengths in tokens."""

    shape: str = "tiny"
    """Of the model: a key of ``make_model.SHAPES``."""
    device: str = "cpu"
    dtype: str = "float32"
    """Of the weights; ``mixed`` is float32 weights computed with in bfloat16."""
    steps: int = 8
    """Optimizer steps that count, after ``warmup_steps`` that do not."""
    warmup_steps: int = 1
    prompts_per_step: int = 4
    num_generations: int = 8
    max_completion_length: int = 128
    mean_length: int = 64
    """Mean of the geometric completion lengths before the limit cuts them; see ``make_model.py``."""
    per_device_batch: int = 8
    """TRL: completions in one forward and backward pass."""
    max_tokens_per_microbatch: int = 16384
    """This project: tokens in one forward and backward pass."""
    temperature: float = 1.0
    learning_rate: float = 1e-6
    max_grad_norm: float = 1.0
    beta: float = 0.0
    gradient_checkpointing: bool = False
    gpu_memory_utilization: float = 0.3
    """Share of the device's memory for the colocated engine, of either side."""
    engine_options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of this project's generator."""
    attention: str = "sdpa"
    """TRL: the attention of transformers."""
    threads: int = 1
    """Of torch on the CPU."""
    seed: int = 42
    model: str = ""
    """Model directory."""
    prompts: str = ""
    """JSONL with a conversation of one message under ``prompt``."""

    @property
    def uses_vllm(self) -> bool:
        """Whether both sides sample with vLLM in the training process, and not with transformers."""
        return self.device == "cuda"

    def options(self) -> dict[str, Any]:
        """Everything but the places of files."""
        return {name: value for name, value in asdict(self).items() if name not in ("model", "prompts")}


TINY = Workload()
NANO = replace(
    TINY, shape="nano", steps=2, prompts_per_step=2, num_generations=4, max_completion_length=16, mean_length=8
)
LARGE = replace(TINY, steps=3, warmup_steps=2, prompts_per_step=64, max_completion_length=1024, mean_length=220)
WORKLOADS = {
    "nano": NANO,
    "tiny": TINY,
    "0.5b": replace(LARGE, shape="0.5b"),
    "1.5b": replace(LARGE, shape="1.5b"),
}
"""Defaults by shape; every field can be changed on the command line."""


def even_fraction(completions: Sequence[Any], **columns: Any) -> list[float]:
    """Share of even token ids in each completion: cheap, and so fine that no group has equal rewards.

    Most ids of a random model have no text, so a reward on text would give groups without any advantage, which only one
    side leaves out of training. The ids come under the name that each side gives them.
    """
    ids = columns["completions_ids"] if "completions_ids" in columns else columns["completion_ids"]
    return [sum(token % 2 == 0 for token in completion) / len(completion) for completion in ids]


def conversations(lines: Iterator[str], limit: int) -> list[dict[str, Any]]:
    """Rows of a JSONL file with a ``question`` or a ``prompt``, as conversations; as many as ``limit``."""
    rows = []
    for line in lines:
        row = json.loads(line)
        prompt = row.get("prompt", row.get("question"))
        if prompt is None:
            raise ValueError(f"--data: a row has neither 'prompt' nor 'question', but {', '.join(row)}.")
        rows.append({"prompt": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt})
        if len(rows) == limit:
            break
    return rows


NAMES = [
    "Ada",
    "Boris",
    "Chen",
    "Dora",
    "Emil",
    "Farah",
    "Gita",
    "Hugo",
    "Ines",
    "Jonas",
    "Kemal",
    "Lena",
    "Mo",
    "Nadia",
    "Omar",
    "Petra",
    "Quinn",
    "Rosa",
    "Sam",
    "Tariq",
]
THINGS = [
    "apples",
    "books",
    "bottles",
    "boxes",
    "bricks",
    "buckets",
    "candles",
    "cards",
    "chairs",
    "coins",
    "cups",
    "eggs",
    "lamps",
    "maps",
    "pens",
    "plates",
]
SENTENCES = (
    "{name} has {a} {thing} and gives {b} of them to {other}.",
    "Every week {name} buys {a} {thing} for {b} dollars each.",
    "A box holds {a} {thing}, and there are {b} boxes in the store.",
    "After {a} days, {name} counts {b} {thing} fewer than before.",
    "{other} sells {a} {thing} in the morning and twice as many in the afternoon.",
    "The price of the {thing} rises by {b} percent, which {name} did not expect.",
)
QUESTION = "How many {thing} does {name} have in the end?"


def word_problems(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Conversations as long as questions of grade school arithmetic: about 45 words, a tenth over 70."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        text = sentences(draw, math.exp(draw.gauss(math.log(24), 0.55)))
        rows.append({"prompt": [{"role": "user", "content": text + _filled(draw, QUESTION)}]})
    return rows


def sentences(draw: random.Random, words: float) -> str:
    """So many words of the problems' sentences, and what the last one has over them; a space after each."""
    text = ""
    while len(text.split()) < words:
        text += _filled(draw, draw.choice(SENTENCES)) + " "
    return text


def _filled(draw: random.Random, sentence: str) -> str:
    name, other = draw.sample(NAMES, 2)
    numbers = {"a": draw.randint(2, 400), "b": draw.randint(2, 90)}
    return sentence.format(name=name, other=other, thing=draw.choice(THINGS), **numbers)
