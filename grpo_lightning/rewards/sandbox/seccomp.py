"""A seccomp filter that leaves a process some calls of the kernel: no socket, no process, no signal but to itself."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

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


ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine -> place in the tables below, and what the kernel calls it (linux/audit.h)."""

# Number on x86_64 and on aarch64, where None says that there is no such call (asm/unistd_64.h, asm-generic/unistd.h).
# Absent on purpose: sockets, new processes, exec, ptrace, mounts, namespaces, io_uring, shared memory, memfd, changes of
# owners, modes, times and attributes (Landlock does not stop those), truncate by name, keys, bpf, and all that is new.
# fmt: off
PLAIN: dict[str, tuple[int, int | None]] = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "preadv": (295, 69), "pwritev": (296, 70), "preadv2": (327, 286), "pwritev2": (328, 287),
    "close": (3, 57), "close_range": (436, 436), "lseek": (8, 62), "sendfile": (40, 71),
    "copy_file_range": (326, 285), "fstat": (5, 80), "stat": (4, None), "lstat": (6, None), "newfstatat": (262, 79),
    "statx": (332, 291), "statfs": (137, 43), "fstatfs": (138, 44), "access": (21, None), "faccessat": (269, 48),
    "faccessat2": (439, 439), "readlink": (89, None), "readlinkat": (267, 78), "getdents": (78, None),
    "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "rename": (82, None),
    "renameat": (264, 38), "renameat2": (316, 276), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None),
    "unlink": (87, None), "unlinkat": (263, 35), "symlink": (88, None), "symlinkat": (266, 36), "link": (86, None),
    "linkat": (265, 37), "umask": (95, 166), "fsync": (74, 82), "fdatasync": (75, 83), "ftruncate": (77, 46),
    "fadvise64": (221, 223), "fallocate": (285, 47), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215),
    "mremap": (25, 216), "madvise": (28, 233), "mincore": (27, 232), "msync": (26, 227), "brk": (12, 214),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigsuspend": (130, 133), "rt_sigtimedwait": (128, 137), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128), "pause": (34, None), "alarm": (37, None), "getitimer": (36, 102),
    "setitimer": (38, 103), "timer_create": (222, 107), "timer_settime": (223, 110), "timer_gettime": (224, 108),
    "timer_getoverrun": (225, 109), "timer_delete": (226, 111), "timerfd_create": (283, 85),
    "timerfd_settime": (286, 86), "timerfd_gettime": (287, 87), "nanosleep": (35, 101), "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None),
    "times": (100, 153), "pipe": (22, None), "pipe2": (293, 59), "dup": (32, 23), "dup2": (33, None),
    "dup3": (292, 24), "select": (23, None), "pselect6": (270, 72), "poll": (7, None), "ppoll": (271, 73),
    "eventfd": (284, None), "eventfd2": (290, 19), "epoll_create": (213, None), "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22), "epoll_pwait2": (441, 441),
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getpgrp": (111, None), "getpgid": (121, 155), "getsid": (124, 156),
    "getgroups": (115, 158), "getresuid": (118, 148), "getresgid": (120, 150), "capget": (125, 90),
    "uname": (63, 160), "sysinfo": (99, 179), "getrusage": (98, 165), "getrlimit": (97, 163), "getcpu": (309, 168),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120), "getpriority": (140, 141), "futex": (202, 98), "futex_waitv": (449, 449),
    "set_robust_list": (273, 99), "get_robust_list": (274, 100), "set_tid_address": (218, 96), "rseq": (334, 293),
    "membarrier": (324, 283), "arch_prctl": (158, None), "getrandom": (318, 278), "exit": (60, 93),
    "exit_group": (231, 94), "shutdown": (48, 210), "recvfrom": (45, 207),
}
"""Allowed whatever the arguments."""
CHECKED: dict[str, tuple[int, int | None]] = {
    "clone": (56, 220), "clone3": (435, 435), "kill": (62, 129), "tgkill": (234, 131), "fcntl": (72, 25),
    "ioctl": (16, 29), "prctl": (157, 167), "prlimit64": (302, 261), "socketpair": (53, 199), "sendto": (44, 206),
    "open": (2, None), "openat": (257, 56),
}
"""Allowed with some arguments only; see seccomp.py."""
# fmt: on


def numbers(table: dict[str, tuple[int, int | None]], place: int) -> dict[str, int]:
    """Name -> number on one machine."""
    return {name: number for name, both in table.items() if (number := both[place]) is not None}
