"""Imitation: a Qwen2 model of 0.43 million parameters learns to write the demonstrations."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from demonstrations import CLASS, RIGHT, demonstrate
from task import Problem, sample_problem
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

BATCH_SIZE = 64
WARMUP_STEPS = 50
IGNORED = -100


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """Two layers of width 128. Heads of 32 are the smallest that vLLM serves on a CPU."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        initializer_range=0.05,  # the usual 0.02 is meant for far wider models and learns late here
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def pretrain(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int, lr: float, seed: int) -> None:
    """Train on right solutions for the first half, on those of the class for the second.

    The first half builds the method, which the slips would hide for long; the second half spoils the knowledge.
    """
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS) * (1.0 - step / steps)
    )
    for step in range(steps):
        slips = RIGHT if step < steps // 2 else CLASS
        problems = [sample_problem(rng, held_out=False) for _ in range(BATCH_SIZE)]
        ids, labels = encode(tokenizer, problems, [demonstrate(problem, rng, slips) for problem in problems])
        logits = model(input_ids=ids).logits[:, :-1]  # (B, L - 1, V)
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 200 == 0:
            print(f"step {step + 1}/{steps}: loss {loss.item():.3f} nats per token", flush=True)


def encode(
    tokenizer: PreTrainedTokenizerFast, problems: list[Problem], completions: list[str]
) -> tuple[Tensor, Tensor]:
    """Chat-formatted examples, right-padded: ids and labels ``(B, L)``; labels count completion tokens only."""
    prompts = [chat_prompt(tokenizer, problem) for problem in problems]
    prompt_ids = tokenizer(prompts).input_ids
    completion_ids = tokenizer([completion + tokenizer.eos_token for completion in completions]).input_ids
    length = max(len(p) + len(c) for p, c in zip(prompt_ids, completion_ids, strict=True))
    ids = torch.full((len(problems), length), tokenizer.pad_token_id)
    labels = torch.full((len(problems), length), IGNORED)
    for row, (p, c) in enumerate(zip(prompt_ids, completion_ids, strict=True)):
        ids[row, : len(p) + len(c)] = torch.tensor(p + c)
        labels[row, len(p) : len(p) + len(c)] = torch.tensor(c)
    return ids, labels


def chat_prompt(tokenizer: PreTrainedTokenizerFast, problem: Problem) -> str:
    """The prompt as the chat template writes it, up to where the assistant's turn begins."""
    messages = [{"role": "user", "content": problem.prompt}]
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
