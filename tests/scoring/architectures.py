"""Toys of the architectures that people train, with the layout that each is expected to train in.

docs/models.md shows the table; ``test_architectures.py`` holds every line of it against the model itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    # Small default weights make every distribution uniform, which hides a wrong position.
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
GPT_SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "n_embd": 32,
    "n_inner": 48,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "rotary_dim": 4,
    "initializer_range": 0.2,
    "attn_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
MOE: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "shared_expert_intermediate_size": 16,
}
LATENT: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
DELTA: dict[str, Any] = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
CONVOLUTION: dict[str, Any] = {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0, 5.0, 6.0, 7.0],
    "original_max_position_embeddings": 12,
    "factor": 8.0,
}
DYNAMIC: dict[str, Any] = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


@dataclass(frozen=True)
class Architecture:
    """A line of the table."""

    config: dict[str, Any] = field(default_factory=dict)
    layout: str = "packed"
    sampled: bool = True
    """Whether TransformersGenerator samples from it; it refuses others when a run starts."""


def packed(*parts: dict[str, Any], **config: Any) -> Architecture:
    return Architecture({key: value for part in (*parts, config) for key, value in part.items()})


def padded(*parts: dict[str, Any], sampled: bool = True, **config: Any) -> Architecture:
    return Architecture(packed(*parts, **config).config, "padded", sampled)


ARCHITECTURES: dict[str, Architecture] = {
    # attention alone
    **{name: packed() for name in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gpt_neox", "opt", "starcoder2")},
    **{
        name: packed() for name in ("cohere", "cohere2", "granite", "olmo", "olmo2", "glm", "glm4", "smollm3", "helium")
    },
    **{name: packed() for name in ("persimmon", "biogpt", "exaone4", "ernie4_5", "arcee", "apertus", "bitnet")},
    **{name: packed() for name in ("hunyuan_v1_dense", "hyperclovax", "jais2", "ministral", "ministral3", "nanochat")},
    **{name: packed(GPT_SIZES) for name in ("gpt2", "gpt_bigcode")},
    "phi": packed(head_dim=""),
    "phi3": packed(original_max_position_embeddings=256),
    "phi3 longrope": packed(original_max_position_embeddings=12, rope_parameters=LONGROPE),
    "llama dynamic rope": packed(rope_parameters=DYNAMIC, max_position_embeddings=16),
    "olmo3": packed(sliding_window=4),
    "vaultgemma": packed(sliding_window=4, query_pre_attn_scalar=8),
    "gemma2": packed(sliding_window=4, query_pre_attn_scalar=8, attn_logit_softcapping=1.0),
    "gemma3_text": packed(sliding_window=4, query_pre_attn_scalar=8),
    # experts
    **{
        name: packed(MOE)
        for name in ("qwen3_moe", "mixtral", "qwen2_moe", "olmoe", "granitemoe", "flex_olmo", "jetmoe")
    },
    **{name: packed(MOE) for name in ("ernie4_5_moe", "hunyuan_v1_moe", "glm4_moe", "dots1", "minimax_m2", "afmoe")},
    **{name: packed(MOE) for name in ("phimoe", "exaone_moe", "solar_open")},
    "gpt_oss": packed(MOE, sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
    # latent attention
    "youtu": packed(LATENT),
    **{name: packed(MOE, LATENT) for name in ("deepseek_v2", "deepseek_v3", "glm4_moe_lite")},
    # linear attention, state spaces, convolutions
    "qwen3_5_text": padded(DELTA),
    "qwen3_5_moe_text": padded(DELTA, MOE),
    "qwen3_next": padded(DELTA, MOE),
    "lfm2": padded(CONVOLUTION),
    "lfm2_moe": padded(CONVOLUTION, MOE, num_dense_layers=1),
    "nemotron_h": padded(
        MOE,
        num_hidden_layers=4,
        layers_block_type=["linear_attention", "moe", "full_attention", "mlp"],
        mamba_num_heads=4,
        mamba_head_dim=8,
        ssm_state_size=8,
        n_groups=2,
        chunk_size=8,
        moe_shared_expert_intermediate_size=16,
    ),
    "granitemoehybrid": padded(MOE, MAMBA, layer_types=["mamba", "attention"], shared_intermediate_size=32),
    "bamba": padded(MAMBA, attn_layer_indices=[1]),
    "falcon_h1": padded(MAMBA, mamba_d_ssm=64),
    "jamba": padded(
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=2,
        mamba_d_state=8,
        mamba_dt_rank=4,
    ),
    "olmo_hybrid": padded(),
    "recurrent_gemma": padded(
        sampled=False, block_types=["recurrent", "attention"], lru_width=32, attention_window_size=8
    ),
    # attention that cannot be replaced
    **{name: padded(GPT_SIZES) for name in ("gptj", "codegen")},
    "bloom": padded(n_layer=2, n_head=4),
    **{name: padded() for name in ("stablelm", "nemotron", "seed_oss", "diffllama", "doge")},
    "llama4_text": padded(MOE, num_experts_per_tok=1, intermediate_size_mlp=48, attention_chunk_size=8),
}
"""By ``model_type``, and what else is said of it. What is "" is left to the config's default."""


def build(name: str) -> PreTrainedModel:
    """A random float32 model of two layers in evaluation mode."""
    config = ARCHITECTURES[name].config
    sizes = {} if "n_positions" in config else SIZES
    fields = {key: value for key, value in (sizes | config).items() if value != ""}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name.split()[0], **fields), dtype=torch.float32).eval()
