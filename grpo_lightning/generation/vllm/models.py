"""Which models vLLM runs as they are trained: with their own output head, their images, or their language part alone."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import packages_distributions, version
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from grpo_lightning.generation.vllm.compat import import_vllm, installed_name
from grpo_lightning.generation.vllm.patches.process import keeping_environment, keeping_threads

ALWAYS_TIED = ("cohere", "cohere2", "cohere2_moe", "gemma2", "gemma3n_text", "lfm2", "lfm2_moe", "zamba2")
"""By ``model_type`` of the language model, as vLLM 0.32 has them; 0.25 too, or it ends there with an assertion."""


def refuse_own_head(generator: str, config: PretrainedConfig, has_tower: bool = False) -> None:
    """Makes sure that vLLM computes logits with the head that is trained, before weights load.

    It would load the head and the embedding into one tensor, whichever came last, and sample from another model.

    Args:
        generator: Its name in the config.
        config: Of the model.
        has_tower: Whether it is trained whole, with its vision tower: its own setting ties the head then, else its text's.

    Raises:
        ValueError: If it does not.
    """
    text = config.get_text_config()
    trained = config if has_tower else text
    if text.model_type in ALWAYS_TIED and not trained.tie_word_embeddings:
        raise ValueError(
            f"model.generator={generator}: the model has an output head of its own (tie_word_embeddings: false in its "
            f"config.json), and vLLM computes logits of {text.model_type} with the embedding. Use a checkpoint whose head is tied (published "
            "ones are), or set model.generator=TransformersGenerator."
        )


def refuse_unshown(generator: str, config: PretrainedConfig, older: str | None) -> None:
    """Makes sure that vLLM can show images to a model, before weights load.

    Args:
        generator: Its name in the config.
        config: Of the model.
        older: Why the installed vLLM cannot at all; None if it can.

    Raises:
        ValueError: If it cannot.
    """
    reason = older or why_unshown(architecture_of(config))
    if reason is not None:
        raise ValueError(
            f"model.vision_tower is set, and model.generator={generator} cannot show images: {reason}. Or set "
            "model.generator=TransformersGenerator."
        )


def refuse_missing_part(config: PretrainedConfig) -> None:
    """Makes sure that vLLM has the class that the language part of a model is trained as, before weights load.

    A vLLM that has the whole model alone would take the part's configuration for the whole's.

    Args:
        config: Of the model; one without a tower passes.

    Raises:
        ValueError: If it has not.
    """
    part = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if part is None or config.get_text_config() is config:
        return
    whole = str(part).replace("ForCausalLM", "ForConditionalGeneration")
    with _registry() as registry:
        known = set(registry.models)
    if part not in known and whole in known:
        raise ValueError(
            f"model.generator=VLLMColocate: {installed_name()} has {whole} alone, and {part} is trained. Install vLLM 0.32 or "
            "newer, or set model.generator=TransformersGenerator."
        )


def architecture_of(config: PretrainedConfig) -> str:
    """The class that the policy is loaded as, which an engine is told of.

    Example:
        >>> from transformers import LlavaConfig
        >>> architecture_of(LlavaConfig())
        'LlavaForConditionalGeneration'
    """
    known = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type, config.model_type)
    return (config.architectures or [known])[0]


def why_unshown(architecture: str) -> str | None:
    """Why the installed vLLM cannot load this class as one that sees images, with a way out, or None if it can."""
    with _registry() as registry:
        from vllm.model_executor.models.interfaces import supports_multimodal

        own = installed_name()
        if architecture not in registry.models:
            return f"{own} has no {architecture}. Choose another model"
        try:
            is_shown = supports_multimodal(registry.models[architecture].load_model_cls())
        except ImportError as error:
            return why_not_imported(f"{own}'s {architecture}", error)
        return None if is_shown else f"{own}'s {architecture} sees text alone. Choose another model"


@contextmanager
def _registry() -> Iterator[Any]:
    """Classes of vLLM by name, whose imports change nothing else of this process."""
    with keeping_environment(), keeping_threads():
        import_vllm()
        from vllm import ModelRegistry

        yield ModelRegistry


def why_not_imported(name: str, error: ImportError) -> str:
    """What an import that failed says, with a way out: a package is missing, or one is there and does not fit.

    Args:
        name: Of the class whose module could not be imported.
        error: Of the import.
    """
    package = (error.name or "").partition(".")[0]
    if not package:  # such as transformers' own, which says what is missing
        return f"{name} cannot be imported ({' '.join(str(error).split()):.200}). Install what it needs"
    if importlib.util.find_spec(package) is None:
        fitting = ", in the build that fits the installed torch" if package == "torchvision" else ""
        return f"{name} needs the package {package}, which is missing. Install it{fitting}"
    brought_by = packages_distributions().get(package, [])[:1]  # PIL is of pillow; a module of Python's own is of none
    own = f"{brought_by[0]} {version(brought_by[0])}" if brought_by else package
    return (
        f"{name} does not fit the installed {own} ({error!s:.120}). Install a newer vLLM, or an older "
        f"{own.partition(' ')[0]}, or choose another model"
    )
