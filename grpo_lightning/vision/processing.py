"""Conversations with images to token ids and pixels, by the model's own processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import AutoProcessor, PretrainedConfig, PreTrainedTokenizerBase

from grpo_lightning.types import Message, PromptImages
from grpo_lightning.vision.messages import as_blocks
from grpo_lightning.vision.pillow import pillow

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageProcessing:
    """What a prompt with images becomes: ids with a placeholder token for each feature, and pixels for the vision tower.

    Args:
        processor: Of the model.
        tokenizer: Of the policy, which may have tokens that the processor's own does not.
        image_token_id: The placeholder of a feature. A chat template may write another one for the whole image (Gemma 3),
            which is the processor's ``image_token_id``.
    """

    def __init__(self, processor: Any, tokenizer: PreTrainedTokenizerBase, image_token_id: int) -> None:
        self.processor, self.tokenizer, self.image_token_id = processor, tokenizer, image_token_id
        self.written_token_id = getattr(processor, "image_token_id", None) or image_token_id
        processor.tokenizer = tokenizer

    def __call__(
        self, messages: Sequence[Message], images: Sequence[Image], chat_template_kwargs: Mapping[str, Any]
    ) -> tuple[list[int], PromptImages]:
        """The ids of a prompt as TRL's processor call makes them, and what its images become.

        Args:
            messages: With a block for each image.
            images: In RGB, in the order of the blocks.
            chat_template_kwargs: Passed to the chat template.

        Raises:
            ValueError: If the template or the processor fails, or tells images and placeholders apart.
        """
        try:
            text = self.processor.apply_chat_template(
                as_blocks(messages, images), add_generation_prompt=True, **chat_template_kwargs, tokenize=False
            )
            special = {"add_special_tokens": False} if self._begins(text) else {}
            made = self.processor(
                text=[text], images=[list(images)] if images else None, return_tensors="pt", **special
            )
            short = self.tokenizer(text, **special)["input_ids"]
        except Exception as error:  # templates and processors raise their own kinds
            raise ValueError(f"the processor cannot read the prompt: {type(error).__name__}: {error}") from error
        tensors = {name: tensor for name, tensor in made.items() if isinstance(tensor, Tensor)}
        ids = tensors.pop("input_ids")[0]
        tensors.pop("attention_mask", None)
        per_token = {name: tensors.pop(name)[0] for name in list(tensors) if name.endswith("token_type_ids")}
        is_image = ids == self.image_token_id
        written = short.count(self.written_token_id)
        if bool(is_image.any()) != bool(images) or written != len(images):
            raise ValueError(
                f"{len(images)} images became {int(is_image.sum())} placeholder tokens, of {written} in the text that the chat "
                "template wrote. Take the placeholder's text out of the prompt."
            )
        return ids.tolist(), PromptImages(tuple(images), list(short), is_image, tensors, per_token)

    def _begins(self, text: str) -> bool:
        """Whether the template has written the beginning-of-sequence token already."""
        bos = self.tokenizer.bos_token
        return bos is not None and text.startswith(str(bos))


def load_image_processing(
    name_or_path: str, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
) -> ImageProcessing:
    """The processing of a vision-language model.

    Raises:
        ValueError: If the model has no vision tower, its processor cannot be read, or Pillow is not installed.
    """
    if not hasattr(config, "vision_config"):
        raise ValueError(
            f"model.vision_tower is set, and model.model_name_or_path={name_or_path!r} is a {config.model_type}, which sees no "
            "images. Leave model.vision_tower out, or choose a vision-language model."
        )
    pillow()  # without it the processor's error would speak of something else
    try:
        processor = AutoProcessor.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:  # of any kind where torchvision is missing
        raise ValueError(
            f"The processor of model.model_name_or_path={name_or_path!r} cannot be read ({type(error).__name__}: {error!s:.300}). "
            "It needs preprocessor_config.json beside the weights and, in the Qwen-VL families and SmolVLM for one, the package "
            "torchvision, built for the installed torch."
        ) from error
    token: Any = getattr(config, "image_token_id", None)
    if not hasattr(processor, "image_processor") or token is None:
        raise ValueError(
            f"model.model_name_or_path={name_or_path!r} has a {type(processor).__name__} and no placeholder token for images "
            "(image_token_id): it is not covered. Leave model.vision_tower out to train its language part."
        )
    return ImageProcessing(processor, tokenizer, token)
