"""A model and rollouts to the logprobs of the completion tokens: the one path of policy, old policy and reference."""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import restore_flash_attention_impl

from grpo_lightning.distributed.sharding import call_gathered, is_sharded
from grpo_lightning.numerics.device_copy import to_device
from grpo_lightning.numerics.evaluation_mode import evaluating
from grpo_lightning.numerics.logprobs import fused_head_obstacle
from grpo_lightning.numerics.output_head import base_model, output_head
from grpo_lightning.numerics.rope_scaling import fix_rope_scaling
from grpo_lightning.scoring.blocks import Packing
from grpo_lightning.scoring.fast_kernels import (
    fused_modules,
    has_compiled_layers,
    liger_obstacle,
    plain_kernels,
    remove_liger_kernels,
)
from grpo_lightning.scoring.forward import Beside, TokenScores, decode_packed, decode_padded, score_full_logits
from grpo_lightning.scoring.packed_attention import activate_flash_attention_3, install_packed_attention
from grpo_lightning.scoring.packing import Layout, count_tokens, pack, pad, plan_micro_batches
from grpo_lightning.scoring.probe import (
    check_positions,
    computes_in_float32,
    disagreement,
    packing_obstacle,
    probe_rollouts,
    windows_obstacle,
)
from grpo_lightning.types import Rollouts

logger = logging.getLogger(__name__)

ONE_TOKEN = Rollouts.from_lists([[0]], [[0]], [[0.0]], [False], [0])


class Scorer:
    """Scores completion tokens under a model, packed where the model's attention allows it.

    The first call compares the layout, and the way around the full logits, with plain forward passes of the model on a
    few random tokens. What disagrees is replaced by the next slower way, which is said once: packed, padded, full
    logits row by row. Fused kernels inside the layers are compared likewise with the model's own code.

    Args:
        model: A transformers causal language model, or a PEFT model whose adapters are injected into one. The weights
            may be loaded or changed later.
        temperature: The sampling temperature.
        layout: ``packed`` insists and raises where ``auto`` falls back to ``padded``.
        share_prompts: Compute the prompt of a group once per micro-batch (packed layout only).
        chunk_tokens: Tokens whose logits exist at the same time; by default what suits the device.
        float32_head: Compute logits in float32.

    Example:
        >>> scorer = Scorer(model, temperature=0.7)                                           # doctest: +SKIP
        >>> for rows in scorer.plan(rollouts, torch.arange(rollouts.num_completions), 8192):  # doctest: +SKIP
        ...     logprobs, entropy = scorer.score(rollouts, rows, "cuda", with_entropy=True)
    """

    def __init__(
        self,
        model: nn.Module,
        temperature: float,
        layout: Layout | Literal["auto"] = "auto",
        share_prompts: bool = True,
        chunk_tokens: int | None = None,
        float32_head: bool = False,
    ) -> None:
        self.model = model
        fix_rope_scaling(model)  # whatever was loaded for a run has been fixed for its lengths already
        self.temperature = temperature
        self.share_prompts = share_prompts
        if float32_head and not output_head(model)[1].is_one_matrix:
            raise ValueError(
                "model.float32_head=true needs an output head of one matrix: this one has adapters, is sharded or is held "
                "in 4 bits. Leave the setting out."
            )
        self._head_options: dict[str, Any] = {"chunk_tokens": chunk_tokens, "float32_head": float32_head}
        self._requested = layout
        self._layout: Layout = "padded" if layout == "padded" else "packed"
        self._full_logits = False
        self._checked = False
        self._warned_oversize = False
        self._slow_attention: str | None = None
        self._previous_attention = install_packed_attention(base_model(model)) if self._layout == "packed" else None

    @property
    def layout(self) -> Layout:
        """The layout in use; the first check may change it where ``auto`` was asked for."""
        return self._layout

    def plan(self, rollouts: Rollouts, rows: Tensor, max_tokens: int) -> list[Tensor]:
        """Micro-batches for this layout, see ``plan_micro_batches``; warns once of a completion above the budget."""
        if not self._checked:
            self.check(next(self.model.parameters()).device)
        plan = plan_micro_batches(*self._sizes(rollouts), rows, max_tokens, self._layout)
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
        return count_tokens(*self._sizes(rollouts), rows, self._layout)

    def _sizes(self, rollouts: Rollouts) -> tuple[Tensor, Tensor, Tensor]:
        """Prompt lengths, completion lengths and the prompt of each completion."""
        if self.share_prompts:
            return rollouts.prompt_lengths, rollouts.completion_lengths, rollouts.group
        each = torch.arange(rollouts.num_completions)  # every completion is a group of its own
        return rollouts.prompt_lengths[rollouts.group], rollouts.completion_lengths, each

    def score(
        self,
        rollouts: Rollouts,
        rows: Tensor,
        device: torch.device | str,
        with_entropy: bool = False,
        entropy_grad: bool = False,
        beside: Beside | None = None,
    ) -> TokenScores:
        """Logprobs (and entropies) of the completion tokens of one micro-batch, in one forward pass.

        Args:
            rollouts: On the CPU.
            rows: ``(M,)`` int64 on the CPU, at least one completion.
            device: Where the model is.
            with_entropy: Also return entropies.
            entropy_grad: Let gradient flow through the entropies.
            beside: Further numbers from the same forward pass.

        Raises:
            ValueError: For ``beside`` where the model gives no hidden states to score from.
        """
        device = torch.device(device)
        if not self._checked:
            self.check(device)
        if beside is not None and self._full_logits:
            raise ValueError(
                f"{type(base_model(self.model)).__name__} is scored from its full logits: its output head does not follow the "
                "decoder's hidden states, which model.distillation needs."
            )
        options = {"with_entropy": with_entropy, "entropy_grad": entropy_grad, "beside": beside}
        return call_gathered(self.model, self._score, rollouts, rows, device, options)

    def hidden(self, rollouts: Rollouts, rows: Tensor, device: torch.device) -> Tensor:
        """``(T, H)`` hidden states that predict the completion tokens, for a head of one's own."""
        if not self._checked:
            self.check(device)
        return call_gathered(self.model, self._hidden, rollouts, rows, device)

    def idle(self, device: torch.device | str) -> Tensor:
        """0, from a pass over one token: for a rank without work, where passes of other ranks need its part."""
        return self.score(ONE_TOKEN, torch.tensor([0]), device).logprobs.sum() * 0.0

    def check(self, device: torch.device | str) -> None:
        """Settles the layout. The first ``plan`` or ``score`` calls it; call it before them to fail early.

        Raises:
            ValueError: If ``layout='packed'`` was asked for and the model does not support it.
        """
        self._checked = True
        device = torch.device(device)
        self._settle_layout(device)
        slow = self.slow_ways(device)
        if device.type == "cuda" and slow:
            said = "; ".join(f"{part}: {reason}" for part, reason in slow.items())
            logger.warning("Training passes take slower ways than this GPU allows. %s.", said)

    def slow_ways(self, device: torch.device) -> dict[str, str]:
        """What of a training pass is not done the fastest way, and why: layout, attention, head, kernels.

        Call it after ``check``. A CPU has no faster attention or kernels, so there they are always named.
        """
        ways = {}
        if self._layout == "padded":
            ways["layout"] = "padded micro-batches, not packed ones"
        elif self._slow_attention is not None:
            ways["attention"] = f"padded blocks, because {self._slow_attention}"
        ways |= self._slow_head(device)
        if not fused_modules(self.model) and not has_compiled_layers(self.model):
            reason = liger_obstacle(device) or "model.use_liger_kernel=false, or Liger does not know the architecture"
            ways["kernels"] = f"norms and activations one operation at a time ({reason})"
        return ways

    def _slow_head(self, device: torch.device) -> dict[str, str]:
        if self._full_logits:
            return {"head": "all logits of a completion at once"}
        if not output_head(self.model)[1].is_one_matrix:
            return {"head": "a module that autograd differentiates, because it is more than one matrix"}
        if (obstacle := fused_head_obstacle(device)) is not None:
            return {"head": f"softmax without fused kernels, because {obstacle}"}
        return {}

    def _settle_layout(self, device: torch.device) -> None:
        name = type(base_model(self.model)).__name__
        with evaluating(self.model):
            call_gathered(self.model, check_positions, base_model(self.model), device)
            self._check_kernels(name, device)
            if self._layout == "packed":
                reason = self._fastest_packed(device)
                if reason is None:
                    return
                self._leave_packed(name, reason)
            reason = self._disagreement(device, self._probe_full_logits(device))
        if reason is not None and is_sharded(self.model):
            raise ValueError(
                f"{name} has to be scored from its full logits, one completion at a time ({reason}), which weights "
                "spread over ranks do not allow: ranks have different numbers of them. Use trainer.strategy=ddp."
            )
        if reason is not None:
            self._full_logits = True
            logger.warning("%s is scored from its full logits, which needs more memory: %s.", name, reason)

    def _check_kernels(self, name: str, device: torch.device) -> None:
        """Keeps fused kernels only where they agree with the model's own code."""
        if not fused_modules(self.model):
            return
        with plain_kernels(self.model):
            expected = self._probe_full_logits(device)
        try:
            found = self._probe_full_logits(device)
            exact = computes_in_float32(self.model, device)
            reason = disagreement("their", found.logprobs, expected.logprobs, exact)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of a compiler that does not run on this machine, for example
            reason = f"{type(error).__name__}: {error}"
        if reason is not None:
            remove_liger_kernels(self.model)
            logger.warning("%s is trained without Liger's kernels, which is slower: %s.", name, reason)

    def _fastest_packed(self, device: torch.device) -> str | None:
        """Tries packing, with FlashAttention 3 first where there is one; returns what is wrong with it."""
        expected = self._probe_full_logits(device)  # before: FlashAttention 3 would compute these too
        faster = activate_flash_attention_3(device)
        reason = self._packed_obstacle(device, expected)
        if reason is not None and faster:
            restore_flash_attention_impl()
            reason = self._packed_obstacle(device, expected)
        return reason

    def _packed_obstacle(self, device: torch.device, expected: TokenScores) -> str | None:
        model = base_model(self.model)
        obstacle = packing_obstacle(model)
        if obstacle is not None:
            return obstacle
        rollouts = probe_rollouts(model.config.get_text_config().vocab_size)
        batch = pack(rollouts, torch.arange(rollouts.num_completions), self.share_prompts)
        packing = Packing(batch.segments, device)
        try:
            call_gathered(self.model, decode_packed, self._decoder(), batch, packing, device)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model that was not made for this may raise; the reason is shown
            return f"{type(error).__name__}: {error}"
        self._slow_attention = packing.slow_path
        return windows_obstacle(model, packing.windows) or self._disagreement(device, expected)

    def _disagreement(self, device: torch.device, expected: TokenScores) -> str | None:
        """How the scores of random tokens differ from log_softmax of the plain model's logits, if they do."""
        rollouts = probe_rollouts(base_model(self.model).config.get_text_config().vocab_size)
        rows = torch.arange(rollouts.num_completions)
        scores = call_gathered(self.model, self._score, rollouts, rows, device, {})
        exact = computes_in_float32(self.model, device)
        return disagreement(self._layout, scores.logprobs, expected.logprobs, exact)

    def _probe_full_logits(self, device: torch.device) -> TokenScores:
        """Scores of the random tokens from log_softmax of the model's logits."""
        rollouts = probe_rollouts(base_model(self.model).config.get_text_config().vocab_size)
        rows, targets = torch.arange(rollouts.num_completions), to_device(rollouts.completion_ids, device)
        return call_gathered(self.model, self._score_full_logits, rollouts, rows, targets, {})

    def _leave_packed(self, name: str, reason: str) -> None:
        if self._requested == "packed":
            raise ValueError(
                f"layout='packed' does not work with {name}: {reason}. Choose 'auto' or 'padded', which trains padded "
                "micro-batches sorted by length."
            )
        assert self._previous_attention is not None
        base_model(self.model).set_attn_implementation(self._previous_attention)
        self._layout = "padded"
        logger.warning("%s is trained on padded micro-batches, which is slower than packed: %s.", name, reason)

    def _score(self, rollouts: Rollouts, rows: Tensor, device: torch.device, options: dict[str, Any]) -> TokenScores:
        targets = to_device(rollouts.completion_ids[rollouts.tokens_of(rows)], device)
        options = options | self._head_options
        beside = options.pop("beside", None)
        if self._full_logits:
            return self._score_full_logits(rollouts, rows, targets, options)
        _, head = output_head(self.model)
        hidden = self._hidden(rollouts, rows, device)
        scores = head.logprobs(hidden, targets, temperature=self.temperature, **options)
        return TokenScores(*scores, beside=None if beside is None else beside(hidden, head))

    def _decoder(self) -> nn.Module:
        """What gives hidden states."""
        return output_head(self.model)[0]

    def _hidden(self, rollouts: Rollouts, rows: Tensor, device: torch.device) -> Tensor:
        """(T, H) hidden states that predict the completion tokens."""
        if self._layout == "packed":
            batch = pack(rollouts, rows, self.share_prompts)
            return decode_packed(self._decoder(), batch, Packing(batch.segments, device), device)
        return decode_padded(self._decoder(), pad(rollouts, rows), device)

    def _score_full_logits(
        self, rollouts: Rollouts, rows: Tensor, targets: Tensor, options: dict[str, Any]
    ) -> TokenScores:
        return score_full_logits(self.model, rollouts, rows, targets, {"temperature": self.temperature, **options})
