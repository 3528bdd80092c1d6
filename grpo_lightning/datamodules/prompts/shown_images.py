"""Images of a dataset's rows: put into the prompts as blocks, and processed when a batch is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from grpo_lightning.datamodules.prompts.chat_templates import row_template_kwargs
from grpo_lightning.errors import RefusedRowError
from grpo_lightning.types import PromptImages
from grpo_lightning.vision.images import IMAGE, IMAGES, holds_picture, read_image
from grpo_lightning.vision.messages import shows_images, with_images
from grpo_lightning.vision.processing import ImageProcessing


class _ShownRow(NamedTuple):
    number: int
    """In the source."""
    pictures: list[Any]
    """As the data has them, in the order of the prompt's blocks."""
    image_tokens: int


class ShownImages:
    """Makes prompts and pixels of rows with images.

    Pixels are far larger than images: they are made twice, once for the length of the prompt, and once when its batch is
    drawn, and never kept.

    Args:
        processing: Of the policy.
        chat_template_kwargs: Of all rows; those of a row win.
        name: Where the rows come from; errors quote it.
    """

    def __init__(self, processing: ImageProcessing, chat_template_kwargs: Mapping[str, Any], name: str) -> None:
        self.processing, self.chat_template_kwargs, self.name = processing, chat_template_kwargs, name
        self._rows: list[_ShownRow] = []

    def tokenized(self, rows: Sequence[dict[str, Any]], first: int) -> list[list[int]]:
        """The token ids of each prompt; its blocks are put into the rows.

        Args:
            rows: Converted; changed in place.
            first: Number of the first one.

        Raises:
            ValueError: Naming the row whose images or messages cannot be read.
        """
        ids = []
        for index, row in enumerate(rows, first):
            if not isinstance(row["prompt"], list):
                raise ValueError(
                    f"{self.name}, row {index} has a prompt of text, and model.vision_tower shows images in messages. Set "
                    "data.converter_args.conversational=true."
                )
            try:
                row["prompt"], pictures = with_images(row)
                prompt_ids, shown = self._processed(row, pictures)
            except ValueError as error:
                raise ValueError(f"{self.name}, row {index}: {error}") from error
            ids.append(prompt_ids)
            self._rows.append(_ShownRow(index, pictures, int(shown.is_image.sum())))
        return ids

    def keep(self, kept: Sequence[int]) -> None:
        """Forgets all rows but these."""
        self._rows = [self._rows[index] for index in kept]

    @property
    def image_tokens(self) -> list[int]:
        """Tokens of each row's prompt that images take the place of."""
        return [row.image_tokens for row in self._rows]

    def of_rows(self, places: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> tuple[PromptImages, ...]:
        """What the images of these rows become.

        Args:
            places: Of the rows among those that were kept.
            rows: They themselves.

        Raises:
            RefusedRowError: Naming the row whose images cannot be read any more.
        """
        made = []
        for place, row in zip(places, rows, strict=True):
            try:
                made.append(self._processed(row, self._rows[place].pictures)[1])
            except ValueError as error:
                raise RefusedRowError(f"{self.name}, row {self._rows[place].number}: {error}") from error
        return tuple(made)

    def _processed(self, row: Mapping[str, Any], pictures: Sequence[Any]) -> tuple[list[int], PromptImages]:
        images = [read_image(value) for value in pictures]
        return self.processing(row["prompt"], images, row_template_kwargs(row, self.chat_template_kwargs))


def refuse_images(rows: Sequence[Mapping[str, Any]], name: str, stage: str = "") -> None:
    """Refuses prompts with blocks of images for a policy that sees text alone, and says where columns hold some.

    Args:
        rows: Converted.
        name: Where they come from.
        stage: The module of a stage that has no way to show images, such as SFTModule; it refuses those of columns too, which
            are part of what its rows say. Empty for one that has.

    Raises:
        ValueError: With a way out.
    """
    for index, row in enumerate(rows):
        if stage and (any(map(shows_images, row.values())) or _has_pictures(row)):
            raise ValueError(
                f"{name}, row {index} has an image, and {stage} trains on text alone. Leave the images out of the data, or "
                "train on them with GRPOModule and its model.vision_tower."
            )
        if shows_images(row["prompt"]):
            raise ValueError(
                f"{name}, row {index} shows an image in its prompt, and the policy sees text alone: model.vision_tower is not "
                "set. Set it to frozen for a vision-language model, or take the block out of the prompt."
            )
    if any(map(_has_pictures, rows)):
        rank_zero_warn(
            f"{name} has images in the column image or images, which the policy does not see: model.vision_tower is not set."
        )


def _has_pictures(row: Mapping[str, Any]) -> bool:
    return holds_picture(row.get(IMAGE)) or holds_picture(row.get(IMAGES))
