"""`serve`: what it says where no server can be, and how it looks after one; small programs stand in for vLLM's server."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ports import free_port

from grpo_lightning.__main__ import main
from grpo_lightning.commands.serve import supervise
from grpo_lightning.generation.vllm.serving import supervisor_watch
from grpo_lightning.generation.vllm.serving.client import VLLMClient
from grpo_lightning.generation.vllm.serving.process import ServerProcess
from grpo_lightning.generation.vllm.serving.token import TOKEN_VARIABLE, known_token, write_token

READY_THEN_DEAD = """
import http.server, os, sys, threading
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        threading.Timer(0.3, os._exit, (int(sys.argv[2]),)).start()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""
WATCHED = """
import subprocess, sys, time
from grpo_lightning.generation.vllm.serving.supervisor_watch import watch_supervisor
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
watch_supervisor()
print(worker.pid, flush=True)
time.sleep(600)
"""
WITH_DEAF_WORKER = """
import signal, subprocess, sys, time
from grpo_lightning.generation.vllm.serving.supervisor_watch import watch_supervisor
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which a child inherits
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
signal.signal(signal.SIGTERM, signal.SIG_DFL)
watch_supervisor(patience=0.5)
print(worker.pid, flush=True)
time.sleep(600)
"""
STARTER = """
import signal, sys, time
from pathlib import Path
from grpo_lightning.generation.vllm.serving.process import ServerProcess
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
process = ServerProcess([sys.executable, "-c", sys.argv[1]], log_file=Path(sys.argv[2]))
process.start()
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _own_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)


@contextlib.contextmanager
def client_of(port: int) -> Iterator[VLLMClient]:
    client = VLLMClient("127.0.0.1", port, request_timeout=10.0)
    yield client
    client.close()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["serve", *arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_port_that_is_taken_is_said_and_the_token_of_the_server_there_is_left(capsys, tiny_model_dir):
    pytest.importorskip("vllm")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        write_token(port, "of the other one")
        said = refused(capsys, "--model", str(tiny_model_dir), "--port", str(port))
        assert known_token("127.0.0.1", port) == "of the other one"
    assert said.startswith(f"grpo_lightning serve: --port {port} is taken")


def test_an_address_that_is_not_this_machines_is_said(capsys, tiny_model_dir):
    pytest.importorskip("vllm")
    said = refused(capsys, "--model", str(tiny_model_dir), "--host", "203.0.113.7", "--port", str(free_port()))
    assert said.startswith("grpo_lightning serve: --host 203.0.113.7 ")


def test_the_folder_of_a_run_and_a_checkpoint_are_answered_with_what_can_be_served(capsys, tmp_path):
    pytest.importorskip("vllm")
    run = tmp_path / "a run"
    checkpoint = run / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert f"export '{run}' DIR` writes the policy" in refused(capsys, "--model", str(run))
    assert f"export '{checkpoint}' DIR` writes the policy" in refused(capsys, "--model", str(checkpoint))
    for name in ("last", "step-8"):
        (run / "hf" / name).mkdir(parents=True)
        (run / "hf" / name / "config.json").write_text("{}")
    assert f"whose trained model is in {run}/hf/last." in refused(capsys, "--model", str(run))


def test_a_server_that_dies_before_it_is_ready_is_not_started_again(capsys, tmp_path):
    command = [sys.executable, "-c", "print('last words'); raise SystemExit(3)"]
    process = ServerProcess(command, log_file=tmp_path / "log")
    with client_of(free_port()) as client:
        assert supervise(process, client, restarts=5) == 3
    process.stop()
    assert process.starts == 1 and process.log_tail() == "last words"
    assert "vLLM died with status 3 before it was ready" in capsys.readouterr().err


def test_a_server_that_only_says_something_of_itself_has_ended_well(tmp_path):
    process = ServerProcess([sys.executable, "-c", "print('help')"], log_file=tmp_path / "log")
    with client_of(free_port()) as client:
        assert supervise(process, client, restarts=1) == 0
    assert process.starts == 1


@pytest.mark.parametrize(("status", "told"), [(4, 4), (0, 1)], ids=["dead", "its engine dead"])
def test_a_server_that_has_been_ready_is_started_again_and_its_last_death_is_said(status, told, capsys):
    port = free_port()
    process = ServerProcess([sys.executable, "-c", READY_THEN_DEAD, str(port), str(status)])
    with client_of(port) as client:
        assert supervise(process, client, restarts=1) == told
    process.stop()
    assert process.starts == 2
    said = capsys.readouterr()
    assert said.out.count(f"vLLM is ready at http://127.0.0.1:{port}") == 2 and "the model policy" in said.out
    assert f"vLLM died with status {status} for the last of 2 times (--restarts 1)" in said.err
    assert known_token("127.0.0.1", port) == process.token


def is_there(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def watchers_of(group: int) -> list[int]:
    """Processes that watch over a server's group."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if supervisor_watch.__file__.encode() in words and str(group).encode() in words:
                found.append(int(process.name))
    return found


@pytest.mark.parametrize(
    ("server", "number"),
    [(WATCHED, signal.SIGKILL), (WATCHED, signal.SIGHUP), (WITH_DEAF_WORKER, signal.SIGKILL)],
    ids=["killed", "terminal closed", "worker ignores SIGTERM"],
)
def test_a_server_and_its_workers_end_with_what_started_them_however_that_ends(server, number, tmp_path):
    log = tmp_path / "server.log"
    starter = subprocess.Popen([sys.executable, "-c", STARTER, server, str(log)])
    while not (log.exists() and log.read_text()):
        assert starter.poll() is None
        time.sleep(0.05)
    worker = int(log.read_text())
    head = os.getpgid(worker)
    assert is_there(worker) and is_there(head)
    starter.send_signal(number)
    starter.wait()
    while is_there(head) or is_there(worker) or watchers_of(head):
        time.sleep(0.05)


def test_what_watches_over_a_server_ends_with_it(tmp_path):
    process = ServerProcess([sys.executable, "-c", WATCHED], log_file=tmp_path / "log")
    process.start()
    while not (tmp_path / "log").read_text():
        time.sleep(0.05)
    head = process.pid
    assert head is not None and len(watchers_of(head)) == 1
    assert os.getpgid(watchers_of(head)[0]) != head
    process.stop()
    while watchers_of(head):
        time.sleep(0.05)
