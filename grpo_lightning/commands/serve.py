"""``python -m grpo_lightning serve --model DIR``: a supervised vLLM server for ``model.generator: VLLMServer``."""

from __future__ import annotations

import errno
import signal
import socket
import sys
import time
from types import FrameType

from grpo_lightning.commands.arguments import CommandParser, devices, whole
from grpo_lightning.generation.vllm.compat import why_unusable
from grpo_lightning.generation.vllm.serving.client import VLLMClient
from grpo_lightning.generation.vllm.serving.process import (
    IMAGE_OPTIONS,
    SERVED_NAME,
    ServerProcess,
    server_command,
)
from grpo_lightning.generation.vllm.serving.token import (
    LOOPBACK,
    TOKEN_VARIABLE,
    known_token,
    remove_token,
    write_token,
)


def build_parser() -> CommandParser:
    """The command's options."""
    parser = CommandParser(
        prog="grpo_lightning serve",
        description="Starts vLLM's own server with the endpoints that training needs, and starts it again when it dies. "
        "Options of vLLM follow after --, for example: -- --enforce-eager --enable-lora --max-lora-rank 16",
    )
    parser.add_argument("--model", required=True, help="directory or hub name; the run's model.model_name_or_path")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen; its token travels in the clear")
    parser.add_argument("--port", type=whole("port", 1, 65535), default=8000)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="by default what the checkpoint is stored in"
    )
    parser.add_argument(
        "--max_model_length", type=whole("number of tokens", 1), help="tokens of a prompt with its completion"
    )
    parser.add_argument("--gpus", type=devices, help='CUDA devices, such as "7" or "6,7"; all visible ones by default')
    parser.add_argument("--weight_transfer", choices=("nccl", "files"), default="files", help="as in the run's config")
    parser.add_argument(
        "--restarts",
        type=whole("number of restarts", 0),
        default=5,
        help="how often a server that dies is started again",
    )
    parser.add_argument(
        "--images", action="store_true", help="take prompts that show images (model.vision_tower); vLLM 0.32"
    )
    parser.add_argument("vllm_options", nargs="*", metavar="-- VLLM_OPTION", help="passed on to vLLM")
    return parser


def stored_dtype(model: str) -> str:
    """What the checkpoint is stored in; vLLM's own choice would turn float32 into bfloat16."""
    # Here, since it imports transformers: seconds, which --help does not have to wait for.
    from grpo_lightning.policy.model_config import load_config

    dtype = getattr(load_config(model), "dtype", None)
    return "bfloat16" if dtype is None else str(dtype).removeprefix("torch.")


def why_no_place(host: str, port: int) -> str | None:
    """Why nothing can listen there, in a sentence, or None. Asked before the token is written: another server's is not replaced."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As vLLM does: connections that have ended may linger.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return (
                f"--port {port} is taken: something listens there already. Choose another, or end that program first."
            )
        return f"--host {host} --port {port} cannot be listened on ({error.strerror}). --host is an address or name of this machine."
    return None


def supervise(process: ServerProcess, client: VLLMClient, restarts: int) -> int:
    """Runs the server until this is told to stop; starts it again when it dies, later each time.

    Status 0 is a good end only of a server that was never ready, such as one that was asked for its help: vLLM ends with it too
    when its engine has died.

    One that has never been ready is not started again: it would die of the same.

    Returns:
        The exit status: 0 after such an end, else that of the server's last death, and 1 where that is 0.
    """
    process.start()
    announced = 0
    while True:
        status = process.wait(0.5)
        if status is None:
            if announced < process.starts and client.is_healthy():
                announced = process.starts
                if known_token(client.host, client.port) != process.token:  # of another one, which did not get the port
                    write_token(client.port, process.token)
                print(
                    f"vLLM is ready at {client.address} (process {process.pid}); requests call the model {SERVED_NAME}",
                    flush=True,
                )
            continue
        if status == 0 and not announced:
            return status
        why = "before it was ready: what it said above is the reason" if not announced else ""
        if process.starts > restarts:
            why = why or f"for the last of {process.starts} times (--restarts {restarts})"
        if why:
            print(f"vLLM died with status {status} {why}", file=sys.stderr, flush=True)
            return status or 1
        pause = min(2.0 ** (process.starts - 1), 60.0)
        print(f"vLLM died with status {status}; starting it again in {pause:.0f} s", file=sys.stderr, flush=True)
        time.sleep(pause)
        process.start()


class Stopped(Exception):
    """SIGTERM, SIGINT or the end of the terminal (SIGHUP)."""


def _stop(signal_number: int, frame: FrameType | None) -> None:
    raise Stopped


def main(args: list[str]) -> int:
    """Entry point of ``python -m grpo_lightning serve``."""
    parser = build_parser()
    options, unknown = parser.parse_known_args(args)
    if unknown:
        parser.error(
            f"{unknown[0]} is no option of this command. Those of vLLM follow after --, as in: -- {unknown[0]}."
        )
    reason = why_unusable()
    if reason is not None:
        print(f"grpo_lightning serve: {reason}.", file=sys.stderr)
        return 2
    if options.host not in LOOPBACK:
        print(
            f"--host {options.host}: whoever sees a request can read the token in it, and with it change the model's weights "
            f"and run its methods. Keep it inside a trusted network, and set {TOKEN_VARIABLE} alike for server and run.",
            file=sys.stderr,
        )
    further = list(options.vllm_options)
    if options.max_model_length is not None:
        further += ["--max-model-len", str(options.max_model_length)]
    if options.weight_transfer == "nccl":
        further += ["--weight-transfer-config", '{"backend": "nccl"}']
    if options.images:
        further += IMAGE_OPTIONS
    try:
        stored = stored_dtype(options.model)
    except ValueError as error:
        print(f"grpo_lightning serve: {str(error).replace('model.model_name_or_path=', '--model ')}", file=sys.stderr)
        return 2
    if (taken := why_no_place(options.host, options.port)) is not None:
        print(f"grpo_lightning serve: {taken}", file=sys.stderr)
        return 2
    dtype = options.dtype or stored
    command = server_command(options.model, options.host, options.port, dtype, further)
    process = ServerProcess(command, options.gpus)
    client = VLLMClient("127.0.0.1" if options.host == "0.0.0.0" else options.host, options.port, request_timeout=10.0)
    client.token = lambda: process.token
    print(f"The token is in {write_token(options.port, process.token)}; runs on this machine find it.", flush=True)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup has it ignored
            signal.signal(number, _stop)
    try:
        return supervise(process, client, options.restarts)
    except Stopped:
        return 0
    finally:
        process.stop()
        remove_token(options.port, process.token)
