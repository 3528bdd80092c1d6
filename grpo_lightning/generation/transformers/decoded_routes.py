"""The experts that routers chose while completions were decoded, as rollouts have them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grpo_lightning.numerics.routers import RouteRecorder
from grpo_lightning.types import RoutedExperts


class DecodedRoutes:
    """Of the prompts and completions that are decoded together.

    Args:
        recorder: Of the policy, which has just read the prompts, padded on the left.
        prompt_ids: b lists of token ids.
        size: n completions.
        limit: C, tokens of the longest.
    """

    def __init__(self, recorder: RouteRecorder, prompt_ids: Sequence[Sequence[int]], size: int, limit: int) -> None:
        self._recorder = recorder
        read = recorder.take().unflatten(0, (len(prompt_ids), -1)).cpu()  # (b, width, L, k)
        self.prompts = [row[read.shape[1] - len(ids) :] for row, ids in zip(read, prompt_ids, strict=True)]
        """b of ``(prompt tokens, L, k)``."""
        unknown = torch.iinfo(read.dtype).max
        self.completions = torch.full((size, limit, *read.shape[2:]), unknown, dtype=read.dtype)
        """``(n, C, L, k)``."""

    def note(self, rows: Tensor, step: int) -> None:
        """Of token ``step`` of the completions ``rows``, which the policy has just read."""
        self.completions[rows.cpu(), step] = self._recorder.take().cpu()


def collected_routes(
    decoded: Sequence[tuple[list[int], DecodedRoutes | None]], lengths: Sequence[int], num_generations: int
) -> RoutedExperts | None:
    """Of all prompts and completions in prompt-major order; None where nothing was recorded.

    Args:
        decoded: The completions of each chunk, all those of a prompt together, and what was recorded of it.
        lengths: Tokens of each completion.
        num_generations: G.
    """
    prompts: dict[int, Tensor] = {}
    completions: dict[int, Tensor] = {}
    for rows, routes in decoded:
        if routes is None:
            return None
        completions |= {n: routes.completions[place, : lengths[n]] for place, n in enumerate(rows)}
        prompts |= {rows[i * num_generations] // num_generations: each for i, each in enumerate(routes.prompts)}
    if not completions:
        return None
    return RoutedExperts(
        torch.cat([prompts[b] for b in range(len(prompts))]),
        torch.cat([completions[n] for n in range(len(completions))]),
    )
