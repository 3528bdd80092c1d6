"""What teachers read of a step: the completions under prompts of the teachers' own, and which teacher has which prompt."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from grpo_lightning.algorithm.lessons import NOBODY, Lessons
from grpo_lightning.datamodules.prompts.chat_templates import TEMPLATE_KWARGS, TOOLS
from grpo_lightning.datamodules.prompts.tokenization import tokenize_prompts
from grpo_lightning.errors import RefusedRowError, refusing_rows
from grpo_lightning.messages import said
from grpo_lightning.training.distillation.settings import PLACE, SUCCESS, Distillation
from grpo_lightning.types import Prompt, PromptBatch, Rollouts


def check_columns(settings: Distillation, columns: Collection[str]) -> None:
    """Refuses data without what teachers are chosen and told by.

    Raises:
        ValueError: Naming the column.
    """
    if SUCCESS in settings.places and SUCCESS in columns:
        raise ValueError(
            f"model.distillation.teacher_prompt shows {{{SUCCESS}}}, a completion of the group, and the data has a column of that "
            "name. Rename that column, or leave it out of the data."
        )
    for name in settings.needed_columns:
        if name not in columns:
            setting = "teacher_column" if name == settings.teacher_column else "teacher_prompt"
            raise ValueError(
                f"model.distillation.{setting} names the column {name!r}, which the data does not have. There are "
                f"{', '.join(sorted(columns)) or 'none beside the prompt'}; data.converter_args may leave some out."
            )


def lessons_of(
    settings: Distillation,
    batch: PromptBatch,
    rollouts: Rollouts,
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: Mapping[str, Any],
    attempts: Mapping[str, list[Any]] | None = None,
) -> Lessons:
    """The step as the teachers read it.

    Args:
        settings: See there.
        batch: The prompts of the rollouts, with the columns.
        rollouts: Of the step.
        tokenizer: Of the policy.
        chat_template_kwargs: As for the prompts.
        attempts: What teacher_prompt names of the step: N values by name, None for a completion that nobody then teaches.

    Raises:
        RefusedRowError: If a row has no teacher, its teacher would read nothing or the chat template fails on what it would, or
            a column is missing.
    """
    with refusing_rows():  # a stream's columns show here
        check_columns(settings, batch.columns)
    read = partial(_read, settings, batch, tokenizer, chat_template_kwargs)
    teachers = _teachers(settings, batch)
    if attempts:
        return _by_completion(rollouts, teachers, attempts, read)
    prompts = [read(b, {}) or ids.tolist() for b, ids in enumerate(rollouts.prompts())]
    return Lessons(_under(rollouts, prompts), teachers)


def _by_completion(
    rollouts: Rollouts,
    teachers: torch.Tensor,
    attempts: Mapping[str, list[Any]],
    read: Callable[[int, dict[str, Any]], list[int] | None],
) -> Lessons:
    """Completions of a group that are told the same share what the teacher reads."""
    own = rollouts.prompts()
    places: dict[tuple[Any, ...], int] = {}
    prompts: list[list[int]] = []
    teacher, group = [], []
    for n, b in enumerate(rollouts.group.tolist()):
        values = {name: of_all[n] for name, of_all in attempts.items()}
        told = (b, *map(str, values.values())) if None not in values.values() else (b,)
        if told not in places:
            ids = read(b, values) if len(told) > 1 else None
            places[told] = len(prompts)
            prompts.append(ids or own[b].tolist())
            teacher.append(int(teachers[b]) if ids else NOBODY)
        group.append(places[told])
    return Lessons(
        _under(replace(rollouts, group=torch.tensor(group, dtype=torch.int64)), prompts),
        torch.tensor(teacher, dtype=torch.int64),
    )


def _teachers(settings: Distillation, batch: PromptBatch) -> torch.Tensor:
    """(B,): the place of each prompt's teacher among ``by_name``."""
    if settings.teacher_column is None:
        return torch.zeros(len(batch), dtype=torch.int64)
    names = list(settings.by_name)
    chosen = [str(value) for value in batch.columns[settings.teacher_column]]
    for uid, name in zip(batch.uids, chosen, strict=True):
        if name not in names:
            raise RefusedRowError(
                f"row {uid} has {name!r} in the column {settings.teacher_column}, and model.distillation.teacher has no such "
                f"name. There are {', '.join(names)}."
            )
    return torch.tensor([names.index(name) for name in chosen])


def _read(
    settings: Distillation,
    batch: PromptBatch,
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: Mapping[str, Any],
    b: int,
    attempt: Mapping[str, Any],
) -> list[int] | None:
    """What the teacher reads in place of prompt ``b``; None where there is nothing to tell."""
    values = {name: batch.columns[name][b] for name in settings.told_columns} | {**attempt}
    if settings.teacher_prompt is None or None in values.values():
        return None
    options = {name: batch.columns[name][b] for name in (TOOLS, TEMPLATE_KWARGS) if name in batch.columns}
    row = {"prompt": filled(settings.teacher_prompt, batch.prompts[b], values), **options}
    with refusing_rows():
        ids = tokenize_prompts([row], tokenizer, chat_template_kwargs, f"row {batch.uids[b]}")[0]
    if not ids:
        raise RefusedRowError(
            f"model.distillation.teacher_prompt={settings.teacher_prompt!r} leaves row {batch.uids[b]} without a token: "
            f"{values} are empty. Add {{prompt}} or text, or make the column null where a row keeps its prompt."
        )
    return ids


def _under(rollouts: Rollouts, prompts: list[list[int]]) -> Rollouts:
    """The same completions behind other prompts."""
    return replace(
        rollouts,
        prompt_ids=torch.tensor([token for ids in prompts for token in ids], dtype=torch.int64),
        prompt_lengths=torch.tensor([len(ids) for ids in prompts], dtype=torch.int64),
    )


def filled(template: str, prompt: Prompt, values: Mapping[str, Any]) -> Prompt:
    """The prompt with the template in place of its text, or of its last message's.

    Braces around anything but a name of ``values`` stay as they are, as LaTeX and JSON have them.

    Example:
        >>> filled("{prompt} (An example: {worked})", "2+2=", {"worked": "1+1=2"})
        '2+2= (An example: 1+1=2)'
    """
    if isinstance(prompt, list):
        last = prompt[-1]
        return [*prompt[:-1], {**last, "content": filled(template, said(last), values)}]
    known = {**values, "prompt": prompt}
    return PLACE.sub(lambda place: str(known.get(place[1], place[0])), template)
