"""Images for an engine in this process: what it needs to show them to a model, and prompts as it takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PretrainedConfig

from grpo_lightning.generation.vllm.compat import NO_VIDEOS, TEXT_ALONE, why_unusable
from grpo_lightning.generation.vllm.engine.engine import ColocatedEngine
from grpo_lightning.generation.vllm.models import refuse_own_head, refuse_unshown
from grpo_lightning.types import PromptImages
from grpo_lightning.vision.processing import ImageProcessing


class EngineImages:
    """Whether an engine is shown images (model.vision_tower)."""

    def __init__(self) -> None:
        self.processor: Any = None
        """Of the model, where it is; the engine reads it from its directory."""

    def ask(self, processing: ImageProcessing, config: PretrainedConfig) -> None:
        """Has them shown from now on; see ``SamplesWithImages.see_images``."""
        refuse_own_head("VLLMColocate", config, has_tower=True)
        refuse_unshown("VLLMColocate", config, why_unusable())
        self.processor = processing.processor

    def engine_arguments(self, config: PretrainedConfig) -> dict[str, Any]:
        """Of ``vllm.LLM``, for a model of this configuration: it would keep room for the longest video too."""
        if self.processor is not None:
            return {"limit_mm_per_prompt": NO_VIDEOS}
        return {} if config.get_text_config() is config else {"limit_mm_per_prompt": TEXT_ALONE}


def check_shown(engine: ColocatedEngine, prompts: Sequence[tuple[list[int], PromptImages]]) -> None:
    """Makes sure that an engine shows images as training does: the same tokens, and the same attention inside an image.

    Features are compared in the first step, by the logprobs of what was sampled.

    Args:
        engine: Started.
        prompts: With an image each.

    Raises:
        ValueError: If it does not.
    """
    config = engine.llm.llm_engine.model_config
    if engine.device.type == "cpu" and config.is_mm_prefix_lm:
        raise ValueError(
            "model.generator=VLLMColocate on a CPU: tokens of an image see only those before them there, and both ways in "
            f"{config.architectures[0]}. Use model.generator=TransformersGenerator."
        )
    image_prompts(engine.llm, [ids for ids, _ in prompts], [images for _, images in prompts])


def without_pixels(images: Sequence[PromptImages]) -> list[PromptImages]:
    """What an engine reads of them, for other ranks of it: pictures and short prompts. It makes pixels of its own."""
    return [replace(each, pixels={}, per_token={}) for each in images]


def image_prompts(llm: Any, prompt_ids: Sequence[Sequence[int]], images: Sequence[PromptImages]) -> list[Any]:
    """B prompts as ``LLMEngine.add_request`` takes them, the images of each processed once; None for those of text alone.

    Args:
        llm: A ``vllm.LLM`` in this process.
        prompt_ids: B lists of token ids, with a placeholder token for each feature of an image.
        images: B of them, or none at all.

    Raises:
        ValueError: If the engine's processor makes other tokens of a prompt than training's.
    """
    if not images:
        return [None] * len(prompt_ids)
    shown = enumerate(zip(prompt_ids, images, strict=True))
    return [_rendered(llm, n, ids, each) if each.images else None for n, (ids, each) in shown]


def _rendered(llm: Any, n: int, ids: Sequence[int], images: PromptImages) -> Any:
    prompt = {"prompt_token_ids": images.short_ids, "multi_modal_data": {"image": list(images.images)}}
    (made,) = llm.llm_engine.renderer.render_cmpl([prompt])
    found = made["prompt_token_ids"]
    if found != list(ids):
        raise ValueError(
            f"the images of prompt {n} become {len(found)} tokens with it in vLLM and {len(ids)} in training, or others: the "
            "two process images differently. Use model.generator=TransformersGenerator."
        )
    return made
