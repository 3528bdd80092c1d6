"""What two training ranks on this CPU do with vLLM engines, for test_vllm_training.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from runs import fit, make_data, make_trainer, write_prompts
from vllm_cases import PROMPTS, SEEDS, SETTINGS, TOKENIZER, ending_model, even_tokens, small_engine

from grpo_lightning.distributed.sharding import whole
from grpo_lightning.rollouts.dynamic_sampling import DynamicSampling


def even_tokens_of_later_prompts(completions_ids, ground_truth, **columns):
    """Equal inside the groups of the first three prompts, which the first rank has."""
    is_later = [int(answer) // 2 % 6 >= 3 for answer in ground_truth]
    return [even if later else 0.0 for later, even in zip(is_later, even_tokens(completions_ids), strict=True)]


def train(model_dir: Path, folder: Path, tensor_parallel_size: int, workload: str) -> dict[str, Any]:
    """Two steps of this rank, and what it has sampled.

    With ``uneven`` the policy is sharded too, and the ranks seldom have equally much to sample: groups are refilled where
    needed, and evaluation and prediction have one prompt for both ranks.
    """
    sampled: list[list[int]] = []

    def watch(module):
        original = module.source.generator.generate

        def generate(*args):
            rollouts = original(*args)
            sampled.append(rollouts.completion_ids.tolist())
            return rollouts

        module.source.generator.generate = generate

    engine = small_engine(tensor_parallel_size=tensor_parallel_size, max_model_length=64)
    ranks = {"devices": 2, "strategy": "ddp"}
    settings = {"trainer": ranks, "on_module": watch, "generator": engine, "rewards": [even_tokens]}
    if workload == "uneven":
        one = str(write_prompts(folder / f"one{os.environ.get('LOCAL_RANK', '0')}.jsonl", 1))
        settings |= {
            "rewards": [even_tokens_of_later_prompts],
            "dynamic_sampling": DynamicSampling(mode="refill", max_rounds=2),
            "num_generations_eval": 2,
            "data": {"eval_dataset": one, "shuffle": False},
        }
        ranks["strategy"] = "fsdp2"
        settings["trainer"] = ranks | {"val_check_interval": 1}
    module = fit(model_dir, folder, max_steps=2, **settings)
    if workload == "uneven":
        data = make_data(folder, eval_dataset=one)
        make_trainer(folder, **ranks).predict(module, data)
    total = sum(whole(parameter.detach()).double().abs().sum().item() for parameter in module.policy.model.parameters())
    found = {"rank": module.global_rank, "weights": total, "sampled": sampled, "metrics": module.step_metrics}
    return found | {"group": torch.distributed.get_world_size()}


def shared_memory_of_an_engine() -> dict[str, Any]:
    """Has an engine between two ranks sample; what this rank shares then. The rank ends without ending the engine."""
    torch.distributed.init_process_group("gloo", rank=int(os.environ["LOCAL_RANK"]))
    policy = ending_model(num_key_value_heads=2)
    generator = small_engine(tensor_parallel_size=2)
    generator.start(policy, TOKENIZER, "toy")
    generator.update_weights(policy)
    rollouts = generator.generate(PROMPTS, SETTINGS, SEEDS)
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = {line.split(maxsplit=5)[5] for line in maps if "cpushm" in line}
    return {"mapped": mapped, "sampled": rollouts.completion_ids.tolist()}
