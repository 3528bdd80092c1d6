"""What flows through a GRPO step: prompts in, rollouts out.

Axis letters, used in every docstring of the package:

    B  prompts of this rank's step            G  completions per prompt
    N  completions of this rank's step        T  completion tokens of all N completions, end to end
    M  completions of one micro-batch         R  reward functions
    V  vocabulary                             H  hidden size

Rollouts stay ragged: sequences are stored end to end in one flat tensor beside their lengths. Nothing is padded until
a model that needs padding asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grpo_lightning.messages import Conversation, Message, Prompt, said

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "Conversation",
    "Message",
    "OptimizerFactory",
    "Prompt",
    "PromptBatch",
    "PromptImages",
    "Rollouts",
    "RoutedExperts",
]

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
"""Makes the optimizer of some weights: what ``model.optimizer`` becomes."""


@dataclass(frozen=True, eq=False)
class PromptImages:
    """What the images of one prompt become. CPU tensors; P is the prompt's length in tokens."""

    images: tuple[Image, ...]
    """In the order in which the prompt shows them; none of a prompt that shows none."""
    short_ids: list[int]
    """The prompt with one placeholder token an image, for engines that put in the others themselves."""
    is_image: Tensor
    """(P,) bool: True where an image's features take the place of a token."""
    pixels: dict[str, Tensor]
    """What the processor made for the vision tower (``pixel_values``, ``image_grid_thw``, ...), by its names."""
    per_token: dict[str, Tensor]
    """(P,) int64 each: what the processor says of each token (``mm_token_type_ids``), by its names."""


@dataclass  # not frozen: Lightning's half-precision plugins rebuild batches and refuse frozen dataclasses
class PromptBatch:
    """The B prompts of one step on one rank. Lives on the CPU."""

    prompts: list[Prompt]
    """B prompts as the dataset has them; rewards receive them in this form."""
    prompt_ids: list[list[int]]
    """B lists of token ids, chat template applied, unpadded."""
    uids: list[int]
    """B row numbers in the dataset. With the run's seed and the step they seed the sampling of that prompt."""
    columns: dict[str, list[Any]] = field(default_factory=dict)
    """Further dataset columns for the rewards, B entries each (``ground_truth``, ``answer``, ...)."""
    images: tuple[PromptImages, ...] = ()
    """B of them, where prompts may show images; none where the policy sees text alone."""

    def __post_init__(self) -> None:
        sizes = {"prompts": len(self.prompts), "prompt_ids": len(self.prompt_ids), "uids": len(self.uids)}
        sizes |= {name: len(values) for name, values in self.columns.items()}
        if self.images:
            sizes["images"] = len(self.images)
        if len(set(sizes.values())) != 1:
            raise ValueError(f"a prompt batch needs one entry per prompt in every field, got {sizes}")

    def __len__(self) -> int:
        return len(self.prompts)

    def row_name(self, b: int) -> str:
        """What errors call prompt b: the number of its row, and what its last message begins with.

        Example:
            >>> PromptBatch([[{"role": "user", "content": "2+3?"}]], [[5, 6]], [41]).row_name(0)
            "row 41 ('2+3?')"
        """
        prompt = self.prompts[b]
        text = prompt if isinstance(prompt, str) else "".join(map(said, prompt[-1:]))
        return f"row {self.uids[b]} ({text[:60]!r})"

    def to(self, device: torch.device | str) -> PromptBatch:
        """Returns itself: Lightning moves batches, and this one holds nothing that belongs on an accelerator."""
        return self


@dataclass(frozen=True)
class RoutedExperts:
    """Which experts the sampler's routers gave each token, of a mixture of experts with L layers and k experts a token.

    uint8, or int16 for more experts than that holds. The largest value of the dtype says that nothing was recorded, as of
    the last token of a completion, which the sampler never reads: there the trainer's own choice stands.
    """

    prompts: Tensor
    """(prompt tokens, L, k): where a prompt was computed once for several completions, of that computation."""
    completions: Tensor
    """(T, L, k)."""

    def at(self, positions: Tensor) -> Tensor:
        """``(n, L, k)`` of the tokens at these places among all prompt tokens, then all completion tokens."""
        return torch.cat([self.prompts, self.completions])[positions]


@dataclass(frozen=True)
class Rollouts:
    """N completions of B prompts, as sampled. CPU tensors, ragged: flat tokens beside lengths."""

    prompt_ids: Tensor
    """(sum of prompt_lengths,) int64: the B prompts end to end."""
    prompt_lengths: Tensor
    """(B,) int64 tokens."""
    completion_ids: Tensor
    """(T,) int64: the N completions end to end; the end-of-sequence token is included where one was sampled."""
    completion_lengths: Tensor
    """(N,) int64 tokens, each at least 1."""
    group: Tensor
    """(N,) int64 in [0, B): the prompt that completion n belongs to. Groups need not be equal in size."""
    sampling_logprobs: Tensor
    """(T,) float32 nats: what the sampler gave each token, at the sampling temperature."""
    truncated: Tensor
    """(N,) bool: True where the completion ran into the length limit instead of ending."""
    completion_mask: Tensor
    """(T,) bool: True where the policy chose the token; tokens of tools or environments are False."""
    conversations: tuple[Conversation, ...] = ()
    """N of them, of rollouts of several turns; none of plain ones."""
    images: tuple[PromptImages, ...] = ()
    """B of them, where prompts may show images; none where the policy sees text alone."""
    routed_experts: RoutedExperts | None = None
    """Of model.router_replay; else None."""

    def __post_init__(self) -> None:
        tokens, completions = self.completion_ids.numel(), self.completion_lengths.numel()
        checks = {
            "prompt_ids": (self.prompt_ids.numel(), int(self.prompt_lengths.sum())),
            "completion_ids": (tokens, int(self.completion_lengths.sum())),
            "sampling_logprobs": (self.sampling_logprobs.numel(), tokens),
            "completion_mask": (self.completion_mask.numel(), tokens),
            "group": (self.group.numel(), completions),
            "truncated": (self.truncated.numel(), completions),
        }
        if self.conversations:
            checks["conversations"] = (len(self.conversations), completions)
        if self.images:
            checks["images"] = (len(self.images), self.num_prompts)
        if self.routed_experts is not None:
            checks["routed_experts.prompts"] = (len(self.routed_experts.prompts), self.prompt_ids.numel())
            checks["routed_experts.completions"] = (len(self.routed_experts.completions), tokens)
        for name, (found, expected) in checks.items():
            if found != expected:
                raise ValueError(f"rollouts.{name} has {found} entries, expected {expected}")
        if completions and int(self.completion_lengths.min()) < 1:
            raise ValueError("a completion has at least one token; a generator returned an empty one")

    @classmethod
    def from_lists(
        cls,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        sampling_logprobs: Sequence[Sequence[float]],
        truncated: Sequence[bool],
        group: Sequence[int],
    ) -> Rollouts:
        """Rollouts from Python lists, one entry per prompt or per completion.

        Example:
            >>> rollouts = Rollouts.from_lists([[5, 6]], [[7], [8, 9]], [[-0.1], [-0.2, -0.3]], [False, True], [0, 0])
            >>> rollouts.completion_ids.tolist(), rollouts.completion_lengths.tolist()
            ([7, 8, 9], [1, 2])
        """
        flat_ids = [token for ids in completion_ids for token in ids]
        return cls(
            prompt_ids=torch.tensor([token for ids in prompt_ids for token in ids], dtype=torch.int64),
            prompt_lengths=torch.tensor([len(ids) for ids in prompt_ids], dtype=torch.int64),
            completion_ids=torch.tensor(flat_ids, dtype=torch.int64),
            completion_lengths=torch.tensor([len(ids) for ids in completion_ids], dtype=torch.int64),
            group=torch.tensor(group, dtype=torch.int64),
            sampling_logprobs=torch.tensor([lp for row in sampling_logprobs for lp in row], dtype=torch.float32),
            truncated=torch.tensor(truncated, dtype=torch.bool),
            completion_mask=torch.ones(len(flat_ids), dtype=torch.bool),
        )

    @property
    def num_completions(self) -> int:
        """N."""
        return self.completion_lengths.numel()

    @property
    def num_prompts(self) -> int:
        """B."""
        return self.prompt_lengths.numel()

    def prompts(self) -> list[Tensor]:
        """B views of ``prompt_ids``."""
        return list(self.prompt_ids.split(self.prompt_lengths.tolist()))

    def completions(self) -> list[Tensor]:
        """N views of ``completion_ids``."""
        return list(self.completion_ids.split(self.completion_lengths.tolist()))

    def logprob_lists(self) -> list[list[float]]:
        """N lists of the sampler's logprobs, nats."""
        return [of_one.tolist() for of_one in self.sampling_logprobs.split(self.completion_lengths.tolist())]

    def asked(self, n: int, prompt: Prompt) -> Prompt:
        """What completion n answers: its prompt, with what its environment said behind it."""
        return self.conversations[n].asked(prompt) if self.conversations else prompt

    def token_rows(self) -> Tensor:
        """(T,) int64: the completion in [0, N) that each token belongs to."""
        return torch.repeat_interleave(torch.arange(self.num_completions), self.completion_lengths)

    def tokens_of(self, rows: Tensor) -> Tensor:
        """(sum of their lengths,) int64: where tokens of these completions lie in the flat tensors, row after row."""
        starts = self.completion_lengths.cumsum(0) - self.completion_lengths
        return ranges(starts[rows], self.completion_lengths[rows])

    def summed(self, values: Tensor) -> Tensor:
        """``(N,)``: values of tokens, ``(T,)`` on the CPU, added up over each completion; flags are counted, as int64."""
        numbers = values.long() if values.dtype == torch.bool else values
        return numbers.new_zeros(self.num_completions).index_add(0, self.token_rows(), numbers)

    def policy_lengths(self) -> Tensor:
        """(N,) int64: tokens of each completion that the policy chose."""
        return self.summed(self.completion_mask)


def ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """``start, start + 1, ..., start + length - 1`` for each pair, end to end.

    Example:
        >>> ranges(torch.tensor([5, 0]), torch.tensor([2, 3])).tolist()
        [5, 6, 0, 1, 2]
    """
    ends = lengths.cumsum(0)
    shift = torch.repeat_interleave(starts - (ends - lengths), lengths)
    return shift + torch.arange(shift.numel())
