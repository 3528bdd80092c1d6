"""Prompts: where they come from, what they are made from, and in which order a run sees them."""

from grpo_lightning.datamodules.converters import (
    DATASET_CONVERTERS,
    DatasetConverter,
    GRPODatasetConverter,
    get_dataset_converter,
    register_converter,
)
from grpo_lightning.datamodules.data_config import load_data_config
from grpo_lightning.datamodules.find_dataset import get_dataset
from grpo_lightning.datamodules.grpo import GRPODataModule

__all__ = [
    "DATASET_CONVERTERS",
    "DatasetConverter",
    "GRPODataModule",
    "GRPODatasetConverter",
    "get_dataset",
    "get_dataset_converter",
    "load_data_config",
    "register_converter",
]
