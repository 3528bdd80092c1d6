"""A stand-in for the Hugging Face hub on this machine, with one dataset: what the datasets library asks of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from local_server import serving_in_a_thread

COMMIT = "a" * 40


def card(dataset: str, files: dict[str, bytes]) -> dict[str, Any]:
    """What a hub says of a dataset."""
    about = {"id": dataset, "sha": COMMIT, "private": False, "tags": [], "cardData": {}}
    return about | {"siblings": [{"rfilename": name} for name in files]}


@contextmanager
def hub(dataset: str, files: dict[str, bytes]) -> Iterator[str]:
    """The address of a hub that has these files as ``dataset``."""

    def about(name: str) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(files[name]), "oid": hashlib.sha1(files[name]).hexdigest()}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if "/resolve/" in path:
                name = path.partition("/resolve/")[2].partition("/")[2]
                if name in files:
                    tag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
                    self.answer(files[name], X_Repo_Commit=COMMIT, ETag=tag)
                else:
                    self.answer(b"", 404, X_Error_Code="EntryNotFound")
            elif path.startswith(f"/api/datasets/{dataset}/tree/"):
                self.answer(json.dumps([about(name) for name in files]).encode(), Content_Type="application/json")
            elif path.startswith(f"/api/datasets/{dataset}"):
                self.answer(json.dumps(card(dataset, files)).encode(), Content_Type="application/json")
            else:
                self.answer(b"", 404)

        do_HEAD = do_GET

    with serving_in_a_thread(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        yield f"http://127.0.0.1:{server.server_port}"
