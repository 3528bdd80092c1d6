"""What an engine is built from, all but the weights: configuration, tokenizer, dtype, room for an adapter."""

from __future__ import annotations

import copy
import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_lightning.distributed.sharding import plain_class
from grpo_lightning.finetuning.adapters import adapter_rank
from grpo_lightning.numerics.routers import has_experts

LORA_RANKS = (8, 16, 32, 64, 128, 256, 512)
"""What vLLM accepts as max_lora_rank, in all versions."""


def plain_model(policy: PreTrainedModel) -> PreTrainedModel:
    """The transformers model inside the adapters, or the policy itself."""
    return policy.get_base_model() if isinstance(policy, PeftModel) else policy


def engine_dtype(setting: str, policy: PreTrainedModel) -> str:
    """The name of the dtype the engine computes in.

    ``auto`` is what the policy computes in: autocast's dtype inside autocast (trainer.precision=bf16-mixed), else that
    of its weights. vLLM's own "auto" would turn a float32 checkpoint into bfloat16.
    """
    if setting != "auto":
        return setting
    model = plain_model(policy)
    device = model.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
    return str(dtype).removeprefix("torch.")


def save_skeleton(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, processor: Any = None
) -> None:
    """Writes the policy's configuration and tokenizer as they are now: what an engine is built from, less the weights.

    The directory that the policy was loaded from lacks tokens that were added since, and a quantized policy is sent
    dequantised.

    Args:
        policy: Its configuration as it is now.
        tokenizer: As it is now.
        directory: Is made.
        processor: Of a model that is shown images.
    """
    model = plain_model(policy)
    config = copy.deepcopy(model.config)
    config.architectures = [plain_class(model).__name__]
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.get_text_config().vocab_size = cast(Tensor, model.get_input_embeddings().weight).shape[0]
    config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    if processor is not None:
        processor.save_pretrained(directory)


def kept_skeleton(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, processor: Any = None) -> Path:
    """The directory of ``save_skeleton`` in vLLM's cache, named after its contents.

    vLLM keeps what torch.compile made, and finds it by a hash of its settings, the model's path among them (its
    ``ModelConfig.compute_hash``). From a directory with a new name, each run compiled everything again.

    Args:
        policy, tokenizer, processor: As of ``save_skeleton``.
    """
    from vllm import envs

    root = Path(envs.VLLM_CACHE_ROOT) / "grpo_lightning"
    root.mkdir(parents=True, exist_ok=True)
    written = Path(tempfile.mkdtemp(prefix="writing-", dir=root))
    save_skeleton(policy, tokenizer, written, processor)
    place = root / _digest(written)
    try:
        written.rename(place)  # at once: another rank, or another run, may be about to do the same
    except OSError:  # it is there, with the same contents
        shutil.rmtree(written)
    return place


def _digest(directory: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        content = path.read_bytes()
        found.update(f"{path.relative_to(directory)} {len(content)}\n".encode() + content)
    return found.hexdigest()[:16]


def adapters_obstacle(policy: PreTrainedModel) -> str | None:
    """Why an engine on the policy's device adds no adapters to the model; None where it does.

    vLLM takes its Triton kernel for the experts of an engine that adds adapters, and a CPU has no Triton.
    """
    model = plain_model(policy)
    if model.device.type == "cpu" and has_experts(model.config.get_text_config()):
        return "vLLM adds no adapters to a mixture of experts on a CPU"
    return None


def lora_arguments(policy: PreTrainedModel) -> dict[str, Any]:
    """Engine arguments for one adapter of the policy's rank."""
    rank = adapter_rank(policy)
    if rank > LORA_RANKS[-1]:
        raise ValueError(
            f"the adapter has rank {rank}, and vLLM loads at most {LORA_RANKS[-1]}. "
            "Set model.generator.init_args.lora_sync=merge."
        )
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": next(r for r in LORA_RANKS if r >= rank)}
