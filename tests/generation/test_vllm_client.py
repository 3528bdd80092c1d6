"""HTTP calls and supervision, against real sockets and processes; no vLLM needed."""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest
from local_server import serving_in_a_thread

from grpo_lightning.commands.serve import build_parser, stored_dtype
from grpo_lightning.generation import VLLMServer
from grpo_lightning.generation.vllm import compat as vllm_compat
from grpo_lightning.generation.vllm.serving.client import CallsEnded, ServerRefused, ServerUnavailable, VLLMClient
from grpo_lightning.generation.vllm.serving.process import ServerProcess, server_command, server_environment


class Handler(BaseHTTPRequestHandler):
    """Answers every call with the next of the server's statuses, then with 200, and echoes the body."""

    def do_GET(self):
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.calls.append((self.command, self.path))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body or b"")

    do_POST = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.statuses, server.calls = [], []
    with serving_in_a_thread(server):
        yield server


@pytest.fixture
def client(server):
    return VLLMClient("127.0.0.1", server.server_address[1], request_timeout=10)


def test_answers_are_decoded(server, client):
    assert client.post("/x?mode=keep", {"a": [1, 2]}) == {"a": [1, 2]}
    assert client.call("GET", "/health") is None
    assert server.calls == [("POST", "/x?mode=keep"), ("GET", "/health")]


def silent_server(client: VLLMClient) -> socket.socket:
    """A server that takes calls and never answers, in the place of the client's."""
    silent = socket.create_server(("127.0.0.1", 0))
    client.port, client.request_timeout = silent.getsockname()[1], 600
    return silent


def taken(silent: socket.socket) -> socket.socket:
    """The connection of a call that has arrived."""
    accepted, _ = silent.accept()
    assert accepted.recv(1 << 16)
    return accepted


@contextmanager
def waiting_call(client: VLLMClient) -> Iterator[tuple[threading.Thread, list[BaseException]]]:
    """A call to a server that takes it and never answers, once it is there; and what it raised.

    The server keeps its end open meanwhile: a connection that nobody holds is collected, and closed.
    """
    raised: list[BaseException] = []

    def call() -> None:
        try:
            client.post("/v1/completions", {"n": 8})
        except BaseException as error:
            raised.append(error)

    with silent_server(client) as silent:
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        with taken(silent):
            yield thread, raised


def test_a_cancelled_call_ends_on_the_server_too_and_later_ones_work(server, client):
    port, silent = client.port, silent_server(client)
    call = client.start(client.send("POST", "/v1/completions", {"n": 8}))
    accepted = taken(silent)
    call.cancel()
    assert accepted.recv(1) == b""  # the server hears of it, and gives the request up
    client.port = port
    assert client.is_healthy()


def test_many_calls_wait_in_one_thread(client):
    silent = silent_server(client)
    before = threading.active_count()
    calls = [client.start(client.send("POST", "/v1/completions", {"n": n})) for n in range(20)]
    accepted = [taken(silent) for _ in calls]
    assert threading.active_count() == before + 1
    client.close()
    assert threading.active_count() == before
    assert all(call.cancelled() for call in calls) and all(each.recv(1) == b"" for each in accepted)


def test_a_closed_client_ends_its_calls_and_allows_no_others_until_it_is_opened(server, client):
    port = client.port
    with waiting_call(client) as (thread, raised):
        client.close()
        thread.join(60)
    assert isinstance(raised[0], CallsEnded)
    client.port = port
    with pytest.raises(CallsEnded):
        client.wait_until_healthy(600)  # of a thread that waits for a server to come back
    client.open()
    assert client.is_healthy()


def test_pauses_before_further_attempts_grow_up_to_ten_seconds_and_end_with_the_client(client, monkeypatch):
    waited: list[float] = []
    with monkeypatch.context() as patch:
        patch.setattr(client._closed, "wait", waited.append)
        for attempt in range(7):
            client.pause(attempt)
    assert waited == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    ended: list[bool] = []
    with monkeypatch.context() as patch:
        wait = client._closed.wait
        patch.setattr(client._closed, "wait", lambda seconds: ended.append(wait(60 * seconds)))
        thread = threading.Thread(target=client.pause, args=(6,), daemon=True)
        thread.start()
        client.close()
        thread.join(120)
    assert client._closed.is_set() and ended == [True]  # and not by its ten minutes


def test_a_refusal_differs_from_a_server_that_is_unavailable(server, client):
    server.statuses = [400, 503]
    with pytest.raises(ServerRefused, match=r"POST http://127.0.0.1:\d+/x was answered with 400: .*why"):
        client.post("/x", {"why": 1})
    with pytest.raises(ServerUnavailable, match="503"):
        client.post("/x")
    server.shutdown()
    server.server_close()
    with pytest.raises(ServerUnavailable, match="ConnectionRefusedError"):
        client.post("/x")


def test_waiting_asks_until_the_server_is_healthy(server, client):
    server.statuses = [503, 503, 503]
    waits: list[float] = []
    client.wait_until_healthy(30, lambda: waits.append(time.monotonic()))
    assert len(server.calls) == len(waits) == 4
    pauses = [after - before for before, after in pairwise(waits)]
    assert pauses[-1] > 0.1 > 0.04 < pauses[0]  # less and less often


def test_waiting_ends_with_what_to_start_and_set(server, client):
    server.statuses = [503] * 1000
    with pytest.raises(TimeoutError, match=r"within 0 s .*timeout.*grpo_lightning serve.*launch=true"):
        client.wait_until_healthy(0.1)


def test_stopping_ends_the_server_and_what_it_started(tmp_path):
    script = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    process = ServerProcess(
        [sys.executable, "-c", script + "print('up', flush=True); time.sleep(600)"], None, tmp_path / "l"
    )
    process.start()
    while "up" not in process.log_tail():
        time.sleep(0.02)
    group = process.pid
    process.stop(patience=5)
    assert not process.is_alive() and process.pid is None
    assert group is not None
    for _ in range(500):  # the kernel takes a moment to end what was killed
        if not members(group):
            break
        time.sleep(0.02)
    assert members(group) == []


def members(group: int) -> list[str]:
    """Living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z" and int(fields[2]) == group:
            found.append(stat.parent.name)
    return found


def test_a_server_gets_the_development_endpoints_and_nothing_of_the_training_ranks(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    environment = server_environment(gpus="2,3")
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert environment["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert "RANK" not in environment
    assert environment["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "1")
    assert server_environment()["VLLM_USE_FLASHINFER_SAMPLER"] == "1"
    command = server_command("dir", "127.0.0.1", 8000, "float32", ["--enforce-eager"])
    text = " ".join(command[1:])
    assert "--host 127.0.0.1" in text and "--dtype float32" in text and text.endswith("--enforce-eager")
    assert "--logprobs-mode processed_logprobs" in text
    assert "--load-format safetensors" in text and "--no-trust-remote-code" in command


def test_the_workers_of_a_server_are_extended_unless_its_options_say_otherwise():
    command = server_command("dir", "127.0.0.1", 8000, "float32", ["--worker-extension-cls", "theirs"])
    module, _, name = command[command.index("--worker-extension-cls") + 1].rpartition(".")
    assert importlib.util.find_spec(module) is not None and name == "PolicyWorker"
    assert command[-1] == "theirs"  # of two, vLLM takes the last


@pytest.mark.parametrize(("build", "shares"), [("0.32.0+cpu", ["0.5", "0.8"]), ("0.32.0", ["0.8"])])
def test_a_server_on_a_cpu_leaves_half_of_the_memory_to_the_run_unless_its_options_say_otherwise(
    monkeypatch, build, shares
):
    """VLLM's 0.92 of all memory has to be free before it starts; of two shares it takes the last."""
    monkeypatch.setattr(vllm_compat, "installed_version", lambda: (build, "+cpu" in build))
    command = server_command("dir", "127.0.0.1", 8000, "float32", ["--gpu-memory-utilization", "0.8"])
    named = [at for at, word in enumerate(command) if word == "--gpu-memory-utilization"]
    assert [command[at + 1] for at in named] == shares


def test_serve_listens_on_loopback_and_keeps_the_checkpoints_dtype(tiny_model_dir):
    options = build_parser().parse_args(["--model", "m", "--", "--enforce-eager"])
    assert (options.host, options.port, options.vllm_options) == ("127.0.0.1", 8000, ["--enforce-eager"])
    assert stored_dtype(str(tiny_model_dir)) == "float32"


def test_settings_of_a_launched_server_are_refused_for_another(tmp_path):
    with pytest.raises(ValueError, match=r"init_args\.dtype='float32' has no effect .* launch=true"):
        VLLMServer(dtype="float32")
    with pytest.raises(ValueError, match=r"init_args\.launch_gpus='1' has no effect"):
        VLLMServer(launch_gpus="1")
    assert json.dumps(VLLMServer().client.address) == '"http://127.0.0.1:8000"'
