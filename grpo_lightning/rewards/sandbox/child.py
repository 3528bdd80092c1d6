"""The script of a confined process: ``python -I child.py FD``, with its request as JSON in the file FD.

The request names the role: ``print_output`` (a program that reads and prints), ``serve`` (a program whose functions are called),
``test`` (the test that calls them) or ``probe`` (only says what could be confined). Before any of it runs, one line of
JSON on the request's ``status`` says that the process is ready, and what this kernel did not take away.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGES = {
    "grpo_lightning": HERE.parents[1],
    "grpo_lightning.rewards": HERE.parent,
    "grpo_lightning.rewards.sandbox": HERE,
}
ROLES = {"print_output": "program", "serve": "program", "test": "tester"}


def find_siblings() -> None:
    """Makes the files beside this one importable by their names, without running what the packages run."""
    for name, folder in PACKAGES.items():
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package


def forget_siblings() -> None:
    """The program imports nothing of ours."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "grpo_lightning"]:
        del sys.modules[name]


def main(descriptor: int) -> None:
    """Confines this process, says so, and takes the role."""
    with open(descriptor, "rb") as file:
        request: dict[str, Any] = json.loads(file.read())
    find_siblings()
    role = request["role"]
    run = (
        getattr(importlib.import_module(f"grpo_lightning.rewards.sandbox.{ROLES[role]}"), role)
        if role in ROLES
        else None
    )
    confined = importlib.import_module("grpo_lightning.rewards.sandbox.confine").confine(request)
    forget_siblings()
    os.write(request["status"], json.dumps(confined).encode() + b"\n")
    os.close(request["status"])
    if run is not None and (request["unsafe"] or not confined["missing"]):
        run(request)


if __name__ == "__main__":
    main(int(sys.argv[1]))
