"""A checkpoint, a run directory or a Hugging Face directory -> policy and tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LightningArgumentParser
from peft import PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_lightning.callbacks.earlier_run import saved_checkpoints
from grpo_lightning.commands.settings.foreign import peft_config
from grpo_lightning.commands.settings.yaml_file import read_sections
from grpo_lightning.distributed.checkpoint_check import read_checkpoint
from grpo_lightning.distributed.checkpoint_io import newest
from grpo_lightning.finetuning.adapter_directory import ADAPTER_CONFIG_NAME
from grpo_lightning.finetuning.adapter_files import check_base, with_adapter
from grpo_lightning.finetuning.special_tokens import embedding_rows
from grpo_lightning.modules.policy_module import PRECISION, SETTINGS_KEY
from grpo_lightning.policy.dtypes import known_precision
from grpo_lightning.policy.loading import load_causal_lm, load_tokenizer
from grpo_lightning.policy.model_config import load_config
from grpo_lightning.policy.policy import Placement, Policy
from grpo_lightning.policy.reward_policy import RewardPolicy
from grpo_lightning.policy.settings import PolicySettings
from grpo_lightning.policy.text_class import class_for_text
from grpo_lightning.report.metrics import launch_directories, that_trained
from grpo_lightning.settings.flat import own_fields
from grpo_lightning.vision.settings import VisionSettings

BASE = f"base_model_name_or_path of {ADAPTER_CONFIG_NAME}"
"""What errors call the model that an adapter says it was trained on."""
PREFIX = "policy"
"""Of the policy's names in a checkpoint."""


def find_checkpoint(path: Path) -> Path:
    """The checkpoint file that ``path`` means: itself, or the newest of a run directory, whatever its name.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is a sharded checkpoint, which is a directory.
    """
    is_one = path.is_file() or (path / ".metadata").exists()
    of_lightning = path.glob("*/version_*/checkpoints")  # where its own ModelCheckpoint writes
    last, others = ([path], []) if is_one else saved_checkpoints(path, [path / "checkpoints", *of_lightning])
    found = newest([*last, *others])  # of two that are equally old, last.ckpt
    if found is None:
        raise FileNotFoundError(f"{path}: no such checkpoint, and no checkpoints/*.ckpt below it.")
    if found.is_dir():
        raise ValueError(
            f"{found} is a sharded checkpoint. Make one file of it with "
            f"`python -m lightning.pytorch.utilities.consolidate_checkpoint {found}`, and give that. Of your own runs alone: "
            "that program runs code which a checkpoint names."
        )
    return found


def find_config(checkpoint: Path) -> Path:
    """config.yaml of the run that a checkpoint lies in: that of its last launch that logged a step, else of its last.

    Raises:
        FileNotFoundError: If the checkpoint does not lie in a run directory.
    """
    for parent in checkpoint.resolve().parents[:3]:
        launches = that_trained(launch_directories(parent / "logs", "config.yaml"))
        if launches:
            return launches[-1] / "config.yaml"
    raise FileNotFoundError(
        f"{checkpoint}: no logs/version_*/config.yaml near it. Name the run's config with --config."
    )


def config_of(checkpoint: Path, named: Path | None = None) -> dict[str, Any]:
    """The config of the run, of its folder or as it is named; of a run from Python, the settings that its checkpoint holds.

    Those leave out objects, such as a ``peft_config``: without it an adapter would be read as another one, so it is not read.

    Raises:
        FileNotFoundError: If there is none.
    """
    if named is not None:
        return read_sections(named)
    try:
        return read_sections(find_config(checkpoint))
    except FileNotFoundError:
        saved = read_checkpoint(checkpoint, weights_only=True, mmap=True)
        settings = saved.get(SETTINGS_KEY, {})
        if "model_name_or_path" not in settings or settings.get("finetuning_type", "full") != "full":
            raise
        return {"model": settings, "trainer": {"precision": saved.get(PRECISION)}}


@dataclass(frozen=True)
class SavedPolicy:
    """A policy with the weights of a checkpoint, as ``callbacks.export`` takes modules."""

    policy: Policy


def load_checkpoint(checkpoint: Path, config: dict[str, Any], accelerator: str = "cpu") -> SavedPolicy:
    """The policy of a checkpoint on the base of its config; neither rewards nor data nor engine are touched.

    Nothing that the config names is imported; its ``peft_config`` is made of peft's own classes.

    Raises:
        ValueError: If the checkpoint does not fit the config.
    """
    names = {field.name for field in own_fields(PolicySettings)} - {"peft_config"}  # all others are plain
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PolicySettings, "model")
    given = config.get("model", {})
    settings = {name: value for name, value in given.items() if name in names}
    plain: PolicySettings = parser.instantiate_classes(parser.parse_object({"model": settings})).model
    found = replace(plain, peft_config=peft_config(given.get("peft_config")))
    saved = read_checkpoint(checkpoint, weights_only=True)
    tower = VisionSettings(vision_tower=given.get("vision_tower")).vision_tower
    policy = _kind_of(saved)(found, given.get("seed") or 0, tower)
    precision = known_precision(config.get("trainer", {}).get("precision") or "32-true")
    device = torch.device("cuda" if accelerator == "gpu" else accelerator)
    policy.load(Placement(device, precision)).to(device)
    policy.check_checkpoint(saved, PREFIX)
    weights = {name.removeprefix(f"{PREFIX}."): tensor for name, tensor in saved["state_dict"].items()}
    policy.load_state_dict(weights, strict=False)
    return SavedPolicy(policy)


def _kind_of(checkpoint: dict[str, Any]) -> type[Policy]:
    """A reward model's checkpoint has a head named score."""
    names = checkpoint.get("trained_names") or checkpoint["state_dict"]
    return RewardPolicy if any(".score." in name for name in names) else Policy


def _load_for_text(name_or_path: str, setting: str) -> PreTrainedModel:
    kind = class_for_text(load_config(name_or_path, setting))
    return load_causal_lm(name_or_path, torch.float32, kind=kind, setting=setting)


def load_for_chat(
    source: Path, config: Path | None, setting: str = "source"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Policy, tokenizer and the run's config, which is empty for a Hugging Face directory unless ``config`` names it.

    Args:
        source: A .ckpt file, a run or a Hugging Face directory.
        config: Of the run, where it is not found beside a checkpoint.
        setting: What the command line calls ``source``, for errors.

    Raises:
        ValueError, OSError: If something cannot be read, or an adapter was trained on another base.
    """
    given = read_sections(config) if config else {}
    if (source / "config.json").exists():
        return _load_for_text(str(source), setting), load_tokenizer(str(source), setting), given
    if (source / "adapter_config.json").exists():
        adapter = PeftConfig.from_pretrained(str(source))
        base, tokenizer = str(adapter.base_model_name_or_path), load_tokenizer(str(source), setting)
        load_config(base, BASE)  # says it where there is no base
        check_base(str(source), adapter, base, (setting, BASE))
        policy: Any = _load_for_text(base, BASE)
        if len(tokenizer) > embedding_rows(policy):  # of new tokens, whose rows the adapter holds
            policy.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        return with_adapter(policy, str(source)), tokenizer, given
    checkpoint = find_checkpoint(source)
    run_config = given or config_of(checkpoint)
    saved = load_checkpoint(checkpoint, run_config)
    if isinstance(saved.policy, RewardPolicy):
        raise ValueError(
            f"{setting}={str(source)!r} is a reward model, which scores texts and writes none. Use the language model that it was "
            "made of; as a reward its hf/last is model.rewards: [{class_path: reward_model, init_args: {model: ...}}]."
        )
    return saved.policy.model, saved.policy.tokenizer, run_config
