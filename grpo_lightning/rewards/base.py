"""What a reward is: a named, weighted callable over a batch of completions."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo_lightning.errors import ExplainedError
from grpo_lightning.messages import Message, Prompt

Completion = str | list[Message]
"""Plain text, or the assistant's messages where the prompt is a conversation."""

RewardValues = Sequence[float | Sequence[float | None] | None]
"""One number per completion, or for a completion a list with one entry per token or per turn of the policy."""

RESERVED = frozenset(
    {"prompts", "completions", "completions_ids", "completion_ids", "trainer_state"}
    | {"log_extra", "log_metric", "log_error"}
)
"""Argument names that a dataset column must not have."""

SCOPES = ("completion", "group", "batch")
ISOLATIONS = ("thread", "process", "main")
CALLING = ("scope", "batched", "concurrency", "isolation", "call_time_limit")
"""Attributes that say how a reward may be called."""

ON_REQUEST = ("group", "logprobs", "environments", "turn_rewards", "final_rewards")
"""Arguments for rewards that name them; not among ``**kwargs``, which in TRL do not hold them, but for ``environments``."""

OURS_ALONE = ("completions_ids", "log_error")
"""Arguments that TRL does not have: a function gets them by name, and its ``**kwargs`` hold what they hold there."""

UNNAMED = "base_reward"
"""The name of a reward that was given none; replaced by the registered name or the class name when a reward is made from a config."""


class RewardContractError(ExplainedError, ValueError):
    """A reward or its data break the contract (wrong count, NaN, missing column). Stops the run: no retry mends it."""


@dataclass(frozen=True)
class RewardState:
    """Where training stands, for curricula. Attribute names as in transformers' ``TrainerState``."""

    global_step: int = 0
    """Optimizer steps so far."""
    max_steps: int = -1
    """Optimizer steps of the whole run; -1 where unknown: without an end, or with data of unknown length."""
    epoch: float = 0.0
    """Passes over the training data so far, with the part of the present one: 1.5 in the middle of the second."""
    max_completion_length: int | None = None
    """Tokens; the run's ``model.max_completion_length``, the default limit of length rewards."""
    model_name_or_path: str | None = None
    """Where the run's first weights are, which are the frozen reference."""
    num_train_epochs: int = 0
    """Passes over the training data of the whole run, the last one perhaps in part; 0 where unknown."""
    log_history: list[dict[str, float]] = field(default_factory=list)
    """The metrics of the latest GRPO steps, the last one last, each with ``step`` (optimizer steps) and ``epoch``."""
    is_local_process_zero: bool = True
    """On the first process of a node."""
    is_world_process_zero: bool = True
    """On the first process of the run."""


@dataclass
class BaseRewardFunction(ABC):
    """Base class for rewards: settings as fields, one pure ``__call__``.

    Five attributes, set on the class, say how the runner may call it:

    - ``scope``: ``"batch"`` (as in TRL: one call with all completions of the step), ``"group"`` (calls with all G
      completions of a prompt, never with fewer: for rewards that compare them) or ``"completion"`` (each stands alone).
      The last two start while other completions are still being generated.
    - ``batched``: With scope completion, score a whole group per call: cheaper for quick rewards and for models. By
      default each completion has a call of its own, and a slow one delays no other.
    - ``concurrency``: Calls of this reward that run at the same time; 0 for as many as the runner allows. 1 for a
      reward that is not thread-safe.
    - ``isolation``: ``"thread"``, or ``"process"`` for graders that use much processor time, may hang or may crash:
      only a process can be stopped. ``"main"`` calls it in the main thread, as TRL does, once all completions are
      there; a reward whose code or whose calls show that it works nowhere else is called there anyway.
    - ``call_time_limit``: Seconds per call; 0 for the runner's.

    ``__call__`` may be an ``async def``. It may also name any of ``log_extra(column, values)`` (one value per
    completion, for the table of samples), ``log_metric(name, value)`` (averaged into the logged metrics),
    ``log_error(row, message)`` (a completion that could not be scored: return None for it as well), ``group`` (a number
    for each completion, the same for those of one prompt) and ``logprobs`` (for each completion those of its tokens, nats,
    as the sampler gave them; such a reward is called once all completions are there). Rollouts of several turns also
    have ``environments`` (the instance of each completion), ``turn_rewards`` (the environment's reward for each turn) and
    ``final_rewards`` (its ``get_reward()``, or None). A dataset column of such a name goes first.

    Args:
        name: What metrics and errors call this reward.
        weight: Factor in the total reward; where it is the default, ``model.reward_weights`` sets it.

    Example:
        >>> class Short(BaseRewardFunction):
        ...     def __call__(self, prompts, completions, **columns):
        ...         return [1.0 if len(completion_text(completion)) < 10 else 0.0 for completion in completions]
        >>> Short()(prompts=["p", "p"], completions=["yes", "a long answer"])
        [1.0, 0.0]
    """

    name: str = UNNAMED
    weight: float = 1.0

    # Without annotation, so that these are attributes of the class and no arguments of the constructor.
    scope = "batch"
    batched = False
    concurrency = 0
    isolation = "thread"
    call_time_limit = 0.0

    @abstractmethod
    def __call__(
        self, prompts: list[Prompt], completions: list[Completion], **columns: Any
    ) -> RewardValues | Awaitable[RewardValues | None] | None:
        """One float or None per completion, or None where the reward does not apply to this batch.

        It is called with names, as TRL does, so a reward names what it reads and leaves the rest to ``**columns``.

        Args:
            prompts: One per completion, text or conversation as the dataset has it.
            completions: Text, or a list with the assistant's messages.
            columns: The dataset's, a list with one entry per completion each; ``completion_ids``, the completions' token
                ids, also as ``completions_ids``; ``trainer_state`` with ``global_step``, ``max_steps`` and ``epoch``; and the loggers.
        """

    @property
    def processing_class(self) -> Any | None:
        """The tokenizer of a model-based reward; None for all others."""
        return None

    @property
    def is_async(self) -> bool:
        """True where ``__call__`` returns a coroutine and belongs on an event loop."""
        return inspect.iscoroutinefunction(type(self).__call__)

    def check_columns(self, columns: Collection[str]) -> None:
        """Refuses data that lacks a column that this reward needs, by the arguments that it names; before weights load.

        Args:
            columns: Names of the dataset's.

        Raises:
            RewardContractError: Naming the column.
        """
        accepted_arguments(self.__call__, on_offer(self, columns), self.name)

    def close(self) -> None:  # noqa: B027 - nothing to release by default
        """Releases processes, sessions or models. The reward may be called again afterwards."""


def dataset_columns(given: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of the data among all that a reward is called with.

    Example:
        >>> dataset_columns({"trainer_state": RewardState(), "answer": ["4"]})
        {'answer': ['4']}
    """
    return {name: column for name, column in given.items() if name not in RESERVED}


def completion_text(completion: Completion) -> str:
    """The text that the policy wrote: a string as it is, or the contents of the assistant's messages joined.

    Example:
        >>> completion_text([{"role": "assistant", "content": "4"}, {"role": "tool", "content": "9"}])
        '4'
    """
    if isinstance(completion, str):
        return completion
    texts: list[str] = []
    for message in completion:
        if message.get("role", "assistant") != "assistant":
            continue
        content = message.get("content") or ""  # None in a message that only calls tools
        parts = [{"text": content}] if isinstance(content, str) else content
        texts.extend(str(part.get("text", "")) for part in parts)
    return "".join(texts)


def written(reward: Any) -> Any:
    """The reward, or the function or object that it wraps: what a user wrote, be it empty or false."""
    function = getattr(reward, "function", None)
    return reward if function is None else function


def asks_for(reward: Any, argument: str) -> bool:
    """Whether a reward, or the function that it wraps, names this argument.

    Example:
        >>> asks_for(lambda completions, group: None, "group"), asks_for(lambda **kwargs: None, "group")
        (True, False)
    """
    return argument in inspect.signature(written(reward)).parameters


def on_offer(reward: BaseRewardFunction, columns: Iterable[str]) -> dict[str, None]:
    """The names of all arguments that a reward may have with these columns."""
    return dict.fromkeys([*RESERVED, *(name for name in ON_REQUEST if asks_for(reward, name)), *columns])


def accepted_arguments(function: Callable[..., Any], arguments: Mapping[str, Any], reward: str) -> dict[str, Any]:
    """The arguments that ``function`` takes: all of them with ``**kwargs``, else those that it names.

    Args:
        function: A reward's function or ``__call__``.
        arguments: Everything on offer.
        reward: The reward's name, for the error.

    Raises:
        RewardContractError: If the function needs an argument that is not on offer, or takes one by its place alone.

    Example:
        >>> on_offer = {"prompts": ["p"], "completions": ["a"], "answer": ["b"]}
        >>> accepted_arguments(lambda completions, answer: None, on_offer, reward="mine")
        {'completions': ['a'], 'answer': ['b']}
    """
    parameters = inspect.signature(function).parameters.values()
    by_place = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    if by_place:
        raise RewardContractError(
            f"Reward '{reward}' takes {' and '.join(by_place)} by place alone, and rewards are called by name, as TRL does. "
            "Take the / out of its arguments."
        )
    by_keyword = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    missing = [name for name, p in by_keyword.items() if p.default is p.empty and name not in arguments]
    if missing:
        columns = ", ".join(sorted(set(arguments) - RESERVED)) or "no further columns"
        raise RewardContractError(
            f"Reward '{reward}' needs the column {' and '.join(missing)}, but the data has {columns}. "
            "Rename the argument, give it a default, or add the column to the dataset."
        )
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(arguments)
    return {name: value for name, value in arguments.items() if name in by_keyword}
