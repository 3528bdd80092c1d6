"""Rows that are encoded one step ahead are those that would be encoded in the step."""

import threading
from copy import deepcopy

import numpy as np
import pytest

from grpo_lightning.datamodules.written.reading_ahead import ReadAhead
from grpo_lightning.types import PromptBatch


def batch(*uids: int) -> PromptBatch:
    return PromptBatch([str(uid) for uid in uids], [[uid] for uid in uids], list(uids))


def test_the_announced_batch_is_read_in_another_thread_and_once():
    threads = []
    ahead = ReadAhead(lambda rows: threads.append(threading.get_ident()) or rows.uids)
    assert ahead(batch(1)) == [1]
    announced = batch(2, 3)
    ahead.launch(announced)
    assert ahead(announced) == [2, 3]
    ahead.launch(announced)
    assert ahead(deepcopy(announced)) == [2, 3]  # what Lightning makes of it in bf16-true
    ahead.close()
    assert len(threads) == 3
    assert threads[0] == threading.get_ident()
    assert threading.get_ident() not in threads[1:]


def test_another_batch_than_the_announced_one_waits_for_it_and_is_read_anew():
    running, order = threading.Event(), []

    def read(rows: PromptBatch) -> list[int]:
        assert not running.is_set()  # never two at once
        running.set()
        order.append(rows.uids)
        running.clear()
        return rows.uids

    ahead = ReadAhead(read)
    ahead.launch(batch(4))
    assert ahead(batch(9)) == [9]
    assert ahead(batch(4)) == [4]
    ahead.close()
    assert order == [[4], [9], [4]]


@pytest.mark.parametrize("spoken", ["said", np.array([1.0, 2.0])])
def test_held_out_rows_with_the_numbers_of_the_announced_ones_are_read_themselves(spoken):
    def rows(completion: str) -> PromptBatch:
        return PromptBatch(["a"], [[5]], [0], {"spoken": [spoken], "completion": [completion]})

    ahead = ReadAhead(lambda batch: batch.columns["completion"])
    training = rows("of training")
    ahead.launch(training)
    assert ahead(rows("held out")) == ["held out"]
    ahead.launch(training)
    assert ahead(training) == ["of training"]
    ahead.close()


def test_a_row_that_cannot_be_read_fails_in_its_own_step():
    def read(rows: PromptBatch) -> list[int]:
        if 7 in rows.uids:
            raise ValueError("row 7 has no completion")
        return rows.uids

    ahead = ReadAhead(read)
    ahead.launch(batch(7))
    assert ahead(batch(6)) == [6]  # held-out rows in between
    ahead.launch(batch(7))
    with pytest.raises(ValueError, match="row 7"):
        ahead(batch(7))
    ahead.launch(None)
    assert ahead(batch(8)) == [8]
    ahead.close()
