"""Weights to a vLLM server from GPU to GPU, over NCCL."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import takewhile
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from grpo_lightning.distributed.sharding import plain_class
from grpo_lightning.generation.vllm.compat import nccl_payloads
from grpo_lightning.generation.vllm.patches.reloading import COPIED
from grpo_lightning.generation.vllm.serving.answers import read_as_vllms
from grpo_lightning.generation.vllm.serving.client import VLLMClient
from grpo_lightning.generation.vllm.serving.transfer import WeightTransfer
from grpo_lightning.generation.vllm.weights.stream import WeightStream


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
        size = self.client.call("GET", "/get_world_size")
        with read_as_vllms(self.client, "/get_world_size", size):
            workers = int(size["world_size"])
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


def has_failed(call: Future[Any]) -> bool:
    """Whether it has ended with an error."""
    return call.done() and call.exception() is not None


def nccl_group(address: str, port: int, world_size: int, device: torch.device) -> Any:
    """The trainer's end of the group in which weights are broadcast; it is rank 0, the engine's workers the others."""
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.distributed.utils import StatelessProcessGroup

    group = StatelessProcessGroup.create(host=address, port=port, rank=0, world_size=world_size)
    return PyNcclCommunicator(group, device=device)


def nccl_send(group: Any, weights: Iterator[tuple[str, Tensor]], packed: dict[str, Any]) -> None:
    """Broadcasts the tensors, packed into buffers."""
    from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

    packed_nccl_broadcast_producer(
        iterator=weights,
        group=group,
        src=0,
        post_iter_func=lambda pair: pair[1],
        buffer_size_bytes=packed["packed_buffer_size_bytes"],
        num_buffers=packed["packed_num_buffers"],
    )


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
