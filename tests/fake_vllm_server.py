"""A server with vLLM's endpoints and no engine, on a real socket: what it answers is up to the test."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, repeat

from local_server import serving_in_a_thread

HANG_UP = 0
"""In place of a status: no answer, as from a server that is killed."""
REASON = "Worker failed with error 'no module named lm_head'"


class FakeVLLM(ThreadingHTTPServer):
    """Answers with 200, or with the next status of the path's."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls: list[str] = []
        self.statuses: dict[str, Iterator[int]] = {}
        self.answer_to: Callable[[str, dict], dict] = answer_to
        """What is said to a path and a body."""

    def answer(self, path: str, *statuses: int, always: int = 200) -> None:
        """From now on with ``statuses``, one a call, and after these with ``always``."""
        self.statuses[path] = chain(statuses, repeat(always))


class Handler(BaseHTTPRequestHandler):
    server: FakeVLLM

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        self.server.calls.append(path)
        status = next(self.server.statuses.get(path, repeat(200)))
        if status == HANG_UP:
            return
        answer = self.server.answer_to(path, body) if status == 200 else {"error": {"message": REASON}}
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        pass


def answer_to(path: str, body: dict) -> dict:
    """One token for every completion."""
    if path == "/v1/models":
        return {"data": [{"id": "policy", "max_model_len": 256}]}
    if path == "/detokenize":
        return {"prompt": "".join(chr(97 + token) for token in body["tokens"])}
    if "prompt_logprobs" in body:  # each token is a little likelier than the next one
        told = {token: {"logprob": -1.0 - token} for token in range(body["prompt_logprobs"])}
        return {"choices": [{"prompt_logprobs": [None] + [told] * (len(body["prompt"]) - 1)}]}
    if path != "/v1/completions":
        return {}
    choice = {"token_ids": [5], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "length"}
    return {"choices": [{"index": index, **choice} for index in range(body["n"])]}


@contextmanager
def fake_vllm() -> Iterator[FakeVLLM]:
    """Serving until the end of the block."""
    with serving_in_a_thread(FakeVLLM()) as server:
        yield server
