"""A vLLM server that a run starts for itself, on a copy of its own policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_lightning.distributed.gather import is_distributed
from grpo_lightning.generation.vllm.compat import is_cpu_build
from grpo_lightning.generation.vllm.serving.client import ServerNotReadyError, VLLMClient
from grpo_lightning.generation.vllm.serving.file_transfer import write_weights
from grpo_lightning.generation.vllm.serving.nccl_transfer import goes_by_nccl
from grpo_lightning.generation.vllm.serving.owner import new_run
from grpo_lightning.generation.vllm.serving.process import ServerProcess, server_command
from grpo_lightning.generation.vllm.skeleton import lora_arguments, plain_model, save_skeleton
from grpo_lightning.generation.vllm.weights.stream import WeightStream
from grpo_lightning.scoring.probe import types_beside_attention

STARTS_IN_A_ROW = 3
"""Starts of a server that dies each time before the run gives up."""


class LaunchedServer:
    """Starts the server and keeps it alive.

    Args:
        client: Of the server that is to be.
        directory: For the model and the server's output.
        dtype: What it computes in.
        gpus: CUDA devices, or None for all visible.
        options: Of vLLM's command line.
    """

    def __init__(
        self, client: VLLMClient, directory: Path, dtype: str, gpus: str | None, options: Sequence[str]
    ) -> None:
        self.client = client
        self.model = directory / "model"
        command = server_command(str(self.model), client.host, client.port, dtype, options)
        self.process = ServerProcess(command, gpus, directory / "server.log")
        client.token = lambda: self.process.token
        self._starts_allowed = STARTS_IN_A_ROW
        client.where_to_look = lambda: f"The end of its output:\n{self.process.log_tail()}"

    def start(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        stream: WeightStream,
        processor: Any = None,
    ) -> None:
        """Writes the policy as it is now, with the processor of a model that is shown images, and serves it.

        Raises:
            ValueError: If something else listens on the port.
        """
        if self.client.is_healthy():
            raise ValueError(
                f"something answers at {self.client.address} already, so no server can be launched there. Set "
                "model.generator.init_args.port to a free port, or launch=false to use that server."
            )
        write_weights(stream, self.model)
        save_skeleton(policy, tokenizer, self.model, processor)
        self.process.start()

    def expect_to_wait(self) -> None:
        """From here on it may be started a few times more."""
        self._starts_allowed = self.process.starts + STARTS_IN_A_ROW

    def keep_alive(self) -> None:
        """Starts it again if it has died.

        Raises:
            RuntimeError: If it keeps dying, with the end of its output.
        """
        if self.process.is_alive():
            return
        if self.process.starts >= self._starts_allowed:
            raise RuntimeError(
                f"the vLLM server that this run launched keeps dying. Its last words:\n{self.process.log_tail()}"
            )
        self.process.start()

    def stop(self) -> None:
        """Ends it."""
        self.process.stop()


def wait_for_server(client: VLLMClient, seconds: float, launched: LaunchedServer | None) -> None:
    """Until the server is healthy; a launched one that has died is started again.

    Raises:
        ServerNotReadyError: If it was not in time; of a launched one with the end of its output, whose file goes with the run.
    """
    if launched is None:
        client.wait_until_healthy(seconds)
        return
    launched.expect_to_wait()
    try:
        client.wait_until_healthy(seconds, launched.keep_alive)
    except ServerNotReadyError as error:
        raise ServerNotReadyError(
            f"the vLLM server that this run launched was not healthy within {seconds:.0f} s. Where it is only slow, raise "
            f"model.generator.init_args.timeout. The end of its output:\n{launched.process.log_tail()}"
        ) from error


def check_not_launched(**settings: Any) -> None:
    """Refuses settings of a launched server for one that is there.

    Raises:
        ValueError: If one of them has a value other than None.
    """
    for name, value in settings.items():
        if value is not None:
            raise ValueError(
                f"model.generator.init_args.{name}={value!r} has no effect on a server that this run does not start. "
                "Set launch=true, or give it to the server."
            )


def check_transfer(weight_transfer: str, weight_directory: str | None, trainer_address: str) -> None:
    """Refuses settings of one way for weights with the other one.

    Raises:
        ValueError: Naming both.
    """
    idle = {
        "weight_directory": weight_transfer == "nccl" and weight_directory is not None,
        "trainer_address": weight_transfer == "files" and trainer_address != "127.0.0.1",
    }
    for name, is_idle in idle.items():
        if is_idle:
            raise ValueError(
                f"model.generator.init_args.{name} has no effect with weight_transfer={weight_transfer}. Leave one of them out."
            )


def launch_options(
    policy: PreTrainedModel, max_model_length: int | None, weight_transfer: str, hot_adapter: bool
) -> list[str]:
    """Options of vLLM's command line that follow from the policy and the settings."""
    options: list[str] = []
    if max_model_length is not None:
        options += ["--max-model-len", str(max_model_length)]
    if plain_model(policy).device.type == "cuda" and goes_by_nccl(weight_transfer, plain_model(policy)):
        options += ["--weight-transfer-config", '{"backend": "nccl"}']
    if is_cpu_build() and types_beside_attention(plain_model(policy)):
        options += ["--no-enable-prefix-caching"]  # see engine.settings.WITHOUT_SHARED_PREFIXES
    if hot_adapter:
        rank = lora_arguments(policy)["max_lora_rank"]
        options += ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(rank)]
    return options


def name_run(client: VLLMClient) -> None:
    """From here on the requests of all ranks are one run's: the next ones bring its weights. All ranks call it."""
    name = [new_run()]
    if is_distributed():
        dist.broadcast_object_list(name, src=0)
    client.run = name[0]


def share_token(client: VLLMClient, token: str | None) -> None:
    """Tells every rank the token of the server that rank 0 has launched; the others give None. All ranks call it."""
    if is_distributed():
        shared = [token]
        dist.broadcast_object_list(shared, src=0)
        client.token = lambda: shared[0]
