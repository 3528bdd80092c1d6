"""Model directories and hub names -> the model's configuration; without its code, which takes seconds to import."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from grpo_lightning.finetuning.adapter_directory import refuse_adapter_directory

MODEL = "model.model_name_or_path"
"""The setting that names the policy."""


def where_to_look(name: str) -> str:
    """What may be wrong with a directory or hub name that could not be read."""
    export = f"`python -m grpo_lightning export {shlex.quote(name)} DIR` writes the policy"
    if os.path.isfile(name):
        of_one = f" {export} of a checkpoint as one." if name.endswith(".ckpt") else ""
        return f"It is a file, and a model is a directory or a hub name.{of_one}"
    if os.path.isdir(name) and not Path(name, "config.json").exists():
        exported = sorted(Path(name).glob("hf/*/config.json"), key=lambda path: path.parent.name == "last")
        if exported:
            return f"It is the folder of a run, whose trained model is in {exported[-1].parent}."
        if Path(name, "checkpoints").is_dir():
            return f"It is the folder of a run. {export} that it trained."
    if os.path.isdir(name):
        return "The directory exists: check that its files are complete."
    offline = " HF_HUB_OFFLINE is set, so the hub is not asked." if os.environ.get("HF_HUB_OFFLINE") else ""
    return f"No such directory, and not found as a hub name.{offline}"


def load_config(model_name_or_path: str, setting: str = MODEL) -> PretrainedConfig:
    """The model's configuration; a cheap check that the model can be read.

    Args:
        model_name_or_path: Directory or hub name.
        setting: That names it, for errors.

    Raises:
        ValueError: If there is no readable config.json, or the directory holds an adapter instead of a model.
    """
    refuse_adapter_directory(model_name_or_path, setting)
    try:
        return AutoConfig.from_pretrained(model_name_or_path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        cause = _unknown_model(model_name_or_path) or (
            f"cannot be read. {where_to_look(model_name_or_path)} ({type(error).__name__}: {str(error).splitlines()[0]})"
        )
        raise ValueError(f"{setting}={model_name_or_path!r} {cause}") from error


def _unknown_model(model_name_or_path: str) -> str | None:
    """What a config.json that can be read says of a model that transformers has no class for."""
    try:
        found, _ = PretrainedConfig.get_config_dict(model_name_or_path)
    except (OSError, ValueError):
        return None
    model_type = found.get("model_type")
    if not model_type or model_type in CONFIG_MAPPING:
        return None
    way_out = "Install a newer transformers, or use another model."
    if "auto_map" in found:
        way_out = (
            "It brings code of its own, which is never run. Use a model that transformers has a class for, or a newer transformers "
            "if it has one."
        )
    return f"is a {model_type}, which transformers {transformers.__version__} does not know. {way_out}"
