"""Two runs of the tests beside each other are never given the same port."""

from __future__ import annotations

import socket

from ports import PER_PROCESS, free_port, own_range


def test_a_range_is_dealt_from_once_while_it_is_held_and_again_afterwards():
    mine = free_port()
    first, lock = own_range()
    second, other = own_range()  # locks belong to open files: as if another process asked
    assert mine not in first and mine not in second
    assert len(first) == len(second) == PER_PROCESS and not set(first) & set(second)
    lock.close()
    again, lock = own_range()
    assert not set(again) & set(second)
    lock.close()
    other.close()


def test_a_port_that_is_bound_is_passed_over():
    following = free_port() + 1
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", following))
        assert free_port() != following
