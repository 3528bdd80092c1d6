"""Builders of toy language models: random weights, a real tokenizer, real files, a second to make.

Nothing here is a stand-in. The models are transformers' own classes with small configs, and what ``save_toy_model``
writes loads in transformers, peft and vLLM (whose CPU attention takes no head smaller than 32).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    Qwen2Tokenizer,
)

PAD_TOKEN = "<|endoftext|>"
EOS_TOKEN = "<|im_end|>"
SPECIAL_TOKENS = (PAD_TOKEN, "<|im_start|>", EOS_TOKEN)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Enough text for merges that join letters, digits and the tags that rewards look for.
CORPUS = (
    "<think>2 + 3 is 5, so the answer is 5.</think><answer>5</answer>",
    "<think>12 + 30 = 42</think>\n<answer>42</answer>",
    "What is 17 + 25? Think step by step, then answer.",
    "user system assistant question answer reasoning",
    "The quick brown fox jumps over the lazy dog.",
)

# One entry an architecture: the sizes that AutoConfig's defaults would make far too large.
SMALL_CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,  # heads of 32, the smallest that vLLM runs on a CPU
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
}
EXTRA_CONFIG: dict[str, dict[str, Any]] = {
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"tie_word_embeddings": False, "head_dim": 32},
    "llama": {"tie_word_embeddings": False},
    "mistral": {"tie_word_embeddings": False, "sliding_window": None, "head_dim": 32},
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16},
    "gpt2": {},
    "qwen3_moe": {
        "tie_word_embeddings": False,
        "head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
    },
    "gpt_oss": {
        "tie_word_embeddings": False,
        "head_dim": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            **{"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128},
            **{"beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
        },
    },
    "phimoe": {"tie_word_embeddings": False, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo2": {"tie_word_embeddings": False},
    "lfm2": {
        "layer_types": ["conv", "full_attention"],
        "tie_word_embeddings": True,  # vLLM's has no head of its own
        "block_auto_adjust_ff_dim": False,
        **{"conv_dim": 64, "conv_dim_out": 64, "block_dim": 64},  # which published configurations have, and vLLM reads
    },
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention"],
        "num_dense_layers": 1,
        **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    },
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64},
    "cohere2": {"head_dim": 32, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "cohere2_moe": {
        **{"head_dim": 32, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
        **{"num_experts": 4, "num_experts_per_tok": 2},
    },
    "apertus": {"tie_word_embeddings": False},
    "smollm3": {"tie_word_embeddings": False},
    "phi3": {"tie_word_embeddings": False, "original_max_position_embeddings": 512},
}
GPT2_NAMES = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}


def build_tokenizer(vocab_size: int = 320) -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer that reads and writes any text, with a ChatML template.

    Args:
        vocab_size: Entries including the 256 bytes and 3 special tokens. The corpus is too small for more than
            about 400, in which case the tokenizer is smaller than asked.

    Returns:
        Left-padding tokenizer with ``pad`` and ``eos`` tokens that differ, and no ``bos`` token.
    """
    # transformers loads any tokenizer beside a Qwen2 config as this class, which brings its own way of cutting text
    # into words; trained with another, the loaded tokenizer would not be the one that was saved.
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    learnt = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learnt["vocab"],
        merges=[tuple(merge) for merge in learnt["merges"]],
        unk_token=None,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        additional_special_tokens=["<|im_start|>"],
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(
    architecture: str = "qwen2",
    *,
    tokenizer: Qwen2Tokenizer | None = None,
    seed: int = 0,
    **overrides: Any,
) -> PreTrainedModel:
    """A random float32 model of 2 layers and 64 hidden units, in evaluation mode.

    The weights depend on ``seed`` alone, and the global random state is left as it was.

    Args:
        architecture: A key of ``EXTRA_CONFIG``.
        tokenizer: Sets the vocabulary size and the special ids; by default ``build_tokenizer()``.
        seed: Of the random weights.
        overrides: Fields of the config, under their own names.
    """
    if architecture not in EXTRA_CONFIG:
        raise ValueError(f"architecture={architecture!r} is not one of {sorted(EXTRA_CONFIG)}. Add it to EXTRA_CONFIG.")
    tokenizer = tokenizer if tokenizer is not None else build_tokenizer()
    sizes: dict[str, Any] = dict(SMALL_CONFIG)
    if architecture == "gpt2":
        sizes = {GPT2_NAMES[name]: size for name, size in sizes.items() if name in GPT2_NAMES}
    fields = sizes | EXTRA_CONFIG[architecture]
    fields |= {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        # Ten times the usual deviation: with tiny random weights every distribution would be almost uniform and
        # a test that compares logprobs could not tell a right position from a wrong one.
        "initializer_range": 0.2,
    }
    config = AutoConfig.for_model(architecture, **(fields | overrides))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    return model.eval()


def save_toy_model(path: str | Path, architecture: str = "qwen2", *, seed: int = 0, **overrides: Any) -> Path:
    """Write a model directory (config, safetensors, generation config, tokenizer, chat template) and return its path.

    Args:
        path: Created if it is missing.
        architecture, seed, overrides: As for ``build_model``.
    """
    path = Path(path)
    tokenizer = build_tokenizer()
    build_model(architecture, tokenizer=tokenizer, seed=seed, **overrides).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
