"""Adapters on disk: saved with the identity of their base, continued on that base only, exported merged."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from grpo_lightning.distributed.checkpoint_check import CheckpointNotReadableError
from grpo_lightning.distributed.sharding import is_first_rank, is_sharded, on_first_rank, whole
from grpo_lightning.finetuning.adapters import merged_state_dict, plain_config
from grpo_lightning.finetuning.base_identity import BaseIdentity, identify_base
from grpo_lightning.finetuning.special_tokens import embedding_rows
from grpo_lightning.numerics.output_head import base_model

logger = logging.getLogger(__name__)

NAMED = ("model.adapter_name_or_path", "model.model_name_or_path")
"""The settings of an adapter and of its base."""
FREE_OPTIONS = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "lora_dropout",
    "peft_version",
    "revision",
    "task_type",
}
"""Of a peft configuration: they may change without the same weights meaning another model."""


def load_adapter(policy: PreTrainedModel, adapter: str, model_name_or_path: str) -> PeftModel:
    """The policy with the adapter on it, to be trained further.

    Raises:
        ValueError: If the adapter cannot be read, or was trained on another base.
    """
    try:
        config = PeftConfig.from_pretrained(adapter)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.adapter_name_or_path={adapter!r} holds no adapter that can be read. "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
    check_task(adapter, config, policy)
    check_base(adapter, config, model_name_or_path)
    rows = embedding_rows(policy)
    trained = getattr(config, "trainable_token_indices", None) or []
    ids = [i for part in trained.values() for i in part] if isinstance(trained, dict) else trained
    if ids and max(ids) >= rows:
        raise ValueError(
            f"model.adapter_name_or_path={adapter!r} trained the row of token {max(ids)}, but the model has {rows}. Set "
            "model.init_special_tokens and model.new_special_tokens_config as in the run that made it."
        )
    return with_adapter(policy, adapter, is_trainable=True, config=config)


def with_adapter(policy: PreTrainedModel, adapter: str, **options: Any) -> PeftModel:
    """The policy with the adapter on it, as ``PeftModel.from_pretrained`` reads it; from a directory, nothing pickled.

    Raises:
        ValueError: If its weights are pickled, not there, or not all of them.
    """
    if Path(adapter).is_dir() and not Path(adapter, SAFETENSORS_WEIGHTS_NAME).is_file():
        raise ValueError(
            f"the adapter {adapter!r} has no {SAFETENSORS_WEIGHTS_NAME}. Pickled weights (adapter_model.bin) are code, and are "
            "not read: save the adapter again with a newer peft, where it was trained."
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")  # layers would start anew without a word
            return PeftModel.from_pretrained(policy, adapter, **options)
    except (OSError, SafetensorError, UserWarning) as error:
        raise ValueError(
            f"the adapter {adapter!r}: {SAFETENSORS_WEIGHTS_NAME} cannot be read. Check that it was copied whole. "
            f"({str(error).splitlines()[0]})"
        ) from error


def check_task(adapter: str, config: PeftConfig, policy: PreTrainedModel) -> None:
    """Raises ValueError if the adapter is a language model's and the policy a reward model, or the other way round."""
    kinds = {"CAUSAL_LM": "a language model", "SEQ_CLS": "a reward model"}
    own = "SEQ_CLS" if type(policy).__name__.endswith("ForSequenceClassification") else "CAUSAL_LM"
    if config.task_type in kinds and config.task_type != own:
        raise ValueError(
            f"model.adapter_name_or_path={adapter!r} is the adapter of {kinds[config.task_type]}, and this run trains {kinds[own]}. "
            "Start from the export with the adapter added in (hf/last) as model.model_name_or_path, and leave the adapter out."
        )


def check_base(adapter: str, config: PeftConfig, model_name_or_path: str, settings: tuple[str, str] = NAMED) -> None:
    """Raises ValueError if the adapter says that it was trained on another base; warns if it says nothing.

    Args:
        adapter: Its directory.
        config: Its own.
        model_name_or_path: Of the base that it is to go on.
        settings: That name the adapter and the base, for errors.
    """
    of_adapter, of_base = settings
    stored = BaseIdentity.load(adapter)
    if stored is not None:
        difference = stored.difference(model_name_or_path, of_base)
        if difference:
            raise ValueError(
                f"{of_adapter}={adapter!r} was trained on {stored.model_name_or_path!r}, not on "
                f"{of_base}={model_name_or_path!r}: {difference}. Use that base; if the model has the "
                "adapter merged in already, leave the adapter out."
            )
    elif config.base_model_name_or_path != model_name_or_path:
        logger.warning(
            "The adapter %s does not say which weights it was trained on, only the name %r; %s is %r. Make sure that they are "
            "the same model.",
            adapter,
            config.base_model_name_or_path,
            of_base,
            model_name_or_path,
        )


def save_adapter(model: PeftModel, path: Path, model_name_or_path: str) -> None:
    """Writes the adapter in peft's format, and beside it the identity of its base; sharded, from all ranks together."""
    if is_sharded(model):
        trained = {name: whole(p.detach()) for name, p in model.named_parameters() if p.requires_grad}
        if is_first_rank():
            model.save_pretrained(path, save_embedding_layers=False, state_dict=trained)
    else:
        model.save_pretrained(path, save_embedding_layers=False)
    if not is_first_rank():
        return
    config = PeftConfig.from_pretrained(path)
    config.base_model_name_or_path = model_name_or_path
    config.save_pretrained(path)
    identify_base(model_name_or_path).save(path)


def save_merged(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Writes the model with its adapter added in as a plain model that transformers and vLLM load.

    4-bit weights are written dequantised, in their compute dtype. Sharded weights are gathered one at a time, on all
    ranks together, and collected in the ordinary memory of the first, which writes.
    """
    policy: Any = base_model(model)
    weights = {name: gathered.cpu() for name, gathered in on_first_rank(merged_state_dict(model))}
    if not weights:
        return
    config = copy.deepcopy(policy.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = type(policy)(config)
    plain.load_state_dict(weights, assign=True)
    plain.tie_weights()
    if getattr(policy, "generation_config", None) is not None:  # a reward model generates nothing
        plain.generation_config = copy.deepcopy(policy.generation_config)
    plain.config.dtype = next(iter(weights.values())).dtype
    plain._weight_conversions = _conversions_of_names(policy)
    plain.save_pretrained(path)


def _conversions_of_names(policy: Any) -> list[Any] | None:
    """How the checkpoint calls the weights, which transformers notes on a model that it has loaded; not how it quantizes them.

    A language model taken out of a checkpoint with a vision tower gets its names back by it.
    """
    noted = getattr(policy, "_weight_conversions", None)
    if noted is None:
        return None
    quantizing = "transformers.integrations"  # where the operations of quantizers are
    return [
        c for c in noted if not any(type(o).__module__.startswith(quantizing) for o in getattr(c, "operations", ()))
    ]


def adapter_record(model: PeftModel, model_name_or_path: str) -> dict[str, Any]:
    """What a checkpoint keeps beside the adapter's weights to refuse what would make another model of them."""
    base = identify_base(model_name_or_path)
    return {
        "peft_config": plain_config(model.peft_config[model.active_adapter]),
        "base": {"name": base.model_name_or_path, "weights_sha256": base.weights_sha256, "config": base.config},
    }


def check_record(record: dict[str, Any], model: PeftModel, model_name_or_path: str) -> None:
    """Raises CheckpointNotReadableError if a checkpoint's adapter belongs to another base, or would mean something else on this one."""
    stored = BaseIdentity(record["base"]["name"], record["base"]["weights_sha256"], record["base"]["config"])
    difference = stored.difference(model_name_or_path)
    if difference:
        raise CheckpointNotReadableError(
            f"The checkpoint's adapter was trained on {stored.model_name_or_path!r}, not on model.model_name_or_path="
            f"{model_name_or_path!r}: {difference}. Use that base."
        )
    now, then = plain_config(model.peft_config[model.active_adapter]), record["peft_config"]
    shared = (now.keys() & then.keys()) - FREE_OPTIONS
    changed = [f"{name} was {then[name]!r}, is {now[name]!r}" for name in sorted(shared) if now[name] != then[name]]
    if changed:
        raise CheckpointNotReadableError(
            f"The checkpoint's adapter has other settings than this config: {'; '.join(changed)}. Use the config.yaml "
            "of its run."
        )
