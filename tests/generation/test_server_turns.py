"""Turns as requests to a server: all answered, those that were lost asked again."""

from __future__ import annotations

import threading

import pytest
from fake_vllm_server import HANG_UP, fake_vllm

from grpo_lightning.generation import SamplingSettings
from grpo_lightning.generation.turns import TurnRequest
from grpo_lightning.generation.vllm.serving.client import ServerUnavailable, VLLMClient
from grpo_lightning.generation.vllm.serving.endpoints import TEXT
from grpo_lightning.generation.vllm.serving.turns import ServerTurns


def play(server, recover):
    client, woken = VLLMClient("127.0.0.1", server.server_port, 5.0), threading.Semaphore(0)
    turns = ServerTurns(client, TEXT, "policy", SamplingSettings(), frozenset({1}), 2, recover, woken.release)
    found = []
    try:
        for rollout in range(4):
            turns.add(TurnRequest(rollout, [1, 2, 3], rollout, 7))
        while len(found) < 4:
            assert woken.acquire(timeout=60)
            while turns.is_busy:
                found += turns.step()
    finally:
        turns.close()
    return sorted(turn.rollout for turn in found), [turn.logprobs for turn in found]


def test_every_turn_is_answered_and_lost_ones_are_asked_again(pauses):
    losses = []
    with fake_vllm() as server:
        server.answer("/v1/completions", 200, HANG_UP, HANG_UP)
        rollouts, logprobs = play(server, losses.append)
    assert rollouts == [0, 1, 2, 3] and logprobs == [[-1.0]] * 4
    assert len(losses) == 1 and pauses == [1]


def test_a_server_that_answers_nothing_any_more_is_given_up(pauses):
    losses = []
    with fake_vllm() as server:
        server.answer("/v1/completions", always=HANG_UP)
        with pytest.raises(ServerUnavailable):
            play(server, losses.append)
    assert len(losses) == 3 and pauses == [1, 2, 3]
