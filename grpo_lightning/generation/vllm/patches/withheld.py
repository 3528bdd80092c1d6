"""Tokens of a completion that an engine keeps back until it ends, and how they reach who reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass
class Withheld:
    """What was sampled since a completion was last handed over."""

    wants_logprobs: bool
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """One a token if wanted, as are their ranks; else none."""
    ranks: list[int] = field(default_factory=list)


class HandsOver(Protocol):
    """The way from the scheduler to the reader."""

    def can_wait(self, sampling: Any) -> bool:
        """Whether the reader needs no token of a request before its last.

        Args:
            sampling: The request's ``vllm.SamplingParams``.
        """
        ...

    def give(self, withheld: Withheld, output: Any) -> None:
        """Puts what was withheld before what vLLM hands over now.

        Args:
            withheld: At least one token.
            output: vLLM's ``EngineCoreOutput``.
        """
        ...


class ToProcessor:
    """In the process of the reader: logprobs go to where vLLM collects them, without an object for each.

    Args:
        processor: vLLM's, of outputs.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def can_wait(self, sampling: Any) -> bool:
        """Where no text is watched, and logprobs are collected in flat lists."""
        return not sampling.detokenize and (sampling.num_logprobs is None or sampling.flat_logprobs)

    def give(self, withheld: Withheld, output: Any) -> None:
        """What ``LogprobsProcessor`` does token by token."""
        output.new_token_ids = withheld.tokens + output.new_token_ids
        if not withheld.wants_logprobs or output.request_id not in self.processor.request_states:
            return
        processor = self.processor.request_states[output.request_id].logprobs_processor
        flat, count = processor.logprobs, len(withheld.tokens)
        start = len(flat.logprobs)
        flat.start_indices.extend(range(start, start + count))
        flat.end_indices.extend(range(start + 1, start + count + 1))
        flat.token_ids.extend(withheld.tokens)
        flat.logprobs.extend(withheld.logprobs)
        flat.ranks.extend(withheld.ranks)
        flat.decoded_tokens.extend([None] * count)
        processor.cumulative_logprob += sum(withheld.logprobs)


class ToServer:
    """From the engine's process of a server to the one that answers: everything in one message, when a completion ends."""

    def can_wait(self, sampling: Any) -> bool:
        """Where the answer is not streamed, and no text ends it."""
        from vllm.sampling_params import RequestOutputKind

        return sampling.output_kind is RequestOutputKind.FINAL_ONLY and not sampling.stop

    def give(self, withheld: Withheld, output: Any) -> None:
        """As vLLM's own output after several tokens in one step."""
        output.new_token_ids = withheld.tokens + output.new_token_ids
        if withheld.wants_logprobs:
            output.new_logprobs = _joined(withheld, output.new_logprobs)


def _joined(withheld: Withheld, after: Any) -> Any:
    """Logprobs of the withheld tokens and of those after them, if there are any, as vLLM's ``LogprobsLists``.

    A step has columns for the one of its requests that wants most logprobs. Here only the first counts: the sampled token's.
    """
    import numpy as np
    from vllm.v1.outputs import LogprobsLists

    dtypes = (np.int32, np.float32, np.int32) if after is None else tuple(part.dtype for part in after[:3])
    tokens = np.array(withheld.tokens, dtypes[0])[:, None]
    logprobs = np.array(withheld.logprobs, dtypes[1])[:, None]
    ranks = np.array(withheld.ranks, dtypes[2])
    if after is None:
        return LogprobsLists(tokens, logprobs, ranks)
    last = after[0][:, :1], after[1][:, :1], after[2]
    return LogprobsLists(*map(np.concatenate, zip((tokens, logprobs, ranks), last, strict=True)))
