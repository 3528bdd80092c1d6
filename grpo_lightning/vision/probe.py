"""Prompts with images of noise, for asking a model whether it can be scored and sampled the fast way."""

from __future__ import annotations

from dataclasses import replace

import torch

from grpo_lightning.types import PromptImages, Rollouts
from grpo_lightning.vision.pillow import pillow
from grpo_lightning.vision.processing import ImageProcessing

SIZES = ((56, 84), (112, 56))
"""Width and height of the images of the two prompts; another shape has other positions."""


def image_prompts(processing: ImageProcessing) -> list[tuple[list[int], PromptImages]]:
    """Two short prompts with an image each, always the same."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for words, (width, height) in zip(("What is it?", "And this?"), SIZES, strict=True):
        noise = torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8)
        blocks = [{"type": "image"}, {"type": "text", "text": words}]
        made.append(processing([{"role": "user", "content": blocks}], [pillow().fromarray(noise.numpy())], {}))
    return made


def image_probe(processing: ImageProcessing, vocab_size: int) -> Rollouts:
    """Those prompts with random completions of unequal length."""
    prompts, generator = image_prompts(processing), torch.Generator().manual_seed(0)
    completions = [torch.randint(vocab_size, (n,), generator=generator).tolist() for n in (4, 7, 2, 6, 1)]
    logprobs = [[0.0] * len(ids) for ids in completions]
    ids = [prompt for prompt, _ in prompts]
    plain = Rollouts.from_lists(ids, completions, logprobs, [False] * 5, [0, 0, 0, 1, 1])
    return replace(plain, images=tuple(images for _, images in prompts))
