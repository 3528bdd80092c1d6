"""Images for a vLLM server: the options that let it show them, and prompts as its tokens-in endpoint takes them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig

from grpo_lightning.generation.vllm.compat import why_no_server_images
from grpo_lightning.generation.vllm.models import refuse_own_head, refuse_unshown
from grpo_lightning.generation.vllm.serving.answers import read_as_vllms
from grpo_lightning.generation.vllm.serving.client import ServerRefused, VLLMClient
from grpo_lightning.generation.vllm.serving.endpoints import TOKENS
from grpo_lightning.generation.vllm.serving.process import IMAGE_OPTIONS
from grpo_lightning.types import PromptImages
from grpo_lightning.vision.processing import ImageProcessing

if TYPE_CHECKING:
    from PIL.Image import Image


class ServerImages:
    """Whether a server is shown images (model.vision_tower)."""

    def __init__(self) -> None:
        self.processor: Any = None
        """Of the model, where it is."""

    def ask(self, processing: ImageProcessing, config: PretrainedConfig, is_launched: bool) -> None:
        """Has them shown from now on; see ``SamplesWithImages.see_images``."""
        refuse_own_head("VLLMServer", config, has_tower=True)
        if is_launched:  # of another one ``check_shown`` finds out
            refuse_unshown("VLLMServer", config, why_no_server_images())
        self.processor = processing.processor

    def launch_options(self) -> list[str]:
        """Of vLLM's command line."""
        return [] if self.processor is None else list(IMAGE_OPTIONS)

    @property
    def caches(self) -> list[str]:
        """Routes that forget what old weights have made of images."""
        return [] if self.processor is None else ["/reset_encoder_cache"]


def shown_prompts(images: Sequence[PromptImages]) -> list[dict[str, Any] | None]:
    """Prompts as the endpoint for tokens takes them, each picture encoded once without loss; None for those of text alone."""
    return [_shown(each) if each.images else None for each in images]


def _shown(images: PromptImages) -> dict[str, Any]:
    parts = [{"type": "image_url", "url": data_uri(image)} for image in images.images]
    return {"token_ids": list(images.short_ids), "content_parts": parts}


def data_uri(image: Image) -> str:
    """The picture as text, every pixel as it is.

    Example:
        >>> from grpo_lightning.vision.pillow import pillow
        >>> data_uri(pillow().new("RGB", (2, 2))).partition(",")[0]
        'data:image/png;base64'
    """
    written = io.BytesIO()
    image.save(written, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()


def check_shown(client: VLLMClient, model: str, prompts: Sequence[tuple[list[int], PromptImages]]) -> None:
    """Makes sure that a server shows images, and makes training's tokens of them.

    Features are compared in the first step, by the logprobs of what was sampled.

    Args:
        client: Of the server.
        model: The name that it serves the policy under.
        prompts: With an image each.

    Raises:
        ValueError: If it does not.
    """
    for ids, images in prompts:
        body = {"model": model, "sampling_params": {"max_tokens": 1}, "return_token_ids": True, **_shown(images)}
        try:
            answer = client.post(TOKENS.path, body)
            with read_as_vllms(client, TOKENS.path, answer):
                found = answer["prompt_token_ids"]
        except ServerRefused as error:
            raise ValueError(
                f"model.vision_tower is set, and the vLLM server at {client.address} takes no images ({error}). Start it "
                "with python -m grpo_lightning serve --images, on vLLM 0.32."
            ) from error
        check_tokens(found, ids)


def check_tokens(found: Sequence[int] | None, ids: Sequence[int]) -> None:
    """Refuses a server that makes other tokens of a prompt than training does.

    Args:
        found: What the server made; None from one that does not say.
        ids: Training's.

    Raises:
        ValueError: With a way out.
    """
    if list(found or ()) != list(ids):
        raise ValueError(
            f"the images of a prompt become {len(found or ())} tokens with it in the vLLM server and {len(ids)} in training, or "
            "others: the two process images differently, or its vLLM is older than 0.32. Use "
            "model.generator=TransformersGenerator."
        )
