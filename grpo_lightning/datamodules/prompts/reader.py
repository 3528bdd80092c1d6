"""PromptReader: from the name of a dataset to its prompts, with what a config says about all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from grpo_lightning.datamodules.converters import Converter, DatasetConverter, get_dataset_converter
from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.datamodules.prompts.form import PromptForm
from grpo_lightning.datamodules.prompts.odd_prompts import PromptWarnings
from grpo_lightning.datamodules.sources.find_dataset import Source, find_source
from grpo_lightning.datamodules.sources.row_stream import RowStream
from grpo_lightning.datamodules.sources.rows import column_names
from grpo_lightning.datamodules.sources.specs import DatasetSpec

DEFAULT_CONVERTER = "grpo"


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
        source = find_source(spec, split, self.dataset_info)
        rows = source.load(self.load_from_cache_file)
        convert = self._converter(source)
        if isinstance(convert, DatasetConverter) and len(rows):
            try:
                convert.check_columns(column_names(rows))
            except ValueError as error:
                raise ValueError(f"{source} does not fit data.converter: {error}") from error
        prompts = self._made(rows, convert, source)
        limit = f" longer than data.max_prompt_length={self.max_prompt_length} tokens" if prompts.num_dropped else ""
        rank_zero_info(f"{source}: {len(prompts)} prompts, {prompts.num_dropped} dropped{limit}")
        self._warn(prompts, convert, source)
        return prompts

    def stream(
        self, spec: DatasetSpec, split: str | None
    ) -> tuple[RowStream, Callable[[Sequence[Mapping[str, Any]], int], PromptDataset]]:
        """The rows of a dataset as a stream, and what makes prompts of a block of them.

        Raises:
            ValueError: As for ``prompts``; what is wrong with a row is known when it is read.
        """
        source = find_source(spec, split, self.dataset_info)
        rows = source.stream()
        convert = self._converter(source)
        first = next(rows.blocks(1, epoch=0), None)
        if first is None:
            raise ValueError(f"{source} has no rows.")
        self._warn(self._made(first[0], convert, source, first_row=0), convert, source)
        return rows, lambda block, first_row: self._made(block, convert, source, first_row)

    def _converter(self, source: Source) -> Converter:
        """What the settings say, else what the dataset's entry says."""
        if self.converter is None:
            arguments = {**source.converter_args, **self.converter_args}
            return get_dataset_converter(source.converter or DEFAULT_CONVERTER, **arguments)
        if isinstance(self.converter, str):
            return get_dataset_converter(self.converter, **self.converter_args)
        return self.converter

    def _made(self, rows: Any, convert: Converter, source: Source, first_row: int | None = None) -> PromptDataset:
        return PromptDataset(
            rows, convert, self.form, str(source), self.max_prompt_length, self.overlong_prompts, first_row
        )

    def _warn(self, prompts: PromptDataset, convert: Converter, source: Source) -> None:
        self.warnings.check(prompts, convert, {**source.converter_args, **self.converter_args})
