"""The live adapter in a directory, as engines read it."""

from __future__ import annotations

import json
from pathlib import Path

from peft import PeftModel
from safetensors.torch import save_file

from grpo_lightning.distributed.sharding import whole
from grpo_lightning.finetuning.adapters import adapter_state


def write_adapter(policy: PeftModel, directory: Path) -> int:
    """Writes the active adapter; sharded matrices are gathered in a collective.

    Returns:
        The bytes of its tensors.
    """
    state = adapter_state(policy)
    tensors = {}
    for name, tensor in state.tensors.items():
        tensors[name] = whole(tensor).contiguous().cpu()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(state.config), encoding="utf-8")
    save_file(tensors, directory / "adapter_model.safetensors")
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
