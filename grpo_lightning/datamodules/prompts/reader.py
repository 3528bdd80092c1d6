"""PromptReader: from the name of a dataset to its prompts, with what a config says about all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from grpo_lightning.datamodules.converters import Converter, DatasetConverter, get_dataset_converter
from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.datamodules.prompts.form import PromptForm
from grpo_lightning.datamodules.prompts.odd_prompts import PromptWarnings
from grpo_lightning.datamodules.sources.dataset_info import load_data_config
from grpo_lightning.datamodules.sources.find_dataset import find_dataset
from grpo_lightning.datamodules.sources.row_stream import RowStream
from grpo_lightning.datamodules.sources.source import DEFAULT_SPLIT, DataSource
from grpo_lightning.datamodules.sources.specs import DatasetSpec, is_rows, is_rows_by_split
from grpo_lightning.datamodules.sources.splits import check_split

DEFAULT_CONVERTER = "grpo"
FROM_PYTHON = "data given from Python"


@dataclass
class PromptReader:
    """What is the same for every dataset of a run. The settings are GRPODataModule's, of the same names."""

    form: PromptForm
    converter: str | DatasetConverter | None = None
    converter_args: dict[str, Any] = field(default_factory=dict)
    dataset_info: str | None = None
    max_prompt_length: int | None = None
    overlong_prompts: Literal["drop", "refuse"] = "drop"
    load_from_cache_file: bool = True

    def __post_init__(self) -> None:
        self.warnings = PromptWarnings(self.form.tokenizer, self.form.chat_template_kwargs)

    def prompts(self, spec: DatasetSpec, split: str | None) -> PromptDataset:
        """All prompts of a dataset.

        Raises:
            ValueError: If it cannot be found, read or converted; in the words of the config.
        """
        source = None if is_rows(spec) else self.source(spec, split)
        rows = of_split(spec, split) if source is None else source.load(self.load_from_cache_file)
        name = FROM_PYTHON if source is None else str(source)
        if not hasattr(rows, "__len__"):
            raise ValueError(
                f"{name} is a stream ({type(rows).__name__}), which only training reads. Set data.streaming for data.dataset; "
                "elsewhere use a datasets.Dataset or a list, or a part: a split such as train[:10000], or num_samples."
            )
        if source is None:
            _check_rows(rows)
        columns = dict.fromkeys(key for row in rows for key in row) if source is None else rows.column_names
        prompts = self._maker(source, name, columns if len(rows) else None)(rows)
        limit = f" longer than data.max_prompt_length={self.max_prompt_length} tokens" if prompts.num_dropped else ""
        rank_zero_info(f"{name}: {len(prompts)} prompts, {prompts.num_dropped} dropped{limit}")
        self._warn(prompts, source)
        return prompts

    def stream(
        self, spec: DatasetSpec, split: str | None
    ) -> tuple[RowStream, Callable[[Sequence[Mapping[str, Any]], int], PromptDataset]]:
        """The rows of a dataset as a stream, and what makes prompts of a block of them.

        Raises:
            ValueError: As for ``prompts``; what is wrong with a row is known when it is read.
        """
        source = None if is_rows(spec) else self.source(spec, split)
        rows = RowStream(of_split(spec, split), FROM_PYTHON) if source is None else source.stream()
        make = self._maker(source, rows.name, None)
        first = next(rows.blocks(1, epoch=0), None)
        if first is None:
            raise ValueError(f"{rows.name} has no rows.")
        self._warn(make(first[0], first_row=0), source)
        return rows, lambda block, first_row: make(block, first_row=first_row)

    def source(self, spec: DatasetSpec, split: str | None) -> DataSource:
        """Where a dataset is."""
        assert not isinstance(spec, list)
        return find_dataset(spec, split, load_data_config(self.dataset_info))

    def _maker(self, source: DataSource | None, name: str, columns: Any) -> Callable[..., PromptDataset]:
        convert = self._convert(source)
        if isinstance(convert, DatasetConverter) and columns is not None:
            try:
                convert.check_columns(columns)
            except ValueError as error:
                raise ValueError(f"{name} does not fit data.converter: {error}") from error
        return partial(
            PromptDataset,
            convert=convert,
            form=self.form,
            name=name,
            max_prompt_length=self.max_prompt_length,
            overlong_prompts=self.overlong_prompts,
        )

    def _convert(self, source: DataSource | None) -> Converter:
        if self.converter is not None and not isinstance(self.converter, str):
            return self.converter
        entry = source if source is not None and self.converter is None else None
        name = self.converter or (entry.converter if entry else None) or DEFAULT_CONVERTER
        return get_dataset_converter(name, **{**(entry.converter_args if entry else {}), **self.converter_args})

    def _warn(self, prompts: PromptDataset, source: DataSource | None) -> None:
        arguments = {**(source.converter_args if source else {}), **self.converter_args}
        self.warnings.check(prompts, self._convert(source), arguments)


def of_split(spec: Any, split: str | None) -> Any:
    """The rows that were given from Python; of a DatasetDict, those of one split.

    Raises:
        ValueError: If it has no such split.
    """
    if not is_rows_by_split(spec):
        return spec
    check_split(split or DEFAULT_SPLIT, list(map(str, spec)), f"{FROM_PYTHON} ({type(spec).__name__})")
    return spec[split or DEFAULT_SPLIT]


def _check_rows(rows: Iterable[Any]) -> None:
    """Raises ValueError where iterating gives something else than rows: a pandas DataFrame gives the names of its columns."""
    first: Any = next(iter(rows), {})
    if not isinstance(first, Mapping):
        kind = type(rows).__name__
        raise ValueError(
            f"{FROM_PYTHON} is a {kind} that gives {first!r:.80}, of type {type(first).__name__}, where a row is a dictionary such "
            "as {'prompt': ..., 'ground_truth': ...}. Give a list of those, or a datasets.Dataset; of a pandas DataFrame "
            "frame.to_dict('records')."
        )
