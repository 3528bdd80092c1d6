"""Generation with vLLM inside the training process: one engine a rank, or one over several ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from grpo_lightning.distributed.gather import own_rank
from grpo_lightning.generation.base import OnCompleted, SamplingSettings
from grpo_lightning.generation.parts import OnEnded, Part, PartRequest
from grpo_lightning.generation.turns import TurnSampler
from grpo_lightning.generation.vllm.base import VLLMGenerator
from grpo_lightning.generation.vllm.compat import why_unusable
from grpo_lightning.generation.vllm.engine.engine import ColocatedEngine
from grpo_lightning.generation.vllm.engine.images import EngineImages, check_shown, image_prompts, without_pixels
from grpo_lightning.generation.vllm.engine.parts import engine_parts
from grpo_lightning.generation.vllm.engine.ranks import check_ranks, of_all_ranks, of_own_rows
from grpo_lightning.generation.vllm.engine.sampling_parameters import further_parameters
from grpo_lightning.generation.vllm.engine.settings import (
    check_engine_kwargs,
    check_numbers,
    device_arguments,
    noting_failed_start,
)
from grpo_lightning.generation.vllm.engine.turns import EngineTurns
from grpo_lightning.generation.vllm.engine.weights import EngineWeights
from grpo_lightning.generation.vllm.models import refuse_missing_part
from grpo_lightning.generation.vllm.requests.completions import Completions
from grpo_lightning.generation.vllm.requests.prompts import check_prompts, engine_requests
from grpo_lightning.generation.vllm.requests.routed_experts import ToldExperts
from grpo_lightning.generation.vllm.skeleton import (
    adapters_obstacle,
    engine_dtype,
    kept_skeleton,
    lora_arguments,
    plain_model,
)
from grpo_lightning.generation.vllm.weights.adapter_route import AdapterRoute, LoraSync
from grpo_lightning.policy.end_of_sequence import end_of_sequence_ids
from grpo_lightning.seeds import derive_seed
from grpo_lightning.types import PromptImages, Rollouts
from grpo_lightning.vision.processing import ImageProcessing


class VLLMColocate(VLLMGenerator):
    """Samples with a vLLM engine that shares the process and the device with training.

    The engine is built when training starts, gets the policy's weights before it samples and after every optimizer
    step, and computes each prompt once for its G completions. Token ids go in, token ids and their logprobs at the
    sampling temperature come out; text is made only where stop strings need it.

    Args:
        gpu_memory_utilization: Share of the GPU's memory for the engine: its weights, and keys and values.
        max_model_length: Tokens of a prompt with its completion; None for all positions of the model. Less leaves room
            for more sequences at a time.
        tensor_parallel_size: Ranks that share one engine; divides the number of ranks.
        enable_sleep_mode: Give the engine's memory back while training, at the price of moving it (CUDA only).
        sleep_level: 1 keeps the engine's weights in host memory, 2 drops them and sends them again.
        enforce_eager: No CUDA graphs: starts faster, samples slower.
        dtype: What the engine computes in; auto for what the policy computes in.
        kv_cache_memory_gb: Memory for keys and values in GiB; None for what gpu_memory_utilization leaves, and 1 GiB
            on a CPU.
        lora_sync: How adapters reach the engine: hot (the engine adds them to its own copy of the base), merge (merged
            copies of the weights are sent), or auto: the faster of the two, measured in the first steps. null for hot
            where vLLM can load the adapter, else merge.
        seed_per_prompt: Seed every prompt's completions by themselves, so that they do not depend on the other prompts.
            null for where vLLM draws such completions together; where it draws them one by one, which takes time on a
            GPU, one seed a step then decides all of them.
        shorten_bookkeeping: Write down tokens that do not end their completion without vLLM's own bookkeeping of each: the
            same completions, sooner where the model is small. false runs vLLM's own code.
        engine_kwargs: Further arguments of vllm.LLM, such as max_num_seqs or max_num_batched_tokens.
    """

    def __init__(
        self,
        gpu_memory_utilization: float = 0.3,
        max_model_length: int | None = None,
        tensor_parallel_size: int = 1,
        enable_sleep_mode: bool = False,
        sleep_level: Literal[1, 2] = 1,
        enforce_eager: bool = False,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        kv_cache_memory_gb: float | None = None,
        lora_sync: LoraSync | None = None,
        seed_per_prompt: bool | None = None,
        shorten_bookkeeping: bool = True,
        engine_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if (reason := why_unusable()) is not None:
            raise ValueError(f"model.generator=VLLMColocate: {reason}.")
        check_numbers(gpu_memory_utilization, tensor_parallel_size)
        check_engine_kwargs(engine_kwargs or {})
        super().__init__(AdapterRoute(lora_sync))
        self.gpu_memory_utilization, self.max_model_length = gpu_memory_utilization, max_model_length
        self.sleep_level = sleep_level if enable_sleep_mode else 0
        self.enforce_eager, self.dtype, self.kv_cache_memory_gb = enforce_eager, dtype, kv_cache_memory_gb
        self.seed_per_prompt, self.shorten_bookkeeping = seed_per_prompt, shorten_bookkeeping
        self.tensor_parallel_size, self.engine_kwargs = tensor_parallel_size, engine_kwargs or {}
        self.experts, self.images = ToldExperts(), EngineImages()
        self._engine: ColocatedEngine | None = None
        self._is_asleep = False

    def check_model(self, config: PretrainedConfig) -> None:
        """See ``Generator.check_model``."""
        super().check_model(config)
        refuse_missing_part(config)

    def record_routed_experts(self, config: PretrainedConfig) -> None:
        """See ``Generator.record_routed_experts``."""
        self.experts.ask(config)

    def see_images(self, processing: ImageProcessing, config: PretrainedConfig) -> None:
        """See ``SamplesWithImages``."""
        self.images.ask(processing, config)

    def check_images(self, prompts: Sequence[tuple[list[int], PromptImages]]) -> None:
        """See ``SamplesWithImages``."""
        check_shown(self._wake_up(), prompts)

    def start(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model_name_or_path: str) -> None:
        """Builds the engine. Its weights mean nothing until ``update_weights``.

        Raises:
            ValueError: If a setting does not fit the policy or the ranks.
        """
        check_ranks(self.tensor_parallel_size)
        self._eos_ids = end_of_sequence_ids(plain_model(policy), tokenizer)
        self.adapter_route.start(policy, adapters_obstacle(policy))
        skeleton = str(kept_skeleton(policy, tokenizer, self.images.processor))
        arguments = {"model": skeleton} | self._engine_arguments(policy, model_name_or_path)
        shortened = self.shorten_bookkeeping and self.experts.count is None  # it knows nothing of experts
        self._weights, self._is_asleep = EngineWeights(policy, self.adapter_route), False
        with noting_failed_start(arguments):
            self._engine = ColocatedEngine(plain_model(policy).device, shortened, **arguments)

    def start_note(self) -> str:
        """Of it, what vLLM spent compiling."""
        return f"compilation {self._engine.compilation_seconds:.1f}" if self._engine is not None else ""

    def _engine_arguments(self, policy: PreTrainedModel, model_name_or_path: str) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "served_model_name": model_name_or_path,
            "dtype": engine_dtype(self.dtype, policy),
            "max_model_len": self.max_model_length,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "tensor_parallel_size": self.tensor_parallel_size,
            "enforce_eager": self.enforce_eager,
            "seed": own_rank()[0] // self.tensor_parallel_size,
        }
        arguments |= device_arguments(policy, self.kv_cache_memory_gb, bool(self.sleep_level), self.engine_kwargs)
        adapters = lora_arguments(policy) if self.adapter_route.engine_adds_adapters else {}
        shown = self.images.engine_arguments(plain_model(policy).config)
        return arguments | adapters | self.experts.engine_arguments() | shown | self.engine_kwargs

    def update_weights(self, policy: PreTrainedModel) -> dict[str, float]:
        """Sends what has changed since the last time: all weights at first, then the trained ones or the adapter.

        Returns:
            Seconds, megabytes and GB/s. With a hot adapter, of the adapter.

        Raises:
            ValueError: If the policy's weights are not those that the engine was built for.
        """
        with self.adapter_route.update():
            engine = self._wake_up()
            self._weights.follow(policy)
            return self._send(engine)

    def _send(self, engine: ColocatedEngine) -> dict[str, float]:
        try:
            return self._weights.send(engine)
        except BaseException:
            self.stop()  # weights that are half changed cannot be repaired: the next start builds another engine
            raise

    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: SamplingSettings,
        seeds: Sequence[int],
        on_completed: OnCompleted | None = None,
        images: Sequence[PromptImages] = (),
    ) -> Rollouts:
        """See ``Generator.generate``; images go to the engine as they are, with one placeholder each.

        Raises:
            ValueError: If a prompt leaves no room for its completion.
        """
        engine = self._ready_engine()
        check_prompts(prompt_ids, sampling, seeds, engine.max_model_length)
        rows = range(len(prompt_ids))
        if self.tensor_parallel_size > 1:
            (prompt_ids, seeds, images), rows = of_all_ranks(prompt_ids, seeds, without_pixels(images))
        size = sampling.num_generations
        completions = Completions(len(prompt_ids), size, of_own_rows(on_completed, rows, size), self.experts.count)
        started = time.perf_counter()
        shown = image_prompts(engine.llm, prompt_ids, images)
        requests = engine_requests(prompt_ids, sampling, seeds, self._eos_ids, self._is_seeded(engine), shown)
        engine.sample(requests, further_parameters(sampling), completions, derive_seed("vllm", *seeds))
        rollouts = completions.rollouts(prompt_ids, rows)
        self._sampled(time.perf_counter() - started, rollouts.completion_ids.numel())
        return rollouts

    def open_turns(self, sampling: SamplingSettings, wake: Callable[[], None]) -> TurnSampler:
        """Turns that join the engine's batch as they are asked for; see ``grpo_lightning.generation.turns``."""
        return EngineTurns(self._ready_engine(), sampling, self._eos_ids, self._sampled)

    def sample_parts(
        self, requests: Sequence[PartRequest], sampling: SamplingSettings, on_ended: OnEnded
    ) -> list[Part]:
        """See ``CutsCompletions``."""
        engine = self._ready_engine()
        started = time.perf_counter()
        parts = engine_parts(engine, requests, sampling, self._eos_ids, self._is_seeded(engine), on_ended)
        self._sampled(time.perf_counter() - started, sum(len(part.ids) for part in parts))
        return parts

    def _is_seeded(self, engine: ColocatedEngine) -> bool:
        return engine.draws_seeded_cheaply if self.seed_per_prompt is None else self.seed_per_prompt

    def _sampled(self, seconds: float, tokens: int) -> None:
        self.adapter_route.sampled(seconds, tokens)
        self.rest()

    def _ready_engine(self) -> ColocatedEngine:
        engine = self._wake_up()
        if self._weights.held == "nothing":  # dropped by sleep level 2
            self._send(engine)
        return engine

    def rest(self) -> None:
        """Sends the engine to sleep where a setting asks for it; the next call wakes it."""
        engine = self._engine
        if engine is None or self._is_asleep or not self.sleep_level or engine.device.type == "cpu":
            return
        engine.sleep(self.sleep_level)
        self._is_asleep = True
        if self.sleep_level == 2:
            self._weights.held = "nothing"

    def _wake_up(self) -> ColocatedEngine:
        if self._engine is None or self._engine.has_ended:
            raise RuntimeError("VLLMColocate was called before start, or after its engine had ended.")
        if self._is_asleep:
            self._engine.wake_up()
            self._is_asleep = False
        return self._engine

    def stop(self) -> None:
        """Ends the engine and frees its memory; another one can be started after it."""
        if self._engine is not None:
            self._engine.end()
            self._weights.remove_files()
            del self._weights
        self._engine = None
