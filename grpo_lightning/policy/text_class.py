"""Which of transformers' classes a model is loaded with for prompts of text alone."""

from __future__ import annotations

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)


def class_for_text(config: PretrainedConfig) -> type[AutoModelForCausalLM] | type[AutoModelForImageTextToText]:
    """What to load a model with for prompts of text: its language part where transformers loads that alone, else the whole.

    Raises:
        ValueError: If it is no language model.
    """
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForCausalLM
    if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return AutoModelForImageTextToText
    raise ValueError(
        f"{config.name_or_path!r} is a {config.model_type}, of which transformers has no causal language model. Choose another "
        "model."
    )


def check_trained_on_text(config: PretrainedConfig) -> None:
    """Refuses a model whose language part cannot be loaded alone, before weights load.

    Raises:
        ValueError: With a way out.
    """
    try:
        has_own_class = class_for_text(config) is AutoModelForCausalLM
    except ValueError as error:
        raise ValueError(f"model.model_name_or_path={error}") from error
    if not has_own_class:
        raise ValueError(
            f"model.model_name_or_path={config.name_or_path!r} is a {config.model_type}, whose language part transformers does "
            "not load alone. Set model.vision_tower=frozen, with which `fit` trains it on prompts of text and of images; other "
            "stages need another model."
        )
