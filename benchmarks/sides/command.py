"""The command of a benchmark as its result keeps it."""

from __future__ import annotations

import re
import shlex
import sys


def this_command(script: str) -> str:
    """How this program was called, as another machine can repeat it: absolute paths lose their folders."""
    arguments = [re.sub(r"(?:(?<=^)|(?<==))/\S*/(?=[^/]+$)", "", argument) for argument in sys.argv[1:]]
    return shlex.join(["python", script, *arguments])
