"""The models that people use today, each by the command line on one GPU: what its engine samples from is what is trained."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_models import build_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from two_devices import ON_CPU, Ran, assert_trained, fit, note, place

from grpo_lightning.generation.vllm.compat import installed_version, why_unusable
from tests.vision.toy_checkpoint import save_toy_checkpoint
from tests.vision.toy_vision import picture

pytestmark = [
    pytest.mark.skipif(place(devices=1) is None, reason=f"needs a CUDA device ({ON_CPU}=1: a process without one)"),
    pytest.mark.skipif(why_unusable() is not None, reason="needs vLLM"),
    *([pytest.mark.gpu] if place(devices=1) != "cpu" else []),
]
needs_0_32 = pytest.mark.skipif(
    (installed_version() or ("0.0", False))[0].startswith("0.25."), reason="vLLM has its language part from 0.32 on"
)
SIZES: dict[str, Any] = {
    **{"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 64},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512, "initializer_range": 0.05},
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
CONVOLUTION = {"conv_dim": 128, "conv_dim_out": 128, "block_dim": 128}
"""Which published configurations have, and vLLM before 0.32 reads."""
TIED = {"tie_word_embeddings": True}
"""vLLM's LFM2 has no head of its own."""
LONGROPE: dict[str, Any] = {
    **{"rope_type": "longrope", "rope_theta": 10000.0, "factor": 16.0, "original_max_position_embeddings": 32},
    **{"short_factor": [1.0] * 32, "long_factor": [1.0 + n / 8 for n in range(32)]},
}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3_moe": EXPERTS,
    "gpt_oss": EXPERTS | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16},
    "gemma3_text": {"sliding_window": 16, "query_pre_attn_scalar": 64},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False} | CONVOLUTION | TIED,
    "phi3": {"original_max_position_embeddings": 32, "rope_parameters": LONGROPE},
}
"""By ``model_type``."""
SHOWN = ("qwen2_5_vl", "qwen3_vl", "gemma3")
LARGE_STEPS = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 5.0e-3}}
"""A tenth of a weight's deviation a step: an engine that stayed behind would be seen."""
ROUNDING = 0.03
"""Nats, in the mean over tokens: the engine's weights are bfloat16, and so is what is computed on either side."""


@pytest.fixture(autouse=True)
def _one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers take turns with the GPUs, with those that the command may see."""
    if place(devices=1) == "cuda":
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus.split(",")[worker % len(gpus.split(","))])


def save_model(model_type: str, path: Path) -> Path:
    """Writes a toy of the type, random weights, and returns its directory."""
    tokenizer = build_tokenizer()
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    fields = SIZES | {"vocab_size": len(tokenizer), "tie_word_embeddings": False} | ends | MODELS[model_type]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **fields), dtype=torch.float32)
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def train(name: str, folder: Path, model: Path, **settings: Any) -> Ran:
    """Three large steps on one device, noted under the name."""
    alone: dict[str, Any] = {"trainer__devices": 1, "trainer__strategy": "auto", "model__optimizer": LARGE_STEPS}
    alone["model__rewards"] = ["runs.variety"]
    ran = fit(folder, model, **alone, **settings)
    note(name, ran)
    return ran


def worst_mismatch(ran: Ran) -> float:
    """Nats between sampler and policy, mean over a step's tokens, in the worst step."""
    return max(row["sampling/sampling_logp_difference/mean"] for row in ran.steps)


@pytest.mark.parametrize("model_type", MODELS)
def test_a_model_of_text_is_sampled_from_as_it_is_trained(model_type: str, tmp_path: Path):
    ran = train(model_type, tmp_path / "run", save_model(model_type, tmp_path / "model"))
    assert_trained(ran, 3)
    assert worst_mismatch(ran) < ROUNDING


@pytest.mark.parametrize("family", ["gemma3", pytest.param("qwen3_5", marks=needs_0_32)])
def test_a_model_with_a_tower_is_sampled_from_as_its_language_part_is_trained(family: str, tmp_path: Path):
    ran = train(f"{family}, text", tmp_path / "run", save_toy_checkpoint(family, tmp_path / "model"))
    assert_trained(ran, 3)
    assert worst_mismatch(ran) < ROUNDING


@pytest.mark.parametrize("family", SHOWN)
def test_prompts_with_images_are_sampled_as_they_are_trained(family: str, tmp_path: Path):
    prompts: list[dict[str, Any]] = []
    for n in range(8):
        picture(n, 16 + n, 16).save(tmp_path / f"{n}.png")
        prompts.append({"prompt": [{"role": "user", "content": "How many?"}], "image": str(tmp_path / f"{n}.png")})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    settings: dict[str, Any] = {"data__dataset": str(tmp_path / "train.jsonl"), "model__vision_tower": "frozen"}
    settings |= {"model__generator__init_args__max_model_length": 256}
    ran = train(f"{family}, images", tmp_path / "run", save_toy_checkpoint(family, tmp_path / "model"), **settings)
    assert_trained(ran, 3)
    assert worst_mismatch(ran) < ROUNDING
