"""A real vLLM server on loopback, started by `grpo_lightning serve`: completions, weights, and a death in mid-step."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from four_bits import four_bit_model, repack
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from ports import free_port
from runs import fit, make_module, weights
from toy_models import build_tokenizer, save_toy_model
from vllm_cases import (
    LONG_PROMPT,
    PROMPTS,
    SEEDS,
    SETTINGS,
    SMALL_SERVER,
    TOKENIZER,
    eager_torch,
    ending_model,
    even_tokens,
    mismatch,
    needs_vllm,
    rows,
    shift_weights,
)
from vllm_program_forks import VLLMFork

from grpo_lightning.generation import SamplingSettings, VLLMServer
from grpo_lightning.generation.vllm.serving.client import ServerRefused, VLLMClient
from grpo_lightning.generation.vllm.serving.endpoints import TEXT, TOKENS, sampling_endpoint
from grpo_lightning.generation.vllm.serving.prompt_logprobs import PromptLogprobs
from grpo_lightning.generation.vllm.serving.token import token_file
from grpo_lightning.generation.vllm.weights.adapter_route import TRIAL, AdapterRoute
from grpo_lightning.rollouts.sampler_canary import MISMATCH
from grpo_lightning.training.distillation import Distillation, TeacherRefusedError
from grpo_lightning.training.distillation.server_teacher import check_same_tokens
from grpo_lightning.types import Rollouts

pytestmark = [*needs_vllm, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module", autouse=True)
def _eager():
    with eager_torch():
        yield


@contextmanager
def serving(folder: Path, start: Callable[..., Any]) -> Iterator[tuple[int, Any]]:
    """Port and process of `python -m grpo_lightning serve`."""
    model, port = save_toy_model(folder / "served"), free_port()
    command = [sys.executable, "-m", "grpo_lightning", "serve", "--model", str(model), "--port", str(port)]
    options = ["--max_model_length", "256", "--", *SMALL_SERVER]
    with (folder / "serve.log").open("wb") as log:
        process = start([*command, *options], cwd=ROOT, stdout=log, stderr=log, env=dict(os.environ))
    yield port, process
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0  # vLLM ended with its supervisor


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """As from a shell, by interpreters that import everything themselves."""
    with serving(tmp_path_factory.mktemp("served"), subprocess.Popen) as port_and_process:
        yield port_and_process


@pytest.fixture(scope="module")
def policy():
    return ending_model()


@pytest.fixture(scope="module")
def generator(served, policy):
    generator = VLLMServer(port=served[0], timeout=200)
    generator.start(policy, TOKENIZER, "toy")
    generator.update_weights(policy)
    yield generator
    generator.stop()


def test_sampling_logprobs_equal_those_of_a_forward_pass(generator, policy):
    rollouts = generator.generate(PROMPTS, SETTINGS, SEEDS)
    assert rollouts.group.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert len(set(rollouts.completion_lengths.tolist())) > 2
    assert mismatch(policy, rollouts) < 1e-4


def counter(client: VLLMClient, name: str) -> float:
    """Of what the server tells Prometheus."""
    lines = (line for line in client.call("GET", "/metrics").splitlines() if line.startswith(f"vllm:{name}{{"))
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_a_completion_leaves_the_servers_engine_when_it_ends_and_not_token_by_token(generator, served):
    assert sampling_endpoint(generator.client, "policy") is TOKENS
    names = ("generation_tokens_total", "inter_token_latency_seconds_count")
    for endpoint in (TOKENS, TEXT):
        generator._endpoint = endpoint
        before = [counter(generator.client, name) for name in names]
        found = rows(generator.generate(PROMPTS, SETTINGS, SEEDS))
        tokens, outputs = (counter(generator.client, name) - n for name, n in zip(names, before, strict=True))
        assert tokens == sum(len(ids) for ids, _, _ in found) > 60
        assert outputs <= len(found)  # after the first token, which comes with the prompt
        if endpoint is TOKENS:
            expected = found
    generator._endpoint = TOKENS
    assert [(ids, truncated) for ids, _, truncated in found] == [(ids, truncated) for ids, _, truncated in expected]
    for (_, logprobs, _), (_, others, _) in zip(found, expected, strict=True):
        assert logprobs == pytest.approx(others, abs=1e-4)


def test_a_server_that_had_another_runs_weights_is_asked_for_tokens_too(generator, policy):
    generator.stop()
    generator.start(policy, TOKENIZER, "toy")  # as another run
    generator.update_weights(policy)
    assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < 1e-4
    assert generator._endpoint is TOKENS


def test_a_prompt_may_have_more_completions_than_the_server_runs_at_a_time(generator):
    few, many = (SamplingSettings(num_generations=n, max_completion_length=3, temperature=0.7) for n in (3, 65))
    expected, found = (rows(generator.generate(PROMPTS[:1], settings, SEEDS[:1])) for settings in (few, many))
    assert len(found) == 65 > int(SMALL_SERVER[SMALL_SERVER.index("--max-num-seqs") + 1])
    assert [ids for ids, _, _ in found[:3]] == [ids for ids, _, _ in expected]


def test_who_has_a_completion_streamed_sees_each_token_when_it_is_there(generator, served):
    body = {"model": "policy", "prompt": PROMPTS[0], "max_tokens": 90, "ignore_eos": True, "stream": True}
    chunks = [line for line in generator.client.post("/v1/completions", body).splitlines() if '"choices"' in line]
    assert len(chunks) > 9  # a busy machine sends a few tokens at a time; withheld ones would come in two


def test_routes_that_change_something_want_the_servers_token_and_a_name_of_its_own(served, generator):
    port = served[0]
    token = token_file(port).read_text()
    assert token_file(port).stat().st_mode & 0o077 == 0 and len(token) == 64

    def status(method: str, path: str, **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request(method, path, None if method == "GET" else "{}", headers)
        answered = connection.getresponse().status
        connection.close()
        return answered

    changing = ["/collective_rpc", "/pause", "/resume", "/sleep", "/wake_up", "/update_weights", "/reset_prefix_cache"]
    for path in [
        *changing,
        "/v1/load_lora_adapter",
        "/v1/completions",
        "/v1/completions/../../pause",
        "//pause",
        "/nowhere",
    ]:
        assert status("POST", path, **{"Content-Type": "text/plain"}) == 401, path
        assert status("POST", path, Authorization=f"Bearer {token[:-1]}") == 401, path
        assert status("POST", path, Authorization=f"Bearer {token}", Host=f"rebound.example:{port}") == 403, path
    assert status("POST", "/pause?mode=abort") == status("GET", "/server_info") == 401
    assert status("GET", "/health") == status("GET", "/v1/models", Host=f"localhost:{port}") == 200
    assert status("GET", "/v1/models", Host="rebound.example") == 403
    assert status("POST", "/reset_prefix_cache", Authorization=f"Bearer {token}") == 200
    with pytest.raises(ServerRefused, match=r"401.*GRPO_LIGHTNING_SERVER_TOKEN"):
        VLLMClient("127.0.0.1", port, 60).post("/reset_prefix_cache")
    assert len(generator.generate(PROMPTS, SETTINGS, SEEDS).group) == 12  # nothing was paused


def test_new_weights_are_sampled_from_only_after_an_update(generator, policy):
    generator.generate([LONG_PROMPT], SETTINGS, [1])
    shift_weights(policy)
    assert mismatch(policy, generator.generate([LONG_PROMPT], SETTINGS, [1])) > 1.0
    metrics = generator.update_weights(policy)
    assert mismatch(policy, generator.generate([LONG_PROMPT], SETTINGS, [1])) < 1e-4
    assert metrics["weight_sync/megabytes"] == pytest.approx(0.461056)


def test_greedy_structured_and_stopped_completions_are_as_in_this_process(generator, policy):
    greedy = generator.generate(
        PROMPTS, SamplingSettings(num_generations=2, temperature=0, max_completion_length=6), SEEDS
    )
    expected = policy.generate(torch.tensor([PROMPTS[0]]), do_sample=False, max_new_tokens=6, pad_token_id=0)
    assert rows(greedy)[0][0] == rows(greedy)[1][0] == expected[0, len(PROMPTS[0]) :].tolist()
    choice = SamplingSettings(num_generations=4, max_completion_length=12, structured_outputs={"choice": ["yes", "no"]})
    texts = {TOKENIZER.decode(ids[:-1]) for ids, _, _ in rows(generator.generate(PROMPTS[:2], choice, SEEDS[:2]))}
    assert texts <= {"yes", "no"}
    free = max((ids for ids, _, _ in rows(generator.generate(PROMPTS, SETTINGS, SEEDS))), key=len)
    stop = TOKENIZER.decode(free[4:6])
    settings = SamplingSettings(num_generations=3, max_completion_length=12, temperature=0.7, stop=(stop,))
    found = rows(generator.generate(PROMPTS, settings, SEEDS))
    assert [free[:6], False] in [[ids, truncated] for ids, _, truncated in found]


def test_a_prompt_that_the_server_cannot_hold_is_refused(generator):
    with pytest.raises(ValueError, match=r"prompt 0 .*holds 256 \(max_model_len of the server\)"):
        generator.generate(PROMPTS, SamplingSettings(max_completion_length=250), SEEDS)


def test_a_merged_adapter_on_a_repacked_4_bit_base_arrives_as_the_numbers_that_training_computes_with(
    generator, policy, tmp_path
):
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    trained = get_peft_model(four_bit_model(save_toy_model(tmp_path)), lora).train()
    repacked = get_peft_model(four_bit_model(tmp_path), lora)
    set_peft_model_state_dict(repacked, get_peft_model_state_dict(trained))
    repack(repacked)
    generator.update_weights(repacked)
    try:
        assert mismatch(trained, generator.generate(PROMPTS, SETTINGS, SEEDS)) < 0.2  # scales rounded to bfloat16
    finally:
        generator.update_weights(policy)


@pytest.fixture(scope="module")
def teacher_dir(generator, policy, tmp_path_factory):
    """What the server has."""
    shift_weights(policy)
    generator.update_weights(policy)
    folder = tmp_path_factory.mktemp("teacher")
    policy.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("divergence", "k"), [("reverse_kl", 7), ("forward_kl", 7), ("jsd", 7), ("sampled_token", None)]
)
def test_a_teacher_on_the_server_teaches_as_the_same_model_in_this_process(
    served, teacher_dir, tiny_model_dir, tmp_path, divergence, k
):
    trained, metrics = [], []
    for teacher in (str(teacher_dir), f"http://127.0.0.1:{served[0]}"):
        taught = {"distillation": Distillation(teacher, divergence=divergence, top_k=k), "reward_weights": [0.0]}
        module = fit(tiny_model_dir, tmp_path, 2, **taught)
        trained.append(weights(module))
        metrics.append(module.step_metrics["distillation/divergence"])
    torch.testing.assert_close(trained[1], trained[0], rtol=1e-4, atol=2e-6)
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-3) and metrics[0] > 0.1


def test_a_server_that_tells_fewer_tokens_than_asked_for_is_refused_at_the_start(served, tiny_model_dir, tmp_path):
    with pytest.raises(TeacherRefusedError, match=r"top_k=21 is more than .* tells.*\n.*--max-logprobs 21"):
        fit(tiny_model_dir, tmp_path, distillation=Distillation(f"http://127.0.0.1:{served[0]}", top_k=21))


def test_a_server_to_which_the_policys_tokens_mean_something_else_is_refused(served):
    server = PromptLogprobs(VLLMServer(port=served[0]).client, 200)
    server.start()
    check_same_tokens(server, TOKENIZER, "http://host:1")
    with pytest.raises(TeacherRefusedError, match=r"has another tokenizer than the policy: token 320 is '.+' here"):
        check_same_tokens(server, build_tokenizer(340), "http://host:1")
    server.client.close()


def test_a_completion_that_the_teachers_server_cannot_hold_is_said_with_what_to_change(served, tiny_model_dir):
    settings = Distillation(f"http://127.0.0.1:{served[0]}", top_k=2)
    (teacher,) = make_module(tiny_model_dir, distillation=settings).teachers.teachers
    teacher.start()
    rollouts = Rollouts.from_lists([[5] * 250], [[6] * 6], [[0.0] * 6], [True], [0])
    with pytest.raises(TeacherRefusedError, match=r"has 256 tokens, and .* holds 255 .*max_completion_length"):
        teacher.told(rollouts, torch.tensor([0]))


@pytest.fixture
def forked(policy, tmp_path):
    """Process of a server whose start and restart are forks, and its generator."""
    with serving(tmp_path, VLLMFork) as (port, process):
        generator = VLLMServer(port=port, timeout=200)
        generator.start(policy, TOKENIZER, "toy")
        generator.update_weights(policy)
        yield process, generator
        generator.stop()


def test_a_server_that_dies_in_mid_step_is_asked_again_for_exactly_the_unanswered_prompts(forked, policy):
    process, generator = forked
    prompts, seeds = PROMPTS * 6, [seed + n for n, seed in enumerate(SEEDS * 6)]
    expected = generator.generate(prompts, SETTINGS, seeds)
    calls: list[int] = []
    (vllm,) = children(process.pid)

    def kill_after_some(n: int, ids: list[int]) -> None:
        calls.append(n)
        if len(calls) == 6:
            os.killpg(vllm, signal.SIGKILL)

    generator.max_concurrent_requests = 4
    found = generator.generate(prompts, SETTINGS, seeds, kill_after_some)
    assert sorted(calls) == list(range(72))  # every completion once
    assert torch.equal(found.completion_ids, expected.completion_ids)  # from the weights that were sent, not the disk's
    assert mismatch(policy, found) < 1e-4
    assert children(process.pid) != [vllm]


def test_a_run_whose_server_another_run_takes_does_not_sample_from_the_others_weights(forked, policy):
    _, first = forked
    expected = first.generate(PROMPTS, SETTINGS, SEEDS)
    second, other = VLLMServer(port=first.client.port, timeout=200), ending_model()
    shift_weights(other)
    second.start(other, TOKENIZER, "toy")
    second.update_weights(other)
    for ask in (lambda: first.generate(PROMPTS, SETTINGS, SEEDS), lambda: first.update_weights(policy)):
        with pytest.raises(ServerRefused, match=r"the weights of another run \(process \d+ on "):
            ask()
    assert mismatch(other, second.generate(PROMPTS, SETTINGS, SEEDS)) < 1e-4
    second.stop()
    first.stop()
    first.start(policy, TOKENIZER, "toy")  # as a run that goes on from its checkpoint
    first.update_weights(policy)
    assert torch.equal(first.generate(PROMPTS, SETTINGS, SEEDS).completion_ids, expected.completion_ids)


@pytest.mark.usefixtures("forked_servers")
def test_training_with_a_launched_server_and_a_hot_adapter(tiny_model_dir, tmp_path):
    generator = VLLMServer(port=free_port(), launch=True, launch_arguments=SMALL_SERVER, max_model_length=64)
    module = fit(
        tiny_model_dir, tmp_path, max_steps=3, generator=generator, finetuning_type="lora", rewards=[even_tokens]
    )
    assert module.step_metrics[MISMATCH] < 1e-4
    assert module.step_metrics["weight_sync/megabytes"] < 0.2  # the adapter alone
    assert generator.launched is None  # ended with the run


@pytest.mark.usefixtures("forked_servers")
def test_a_launched_server_samples_from_the_policy_while_both_ways_are_tried_and_after_the_choice(monkeypatch):
    monkeypatch.setattr(AdapterRoute, "sampled", lambda self, *_: self._costs.update({self.way: self.way == "merge"}))
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    policy, ways = get_peft_model(ending_model(), lora).eval(), []
    options = {"launch_arguments": SMALL_SERVER, "max_model_length": 256, "lora_sync": "auto"}
    generator = VLLMServer(port=free_port(), launch=True, **options)
    generator.start(policy, TOKENIZER, "toy")
    try:
        for _ in range(len(TRIAL) + 2):
            shift_weights(policy)
            generator.update_weights(policy)
            assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < 1e-3  # stale, 10
            ways.append(generator.adapter_route.way)
        shutil.rmtree(generator._files / "adapter")  # which is read once, and not at every step
        assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < 1e-3
    finally:
        generator.stop()
    assert ways == [*TRIAL, "hot", "hot"]


@pytest.mark.usefixtures("forked_servers")
@pytest.mark.parametrize(
    ("architecture", "options"),
    [("qwen2", {}), ("gemma2", {"attn_logit_softcapping": None})],  # without a head of its own in vLLM
)
def test_tied_weights_reach_the_output_head_of_a_launched_server(architecture, options):
    policy = ending_model(architecture, tie_word_embeddings=True, **options)
    generator = VLLMServer(port=free_port(), launch=True, launch_arguments=SMALL_SERVER, max_model_length=256)
    generator.start(policy, TOKENIZER, "toy")
    try:
        assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < 1e-4
        for _ in range(2):
            shift_weights(policy)
            generator.update_weights(policy)
            assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < 1e-4
    finally:
        generator.stop()


def test_a_launched_server_that_is_not_there_in_time_does_not_outlive_the_run(monkeypatch, tmp_path):
    started: list[subprocess.Popen] = []
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *args, **options: started.append(popen(*args, **options)) or started[-1]
    )
    where = {"port": free_port(), "weight_directory": str(tmp_path)}
    generator = VLLMServer(**where, launch=True, launch_arguments=SMALL_SERVER, max_model_length=256, timeout=0.1)
    with pytest.raises(
        TimeoutError, match=r"launched was not healthy within 0 s.*raise .*timeout. The end of its output:"
    ):
        generator.start(ending_model(), TOKENIZER, "toy")
    assert len(started) == 1 and started[0].poll() is not None
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_stays_away_is_an_error_after_the_deadline(served, generator):
    served[1].send_signal(signal.SIGTERM)
    served[1].wait(60)
    generator.timeout, started = 2.0, time.monotonic()
    with pytest.raises(TimeoutError, match=r"no healthy vLLM server at http://127.0.0.1:\d+ within 2 s"):
        generator.generate(PROMPTS, SETTINGS, SEEDS)
    assert time.monotonic() - started < 60
