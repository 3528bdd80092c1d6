"""What a vLLM server holds of the policy's weights, and how it gets those that have changed, or all that it has lost."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch.distributed as dist
from peft import PeftModel
from transformers import PreTrainedModel

from grpo_lightning.distributed.gather import is_distributed
from grpo_lightning.generation.base import WeightsLost
from grpo_lightning.generation.vllm.compat import ADAPTER
from grpo_lightning.generation.vllm.serving.client import ServerUnavailable, VLLMClient
from grpo_lightning.generation.vllm.serving.file_transfer import FileTransfer
from grpo_lightning.generation.vllm.serving.nccl_transfer import NCCLTransfer, goes_by_nccl
from grpo_lightning.generation.vllm.serving.transfer import WeightTransfer
from grpo_lightning.generation.vllm.weights.adapter_route import AdapterRoute
from grpo_lightning.generation.vllm.weights.adapters import write_adapter
from grpo_lightning.generation.vllm.weights.stream import WeightStream, check_same_weights, weight_shapes

logger = logging.getLogger(__name__)
LOST_WITH_RANKS = (
    "the vLLM server was lost during a step. Weights that were sent over NCCL by several ranks cannot be sent again by one of "
    "them: resume from the last checkpoint, or use model.generator.init_args.weight_transfer=files."
)


class ServedWeights:
    """The weights of one server, which at first mean nothing.

    Args:
        policy: Whose weights it is to serve.
        transfer: Of weights to the server.
        route: Of an adapter to the server.
        adapter_directory: Where adapters are written; the server reads it too.
        wait: Returns once the server is healthy.
        timeout: Seconds for which weights are sent to a server that is lost again and again.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        transfer: WeightTransfer,
        route: AdapterRoute,
        adapter_directory: Path,
        wait: Callable[[], None],
        timeout: float,
    ) -> None:
        self.transfer, self.client = transfer, transfer.client
        self._policy, self._route, self._shapes = policy, route, weight_shapes(policy)
        self._adapter_directory, self._wait, self._timeout = adapter_directory, wait, timeout
        self._has_base, self._training_thread = False, threading.get_ident()

    def follow(self, policy: PreTrainedModel) -> None:
        """From here on it is this policy's weights that are sent, and this thread that may read them.

        Raises:
            ValueError: If they are not those that the server was prepared for.
        """
        check_same_weights(policy, self._shapes)
        self._policy, self._training_thread = policy, threading.get_ident()

    def send(self) -> dict[str, float]:
        """Sends until the server has everything, also to one that is started again meanwhile; on all ranks together.

        Returns:
            Seconds, megabytes and GB/s. With a hot adapter, of the adapter.
        """
        _wait_for_ranks()  # another rank's prompts may still be on their way with the weights before
        stream = self._stream()
        deadline = time.monotonic() + self._timeout
        for attempt in itertools.count():
            try:
                self._send_once(stream)
                break
            except ServerUnavailable as error:
                if is_distributed() or time.monotonic() > deadline:
                    raise
                if attempt == 0:
                    logger.warning("Lost the vLLM server while sending weights (%s); sending all of them again.", error)
                self._has_base = False
                self.transfer.forget_connection()
                self.client.pause(attempt)
                self._wait()
                stream.bytes = 0
        _wait_for_ranks()
        return stream.metrics()

    def _stream(self) -> WeightStream:
        return WeightStream(self._policy, merge_adapters=not self._route.is_hot)

    def _send_once(self, stream: WeightStream) -> None:
        """The weights; with a hot adapter the base once, and the adapter."""
        if not (self._route.is_hot and self._has_base):
            self.transfer.send(stream)
        self._has_base = self._route.is_hot
        if self._route.is_hot:
            stream.bytes = write_adapter(cast(PeftModel, self._policy), self._adapter_directory)
            if self.transfer.is_sender:
                self._load_adapter()

    def _load_adapter(self) -> None:
        """In the place of the one before, but not with ``load_inplace``: vLLM then reads the files again at every step."""
        name = {"lora_name": ADAPTER}
        if ADAPTER in (card["id"] for card in self.client.call("GET", "/v1/models")["data"]):
            self.client.post("/v1/unload_lora_adapter", name)
        self.client.post("/v1/load_lora_adapter", name | {"lora_path": str(self._adapter_directory)})
        self.client.post("/reset_prefix_cache")

    def send_again(self, error: ServerUnavailable) -> None:
        """Waits for a server that was lost, and gives it what it had; on this rank alone.

        Args:
            error: By which the loss showed.

        Raises:
            ServerUnavailable: If other ranks would have to send too.
            WeightsLost: If it had weights that the policy has moved on from.
        """
        self._wait()
        if not self.transfer.send_again():
            if is_distributed():
                raise ServerUnavailable(LOST_WITH_RANKS) from error
            self._has_base = False
            if threading.get_ident() != self._training_thread:  # the policy is being trained meanwhile
                raise WeightsLost("the vLLM server was lost, and with it the weights that it had over NCCL.") from error
            self.transfer.send(self._stream())
            self._has_base = self._route.is_hot
        if self._route.is_hot:
            self._load_adapter()

    def close(self) -> None:
        """Removes the files of weights, and lets go of connections."""
        self.transfer.close()


def _wait_for_ranks() -> None:
    """Returns when every rank is here."""
    if is_distributed():
        dist.barrier()


def open_transfer(
    route: str, client: VLLMClient, is_sender: bool, model: PreTrainedModel, directory: str | None, address: str
) -> WeightTransfer:
    """The route of a run: see ``goes_by_nccl``; other arguments as of the routes."""
    if goes_by_nccl(route, model):
        return NCCLTransfer(client, is_sender, model.device, address)
    return FileTransfer(client, is_sender, directory)
