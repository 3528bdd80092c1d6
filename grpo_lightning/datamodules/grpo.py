"""GRPODataModule: which prompts a run trains and is evaluated on, and in which order."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from transformers import PreTrainedTokenizerBase

from grpo_lightning.datamodules.converters import Converter, DatasetConverter, get_dataset_converter
from grpo_lightning.datamodules.data_config import load_data_config
from grpo_lightning.datamodules.loader import EvaluationLoader, TrainingLoader, check_fills_a_step
from grpo_lightning.datamodules.prompts import PromptDataset
from grpo_lightning.datamodules.sources import DataSource, find_dataset
from grpo_lightning.datamodules.specs import UNNAMED, DatasetSpec, EvalSpec, by_name, is_rows

EvaluationLoaders = EvaluationLoader | dict[str, EvaluationLoader]
DEFAULT_CONVERTER = "grpo"


class GRPODataModule(L.LightningDataModule):
    """Prompts from a hub dataset, local files or a key of dataset_info.json, converted and tokenised before training.

    Args:
        dataset: What to train on: a key of dataset_info.json, a local JSON, JSONL, Parquet or CSV file or a directory,
            ``owner/name`` on the hub, or a mapping like an entry of dataset_info.json (hf_hub_url or file_name, subset,
            split, num_samples, converter, converter_args).
        eval_dataset: What to validate on, in the same forms; or several, as a list or as a mapping of name to dataset.
        test_dataset: What ``test`` and ``predict`` use; eval_dataset where not set.
        split: Split of dataset; by default that of its entry, else train.
        eval_split: Split of eval_dataset and test_dataset, likewise.
        converter: Name or import path of the converter of every dataset, or class_path and init_args. By default what
            dataset_info.json says, else grpo.
        converter_args: Arguments of the converter; they win over those in dataset_info.json.
        dataset_info: Path of dataset_info.json; by default that file in the working directory or its data/ directory.
        batch_size: Prompts per device and step. Each gets model.num_generations completions.
        eval_batch_size: Prompts per device at a time in evaluation; by default batch_size.
        shuffle: Draw a new order of the training prompts for each epoch.
        seed: Of that order.
        max_prompt_length: Tokens, chat template included; by default there is no limit.
        overlong_prompts: What happens to longer prompts: drop leaves them out and counts them, refuse is an error.
        replace_text: Text to replace in every prompt, old by new; model.replace_text does the same and comes first.
        load_from_cache_file: False reads or downloads datasets again instead of using the copy in the cache.
    """

    def __init__(
        self,
        dataset: DatasetSpec | None = None,
        eval_dataset: EvalSpec | None = None,
        test_dataset: EvalSpec | None = None,
        split: str | None = None,
        eval_split: str | None = None,
        converter: str | DatasetConverter | None = None,
        converter_args: dict[str, Any] | None = None,
        dataset_info: str | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        max_prompt_length: int | None = None,
        overlong_prompts: Literal["drop", "refuse"] = "drop",
        replace_text: dict[str, str] | None = None,
        load_from_cache_file: bool = True,
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.eval_dataset = eval_dataset
        self.test_dataset = test_dataset
        self.split = split
        self.eval_split = eval_split
        self.converter = converter
        self.converter_args = converter_args or {}
        self.dataset_info = dataset_info
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.max_prompt_length = max_prompt_length
        self.overlong_prompts = overlong_prompts
        self.replace_text = replace_text or {}
        self.load_from_cache_file = load_from_cache_file
        self.tokenizer: PreTrainedTokenizerBase | None = None
        """By default that of the LightningModule; set it to use the data module on its own."""
        self.train_prompts: PromptDataset | None = None
        self.eval_prompts: dict[str, PromptDataset] = {}
        """By name, in the order of the dataloaders; a single one has the name UNNAMED."""
        self.test_prompts: dict[str, PromptDataset] = {}
        self._has_warned_of_text = False
        self._check_settings()

    def _check_settings(self) -> None:
        for name in ("batch_size", "eval_batch_size", "max_prompt_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.{name}={value} is not possible. Use 1 or more.")
        if self.overlong_prompts not in ("drop", "refuse"):
            raise ValueError(f"data.overlong_prompts={self.overlong_prompts!r} is neither 'drop' nor 'refuse'.")
        if not isinstance(self.converter, str | None) and self.converter_args:
            raise ValueError("data.converter_args has no effect on a converter with init_args. Put them there.")
        if isinstance(self.converter, str):
            get_dataset_converter(self.converter, **self.converter_args)

    # -- reading ------------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Downloads and parses into the cache, once per node, so that ``setup`` on every rank only opens files."""
        for specs, split in self._specs().values():
            for spec in specs.values():
                if not is_rows(spec):
                    self._source(spec, split).load(self.load_from_cache_file)

    def setup(self, stage: str) -> None:
        """Converts and tokenises what the stage needs; mistakes in the data show here, before weights load."""
        specs = self._specs()
        if stage == "fit" and self.train_prompts is None:
            if "train" not in specs:
                raise ValueError("data.dataset is not set. Name the dataset to train on.")
            self.train_prompts = self._read(*specs["train"])[UNNAMED]
            check_fills_a_step(self.train_prompts, self.batch_size, self._ranks()[1])
        if stage == "fit" and "eval" not in specs:
            # Lightning asks whether the hook is overridden; an overridden one that returns nothing makes it warn.
            self.val_dataloader = super().val_dataloader  # type: ignore[method-assign]
        if stage in ("fit", "validate") and not self.eval_prompts and "eval" in specs:
            self.eval_prompts = self._read(*specs["eval"])
        if stage in ("test", "predict") and not self.test_prompts and "test" in specs:
            self.test_prompts = self._read(*specs["test"])
        if (stage == "validate" and not self.eval_prompts) or (stage in ("test", "predict") and not self.test_prompts):
            raise ValueError(f"data.eval_dataset is not set. Name the dataset to {stage} on.")

    def _specs(self) -> dict[str, tuple[dict[str, DatasetSpec], str | None]]:
        """What to read: role -> (datasets by name, split)."""
        test_dataset = self.eval_dataset if self.test_dataset is None else self.test_dataset
        roles = {
            "train": (None if self.dataset is None else {UNNAMED: self.dataset}, self.split),
            "eval": (by_name(self.eval_dataset), self.eval_split),
            "test": (by_name(test_dataset), self.eval_split),
        }
        return {role: (specs, split) for role, (specs, split) in roles.items() if specs}

    def _read(self, specs: Mapping[str, DatasetSpec], split: str | None) -> dict[str, PromptDataset]:
        return {name: self._prompts(spec, split) for name, spec in specs.items()}

    def _prompts(self, spec: DatasetSpec, split: str | None) -> PromptDataset:
        rows: Any
        if is_rows(spec):
            source, rows, name = None, spec, "The dataset given from Python"
            if not hasattr(rows, "__len__"):
                raise ValueError(
                    f"{name} is a stream ({type(rows).__name__}). Shuffling, length limits and exact resume need all rows: "
                    "use a datasets.Dataset or a list; a split such as train[:10000], or num_samples, takes a part."
                )
        else:
            source = self._source(spec, split)
            name = str(source)
            # prepare_data has read anew already where a Trainer runs this.
            rows = source.load(self.load_from_cache_file or self.trainer is not None)
        convert = self._converter(source)
        if isinstance(convert, DatasetConverter) and len(rows):
            columns = dict.fromkeys(key for row in rows for key in row) if source is None else rows.column_names
            try:
                convert.check_columns(columns)
            except ValueError as error:
                raise ValueError(f"{name} does not fit data.converter: {error}") from error
        settings = getattr(getattr(self.trainer, "lightning_module", None), "settings", None)
        prompts = PromptDataset(
            rows,
            convert,
            self._tokenizer(),
            name,
            getattr(settings, "chat_template_kwargs", None),
            {**(getattr(settings, "replace_text", None) or {}), **self.replace_text},
            self.max_prompt_length,
            self.overlong_prompts,
        )
        limit = f" longer than data.max_prompt_length={self.max_prompt_length} tokens" if prompts.num_dropped else ""
        rank_zero_info(f"{name}: {len(prompts)} prompts, {prompts.num_dropped} dropped{limit}")
        self._warn_of_text(prompts, convert, {**(source.converter_args if source else {}), **self.converter_args})
        return prompts

    def _warn_of_text(self, prompts: PromptDataset, convert: Converter, arguments: Mapping[str, Any]) -> None:
        """Text for a model that has learnt to answer messages: once, and not where the config says ``conversational``."""
        if self._has_warned_of_text or prompts.is_conversational or "conversational" in arguments:
            return
        if self._tokenizer().chat_template is None:
            return
        self._has_warned_of_text = True
        how = (
            "Set data.converter_args.conversational to true to make each prompt a user message, or to false to say that "
            "text is meant."
            if isinstance(convert, DatasetConverter)
            else "Return a list of messages from data.converter to have it applied."
        )
        rank_zero_warn(
            f"The prompts of {prompts.name} are text. The tokenizer has a chat template, which is applied to messages only. {how}"
        )

    def _source(self, spec: DatasetSpec, split: str | None) -> DataSource:
        assert not isinstance(spec, list)
        return find_dataset(spec, split, load_data_config(self.dataset_info))

    def _converter(self, source: DataSource | None) -> Converter:
        if self.converter is not None and not isinstance(self.converter, str):
            return self.converter
        entry = source if source is not None and self.converter is None else None
        name = self.converter or (entry.converter if entry else None) or DEFAULT_CONVERTER
        return get_dataset_converter(name, **{**(entry.converter_args if entry else {}), **self.converter_args})

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        policy = getattr(getattr(self.trainer, "lightning_module", None), "policy", None)
        tokenizer = self.tokenizer or getattr(policy, "tokenizer", None)
        if tokenizer is None:
            raise ValueError("There is no tokenizer. Use a Trainer with GRPOModule, or set datamodule.tokenizer first.")
        return tokenizer

    # -- loading ------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> TrainingLoader:
        """This rank's share of the training prompts, epoch after epoch."""
        assert self.train_prompts is not None
        # trainer.overfit_batches asks for the same few batches in every epoch.
        overfit = self.trainer is not None and getattr(self.trainer, "overfit_batches", 0) > 0
        return TrainingLoader(
            self.train_prompts,
            self.batch_size,
            *self._ranks(),
            seed=self.seed,
            shuffle=self.shuffle and not overfit,
            batches_in_flight=partial(_batches_in_flight, self.trainer),
        )

    def val_dataloader(self) -> EvaluationLoaders:
        """The loader of eval_dataset; where there are several, one for each by name."""
        return self._evaluation_loaders(self.eval_prompts)

    def test_dataloader(self) -> EvaluationLoaders:
        """The loader of test_dataset, else of eval_dataset; where there are several, one for each by name."""
        return self._evaluation_loaders(self.test_prompts)

    def predict_dataloader(self) -> EvaluationLoaders:
        """As for test."""
        return self._evaluation_loaders(self.test_prompts)

    def _evaluation_loaders(self, prompts: Mapping[str, PromptDataset]) -> EvaluationLoaders:
        loaders = {name: EvaluationLoader(one, self.eval_batch_size, *self._ranks()) for name, one in prompts.items()}
        return loaders[UNNAMED] if list(loaders) == [UNNAMED] else loaders

    def _ranks(self) -> tuple[int, int]:
        """(rank, number of ranks)."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


def _batches_in_flight(trainer: L.Trainer | None) -> int:
    """Batches that the fit loop has fetched and whose training_step has not returned: 0 or 1."""
    if trainer is None:
        return 0
    current: Any = trainer.fit_loop.epoch_loop.batch_progress.current  # declared without the counter that it has
    return current.ready - current.processed
