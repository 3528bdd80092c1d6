"""Asking a server for prompt logprobs, over real sockets: what is lost is asked again, what cannot be is said."""

from __future__ import annotations

import pytest
from fake_vllm_server import HANG_UP, fake_vllm

from grpo_lightning.generation.vllm.serving.client import (
    ServerNotReadyError,
    ServerRefused,
    ServerUnavailable,
    VLLMClient,
)
from grpo_lightning.generation.vllm.serving.prompt_logprobs import PromptLogprobs, TokenRow, likeliest_of

ROWS = [TokenRow([1, 2, 3, 4], 2), TokenRow([1, 2, 3], 1), TokenRow([1, 2], 1)]
TOLD = ([0, 1], [-1.0, -2.0])


@pytest.fixture
def server():
    with fake_vllm() as server:
        yield server


@pytest.fixture
def asked(server):
    asked = PromptLogprobs(
        VLLMClient("127.0.0.1", server.server_address[1], request_timeout=60), timeout=60, at_a_time=2
    )
    asked.start()
    yield asked
    asked.client.close()


def test_each_token_of_a_completion_has_the_likeliest_in_its_place(asked):
    assert (asked.model, asked.max_length) == ("policy", 256)
    lengths = [2, 2, 1]
    assert asked.likeliest(ROWS, 2) == [([TOLD[0]] * n, [TOLD[1]] * n) for n in lengths]
    assert likeliest_of([{"3": {"logprob": -4.0}, "9": {"logprob": -0.5}, "2": {"logprob": -1.5}}], 2) == (
        [[9, 2]],
        [[-0.5, -1.5]],
    )


@pytest.mark.parametrize(("lost", "paused"), [([HANG_UP], [0]), ([503, HANG_UP, 502], [1]), ([HANG_UP] * 4, [1, 0])])
def test_rows_without_an_answer_are_asked_for_again(server, asked, lost, paused, pauses):
    server.answer("/v1/completions", *lost)
    assert asked.likeliest(ROWS, 2) == [([TOLD[0]] * n, [TOLD[1]] * n) for n in (2, 2, 1)]
    assert server.calls.count("/v1/completions") == len(ROWS) + len(lost)
    assert pauses == paused  # longer where nothing was answered


def test_a_healthy_server_that_answers_nothing_ends_the_run(server, asked, pauses):
    server.answer("/v1/completions", always=HANG_UP)
    with pytest.raises(ServerUnavailable):
        asked.likeliest(ROWS[:1], 2)
    assert server.calls.count("/v1/completions") == 3 and pauses == [1, 2]


def test_a_refusal_is_not_waited_for(server, asked):
    server.answer("/v1/completions", always=400)
    with pytest.raises(ServerRefused):
        asked.likeliest(ROWS, 2)


def test_a_server_that_is_not_there_is_named_with_what_to_start(server, asked):
    server.answer("/health", always=503)
    asked.timeout = 0.2
    with pytest.raises(ServerNotReadyError, match=r"model.distillation.timeout.*grpo_lightning serve --model TEACHER"):
        asked.start()
