"""How the model of a run reads prompts: what its LightningModule tells the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from grpo_lightning.vision.processing import ImageProcessing


@dataclass(frozen=True)
class PromptForm:
    """What is the same for every prompt of a run."""

    tokenizer: PreTrainedTokenizerBase
    """Of the policy."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Passed to the chat template of conversational prompts."""
    replace_text: Mapping[str, str] = field(default_factory=dict)
    """Text to replace in prompts, key by value, in the order given."""
    image_processing: ImageProcessing | None = None
    """Of a policy that sees images; None of one that sees text alone."""
    text_stage: str = ""
    """See ``refuse_images``."""

    @classmethod
    def of(cls, module: Any, tokenizer: PreTrainedTokenizerBase | None, replace_text: Mapping[str, str]) -> PromptForm:
        """The form that a LightningModule asks for.

        Args:
            module: Of the Trainer; None without one.
            tokenizer: In place of the module's.
            replace_text: Of the data; that of the module comes first.

        Raises:
            ValueError: If nobody has a tokenizer.
        """
        settings, owner = getattr(module, "settings", None), getattr(module, "policy", module)
        tokenizer = tokenizer or getattr(owner, "tokenizer", None)
        if tokenizer is None:
            raise ValueError("There is no tokenizer. Use a Trainer with GRPOModule, or set datamodule.tokenizer first.")
        can_show_images = settings is None or hasattr(settings, "vision_tower")
        return cls(
            tokenizer,
            getattr(settings, "chat_template_kwargs", None) or {},
            {**(getattr(settings, "replace_text", None) or {}), **replace_text},
            getattr(owner, "image_processing", None),
            "" if can_show_images else type(module).__name__,
        )
