"""A run as a user has it: the command line trains a real model for three steps, exports it, and talks to it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch
import yaml
from sides.addition import conversation
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from grpo_lightning.__main__ import main as grpo_lightning
from grpo_lightning.commands import chat, export
from grpo_lightning.rollouts.sampler_canary import MISMATCH

SUMS = [(57, 68), (29, 46)]  # half known: some samples are right and some are not


def config(model_dir: Path, folder: Path) -> dict:
    prompts = folder / "train.jsonl"
    rows = [{"prompt": conversation(a, b)[2:], "ground_truth": str(a + b)} for a, b in SUMS]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 3,
            "default_root_dir": str(folder / "run"),
            "enable_progress_bar": False,
        },
        "model": {
            "model_name_or_path": str(model_dir),
            "rewards": ["sides.addition.right_sum"],
            "generator": "TransformersGenerator",
            "num_generations": 6,
            "max_completion_length": 12,
            # Without moments: a checkpoint of 135 million parameters is large enough.
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}},
            "max_grad_norm": 1.0,
        },
        "data": {"dataset": str(prompts), "batch_size": len(SUMS)},
        "checkpoint": {"save_top_k": 0, "save_last": True, "every_n_train_steps": 3},
    }


@pytest.fixture(scope="module")
def run(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of three steps."""
    folder = tmp_path_factory.mktemp("real_run")
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config(smollm2_dir, folder)))
    grpo_lightning(["fit", "--config", str(file)])
    return folder / "run"


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command ``export`` makes of its checkpoint."""
    out = tmp_path_factory.mktemp("export") / "hf"
    assert export.main([str(run), str(out)]) == 0
    return out


def load(model_dir: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()


@torch.no_grad()
def right_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """Sum over the prompts of the logprob of the right answer and its end."""
    total = 0.0
    for a, b in SUMS:
        turns = [*conversation(a, b)[2:], {"role": "assistant", "content": f"{a} + {b} = {a + b}"}]
        ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]
        ids = ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id)]
        asked = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
        start = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
        logprobs = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1].log_softmax(-1)
        total += float(logprobs.gather(-1, torch.tensor(ids[start:])[:, None]).sum())
    return total


def test_three_steps_are_on_policy_and_make_right_answers_more_likely(run, exported, smollm2_dir, tokenizer):
    with next(run.glob("logs/version_*/metrics.csv")).open() as file:
        steps = [row for row in csv.DictReader(file) if row["reward"]]
    assert len(steps) == 3
    assert all(float(step[MISMATCH]) < 1e-4 for step in steps)
    assert all(float(step["grad_norm"]) > 0 for step in steps)
    before, after = (right_answers(load(path), tokenizer) for path in (smollm2_dir, exported))
    assert after > before + 0.1


def test_export_of_the_checkpoint_equals_the_export_of_the_run(run, exported, smollm2_dir):
    weights, of_run = load(exported).state_dict(), load(run / "hf" / "last").state_dict()
    assert weights.keys() == of_run.keys() == load(smollm2_dir).state_dict().keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, of_run[name], rtol=0, atol=0)


def test_chat_answers_as_the_exported_model_does(exported, tokenizer, capsys, monkeypatch):
    question = "What is the capital of France?"
    monkeypatch.setattr("sys.stdin", io.StringIO(question + "\n"))
    assert chat.main([str(exported), "--max_completion_length", "12"]) == 0
    answer = capsys.readouterr().out
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    found = load(exported).generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert answer == tokenizer.decode(found, skip_special_tokens=True) + "\n"
    assert "Paris" in answer
