"""Tests of what stands before a server's routes, without vLLM: an ASGI application behind the guard."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from grpo_lightning.generation.vllm.serving.guard import TokenGuard
from grpo_lightning.generation.vllm.serving.owner import RUN_HEADER, new_run
from grpo_lightning.generation.vllm.serving.process import ServerProcess, server_command
from grpo_lightning.generation.vllm.serving.token import (
    HOSTS_VARIABLE,
    TOKEN_VARIABLE,
    known_token,
    remove_token,
    token_file,
    write_token,
)


async def application(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


def status(method: str, path: str, kind: str = "http", **headers: str) -> int:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    named = [(name.lower().encode(), value.encode()) for name, value in {"Host": "127.0.0.1:8000", **headers}.items()]
    scope = {"type": kind, "method": method, "path": path, "headers": named}
    asyncio.run(TokenGuard(application)(scope, None, send))
    if len(sent) == 2:
        assert json.loads(sent[1]["body"])["error"]
    return int(sent[0].get("status", sent[0].get("code", 0)))


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "t0ken")
    monkeypatch.setenv(HOSTS_VARIABLE, "node7,vllm.cluster")


def test_all_but_a_few_reading_routes_want_the_token() -> None:
    for path in ("/health", "/v1/models", "/version"):
        assert status("GET", path) == status("HEAD", path) == 200
        assert status("POST", path) == 401
    for path in ("/pause", "/collective_rpc", "/v1/completions", "/not/known/yet", "/health/", "/HEALTH"):
        assert status("POST", path) == status("GET", path) == 401
        assert status("POST", path, Authorization="Bearer t0ken") == 200
    assert status("OPTIONS", "/pause") == 200


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer t0ke", "Bearer t0ken ", "Basic t0ken", "t0ken"])
def test_no_other_authorization_will_do(header: str) -> None:
    assert status("POST", "/pause", Authorization=header) == 401


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("LOCALHOST", True),
        ("node7:8000", True),
        ("vllm.cluster", True),
        ("evil.example:8000", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        ("[evil", False),
    ],
)
def test_a_request_by_a_name_that_is_not_the_servers_is_refused_even_with_the_token(host: str, allowed: bool) -> None:
    assert status("POST", "/pause", Host=host, Authorization="Bearer t0ken") == (200 if allowed else 403)
    assert status("GET", "/health", Host=host) == (200 if allowed else 403)


def test_a_run_that_has_lost_the_server_to_another_one_is_refused() -> None:
    guard = TokenGuard(application)

    def asks(run: str | None, path: str = "/v1/completions") -> tuple[int, str]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        named = {"host": "127.0.0.1", "authorization": "Bearer t0ken"} | (
            {} if run is None else {RUN_HEADER.lower(): run}
        )
        headers = [(name.encode(), value.encode()) for name, value in named.items()]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
        asyncio.run(guard(scope, None, send))
        return sent[0]["status"], json.loads(sent[1]["body"])["error"] if len(sent) == 2 else ""

    first, second = new_run(), new_run()
    assert first != second
    assert [asks(run)[0] for run in (first, second, None)] == [200, 200, 200]  # nobody's, as after a restart
    assert asks(first, "/pause")[0] == asks(first)[0] == asks(None)[0] == 200
    assert asks(second)[0] == 409  # it has sent nothing
    assert asks(second, "/collective_rpc") == (200, "")
    for path in ("/v1/completions", "/collective_rpc", "/pause"):  # neither its completions nor its weights
        refused, why = asks(first, path)
        assert refused == 409 and second.rpartition(" ")[0] in why
    assert asks(second)[0] == asks(None)[0] == 200


def test_a_websocket_wants_the_token_too() -> None:
    assert status("GET", "/v1/realtime", kind="websocket") == 1008


def test_a_server_without_a_token_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE)
    with pytest.raises(RuntimeError, match="is not set"):
        TokenGuard(application)


def test_each_server_has_a_token_of_its_own_and_gives_it_to_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE)
    command = server_command("dir", "node3", 8000, "float32")
    first, second = ServerProcess(command), ServerProcess(command)
    assert first.token != second.token and len(first.token) == 64
    assert first._guarded() == {TOKEN_VARIABLE: first.token, HOSTS_VARIABLE: "node7,vllm.cluster,node3"}
    assert command[command.index("--middleware") + 1].rpartition(".")[2] == TokenGuard.__name__


def test_a_run_finds_the_token_of_a_server_on_its_machine_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert known_token("elsewhere", 8000) == "t0ken"
    monkeypatch.delenv(TOKEN_VARIABLE)
    assert known_token("127.0.0.1", 8000) is None
    path = write_token(8000, "a")
    assert path == token_file(8000) and path.stat().st_mode & 0o077 == 0
    assert write_token(8000, "b") == path and known_token("localhost", 8000) == "b"
    assert known_token("elsewhere", 8000) is None and known_token("127.0.0.1", 8001) is None
    remove_token(8000, "a")
    assert known_token("127.0.0.1", 8000) == "b"
    remove_token(8000, "b")
    assert not path.exists()
