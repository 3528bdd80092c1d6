"""Is the completion JSON, of the shape that was asked for?"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from grpo_lightning.rewards.base import RewardContractError
from grpo_lightning.rewards.completion_reward import CompletionReward
from grpo_lightning.rewards.registry import register_reward
from grpo_lightning.rewards.text.extraction import strict_answer

MAX_CHARS = 100_000
"""Longer texts score 0 unread."""
FENCE = "```"


@register_reward("json_schema")
@dataclass
class JSONSchemaReward(CompletionReward):
    """1.0 where the completion holds JSON that fits the schema, ``parsed_score`` where it is only JSON, else 0.0.

    JSON is read strictly: no NaN, no key twice in an object, nothing after it.

    Args:
        name: What metrics and errors call this reward.
        weight: Factor in the total reward.
        schema: A JSON schema (any draft; 2020-12 where it does not say).
        schema_file: Path of a file with it, instead.
        schema_key: Dataset column with the schema of each row, as an object or as text, instead.
        source: Where the JSON stands: the ``whole`` completion, the last code ``fence`` (the whole where there is
            none), or the one ``answer`` tag.
        parsed_score: Reward of JSON that does not fit, in [0, 1].

    Example:
        >>> reward = JSONSchemaReward(schema={"type": "object", "required": ["x"]}, parsed_score=0.2)
        >>> reward(prompts=["p"] * 3, completions=['{"x": 1}', '{"y": 1}', '{"x": '])
        [1.0, 0.2, 0.0]
    """

    name: str = "json_schema"
    schema: dict[str, Any] | None = None
    schema_file: str | None = None
    schema_key: str | None = None
    source: Literal["whole", "fence", "answer"] = "whole"
    parsed_score: float = 0.0
    _validators: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if sum(setting is not None for setting in (self.schema, self.schema_file, self.schema_key)) != 1:
            raise ValueError(f"{self.name}: set exactly one of schema, schema_file and schema_key.")
        if self.source not in ("whole", "fence", "answer") or not 0 <= self.parsed_score <= 1:
            raise ValueError(
                f"{self.name}: source={self.source!r} must be whole, fence or answer, and parsed_score="
                f"{self.parsed_score} in [0, 1]."
            )
        if self.schema_file is not None:
            self.schema = json.loads(Path(self.schema_file).read_text(encoding="utf-8"))
        if self.schema is not None:
            self._validator(self.schema)

    def score(self, completion: str, **row: Any) -> float | None:
        """1.0, ``parsed_score`` or 0.0; None for a row without a schema.

        Raises:
            RewardContractError: If the column is missing or holds something else than a schema.
        """
        schema = self.of_row("schema", row)
        if schema is None:
            return None
        validator = self._validator(schema)
        try:
            value = strict_json(self._source(completion))
            return 1.0 if validator.is_valid(value) else self.parsed_score
        except (ValueError, RecursionError):
            return 0.0

    def _source(self, text: str) -> str:
        if self.source == "answer":
            return strict_answer(text) or ""
        return last_fence(text) if self.source == "fence" else text

    def _validator(self, schema: Any) -> Any:
        import jsonschema  # type: ignore[import-untyped]  # its types are a package of their own

        key = schema if isinstance(schema, str) else json.dumps(schema, sort_keys=True)
        if key not in self._validators:
            try:
                schema = json.loads(schema) if isinstance(schema, str) else schema
                kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
                kind.check_schema(schema)
            except (ValueError, jsonschema.SchemaError) as error:
                raise RewardContractError(f"Reward '{self.name}': {key[:200]} is no JSON schema: {error}") from error
            self._validators[key] = kind(schema)
        return self._validators[key]


def strict_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: If it is not JSON, holds NaN or Infinity, names a key twice, or is too long to be looked at.
        RecursionError: If it is nested thousands deep.

    Example:
        >>> strict_json('{"a": [1, null]}')
        {'a': [1, None]}
    """
    if len(text) > MAX_CHARS:
        raise ValueError(f"{len(text)} characters")
    return json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)


def last_fence(text: str) -> str:
    """The content of the last complete code fence, or all of the text where there is none."""
    parts = text.split(FENCE)
    if len(parts) < 3:
        return text
    content = parts[-2] if len(parts) % 2 else parts[-3]
    first, newline, rest = content.partition("\n")
    return rest if newline and not first.strip().strip("abcdefghijklmnopqrstuvwxyz0123456789+-#_").strip() else content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
