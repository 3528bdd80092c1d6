"""What this machine's kernel takes away from a program: asked once, by confining a process and letting it say."""

from __future__ import annotations

import functools
import os
import tempfile
from dataclasses import dataclass

from grpo_lightning.rewards.sandbox.launch import Child, Limits, NotStarted


@dataclass(frozen=True)
class Isolation:
    """What holds here."""

    missing: dict[str, str]
    """What the kernel does not do -> why; empty where programs are confined."""
    workdir: bool = False
    """Whether programs have a directory to write into: in memory, of limited size, and their own."""


@functools.cache
def isolation(landlock: int | None = None) -> Isolation:
    """What holds on this machine, with Landlock of that version at most."""
    if not hasattr(os, "pidfd_open"):
        return Isolation({"Linux": "programs are confined by Landlock and seccomp, which only Linux has"})
    with tempfile.TemporaryDirectory(prefix="grpo-sandbox-") as folder:
        child = Child("probe", {}, Limits(10.0, 2**30, unsafe=True, landlock=landlock), folder)
        try:
            answer = child.wait_until_ready()
        except NotStarted as error:
            return Isolation({"a confined process": str(error)})
        finally:
            child.end()
    return Isolation(answer["missing"], answer["workdir"])
