"""Every shape of config through migrate, --print_config and a run, against a run of TRL's of the same file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from recorded_runs import Recorded, run_migrated, run_trl, write_config

STEPS = {"eval_strategy": "steps", "save_strategy": "steps"}
SHAPES: dict[str, dict[str, Any]] = {
    # 2 prompts a step; evaluated and saved at each.
    "a batch is a step": STEPS | {"eval_steps": 1, "save_steps": 1},
    # 4 micro-batches are generated at once and make 2 optimizer steps.
    "two updates on a generation": STEPS
    | {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "max_steps": 4,
        "eval_steps": 2,
        "save_steps": 4,
        "num_generations_eval": 1,
    },
    # Each generation makes half of an optimizer step.
    "two generations for an update": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "steps_per_generation": 2,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 2,
    },
    "two passes over a generation": {
        "num_iterations": 2,
        "max_steps": 4,
        "beta": 0.04,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "conversational": True,
    },
    # The length of the run is the data's: 12 prompts, 4 a step, twice; a third of it is warm-up.
    "epochs with a share of warm-up": {
        "max_steps": None,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "warmup_steps": 0.3,
        "lr_scheduler_type": "cosine",
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
    },
    "shares of the run": STEPS | {"max_steps": 4, "eval_steps": 0.5, "save_steps": 0.2, "save_total_limit": 1},
    "a generation batch, adapters": {
        "generation_batch_size": 8,
        "per_device_train_batch_size": 4,
        "use_peft": True,
        "optim": "sgd",
        "lr_scheduler_type": "polynomial",
        "max_steps": 2,
    },
    # 2 micro-batches of one group each.
    "four generations in two micro-batches": STEPS
    | {
        "num_generations": 4,
        "per_device_eval_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "loss_type": "grpo",
        "scale_rewards": False,
        "importance_sampling_level": "sequence",
        "beta": 0.04,
        "temperature": 0.7,
        "eval_steps": 2,
        "save_steps": 0.5,
    },
    # 4 prompts are generated at once; 2 updates on them, twice.
    "two passes of two updates, without truncated ones": {
        "per_device_train_batch_size": 4,
        "steps_per_generation": 2,
        "num_iterations": 2,
        "max_steps": 4,
        "loss_type": "dr_grpo",
        "scale_rewards": "batch",
        "mask_truncated_completions": True,
        "lr_scheduler_type": "cosine_with_restarts",
        "warmup_steps": 1,
    },
    "messages with a system prompt, adapters of PEFT's default": {
        "conversational": "You add numbers.",
        "max_steps": None,
        "num_train_epochs": 1,
        "use_peft": True,
        "lora_r": 4,
        "lora_alpha": 8,
        "loss_type": "bnpo",
        "lr_scheduler_type": "inverse_sqrt",
        "warmup_steps": 2,
        "epsilon_high": 0.28,
    },
    "cispo, evaluated with other groups": STEPS
    | {
        "loss_type": "cispo",
        "scale_rewards": "none",
        "epsilon_high": 5.0,
        "num_generations_eval": 2,
        "eval_steps": 1,
        "save_steps": 2,
        "lr_scheduler_type": "constant",
        "top_p": 0.9,
    },
    # In the manner of open-r1's recipes for code: a step of its own size, a share for saving, strict clipping of gradients.
    "open-r1's code recipe": STEPS
    | {
        "eval_strategy": "no",
        "beta": 0.0,
        "loss_type": "dr_grpo",
        "scale_rewards": False,
        "gradient_accumulation_steps": 2,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 0.25,
        "max_grad_norm": 0.2,
        "mask_truncated_completions": True,
        "temperature": 0.7,
        "max_steps": 4,
        "save_steps": 0.3,
        "save_total_limit": 1,
    },
    # ... and for mathematics: a generation for two of its four accumulated micro-batches.
    "open-r1's merges recipe": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "generation_batch_size": 4,
        "beta": 0.0,
        "warmup_steps": 0,
        "lr_scheduler_type": "constant_with_warmup",
        "epsilon": 0.2,
        "max_steps": 2,
    },
    "open-r1's SmolLM recipe": {
        "num_iterations": 4,
        "beta": 0.01,
        "gradient_accumulation_steps": 2,
        "max_steps": 8,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.25,
        "sync_ref_model": True,
        "ref_model_mixup_alpha": 0.6,
        "ref_model_sync_steps": 2,
    },
    "half an epoch": {
        "max_steps": None,
        "num_train_epochs": 0.5,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "epoch",
        "conversational": True,
    },
    "two epochs of which three steps are warm-up": {
        "max_steps": None,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 6,
        "gradient_accumulation_steps": 2,
        "warmup_steps": 3,
        "lr_scheduler_type": "linear",
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
    },
    "warm-up, plateau and decay": {
        "max_steps": 6,
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": 2, "min_lr_ratio": 0.1},
        "warmup_steps": 2,
        "optim": "adamw_torch",
        "adam_beta2": 0.99,
        "weight_decay": 0.1,
    },
    "sapo with larger groups": {
        "loss_type": "sapo",
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "beta": 0.001,
        "scale_rewards": "batch",
        "importance_sampling_level": "token",
        "max_steps": 3,
        "lr_scheduler_type": "constant",
    },
    "the tokens of highest entropy": {
        "top_entropy_quantile": 0.2,
        "loss_type": "dapo",
        "epsilon_high": 0.28,
        "steps_per_generation": 2,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "lr_scheduler_type": "polynomial",
        "eval_strategy": "no",
    },
    "adapters of an alpaca recipe, saved by steps and evaluated by epochs": {
        "use_peft": True,
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "lora_target_modules": ["q_proj", "v_proj"],
        "max_steps": 6,
        "eval_strategy": "epoch",
        "save_strategy": "steps",
        "save_steps": 3,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": 1.0e-4},
    },
    "no tricks, but groups that span micro-batches": {
        "num_generations": 4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "top_k": 20,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_migrated_config_runs_as_trl_runs_it(shape, tiny_model_dir: Path, tmp_path: Path, monkeypatch):
    theirs = run_trl(write_config(tmp_path / "trl", tiny_model_dir, dict(SHAPES[shape])), monkeypatch)
    ours = run_migrated(write_config(tmp_path / "ours", tiny_model_dir, dict(SHAPES[shape])))
    assert ours.learning_rates == pytest.approx(theirs.learning_rates, abs=1e-12)  # hence as many optimizer steps
    assert ours.prompts == theirs.prompts
    assert without_greedy(ours) == theirs.evaluated
    assert ours.checkpoints == theirs.checkpoints
    assert ours.trained == theirs.trained
    assert ours.objective == theirs.objective
    assert 0 < ours.longest <= 6 and 0 < theirs.longest <= 6


def without_greedy(record: Recorded) -> dict[int, Counter[str]]:
    """Ours scores one greedy completion of each held-out prompt beside those that are sampled as in TRL."""
    return {step: counts - Counter(counts.keys()) for step, counts in record.evaluated.items()}
