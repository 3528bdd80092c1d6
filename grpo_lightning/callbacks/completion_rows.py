"""A step's completions as rows of a Parquet file: the documented schema."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch

from grpo_lightning.metrics.evaluation import none_if_nan
from grpo_lightning.metrics.step_report import StepRecord
from grpo_lightning.rewards.text.valid_text import json_text, valid_text
from grpo_lightning.seeds import derive_seed
from grpo_lightning.types import Prompt
from grpo_lightning.vision.images import IMAGE, IMAGES, reference_of
from grpo_lightning.vision.thumbnails import thumbnails

SCHEMA_VERSION = "1"

COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "step": (pa.int32(), "GRPO steps finished when the completion was sampled; `step` of metrics.csv."),
    "uid": (pa.int64(), "Row number of the prompt in the dataset."),
    "sample": (pa.int32(), "Number of the completion in its group, from 0."),
    "prompt": (pa.string(), "The prompt, with what an environment said behind it; a conversation as JSON."),
    "completion": (pa.string(), "The completion, decoded, special tokens left out."),
    "reward": (
        pa.float64(),
        "The total that advantages compare: gates, composition and weights applied; null for none.",
    ),
    "advantage": (pa.float32(), "What the update was weighted by."),
    "length": (pa.int32(), "Tokens of the completion, the end-of-sequence token included."),
    "prompt_length": (pa.int32(), "Tokens of the prompt."),
    "truncated": (pa.bool_(), "Whether it ran into model.max_completion_length."),
    "mean_logprob": (pa.float32(), "Mean logprob per token under the sampler, in nats."),
    "columns": (pa.string(), "JSON: dataset columns of the prompt and what rewards logged."),
    "images": (
        pa.list_(pa.string()),
        "Thumbnails of the prompt's images, as data URIs: JPEG, at most four, none above 128 pixels a side.",
    ),
}
"""Columns of every file, with their meaning; ``rewards/<name>`` (float64, null for None) follow, one per reward."""


def completions_schema(reward_names: Sequence[str]) -> pa.Schema:
    """The schema of a file, its version in the metadata."""
    fields = [pa.field(name, kind, metadata={"doc": doc}) for name, (kind, doc) in COLUMNS.items()]
    fields += [pa.field(f"rewards/{name}", pa.float64()) for name in reward_names]
    return pa.schema(fields, metadata={"grpo_lightning.completions": SCHEMA_VERSION})


def completions_table(
    record: StepRecord, texts: Sequence[Any], totals: Sequence[float], step: int, max_rows: int
) -> pa.Table:
    """The completions of a step as a table of at most ``max_rows`` rows, whole groups where one fits.

    Which groups is decided by their uids, so that the same prompts are kept whenever they come up.

    Args:
        record: The step.
        texts: N completions as rewards saw them.
        totals: N total rewards, NaN for none.
        step: Its number, from 0.
        max_rows: At least 1.
    """
    rollouts, rewards, batch = record.rollouts, record.rewards, record.batch
    group = rollouts.group.tolist()
    rows = chosen_rows(group, batch.uids, max_rows)
    logprobs = torch.stack([values.mean() for values in rollouts.sampling_logprobs.split(_lengths(record))])
    sample, seen = [], dict.fromkeys(group, 0)
    for b in group:
        sample.append(seen[b])
        seen[b] += 1
    columns: dict[str, list[Any]] = {
        "step": [step] * len(rows),
        "uid": [batch.uids[group[n]] for n in rows],
        "sample": [sample[n] for n in rows],
        "prompt": [valid_text(plain_text(rollouts.asked(n, batch.prompts[group[n]]))) for n in rows],
        "completion": [valid_text(shown_completion(texts[n])) for n in rows],
        "reward": [none_if_nan(totals[n]) for n in rows],
        "advantage": [record.advantages[n].item() for n in rows],
        "length": [int(rollouts.completion_lengths[n]) for n in rows],
        "prompt_length": [int(rollouts.prompt_lengths[group[n]]) for n in rows],
        "truncated": [bool(rollouts.truncated[n]) for n in rows],
        "mean_logprob": [logprobs[n].item() for n in rows],
        "columns": [_columns_json(record, n, group[n]) for n in rows],
        "images": _shown_images(record, [group[n] for n in rows]),
    }
    for r, name in enumerate(rewards.names):
        columns[f"rewards/{name}"] = [none_if_nan(rewards.values[n, r].item()) for n in rows]
    return pa.table(columns, schema=completions_schema(rewards.names))


def chosen_rows(group: Sequence[int], uids: Sequence[int], max_rows: int) -> list[int]:
    """Indices of the completions to keep, in order: whole groups up to ``max_rows``, the first one cut if it must be.

    Example:
        >>> len(chosen_rows([0, 0, 1, 1, 2, 2], uids=[7, 8, 9], max_rows=5))
        4
    """
    order = sorted(set(group), key=lambda b: derive_seed("completions", uids[b]))
    members = {b: [n for n, other in enumerate(group) if other == b] for b in order}
    kept: list[int] = []
    for b in order:
        if not kept or len(kept) + len(members[b]) <= max_rows:
            kept += members[b]
    return sorted(kept[:max_rows])


def plain_text(prompt: Prompt) -> str:
    """Text prompts as they are, conversations as JSON."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False, default=str)


def shown_completion(completion: Any) -> str:
    """The words of a completion, whichever form the rewards saw."""
    if isinstance(completion, str):
        return completion
    if all(message.get("role") == "assistant" for message in completion):
        return "\n".join(str(message.get("content", "")) for message in completion)
    return json.dumps(completion, ensure_ascii=False, default=str)


def _lengths(record: StepRecord) -> list[int]:
    return [int(length) for length in record.rollouts.completion_lengths]


def _columns_json(record: StepRecord, n: int, b: int) -> str:
    values = {name: entries[b] for name, entries in record.batch.columns.items()}
    values |= {name: reference_of(values[name]) for name in (IMAGE, IMAGES) if name in values}
    values |= {name: entries[n] for name, entries in record.rewards.extra.items()}
    return json_text(values)


def _shown_images(record: StepRecord, prompts: Sequence[int]) -> list[list[str] | None]:
    """Of each row's prompt, made once a prompt; None where it shows none."""
    images = record.batch.images
    made = {b: thumbnails(images[b].images) or None for b in set(prompts)} if images else {}
    return [made.get(b) for b in prompts]
