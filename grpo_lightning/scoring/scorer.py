"""A model and rollouts to the logprobs of the completion tokens: the one path of policy, old policy and reference."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from grpo_lightning.numerics.load_balance import ExpertLoads
from grpo_lightning.numerics.output_head import base_model
from grpo_lightning.numerics.rope_scaling import fix_rope_scaling
from grpo_lightning.scoring.branches import branched, planned_lengths
from grpo_lightning.scoring.decoder_graphs import DecoderGraphs
from grpo_lightning.scoring.forward import ForwardPass
from grpo_lightning.scoring.planning import Layout, count_tokens, plan_micro_batches
from grpo_lightning.scoring.readout import Beside, LogprobReadout, Readout, TokenScores
from grpo_lightning.scoring.settling import settle, slow_ways
from grpo_lightning.types import Rollouts

logger = logging.getLogger(__name__)

ONE_TOKEN = Rollouts.from_lists([[0]], [[0]], [[0.0]], [False], [0])


class Scorer:
    """Scores completion tokens under a model, packed where the model's attention allows it.

    The first call compares the layout, and the way around the full logits, with plain forward passes of the model on a
    few random tokens. What disagrees is replaced by the next slower way, which is said once (``settling.settle``).

    Args:
        model: A transformers causal language model, or a PEFT model whose adapters are injected into one. The weights
            may be loaded or changed later.
        temperature: The sampling temperature.
        layout: ``packed`` insists and raises where ``auto`` falls back to ``padded``.
        share_prompts: Compute the prompt of a group once per micro-batch (packed layout only).
        float32_head: Compute logits in float32.
        readout: What is read off hidden states; logprobs, with the settings above, by default. Another readout has settings
            of its own.
        probe: What the first call compares ways on, of a model that is to see images; a few random tokens by default.

    Example:
        >>> scorer = Scorer(model, temperature=0.7)                                           # doctest: +SKIP
        >>> for rows in scorer.plan(rollouts, torch.arange(rollouts.num_completions), 8192):  # doctest: +SKIP
        ...     logprobs, entropy = scorer.score(rollouts, rows, with_entropy=True)
    """

    def __init__(
        self,
        model: nn.Module,
        temperature: float,
        layout: Layout | Literal["auto"] = "auto",
        share_prompts: bool = True,
        float32_head: bool = False,
        readout: Readout | None = None,
        probe: Rollouts | None = None,
    ) -> None:
        self.model = model
        fix_rope_scaling(model)  # whatever was loaded for a run has been fixed for its lengths already
        if readout is None:
            readout = LogprobReadout(model, temperature, float32_head)
        self._insists_on_packed = layout == "packed"
        first: Layout = "padded" if layout == "padded" else "packed"
        self._forward = ForwardPass(model, readout, first, share_prompts, probe)
        self._settled = False
        self._warned_oversize = False

    @property
    def layout(self) -> Layout:
        """The layout in use; the first check may change it where ``auto`` was asked for."""
        return self._forward.layout

    @property
    def is_plain(self) -> bool:
        """Whether the check found that the model has to be scored from its full logits, a sequence at a time."""
        return self._forward.is_plain

    def keep_logits(self, keep: bool) -> None:
        """Whether passes with gradient keep logits for the backward pass, see ``logprobs.KEPT_SHARE``."""
        self._forward.readout.keeps_logits = keep

    def use_graphs(self, graphs: DecoderGraphs | None) -> None:
        """Has passes with gradient launched by graphs, where they can be."""
        self._forward.graphs = graphs

    @contextmanager
    def without_graphs(self) -> Iterator[None]:
        """Inside, passes are launched kernel by kernel, and leave no memory taken."""
        graphs, self._forward.graphs = self._forward.graphs, None
        try:
            yield
        finally:
            self._forward.graphs = graphs

    def plan(self, rollouts: Rollouts, rows: Tensor, max_tokens: int) -> list[Tensor]:
        """Micro-batches for this layout, see ``plan_micro_batches``; warns once of a completion above the budget."""
        if not self._settled:
            self.check()
        plan = plan_micro_batches(*self._sizes(rollouts), rows, max_tokens, self.layout)
        largest = max((self.count_tokens(rollouts, part) for part in plan), default=0)
        if largest > max_tokens and not self._warned_oversize:
            self._warned_oversize = True
            logger.warning(
                "A completion and its prompt have %d tokens, more than model.max_tokens_per_microbatch=%d, and make a "
                "micro-batch of their own. Raise the budget, or lower model.max_completion_length.",
                largest,
                max_tokens,
            )
        return plan

    def count_tokens(self, rollouts: Rollouts, rows: Tensor) -> int:
        """Tokens of the micro-batch ``rows``: prompts once a group where they are shared, padding where there is any."""
        return count_tokens(*self._sizes(rollouts), rows, self.layout)

    def _sizes(self, rollouts: Rollouts) -> tuple[Tensor, Tensor, Tensor]:
        """Prompt lengths, completion lengths and the prompt of each completion."""
        if self._forward.share_prompts:
            return rollouts.prompt_lengths, planned_lengths(rollouts), rollouts.group
        each = torch.arange(rollouts.num_completions)  # every completion is a group of its own
        return rollouts.prompt_lengths[rollouts.group], planned_lengths(rollouts), each

    def score(
        self,
        rollouts: Rollouts,
        rows: Tensor,
        with_entropy: bool = False,
        entropy_grad: bool = False,
        beside: Beside | None = None,
        beside_alone: bool = False,
        with_loads: bool = False,
    ) -> TokenScores:
        """Logprobs (and entropies) of the completion tokens of one micro-batch, in one forward pass.

        Args:
            rollouts: On the CPU.
            rows: ``(M,)`` int64 on the CPU, at least one completion.
            with_entropy: Also return entropies.
            entropy_grad: Let gradient flow through the entropies.
            beside: Further numbers from the same forward pass.
            beside_alone: Whether these alone carry gradient: that of logprobs, if it is 0 anyway, costs as much as theirs.
            with_loads: Also return what routers did, with gradient.

        Raises:
            ValueError: For ``beside`` where the model gives no hidden states to score from.
        """
        if not self._settled:
            self.check()
        if beside is not None and self.is_plain:
            raise ValueError(
                f"{type(base_model(self.model)).__name__} is scored from its full logits: its output head does not follow the "
                "decoder's hidden states, which model.distillation needs."
            )
        options: dict[str, Any] = {} if beside is None else {"beside": beside, "beside_alone": beside_alone}
        options |= {"with_entropy": with_entropy, "entropy_grad": entropy_grad, "with_loads": with_loads}
        return self._forward.score(*branched(rollouts, rows), **options)

    def lay_out_ahead(self, rollouts: Rollouts, rows: Tensor) -> None:
        """Does now, from another thread too, what ``score`` of these rows does before the GPU has something to do."""
        if not self._settled:
            self.check()
        if self.is_plain:
            return
        self._forward.lay_out_ahead(*branched(rollouts, rows))

    def hidden(self, rollouts: Rollouts, rows: Tensor) -> Tensor:
        """``(T, H)`` hidden states that predict the completion tokens, for a head of one's own."""
        if not self._settled:
            self.check()
        return self._forward.hidden(*branched(rollouts, rows))

    def expert_loads(self, rollouts: Rollouts, rows: Tensor) -> ExpertLoads | None:
        """What routers do with these completions and their prompts, without the output head; None without routers.

        An empty ``rows`` is a pass that other ranks need.
        """
        if not self._settled:
            self.check()
        if not len(rows):
            self._forward.loads(ONE_TOKEN, torch.tensor([0]))
            return None
        return self._forward.loads(*branched(rollouts, rows))

    def idle(self) -> Tensor:
        """0, from a pass over one token: for a rank without work, where passes of other ranks need its part."""
        return self.score(ONE_TOKEN, torch.tensor([0])).logprobs.sum() * 0.0

    def check(self) -> None:
        """Settles the layout. The first ``plan`` or ``score`` calls it; call it before them to fail early.

        Raises:
            ValueError: If ``layout='packed'`` was asked for and the model does not support it.
        """
        self._settled = True
        settle(self._forward, self._insists_on_packed)
        slow = self.slow_ways()
        if self._forward.device.type == "cuda" and slow:
            said = "; ".join(f"{part}: {reason}" for part, reason in slow.items())
            logger.warning("Training passes take slower ways than this GPU allows. %s.", said)

    def slow_ways(self) -> dict[str, str]:
        """What of a training pass is not done the fastest way, and why: layout, attention, head, kernels.

        Call it after ``check``. A CPU has no faster attention or kernels, so there they are always named.
        """
        return slow_ways(self._forward)
