"""One forward pass over a micro-batch, in one of the ways to lay it out."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from grpo_lightning.distributed.sharding import call_gathered
from grpo_lightning.numerics.deterministic_gather import rows_at
from grpo_lightning.numerics.device_copy import to_device
from grpo_lightning.numerics.load_balance import ExpertLoads, expert_loads
from grpo_lightning.numerics.output_head import base_model
from grpo_lightning.scoring.blocks import Packing
from grpo_lightning.scoring.decoder_graphs import DecoderGraphs
from grpo_lightning.scoring.images.embedding import decoder_inputs
from grpo_lightning.scoring.packed_attention import install_packed_attention
from grpo_lightning.scoring.packing import PackedBatch, PaddedBatch, pack, pad
from grpo_lightning.scoring.planning import Layout
from grpo_lightning.scoring.readout import Readout, TokenScores
from grpo_lightning.scoring.router_replay import RouterReplay, experts_at
from grpo_lightning.types import Rollouts


class Decoded(NamedTuple):
    """What the decoder says of one micro-batch."""

    hidden: Tensor
    """(T, H) hidden states that predict the completion tokens."""
    loads: ExpertLoads | None
    """As in ``TokenScores``."""


class ForwardPass:
    """A model, what is read off its hidden states, and the way to them, which ``settling.settle`` may change.

    Args:
        model: As for ``Scorer``.
        readout: What is read off.
        layout: Of the first try; packed attention is installed for it.
        share_prompts: Compute the prompt of a group once (packed layout only).
        probe: What ways are compared on; a few random tokens by default.
    """

    def __init__(
        self, model: nn.Module, readout: Readout, layout: Layout, share_prompts: bool, probe: Rollouts | None = None
    ) -> None:
        self.model, self.readout, self.layout, self.share_prompts = model, readout, layout, share_prompts
        self.probe = probe
        self.is_plain = False
        """Whether each sequence goes through the model's own forward pass, whose hidden states do not explain its output."""
        self.slow_attention: str | None = None
        """Why packed attention is not the fastest one."""
        self.graphs: DecoderGraphs | None = None
        """Which launch passes of training, where a setting asks for it."""
        self._replay: RouterReplay | None = None
        self._ahead: tuple[Rollouts, Tensor, PackedBatch | PaddedBatch] | None = None
        """What has been laid out, of which completions, and not been asked for yet."""
        self._own_attention = install_packed_attention(base_model(model)) if layout == "packed" else None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def leave_packed(self) -> None:
        """Goes on padded, with the attention that the model came with."""
        assert self._own_attention is not None
        base_model(self.model).set_attn_implementation(self._own_attention)
        self.layout = "padded"

    def score(self, rollouts: Rollouts, rows: Tensor, **options: Any) -> TokenScores:
        """The readout's scores of the completion tokens of ``rows``; ``with_loads`` asks for those of routers too."""
        return call_gathered(self.model, self._score, rollouts, rows, options)

    def score_plain(self, rollouts: Rollouts, rows: Tensor, **options: Any) -> TokenScores:
        """The same by the model's own forward pass, a sequence at a time."""
        return call_gathered(self.model, self._score_plain, rollouts, rows, options)

    def hidden(self, rollouts: Rollouts, rows: Tensor) -> Tensor:
        """``(T, H)`` hidden states that predict the completion tokens."""
        return call_gathered(self.model, self._decode, rollouts, rows).hidden

    def loads(self, rollouts: Rollouts, rows: Tensor) -> ExpertLoads | None:
        """What routers do with these completions and their prompts, without a readout; None without routers."""
        return call_gathered(self.model, self._decode, rollouts, rows, True).loads

    def lay_out_ahead(self, rollouts: Rollouts, rows: Tensor) -> None:
        """Lays a pass out now, whose scores are asked for next; from another thread too."""
        self._ahead = rollouts, rows, self._laid_out(rollouts, rows)

    def _laid_out(self, rollouts: Rollouts, rows: Tensor) -> PackedBatch | PaddedBatch:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] is rollouts and torch.equal(ahead[1], rows):
            return ahead[2]
        return pack(rollouts, rows, self.share_prompts) if self.layout == "packed" else pad(rollouts, rows)

    def packing_of(self, rollouts: Rollouts, rows: Tensor) -> Packing:
        """What the layers asked of packed attention in a pass over ``rows``."""
        batch = pack(rollouts, rows, self.share_prompts)
        packing = Packing(batch.spans, self.device)
        call_gathered(self.model, self._decode_packed, rollouts, batch, packing)
        return packing

    def _score(self, rollouts: Rollouts, rows: Tensor, options: dict[str, Any]) -> TokenScores:
        with_loads = options.pop("with_loads", False)
        if self.is_plain and rollouts.routed_experts is not None:
            raise ValueError(
                f"model.router_replay=true has no effect on {type(base_model(self.model)).__name__}, which is scored from "
                "its full logits. Leave it out."
            )
        if self.is_plain:
            scores = self._score_plain(rollouts, rows, options)
            return scores._replace(loads=self._decode(rollouts, rows, True).loads) if with_loads else scores
        targets = self.readout.targets(rollouts, rows, self.device)  # copied before the pass, which it would wait for
        hidden, loads = self._decode(rollouts, rows, with_loads)
        return self.readout.read(hidden, targets, **options)._replace(loads=loads)

    def _score_plain(self, rollouts: Rollouts, rows: Tensor, options: dict[str, Any]) -> TokenScores:
        return self.readout.read_plain(rollouts, rows, self.readout.targets(rollouts, rows, self.device), **options)

    def _decode(self, rollouts: Rollouts, rows: Tensor, with_loads: bool = False) -> Decoded:
        batch = self._laid_out(rollouts, rows)
        if isinstance(batch, PackedBatch):
            hidden = None if with_loads else self._by_graph(rollouts, batch)
            if hidden is not None:
                return Decoded(hidden, None)
            return self._decode_packed(rollouts, batch, Packing(batch.spans, self.device), with_loads)
        return self._decode_padded(rollouts, batch, with_loads)

    def _by_graph(self, rollouts: Rollouts, batch: PackedBatch) -> Tensor | None:
        """As in ``Decoded``, by a graph where one serves this pass."""
        if self.graphs is None or rollouts.images or rollouts.routed_experts is not None:
            return None
        hidden = self.graphs.hidden(self.readout.decoder, batch)
        return None if hidden is None else rows_at(hidden, to_device(batch.score_index, self.device))

    def _decode_packed(
        self, rollouts: Rollouts, batch: PackedBatch, packing: Packing, with_loads: bool = False
    ) -> Decoded:
        states = self.readout.decoder(
            **self._inputs(rollouts, batch),
            # A mask of four dimensions passes through the model as it is: none is built, and packing needs none.
            attention_mask=torch.zeros(1, 1, 1, 1, device=self.device),
            use_cache=False,
            packing=packing,
            **_asking(with_loads),
        )
        hidden = rows_at(states.last_hidden_state[0], to_device(batch.score_index, self.device))
        return Decoded(hidden, self._loads(states, batch.times) if with_loads else None)

    def _decode_padded(self, rollouts: Rollouts, batch: PaddedBatch, with_loads: bool) -> Decoded:
        # No mask: nothing attends to what follows it, so right padding is seen by padding alone.
        inputs = self._inputs(rollouts, batch)
        states = self.readout.decoder(**inputs, use_cache=False, **_asking(with_loads))
        hidden = rows_at(states.last_hidden_state.flatten(0, 1), to_device(batch.score_index, self.device))
        return Decoded(hidden, self._loads(states, batch.times) if with_loads else None)

    def _inputs(self, rollouts: Rollouts, batch: PackedBatch | PaddedBatch) -> dict[str, Any]:
        """The decoder's arguments for the tokens of a batch: their ids, or embeddings where prompts show images."""
        inputs = self._replayed(rollouts, batch)
        if isinstance(batch, PaddedBatch):
            ids, index = batch.input_ids, batch.source_index
        else:
            ids, index = batch.input_ids[None], batch.source_index[None]
            inputs["position_ids"] = to_device(batch.position_ids[None], self.device)
        if rollouts.images:
            return inputs | decoder_inputs(base_model(self.model), rollouts, index, self.device)
        return inputs | {"input_ids": to_device(ids, self.device)}

    def _replayed(self, rollouts: Rollouts, batch: PackedBatch | PaddedBatch) -> dict[str, Any]:
        """What the decoder is told of the experts that the sampler chose, where rollouts know them."""
        if rollouts.routed_experts is None:
            return {}
        self._replay = self._replay or RouterReplay(self.model)
        return experts_at(rollouts, batch.source_index, self.device)

    def _loads(self, states: Any, times: Tensor) -> ExpertLoads | None:
        """Of what the decoder says of its routers; None where it says nothing."""
        logits = states.router_logits
        if not logits:
            return None
        top_k = base_model(self.model).config.get_text_config().num_experts_per_tok
        return expert_loads(logits, to_device(times, logits[0].device), top_k)


def _asking(with_loads: bool) -> dict[str, bool]:
    return {"output_router_logits": True} if with_loads else {}
