"""4-bit toy models, as transformers loads them and as bitsandbytes repacks them for inference on some CPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel


def four_bit_model(directory: Path, **options: Any) -> PreTrainedModel:
    """The model of a directory in nf4 with doubly quantised scales, which computes in float32."""
    defaults = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, **(defaults | options))
    return AutoModelForCausalLM.from_pretrained(directory, quantization_config=config, dtype=torch.float32)


@torch.no_grad()
def repack(policy: torch.nn.Module) -> None:
    """What the first evaluation pass does on a CPU with AVX512-BF16, unless Policy has loaded the model."""
    from bitsandbytes.functional import _convert_weight_packed_for_cpu, has_avx512bf16

    if has_avx512bf16():
        policy.eval()(torch.arange(3, 40)[None])
    else:
        for weight in policy.parameters():
            if type(weight).__name__ == "Params4bit":
                weight.data, weight.quant_state = _convert_weight_packed_for_cpu(weight.data, weight.quant_state)
    assert all(p.quant_state.packing_format_for_cpu for p in policy.parameters() if p.dtype == torch.uint8)
