"""The live adapter on its way to an engine: in a directory, or in memory."""

from __future__ import annotations

import json
from pathlib import Path

from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor

from grpo_lightning.distributed.sharding import whole
from grpo_lightning.finetuning.adapters import adapter_state


def copy_adapter(policy: PeftModel) -> dict[str, Tensor]:
    """The active adapter's matrices on the policy's device, in memory of their own: engines scale them in place.

    Sharded matrices are gathered in a collective.
    """
    return {name: whole(tensor).clone() for name, tensor in adapter_state(policy).tensors.items()}


def write_adapter(policy: PeftModel, directory: Path) -> int:
    """Writes the active adapter as peft does; sharded matrices are gathered in a collective.

    Returns:
        The bytes of its tensors.
    """
    state = adapter_state(policy)
    tensors = {name: whole(tensor).contiguous().cpu() for name, tensor in state.tensors.items()}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(state.config), encoding="utf-8")
    save_file(tensors, directory / "adapter_model.safetensors")
    return size_of(tensors)


def size_of(tensors: dict[str, Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
