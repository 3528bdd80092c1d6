"""Toy vision-language models, and prompts with images for them: transformers' own classes at small sizes.

The processor of the Qwen-VL families needs torchvision, which the CPU environment has not: their prompts are put together
here, from transformers' image processor and the model's own placeholders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from grpo_lightning.types import PromptImages, Rollouts
from tests.scoring.architectures import SIZES

IMAGE_TOKEN = 90
TOKENS = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": 91,
    "vision_start_token_id": 92,
    "vision_end_token_id": 93,
    "initializer_range": 0.2,
}
MROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
QWEN_TOWER = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "initializer_range": 0.2}
CLIP_TOWER = {
    **{"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"image_size": 16, "patch_size": 4, "initializer_range": 0.2},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {
        **TOKENS,
        "text_config": SIZES | {"rope_parameters": MROPE},
        "vision_config": QWEN_TOWER
        | {
            "hidden_size": 32,
            "intermediate_size": 40,
            "out_hidden_size": 32,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
    },
    "qwen3_vl": {
        **TOKENS,
        "text_config": SIZES | {"rope_parameters": MROPE | {"mrope_interleaved": True}},
        "vision_config": QWEN_TOWER
        | {"hidden_size": 32, "intermediate_size": 40, "out_hidden_size": 32, "num_position_embeddings": 16}
        | {"deepstack_visual_indexes": [0, 1]},
    },
    "llava": {
        "image_token_id": IMAGE_TOKEN,
        "image_token_index": IMAGE_TOKEN,
        "text_config": SIZES | {"model_type": "llama"},
        "vision_config": CLIP_TOWER | {"model_type": "clip_vision_model"},
    },
    "idefics3": {
        "image_token_id": IMAGE_TOKEN,
        "scale_factor": 2,
        "text_config": SIZES | {"model_type": "llama"},
        "vision_config": CLIP_TOWER,
    },
    "gemma3": {
        "image_token_id": IMAGE_TOKEN,
        "mm_tokens_per_image": 4,
        "text_config": SIZES | {"sliding_window": 64, "query_pre_attn_scalar": 8},
        "vision_config": CLIP_TOWER | {"vision_use_head": False},
    },
}


def toy_vision_model(family: str) -> PreTrainedModel:
    """A model with a vision tower, random weights."""
    config = AutoConfig.for_model(family, **CONFIGS[family])
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    if family == "gemma3":  # made of zeros, which would hide the images
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    return model.eval()


def picture(seed: int, width: int = 16, height: int = 16) -> Image.Image:
    """An image of noise."""
    noise = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def prompt_with_images(
    family: str, text: Sequence[int], sizes: Sequence[tuple[int, int]]
) -> tuple[list[int], PromptImages]:
    """Images (width, height) behind the first token of a text, as the family's processor expands and describes them."""
    images = tuple(picture(seed + len(text), *size) for seed, size in enumerate(sizes))
    pixels, counts = (_qwen if family.startswith("qwen") else _squares)(family, images)
    spans = [[92, *[IMAGE_TOKEN] * count, 93] for count in counts]
    ids = [*text[:1], *(token for span in spans for token in span), *text[1:]]
    short = [*text[:1], *(token for _ in spans for token in (92, IMAGE_TOKEN, 93)), *text[1:]]
    is_image = torch.tensor(ids) == IMAGE_TOKEN
    kinds = {"gemma3": "token_type_ids", "qwen2_5_vl": "mm_token_type_ids", "qwen3_vl": "mm_token_type_ids"}
    per_token = {kinds[family]: is_image.long()} if family in kinds else {}
    return ids, PromptImages(images, short, is_image, pixels if images else {}, per_token)


def _qwen(family: str, images: Sequence[Image.Image]) -> tuple[dict[str, Tensor], list[int]]:
    if not images:
        return {}, []
    size = {"shortest_edge": 64, "longest_edge": 2**14}
    made = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size=size)(list(images), return_tensors="pt")
    return dict(made), [int(grid.prod()) // 4 for grid in made["image_grid_thw"]]


def _squares(family: str, images: Sequence[Image.Image]) -> tuple[dict[str, Tensor], list[int]]:
    noise = [torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed, _ in enumerate(images)]
    if not noise:
        return {}, []
    pixels = torch.stack(noise)
    if family == "idefics3":
        return {"pixel_values": pixels[None]}, [4] * len(noise)
    return {"pixel_values": pixels}, [{"llava": 16, "gemma3": 4}[family]] * len(noise)


def image_rollouts(family: str, sizes: Sequence[Sequence[tuple[int, int]]], completions: Sequence[int]) -> Rollouts:
    """Groups of as many completions as each prompt is told, lengths 1, 2, 3 and so on.

    Args:
        family: Of ``CONFIGS``.
        sizes: The images of each prompt.
        completions: The completions of each prompt.
    """
    drawn = torch.Generator().manual_seed(1)
    texts = [torch.randint(2, 89, (3 + b,), generator=drawn).tolist() for b in range(len(sizes))]
    prompts = [prompt_with_images(family, text, images) for text, images in zip(texts, sizes, strict=True)]
    group = [b for b, count in enumerate(completions) for _ in range(count)]
    ids = [torch.randint(2, 89, (1 + n,), generator=drawn).tolist() for n in range(len(group))]
    logprobs = [[0.0] * len(each) for each in ids]
    plain = Rollouts.from_lists([p for p, _ in prompts], ids, logprobs, [False] * len(ids), group)
    return Rollouts(**{**plain.__dict__, "images": tuple(images for _, images in prompts)})
