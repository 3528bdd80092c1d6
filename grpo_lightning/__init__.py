"""GRPO on PyTorch Lightning: language models post-trained with verifiable or model-based rewards."""

from grpo_lightning.datamodules import (
    DATASET_CONVERTERS,
    GRPODataModule,
    GRPODatasetConverter,
    get_dataset,
    get_dataset_converter,
    load_data_config,
)
from grpo_lightning.modules import GRPOModule, SFTModule
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
    "GRPODataModule",
    "GRPODatasetConverter",
    "GRPOModule",
    "SFTModule",
    "get_dataset",
    "get_dataset_converter",
    "get_reward_function",
    "get_reward_functions",
    "list_reward_functions",
    "load_data_config",
    "register_reward",
]
