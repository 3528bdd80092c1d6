"""Who sees which row: every row once, the same global order on any number of ranks."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_lightning.datamodules.drawing.places import (
    epoch_permutation,
    evaluation_rows,
    num_evaluation_batches,
    training_rows,
)


def test_an_epochs_order_is_a_permutation_that_only_seed_and_epoch_decide() -> None:
    order = epoch_permutation(50, seed=1, epoch=2)
    assert sorted(order.tolist()) == list(range(50))
    torch.manual_seed(99)
    assert torch.equal(epoch_permutation(50, seed=1, epoch=2), order)


def test_neighbouring_seeds_and_epochs_share_no_order() -> None:
    orders = {tuple(epoch_permutation(20, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_drawing_an_order_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    epoch_permutation(50, seed=1, epoch=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_shuffling_every_epoch_is_in_the_datasets_order() -> None:
    assert epoch_permutation(4, seed=3, epoch=7, shuffle=False).tolist() == [0, 1, 2, 3]


def test_a_global_batch_is_contiguous_and_each_rank_takes_a_contiguous_part() -> None:
    assert [list(training_rows(1, batch_size=3, rank=rank, world_size=2)) for rank in (0, 1)] == [
        [6, 7, 8],
        [9, 10, 11],
    ]


def test_one_two_and_three_ranks_train_on_the_same_rows_in_the_same_order() -> None:
    def global_batch(batch: int, world_size: int) -> list[int]:
        return [row for rank in range(world_size) for row in training_rows(batch, 6 // world_size, rank, world_size)]

    for batch in range(4):
        assert global_batch(batch, 1) == global_batch(batch, 2) == global_batch(batch, 3)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 8))
def test_evaluation_sees_each_row_once_in_batches_that_fit(rows: int, batch_size: int, world_size: int) -> None:
    batches = range(num_evaluation_batches(rows, batch_size, world_size))
    parts = [evaluation_rows(b, rows, batch_size, rank, world_size) for b in batches for rank in range(world_size)]
    assert [row for part in parts for row in part] == list(range(rows))
    assert max(map(len, parts)) <= batch_size
    if rows >= world_size and batch_size > 1:
        assert min(map(len, parts)) >= 1
