"""Packed batches padded to shapes that graphs are recorded for: sizes by hand, and scores that padding does not change."""

from __future__ import annotations

import pytest
import torch
from test_packing import rollouts_of
from test_scorer import some_rollouts, toy

from grpo_lightning.scoring.blocks import Packing
from grpo_lightning.scoring.fixed_shapes import Shape, filled, shape_of, with_room
from grpo_lightning.scoring.forward import ForwardPass
from grpo_lightning.scoring.packing import pack
from grpo_lightning.scoring.readout import LogprobReadout


def test_the_shape_of_a_shared_prompt_by_hand():
    rollouts = rollouts_of([300], [400, 700], [0, 0])
    # 1,400 tokens between 1,024 and 2,048 go up in steps of 1,024 / 16; 300 + 700 + 1,000 keys and 8 of padding in 128.
    shape = shape_of(pack(rollouts, torch.arange(2)))
    assert shape == Shape(tokens=1408, keys=2048, spans=256, longest_queries=1024, longest_keys=1024)


def test_the_shape_without_shared_prompts_gathers_no_keys():
    shape = shape_of(pack(rollouts_of([3, 4], [5, 20], [0, 1]), torch.arange(2)))
    assert shape == Shape(tokens=32, keys=None, spans=256, longest_queries=256, longest_keys=256)


def test_what_is_added_is_a_span_of_its_own_and_spans_of_no_token():
    batch = pack(rollouts_of([2], [2, 1], [0, 0]), torch.arange(2))  # spans of 2, 2 and 1 queries, of 2, 4 and 3 keys
    found = filled(batch, Shape(tokens=8, keys=16, spans=5, longest_queries=8, longest_keys=8))
    assert found.spans.cu_seq_q.tolist() == [0, 2, 4, 5, 8, 8]
    assert found.spans.cu_seq_k.tolist() == [0, 2, 6, 9, 12, 12]
    assert found.spans.key_index.tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 4, 5, 6, 7, 0, 0, 0, 0]
    assert found.input_ids[5:].tolist() == [0, 0, 0]
    assert found.score_index.tolist() == batch.score_index.tolist()


def test_a_packing_for_several_batches_has_no_blocks_whose_indices_would_be_those_of_the_first():
    batch = pack(rollouts_of([2], [2, 1], [0, 0]), torch.arange(2))
    shape = shape_of(batch)
    packing = with_room(Packing(filled(batch, shape).spans), shape)
    with pytest.raises(RuntimeError, match="without a flash kernel"):
        packing.blocks()


@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("name", ["qwen2 with windows in some layers", "gemma2"])
def test_padding_changes_no_score_and_no_gradient(name, share_prompts):
    model, rollouts = toy(name), some_rollouts()
    forward = ForwardPass(model, LogprobReadout(model, 1.0), "packed", share_prompts)
    rows = torch.arange(rollouts.num_completions)
    batch = pack(rollouts, rows, share_prompts)
    shape = shape_of(batch)

    def run(batch, packing):
        model.zero_grad()
        hidden = forward._decode_packed(rollouts, batch, packing).hidden
        (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
        return hidden, [p.grad for p in model.parameters() if p.grad is not None]

    expected, wanted = run(batch, Packing(batch.spans))
    longer = filled(batch, shape)
    found, gradients = run(longer, Packing(longer.spans))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for gradient, reference in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-4)
