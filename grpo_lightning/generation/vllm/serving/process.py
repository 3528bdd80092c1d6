"""A vLLM server as a child process: plain vLLM, with the flags that training needs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from grpo_lightning.generation.vllm.compat import (
    NO_VIDEOS,
    UNUSED_SAMPLER,
    is_cpu_build,
    request_counters,
    tokens_in_options,
)
from grpo_lightning.generation.vllm.serving.supervisor_watch import WATCH_VARIABLE
from grpo_lightning.generation.vllm.serving.token import HOSTS_VARIABLE, TOKEN_VARIABLE, new_token

SERVED_NAME = "policy"
"""What requests call the served model."""
WORKER = "grpo_lightning.generation.vllm.worker.PolicyWorker"
"""Extends the workers of a server, so that they take the policy's weights in every version."""
SCHEDULER = "grpo_lightning.generation.vllm.serving.scheduler.policy_scheduler"
"""Makes vLLM's scheduler, which then hands over completions when they end and not token by token."""
GUARD = "grpo_lightning.generation.vllm.serving.guard.TokenGuard"
"""Stands before the routes of a server: who has not its token can read whether it lives, and nothing else."""
IMAGE_OPTIONS = ("--limit-mm-per-prompt", json.dumps(NO_VIDEOS))
"""Of a server that is shown images: no room kept for the longest video."""
ON_CPU = ("--no-enable-chunked-prefill", "--gpu-memory-utilization", "0.5")
"""Of a server without a GPU: see engine.settings.WHOLE_PROMPTS; and half of the machine's memory, which that option is a share of.
vLLM's own 0.92 has to be free before it starts, and would leave nothing for the run beside it."""
RANK_VARIABLES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"
)  # fmt: skip
"""What says in a process's environment that it is one of several ranks."""


def server_command(model: str, host: str, port: int, dtype: str, further: Sequence[str] = ()) -> list[str]:
    """The command line of a server that a trainer can use.

    Not ``vllm serve``: the CPU build's command fails, since its package has another name. The module is the same.

    Args:
        model: Directory or hub name.
        host, port: Where it listens.
        dtype: Named always: vLLM turns a float32 checkpoint into bfloat16 by itself.
        further: More of vLLM's own options.
    """
    options = {
        "--model": model,
        "--served-model-name": SERVED_NAME,
        "--host": host,
        "--port": str(port),
        "--dtype": dtype,
        "--logprobs-mode": "processed_logprobs",
        "--generation-config": "vllm",
        "--uvicorn-log-level": "warning",
        "--worker-extension-cls": WORKER,
        "--middleware": GUARD,
        "--load-format": "safetensors",  # a pickled weight file is code
    }
    if request_counters() is not None:  # of the versions whose scheduler is known
        options["--scheduler-cls"] = SCHEDULER
    if is_cpu_build():
        further = [*ON_CPU, *further]
    pairs = [word for pair in options.items() for word in pair]
    module = "vllm.entrypoints.openai.api_server"
    return [sys.executable, "-m", module, *pairs, "--no-trust-remote-code", *tokens_in_options(), *further]


def server_environment(gpus: str | None = None) -> dict[str, str]:
    """This process's environment with the development endpoints on, and nothing of the training ranks."""
    ours = (*RANK_VARIABLES, "VLLM_ENABLE_V1_MULTIPROCESSING")
    environment = UNUSED_SAMPLER | {name: value for name, value in os.environ.items() if name not in ours}
    environment["VLLM_SERVER_DEV_MODE"] = "1"  # weight transfer, pause, reset of the prefix cache
    environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    environment.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpus
    return environment


class ServerProcess:
    """Starts the server, starts it again when it dies, ends it.

    The server is the head of a process group of its own, so that its workers end with it, and it ends with this process.

    Args:
        command: From ``server_command``.
        gpus: CUDA devices for the server, such as "1" or "2,3"; None leaves all visible.
        log_file: Where its output goes; None for this process's own output.
    """

    def __init__(self, command: Sequence[str], gpus: str | None = None, log_file: Path | None = None) -> None:
        self.command = list(command)
        self.gpus = gpus
        self.log_file = log_file
        self.token = new_token()
        """What its guarded routes want; the same after a restart."""
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the running server."""
        return self._process.pid if self.is_alive() and self._process is not None else None

    def start(self) -> None:
        """Starts it; does nothing while it runs."""
        if self.is_alive():
            return
        self.stop()  # what a dead server's group may have left
        self.starts += 1
        output = None if self.log_file is None else self.log_file.open("ab")
        try:
            self._process = subprocess.Popen(
                self.command,
                env=server_environment(self.gpus) | self._guarded() | {WATCH_VARIABLE: "1"},
                stdin=subprocess.PIPE,  # its end is how the server hears of ours
                stdout=output,
                stderr=subprocess.STDOUT if output is not None else None,
                start_new_session=True,
            )
        finally:
            if output is not None:
                output.close()

    def _guarded(self) -> dict[str, str]:
        """What the guard reads: the token, and the name that the server listens on."""
        names = [os.environ.get(HOSTS_VARIABLE, "")]
        if "--host" in self.command:
            names.append(self.command[self.command.index("--host") + 1])
        return {TOKEN_VARIABLE: self.token, HOSTS_VARIABLE: ",".join(name for name in names if name)}

    def is_alive(self) -> bool:
        """Whether the server's process runs, healthy or not."""
        return self._process is not None and self._process.poll() is None

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit status once it has ended, or None if it has not within that time."""
        if self._process is None:
            return None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, patience: float = 10.0) -> None:
        """Asks the server and its workers to end, and after ``patience`` seconds makes them."""
        if self._process is None:
            return
        group = self._process.pid
        if self.is_alive():
            os.killpg(group, signal.SIGTERM)
            self.wait(patience)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)  # workers that outlived the head, or a head that did not listen
        self.wait(patience)
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None

    def log_tail(self) -> str:
        """The last lines of its output, for error messages."""
        if self.log_file is None or not self.log_file.exists():
            return "(see the output of the server)"
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-15:])
