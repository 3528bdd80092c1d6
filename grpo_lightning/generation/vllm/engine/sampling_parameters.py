"""Sampling parameters of an engine in this process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from grpo_lightning.generation.base import SamplingSettings


def further_parameters(sampling: SamplingSettings) -> dict[str, Any]:
    """Arguments of ``vllm.SamplingParams`` that all requests of an engine in this process share."""
    return {
        "detokenize": bool(sampling.stop),  # nothing else reads the text
        "flat_logprobs": True,
        "structured_outputs": structured_outputs(sampling.structured_outputs or {}),
    }


def sampling_params(parameters: dict[str, Any], further: dict[str, Any]) -> Any:
    """The ``vllm.SamplingParams`` of one request, which hands over what is new since its last output."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling = SamplingParams(**parameters, **further, output_kind=RequestOutputKind.DELTA)
    sampling.stop_token_ids = TokenIds(sampling.stop_token_ids)
    sampling.skip_clone = True  # ours alone; a deep copy would make a plain list of the ids again
    return sampling


def structured_outputs(settings: dict[str, Any]) -> Any:
    """The constraint of vLLM for one of regex, json, grammar or choice; None for an empty dict."""
    if not settings:
        return None
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(**settings)


class TokenIds(list[int]):
    """A list whose ``in`` looks up a hash: vLLM asks at every token of every completion whether it is a stop token.

    With the 690 ids that end a completion of the benchmarks' random model, the plain list took 10 microseconds a token.

    Example:
        >>> ids = TokenIds([7, 9])
        >>> 9 in ids, 8 in ids
        (True, False)
    """

    def __init__(self, ids: Iterable[int] = ()) -> None:
        super().__init__(ids)
        self._set = frozenset(self)

    def __contains__(self, token: object) -> bool:
        return token in self._set

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenIds, (list(self),)
