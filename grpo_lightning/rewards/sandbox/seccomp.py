"""A seccomp filter that leaves a process the calls of ``syscalls.py``: no socket, no process, no signal but to itself."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

from grpo_lightning.rewards.sandbox.syscalls import ARCHITECTURES, CHECKED, PLAIN, numbers

LOAD, JUMP_EQUAL, JUMP_ABOVE, AND, RETURN = 0x20, 0x15, 0x35, 0x54, 0x06  # classic BPF (linux/filter.h)
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000  # what the filter may answer (linux/seccomp.h)
NUMBER_AT, MACHINE_AT, ARGUMENTS_AT = 0, 4, 16  # struct seccomp_data
X32 = 0x40000000
"""Calls of the x32 interface have this bit: the same calls by other numbers."""
CLONE_THREAD = 0x00010000
O_TRUNC = 0x200
PLAIN_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIO[N]CLEX
FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1031, 1032)  # not F_SETOWN, F_SETSIG, F_NOTIFY: they send signals
NAMES_OF_THREADS = (15, 16, 0x53564D41)  # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA

Instruction = tuple[int, int, int, int]


def build(machine: str, own_pid: int, may_truncate: bool) -> list[Instruction]:
    """The filter's instructions: code, jump if true, jump if false, operand.

    Args:
        machine: As ``platform.machine()`` says it.
        own_pid: The one process that may be sent signals.
        may_truncate: False where Landlock does not see O_TRUNC yet (before its third version).
    """
    place, audit = ARCHITECTURES[machine]
    program: list[Instruction] = [
        (LOAD, 0, 0, MACHINE_AT),
        (JUMP_EQUAL, 1, 0, audit),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
        (JUMP_ABOVE, 0, 1, X32),
        (RETURN, 0, 0, KILL),
    ]
    for number in numbers(PLAIN, place).values():
        program += [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    rules = _rules(own_pid, may_truncate)
    for name, number in numbers(CHECKED, place).items():
        program += [(JUMP_EQUAL, 0, len(rules[name]), number), *rules[name]]
    return [*program, _refusal(errno.EPERM)]


def _rules(own_pid: int, may_truncate: bool) -> dict[str, list[Instruction]]:
    opened = [(RETURN, 0, 0, ALLOW)]
    return {
        "clone": _all_of([(0, CLONE_THREAD, (CLONE_THREAD,))]),
        "clone3": [_refusal(errno.ENOSYS)],  # its flags are in memory, out of reach; the C library then uses clone
        "kill": _all_of([(0, None, (own_pid,))]),
        "tgkill": _all_of([(0, None, (own_pid,))]),
        "fcntl": _all_of([(1, None, FCNTLS)]),
        "ioctl": _all_of([(1, None, PLAIN_IOCTLS)]),
        "prctl": _all_of([(0, None, NAMES_OF_THREADS)]),
        "prlimit64": _all_of([(2, None, (0,))], both_halves=True),  # to read limits, not to set them
        "socketpair": _all_of([(1, 0xF, (1,))]),  # a stream: datagrams could be addressed to other sockets
        "sendto": _all_of([(4, None, (0,))], both_halves=True),
        "open": opened if may_truncate else _all_of([(1, O_TRUNC, (0,))]),
        "openat": opened if may_truncate else _all_of([(2, O_TRUNC, (0,))]),
    }


def _all_of(conditions: list[tuple[int, int | None, tuple[int, ...]]], both_halves: bool = False) -> list[Instruction]:
    """Allows a call whose arguments, masked, are among the given values; refuses it else.

    Args:
        conditions: Place of the argument, mask or None, values.
        both_halves: Compare all 64 bits with 0, for pointers.
    """
    block: list[Instruction] = []
    for place, mask, values in conditions:
        for half in (0, 4) if both_halves else (0,):
            block.append((LOAD, 0, 0, ARGUMENTS_AT + 8 * place + half))
            if mask is not None:
                block.append((AND, 0, 0, mask))
            block += [(JUMP_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
            block.append(_refusal(errno.EPERM))
    return [*block, (RETURN, 0, 0, ALLOW)]


def _refusal(number: int) -> Instruction:
    return (RETURN, 0, 0, ERRNO | number)


def install(may_truncate: bool) -> None:
    """Puts the filter on this process, which must have one thread; nothing takes it off.

    Raises:
        OSError: If the kernel refuses, or the machine is none of ``ARCHITECTURES``.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise OSError(f"no table of system calls for {machine}, only for {', '.join(ARCHITECTURES)}")
    program = build(machine, os.getpid(), may_truncate)
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    libc = ctypes.CDLL(None, use_errno=True)
    filter_program = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))  # struct sock_fprog
    if libc.prctl(22, 2, ctypes.c_char_p(filter_program), 0, 0) != 0:  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "the kernel does not take a seccomp filter")
