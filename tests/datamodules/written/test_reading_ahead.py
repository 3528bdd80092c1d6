"""Rows that are encoded one step ahead are those that would be encoded in the step."""

import threading

import pytest

from grpo_lightning.datamodules.written.reading_ahead import ReadAhead
from grpo_lightning.types import PromptBatch


def batch(*uids: int) -> PromptBatch:
    return PromptBatch([str(uid) for uid in uids], [[uid] for uid in uids], list(uids))


def test_the_announced_batch_is_read_in_another_thread_and_once():
    threads = []
    ahead = ReadAhead(lambda rows: threads.append(threading.get_ident()) or rows.uids)
    assert ahead(batch(1)) == [1]
    ahead.launch(batch(2, 3))
    assert ahead(batch(2, 3)) == [2, 3]
    ahead.close()
    assert len(threads) == 2
    assert threads[0] == threading.get_ident() != threads[1]


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
