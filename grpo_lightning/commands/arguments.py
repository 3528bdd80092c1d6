"""Arguments of the commands beside Lightning's: a mistake is answered in a line, with what was perhaps meant."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import NoReturn


class CommandParser(argparse.ArgumentParser):
    """argparse's, without the list of all options before each error."""

    def error(self, message: str) -> NoReturn:
        """Ends the command with status 2."""
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        near = get_close_matches(unknown[1], self._option_string_actions, 1) if unknown else []
        meant = f" Did you mean {near[0]}?" if near else f" `{self.prog} --help` lists what it takes."
        self.exit(2, f"{self.prog}: error: {message.rstrip('.')}.{meant}\n")


def whole(what: str, least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of an argument that is a whole number from ``least``.

    Example:
        >>> whole("port", 0, 65535)("8000")
        8000
    """
    span = f"{least} or more" if most is None else f"a whole number from {least} to {most}"

    def read(text: str) -> int:
        if not re.fullmatch(r"-?\d+", text) or int(text) < least or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f"{text} is no {what}: choose {span}")
        return int(text)

    return read


def temperature(text: str) -> float:
    """The type of an argument that is a temperature.

    Example:
        >>> temperature("0.7")
        0.7
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no temperature: choose 0 or more")
    return value


def devices(text: str) -> str:
    """The type of an argument that names CUDA devices: numbers, or UUIDs as nvidia-smi lists them.

    Example:
        >>> devices("6,7")
        '6,7'
    """
    if not re.fullmatch(r"(\d+|(GPU|MIG)-[\w/-]+)(,(\d+|(GPU|MIG)-[\w/-]+))*", text):
        raise argparse.ArgumentTypeError(
            f"{text} names no CUDA devices: write numbers with commas between them, as in 0,1"
        )
    return text
