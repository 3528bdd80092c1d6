"""Weights to a vLLM server through a directory that both can read."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from grpo_lightning.distributed.gather import gather_objects
from grpo_lightning.generation.vllm.serving.client import VLLMClient
from grpo_lightning.generation.vllm.serving.transfer import WeightTransfer
from grpo_lightning.generation.vllm.weights.stream import WeightStream

BUCKET_BYTES = 2 * 2**30
"""Size of a file of weights: what is held on the host at a time when the policy is on a GPU."""


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
            reload = {"method": "reload_weights", "kwargs": {"weights_path": str(self.current)}}
            self.client.post("/collective_rpc", reload)
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
