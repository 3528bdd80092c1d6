"""Tests of what a program cannot reach, with this machine's kernel and as on older ones."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grpo_lightning.rewards.kinds import code_execution
from grpo_lightning.rewards.kinds.code_execution import CodeExecutionReward
from grpo_lightning.rewards.sandbox.isolation import Isolation, isolation
from grpo_lightning.rewards.sandbox.judge import run_printing
from grpo_lightning.rewards.sandbox.landlock import version
from grpo_lightning.rewards.sandbox.launch import Limits, NotStarted
from grpo_lightning.rewards.sandbox.seccomp import ARCHITECTURES, build

confined = pytest.mark.skipif(bool(isolation().missing), reason=f"this kernel does not confine: {isolation().missing}")
VERSIONS = [None, *range(1, version())]
"""The kernel's Landlock, and each that older kernels have."""

REFUSED = {
    "a TCP socket": "import socket; socket.socket()",
    "a UNIX socket": "import socket; socket.socket(socket.AF_UNIX)",
    "a pair of datagram sockets": "import socket; socket.socketpair(type=socket.SOCK_DGRAM)",
    "a fork": "import os; os.fork()",
    "a program": "import os; os.execv('/bin/true', ['true'])",
    "a spawned program": "import subprocess; subprocess.run(['true'])",
    "a signal to the trainer": "import os; os.kill({parent}, 0)",
    "a signal to all": "import os; os.kill(-1, 0)",
    "a signal by descriptor": "import os; os.pidfd_open({parent})",
    "a signal by a descriptor's owner": "import fcntl, os; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, {parent})",
    "the trainer's environment": "open('/proc/{parent}/environ').read()",
    "its own /proc": "open('/proc/self/maps').read()",
    "a file of the user": "open({secret!r}).read()",
    "a directory of the user": "import os; os.listdir({folder!r})",
    "a file in /tmp": "open('/tmp/grpo-sandbox-left-behind', 'w')",
    "shared memory": "open('/dev/shm/grpo-sandbox-left-behind', 'w')",
    "the user's file, cut": "import os; os.truncate({secret!r}, 0)",
    "the user's file, cut while it is opened": "import os; os.open({library!r}, os.O_RDONLY | os.O_TRUNC)",
    "the user's file, removed": "import os; os.unlink({secret!r})",
    "the user's file, with another mode": "import os; os.chmod({secret!r}, 0o777)",
    "the user's file, with another time": "import os; os.utime({secret!r})",
    "memory without a file": "import os; os.memfd_create('x')",
    "a higher limit": "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))",
    "memory beyond the limit": "x = bytearray(2**31)",
    "a namespace": "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "a tracer": "import ctypes; assert ctypes.CDLL(None).ptrace(16, {parent}, 0, 0) == 0",
    "the memory of the trainer": "import ctypes; assert ctypes.CDLL(None).process_vm_readv({parent}, 0, 0, 0, 0, 0) == 0",
    "System V shared memory": "import ctypes; assert ctypes.CDLL(None).shmget(0, 4096, 0o1600) >= 0",
    "life after its parent": "import ctypes; assert ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0",
}  # fmt: skip


@confined
@pytest.mark.parametrize("landlock", VERSIONS)
def test_programs_reach_nothing_of_this_machine(tmp_path: Path, landlock: int | None) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    secret.chmod(0o600)
    library = Path(sys.prefix, "grpo-sandbox-library")
    library.write_text("kept")
    before = secret.stat()
    names = {"parent": os.getpid(), "secret": str(secret), "folder": str(tmp_path), "library": str(library)}
    attempts = [(name, code.format(**names)) for name, code in REFUSED.items()]
    lines = [
        f"try:\n    exec({code!r})\n    print('reached:', {name!r})\nexcept (OSError, AssertionError, ValueError, MemoryError): pass"
        for name, code in attempts
    ]
    try:
        result = run_printing("\n".join(lines), "", Limits(20.0, 2**30, landlock=landlock))
        assert library.read_text() == "kept"
    finally:
        library.unlink()
    assert (result.verdict, result.output) == ("passed", "")
    assert secret.read_text() == "s3cret"
    after = secret.stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_size) == (before.st_mode, before.st_mtime_ns, before.st_size)


def test_the_attempts_above_reach_what_they_name_where_nothing_confines_them(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    for name in ("a UNIX socket", "a signal to the trainer", "the trainer's environment", "a file of the user"):
        secret.write_text("s3cret")
        code = REFUSED[name].format(parent=os.getpid(), secret=str(secret))
        assert subprocess.run([sys.executable, "-I", "-c", code]).returncode == 0, name


@confined
def test_a_server_of_this_machine_is_not_reached(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        code = f"import socket\nwith socket.socket(socket.AF_UNIX) as s:\n    s.connect({path!r})"
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0
        assert run_printing(code, "", Limits(5.0, 2**30)).verdict == "failed"


@confined
def test_what_programs_need_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    code = """
import asyncio, decimal, json, os, random, signal, sys, tempfile, threading, numpy
threading.stack_size(2**27)
thread = threading.Thread(target=lambda: print(numpy.arange(3).sum(), flush=True))
thread.start(); thread.join()
asyncio.run(asyncio.sleep(0.01))
signal.signal(signal.SIGTERM, lambda *a: print("to itself"))
os.kill(os.getpid(), signal.SIGTERM)
print("SECRET_TOKEN" in os.environ, "torch" in sys.modules, any("grpo" in name for name in sys.modules))
"""
    result = run_printing(code, "", Limits(20.0, 2**30))
    assert (result.verdict, result.output) == ("passed", "3\nto itself\nFalse False False\n")


@confined
def test_files_are_written_into_memory_of_limited_size_or_nowhere() -> None:
    if isolation().workdir:
        code = "open('a', 'w').write('x')\nprint(open('a').read())\ntry:\n    [open(str(n), 'wb').write(bytes(2**20)) for n in range(64)]\nexcept OSError as error:\n    print(error.strerror)"
        assert run_printing(code, "", Limits(10.0, 2**30)).output == "x\nNo space left on device\n"
    else:
        assert run_printing("open('a', 'w')", "", Limits(10.0, 2**30)).verdict == "failed"


BOMB = """
import resource, threading
end = threading.Event()
try:
    for started in range(1000):
        threading.Thread(target=end.wait).start()
except RuntimeError:
    print("refused", started < 256)
end.set()
print(resource.getrlimit(resource.RLIMIT_NPROC)[0])
"""


@confined
@pytest.mark.skipif(not isolation().workdir, reason="the kernel gives programs no user namespace of their own")
def test_the_threads_of_a_program_are_bounded() -> None:
    lines = run_printing(BOMB, "", Limits(30.0, 2**31)).output.split("\n")
    assert "256" in lines
    assert os.getuid() == 0 or "refused True" in lines  # of root's threads the kernel counts none


@confined
def test_nothing_is_left_when_the_process_that_waits_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom grpo_lightning.rewards.sandbox.judge import run_printing\n"
        "from grpo_lightning.rewards.sandbox.launch import Limits, Child\n"
        "start = Child.wait_until_ready\n"
        "def said(self):\n    found = start(self)\n    print(self.process.pid, flush=True)\n    return found\n"
        "Child.wait_until_ready = said\n"
        "run_printing('while True: pass', '', Limits(100.0, 2**30))"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        pid = int(trainer.stdout.readline())
        trainer.kill()
    for _ in range(600):
        if not Path(f"/proc/{pid}/stat").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the program outlived the trainer")


def test_the_reward_refuses_to_start_where_the_kernel_cannot_confine(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Isolation({"Landlock": "the kernel has no Landlock"})
    monkeypatch.setattr(code_execution, "isolation", lambda: missing)
    with pytest.raises(ValueError, match=r"cannot confine.*Landlock: the kernel has no Landlock.*unsafe: true"):
        CodeExecutionReward()
    assert CodeExecutionReward(unsafe=True).unsafe


@confined
def test_a_program_is_not_run_where_one_layer_fails_at_the_last_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isolation(landlock=-1).missing.keys() == {"Landlock"}
    with pytest.raises(NotStarted, match="Landlock"):
        run_printing("print(1)", "", Limits(5.0, 2**30, landlock=-1))
    assert run_printing("print(1)", "", Limits(5.0, 2**30, unsafe=True, landlock=-1)).output == "1\n"


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_every_jump_of_the_filter_stays_inside_it(machine: str) -> None:
    program = build(machine, own_pid=1, may_truncate=False)
    for place, (code, yes, no, _) in enumerate(program):
        assert 0 <= yes < 256 and 0 <= no < 256
        if code in (0x15, 0x35):
            assert place + 1 + max(yes, no) < len(program)
    assert program[-1] == (0x06, 0, 0, 0x00050001)
