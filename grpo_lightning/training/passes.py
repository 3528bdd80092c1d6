"""Passes over the policy: in which layout, of how many tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from grpo_lightning.distributed.gather import gather_objects
from grpo_lightning.distributed.sharding import is_sharded
from grpo_lightning.memory.budget import LARGEST_BUDGET, check_budget
from grpo_lightning.numerics.device_copy import to_device
from grpo_lightning.numerics.evaluation_mode import evaluating
from grpo_lightning.numerics.load_balance import ExpertLoads, sum_of_loads
from grpo_lightning.policy.policy import Policy
from grpo_lightning.rollouts.replicas import Replica
from grpo_lightning.scoring.decoder_graphs import DecoderGraphs
from grpo_lightning.scoring.images.tower import no_change_of_tower
from grpo_lightning.scoring.readout import Readout
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.types import Rollouts
from grpo_lightning.vision.probe import image_probe


@dataclass(frozen=True, kw_only=True)
class PassSettings:
    """How a step is cut into passes.

    Args:
        max_tokens_per_microbatch: Tokens in one forward and backward pass: the memory knob. It does not change the
            gradient. auto: on a GPU what its free memory allows, up to 16384, more where a model has less than 2B parameters
            (65536 at 0.5B), measured before the first step; 16384 elsewhere. A resumed run keeps what was chosen.
        microbatch_layout: packed (no padding, prompts computed once per group), padded (any architecture), or auto.

    Raises:
        ValueError: For a budget that holds no token.
    """

    max_tokens_per_microbatch: int | Literal["auto"] = "auto"
    microbatch_layout: Literal["auto", "packed", "padded"] = "auto"

    def __post_init__(self) -> None:
        check_budget(self.max_tokens_per_microbatch)


class Passes:
    """The policy's scorer, and how many tokens a pass may have.

    Args:
        settings: See there.
        policy: Its weights may load later.
        temperature: The sampling temperature; 1 where nothing is sampled.
        make_readout: Of a model, what its passes are for; the logprobs of completion tokens by default.
    """

    def __init__(
        self,
        settings: PassSettings,
        policy: Policy,
        temperature: float = 1.0,
        make_readout: Callable[[nn.Module], Readout] | None = None,
    ) -> None:
        self.layout, self.policy, self.temperature = settings.microbatch_layout, policy, temperature
        self.make_readout = make_readout
        budget = settings.max_tokens_per_microbatch
        self.is_fixed = budget != "auto"
        """Whether the config says how large a pass is; otherwise the start of training, or a checkpoint does."""
        self.max_tokens = LARGEST_BUDGET if budget == "auto" else budget
        self.saved_budget: int | None = None
        """Of the run that this one goes on from, where auto keeps it."""
        self.replica = Replica()
        """The ranks that run each pass together; known once a run starts."""
        self.keeps_logits = policy.settings.gradient_checkpointing is False
        """Whether memory may be spent on what a backward pass would compute anew, see ``logprobs.KEPT_SHARE``."""
        self._scorer: Scorer | None = None

    @property
    def scorer(self) -> Scorer:
        """Of the policy; made on first use, when weights exist."""
        if self._scorer is None or self._scorer.model is not self.policy.model:
            self._scorer = self.make_scorer(self.policy.model)
            self._scorer.keep_logits(self.keeps_logits)
            if self.policy.settings.cuda_graphs:
                self._scorer.use_graphs(DecoderGraphs(self.policy.weight_gradients))
        return self._scorer

    def forgo_logits(self) -> bool:
        """Keeps no logits from now on; whether that may save memory."""
        kept, self.keeps_logits = self.keeps_logits, False
        self.scorer.keep_logits(False)
        return kept

    def make_scorer(self, model: nn.Module) -> Scorer:
        """Scores another model, such as the reference, as the policy is scored."""
        readout = None if self.make_readout is None else self.make_readout(model)
        float32_head, images = self.policy.settings.float32_head, self.policy.image_processing
        probe = None if images is None else image_probe(images, self.policy.config.get_text_config().vocab_size)
        return Scorer(model, self.temperature, self.layout, float32_head=float32_head, readout=readout, probe=probe)

    def plan(self, rollouts: Rollouts, rows: Tensor) -> list[Tensor]:
        """The completions of each pass that ``rows`` need."""
        return self.scorer.plan(rollouts, rows, self.max_tokens)

    def lay_out_ahead(self, rollouts: Rollouts) -> None:
        """Lays out the first pass over all completions while the GPU is busy with others.

        Nothing where a pass has more than this rank's completions, or none is laid out. Where a load balance counts what
        routers do before the step's first pass, that count uses the layout.
        """
        if self.replica.size > 1 or self.scorer.is_plain:
            return
        plan = self.plan(rollouts, torch.arange(rollouts.num_completions))
        if plan:
            self.scorer.lay_out_ahead(rollouts, plan[0])

    def plan_everywhere(self, scorer: Scorer, rollouts: Rollouts) -> list[Tensor]:
        """Passes over all completions, without gradient; see ``in_step_with_others``."""
        plan = scorer.plan(rollouts, torch.arange(rollouts.num_completions), self.max_tokens)
        return self.in_step_with_others(scorer, plan)

    def in_step_with_others(self, scorer: Scorer, plan: list[Tensor]) -> list[Tensor]:
        """The plan; before it, where ranks gather weights together, as many passes are run as others have more."""
        if is_sharded(scorer.model):
            for _ in range(max(gather_objects(len(plan))) - len(plan)):
                scorer.idle()
        return plan

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return next(self.policy.model.parameters()).device

    @torch.no_grad()
    def score(self, scorer: Scorer, rollouts: Rollouts, with_entropy: bool = False) -> tuple[Tensor, Tensor]:
        """(T,) logprobs and (T,) entropies, or an empty tensor, of all completion tokens; no gradient, dropout off.

        Args:
            scorer: Of the policy or of another model, which may be elsewhere: the result is where the policy is.
            rollouts: On the CPU.
            with_entropy: Whether entropies are wanted.
        """
        logprobs = torch.empty(rollouts.completion_ids.numel(), device=self.device)
        entropy = torch.empty_like(logprobs) if with_entropy else logprobs[:0]
        with evaluating(scorer.model):
            for rows in self.plan_everywhere(scorer, rollouts):
                index = to_device(rollouts.tokens_of(rows), self.device)
                scores = scorer.score(rollouts, rows, with_entropy)
                logprobs[index] = scores.logprobs.to(self.device)
                if scores.entropy is not None:
                    entropy[index] = scores.entropy.to(self.device)
        return logprobs, entropy

    @torch.no_grad()
    def expert_loads(self, rollouts: Rollouts, plan: list[Tensor]) -> ExpertLoads | None:
        """What the policy's routers do in the passes of a plan, dropout off, on the CPU; None without tokens.

        Args:
            rollouts: On the CPU.
            plan: Completions of each pass; empty for a pass that other ranks need.
        """
        with evaluating(self.policy.model):
            loads = [self.scorer.expert_loads(rollouts, rows) for rows in plan]
        total = sum_of_loads(loads)
        return None if total is None else total.to("cpu")

    def no_change(self) -> Tensor | float:
        """0, with a gradient for weights that a pass may leave out and other ranks wait for: a tower's that trains."""
        return no_change_of_tower(self.policy.model) if self.policy.vision_tower == "trained" else 0.0

    def fill(self, rollouts: Rollouts, rows: Tensor) -> Tensor:
        """(1,): tokens of a pass as a share of what it may have."""
        return torch.tensor([self.scorer.count_tokens(rollouts, rows) / self.max_tokens])

    def state_dict(self) -> dict[str, Any]:
        """The size of passes: another split would round otherwise."""
        return {"max_tokens": self.max_tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keeps it, where the config does not say another."""
        if not self.is_fixed:
            self.saved_budget = self.max_tokens = state["max_tokens"]
