"""What comes after the current batch is known without moving there."""

from __future__ import annotations

from itertools import islice

import pytest
from toy_models import build_tokenizer

from grpo_lightning.datamodules.converters import get_dataset_converter
from grpo_lightning.datamodules.drawing.loader import TrainingLoader
from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.datamodules.prompts.form import PromptForm

ROWS = [{"prompt": f"question {index}"} for index in range(11)]  # 5 batches of 2 an epoch, one row left out of each


@pytest.fixture(scope="module")
def prompts() -> PromptDataset:
    return PromptDataset(ROWS, get_dataset_converter("grpo"), PromptForm(build_tokenizer()), "rows")


def uids(loader: TrainingLoader, batches: int) -> list[list[int]]:
    found = []
    while len(found) < batches:
        found += [batch.uids for batch in islice(loader, batches - len(found))]
    return found


@pytest.mark.parametrize("rank", [0, 1])
def test_the_following_batch_is_the_one_that_comes_over_the_end_of_epochs_too(prompts, rank):
    ranks = {"rank": rank, "world_size": 2, "seed": 5}
    expected = uids(TrainingLoader(prompts, 1, **ranks), 11)
    loader, handed_out, ahead = TrainingLoader(prompts, 1, **ranks), [], []
    for batch in (batch for _ in range(2) for batch in loader):
        handed_out.append(batch.uids)
        ahead.append(loader.batch_at(*loader.following_place()).uids)
    assert handed_out == expected[:10]  # looking ahead has moved nothing
    assert ahead == expected[1:11]


def test_an_epoch_that_the_trainer_ends_early_is_followed_by_the_next(prompts):
    loader = TrainingLoader(prompts, 2)
    batches = iter(loader)
    assert loader.following_place(limit=2) == (0, 0)
    next(batches)
    assert loader.following_place(limit=2) == (0, 1)
    next(batches)
    assert loader.following_place(limit=2) == (1, 0)
    assert loader.following_place() == (0, 2)


def test_what_follows_a_resumed_place_is_what_followed_it(prompts):
    loader = TrainingLoader(prompts, 2, seed=5)
    assert len(uids(loader, 3)) == 3
    resumed = TrainingLoader(prompts, 2, seed=5)
    resumed.load_state_dict(loader.state_dict())
    assert resumed.following_place() == loader.following_place() == (0, 3)
    assert resumed.batch_at(0, 3).uids == uids(loader, 1)[0]


def test_a_batch_that_was_read_ahead_is_handed_out_itself_unless_another_comes_first(prompts):
    loader = TrainingLoader(prompts, 2, seed=5)
    batches = iter(loader)
    next(batches)
    ahead = loader.batch_ahead(*loader.following_place())
    assert next(batches) is ahead
    later = loader.batch_ahead(0, 3)
    assert loader.batch_at(0, 3) is not later  # others get copies
    found = next(batches)
    assert found.uids == loader.batch_at(0, 2).uids != later.uids
    assert next(batches).uids == later.uids
