"""A checkpoint, a run directory or a Hugging Face directory -> policy and tokenizer."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_lightning.distributed.checkpoint_io import newest
from grpo_lightning.finetuning.adapter_files import check_base
from grpo_lightning.finetuning.special_tokens import embedding_rows
from grpo_lightning.modules.policy import PolicyModule
from grpo_lightning.policy.loading import load_causal_lm, load_tokenizer
from grpo_lightning.report.metrics import launch_directories


def find_checkpoint(path: Path) -> Path:
    """The checkpoint file that ``path`` means: itself, or the newest of a run directory.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is a sharded checkpoint, which is a directory.
    """
    if path.is_file():
        return path
    if (path / ".metadata").exists():
        raise ValueError(
            f"{path} is a sharded checkpoint. Make one file of it with "
            f"`python -m lightning.pytorch.utilities.consolidate_checkpoint {path}`, and give that."
        )
    last = path / "checkpoints" / "last.ckpt"
    found = last if last.is_file() else newest(path.glob("checkpoints/*.ckpt"))
    if found is None:
        raise FileNotFoundError(f"{path}: no such checkpoint, and no checkpoints/*.ckpt below it.")
    return found


def find_config(checkpoint: Path) -> Path:
    """config.yaml of the run that a checkpoint lies in: that of its last launch.

    Raises:
        FileNotFoundError: If the checkpoint does not lie in a run directory.
    """
    for parent in checkpoint.resolve().parents[:3]:
        configs = [launch / "config.yaml" for launch in launch_directories(parent / "logs")]
        found = [config for config in configs if config.exists()]
        if found:
            return found[-1]
    raise FileNotFoundError(
        f"{checkpoint}: no logs/version_*/config.yaml near it. Name the run's config with --config."
    )


def read_config(path: Path) -> dict[str, Any]:
    """A config as nested dictionaries."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def load_checkpoint(checkpoint: Path, config: dict[str, Any], accelerator: str = "cpu") -> PolicyModule:
    """The policy of a checkpoint on the base of its config; neither rewards nor data nor engine are touched.

    Nothing that the config names by ``class_path`` is imported, unless it is a part of this package or of peft.

    Raises:
        ValueError: If the checkpoint does not fit the config.
    """
    names = inspect.signature(PolicyModule).parameters
    _refuse_foreign_classes(config.get("model", {}), names)
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PolicyModule, "model")
    settings = {name: value for name, value in config.get("model", {}).items() if name in names}
    module: PolicyModule = parser.instantiate_classes(parser.parse_object({"model": settings})).model
    precision: Any = config.get("trainer", {}).get("precision") or "32-true"
    module.trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module.configure_model()
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module.on_load_checkpoint(saved)
    module.load_state_dict(saved["state_dict"], strict=False)
    return module


def _refuse_foreign_classes(settings: Any, names: Any) -> None:
    """A run's directory may come from somebody else, and importing a class runs its module."""
    waiting = [value for name, value in settings.items() if name in names]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            path = value.get("class_path")
            if isinstance(path, str) and "." in path and not path.startswith(("grpo_lightning.", "peft.")):
                raise ValueError(
                    f"the run's config names the class {path} for its model, and only fit imports what a config names. "
                    "Write the model with fit's own export, or remove the setting."
                )
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def load_for_chat(source: Path, config: Path | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Policy, tokenizer and, where there is one, the run's config."""
    if (source / "config.json").exists():
        return load_causal_lm(str(source), torch.float32), load_tokenizer(str(source)), {}
    if (source / "adapter_config.json").exists():
        adapter = PeftConfig.from_pretrained(str(source))
        base, tokenizer = str(adapter.base_model_name_or_path), load_tokenizer(str(source))
        check_base(str(source), adapter, base)
        policy: Any = load_causal_lm(base, torch.float32)
        if len(tokenizer) > embedding_rows(policy):  # of new tokens, whose rows the adapter holds
            policy.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        return PeftModel.from_pretrained(policy, str(source)), tokenizer, {}
    checkpoint = find_checkpoint(source)
    run_config = read_config(config or find_config(checkpoint))
    module = load_checkpoint(checkpoint, run_config)
    assert module.policy is not None
    return module.policy, module.tokenizer, run_config
