"""Confines the process that calls it, before it runs a line that is not ours: limits, files, system calls."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import sysconfig
from typing import Any

from grpo_lightning.rewards.sandbox import landlock, seccomp

WORK_BYTES, WORK_FILES = 16 * 2**20, 1000
"""Of the directory that a program may write into, which is in memory."""
OPEN_FILES = 64
THREADS = 256
COUNTS_IN_NAMESPACES = (5, 14)
"""The first Linux in which RLIMIT_NPROC counts the threads of a user inside of a user namespace alone, not all of the user's."""
NEW_USER, NEW_MOUNT, NEW_NETWORK, NEW_IPC = 0x10000000, 0x00020000, 0x40000000, 0x08000000
SYSTEM = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/usr/share/zoneinfo", "/usr/share/locale")
FILES = ("/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/random", "/dev/zero")


def confine(request: dict[str, Any]) -> dict[str, Any]:
    """Takes away what the program must not have; what could not be taken away is in the answer.

    Args:
        request: ``seconds`` of processor time, ``memory`` and ``file_size`` in bytes, ``keep`` (open files beside 0, 1
            and 2), and ``landlock``, the version to use at most, or None.

    Returns:
        ``workdir`` (whether there is one to write into), ``missing`` (what this kernel did not do, with its reason).
    """
    missing: dict[str, str] = {}
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: it ends with the thread that waits for it
    _close_files(request["keep"])
    workdir = _own_workdir(libc)
    _drop_privileges(libc)
    try:
        readable = {*SYSTEM, *FILES, sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()}
        landlock.restrict(
            sorted(readable), [os.getcwd(), "/dev/null"] if workdir else ["/dev/null"], request["landlock"]
        )
    except OSError as error:
        missing["Landlock"] = str(error)
    limit_resources(request)
    if workdir and _kernel() >= COUNTS_IN_NAMESPACES:  # of root's threads no kernel counts any
        resource.setrlimit(resource.RLIMIT_NPROC, (THREADS, THREADS))
    try:
        seccomp.install(may_truncate=min(landlock.version(), request["landlock"] or 3) >= 3)
    except OSError as error:
        missing["seccomp"] = str(error)
    return {"workdir": workdir, "missing": missing}


def _close_files(keep: list[int]) -> None:
    kept = [0, 1, 2, *sorted(keep)]
    for low, high in zip(kept, [*kept[1:], OPEN_FILES * 1024], strict=True):
        os.closerange(low + 1, high)


def _own_workdir(libc: ctypes.CDLL) -> bool:
    """Whether the working directory could be replaced by one in memory, of limited size, that only this process sees."""
    user, group, here = os.getuid(), os.getgid(), os.getcwd()
    if libc.unshare(NEW_USER | NEW_MOUNT | NEW_NETWORK | NEW_IPC) != 0:
        return False
    with contextlib.suppress(OSError):
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        libc.mount(None, b"/", None, 0x40000 | 0x4000, None)  # MS_PRIVATE, MS_REC: nothing is seen outside
        options = f"size={WORK_BYTES},nr_inodes={WORK_FILES},mode=700".encode()
        if libc.mount(b"tmpfs", os.fsencode(here), b"tmpfs", 2 | 4, options) == 0:  # MS_NOSUID, MS_NODEV
            os.chdir(here)
            return True
    return False


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2] if part.isdecimal())


def _drop_privileges(libc: ctypes.CDLL) -> None:
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    libc.prctl(47, 4, 0, 0, 0)  # PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
    libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


def limit_resources(request: dict[str, Any]) -> None:
    """Processor time, address space, file size, open files: hard limits, which a program cannot raise."""
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_FSIZE: request["file_size"],
        resource.RLIMIT_AS: request["memory"],
        resource.RLIMIT_CPU: int(request["seconds"]) + 1,
    }
    for kind, value in limits.items():
        ceiling = resource.getrlimit(kind)[1]
        value = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        resource.setrlimit(kind, (value, value))
