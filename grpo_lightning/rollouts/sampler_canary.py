"""The canary: is what samples still the policy that is trained?"""

from __future__ import annotations

import math
from collections.abc import Mapping

from grpo_lightning.errors import ExplainedError
from grpo_lightning.generation.base import SamplingSettings

MISMATCH = "sampling/sampling_logp_difference/mean"
"""The trainer's minus the sampler's logprob of the same token: mean size over the trained tokens of all ranks, nats."""

UNREPORTED = "sampling/unreported_tokens"
"""Trained tokens whose logprob the sampler gave as NaN: neither compared nor corrected."""
MAX_SILENT_STEPS = 3
"""Steps that trained tokens without a single logprob, after which a run stops."""


class StaleSamplerError(ExplainedError, RuntimeError):
    """Completions were sampled from other weights than those that are trained."""


class SamplerCanary:
    """Stops a run whose completions do not come from the policy.

    A sync that fails silently is the costliest bug of such a run: it learns nothing, or drifts, and every curve looks
    plausible. The check is free: the sampler's logprobs came with the tokens, and the trainer's are those of the loss.
    At equal weights they differ by rounding: about 1e-5 in float32, 0.01 to 0.06 in bfloat16 with vLLM.

    Args:
        max_mismatch: Largest mean difference in nats per token; None turns the check off.
        staleness: The setting because of which sampled tokens come from weights of steps before, in the words of the config;
            empty where none do. What these steps changed then counts too: a sampler that is stuck drifts past any limit, one that follows stays at rounding plus a step's change.
        watches_silence: Stop where the sampler reports no logprob of any trained token for three steps, also where it and
            the trainer differ by design.
    """

    def __init__(self, max_mismatch: float | None, staleness: str = "", watches_silence: bool = True) -> None:
        if max_mismatch is not None and not max_mismatch > 0:
            raise ValueError(
                f"model.max_sampler_mismatch={max_mismatch} would stop every run: rounding alone gives 0.00001 in float32 "
                "and 0.01 to 0.06 in bfloat16. Give a number of nats such as 0.1, or null for no check."
            )
        self.max_mismatch = max_mismatch
        self.staleness = staleness
        self.watches_silence = watches_silence
        self.last_good_step: int | None = None
        self.silent_steps = 0

    def check(self, metrics: Mapping[str, float], step: int) -> None:
        """Compares the step's mean difference with the limit.

        Args:
            metrics: Of the step, the same on every rank; without the difference where no token was trained.
            step: Number of the step, for the message.

        Raises:
            StaleSamplerError: Past the limit, if the difference is not a number, or if nothing has been reported for too long.

        Example:
            >>> SamplerCanary(0.1).check({"sampling/sampling_logp_difference/mean": 2.5}, step=7)
            Traceback (most recent call last):
            ...
            grpo_lightning.rollouts.sampler_canary.StaleSamplerError: Step 7: ...
        """
        mismatch = metrics.get(MISMATCH)
        if mismatch is not None:
            self.silent_steps = 0
        elif metrics.get(UNREPORTED, 0.0) > 0:  # and not where no token was trained
            self.silent_steps += 1
            self._check_silence(step)
        if self.max_mismatch is None or mismatch is None:
            return
        if mismatch <= self.max_mismatch:
            self.last_good_step = step
            return
        raise StaleSamplerError(
            f"Step {step}: the logprobs of the sampled tokens differ by {mismatch:.3g} nats on average between the "
            f"sampler and the trainer, more than model.max_sampler_mismatch={self.max_mismatch}. {self._who()} "
            "No checkpoint of this step was written."
        )

    def _check_silence(self, step: int) -> None:
        """Stops a run whose sampler reports no logprob that is a number, step after step: nothing watches it then."""
        if self.watches_silence and self.silent_steps >= MAX_SILENT_STEPS:
            raise StaleSamplerError(
                f"Step {step}: for {self.silent_steps} steps the sampler has reported NaN in place of the logprobs of "
                "its tokens, so neither a lost update can be seen nor the importance correction made. Let model.generator "
                "report them, or set model.max_sampler_mismatch=null to go on without."
            )

    def _who(self) -> str:
        """Which side is wrong, from whether the two ever agreed."""
        if self.last_good_step is None:
            return (
                "They never agreed, so the sampler runs another model than the trainer: compare its weights, dtype and "
                "quantization (model.generator.init_args) with model.model_name_or_path."
            )
        if self.staleness:
            return (
                f"They agreed at step {self.last_good_step}. With {self.staleness} tokens come from the policy of steps "
                "before: either these changed it by so much (lower the learning rate, or raise model.max_sampler_mismatch if "
                "they are meant to), or the sampler missed an update."
            )
        return (
            f"They agreed at step {self.last_good_step}, so the sampler's weights are stale: it missed an update. The "
            "trainer's weights are the new ones."
        )


def make_canary(
    max_mismatch: float | None, sampling: SamplingSettings, replays_groups: bool, staleness: str
) -> SamplerCanary:
    """The canary of a run, without a limit where sampler and trainer differ by design.

    top_p, top_k, min_p, repetition penalties and structured outputs renormalise what the sampler reports, and replayed
    groups were sampled by an older policy.

    Args:
        max_mismatch: model.max_sampler_mismatch.
        sampling: How training samples.
        replays_groups: Whether groups of earlier steps are trained on again.
        staleness: See ``SamplerCanary``.
    """
    differs = sampling.reshapes_distribution or bool(sampling.structured_outputs) or replays_groups
    is_limit = max_mismatch is not None and max_mismatch != math.inf and not differs
    return SamplerCanary(max_mismatch if is_limit else None, staleness, watches_silence=max_mismatch is not None)
