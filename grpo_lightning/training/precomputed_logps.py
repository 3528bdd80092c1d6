"""Reference logprobs of written completions, computed once before training: no reference is in memory then."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from grpo_lightning.errors import ExplainedError
from grpo_lightning.types import Rollouts


class UnknownCompletionError(ExplainedError, KeyError):
    """A completion that the table was not made for."""

    __str__ = Exception.__str__


class NoLogpError(ExplainedError, ValueError):
    """A number in the table that is none: every loss with it would be NaN."""


class PrecomputedLogps:
    """A table of numbers by the tokens of prompt and completion, whatever dataset or order they come in."""

    def __init__(self) -> None:
        self.table: dict[int, float] = {}

    def add(self, rollouts: Rollouts, logps: Tensor) -> None:
        """Keeps the ``(N,)`` sums of logprobs of these completions.

        Raises:
            NoLogpError: If one of them is not finite.
        """
        wrong = (~logps.isfinite()).nonzero()[:, 0].tolist()
        if wrong:
            prompt, completion = rollouts.prompts()[int(rollouts.group[wrong[0]])], rollouts.completions()[wrong[0]]
            raise NoLogpError(
                f"model.precompute_ref_log_probs=true: {len(wrong)} of {len(logps)} completions have no finite logprob under the "
                f"reference, the first with {logps[wrong[0]]:.3f}, of {len(prompt)} and {len(completion)} tokens. Check that the "
                "weights of model.model_name_or_path are whole (chat with it), and trainer.precision."
            )
        self.table.update(zip(keys(rollouts), logps.tolist(), strict=True))

    def of(self, rollouts: Rollouts) -> Tensor:
        """``(N,)`` nats, on the CPU.

        Raises:
            UnknownCompletionError: If one of them is not in the table.
        """
        try:
            return torch.tensor([self.table[key] for key in keys(rollouts)])
        except KeyError as error:
            raise UnknownCompletionError(
                "model.precompute_ref_log_probs=true: a completion of the data was not there when the run started, and the "
                "reference is gone. Resume with the same data, or start a run without the setting."
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """The table, as two tensors."""
        return {
            "keys": torch.tensor(list(self.table), dtype=torch.int64),
            "logps": torch.tensor(list(self.table.values()), dtype=torch.float64),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores it.

        Raises:
            NoLogpError: If a number is not finite.
        """
        if not bool(state["logps"].isfinite().all()):
            raise NoLogpError(
                "The checkpoint's precomputed_logps hold NaN or infinity. Resume from an earlier one, or start a run anew."
            )
        self.table = dict(zip(state["keys"].tolist(), state["logps"].tolist(), strict=True))


def keys(rollouts: Rollouts) -> list[int]:
    """A number for each completion with its prompt."""
    prompts = [prompt.numpy().tobytes() for prompt in rollouts.prompts()]
    pairs = zip(rollouts.completions(), rollouts.group.tolist(), strict=True)
    return [_number(prompts[group], completion.numpy().tobytes()) for completion, group in pairs]


def _number(prompt: bytes, completion: bytes) -> int:
    digest = hashlib.blake2b(len(prompt).to_bytes(8, "little") + prompt + completion, digest_size=8)
    return int.from_bytes(digest.digest(), "little", signed=True)
