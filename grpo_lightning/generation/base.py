"""What every generator does: token ids in, ragged rollouts out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from grpo_lightning.errors import ExplainedError
from grpo_lightning.types import Rollouts

OnCompleted = Callable[[int, list[int]], None]
"""Called as soon as completion n has ended, with n (prompt-major: prompt n // G) and its token ids."""


class WeightsLost(ExplainedError, RuntimeError):
    """The weights that a batch was sampled with are gone from the sampler, and the policy has moved on from them."""


@dataclass(frozen=True)
class SamplingSettings:
    """How completions are drawn. Names as in TRL.

    Args:
        num_generations: G, completions per prompt; advantages compare them with each other, so at least 2 in training.
        max_completion_length: Tokens after which a completion is cut off.
        temperature: Divides the logits when sampling and when scoring, so that the first ratio is 1; 0 is greedy decoding.
        top_p: Sample from the smallest set of tokens that holds this probability; 1 for all.
        top_k: Sample from the k most likely tokens; 0 for all.
        min_p: Never sample tokens less likely than min_p times the most likely one; 0 for all.
        repetition_penalty: Above 1, tokens of the prompt and of the completion so far become less likely
            (arXiv:1909.05858).
        stop: Strings that end a completion, after the token with which its text first contains one; they stay part of it.
        structured_outputs: One of regex, json, grammar or choice for the generator, in vLLM's form; refused by those
            without it.
    """

    num_generations: int = 8
    max_completion_length: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: Sequence[str] | None = ()
    structured_outputs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or ()
        object.__setattr__(self, "stop", tuple(stop))
        object.__setattr__(self, "structured_outputs", self.structured_outputs or {})

        def require(holds: bool, name: str, rule: str) -> None:
            if not holds:
                raise ValueError(f"model.{name}={getattr(self, name)!r} cannot be sampled with: choose {rule}.")

        require(self.num_generations >= 1, "num_generations", "at least 1 completion per prompt")
        require(self.max_completion_length >= 1, "max_completion_length", "at least 1 token")
        require(0 <= self.temperature < math.inf, "temperature", "a number of 0 (greedy) or more")
        require(0 < self.top_p <= 1, "top_p", "a number above 0 and at most 1")
        require(self.top_k >= 0, "top_k", "0 (off) or more")
        require(0 <= self.min_p <= 1, "min_p", "a number between 0 and 1")
        require(0 < self.repetition_penalty < math.inf, "repetition_penalty", "a number above 0")
        require("" not in (self.stop or ()), "stop", 'no "", which every text contains')

    def changed_since(self, saved: Mapping[str, Any]) -> str:
        """The settings that a checkpoint's sampling had otherwise, as a config names them; empty where there are none.

        Example:
            >>> SamplingSettings(top_p=0.9, top_k=5).changed_since({"top_p": 1.0, "top_k": 5, "min_p": 0.1})
            'model.top_p, model.min_p'
        """
        now = asdict(self)
        return ", ".join(f"model.{name}" for name, value in saved.items() if value != now.get(name))

    @property
    def reshapes_distribution(self) -> bool:
        """True where tokens come from another distribution than softmax(logits / temperature)."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0 or self.repetition_penalty != 1


class Generator(ABC):
    """Samples completions from the current policy.

    A generator is made from a config before training, started once the policy's weights exist, and stopped at the end.
    It is not a submodule of the LightningModule: it is neither wrapped, moved nor saved.
    """

    supports_async_rollouts: ClassVar[bool] = False
    """True where ``generate`` may run in a thread while the policy is trained (model.async_rollouts): it then reads
    neither the policy nor a training device, takes part in no collective, and samples as a whole from the weights of
    the last ``update_weights``, or raises :class:`WeightsLost`."""

    max_model_length: int | None = None
    """Tokens of a prompt with its completion that it admits; None for all positions of the model."""

    tensor_parallel_size: int = 1
    """Ranks that sample together: above 1, all of them call ``generate`` or none, without prompts if need be."""

    longest_wait: float = 0.0
    """Seconds that a call of ``generate`` (or a turn of a rollout) may take by right where it waits for something outside of this
    process: so much longer the other ranks wait for this one."""

    def check_sampling(self, sampling: SamplingSettings) -> None:  # noqa: B027 - most can do all of it
        """Refuses settings that this generator cannot sample with; called before weights load.

        Raises:
            ValueError: With a way out.
        """

    def check_model(self, config: PretrainedConfig) -> None:  # noqa: B027 - most take what the policy is
        """Refuses a model that this generator cannot sample from as it is trained.

        Called before weights load, in runs that train on text alone. A model that is shown images (model.vision_tower) is
        checked by ``SamplesWithImages.see_images`` instead.

        Args:
            config: Of the model as it was published. Of one with a vision tower, the language part alone is trained.

        Raises:
            ValueError: With a way out.
        """

    def record_routed_experts(self, config: PretrainedConfig) -> None:
        """Makes rollouts have ``routed_experts`` (model.router_replay); called before weights load.

        Args:
            config: Of the model.

        Raises:
            ValueError: If this generator does not know them.
        """
        raise ValueError(
            f"model.router_replay=true needs the experts that the sampler chose, and {type(self).__name__} does not give them. "
            "Use VLLMColocate on a GPU with vLLM 0.32, or TransformersGenerator as model.generator, or router_replay=false."
        )

    def expect(self) -> None:  # noqa: B027 - most need nothing that could be missing
        """Makes sure that what ``start`` will need is there; called on every rank before weights load.

        Raises:
            TimeoutError: If it is not.
        """

    @abstractmethod
    def start(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model_name_or_path: str) -> None:
        """Gets ready to sample from ``policy``; called on every rank, once, before the first ``generate``."""

    @abstractmethod
    def update_weights(self, policy: PreTrainedModel) -> dict[str, float]:
        """Makes the next ``generate`` sample from ``policy`` as it is now.

        Returns:
            Metrics of the transfer for the log (seconds, bytes), or nothing where no transfer is needed.
        """

    @abstractmethod
    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: SamplingSettings,
        seeds: Sequence[int],
        on_completed: OnCompleted | None = None,
    ) -> Rollouts:
        """G completions for each of B prompts, in prompt-major order (``group`` is 0 * G, 1 * G, ...).

        Args:
            prompt_ids: B lists of token ids.
            sampling: How to draw.
            seeds: B integers in [0, 2**63); the G completions of a prompt depend on its seed, not on its neighbours.
            on_completed: Called as completions end, so that scoring can start early; from this thread.
        """

    def start_note(self) -> str:
        """What else to say of the time that ``start`` took, in a few words."""
        return ""

    def interrupt(self) -> None:  # noqa: B027 - most generators run in the caller's thread
        """Makes a ``generate`` that runs in another thread end by an error, soon; after it comes ``stop``."""

    def rest(self) -> None:  # noqa: B027 - most hold nothing that training could use
        """Gives back device memory as every ``generate`` does at its end, while the policy is trained."""

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: what a resumed run needs to sample as this one does. Nothing by default."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - nothing by default
        """Restores what ``state_dict`` gave, perhaps of another generator; called before ``start``."""

    def stop(self) -> None:  # noqa: B027 - nothing to release by default
        """Releases engines and memory; called at the end of fit and after an error."""
