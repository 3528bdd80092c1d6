"""Generation with a vLLM server on other GPUs, another machine, or in another process."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import ClassVar, Literal

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from grpo_lightning.distributed.gather import own_rank
from grpo_lightning.generation.base import OnCompleted, SamplingSettings
from grpo_lightning.generation.turns import TurnSampler
from grpo_lightning.generation.vllm.base import VLLMGenerator
from grpo_lightning.generation.vllm.compat import ADAPTER, why_unusable
from grpo_lightning.generation.vllm.requests.completions import Completions
from grpo_lightning.generation.vllm.requests.prompts import check_prompts, engine_requests
from grpo_lightning.generation.vllm.serving.client import ServerUnavailable, VLLMClient
from grpo_lightning.generation.vllm.serving.completing import complete_all, constrain, served_length
from grpo_lightning.generation.vllm.serving.endpoints import TEXT, Endpoint, sampling_endpoint
from grpo_lightning.generation.vllm.serving.images import ServerImages, check_shown, shown_prompts
from grpo_lightning.generation.vllm.serving.launch import (
    LaunchedServer,
    check_not_launched,
    check_transfer,
    launch_options,
    name_run,
    share_token,
    wait_for_server,
)
from grpo_lightning.generation.vllm.serving.process import SERVED_NAME
from grpo_lightning.generation.vllm.serving.token import known_token
from grpo_lightning.generation.vllm.serving.turns import ServerTurns
from grpo_lightning.generation.vllm.serving.weights import ServedWeights, open_transfer
from grpo_lightning.generation.vllm.skeleton import adapters_obstacle, engine_dtype, plain_model
from grpo_lightning.generation.vllm.weights.adapter_route import AdapterRoute, LoraSync
from grpo_lightning.generation.vllm.weights.stream import WeightStream
from grpo_lightning.policy.end_of_sequence import end_of_sequence_ids
from grpo_lightning.types import PromptImages, Rollouts
from grpo_lightning.vision.processing import ImageProcessing


class VLLMServer(VLLMGenerator):
    """Samples with a plain vLLM server: its endpoints for completions, and its own for weights.

    Start one beside the run with ``python -m grpo_lightning serve``, or let the run start it (``launch``). All ranks
    send their prompts to it, one request a prompt; rank 0 sends the weights. When the server dies during a step, the
    run waits for it (or starts it again), sends the weights once more, and asks again for the prompts that have no
    answer. Completions depend on their prompt and seed alone, so nothing is lost, doubled or changed.

    Args:
        host: Where the server listens. Whoever has its token can change weights, and the token travels in the clear: keep
            it on loopback, or in a network of your own. A run finds the token of a server of the same user on the same
            machine; elsewhere set GRPO_LIGHTNING_SERVER_TOKEN alike for the server and the run.
        port: TCP port.
        timeout: Seconds to wait for the server to become healthy, at the start and whenever it is lost.
        request_timeout: Seconds that the completions of one prompt may take.
        max_concurrent_requests: Prompts that wait for an answer at the same time, on each rank.
        launch: Start the server from this run, start it again when it dies, and end it with the run.
        launch_gpus: CUDA devices of a launched server, such as "7" or "6,7"; training must not use them.
        launch_arguments: Further options of a launched server, as on vLLM's command line.
        max_model_length: Tokens of a prompt with its completion, of a launched server; None for the model's positions.
        dtype: What a launched server computes in; auto for what the policy computes in.
        weight_transfer: nccl (GPU to GPU), files (through a directory that both see), or auto: nccl on GPUs.
        weight_directory: Where files are written; None for the machine's temporary directory.
        trainer_address: Address of rank 0's machine as the server reaches it, for nccl.
        lora_sync: hot (the server adds the adapter to its own base; it needs --enable-lora), merge (merged copies are
            sent), or auto: the faster of the two, measured in the first steps. null for hot where vLLM can load the
            adapter, else merge. A server that this run does not launch gets merged copies, unless hot is asked for.
    """

    supports_async_rollouts: ClassVar[bool] = True

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        timeout: float = 240.0,
        request_timeout: float = 1800.0,
        max_concurrent_requests: int = 256,
        launch: bool = False,
        launch_gpus: str | None = None,
        launch_arguments: list[str] | None = None,
        max_model_length: int | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        weight_transfer: Literal["auto", "nccl", "files"] = "auto",
        weight_directory: str | None = None,
        trainer_address: str = "127.0.0.1",
        lora_sync: LoraSync | None = None,
    ) -> None:
        if launch and (reason := why_unusable()) is not None:
            raise ValueError(f"model.generator=VLLMServer with launch=true: {reason}, or connect to a server.")
        if not launch:
            check_not_launched(
                launch_gpus=launch_gpus,
                launch_arguments=launch_arguments,
                max_model_length=max_model_length,
                dtype=None if dtype == "auto" else dtype,
            )
        check_transfer(weight_transfer, weight_directory, trainer_address)
        super().__init__(AdapterRoute(lora_sync if launch or lora_sync == "hot" else "merge"))
        self.client = VLLMClient(host, port, request_timeout)
        self.client.token = lambda: known_token(host, port)
        self.timeout, self.longest_wait = timeout, timeout + request_timeout
        self.max_concurrent_requests = max_concurrent_requests
        self.launch = launch
        self.launch_gpus = launch_gpus
        self.launch_arguments = launch_arguments or []
        self.max_model_length = max_model_length
        self.dtype = dtype
        self.weight_transfer, self.weight_directory = weight_transfer, weight_directory
        self.trainer_address = trainer_address
        self.images = ServerImages()
        self.launched: LaunchedServer | None = None
        self._endpoint: Endpoint | None = None
        self._files: Path | None = None
        self._weights: ServedWeights | None = None

    def see_images(self, processing: ImageProcessing, config: PretrainedConfig) -> None:
        """See ``SamplesWithImages``."""
        self.images.ask(processing, config, self.launch)

    def check_images(self, prompts: Sequence[tuple[list[int], PromptImages]]) -> None:
        """See ``SamplesWithImages``."""
        check_shown(self.client, SERVED_NAME, prompts)

    @property
    def is_sender(self) -> bool:
        """Whether this rank talks to the server about weights, and launches it."""
        return own_rank()[0] == 0

    def expect(self) -> None:
        """Waits for a server that this run does not launch, and says so at once: it may never come."""
        if not self.launch and self.is_sender:
            self.client.open()
            self.client.expect(self.timeout)

    def start(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model_name_or_path: str) -> None:
        """Launches the server if asked to, waits for it, and opens the route for weights.

        Raises:
            TimeoutError: If there is no healthy server in time.
        """
        with ExitStack() as begun:
            begun.callback(self.stop)  # a launched server would outlive a run that fails here
            self._start(policy, tokenizer)
            begun.pop_all()

    def _start(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.client.open()
        self.eos_ids = end_of_sequence_ids(plain_model(policy), tokenizer)
        self.adapter_route.start(policy, adapters_obstacle(policy) if self.launch else None)
        self._files = files = Path(tempfile.mkdtemp(prefix="grpo_lightning-server-", dir=self.weight_directory))
        if self.launch:
            self._launch(policy, tokenizer, files)
        self._wait()
        self._model_length = served_length(self.client)
        name_run(self.client)
        self._endpoint = None
        places = plain_model(policy), self.weight_directory, self.trainer_address
        transfer = open_transfer(self.weight_transfer, self.client, self.is_sender, *places)
        transfer.caches += self.images.caches
        self._weights = ServedWeights(policy, transfer, self.adapter_route, files / "adapter", self._wait, self.timeout)

    def _wait(self) -> None:
        wait_for_server(self.client, self.timeout, self.launched)

    def _launch(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, files: Path) -> None:
        stream = WeightStream(policy, merge_adapters=not self.adapter_route.is_hot)
        if not self.is_sender:
            for _ in stream:  # only to take part in gathering sharded weights
                pass
            share_token(self.client, None)
            return
        is_hot = self.adapter_route.engine_adds_adapters
        options = launch_options(policy, self.max_model_length, self.weight_transfer, is_hot)
        options += self.images.launch_options() + self.launch_arguments
        where = self.client, files, engine_dtype(self.dtype, policy), self.launch_gpus
        self.launched = LaunchedServer(*where, options)
        self.launched.start(policy, tokenizer, stream, self.images.processor)
        share_token(self.client, self.launched.process.token)

    def update_weights(self, policy: PreTrainedModel) -> dict[str, float]:
        """Sends the weights, or the adapter; every rank returns when the server has them.

        Returns:
            Seconds, megabytes and GB/s.

        Raises:
            ServerRefused: If the server is there and cannot load them. Only the sender raises; other ranks are ended by
                the lifeline between them.
            ServerUnavailable, TimeoutError: If the server was lost and did not come back in time.
        """
        assert self._weights is not None, "VLLMServer.update_weights was called before start."
        self._weights.follow(policy)
        with self.adapter_route.update():
            return self._weights.send()

    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: SamplingSettings,
        seeds: Sequence[int],
        on_completed: OnCompleted | None = None,
        images: Sequence[PromptImages] = (),
    ) -> Rollouts:
        """See ``Generator.generate``; images go to the server as they are, with one placeholder each.

        Raises:
            ServerRefused: If the server is there and cannot answer, or cannot load the weights again.
            ServerUnavailable: If the server was lost and could not be brought up to date again.
            TimeoutError: If it was lost and did not come back in time.
        """
        check_prompts(prompt_ids, sampling, seeds, self._model_length, "max_model_len of the server")
        completions = Completions(len(prompt_ids), sampling.num_generations, on_completed)
        shown = shown_prompts(images)
        waiting = engine_requests(prompt_ids, sampling, seeds, self.eos_ids, seed_per_prompt=True, rendered=shown)
        constrain(waiting, sampling)
        started = time.perf_counter()
        complete_all(*self._whom, waiting, completions, self.max_concurrent_requests, self.recover)
        rollouts = completions.rollouts(prompt_ids)
        self.adapter_route.sampled(time.perf_counter() - started, rollouts.completion_ids.numel())
        return rollouts

    def open_turns(self, sampling: SamplingSettings, wake: Callable[[], None]) -> TurnSampler:
        """Turns as requests of their own; see ``grpo_lightning.generation.turns``."""
        at_a_time = self.max_concurrent_requests
        return ServerTurns(*self._whom, sampling, self.eos_ids, at_a_time, self.recover, wake)

    @property
    def _whom(self) -> tuple[VLLMClient, Endpoint, str]:
        """Client and endpoint of requests, and the name of the policy, or of its adapter, in them."""
        if self._endpoint is None:  # not at the start: a server refuses a run that has not sent it weights
            with suppress(ServerUnavailable):  # which is waited for where the answers stay away
                self._endpoint = sampling_endpoint(self.client, SERVED_NAME)
        return self.client, self._endpoint or TEXT, ADAPTER if self.adapter_route.is_hot else SERVED_NAME

    def recover(self, error: ServerUnavailable) -> None:
        """Waits for the server, and gives it the weights that this batch is sampled with."""
        assert self._weights is not None
        self._weights.send_again(error)

    def interrupt(self) -> None:
        """Ends the requests under way; the server forgets them."""
        self.client.close()

    def stop(self) -> None:
        """Ends a launched server, and removes the files; a server that was there before goes on."""
        self.client.close()
        if self.launched is not None:
            self.launched.stop()
            self.launched = None
        if self._weights is not None:
            self._weights.close()
            self._weights = None
        if self._files is not None:
            shutil.rmtree(self._files, ignore_errors=True)
            self._files = None
