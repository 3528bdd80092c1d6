"""Partial rollouts: a step does not wait for its longest completions; the next one goes on with them.

Over-sampling with resumed completions, as in Kimi k1.5 (arXiv:2501.12599, Sec. 2.6.2, a token budget a step) and APRIL
(arXiv:2509.18521, sampling ends when enough groups are complete), of which this is the second.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_lightning.distributed.gather import gather_objects, own_rank
from grpo_lightning.generation.parts import CutsCompletions, Part
from grpo_lightning.generation.room import naming_rows
from grpo_lightning.numerics.dtypes import with_float32_defaults
from grpo_lightning.rollouts.base import Moment, Sampled, Source
from grpo_lightning.rollouts.source import RolloutSource
from grpo_lightning.rollouts.unfinished_groups import GrowingGroup, batch_of, new_groups, rollouts_of
from grpo_lightning.types import PromptBatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartialRollouts:
    """How many groups a step leaves unfinished for the next one.

    Args:
        carry_over: Groups that are carried over to the next step, in batches of data.batch_size: 0 for none; with 0.5 and
            64 prompts, a step samples 64 new prompts beside 32 carried ones, ends sampling when 64 of these 96 are complete and
            trains on those. What it has sampled of the other 32 is kept. A token's age is so many steps on average. A run's
            first steps train on fewer prompts, on half of them at least, until so many are under way.
        max_staleness: Steps that a group may be carried for; after so many, sampling waits for its completions.
    """

    carry_over: float = 0.0
    max_staleness: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.carry_over < math.inf:
            raise ValueError(
                f"model.partial_rollouts.carry_over={self.carry_over} is no number of batches of data.batch_size. Give 0 (off), "
                "or a positive number such as 0.5."
            )
        if self.max_staleness < 1:
            raise ValueError(
                f"model.partial_rollouts.max_staleness={self.max_staleness} would carry nothing over. Give 1 or more, or "
                "carry_over=0."
            )
        if self.carry_over > self.max_staleness:
            raise ValueError(
                f"model.partial_rollouts.carry_over={self.carry_over} carries groups for so many steps on average, more than "
                f"max_staleness={self.max_staleness} allows for any. Raise max_staleness, or lower carry_over."
            )

    def left(self, num_carried: int, num_prompts: int) -> int:
        """Groups that a step leaves unfinished; of its new prompts at most half, so that every step trains on as many at least.

        Args:
            num_carried: Groups that it was left with itself.
            num_prompts: Its new ones.

        Example:
            >>> settings = PartialRollouts(carry_over=1.5)
            >>> [settings.left(carried, 64) for carried in (0, 32, 64, 96)]
            [32, 64, 96, 96]
        """
        return min(self.most_left(num_prompts), num_carried + num_prompts // 2)

    def most_left(self, num_prompts: int) -> int:
        """The same once as many are under way as there are to be."""
        return int(self.carry_over * num_prompts)


class EnoughGroups:
    """Says when sampling may end: all but so many groups are complete, and those that were carried for too long.

    Args:
        missing: Completions of each group that are not done.
        num_left: Groups that may stay incomplete.
        must: Groups that may not.
    """

    def __init__(self, missing: Sequence[int], num_left: int, must: Sequence[int]) -> None:
        self._missing = Counter({b: count for b, count in enumerate(missing) if count})
        self._num_left, self._must = num_left, set(must)

    def __bool__(self) -> bool:
        """Whether it is enough."""
        return len(self._missing) <= self._num_left and self._must.isdisjoint(self._missing)

    def ended(self, b: int) -> bool:
        """Takes note of the end of a completion of group b; whether it is enough."""
        self._missing[b] -= 1
        if not self._missing[b]:
            del self._missing[b]
        return bool(self)


class PartialSource(Source):
    """Trains on whole groups, oldest first, and keeps the rest of what was sampled for the next step.

    Each rank has groups in flight of its own. When sampling ends depends on sampled tokens alone, never on the clock: a run
    repeats, and a checkpoint between two steps holds every token, its logprob and the step of its weights.

    Args:
        source: Samples; its generator ``CutsCompletions``.
        settings: How much is carried.
    """

    key = "partial_rollouts"
    inner: RolloutSource

    def __init__(self, source: RolloutSource, settings: PartialRollouts) -> None:
        self.inner, self.settings = source, settings
        self._carried: list[GrowingGroup] = []
        self._before: tuple[int, list[GrowingGroup]] = (-1, [])
        """The step that was sampled for last, and what was carried into it: of a step that fails, a checkpoint holds that."""

    def sample(self, batch: PromptBatch, moment: Moment, stage: str = "train") -> Sampled:
        """The groups that are complete, oldest first, with each token's logprob at the weights that sampled it."""
        if stage != "train":
            return self.inner.sample(batch, moment, stage)
        self.inner.reward_runner.kept_state.begin_step(moment.step)
        self.inner.prepare()
        seeds = self.inner.prompt_seeds(batch, stage, moment.step)
        fresh = new_groups(batch, seeds, moment.step, self.inner.sampling.num_generations)
        self._before = (moment.step, self._carried)
        num_left = self.settings.left(len(self._carried), len(batch))
        groups = self._sampled([*self._carried, *fresh], num_left, moment.step)
        done = [b for b, group in enumerate(groups) if group.is_done]
        wanted = max(len(groups) - num_left, self._num_overdue(groups, moment.step))
        most = len(batch) + self.settings.most_left(len(batch))  # of ranks that are gone there may be more
        chosen = set(done[: min(wanted, most)])
        trained = [group for b, group in enumerate(groups) if b in chosen]
        self._carried = [group for b, group in enumerate(groups) if b not in chosen]
        prompts, rollouts = batch_of(trained), rollouts_of(trained)
        rewards_of = self.inner.begin_scoring(prompts, self.inner.reward_state(moment))[1]
        return Sampled(prompts, rollouts, rewards_of(rollouts), ages(trained, self._carried, moment.step))

    def _is_overdue(self, group: GrowingGroup, step: int) -> bool:
        return step - group.step >= self.settings.max_staleness

    def _num_overdue(self, groups: Sequence[GrowingGroup], step: int) -> int:
        return sum(self._is_overdue(group, step) for group in groups)

    @with_float32_defaults
    @torch.no_grad()
    def _sampled(self, groups: Sequence[GrowingGroup], num_left: int, step: int) -> list[GrowingGroup]:
        """The groups with a further part of what is not done."""
        sampling, generator = self.inner.sampling, self.inner.generator
        assert isinstance(generator, CutsCompletions)  # checked with the settings
        wanted = [group.requests(sampling.max_completion_length) for group in groups]
        places = [(b, g) for b, requests in enumerate(wanted) for g in requests]
        overdue = [b for b, group in enumerate(groups) if self._is_overdue(group, step)]
        enough = EnoughGroups([len(requests) for requests in wanted], num_left, overdue)
        found: list[dict[int, Part]] = [{} for _ in groups]
        if not enough:
            requests = [wanted[b][g] for b, g in places]
            with naming_rows(lambda n: batch_of(groups).row_name(places[n][0])):
                parts = generator.sample_parts(requests, sampling, lambda n: enough.ended(places[n][0]))
            for (b, g), part in zip(places, parts, strict=True):
                found[b][g] = part
        return [group.followed_by(parts, step) for group, parts in zip(groups, found, strict=True)]

    def state_dict(self, step: int) -> dict[str, Any]:
        """What is carried into the next step, or into the one that failed, of all ranks; called on every rank."""
        carried = self._before[1] if self._before[0] == step else self._carried
        mine = [group.state_dict() for group in carried]
        return {"sampling": asdict(self.inner.sampling), "ranks": gather_objects(mine)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with it; on another number of ranks the groups are dealt out anew, oldest first."""
        rank, world_size = own_rank()
        parts = [[GrowingGroup.from_state(group) for group in part] for part in state["ranks"]]
        if len(parts) != world_size:
            oldest_first = sorted((group for part in parts for group in part), key=lambda group: group.step)
            parts = [oldest_first[r::world_size] for r in range(world_size)]
        changed = self.inner.sampling.changed_since(state["sampling"])
        if changed:
            logger.warning("The checkpoint's carried groups were sampled with another %s; they start anew.", changed)
            parts = [[group.restarted(self.inner.sampling.num_generations) for group in part] for part in parts]
        self._carried, self._before = parts[rank], (-1, [])


def ages(trained: Sequence[GrowingGroup], carried: Sequence[GrowingGroup], step: int) -> dict[str, Tensor]:
    """Entries of means for the log.

    Args:
        trained: Groups of the step.
        carried: Groups that it leaves.
        step: GRPO steps done.

    Returns:
        ``sampling/age/mean`` (of trained tokens, in steps), ``sampling/age/oldest`` (of each completion's oldest token),
        ``sampling/age/off_policy`` (share of trained tokens that older weights sampled) and
        ``sampling/age/carried_groups`` (groups that a rank leaves for the next step).
    """
    of_completions = [completion.ages(step) for group in trained for completion in group.completions]
    of_tokens = torch.tensor([age for row in of_completions for age in row], dtype=torch.float64)
    return {
        "sampling/age/mean": of_tokens,
        "sampling/age/oldest": torch.tensor([max(row) for row in of_completions], dtype=torch.float64),
        "sampling/age/off_policy": (of_tokens > 0).double(),
        "sampling/age/carried_groups": torch.tensor([float(len(carried))], dtype=torch.float64),
    }
