"""Grade school mathematics with a 0.5B model on one GPU, from Python: modules, data and Lightning's Trainer.

    python examples/gsm8k_0.5b.py

Hardware: one GPU with 40 GB or more, vLLM installed. A good run: `reward` and `val/accuracy` climb within the first 200
steps. configs/gsm8k_qwen2.5_0.5b.yaml is the same as a config.
"""

from __future__ import annotations

import argparse
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from grpo_lightning import GRPODataModule, GRPOModule, get_reward_functions
from grpo_lightning.callbacks import Alarms, HuggingFaceExport, RunPlan
from grpo_lightning.callbacks.completions import CompletionWriter
from grpo_lightning.datamodules.converters import GSM8KDatasetConverter

SYSTEM_PROMPT = "Think step by step between <think> and </think>, then give the number between <answer> and </answer>."


def make_module(model: str, max_completion_length: int = 512) -> GRPOModule:
    """The policy, its rewards and the objective."""
    return GRPOModule(
        model_name_or_path=model,
        rewards=get_reward_functions("accuracy,format"),
        reward_weights=[1.0, 0.2],
        num_generations=8,
        max_completion_length=max_completion_length,
        epsilon_high=0.28,
        optimizer=lambda params: torch.optim.AdamW(params, lr=1e-6, betas=(0.9, 0.99), weight_decay=0.0),
    )


def make_data(dataset: Any, batch_size: int) -> GRPODataModule:
    """Questions as conversations, with the number after #### as ground_truth."""
    converter = GSM8KDatasetConverter(conversational=True, system_prompt=SYSTEM_PROMPT)
    return GRPODataModule(dataset=dataset, converter=converter, batch_size=batch_size, max_prompt_length=512)


def make_trainer(root: str, max_steps: int, **settings: Any) -> L.Trainer:
    """Lightning's Trainer with what the command line adds to it."""
    callbacks = [RunPlan(), Alarms(), CompletionWriter(), HuggingFaceExport()]
    checkpoint = ModelCheckpoint(f"{root}/checkpoints", every_n_train_steps=50, save_last=True)
    return L.Trainer(
        default_root_dir=root,
        max_steps=max_steps,
        logger=CSVLogger(root, name="logs", flush_logs_every_n_steps=1),
        callbacks=[*callbacks, checkpoint],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        **settings,
    )


def main(args: list[str] | None = None) -> None:
    """Trains; every argument has a default for one large GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B-Instruct")
    parser.add_argument("--dataset", help="a local file in place of openai/gsm8k")
    parser.add_argument("--root", default="runs/gsm8k_0.5b_script")
    parser.add_argument("--max_steps", type=int, default=500)
    parser.add_argument("--batch_size", type=int, default=64, help="questions per step; each gets 8 completions")
    parser.add_argument("--max_completion_length", type=int, default=512, help="tokens")
    parser.add_argument("--precision", default="bf16-mixed")
    options = parser.parse_args(args)
    dataset = options.dataset or {"hf_hub_url": "openai/gsm8k", "subset": "main", "split": "train"}
    trainer = make_trainer(options.root, options.max_steps, precision=options.precision)
    module = make_module(options.model, options.max_completion_length)
    trainer.fit(module, datamodule=make_data(dataset, options.batch_size))


if __name__ == "__main__":
    main()
