"""What a real vLLM engine samples of prompts with images, beside what training computes; for a test and its child process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo_lightning.generation import SamplingSettings, VLLMColocate, VLLMServer
from grpo_lightning.policy.policy import Policy
from grpo_lightning.policy.settings import PolicySettings
from grpo_lightning.scoring.images.tower import tower_modules
from grpo_lightning.types import PromptImages, Rollouts
from grpo_lightning.vision.probe import image_prompts
from tests.frozen_imports import freeze_imports
from tests.vision.test_image_scoring import own_logprobs
from tests.vision.toy_checkpoint import save_toy_checkpoint
from tests.vision.toy_vision import picture
from tests.vllm_cases import PROMPTS, SEEDS, eager_torch, mismatch, shift_weights, small_engine
from tests.vllm_cases import SETTINGS as TEXT_SETTINGS

SETTINGS = SamplingSettings(num_generations=3, max_completion_length=6)
TEXT = "-text"


def prompts_of(policy: Policy, first: int = 0) -> list[tuple[list[int], PromptImages]]:
    """One image, none, and two of other shapes."""
    image, ask = {"type": "image"}, {"type": "text", "text": "How many?"}
    shown = [
        ([image, ask], [picture(first, 24, 16)]),
        ([ask], []),
        ([ask, image, image], [picture(first + 1, 16, 32), picture(first + 2, 32, 32)]),
    ]
    assert policy.image_processing is not None
    return [policy.image_processing([{"role": "user", "content": blocks}], images, {}) for blocks, images in shown]


Sampler = VLLMColocate | VLLMServer


@contextmanager
def told(generator: Any, policy: Policy) -> Iterator[Any]:
    """The generator with the policy's weights, told of images as a run does it; ended afterwards."""
    assert policy.image_processing is not None
    generator.see_images(policy.image_processing, policy.config)
    generator.start(policy.model, policy.tokenizer, "toy")
    try:
        generator.update_weights(policy.model)
        generator.check_images(image_prompts(policy.image_processing))
        yield generator
    finally:
        generator.stop()


def sample(generator: Sampler, prompts: Any, sampling: SamplingSettings = SETTINGS) -> Rollouts:
    """Completions of the prompts, with their images."""
    ids, images = [each for each, _ in prompts], tuple(each for _, each in prompts)
    seeds = list(range(7, 7 + len(ids)))
    return replace(generator.generate(ids, sampling, seeds, images=images), images=images)


@torch.no_grad()
def gap(policy: Policy, rollouts: Rollouts) -> float:
    """The largest distance, in nats, of the sampler's logprobs from those of the model's own forward pass."""
    found: Tensor = own_logprobs(policy.model.eval(), rollouts)
    return float((found - rollouts.sampling_logprobs).abs().max())


def shift_tower(policy: Policy) -> None:
    """Changes the tower and nothing else."""
    with torch.no_grad():
        for module in tower_modules(policy.model).values():
            shift_weights(module)


def gaps(checkpoint: Path, make: Callable[..., Sampler] = small_engine) -> dict[str, float]:
    """Of a toy: with the first weights, with a tower that has moved, with an adapter that the engine adds, and with it merged.

    Args:
        checkpoint: The toy.
        make: Its generator, from ``lora_sync``.
    """
    policy = Policy(PolicySettings(model_name_or_path=str(checkpoint)), vision_tower="trained").load()
    with told(make(), policy) as generator:
        found = {"first": gap(policy, sample(generator, prompts_of(policy)))}
        shift_tower(policy)
        found["stale"] = gap(policy, sample(generator, prompts_of(policy)))
        generator.update_weights(policy.model)
        found["updated"] = gap(policy, sample(generator, prompts_of(policy)))
    settings = PolicySettings(
        model_name_or_path=str(checkpoint), finetuning_type="lora", lora_rank=8, lora_target="q_proj,v_proj"
    )
    for way in ("hot", "merge"):
        policy = Policy(settings, vision_tower="frozen").load()
        shift_weights(policy.model)
        with told(make(lora_sync=way), policy) as generator:
            found[way] = gap(policy, sample(generator, prompts_of(policy)))
    return found


def check_gaps(found: dict[str, float]) -> None:
    """Rounding of float32, but where the engine has another tower than the policy."""
    assert found.pop("stale") > 0.1
    assert {name: value for name, value in found.items() if value > 1e-4} == {}
    assert set(found) == {"first", "updated", "hot", "merge"}


def gap_of_text(family: str, checkpoint: Path) -> float:
    """The largest distance, in nats, where the language part alone is trained, after an update; Qwen3.5 samples in bfloat16.

    vLLM's linear attention on a CPU takes nothing else.
    """
    policy = Policy(PolicySettings(model_name_or_path=str(save_toy_checkpoint(family, checkpoint)))).load()
    generator = small_engine(dtype="bfloat16") if family == "qwen3_5" else small_engine()
    generator.start(policy.model, policy.tokenizer, "toy")
    try:
        shift_weights(policy.model, scale=0.02)
        generator.update_weights(policy.model)
        return mismatch(policy.model, generator.generate(PROMPTS, TEXT_SETTINGS, SEEDS))
    finally:
        generator.stop()


def main(folder: str, *families: str) -> None:
    """Writes FOLDER/FAMILY.json for each family; of "FAMILY-text" for its language part alone."""
    with eager_torch():
        for family in families:
            kind, is_text = family.removesuffix(TEXT), family.endswith(TEXT)
            try:
                checkpoint = Path(folder, f"{family}-model")
                found: Any = gap_of_text(kind, checkpoint) if is_text else gaps(save_toy_checkpoint(kind, checkpoint))
            except ValueError as error:
                found = {"refused": str(error)}
            freeze_imports()
            Path(folder, f"{family}.json").write_text(json.dumps(found))
