"""Arguments of an engine: those that a config may not override, and those that follow from the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from grpo_lightning.generation.vllm.compat import installed_name
from grpo_lightning.generation.vllm.skeleton import plain_model
from grpo_lightning.scoring.probe import types_beside_attention

WHOLE_PROMPTS = {"enable_chunked_prefill": False}
"""On a CPU: a request with a seed whose prompt is computed in pieces ends in "CPU Generator does not use offset"."""
WITHOUT_SHARED_PREFIXES = {"enable_prefix_caching": False}
"""On a CPU, beside ``WHOLE_PROMPTS``: vLLM cuts prompts where it keeps the states of convolutions and linear attention."""
GRAPH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024)
"""Sequences that a CUDA graph is captured for; others run in the next larger one. vLLM's own 51 take twice as long to capture,
and a step whose batch is padded by up to a third still reads the weights once. vLLM's end at 512, where a batch of 64 prompts with
8 completions has no place for what partial rollouts carry over."""
GRAPH_ARGUMENTS = ("cudagraph_capture_sizes", "max_cudagraph_capture_size", "compilation_config")
MEMORY_CAME_BACK = "Error in memory profiling"
"""How vLLM's error begins when more memory is free after its first pass than before."""
OWN_ARGUMENTS = {
    "model": "model.model_name_or_path",
    "tokenizer": "model.tokenizer_name_or_path",
    "dtype": "dtype",
    "gpu_memory_utilization": "gpu_memory_utilization",
    "kv_cache_memory_bytes": "kv_cache_memory_gb",
    "max_model_len": "max_model_length",
    "tensor_parallel_size": "tensor_parallel_size",
    "enable_sleep_mode": "enable_sleep_mode",
    "enforce_eager": "enforce_eager",
    "seed": "model.seed",
    "enable_return_routed_experts": "model.router_replay",
    "enable_lora": "lora_sync",
    "max_lora_rank": "lora_sync",
}
FIXED_ARGUMENTS = (
    "logprobs_mode",
    "stream_interval",
    "distributed_executor_backend",
    "generation_config",
    "load_format",
)


def check_numbers(gpu_memory_utilization: float, tensor_parallel_size: int) -> None:
    """Refuses numbers that no engine can be built with.

    Raises:
        ValueError: With a way out.
    """
    if not 0 < gpu_memory_utilization <= 1:
        raise ValueError(
            f"model.generator.init_args.gpu_memory_utilization={gpu_memory_utilization} is not a share of the "
            "GPU's memory. Give a number above 0 and at most 1, such as 0.3."
        )
    if tensor_parallel_size < 1:
        raise ValueError(f"model.generator.init_args.tensor_parallel_size={tensor_parallel_size}: at least 1 rank.")


def check_engine_kwargs(engine_kwargs: dict[str, Any]) -> None:
    """Refuses engine arguments that have a setting of their own, or that correctness depends on.

    Raises:
        ValueError: Naming the setting to use.
    """
    for name, value in engine_kwargs.items():
        if name in OWN_ARGUMENTS:
            raise ValueError(
                f"model.generator.init_args.engine_kwargs has {name}={value!r}, which has a setting of its own: "
                f"{OWN_ARGUMENTS[name]}. Use that."
            )
        if name in FIXED_ARGUMENTS:
            raise ValueError(
                f"model.generator.init_args.engine_kwargs has {name}={value!r}, which is set for correct logprobs and "
                "weights. Leave it out."
            )


def device_arguments(
    policy: PreTrainedModel, kv_cache_memory_gb: float | None, sleeps: bool, engine_kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Engine arguments that follow from the policy's device.

    Args:
        policy: On it.
        kv_cache_memory_gb: GiB for keys and values; None for 1 on a CPU, and what is left on a GPU.
        sleeps: Whether the engine is to give its memory back.
        engine_kwargs: Which may say themselves what CUDA graphs are captured for.
    """
    model = plain_model(policy)
    on_cpu = model.device.type == "cpu"
    arguments: dict[str, Any] = {"enable_sleep_mode": sleeps and not on_cpu}
    cache = kv_cache_memory_gb or (1.0 if on_cpu else None)
    if cache is not None:
        arguments["kv_cache_memory_bytes"] = int(cache * 2**30)
    if on_cpu:
        return arguments | WHOLE_PROMPTS | (WITHOUT_SHARED_PREFIXES if types_beside_attention(model) else {})
    if not any(name in engine_kwargs for name in GRAPH_ARGUMENTS):
        arguments["cudagraph_capture_sizes"] = list(GRAPH_SIZES)
    return arguments


@contextmanager
def noting_failed_start(arguments: dict[str, Any]) -> Iterator[None]:
    """Around a start of vLLM with these arguments: adds to what it raises what to look at."""
    try:
        yield
    except Exception as error:
        error.add_note(note_of_failed_start(error, arguments))
        raise


def note_of_failed_start(error: Exception, arguments: dict[str, Any]) -> str:
    """What to look at when vLLM raises while it starts.

    Args:
        error: vLLM's.
        arguments: Of ``vllm.LLM``.
    """
    if MEMORY_CAME_BACK in str(error):
        return (
            "Another process gave memory of this GPU back while vLLM measured what is free: often a run that was ended "
            "a moment ago (nvidia-smi lists processes). Start again once it is gone; beside a process that stays, set "
            "model.generator.init_args.kv_cache_memory_gb, with which vLLM does not measure."
        )
    return (
        f"VLLMColocate could not start {installed_name()} with {arguments}; see model.generator.init_args. "
        "Where it cannot run this model on this device, set model.generator=TransformersGenerator."
    )
