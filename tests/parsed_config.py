"""Migrated settings as our own parser reads them, and TRL's fields with their defaults."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from trl import DatasetMixtureConfig, GRPOConfig, ModelConfig
from trl.scripts.grpo import GRPOScriptArguments

from grpo_lightning.commands.cli import GRPOCLI
from grpo_lightning.migration import migrate

OWNERS = (GRPOConfig, ModelConfig, GRPOScriptArguments, DatasetMixtureConfig)
FIELDS = {f.name: f for owner in OWNERS for f in dataclasses.fields(owner)}
"""Every setting of `trl grpo`, by name."""
BASE = {"model_name_or_path": "some/model", "reward_funcs": ["accuracy_reward"], "max_steps": 100}
ENDLESS = {key: value for key, value in BASE.items() if key != "max_steps"}


class Parsed(GRPOCLI):
    """Parses and stops: instantiating would read the model."""

    def instantiate_classes(self) -> None:
        pass


def parse(config: Path) -> Namespace:
    return Parsed(args=["--config", str(config)], run=False).config


def trl_default(name: str) -> Any:
    found = FIELDS[name]
    return found.default_factory() if found.default_factory is not dataclasses.MISSING else found.default


def written(settings: dict[str, Any], tmp_path: Path, **options: Any) -> Namespace:
    """What our parser makes of the migrated settings."""
    path = tmp_path / "new.yaml"
    result = migrate(settings, **options)
    result.config.pop("ckpt_path", None)  # known to `fit` only, not to a parser without a subcommand
    path.write_text(result.to_yaml("old.yaml"))
    return parse(path)
