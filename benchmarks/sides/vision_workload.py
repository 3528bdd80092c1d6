"""What both sides are given where prompts show images: pictures of shapes, and a short question about each."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageDraw

from sides.workload import LARGE, NANO, THINGS, Workload

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "grey", "white")
SHAPES = ("circles", "squares", "lines")
QUESTIONS = (
    "How many {colour} {shape} are in the picture?",
    "Are there more {colour} {shape} than {other} ones? Count both before you answer.",
    "The picture shows {thing} as {shape}. How many of them are {colour}, and how many are {other}?",
)


@dataclass(frozen=True)
class VisionWorkload(Workload):
    """One comparison on prompts with an image each."""

    image_size: int = 448
    """Pixels, of both sides of an image: 256 tokens of the prompt."""
    sampler: Literal["vllm", "transformers"] = "vllm"
    """Of both sides on a GPU; on a CPU both sample with transformers."""
    vision_tower: Literal["frozen", "trained"] = "frozen"
    """Of both sides; TRL trains it unless told otherwise."""

    @property
    def uses_vllm(self) -> bool:
        """See ``Workload``."""
        return super().uses_vllm and self.sampler == "vllm"


VISION_WORKLOADS = {
    "nano": VisionWorkload(**vars(NANO) | {"image_size": 56}),
    "3b": VisionWorkload(
        **vars(LARGE)
        | {
            "shape": "3b",
            "warmup_steps": 1,
            "prompts_per_step": 32,
            "max_completion_length": 512,
            "mean_length": 160,
            "max_tokens_per_microbatch": 8192,
            "gpu_memory_utilization": 0.15,
        }
    ),
}
"""Defaults by shape; every field can be changed on the command line."""


def write_rows(file: Path, count: int, image_size: int, seed: int = 0) -> None:
    """Questions about pictures as JSONL, with the path of the picture, which lies in a folder beside it.

    Args:
        file: With columns ``prompt`` (one message) and ``image``.
        count: Rows.
        image_size: Pixels of both sides.
        seed: Of pictures and questions.
    """
    folder = file.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        path = folder / f"{number}.png"
        picture(draw, image_size).save(path, compress_level=1)
        rows.append({"prompt": [{"role": "user", "content": question(draw)}], "image": str(path)})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def picture(draw: random.Random, size: int) -> Image.Image:
    """Twenty shapes on noise."""
    image = Image.frombytes("L", (size, size), draw.randbytes(size * size)).convert("RGB")
    canvas = ImageDraw.Draw(image)
    for _ in range(20):
        x, y, length = (draw.randrange(size), draw.randrange(size), draw.randint(size // 16, size // 5))
        place, colour = [x, y, x + length, y + length], draw.choice(COLOURS)
        match draw.choice(SHAPES):
            case "circles":
                canvas.ellipse(place, fill=colour)
            case "squares":
                canvas.rectangle(place, fill=colour)
            case "lines":
                canvas.line(place, fill=colour, width=3)
    return image


def question(draw: random.Random) -> str:
    """About as long as those of figures in geometry: two or three sentences."""
    text = ""
    for _ in range(draw.randint(2, 3)):
        colour, other = draw.sample(COLOURS, 2)
        shape, thing = draw.choice(SHAPES), draw.choice(THINGS)
        text += draw.choice(QUESTIONS).format(colour=colour, other=other, shape=shape, thing=thing) + " "
    return text.strip()
