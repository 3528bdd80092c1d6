"""Converters: from one row of a dataset, in whatever form, to a prompt and the columns that rewards read."""

from grpo_lightning.datamodules.converters.base import DatasetConverter
from grpo_lightning.datamodules.converters.dpo import DPODatasetConverter
from grpo_lightning.datamodules.converters.grpo import GRPODatasetConverter
from grpo_lightning.datamodules.converters.gsm8k import GSM8KDatasetConverter
from grpo_lightning.datamodules.converters.kto import KTODatasetConverter
from grpo_lightning.datamodules.converters.registry import (
    DATASET_CONVERTERS,
    Converter,
    get_dataset_converter,
    register_converter,
)
from grpo_lightning.datamodules.converters.sft import SFTDatasetConverter
from grpo_lightning.datamodules.converters.squad import SquadDatasetConverter
from grpo_lightning.datamodules.converters.text import TextDatasetConverter

__all__ = [
    "DATASET_CONVERTERS",
    "Converter",
    "DPODatasetConverter",
    "DatasetConverter",
    "GRPODatasetConverter",
    "GSM8KDatasetConverter",
    "KTODatasetConverter",
    "SFTDatasetConverter",
    "SquadDatasetConverter",
    "TextDatasetConverter",
    "get_dataset_converter",
    "register_converter",
]
