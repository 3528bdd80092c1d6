"""GRPO on PyTorch Lightning: language models post-trained with verifiable or model-based rewards.

A name is imported when it is first used (PEP 562): torch, Lightning and transformers take seconds to import, and the
processes of rewards, ``--help`` and the report need none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import grpo_lightning.finetuning.bitsandbytes_messages  # noqa: F401 - before anything that imports peft
from grpo_lightning.version import __version__

if TYPE_CHECKING:
    from grpo_lightning.datamodules import (
        DATASET_CONVERTERS,
        GRPODataModule,
        GRPODatasetConverter,
        get_dataset,
        get_dataset_converter,
        load_data_config,
    )
    from grpo_lightning.modules import DPOModule, GRPOModule, RewardModelModule, SFTModule
    from grpo_lightning.rewards import (
        REWARD_FUNCTIONS,
        BaseRewardFunction,
        get_reward_function,
        get_reward_functions,
        list_reward_functions,
        register_reward,
    )

__all__ = [
    "DATASET_CONVERTERS",
    "REWARD_FUNCTIONS",
    "BaseRewardFunction",
    "DPOModule",
    "GRPODataModule",
    "GRPODatasetConverter",
    "GRPOModule",
    "RewardModelModule",
    "SFTModule",
    "__version__",
    "get_dataset",
    "get_dataset_converter",
    "get_reward_function",
    "get_reward_functions",
    "list_reward_functions",
    "load_data_config",
    "register_reward",
]

_SUBPACKAGES = ("rewards", "datamodules", "modules")
"""Where the names are; ``rewards`` comes first, because it is the one that does without torch."""

if not TYPE_CHECKING:  # a type checker would take any name for one of the package

    def __getattr__(name: str) -> Any:
        if name in _SUBPACKAGES:
            return import_module(f"{__name__}.{name}")
        for subpackage in _SUBPACKAGES if name in __all__ else ():
            exported = import_module(f"{__name__}.{subpackage}")
            if name in exported.__all__:
                return getattr(exported, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
