"""How busy a device is, is the mean of what was read during a step."""

from __future__ import annotations

import gc
import threading
import time

import pytest
import torch

from grpo_lightning.metrics.utilization import DeviceUtilization, reader_of


class Driver:
    """Gives the shares one after the other, the last one for ever, and says when so many have been read."""

    def __init__(self, *shares: float) -> None:
        self.shares, self.count, self.all_read = list(shares), 0, threading.Event()

    def __call__(self) -> float:
        self.count += 1
        if self.count > len(self.shares):
            self.all_read.set()
            raise RuntimeError("the driver is gone")
        return self.shares[self.count - 1]


def wait_for_end(name: str) -> None:
    while any(thread.name == name for thread in threading.enumerate()):
        time.sleep(0.005)


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_each_reading_counts_in_one_step_and_an_error_of_the_driver_ends_nothing():
    driver, watched = Driver(0.25, 0.75), DeviceUtilization(interval=0.001)
    watched.start(driver)
    assert driver.all_read.wait(60)
    assert watched.take().tolist() == [0.25, 0.75]
    assert watched.take().tolist() == []


def test_the_thread_ends_with_training_and_with_its_owner():
    for end in ("stop", "collect"):
        before = threads()
        watched = DeviceUtilization(interval=0.001)
        watched.start(lambda: 0.5)
        (name,) = threads() - before
        if end == "stop":
            watched.stop()
        del watched
        gc.collect()
        wait_for_end(name)
        assert name not in threads()


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_cannot_be_read_is_left_out(device):
    watched = DeviceUtilization()
    watched.start(reader_of(torch.device(device)))
    assert watched.take().tolist() == []
