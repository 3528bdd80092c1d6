"""A vLLM engine in this process: runs requests, takes weights, sleeps, ends."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from grpo_lightning.generation.random_state import preserved_random_state
from grpo_lightning.generation.vllm.compat import adapter_request, draws_seeded_together
from grpo_lightning.generation.vllm.engine.process import end_engine, engine_mode, make_engine, quiet_collector
from grpo_lightning.generation.vllm.engine.sampling_parameters import sampling_params
from grpo_lightning.generation.vllm.patches.lora import reading_adapters_from
from grpo_lightning.generation.vllm.patches.short_bookkeeping import ShortBookkeeping, shorten_bookkeeping
from grpo_lightning.generation.vllm.patches.withheld import ToProcessor
from grpo_lightning.generation.vllm.requests.completions import Completions, sampled_logprobs
from grpo_lightning.generation.vllm.requests.prompts import EngineRequest
from grpo_lightning.generation.vllm.weights.loading import load_directly, reload
from grpo_lightning.numerics.routers import has_experts

ONLY_FIRST_AND_LAST = 2**31 - 1
"""Tokens between two outputs of a request: each completion is handed over once, when it ends, not token by token."""
RELOAD_LOGGER = "vllm.model_executor.model_loader.reload.layerwise"
"""Warns at every update of layers that have no weights, such as rotary embeddings."""
JIT_LOGGER = "vllm.utils.jit_monitor"
"""Warns of latency when a kernel is compiled after the engine's start; here those are the trainer's."""


class ColocatedEngine:
    """One engine a rank, in this process; ranks of a tensor-parallel group have to make the same calls.

    Args:
        device: The policy's.
        short_bookkeeping: Write plain tokens down at once, see ``shorten_bookkeeping``.
        arguments: Of ``vllm.LLM``.
    """

    _in_process: ClassVar[ColocatedEngine | None] = None

    def __init__(self, device: torch.device, short_bookkeeping: bool = True, **arguments: Any) -> None:
        if ColocatedEngine._in_process is not None:  # of a run that went wrong: two at a time break each other
            ColocatedEngine._in_process.end()
        self.device = device
        self.has_ended = False
        self.had_process_group = dist.is_available() and dist.is_initialized()
        logging.getLogger(JIT_LOGGER).setLevel(logging.ERROR)
        self.llm = make_engine(
            device,
            **arguments,
            # Logprobs of the distribution that is drawn from, as TransformersGenerator reports them.
            logprobs_mode="processed_logprobs",
            stream_interval=ONLY_FIRST_AND_LAST,
            # The policy's generation config decides what ends a completion, not the one beside the checkpoint.
            generation_config="vllm",
            load_format="dummy",  # the policy's weights are sent before the first request
        )
        self._bookkeeping = self._shortened() if short_bookkeeping else None
        self.max_model_length: int = self.llm.llm_engine.model_config.max_model_len
        self._adapter_path: str | None = None
        self._numbers = itertools.count()
        ColocatedEngine._in_process = self

    def _shortened(self) -> ShortBookkeeping | None:
        engine = self.llm.llm_engine
        return shorten_bookkeeping(engine.engine_core.engine_core.scheduler, ToProcessor(engine.output_processor))

    def sample(
        self,
        requests: Sequence[EngineRequest],
        further: dict[str, Any],
        completions: Completions,
        seed: int,
        is_enough: Callable[[], bool] = lambda: False,
    ) -> None:
        """Runs requests until all have ended; hands each completion over as it ends.

        Args:
            requests: One a prompt.
            further: Arguments of ``vllm.SamplingParams`` that all of them share.
            completions: Receives the completions.
            seed: Of requests that bring no seed of their own.
            is_enough: Asked after each step; once it is, all that is under way is cut.
        """
        engine, is_cut = self.llm.llm_engine, False
        places: dict[str, int] = {}
        with self.sampling_mode(seed):
            try:
                for request in requests:
                    places[self.add(request, further)] = request.first
                while engine.has_unfinished_requests():
                    for name, part, logprobs in self.step():
                        n = places[name] + part.index
                        completions.extend(n, part.token_ids, logprobs, part.finish_reason, part.routed_experts)
                    if not is_cut and is_enough():
                        self._cut_all()
                        is_cut = True
            finally:  # after an error in a callback, or an interrupt
                if engine.has_unfinished_requests():
                    self.abort(places)

    @contextmanager
    def sampling_mode(self, seed: int) -> Iterator[None]:
        """Around ``add`` and ``step``: random generators seeded, and afterwards as they were."""
        with preserved_random_state(self.device, seed), engine_mode(self.device), quiet_collector():
            yield

    def add(self, request: EngineRequest, further: dict[str, Any]) -> str:
        """Takes a request, while others are under way or not; its name."""
        from vllm.inputs import tokens_input

        name = f"rollout-{next(self._numbers)}"
        adapter = adapter_request(self._adapter_path) if self._adapter_path else None
        prompt = tokens_input(list(request.prompt_ids)) if request.rendered is None else request.rendered
        sampling = sampling_params(request.parameters, further)
        self.llm.llm_engine.add_request(name, prompt, sampling, lora_request=adapter)
        return name

    def step(self) -> Iterator[tuple[str, Any, list[float]]]:
        """One step of the engine: name, part of a completion, and the logprobs of its tokens, of each that it hands over."""
        for output in self.llm.llm_engine.step():
            for part in output.outputs:
                yield output.request_id, part, sampled_logprobs(part.logprobs, part.token_ids)

    def abort(self, names: Iterable[str]) -> None:
        """Ends these requests."""
        self.llm.llm_engine.abort_request(list(names))

    def _cut_all(self) -> None:
        """Lowers the limit of everything under way, so that it ends with the token that is next or being computed.

        vLLM then hands over what there is, as of any completion that ran into its limit.
        """
        scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler
        for request in scheduler.requests.values():
            under_way = max(1, request.num_output_placeholders)
            request.max_tokens = min(request.max_tokens, request.num_output_tokens + under_way)
        if self._bookkeeping is not None:
            self._bookkeeping.read_limits()

    @property
    def compilation_seconds(self) -> float:
        """What torch.compile took of the start; little where its cache was warm."""
        return float(self.llm.llm_engine.vllm_config.compilation_config.compilation_time)

    @property
    def draws_seeded_cheaply(self) -> bool:
        """Whether a seed for each prompt costs no time worth speaking of."""
        return self.device.type == "cpu" or draws_seeded_together(self.llm)

    def takes_weights_directly(self) -> bool:
        """Whether the model's own ``load_weights`` is enough: the fast way, for any part of the weights.

        Not where vLLM repacks weights after loading: on a CPU, when quantized, in latent attention, in mixtures.
        """
        config = self.llm.llm_engine.model_config
        repacked = config.quantization or config.use_mla or self.is_mixture
        return self.device.type != "cpu" and not repacked

    @property
    def is_mixture(self) -> bool:
        """Whether layers of the model have experts."""
        return has_experts(self.llm.llm_engine.model_config.hf_text_config)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Puts weights into the model, without an adapter, and forgets what was computed from the old ones.

        Args:
            weights: Under checkpoint names: all of them, unless ``takes_weights_directly``.
        """
        with preserved_random_state(self.device), engine_mode(self.device):
            logging.getLogger(RELOAD_LOGGER).setLevel(logging.ERROR)
            self.llm.collective_rpc(load_directly if self.takes_weights_directly() else reload, args=(weights,))
        self._adapter_path = None
        self._forget_old_keys()

    def load_adapter(self, directory: str, matrices: dict[str, Tensor] | None = None) -> None:
        """Adds the adapter in ``directory`` to every request from now on, in place of the last one.

        Args:
            directory: As peft writes it.
            matrices: In place of the directory's, under the same names; the engine keeps them and writes to them.

        Raises:
            RuntimeError: If the engine refuses it.
        """
        source = nullcontext() if matrices is None else reading_adapters_from(matrices)
        with preserved_random_state(self.device), engine_mode(self.device), source:
            if not self.llm.llm_engine.add_lora(adapter_request(directory, load_inplace=True)):
                raise RuntimeError(f"vLLM did not load the adapter in {directory}.")
        self._adapter_path = directory
        self._forget_old_keys()

    def _forget_old_keys(self) -> None:
        """Drops cached keys and values of prompts, and encoded images: they belong to the old weights."""
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache, which holds keys and values of the old weights.")
        if self.llm.llm_engine.model_config.is_multimodal_model:
            self.llm.llm_engine.reset_encoder_cache()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # what is sent now must not change while it is read

    def sleep(self, level: int) -> None:
        """Gives device memory back: level 1 keeps the weights on the host, level 2 keeps nothing."""
        with preserved_random_state(self.device), engine_mode(self.device):
            self.llm.sleep(level=level)

    def wake_up(self) -> None:
        """Takes device memory again; after level 2 the weights have to be sent again."""
        torch.cuda.empty_cache()  # what training has set aside and does not use
        with preserved_random_state(self.device), engine_mode(self.device):
            self.llm.wake_up()

    def end(self) -> None:
        """Shuts the engine down. A process group that was there before it stays."""
        if self.has_ended:
            return
        self.has_ended = True
        ColocatedEngine._in_process = None
        end_engine(self.llm, keep_process_group=self.had_process_group)
        del self.llm
