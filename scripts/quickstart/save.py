"""What the maker writes: the model directory and the rows of both splits."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from task import Problem, sample_split
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2ForCausalLM


def save_model(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write safetensors in float32, config, generation_config, tokenizer and chat template."""
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=64,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(torch.float32).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def distinct_problems(rng: random.Random, count: int, held_out: bool) -> list[Problem]:
    """Draw from one side of the split until there are ``count`` different problems."""
    problems: dict[Problem, None] = {}
    while len(problems) < count:
        problems[sample_split(rng, held_out)] = None
    return list(problems)


def save_rows(problems: list[Problem], path: Path) -> None:
    """Write one JSON line a problem: a conversational ``prompt`` and the result as ``ground_truth``."""
    with path.open("w", encoding="utf-8") as file:
        for problem in problems:
            prompt = [{"role": "user", "content": problem.prompt}]
            file.write(json.dumps({"prompt": prompt, "ground_truth": str(problem.result)}) + "\n")
