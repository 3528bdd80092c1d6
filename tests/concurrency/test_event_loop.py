"""Tests of what a future is told of a function's call."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from grpo_lightning.concurrency.event_loop import fulfil


def raising(error: BaseException) -> Any:
    def function() -> Any:
        raise error

    return function


def test_a_future_gets_what_the_function_gives() -> None:
    future: Future[str] = Future()
    assert fulfil(future, lambda: "given") is None
    assert future.result(timeout=0) == "given"


def test_an_exception_is_handed_on_and_said() -> None:
    future: Future[Any] = Future()
    error = ValueError("no")
    assert fulfil(future, raising(error)) is error
    assert future.exception(timeout=0) is error


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), StopIteration(), GeneratorExit()])
def test_what_would_end_more_than_the_call_is_said_and_handed_on_as_an_ordinary_exception(error: BaseException) -> None:
    future: Future[Any] = Future()
    assert fulfil(future, raising(error)) is error
    handed_on = future.exception(timeout=0)
    assert type(handed_on) is RuntimeError and handed_on.__cause__ is error
    assert type(error).__name__ in str(handed_on)


def test_the_function_of_a_future_that_was_cancelled_is_not_called() -> None:
    future: Future[None] = Future()
    calls: list[int] = []
    assert future.cancel()
    assert fulfil(future, lambda: calls.append(1)) is None
    assert calls == [] and future.cancelled()


def test_a_future_whose_function_runs_can_no_longer_be_cancelled() -> None:
    future: Future[bool] = Future()
    assert fulfil(future, future.cancel) is None
    assert future.result(timeout=0) is False
