"""How weights reach a vLLM server: through a directory that both can read, or over NCCL."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from grpo_lightning.distributed.gather import gather_objects
from grpo_lightning.distributed.sharding import plain_class
from grpo_lightning.generation.vllm.compat import nccl_group, nccl_payloads, nccl_send
from grpo_lightning.generation.vllm.patches.reloading import COPIED
from grpo_lightning.generation.vllm.serving.client import ServerRefused, ServerUnavailable, VLLMClient
from grpo_lightning.generation.vllm.weights.stream import WeightStream

BUCKET_BYTES = 2 * 2**30
"""Size of a file of weights: what is held on the host at a time when the policy is on a GPU."""

LOST_WITH_RANKS = (
    "the vLLM server was lost during a step. Weights that were sent over NCCL by several ranks cannot be sent again by one of "
    "them: resume from the last checkpoint, or use model.generator.init_args.weight_transfer=files."
)


class WeightTransfer(ABC):
    """One route. All ranks call ``send`` together; one of them, the sender, talks to the server.

    Args:
        client: Of the server.
        is_sender: Whether this rank talks to the server; the others only take part in gathering sharded weights.
    """

    def __init__(self, client: VLLMClient, is_sender: bool) -> None:
        self.client = client
        self.is_sender = is_sender
        self.caches = ["/reset_prefix_cache"]
        """Routes that drop what the server has made with its old weights."""

    @abstractmethod
    def send(self, stream: WeightStream) -> None:
        """Puts the weights into the server's engine. It serves no request meanwhile."""

    @abstractmethod
    def send_again(self) -> bool:
        """Repeats the last transfer to a server that was started again, without the policy; False if it cannot."""

    def forget_connection(self) -> None:  # noqa: B027 - most routes have none
        """The server was started again: what was agreed with it before is void."""

    def close(self) -> None:  # noqa: B027 - nothing to release by default
        """Releases files and connections."""

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around an update: requests wait, and what was cached from the old weights is dropped.

        After an update that the server could not do they wait no longer: the run ends with the error, and a rank whose
        requests are under way must end too.
        """
        self.client.post("/pause", mode="keep")
        try:
            yield
        except ServerRefused:
            with contextlib.suppress(ServerUnavailable, ServerRefused):
                self.client.post("/resume")
            raise
        for route in self.caches:
            self.client.post(route)
        self.client.post("/resume")


class FileTransfer(WeightTransfer):
    """Writes safetensors files and lets the server read them: works on any device, and on a CPU.

    Args:
        client, is_sender: As for every transfer.
        directory: Visible to trainer and server under the same path; None for a temporary one on this machine.
    """

    def __init__(self, client: VLLMClient, is_sender: bool, directory: str | None = None) -> None:
        super().__init__(client, is_sender)
        made = tempfile.mkdtemp(prefix="grpo_lightning-weights-", dir=directory) if is_sender else ""
        self.root = Path(gather_objects(made)[0])  # rank 0 is the sender
        self.version = 0

    @property
    def current(self) -> Path:
        """The weights that were sent last."""
        return self.root / str(self.version)

    def send(self, stream: WeightStream) -> None:
        """Writes a new directory, tells the server to read it, removes the one before."""
        before = self.current
        self.version += 1
        if not self.is_sender:
            for _ in stream:
                pass
            return
        write_weights(stream, self.current)
        shutil.rmtree(before, ignore_errors=True)  # first: what is sent in vain many times must not fill the disk
        self.send_again()

    def send_again(self) -> bool:
        """Any rank may repeat it: the files are still there."""
        if self.version == 0:
            return False
        with self.paused():
            self.client.collective_rpc("reload_weights", weights_path=str(self.current))
        return True

    def close(self) -> None:
        """Removes the files."""
        if self.is_sender:
            shutil.rmtree(self.root, ignore_errors=True)


def write_weights(stream: WeightStream, directory: Path) -> None:
    """Safetensors files of about ``BUCKET_BYTES`` each, tied weights once under each of their names."""
    directory.mkdir(parents=True)
    bucket: dict[str, Tensor] = {}
    size = files = 0
    for name, tensor in stream:
        # A file holds each tensor by itself: one that shares memory with another would be refused.
        bucket[name] = tensor.detach().to("cpu", copy=True).contiguous()
        size += tensor.numel() * tensor.element_size()
        if size >= BUCKET_BYTES:
            save_file(bucket, directory / f"weights-{files:05}.safetensors")
            bucket, size, files = {}, 0, files + 1
    if bucket:
        save_file(bucket, directory / f"weights-{files:05}.safetensors")


def has_failed(call: Future[Any]) -> bool:
    """Whether it has ended with an error."""
    return call.done() and call.exception() is not None


class NCCLTransfer(WeightTransfer):
    """Broadcasts from the sender's GPU to the server's by vLLM's own weight transfer, packed into large buffers.

    The server has to run on other GPUs, with ``--weight-transfer-config '{"backend": "nccl"}'``.

    Args:
        client, is_sender: As for every transfer.
        device: The sender's.
        address: Of this machine, as the server reaches it.
    """

    PACKED: ClassVar[dict[str, Any]] = {"packed": True, "packed_buffer_size_bytes": 2**30, "packed_num_buffers": 2}

    def __init__(self, client: VLLMClient, is_sender: bool, device: torch.device, address: str = "127.0.0.1") -> None:
        super().__init__(client, is_sender)
        self.device = device
        self.address = address
        self._group: Any = None

    def _connect(self) -> None:
        workers = int(self.client.call("GET", "/get_world_size")["world_size"])
        with socket.socket() as probe:
            probe.bind((self.address, 0))
            port = probe.getsockname()[1]
        init = {"master_address": self.address, "master_port": port, "rank_offset": 1, "world_size": workers + 1}
        body, _ = nccl_payloads(init, {}, self.PACKED)
        # Both sides wait for each other inside these two calls.
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(self.client.post, "/init_weight_transfer_engine", {"init_info": body})
            self._group = nccl_group(self.address, port, workers + 1, self.device)
            answer.result()

    def send(self, stream: WeightStream) -> None:
        """Broadcasts, while the server receives in a call of its own."""
        if not self.is_sender:
            for _ in stream:
                pass
            return
        if self._group is None:
            self._connect()
        layout = stream.layout()
        update = {
            "names": [name for name, _, _ in layout],
            "dtype_names": [str(dtype).removeprefix("torch.") for _, dtype, _ in layout],
            "shapes": [list(shape) for _, _, shape in layout],
        }
        _, body = nccl_payloads({}, update, self.PACKED)
        with self.paused():
            self.client.post("/start_weight_update", {"is_checkpoint_format": True})
            thread, group, weights = ThreadPoolExecutor(1), self._group, iter(stream)
            answer = thread.submit(self.client.post, "/update_weights", {"update_info": body})
            answer.add_done_callback(self._end_if_failed)
            try:
                nccl_send(group, takewhile(lambda _: not has_failed(answer), weights), self.PACKED)
                answer.result()
            except Exception:
                for _ in weights:  # the other ranks of sharded weights gather them all
                    pass
                if has_failed(answer):
                    answer.result()  # the reason, of which an error here is the consequence
                raise
            finally:
                thread.shutdown(wait=False)  # after an error here the call would wait for a broadcast that never comes
            self.client.post("/finish_weight_update")
        torch.cuda.synchronize(self.device)

    def _end_if_failed(self, answer: Future[Any]) -> None:
        """A server that has failed receives no more, and a broadcast to it would last for ever: ends its group."""
        group = self._group
        if has_failed(answer) and group is not None:
            self._group = None
            group.destroy()

    def send_again(self) -> bool:
        """Not without the policy."""
        self.forget_connection()
        return False

    def forget_connection(self) -> None:
        """A server that was started again needs a new group."""
        self._group = None

    def close(self) -> None:
        """Lets go of the communicator."""
        self._group = None


def goes_by_nccl(route: str, model: PreTrainedModel) -> bool:
    """Whether weights of this model go from GPU to GPU: by nccl, and with auto where the policy is on a GPU.

    Raises:
        ValueError: If vLLM would lose some of them.
    """
    if route == "files" or (route == "auto" and model.device.type != "cuda"):
        return False
    if plain_class(model).__name__ in COPIED:
        raise ValueError(
            f"model.generator.init_args.weight_transfer={route}: a server that is sent weights by NCCL loses experts of "
            f"{plain_class(model).__name__}. Set weight_transfer=files, or use VLLMColocate."
        )
    return True


def open_transfer(
    route: str, client: VLLMClient, is_sender: bool, model: PreTrainedModel, directory: str | None, address: str
) -> WeightTransfer:
    """The route of a run: see ``goes_by_nccl``; other arguments as of the routes."""
    if goes_by_nccl(route, model):
        return NCCLTransfer(client, is_sender, model.device, address)
    return FileTransfer(client, is_sender, directory)
