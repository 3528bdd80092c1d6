"""Model directories and hub names -> tokenizer and policy, with errors in the words of the config."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from grpo_lightning.policy.model_config import MODEL, load_config, where_to_look


def load_tokenizer(name_or_path: str, setting: str = "model.tokenizer_name_or_path") -> PreTrainedTokenizerBase:
    """The tokenizer, padding on the left; a missing pad token is replaced by the end-of-sequence token.

    Args:
        name_or_path: Directory or hub name.
        setting: That names it, for errors.

    Raises:
        ValueError: If it cannot be read, or has no end-of-sequence token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, padding_side="left", trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{setting}={name_or_path!r} cannot be read. {where_to_look(name_or_path)} "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
    # AutoTokenizer makes one of a directory without a tokenizer's files.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ValueError(
            f"{setting}={name_or_path!r} has a tokenizer without tokens of texts. {where_to_look(name_or_path)} It needs "
            "tokenizer.json, or the files that its kind of tokenizer is made of."
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"The tokenizer of {name_or_path!r} has no eos_token: completions could never end. "
            "Set one in tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def exact_attention(config: PretrainedConfig, attn_implementation: str | None) -> str | None:
    """The attention to load a model with: ``eager`` where its scores have a soft cap (Gemma 2), which sdpa leaves out.

    Raises:
        ValueError: If sdpa is asked for there.
    """
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is None:
        return attn_implementation
    if attn_implementation == "sdpa":
        raise ValueError(
            f"model.attn_implementation=sdpa leaves out the soft cap on the attention scores of {config.model_type}, which "
            "makes another model of it. Leave the setting out, or use eager."
        )
    return attn_implementation or "eager"


def check_generation_config(model_name_or_path: str, setting: str = MODEL) -> None:
    """Refuses one that is there and cannot be read: transformers would go on without its end-of-sequence ids.

    Raises:
        ValueError: If the file was cut off, or is something else.
    """
    path = Path(model_name_or_path, "generation_config.json")
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        content = error
    if not isinstance(content, dict):
        raise ValueError(
            f"{setting}={model_name_or_path!r}: generation_config.json cannot be read, which says where "
            f"completions end. {where_to_look(model_name_or_path)} ({content})"
        )


def causal_lm_without_weights(
    model_name_or_path: str,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
    kind: Any = AutoModelForCausalLM,
) -> PreTrainedModel:
    """The model of ``load_causal_lm`` on the meta device: for a rank that is sent its part of the weights."""
    check_generation_config(model_name_or_path)
    config = load_config(model_name_or_path)
    refuse_classifier(model_name_or_path, config)
    model = without_weights(kind, config, attn_implementation, dtype)
    with suppress(OSError):  # a directory without one: the model has made it from its config
        model.generation_config = GenerationConfig.from_pretrained(model_name_or_path)
    return model.eval()


def without_weights(
    kind: Any, config: PretrainedConfig, attn_implementation: str | None, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """The layers of a model on the meta device.

    Args:
        kind: One of transformers' classes for a task, such as ``AutoModelForCausalLM``.
        config: Of the model.
        attn_implementation: As in the settings.
        dtype: Of its weights.

    Raises:
        ValueError: If the model does not have this attention, or what it needs is not installed.
    """
    attention = exact_attention(config, attn_implementation)
    try:
        with torch.device("meta"):
            return kind.from_config(config, dtype=dtype, attn_implementation=attention)
    except (ValueError, ImportError) as error:
        if attn_implementation is None:
            raise
        known = ", ".join(["eager", *(name for name in ALL_ATTENTION_FUNCTIONS.valid_keys() if "|" not in name)])
        raise ValueError(
            f"model.attn_implementation={attn_implementation} cannot be used with {config.model_type}: "
            f"{why_no_attention(attn_implementation, error)} Leave the setting out, or use one of {known}."
        ) from error


def refuse_drawn(model_name_or_path: str, drawn: Collection[str], setting: str = MODEL) -> None:
    """Refuses a model in which transformers has drawn weights at random, because its directory lacks them.

    Args:
        model_name_or_path: Where it is from.
        drawn: Names of such weights.
        setting: That names it.

    Raises:
        ValueError: If there are any.
    """
    if drawn:
        raise ValueError(
            f"{setting}={model_name_or_path!r} has no weights for {min(drawn)}, one of {len(drawn)}, which would be "
            "drawn at random. Use a directory with all of them."
        )


def refuse_classifier(model_name_or_path: str, config: PretrainedConfig, setting: str = MODEL) -> None:
    """Refuses a reward model in place of a language model: its output head is another one.

    Raises:
        ValueError: With a way out.
    """
    for kind in config.architectures or ():
        if kind.endswith("ForSequenceClassification"):
            raise ValueError(
                f"{setting}={model_name_or_path!r} is a {kind}, which scores texts and writes none. Use the language "
                "model that it was made of; as a reward it is model.rewards: [{class_path: reward_model, init_args: {model: ...}}]."
            )


def why_no_attention(name: str, error: Exception) -> str:
    """The first sentence of transformers' reason; of an unknown name it is a list in Python's words, which says less."""
    if "/" not in name and name not in ("eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()):
        near = get_close_matches(name, ALL_ATTENTION_FUNCTIONS.valid_keys(), 1)
        return f"transformers has none of this name.{f' Did you mean {near[0]}?' if near else ''}"
    return str(error).splitlines()[0].rstrip(".") + "."


def load_causal_lm(
    model_name_or_path: str,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
    kind: Any = AutoModelForCausalLM,
    setting: str = MODEL,
    **model_kwargs: Any,
) -> PreTrainedModel:
    """The causal language model, safetensors only, no code from the model directory is run.

    Args:
        model_name_or_path: Directory or hub name.
        dtype: Of the weights.
        attn_implementation: See PolicySettings.
        kind: The auto class; another one loads the whole of which the language model is a part.
        setting: That names the model, for errors.
        **model_kwargs: Of ``from_pretrained``.

    Raises:
        ValueError: If the weights cannot be read, or some are not there.
    """
    config = load_config(model_name_or_path, setting)
    refuse_classifier(model_name_or_path, config, setting)
    check_generation_config(model_name_or_path, setting)
    try:
        model, found = kind.from_pretrained(
            model_name_or_path,
            dtype=dtype,
            attn_implementation=exact_attention(config, attn_implementation),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **model_kwargs,
        )
    except ImportError as error:
        if attn_implementation is None:  # the model's own code wants a package
            raise
        raise ValueError(
            f"model.attn_implementation={attn_implementation}: {str(error).splitlines()[0]} Leave the setting out."
        ) from error
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{setting}={model_name_or_path!r}: the weights cannot be read. "
            f"{where_to_look(model_name_or_path)} ({str(error).splitlines()[0]})"
        ) from error
    refuse_drawn(model_name_or_path, found["missing_keys"], setting)
    return model
