"""Groups of completions while they are sampled in parts, each part by the weights of another step."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from grpo_lightning.distributed.checkpoint_values import NotStorableError, stored_exactly
from grpo_lightning.errors import RefusedRowError
from grpo_lightning.generation.parts import Part, PartEnd, PartRequest
from grpo_lightning.rollouts.groups import join_prompts
from grpo_lightning.seeds import derive_seed
from grpo_lightning.types import Prompt, PromptBatch, Rollouts


@dataclass(frozen=True)
class Segment:
    """Tokens of a completion that the same weights sampled."""

    weights_step: int
    """GRPO steps that had made the weights."""
    ids: list[int]
    logprobs: list[float]
    """Nats, at these weights and the sampling temperature."""


@dataclass(frozen=True)
class GrowingCompletion:
    """A completion as far as it is sampled."""

    segments: tuple[Segment, ...] = ()
    end: PartEnd = "cut"

    @property
    def is_done(self) -> bool:
        """Whether it has ended by itself or at the limit."""
        return self.end != "cut"

    @property
    def ids(self) -> list[int]:
        """All tokens."""
        return [token for segment in self.segments for token in segment.ids]

    @property
    def logprobs(self) -> list[float]:
        """One per token: each at the weights that sampled it."""
        return [logprob for segment in self.segments for logprob in segment.logprobs]

    def ages(self, step: int) -> list[int]:
        """One per token: steps by which the weights that sampled it are older than those after ``step`` steps."""
        return [step - segment.weights_step for segment in self.segments for _ in segment.ids]

    def followed_by(self, part: Part, weights_step: int) -> GrowingCompletion:
        """The completion with a further part."""
        own = (Segment(weights_step, part.ids, part.logprobs),) if part.ids else ()
        return GrowingCompletion(self.segments + own, part.end)


@dataclass(frozen=True)
class GrowingGroup:
    """A prompt with its G completions, of which some may be done."""

    uid: int
    prompt: Prompt
    prompt_ids: list[int]
    columns: dict[str, Any]
    seed: int
    """Of the prompt in the step that first asked for it."""
    step: int
    """GRPO steps done when it was first asked for."""
    completions: tuple[GrowingCompletion, ...]

    @property
    def is_done(self) -> bool:
        """Whether it can be trained on."""
        return all(completion.is_done for completion in self.completions)

    def requests(self, limit: int) -> dict[int, PartRequest]:
        """What is missing of each completion that is not done, by its number in the group.

        Args:
            limit: Tokens of a whole completion.
        """
        return {
            g: PartRequest(
                self.prompt_ids + completion.ids,
                derive_seed(self.seed, g, len(completion.segments)),
                limit - len(completion.ids),
            )
            for g, completion in enumerate(self.completions)
            if not completion.is_done
        }

    def followed_by(self, parts: dict[int, Part], weights_step: int) -> GrowingGroup:
        """The group with further parts of some completions."""
        grown = tuple(
            completion.followed_by(parts[g], weights_step) if g in parts else completion
            for g, completion in enumerate(self.completions)
        )
        return replace(self, completions=grown)

    def restarted(self, num_generations: int) -> GrowingGroup:
        """The same prompt, nothing sampled."""
        return replace(self, completions=(GrowingCompletion(),) * num_generations)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> GrowingGroup:
        """The group of ``state_dict``."""
        completions = tuple(
            GrowingCompletion(tuple(Segment(**segment) for segment in each["segments"]), each["end"])
            for each in state["completions"]
        )
        return cls(**{**state, "completions": completions})


def new_groups(batch: PromptBatch, seeds: Sequence[int], step: int, num_generations: int) -> list[GrowingGroup]:
    """A group of each prompt, nothing sampled.

    Raises:
        RefusedRowError: If a row has a value that a checkpoint cannot hold.
    """
    without = ", or leave the column out (data.converter_args.pass_through=false)"
    columns = {name: _stored(values, batch.uids, f"column {name}", without) for name, values in batch.columns.items()}
    prompts = _stored(batch.prompts, batch.uids, "messages of its prompt")
    return [
        GrowingGroup(
            batch.uids[b],
            prompts[b],
            list(batch.prompt_ids[b]),
            {name: values[b] for name, values in columns.items()},
            seeds[b],
            step,
            (GrowingCompletion(),) * num_generations,
        )
        for b in range(len(batch))
    ]


def _stored(values: Sequence[Any], uids: Sequence[int], where: str, way_out: str = "") -> list[Any]:
    """The rows' values as a checkpoint holds them."""
    stored = []
    for uid, value in zip(uids, values, strict=True):
        try:
            stored.append(stored_exactly(value))
        except NotStorableError as error:
            raise RefusedRowError(
                f"row {uid} has the {type(value).__name__} {reprlib.repr(value)} in the {where}. model.partial_rollouts "
                "keeps the rows of unfinished groups in checkpoints, which hold plain values, times and decimals. Make it "
                f"one{way_out}."
            ) from error
    return stored


def batch_of(groups: Sequence[GrowingGroup]) -> PromptBatch:
    """The groups' prompts; a column that one does not have is None there."""
    return join_prompts(
        [
            PromptBatch([one.prompt], [one.prompt_ids], [one.uid], {name: [v] for name, v in one.columns.items()})
            for one in groups
        ]
    )


def rollouts_of(groups: Sequence[GrowingGroup]) -> Rollouts:
    """The completions of groups that are done."""
    completions = [completion for group in groups for completion in group.completions]
    return Rollouts.from_lists(
        prompt_ids=[group.prompt_ids for group in groups],
        completion_ids=[completion.ids for completion in completions],
        sampling_logprobs=[completion.logprobs for completion in completions],
        truncated=[completion.end == "limit" for completion in completions],
        group=[b for b, group in enumerate(groups) for _ in group.completions],
    )
