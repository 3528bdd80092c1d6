"""Does the context support what the completion claims? Sentence by sentence."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from grpo_lightning.messages import Prompt
from grpo_lightning.rewards.base import Completion, RewardContractError, completion_text
from grpo_lightning.rewards.kinds.local_model_reward import LocalModelReward
from grpo_lightning.rewards.registry import register_reward
from grpo_lightning.rewards.row_columns import column_of
from grpo_lightning.rewards.text.claims import sentences, unsupported_names, unsupported_numbers
from grpo_lightning.rewards.text.extraction import THINK_CLOSE

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_lightning.rewards.kinds.local_model import LocalModel, Tokens

CONTEXT_KEYS = ("context", "documents", "passage", "source")
MAX_SENTENCES = 64
"""Judged of a completion; the rest counts as unsupported, or length alone would buy a better average."""
MAX_CONTEXT_CHARS = 200_000


@register_reward("no_hallucination")
@dataclass
class NoHallucinationReward(LocalModelReward):
    """Support of the completion's sentences by the row's context; range [0, 1], None for a row without context.

    A sentence scores the entailment probability of a natural language inference model (premise: the part of the
    context that supports it best; hypothesis: the sentence). It scores 0 where it holds a number or a name that the
    context does not have: models of this kind overlook exactly those. What stands before ``</think>`` is no claim. The
    score of each sentence and what it lacks are logged as the column ``claims``.

    Args:
        name: What metrics and errors call this reward.
        weight: Factor in the total reward.
        model: NLI model or cross-encoder (sequence classification over pairs), directory or hub name. None checks
            numbers and names only.
        tokenizer: Its tokenizer, where it is not beside the model.
        context_key: Dataset column with the context: a text or a list of texts. By default ``context``, ``documents``,
            ``passage`` or ``source``, whichever is found first.
        entailment_label: Name or index of the model's class for support. Default: the one whose name contains
            ``entail``, or the only one.
        aggregate: ``mean`` over sentences, or the ``min``: one invention spoils the completion.
        check_numbers: Whether a number that the context lacks makes its sentence score 0.
        check_names: The same for names.
        empty_score: Of a completion that claims nothing. 0 by default: else silence would be the best answer.
        device: auto (a CUDA device where there is one), cpu, cuda:1, ...
        dtype: auto, float32, bfloat16 or float16.
        batch_size: Pairs per forward pass.
        max_length: Tokens of a pair. A longer context is read in overlapping parts. Default: what the model can read.
    """

    name: str = "no_hallucination"
    context_key: str | None = None
    entailment_label: str | int | None = None
    aggregate: Literal["mean", "min"] = "mean"
    check_numbers: bool = True
    check_names: bool = True
    empty_score: float = 0.0
    batch_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aggregate not in ("mean", "min") or not 0 <= self.empty_score <= 1:
            raise ValueError(
                f"{self.name}: aggregate={self.aggregate!r} must be mean or min, empty_score={self.empty_score} in [0, 1]."
            )
        if self._local is None and not (self.check_numbers or self.check_names):
            raise ValueError(f"{self.name}: without model, check_numbers and check_names nothing is checked. Set one.")

    def __call__(
        self,
        prompts: list[Prompt],
        completions: list[Completion],
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One float per completion, or None.

        Raises:
            RewardContractError: If no column holds the contexts.
        """
        contexts = [_context(value) for value in columns[self._context_column(columns)]]
        claims = [sentences(completion_text(completion).rpartition(THINK_CLOSE)[2]) for completion in completions]
        judged = [found[:MAX_SENTENCES] if context else [] for found, context in zip(claims, contexts, strict=True)]
        entailed = self._entailment([(c, s) for c, found in zip(contexts, judged, strict=True) for s in found])
        values: list[float | None] = []
        tables: list[str | None] = []
        for context, found, kept in zip(contexts, claims, judged, strict=True):
            lacks = [self._lacking(sentence, context or "") for sentence in kept]
            supports = [next(entailed) for _ in kept]
            scores = [0.0 if lack else support for lack, support in zip(lacks, supports, strict=True)]
            rows = [{"claim": s, "score": round(v, 4), "lacks": k} for s, v, k in zip(kept, scores, lacks, strict=True)]
            tables.append(json.dumps(rows, ensure_ascii=False) if context else None)
            values.append(self._value(scores + [0.0] * (len(found) - len(kept))) if context else None)
        if log_extra is not None:
            log_extra("claims", tables)
        return values

    def _value(self, scores: Sequence[float]) -> float:
        if not scores:
            return self.empty_score
        return min(scores) if self.aggregate == "min" else sum(scores) / len(scores)

    def _lacking(self, sentence: str, context: str) -> list[str]:
        numbers = unsupported_numbers(sentence, context) if self.check_numbers else []
        return numbers + (unsupported_names(sentence, context) if self.check_names else [])

    def check_columns(self, columns: Collection[str]) -> None:
        """Refuses data without a column of contexts."""
        self._context_column(columns)

    def _context_column(self, columns: Collection[str]) -> str:
        return column_of(self, "context_key", "context", CONTEXT_KEYS, columns)

    def _entailment(self, pairs: Sequence[tuple[str | None, str]]) -> Any:
        """Probability for each pair of context and sentence that the first supports the second: an iterator."""
        if self._local is None:
            return iter([1.0] * len(pairs))
        local, label = self._local, self._label(self._local.model.config)
        inputs: list[Tokens] = []
        pair_of: list[int] = []
        for pair, (context, sentence) in enumerate(pairs):
            parts = _pair_tokens(local, context or "", sentence, local.max_length(self.max_length))
            inputs += parts
            pair_of += [pair] * len(parts)

        def probability(model: Any, batch: dict[str, Tensor]) -> Tensor:
            logits = model(**batch).logits.float()
            return logits[:, 0].sigmoid() if logits.shape[1] == 1 else logits.softmax(-1)[:, label]

        best = [0.0] * len(pairs)
        for pair, value in zip(pair_of, local.map(inputs, probability), strict=True):
            best[pair] = max(best[pair], value)
        return iter(best)

    def _label(self, config: Any) -> int:
        names = {str(name): int(index) for index, name in config.id2label.items()}
        if isinstance(self.entailment_label, int) or config.num_labels == 1:
            return self.entailment_label if isinstance(self.entailment_label, int) else 0
        wanted = self.entailment_label
        found = [i for name, i in names.items() if (name == wanted if wanted else "entail" in name.casefold())]
        found = [i for i in found if wanted or "not" not in config.id2label[i].casefold()]
        if len(found) != 1:
            raise RewardContractError(
                f"Reward '{self.name}': model={self.model!r} has the classes {', '.join(names)}; set entailment_label to "
                "the one that means support."
            )
        return found[0]


def _pair_tokens(local: LocalModel, context: str, sentence: str, limit: int) -> list[Tokens]:
    """The context in overlapping parts that fit beside the sentence, each as one pair."""
    tokenizer = local.tokenizer
    claim = tokenizer(sentence, add_special_tokens=False)["input_ids"]
    if len(claim) > limit // 2:  # leave room for the context
        sentence = tokenizer.decode(claim[: limit // 2])
    encoded = tokenizer(
        context,
        sentence,
        truncation="only_first",
        max_length=limit,
        stride=min(limit // 8, 64),
        return_overflowing_tokens=True,
        # Asked for where the model tells premise and hypothesis apart by them: not every saved tokenizer says so.
        return_token_type_ids=getattr(local.model.config, "type_vocab_size", 0) > 1,
    )
    names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
    return [{name: encoded[name][part] for name in names} for part in range(len(encoded["input_ids"]))]


def _context(value: Any) -> str | None:
    if value is None:
        return None
    text = "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text[:MAX_CONTEXT_CHARS] or None
