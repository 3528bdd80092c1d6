"""What one call of a reward sees: its rows, as the arguments that the reward asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo_lightning.messages import Conversation, Prompt
from grpo_lightning.rewards.base import (
    RESERVED,
    BaseRewardFunction,
    Completion,
    RewardContractError,
    RewardState,
    accepted_arguments,
    asks_for,
)
from grpo_lightning.rewards.runtime.outcome import Loggers, Outcome


@dataclass(frozen=True)
class CallRows:
    """The completions that a call sees, with all that rewards may know about them."""

    prompts: list[Prompt]
    completions: list[Completion]
    completions_ids: list[list[int]]
    columns: dict[str, list[Any]]
    state: RewardState
    group: list[int] = field(default_factory=list)
    """The prompt of each; empty for one prompt."""
    logprobs: list[list[float]] | None = None
    """Of each completion those of its tokens; None where no sampler is known."""
    conversations: list[Conversation | None] = field(default_factory=list)
    """Of each completion what happened in its turns; empty or None for completions of one turn."""

    def __post_init__(self) -> None:
        sizes = {"prompts": len(self.prompts), "completions_ids": len(self.completions_ids)}
        sizes |= {name: len(values) for name, values in self.columns.items()}
        sizes |= {"entries of group": len(self.group)} if self.group else {}
        sizes |= {"logprobs": len(self.logprobs)} if self.logprobs is not None else {}
        wrong = ", ".join(f"{size} {name}" for name, size in sizes.items() if size != len(self))
        if wrong:
            raise RewardContractError(f"There are {len(self)} completions, but {wrong}: each needs one entry.")
        taken = ", ".join(sorted(RESERVED & set(self.columns)))
        if taken:
            raise RewardContractError(f"The dataset has columns named like reward arguments: {taken}. Rename them.")

    @classmethod
    def to_come(
        cls, prompts: Sequence[Prompt], group: Sequence[int], columns: Mapping[str, Sequence[Any]], state: RewardState
    ) -> CallRows:
        """Rows whose completions have not arrived yet."""
        ids: list[list[int]] = [[] for _ in prompts]
        lists = {name: list(values) for name, values in columns.items()}
        return cls(list(prompts), [""] * len(ids), ids, lists, state, list(group), conversations=[None] * len(ids))

    def __len__(self) -> int:
        return len(self.completions)

    def take(self, rows: Sequence[int]) -> CallRows:
        """These completions alone."""

        def chosen(values: Sequence[Any]) -> list[Any]:
            return [values[row] for row in rows]

        columns = {name: chosen(values) for name, values in self.columns.items()}
        of_each = (chosen(self.prompts), chosen(self.completions), chosen(self.completions_ids))
        group, logprobs = self.group and chosen(self.group), self.logprobs and chosen(self.logprobs)
        return CallRows(
            *of_each, columns, self.state, group, logprobs, self.conversations and chosen(self.conversations)
        )

    def arguments(self) -> dict[str, Any]:
        """Fresh lists for every call: a reward that sorts its arguments in place must not disturb the next one."""
        return {
            "prompts": list(self.prompts),
            "completions": list(self.completions),
            "completions_ids": list(self.completions_ids),
            "completion_ids": list(self.completions_ids),
            "trainer_state": self.state,
            **{name: list(values) for name, values in self.columns.items()},
        }

    def on_request(self) -> dict[str, Any]:
        """What only those rewards get that name it, and a column of the data does not stand for."""
        offers: dict[str, list[Any] | None] = {"group": self.group or [0] * len(self), "logprobs": self.logprobs}
        if any(self.conversations):
            offers["environments"] = [each and each.environment for each in self.conversations]
            offers["turn_rewards"] = [each and list(each.rewards) for each in self.conversations]
            offers["final_rewards"] = [each and each.final_reward for each in self.conversations]
        return {name: list(v) for name, v in offers.items() if v is not None and name not in self.columns}


def prepare_call(reward: BaseRewardFunction, rows: CallRows) -> tuple[dict[str, Any], Outcome]:
    """The keyword arguments of one call, and the outcome that its loggers write into.

    Raises:
        RewardContractError: If the reward needs a column that the data does not have.
    """
    outcome = Outcome([])
    requested = rows.on_request()
    on_request = {name: value for name, value in requested.items() if asks_for(reward, name)}
    if any(instance is not None for instance in requested.get("environments", ())):
        on_request["environments"] = requested["environments"]  # TRL gives them to all, also among **kwargs
    on_offer = {**rows.arguments(), **on_request, **Loggers(reward.name, len(rows), outcome).arguments()}
    return accepted_arguments(reward.__call__, on_offer, reward.name), outcome
