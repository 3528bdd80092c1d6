"""A model and rollouts to the logprobs of the completion tokens: the one path of policy, old policy and reference."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from grpo_lightning.attention import Packing, activate_flash_attention_3, install_packed_attention
from grpo_lightning.logprobs import selected_logprobs_of_module
from grpo_lightning.output_head import base_model, output_head
from grpo_lightning.packing import Layout, PackedBatch, count_tokens, pack, pad, plan_micro_batches
from grpo_lightning.types import Rollouts

logger = logging.getLogger(__name__)

EXACT_TOLERANCE = 1e-4
"""Nats by which float32 logprobs of two layouts may differ on average; rounding stays two orders below."""
ROUNDED_TOLERANCE = 0.15
"""The same for lower precision. Rounding alone gives a few hundredths, another context gives nats."""


class TokenScores(NamedTuple):
    """Scores of the completion tokens of some rows, in the order of ``rollouts.tokens_of(rows)``."""

    logprobs: Tensor
    """(T,) float32 nats, with gradient when grad mode is on."""
    entropy: Tensor | None
    """(T,) float32 nats; None unless asked for."""


class Scorer:
    """Scores completion tokens under a model, packed where the model's attention allows it.

    The first call checks the chosen layout and the shortcut around the full logits against plain forward passes of the
    model on a few random tokens. What disagrees is replaced by the next slower way, said once: packed, padded,
    full logits row by row.

    Example:
        >>> scorer = Scorer(model, temperature=0.7)                                         # doctest: +SKIP
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
        """Args:
        model: A transformers causal language model, or a PEFT model around one (adapters that are injected into its
            layers). Its weights may be loaded or changed later.
        temperature: The sampling temperature.
        layout: ``packed`` insists and raises where ``auto`` falls back.
        share_prompts: Compute the prompt of a group once per micro-batch (packed layout only).
        chunk_tokens: Tokens whose logits exist at the same time; default by device.
        float32_head: Compute logits in float32.
        """
        self.model = model
        self.temperature = temperature
        self.share_prompts = share_prompts
        self.head_options: dict[str, Any] = {"chunk_tokens": chunk_tokens, "float32_head": float32_head}
        self._requested = layout
        self._layout: Layout = "padded" if layout == "padded" else "packed"
        self._full_logits = False
        self._checked = False
        self._warned_oversize = False
        if self._layout == "packed":
            self._previous_attention = install_packed_attention(base_model(model))

    @property
    def layout(self) -> Layout:
        """The layout in use; ``auto`` is settled by the first check."""
        return self._layout

    def plan(self, rollouts: Rollouts, rows: Tensor, max_tokens: int) -> list[Tensor]:
        """Micro-batches for this layout, see ``plan_micro_batches``; warns once of a completion above the budget."""
        if not self._checked:
            self.check(next(self.model.parameters()).device)
        sizes = (rollouts.prompt_lengths, rollouts.completion_lengths, rollouts.group)
        if not self.share_prompts:  # then every completion is a group of its own
            prompt_lengths = rollouts.prompt_lengths[rollouts.group]
            sizes = (prompt_lengths, rollouts.completion_lengths, torch.arange(rollouts.num_completions))
        plan = plan_micro_batches(*sizes, rows, max_tokens, self._layout)
        if plan and not self._warned_oversize:
            largest = max(count_tokens(*sizes, part, self._layout) for part in plan)
            if largest > max_tokens:
                self._warned_oversize = True
                logger.warning(
                    "A completion and its prompt have %d tokens, more than model.max_tokens_per_microbatch=%d; it is "
                    "trained in a micro-batch of its own. Raise the budget, or lower model.max_completion_length.",
                    largest,
                    max_tokens,
                )
        return plan

    def score(
        self,
        rollouts: Rollouts,
        rows: Tensor,
        device: torch.device | str,
        with_entropy: bool = False,
        entropy_grad: bool = False,
    ) -> TokenScores:
        """Logprobs (and entropies) of the completion tokens of ``rows``, in one forward pass.

        Args:
            rollouts: On the CPU.
            rows: ``(M,)`` int64, the completions of one micro-batch.
            device: Where the model is.
            with_entropy: Also return entropies.
            entropy_grad: Let gradient flow through the entropies.
        """
        if not self._checked:
            self.check(device)
        return self._score(rollouts, rows, torch.device(device), with_entropy, entropy_grad)

    def check(self, device: torch.device | str) -> None:
        """Settles the layout on random tokens. ``score`` calls it once; call it earlier to fail early.

        Raises:
            ValueError: If ``layout='packed'`` was asked for and the model does not support it.
        """
        self._checked = True
        device = torch.device(device)
        name = type(base_model(self.model)).__name__
        with torch.no_grad(), _evaluating(self.model):
            if self._layout == "packed":
                faster = activate_flash_attention_3(device)
                reason = self._packed_obstacle(device) or self._disagreement(device)
                if reason is not None and faster:
                    torch.nn.attention.restore_flash_attention_impl()
                    reason = self._packed_obstacle(device) or self._disagreement(device)
                if reason is None:
                    return
                self._leave_packed(name, reason)
            reason = self._disagreement(device)
        if reason is not None:
            self._full_logits = True
            logger.warning("%s is scored from its full logits, which needs more memory: %s.", name, reason)

    def _leave_packed(self, name: str, reason: str) -> None:
        if self._requested == "packed":
            raise ValueError(
                f"layout='packed' does not work with {name}: {reason}. Choose 'auto' or 'padded', which trains padded "
                "micro-batches sorted by length."
            )
        base_model(self.model).set_attn_implementation(self._previous_attention)
        self._layout = "padded"
        logger.warning("%s is trained on padded micro-batches, which is slower than packed: %s.", name, reason)

    def _packed_obstacle(self, device: torch.device) -> str | None:
        """What keeps the model's layers from being packed: each has to ask for its attention exactly as configured."""
        config = base_model(self.model).config.get_text_config()
        for name in ("attention_dropout", "attn_pdrop"):
            if getattr(config, name, 0.0):
                return f"the packed kernels have no dropout and the model's config has {name}={getattr(config, name)}"
        window = getattr(config, "sliding_window", None)
        layers = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
        unknown = set(layers) - {"full_attention", "sliding_attention"}
        if unknown:
            return f"its layers of type {', '.join(sorted(unknown))} look across the sequences of a pack"
        rollouts = _probe(config.vocab_size)
        batch = pack(rollouts, torch.arange(rollouts.num_completions), self.share_prompts)
        packing = Packing(batch.segments, device)
        try:
            self._decode_packed(batch, packing, device)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model that was not made for this may raise; the reason is shown
            return f"{type(error).__name__}: {error}"
        expected = [window if layer == "sliding_attention" else None for layer in layers]
        if packing.windows != expected:
            return f"its layers asked for packed attention with windows {packing.windows}, not {expected}"
        return None

    def _disagreement(self, device: torch.device) -> str | None:
        """How the scores differ from log_softmax of the plain model's logits on random tokens, if they do."""
        rollouts = _probe(base_model(self.model).config.get_text_config().vocab_size)
        rows = torch.arange(rollouts.num_completions)
        scores = self._score(rollouts, rows, device, with_entropy=False, entropy_grad=False)
        targets = _to_device(rollouts.completion_ids, device)
        expected = self._score_full_logits(rollouts, rows, targets, {}).logprobs
        difference = float((scores.logprobs - expected).abs().mean())
        tolerance = EXACT_TOLERANCE if _computes_in_float32(self.model, device) else ROUNDED_TOLERANCE
        # Written so that NaN disagrees.
        if difference <= tolerance:
            return None
        return f"{self._layout} logprobs differ from the plain model's by {difference:.2g} nats on average"

    def _score(
        self, rollouts: Rollouts, rows: Tensor, device: torch.device, with_entropy: bool, entropy_grad: bool
    ) -> TokenScores:
        targets = _to_device(rollouts.completion_ids[rollouts.tokens_of(rows)], device)
        options = {"with_entropy": with_entropy, "entropy_grad": entropy_grad, **self.head_options}
        if self._full_logits:
            return self._score_full_logits(rollouts, rows, targets, options)
        decoder, head = output_head(self.model)
        if self._layout == "packed":
            batch = pack(rollouts, rows, self.share_prompts)
            hidden = self._decode_packed(batch, Packing(batch.segments, device), device)
        else:
            padded = pad(rollouts, rows)
            # No mask: nothing attends to what follows it, so right padding is seen by padding alone.
            states = decoder(input_ids=_to_device(padded.input_ids, device), use_cache=False).last_hidden_state
            hidden = states.flatten(0, 1)[_to_device(padded.score_index, device)]
        return TokenScores(*head.logprobs(hidden, targets, temperature=self.temperature, **options))

    def _decode_packed(self, batch: PackedBatch, packing: Packing, device: torch.device) -> Tensor:
        """(T, H) hidden states that predict the completion tokens of one packed row."""
        decoder, _ = output_head(self.model)
        states = decoder(
            input_ids=_to_device(batch.input_ids[None], device),
            position_ids=_to_device(batch.position_ids[None], device),
            # A mask of four dimensions passes through the model as it is: none is built, and packing needs none.
            attention_mask=torch.zeros(1, 1, 1, 1, device=device),
            use_cache=False,
            packing=packing,
        ).last_hidden_state
        return states[0][_to_device(batch.score_index, device)]

    def _score_full_logits(
        self, rollouts: Rollouts, rows: Tensor, targets: Tensor, options: dict[str, Any]
    ) -> TokenScores:
        """The plain model row by row, with all its logits in its own precision and a chunk at a time in float32."""
        model = base_model(self.model)
        prompts, completions = rollouts.prompts(), rollouts.completions()
        logits = []
        for row in rows.tolist():
            prompt = prompts[int(rollouts.group[row])]
            ids = torch.cat([prompt, completions[row]])[None]
            row_logits = model(input_ids=_to_device(ids, targets.device), use_cache=False).logits[0]
            logits.append(row_logits[len(prompt) - 1 : -1])
        flat = torch.cat(logits)
        return TokenScores(
            *selected_logprobs_of_module(
                flat, torch.clone, targets, vocab_size=flat.shape[1], temperature=self.temperature, **options
            )
        )


def _probe(vocab_size: int) -> Rollouts:
    """Two groups of short random completions of unequal length."""
    generator = torch.Generator().manual_seed(0)
    prompts, completions = (
        [torch.randint(vocab_size, (n,), generator=generator).tolist() for n in lengths]
        for lengths in ((5, 3), (4, 7, 2, 6, 1))
    )
    logprobs = [[0.0] * len(ids) for ids in completions]
    return Rollouts.from_lists(prompts, completions, logprobs, [False] * 5, [0, 0, 0, 1, 1])


def _computes_in_float32(model: nn.Module, device: torch.device) -> bool:
    if torch.is_autocast_enabled(device.type) or next(model.parameters()).dtype != torch.float32:
        return False
    return device.type != "cuda" or torch.get_float32_matmul_precision() == "highest"


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy from pinned memory, so that the host does not wait for the accelerator."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; each submodule's own mode again outside."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
