"""Micro-batch plans and packed layouts, by properties of random rollouts and by layouts worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_lightning.scoring.packing import pack, pad
from grpo_lightning.scoring.planning import count_tokens, plan_micro_batches
from grpo_lightning.types import Rollouts, ranges


@st.composite
def ragged_rollouts(draw: st.DrawFn) -> Rollouts:
    """Up to 5 prompts with groups of unequal, possibly no, size, their completions in any order."""
    prompts = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    group = draw(st.lists(st.integers(0, len(prompts) - 1), min_size=1, max_size=12))
    lengths = draw(st.lists(st.integers(1, 12), min_size=len(group), max_size=len(group)))
    return rollouts_of(prompts, lengths, group)


def rollouts_of(prompts: list[int], lengths: list[int], group: list[int]) -> Rollouts:
    """Rollouts of these lengths whose tokens are all different."""
    ids = iter(range(10_000))
    prompt_ids = [[next(ids) for _ in range(length)] for length in prompts]
    completion_ids = [[next(ids) for _ in range(length)] for length in lengths]
    zeros = [[0.0] * length for length in lengths]
    return Rollouts.from_lists(prompt_ids, completion_ids, zeros, [False] * len(lengths), group)


def some_rows(rollouts: Rollouts, seed: int) -> torch.Tensor:
    """At least one row, in random order."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, rollouts.num_completions + 1, (1,), generator=generator))
    return torch.randperm(rollouts.num_completions, generator=generator)[:count]


def sizes(rollouts: Rollouts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return rollouts.prompt_lengths, rollouts.completion_lengths, rollouts.group


def sequences_of(rollouts: Rollouts, rows: torch.Tensor) -> list[list[int]]:
    prompts, completions = rollouts.prompts(), rollouts.completions()
    return [prompts[int(rollouts.group[row])].tolist() + completions[row].tolist() for row in rows.tolist()]


@settings(deadline=None)
@given(ragged_rollouts(), st.integers(0, 99), st.integers(1, 80), st.sampled_from(["packed", "padded"]))
def test_a_plan_places_every_completion_once_and_exceeds_the_budget_only_for_a_single_one(
    rollouts, seed, max_tokens, layout
):
    rows = some_rows(rollouts, seed)
    plan = plan_micro_batches(*sizes(rollouts), rows, max_tokens, layout)
    assert sorted(torch.cat(plan).tolist()) == sorted(rows.tolist())
    for part in plan:
        assert len(part) == 1 or count_tokens(*sizes(rollouts), part, layout) <= max_tokens


@settings(deadline=None)
@given(ragged_rollouts(), st.integers(0, 99))
def test_every_completion_token_is_scored_once_from_the_token_before_it(rollouts, seed):
    rows = some_rows(rollouts, seed)
    expected_ids = rollouts.completion_ids[rollouts.tokens_of(rows)].tolist()
    before = [
        previous
        for sequence, row in zip(sequences_of(rollouts, rows), rows.tolist(), strict=True)
        for previous in sequence[-int(rollouts.completion_lengths[row]) - 1 : -1]
    ]
    assert len(before) == len(expected_ids)
    for batch in (pack(rollouts, rows), pack(rollouts, rows, share_prompts=False), pad(rollouts, rows)):
        assert batch.input_ids.flatten()[batch.score_index].tolist() == before


@settings(deadline=None)
@given(ragged_rollouts(), st.integers(0, 99))
def test_the_keys_of_the_packed_spans_are_the_sequences_that_went_in(rollouts, seed):
    rows = some_rows(rollouts, seed)
    batch = pack(rollouts, rows)
    spans = batch.spans
    used = sorted(set(rollouts.group[rows].tolist()))
    is_shared = len(used) < len(rows)
    key_index = spans.key_index if is_shared else torch.arange(batch.input_ids.numel())
    assert (spans.key_index is None) != is_shared  # nothing is gathered where nothing is shared
    keys = [batch.input_ids[index].tolist() for index in key_index.split(spans.cu_seq_k.diff().tolist())]
    prompts = [rollouts.prompts()[prompt].tolist() for prompt in used] if is_shared else []
    assert sorted(keys) == sorted(sequences_of(rollouts, rows) + prompts)


@settings(deadline=None)
@given(ragged_rollouts(), st.integers(0, 99), st.booleans())
def test_spans_positions_and_offsets_are_consistent(rollouts, seed, share_prompts):
    rows = some_rows(rollouts, seed)
    batch = pack(rollouts, rows, share_prompts)
    spans, total = batch.spans, batch.input_ids.numel()
    assert (spans.cu_seq_q[0], spans.cu_seq_q[-1], batch.position_ids.numel()) == (0, total, total)
    assert (spans.cu_seq_q.diff() > 0).all()
    layout_tokens = count_tokens(*sizes(rollouts), rows)
    assert total == (layout_tokens if share_prompts else sum(map(len, sequences_of(rollouts, rows))))
    key_index = torch.arange(total) if spans.key_index is None else spans.key_index
    for first, last, key_first, key_last in zip(
        spans.cu_seq_q, spans.cu_seq_q[1:], spans.cu_seq_k, spans.cu_seq_k[1:], strict=False
    ):
        keys = key_index[key_first:key_last]
        # The last keys are the queries themselves, and a key's position is its place in the sequence.
        assert keys[-int(last - first) :].tolist() == list(range(first, last))
        assert batch.position_ids[keys].tolist() == list(range(len(keys)))


@settings(deadline=None)
@given(ragged_rollouts(), st.integers(0, 99))
def test_padded_rows_are_the_sequences_followed_by_zeros(rollouts, seed):
    rows = some_rows(rollouts, seed)
    for found, sequence in zip(pad(rollouts, rows).input_ids.tolist(), sequences_of(rollouts, rows), strict=True):
        assert found == sequence + [0] * (len(found) - len(sequence))


def test_a_shared_pack_of_two_groups_by_hand():
    rollouts = Rollouts.from_lists(
        prompt_ids=[[1, 2, 3], [4]],
        completion_ids=[[10, 11], [20], [12]],
        sampling_logprobs=[[0.0, 0.0], [0.0], [0.0]],
        truncated=[False] * 3,
        group=[0, 1, 0],
    )
    batch = pack(rollouts, torch.tensor([2, 1, 0]))
    assert batch.input_ids.tolist() == [1, 2, 3, 12, 10, 11, 4, 20]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 3, 4, 0, 1]
    assert batch.spans.cu_seq_q.tolist() == [0, 3, 4, 6, 7, 8]
    assert batch.spans.cu_seq_k.tolist() == [0, 3, 7, 12, 13, 15]
    assert batch.spans.key_index.tolist() == [*[0, 1, 2], *[0, 1, 2, 3], *[0, 1, 2, 4, 5], 6, *[6, 7]]
    assert batch.score_index.tolist() == [2, 6, 2, 4]


def test_a_group_that_fits_stays_together_and_one_that_does_not_repeats_its_prompt():
    prompt_lengths, group = torch.tensor([10, 10]), torch.tensor([0, 0, 0, 0, 1, 1])
    completion_lengths = torch.tensor([20, 20, 20, 20, 5, 5])
    plan = plan_micro_batches(prompt_lengths, completion_lengths, group, torch.arange(6), max_tokens=50)
    assert sorted(sorted(part.tolist()) for part in plan) == [[0, 1], [2, 3], [4, 5]]
    assert [count_tokens(prompt_lengths, completion_lengths, group, part) for part in plan] == [50, 50, 20]


def test_bins_are_filled_best_fit_decreasing():
    lengths = torch.tensor([6, 5, 4, 3, 1, 1])
    plan = plan_micro_batches(torch.ones(6, dtype=torch.int64), lengths - 1, torch.arange(6), torch.arange(6), 10)
    assert [int(lengths[part].sum()) for part in plan] == [10, 10]


def test_padded_micro_batches_hold_rows_of_similar_length():
    prompt_lengths, group = torch.tensor([2]), torch.zeros(5, dtype=torch.int64)
    plan = plan_micro_batches(
        prompt_lengths, torch.tensor([8, 1, 7, 2, 1]), group, torch.arange(5), max_tokens=20, layout="padded"
    )
    assert [part.tolist() for part in plan] == [[0, 2], [3, 1, 4]]


def test_a_completion_above_the_budget_is_alone_and_first():
    plan = plan_micro_batches(
        torch.tensor([3]), torch.tensor([2, 50, 2]), torch.zeros(3, dtype=torch.int64), torch.arange(3), max_tokens=10
    )
    assert [part.tolist() for part in plan] == [[1], [0, 2]]


def test_no_rows_make_no_micro_batch():
    empty = torch.zeros(0, dtype=torch.int64)
    assert plan_micro_batches(torch.tensor([3]), torch.tensor([2]), torch.tensor([0]), empty, 10) == []


def test_a_budget_of_nothing_is_refused_by_its_name():
    one = torch.tensor([1])
    with pytest.raises(ValueError, match=r"model\.max_tokens_per_microbatch=0"):
        plan_micro_batches(one, one, torch.tensor([0]), torch.tensor([0]), 0)


def test_an_empty_prompt_is_refused_because_nothing_predicts_the_first_token():
    rollouts = Rollouts.from_lists([[]], [[5]], [[0.0]], [False], [0])
    with pytest.raises(ValueError, match="prompt 0 has no tokens"):
        pack(rollouts, torch.tensor([0]))


def test_ranges_count_up_from_each_start():
    assert ranges(torch.tensor([4, 9, 0]), torch.tensor([2, 0, 3])).tolist() == [4, 5, 0, 1, 2]


def test_values_of_tokens_add_up_by_completion():
    rollouts = Rollouts.from_lists(
        [[5]], [[1], [2, 3], [4, 6, 7]], [[-1.0], [-1.0] * 2, [-1.0] * 3], [False] * 3, [0, 0, 0]
    )
    assert rollouts.summed(torch.tensor([0.5, 1.0, 2.0, 4.0, 8.0, 16.0])).tolist() == [0.5, 3.0, 28.0]
    flags = torch.tensor([True, False, True, False, False, False])
    assert rollouts.summed(flags).tolist() == [1, 1, 0] and rollouts.summed(flags).dtype == torch.int64
    assert replace(rollouts, completion_mask=~flags).policy_lengths().tolist() == [0, 1, 3]
