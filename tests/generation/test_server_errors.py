"""A server that answers with an error is not lost, and one that is lost is waited for; no vLLM needed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from fake_vllm_server import HANG_UP, answer_to, fake_vllm
from runs import make_data, make_module, make_trainer
from toy_models import build_model, build_tokenizer

from grpo_lightning.generation import SamplingSettings, VLLMServer
from grpo_lightning.generation.vllm.serving import nccl_transfer
from grpo_lightning.generation.vllm.serving import weights as served_weights
from grpo_lightning.generation.vllm.serving.client import ServerRefused, ServerUnavailable, VLLMClient
from grpo_lightning.generation.vllm.serving.endpoints import LOWEST_LOGPROB, TOKENS
from grpo_lightning.generation.vllm.serving.nccl_transfer import NCCLTransfer
from grpo_lightning.generation.vllm.serving.prompt_logprobs import PromptLogprobs, TokenRow
from grpo_lightning.generation.vllm.weights.stream import WeightStream

RELOAD, COMPLETIONS = "/collective_rpc", "/v1/completions"
WHAT_TO_DO = r"(?s)was answered with 500: .*no module named lm_head.*is healthy.*not waited for.*own output"


@pytest.fixture
def server():
    with fake_vllm() as server:
        yield server


@pytest.fixture
def policy():
    return build_model("qwen2", tokenizer=build_tokenizer())


@pytest.fixture
def generator(server, policy):
    """It waits for its server for 5 seconds."""
    generator = VLLMServer(port=server.server_address[1], timeout=5)
    generator.start(policy, build_tokenizer(), "toy")
    yield generator
    generator.stop()


def sample(generator: VLLMServer) -> list[int]:
    settings = SamplingSettings(num_generations=2, max_completion_length=1)
    return generator.generate([[1, 2], [3]], settings, [7, 8]).completion_ids.tolist()


def tokens_out(logprob: float = -1.0) -> Callable[[str, dict], dict]:
    """What a server says that takes tokens, and gives one for every completion."""

    def told(path: str, body: dict) -> dict:
        if path != TOKENS.path:
            return answer_to(path, body)
        choice = {"token_ids": [6], "logprobs": {"content": [{"logprob": logprob}]}, "finish_reason": "length"}
        return {"choices": [{"index": index, **choice} for index in range(body["sampling_params"]["n"])]}

    return told


@pytest.mark.parametrize("status", [403, 404, 500, 501, 503, HANG_UP])
def test_whatever_is_answered_instead_of_tokens_a_server_that_completes_text_is_sampled_from(server, policy, status):
    server.answer(TOKENS.path, always=status)
    generator = VLLMServer(port=server.server_address[1], timeout=5)
    generator.start(policy, build_tokenizer(), "toy")
    assert sample(generator) == [5, 5, 5, 5]
    assert server.calls.count(TOKENS.path) == 1
    generator.stop()


def test_what_the_endpoint_of_tokens_refuses_the_other_one_is_asked_for(server, policy):
    server.answer_to = tokens_out()
    generator = VLLMServer(port=server.server_address[1], timeout=5)
    generator.start(policy, build_tokenizer(), "toy")
    assert sample(generator) == [6, 6, 6, 6]
    server.answer(TOKENS.path, always=404)  # started again, without it
    assert sample(generator) == [5, 5, 5, 5]
    generator.stop()


def test_a_logprob_that_the_server_could_not_tell_is_none_to_train_on(server, policy):
    server.answer_to = tokens_out(LOWEST_LOGPROB)
    generator = VLLMServer(port=server.server_address[1], timeout=5)
    generator.start(policy, build_tokenizer(), "toy")
    with pytest.raises(FloatingPointError, match="logprob NaN"):
        sample(generator)
    generator.stop()


def test_an_update_that_the_server_cannot_do_is_an_error_at_once_and_leaves_it_unpaused(
    server, generator, policy, caplog
):
    server.answer(RELOAD, always=500)
    with pytest.raises(ServerRefused, match=WHAT_TO_DO):
        generator.update_weights(policy)
    assert server.calls.count(RELOAD) == 1
    assert server.calls[-1] == "/resume"  # requests of other ranks would wait for ever
    assert not caplog.records


def test_a_request_that_the_server_cannot_answer_is_an_error_at_once(server, generator, policy, caplog):
    generator.update_weights(policy)
    server.answer(COMPLETIONS, always=500)
    with pytest.raises(ServerRefused, match=WHAT_TO_DO):
        sample(generator)
    assert server.calls.count(COMPLETIONS) <= 2  # one a prompt
    assert server.calls.count(RELOAD) == 1
    assert not caplog.records


def test_a_server_that_keeps_hanging_up_gets_the_weights_again_after_pauses_and_one_warning(
    server, generator, policy, caplog, pauses
):
    server.answer(RELOAD, HANG_UP, HANG_UP, HANG_UP)
    generator.update_weights(policy)
    assert pauses == [0, 1, 2]
    assert server.calls.count(RELOAD) == 4
    (warning,) = caplog.records
    assert "Lost the vLLM server while sending weights" in warning.message
    assert sample(generator) == [5, 5, 5, 5]


@pytest.mark.parametrize("status", [HANG_UP, 503])
def test_a_server_that_is_never_there_for_weights_is_not_asked_in_a_tight_loop(
    server, generator, policy, caplog, monkeypatch, status
):
    """The clock stands still but for pauses: questions after 0, 0.5, 1.5, 3.5 and 7.5 seconds, of which there are 5."""
    waited: list[float] = []
    monkeypatch.setattr(served_weights, "time", SimpleNamespace(monotonic=lambda: sum(waited)))
    monkeypatch.setattr(generator.client._closed, "wait", waited.append)
    server.answer(RELOAD, always=status)
    with pytest.raises(ServerUnavailable):
        generator.update_weights(policy)
    assert waited == [0.5, 1.0, 2.0, 4.0]
    assert server.calls.count(RELOAD) == 5
    assert len(caplog.records) == 1


def test_an_error_of_a_server_whose_engine_has_died_is_a_loss(server, generator, policy, pauses):
    generator.update_weights(policy)
    server.answer(COMPLETIONS, 500, 500)
    server.answer("/health", 503, 503, 503)
    assert sample(generator) == [5, 5, 5, 5]
    assert server.calls.count(RELOAD) == 2


def test_prompts_that_are_never_answered_are_asked_for_three_times_with_pauses_and_one_warning(
    server, generator, policy, caplog, pauses
):
    generator.update_weights(policy)
    server.answer(COMPLETIONS, always=HANG_UP)
    with pytest.raises(ServerUnavailable):
        sample(generator)
    assert server.calls.count(COMPLETIONS) == 6  # of two prompts
    assert pauses == [1, 2]
    assert len(caplog.records) == 1


def changed(**parts: object) -> Callable[[dict], object]:
    """Answers with other parts in each completion; without those that are None."""

    def change(answer: dict) -> dict:
        choices = [
            {name: part for name, part in {**each, **parts}.items() if part is not None} for each in answer["choices"]
        ]
        return {"choices": choices}

    return change


FOREIGN = {
    "a proxy's page": (lambda answer: "<html>Welcome</html>", "'<html>Welcome</html>'.*TypeError"),
    "nothing": (lambda answer: None, "None, which"),
    "another form": (lambda answer: {"results": []}, "KeyError: 'choices'"),
    "no tokens": (changed(token_ids=None), "KeyError: 'token_ids'"),
    "no logprobs": (changed(logprobs=None), "KeyError: 'logprobs'"),
    "logprobs of other tokens": (changed(logprobs={"token_logprobs": [-1.0] * 3}), "3 logprobs of 1 tokens"),
    "the same completion again": (changed(index=0), "two completions have the same index"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_completions_that_are_not_what_vllm_answers_are_shown_with_a_way_out(server, generator, policy, case):
    """They ended a run in a bare KeyError or TypeError, or in what the rollouts had against them."""
    generator.update_weights(policy)
    change, found = FOREIGN[case]
    server.answer_to = lambda path, body: (
        change(answer_to(path, body)) if path == COMPLETIONS else answer_to(path, body)
    )
    with pytest.raises(ServerRefused, match=rf"(?s)/v1/completions answered with .*{found}.*grpo_lightning serve"):
        sample(generator)


@pytest.mark.parametrize("cards", ["<html>Welcome</html>", {}, {"data": [{"id": "policy"}]}])
def test_a_list_of_models_that_is_not_vllms_is_shown_with_a_way_out(server, policy, cards):
    server.answer_to = lambda path, body: cards if path == "/v1/models" else answer_to(path, body)
    generator = VLLMServer(port=server.server_address[1], timeout=5)
    with pytest.raises(ServerRefused, match=r"/v1/models answered with .* is not what vLLM answers"):
        generator.start(policy, build_tokenizer(), "toy")
    generator.stop()


@pytest.mark.parametrize(
    "told", ["<html>", {"choices": []}, {"choices": [{}]}, {"choices": [{"prompt_logprobs": [None, {}]}]}]
)
def test_what_is_not_a_teachers_answer_is_shown_with_a_way_out(server, told):
    teacher = PromptLogprobs(VLLMClient("127.0.0.1", server.server_address[1], 10), timeout=5)
    teacher.start()
    server.answer_to = lambda path, body: told
    with pytest.raises(ServerRefused, match=r"/v1/completions answered with .* is not what vLLM answers"):
        teacher.of_tokens([TokenRow([1, 2], 1)])
    with pytest.raises(ServerRefused, match=r"/detokenize answered with .* is not what vLLM answers"):
        teacher.text_of([1])
    teacher.client.close()


class GroupOfOne:
    """In place of NCCL's group, which needs GPUs: a broadcast that nobody receives lasts until the group is destroyed."""

    def __init__(self) -> None:
        self.destroyed = threading.Event()

    def destroy(self) -> None:
        self.destroyed.set()


@pytest.mark.parametrize("ends_in_error", [True, False])
@pytest.mark.parametrize(("status", "error"), [(500, ServerRefused), (HANG_UP, ServerUnavailable)])
def test_a_broadcast_to_a_server_that_fails_ends(server, policy, monkeypatch, status, error, ends_in_error):
    def broadcast(group, weights, packed):
        next(weights)
        assert group.destroyed.wait(60)
        assert next(weights, None) is None  # nothing more is broadcast in a group that has ended
        if ends_in_error:
            raise RuntimeError("NCCL error: unhandled system error")

    monkeypatch.setattr(nccl_transfer, "nccl_send", broadcast)
    monkeypatch.setattr(nccl_transfer, "nccl_payloads", lambda init, update, packed: (init, update))
    transfer = NCCLTransfer(VLLMClient("127.0.0.1", server.server_address[1], 10), True, torch.device("cpu"))
    transfer._group = GroupOfOne()
    server.answer("/update_weights", always=status)
    stream, whole = WeightStream(policy), WeightStream(policy)
    with pytest.raises(error):
        transfer.send(stream)
    assert stream.bytes == sum(t.numel() * t.element_size() for _, t in whole)  # other ranks gather all of it
    assert transfer._group is None  # the next transfer makes a new one


def test_a_server_that_is_not_there_is_said_before_weights_load(tiny_model_dir, tmp_path, caplog):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        port = taken.getsockname()[1]
        module = make_module(tiny_model_dir, generator=VLLMServer(port=port, timeout=0.0))
        with pytest.raises(TimeoutError, match=rf"no healthy vLLM server at http://127.0.0.1:{port} within 0 s"):
            make_trainer(tmp_path).fit(module, make_data(tmp_path))
    assert not module.policy.is_loaded
    (said,) = [record.message for record in caplog.records if "vLLM" in record.message]
    assert said.startswith(f"No vLLM server answers at http://127.0.0.1:{port} yet; waiting up to 0 s")
    assert f"serve --model ... --port {port}" in said


def test_a_server_that_comes_is_waited_for_in_one_line(server, caplog):
    server.answer("/health", 503, 503)
    generator = VLLMServer(port=server.server_address[1], timeout=60)
    generator.expect()
    generator.stop()
    assert server.calls == ["/health"] * 3
    assert len(caplog.records) == 1


def test_a_server_that_is_there_is_not_worth_a_word(server, caplog):
    generator = VLLMServer(port=server.server_address[1])
    generator.expect()
    generator.stop()
    assert server.calls == ["/health"] and not caplog.records
