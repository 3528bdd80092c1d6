"""Landlock: a process shuts itself out of all files but those that it names (Linux 5.13, docs.kernel.org/userspace-api)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same numbers on every machine
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
TRUNCATE, REFER, IOCTL_DEVICE = 1 << 14, 1 << 13, 1 << 15
MAKE_DEVICES = 1 << 6 | 1 << 11
ALL_OF_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
"""What each version of the interface can take away from files; later ones as the fifth."""
NETWORK, SCOPES = 3, 3
"""Binding and connecting TCP (fourth version); abstract sockets of others, and signals to others (sixth)."""
READ = EXECUTE | READ_FILE | READ_DIR


def version() -> int:
    """Of the kernel's interface; 0 where there is none or it is switched off."""
    found = ctypes.CDLL(None).syscall(CREATE_RULESET, None, 0, 1)
    return max(0, int(found))


def restrict(readable: Iterable[str], writable: Sequence[str], of_version: int | None = None) -> None:
    """Leaves this process, for good, only these files and directories with what is in them.

    Args:
        readable: May be read and loaded as libraries; those that do not exist are left out.
        writable: May be changed in every way, but hold no devices.
        of_version: At most; for tests of what older kernels do.

    Raises:
        OSError: If the kernel has no Landlock, or refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    abi = version() if of_version is None else min(version(), of_version)
    if abi <= 0:
        raise OSError("the kernel has no Landlock (Linux 5.13 or later, with landlock among its security modules)")
    handled = ALL_OF_VERSION[min(abi, 5)]
    attributes = struct.pack("QQQ", handled, NETWORK if abi >= 4 else 0, SCOPES if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = _checked(libc.syscall(CREATE_RULESET, ctypes.c_char_p(attributes[:size]), size, 0))
    try:
        for path in readable:
            _add(libc, ruleset, path, READ)
        for path in writable:
            _add(libc, ruleset, path, handled & ~MAKE_DEVICES)
        _checked(libc.syscall(RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _add(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    if not Path(path).exists():
        return
    if not Path(path).is_dir():
        rights &= EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", rights, descriptor)
        _checked(libc.syscall(ADD_RULE, ruleset, 1, ctypes.c_char_p(rule), 0))
    finally:
        os.close(descriptor)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
    return result
