"""GRPODataModule: which prompts a run trains and is evaluated on, and in which order."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any, Literal

import lightning as L
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpo_lightning.datamodules.converters import DatasetConverter, get_dataset_converter
from grpo_lightning.datamodules.converters.registry import with_arguments
from grpo_lightning.datamodules.curriculum import Curriculum
from grpo_lightning.datamodules.drawing.loader import EvaluationLoader, TrainingLoader, check_epoch
from grpo_lightning.datamodules.drawing.orders import Order, make_order
from grpo_lightning.datamodules.drawing.outcomes import GroupOutcomes, OutcomeBook
from grpo_lightning.datamodules.drawing.progress import count_anew, steps_trained, untrained_batches
from grpo_lightning.datamodules.drawing.stream_loader import StreamLoader, check_can_stream
from grpo_lightning.datamodules.drawing.stream_reader import MakePrompts
from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.datamodules.prompts.form import PromptForm
from grpo_lightning.datamodules.prompts.mixture import MixedPrompts
from grpo_lightning.datamodules.prompts.reader import PromptReader
from grpo_lightning.datamodules.sources.find_dataset import find_source
from grpo_lightning.datamodules.sources.reasoning_gym import check_other_tasks
from grpo_lightning.datamodules.sources.row_stream import RowStream
from grpo_lightning.datamodules.sources.specs import UNNAMED, DatasetSpec, EvalSpec, by_name, is_rows, weighted
from grpo_lightning.settings.given import checked

EvaluationLoaders = EvaluationLoader | dict[str, EvaluationLoader]
Specs = dict[str, tuple[DatasetSpec, str | None]]
"""Datasets by name, each with its split."""


class GRPODataModule(L.LightningDataModule):
    """Prompts from a hub dataset, local files or a key of dataset_info.json, converted and tokenised before training.

    Args:
        dataset: What to train on: a key of dataset_info.json, a local JSON, JSONL, Parquet, Arrow, CSV or TSV file, a pattern
            of such files, a directory, ``owner/name`` on the hub, or a mapping like an entry of dataset_info.json
            (hf_hub_url, file_name or reasoning_gym, subset, split, num_samples, converter, converter_args).
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
        datasets: Instead of dataset, several by name, each with its weight: ``maths: {dataset: gsm8k_train, weight: 2}``;
            ``weight: rows`` takes each as often as it has prompts.
            Every step has its share of each.
        curriculum: Draws fewer of the prompts whose completions all earn the same; by default all prompts alike.
        streaming: Reads the rows of dataset as training goes instead of all before.
        shuffle_block: Rows of a stream that are read, and shuffled, together.
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    """By default that of the LightningModule; set it to use the data module on its own."""
    train_prompts: PromptDataset | MixedPrompts | None = None
    """None where they are streamed."""
    train_stream: tuple[RowStream, MakePrompts] | None = None
    """Rows, and what makes prompts of a block of them."""
    order: Order | None = None
    """Which prompts each step gets."""
    _outcomes: OutcomeBook | None = None

    @checked
    def __init__(
        self,
        dataset: DatasetSpec | None = None,
        eval_dataset: EvalSpec | None = None,
        test_dataset: EvalSpec | None = None,
        split: str | None = None,
        eval_split: str | None = None,
        converter: str | DatasetConverter | dict[str, Any] | None = None,
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
        datasets: dict[str, Any] | None = None,
        curriculum: Curriculum | None = None,
        streaming: bool = False,
        shuffle_block: int = 1024,
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.datasets = datasets
        self.curriculum = curriculum
        self.streaming = streaming
        self.shuffle_block = shuffle_block
        self.eval_dataset = eval_dataset
        self.test_dataset = test_dataset
        self.split = split
        self.eval_split = eval_split
        self.converter, self.converter_args = with_arguments(converter, converter_args or {})
        self.dataset_info = dataset_info
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.max_prompt_length = max_prompt_length
        self.overlong_prompts = overlong_prompts
        self.replace_text = replace_text or {}
        self.load_from_cache_file = load_from_cache_file
        self.eval_prompts: dict[str, PromptDataset] = {}
        """By name, in the order of the dataloaders; a single one has the name UNNAMED."""
        self.test_prompts: dict[str, PromptDataset] = {}
        self._check_settings()

    def _check_settings(self) -> None:
        for name in ("batch_size", "eval_batch_size", "max_prompt_length", "shuffle_block"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.{name}={value} is not possible. Use 1 or more.")
        if self.datasets is not None:
            weighted(self.datasets)
            if self.dataset is not None:
                raise ValueError("data.dataset has no effect beside data.datasets. Make it one of them.")
        for name in ("datasets", "curriculum"):
            if self.streaming and getattr(self, name) is not None:
                raise ValueError(f"data.{name} needs all prompts, and data.streaming has a part. Use one of the two.")
        if self.max_prompt_length is None and self.overlong_prompts != "drop":
            raise ValueError(
                f"data.overlong_prompts={self.overlong_prompts} has no effect without data.max_prompt_length: no prompt is too long. "
                "Set that, or leave it out."
            )
        if isinstance(self.converter, str):
            get_dataset_converter(self.converter, **self.converter_args)

    def prepare_data(self) -> None:
        """Downloads and parses into the cache, once per node, so that ``setup`` on every rank only opens files."""
        for specs in self._specs().values():
            for spec, split in specs.values():
                if not is_rows(spec) and not self.streaming:
                    find_source(spec, split, self.dataset_info).load(self.load_from_cache_file)

    def setup(self, stage: str) -> None:
        """Converts and tokenises what the stage needs; mistakes in the data show here, before weights load."""
        specs = self._specs()
        if stage == "fit":
            self._setup_training(specs.get("train"))
        if stage == "fit" and "eval" not in specs:
            # Lightning asks whether the hook is overridden; an overridden one that returns nothing makes it warn.
            self.val_dataloader = super().val_dataloader  # type: ignore[method-assign]
        if stage in ("fit", "validate") and not self.eval_prompts and "eval" in specs:
            self.eval_prompts = self._read(specs["eval"])
        if stage in ("test", "predict") and not self.test_prompts and "test" in specs:
            self.test_prompts = self._read(specs["test"])
        if (stage == "validate" and not self.eval_prompts) or (stage in ("test", "predict") and not self.test_prompts):
            command = next(
                word for word in ("validate", "test", "predict") if stage == word
            )  # of an enum of Lightning's
            raise ValueError(f"data.eval_dataset is not set. Name the dataset to {command} on.")

    def _setup_training(self, specs: Specs | None) -> None:
        if specs is None:
            raise ValueError("data.dataset is not set. Name the dataset to train on.")
        if self.streaming:
            check_can_stream(self._module())
            self.train_stream = self._reader.stream(*specs[UNNAMED])
            return
        if self.train_prompts is None:
            parts = self._read(specs)
            self.train_prompts = parts[UNNAMED] if self.datasets is None else MixedPrompts(parts)
        check_epoch(self.train_prompts, self.batch_size, self._ranks()[1], self.trainer)
        weights = self._weights(self.train_prompts)
        per_step = self.batch_size * self._ranks()[1]
        self.order = make_order(self.train_prompts, weights, per_step, self.seed, self._shuffles(), self.curriculum)
        self._outcomes = OutcomeBook(self.train_prompts, self.order, self._module())

    def _weights(self, prompts: PromptDataset | MixedPrompts) -> list[float] | None:
        """Of the datasets of a mixture."""
        if self.datasets is None or not isinstance(prompts, MixedPrompts):
            return None
        named = {name: weight for name, (*_, weight) in weighted(self.datasets).items()}
        return [float(len(prompts.parts[name])) if weight is None else weight for name, weight in named.items()]

    def _specs(self) -> dict[str, Specs]:
        """What to read: role -> datasets by name, each with its split."""
        test_dataset = self.eval_dataset if self.test_dataset is None else self.test_dataset
        train = None if self.dataset is None else {UNNAMED: (self.dataset, self.split)}
        if self.datasets is not None:
            train = {name: (spec, split or self.split) for name, (spec, split, _) in weighted(self.datasets).items()}
        roles: dict[str, Specs] = {"train": train or {}}
        for role, spec in (("eval", self.eval_dataset), ("test", test_dataset)):
            roles[role] = {name: (one, self.eval_split) for name, one in (by_name(spec) or {}).items()}
        check_other_tasks(roles["train"], {**roles["eval"], **roles["test"]})
        return {role: specs for role, specs in roles.items() if specs}

    def _read(self, specs: Specs) -> dict[str, PromptDataset]:
        return {name: self._reader.prompts(spec, split) for name, (spec, split) in specs.items()}

    @cached_property
    def _reader(self) -> PromptReader:
        return PromptReader(
            PromptForm.of(self._module(), self.tokenizer, self.replace_text),
            self.converter,
            self.converter_args,
            self.dataset_info,
            self.max_prompt_length,
            self.overlong_prompts,
            # prepare_data has read anew already where a Trainer runs this.
            self.load_from_cache_file or self.trainer is not None,
        )

    def _module(self) -> Any:
        """The Trainer's; None without one."""
        return getattr(self.trainer, "lightning_module", None)

    def train_dataloader(self) -> TrainingLoader | StreamLoader:
        """This rank's share of the training prompts, epoch after epoch."""
        if self.train_stream is not None:
            return StreamLoader(
                *self.train_stream,
                self.batch_size,
                *self._ranks(),
                seed=self.seed if self._shuffles() else None,
                block_size=self.shuffle_block,
                steps_trained=partial(steps_trained, self.trainer),
                count_anew=partial(count_anew, self.trainer),
            )
        assert self.train_prompts is not None
        return TrainingLoader(
            self.train_prompts,
            self.batch_size,
            *self._ranks(),
            seed=self.seed,
            shuffle=self._shuffles(),
            untrained_batches=partial(untrained_batches, self.trainer),
            order=self.order,
        )

    def _shuffles(self) -> bool:
        # trainer.overfit_batches asks for the same few batches in every epoch.
        return self.shuffle and not (self.trainer is not None and getattr(self.trainer, "overfit_batches", 0) > 0)

    def record(self, outcomes: GroupOutcomes) -> dict[str, Tensor]:
        """Tells the data how this rank's prompts of a step did; called on every rank, once a step.

        Returns:
            Values to average, by metric: each dataset's share, reward and pass rate where there are several, and with a
            curriculum the share of prompts in each pool.
        """
        return {} if self._outcomes is None else self._outcomes.record(outcomes)

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
