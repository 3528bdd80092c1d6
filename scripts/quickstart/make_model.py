"""Rebuild the model and the rows of the quickstart, from nothing but seeds.

    python scripts/quickstart/make_model.py            # writes assets/quickstart/, 4 to 5 minutes on one core

``model/`` is a Hugging Face directory: safetensors (float32), config, generation config, tokenizer, chat template.
``train.jsonl`` and ``heldout.jsonl`` hold a conversational ``prompt`` and its ``ground_truth``, one problem a line.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

import torch
from pretrain import build_model, chat_prompt, pretrain
from task import Problem, distinct_problems
from tokenizer import build_tokenizer
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2ForCausalLM

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "quickstart"
TRAIN_ROWS, HELD_OUT_ROWS = 4096, 400
FORMAT = re.compile(r"<think>[^<]*</think><answer>([^<]*)</answer>")


def main() -> None:
    """Pre-train, save, and print what the model can do before any reinforcement learning."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ASSETS, help="directory to write to")
    parser.add_argument("--steps", type=int, default=1600, help="optimizer steps of 64 demonstrations")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of AdamW")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the demonstrations")
    options = parser.parse_args()
    torch.set_num_threads(1)  # sums in another order on more threads would give other weights

    tokenizer = build_tokenizer()
    model = build_model(tokenizer, options.seed)
    pretrain(model, tokenizer, options.steps, options.lr, options.seed)
    held_out = distinct_problems(random.Random("heldout"), HELD_OUT_ROWS, held_out=True)
    save_model(model, tokenizer, options.out / "model")
    save_rows(distinct_problems(random.Random("train"), TRAIN_ROWS, held_out=False), options.out / "train.jsonl")
    save_rows(held_out, options.out / "heldout.jsonl")
    for greedy in (True, False):
        strict, lenient = accuracy(model, tokenizer, held_out, greedy)
        how = "greedy" if greedy else "sampled"
        print(f"held-out accuracy, {how}: strict {strict:.3f}, lenient {lenient:.3f}")


def save_model(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write the model in float32, with all that ``AutoModelForCausalLM`` and ``AutoTokenizer`` need."""
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=64,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)  # written 0600, which a package would carry on
    tokenizer.save_pretrained(directory)


def save_rows(problems: list[Problem], path: Path) -> None:
    """Write one JSON line a problem: a conversational ``prompt`` and the result as ``ground_truth``."""
    with path.open("w", encoding="utf-8") as file:
        for problem in problems:
            prompt = [{"role": "user", "content": problem.prompt}]
            file.write(json.dumps({"prompt": prompt, "ground_truth": str(problem.result)}) + "\n")


def accuracy(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, problems: list[Problem], greedy: bool
) -> tuple[float, float]:
    """Shares of right answers: strict (exact tags), and lenient (the last number, wherever it stands)."""
    torch.manual_seed(0)
    inputs = tokenizer([chat_prompt(tokenizer, problem) for problem in problems], padding=True, return_tensors="pt")
    # The annotation of generate's self is a protocol that mypy does not find in any concrete model.
    ids = model.generate(  # type: ignore[misc]
        inputs.input_ids, attention_mask=inputs.attention_mask, do_sample=not greedy
    )
    texts = tokenizer.batch_decode(ids[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    strict = lenient = 0
    for problem, text in zip(problems, texts, strict=True):
        match, numbers = FORMAT.fullmatch(text), re.findall(r"\d+", text)
        strict += match is not None and match[1] == str(problem.result)
        lenient += bool(numbers) and numbers[-1] == str(problem.result)
    return strict / len(problems), lenient / len(problems)


if __name__ == "__main__":
    main()
