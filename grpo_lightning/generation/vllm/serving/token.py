"""The token of a server: random, one each, known to whoever started it and to runs of the same user on the same machine."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

TOKEN_VARIABLE = "GRPO_LIGHTNING_SERVER_TOKEN"
"""Environment variable with the token, for a server on another machine; set alike for the server and the run."""
HOSTS_VARIABLE = "GRPO_LIGHTNING_SERVER_HOSTS"
"""Environment variable with further names under which a server may be addressed, separated by commas."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def new_token() -> str:
    """The one in the environment, or a random one of 256 bits."""
    return os.environ.get(TOKEN_VARIABLE) or secrets.token_hex(32)


def token_file(port: int) -> Path:
    """Where ``serve`` leaves the token for runs of the same user."""
    folder = os.environ.get("XDG_RUNTIME_DIR") or Path.home() / ".cache"
    return Path(folder, "grpo_lightning", f"server-{port}.token")


def write_token(port: int, token: str) -> Path:
    """Leaves the token in a file that only this user can read."""
    path = token_file(port)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token)
    return path


def remove_token(port: int, token: str) -> None:
    """Removes the file, unless another server has replaced it."""
    with contextlib.suppress(OSError):
        if token_file(port).read_text() == token:
            token_file(port).unlink()


def known_token(host: str, port: int) -> str | None:
    """The environment's token, or, for a server on this machine, the one that ``serve`` has left; None for neither."""
    if token := os.environ.get(TOKEN_VARIABLE):
        return token
    if host in LOOPBACK:
        with contextlib.suppress(OSError):
            return token_file(port).read_text()
    return None
