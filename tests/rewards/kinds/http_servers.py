"""A real HTTP server on this machine that answers as a test says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from local_server import serving_in_a_thread

Answer = tuple[int, Any, dict[str, str]]


@contextmanager
def serving(answer: Callable[[dict[str, Any], dict[str, str]], Answer]) -> Iterator[str]:
    """Serves ``answer(body, headers) -> (status, content, headers)``; content is bytes or something for JSON."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, content, headers = answer(body, dict(self.headers))
            payload = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(payload)))
            with suppress(BrokenPipeError):  # a client that has given up
                self.end_headers()
                self.wfile.write(payload)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    with serving_in_a_thread(server):
        yield f"http://127.0.0.1:{server.server_address[1]}/endpoint"
