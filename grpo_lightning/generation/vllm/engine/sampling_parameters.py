"""SamplingSettings in vLLM's words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from grpo_lightning.generation.base import SamplingSettings

STRUCTURED = ("regex", "json", "grammar", "choice")


def check_structured_outputs(settings: dict[str, Any]) -> None:
    """Refuses anything but one of regex, json, grammar and choice.

    Raises:
        ValueError: Naming what was found.
    """
    if settings and (len(settings) != 1 or next(iter(settings)) not in STRUCTURED):
        raise ValueError(
            f"model.structured_outputs={settings!r} is not one of {', '.join(STRUCTURED)} with its value. "
            "Give exactly one, such as {regex: '[0-9]+'}."
        )


def common_sampling_parameters(sampling: SamplingSettings, eos_ids: Iterable[int]) -> dict[str, Any]:
    """What vLLM's ``SamplingParams`` and its completions endpoint call these settings, but for n, seed and structure.

    The end-of-sequence ids are passed as stop tokens and vLLM's own are ignored: then exactly they end a completion.
    """
    check_structured_outputs(sampling.structured_outputs or {})
    parameters: dict[str, Any] = {
        "max_tokens": sampling.max_completion_length,
        "temperature": float(sampling.temperature),
        "top_p": float(sampling.top_p),
        "top_k": sampling.top_k,
        "min_p": float(sampling.min_p),
        "repetition_penalty": float(sampling.repetition_penalty),
        "logprobs": 0,  # of the sampled token only
        "ignore_eos": True,
        "stop_token_ids": sorted(eos_ids),
        "skip_special_tokens": False,  # stop strings are looked for in the text with its special tokens
    }
    if sampling.stop:
        parameters |= {"stop": list(sampling.stop), "include_stop_str_in_output": True}
    return parameters


def seed_of_prompt(seed: int) -> int:
    """A seed of 63 bits folded to 31: torch's CPU generator drops the rest. Completion g of a prompt gets seed + g."""
    return (seed ^ (seed >> 31)) & 0x7FFFFFFF


def further_parameters(sampling: SamplingSettings) -> dict[str, Any]:
    """Arguments of ``vllm.SamplingParams`` that all requests of an engine in this process share."""
    return {
        "detokenize": bool(sampling.stop),  # nothing else reads the text
        "flat_logprobs": True,
        "structured_outputs": structured_outputs(sampling.structured_outputs or {}),
    }


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
