"""Prompts: where they come from, what they are made from, and in which order a run sees them.

    sources  ->  converters  ->  prompts           ->  drawing             ->  GRPODataModule (grpo.py)
    rows         one prompt      template, tokens      order and batches       loaders for Lightning's Trainer

``written`` reads what the data has completions for: demonstrations and preferences.
"""

from grpo_lightning.datamodules.converters import (
    DATASET_CONVERTERS,
    DatasetConverter,
    GRPODatasetConverter,
    get_dataset_converter,
    register_converter,
)
from grpo_lightning.datamodules.grpo import GRPODataModule
from grpo_lightning.datamodules.sources.dataset_info import load_data_config
from grpo_lightning.datamodules.sources.find_dataset import get_dataset

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
