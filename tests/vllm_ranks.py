"""Two training ranks on this CPU with vLLM engines; started by test_vllm_training.py, prints one JSON line a rank.

python vllm_ranks.py MODEL_DIR WORK_DIR TENSOR_PARALLEL_SIZE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from runs import fit
from vllm_cases import even_tokens, small_engine


def main(model_dir: str, work_dir: str, tensor_parallel_size: int) -> None:
    sampled: list[list[int]] = []

    def watch(module):
        original = module.generator.generate

        def generate(*args):
            rollouts = original(*args)
            sampled.append(rollouts.completion_ids.tolist())
            return rollouts

        module.generator.generate = generate

    torch.set_num_threads(1)
    engine = small_engine(tensor_parallel_size=tensor_parallel_size, max_model_length=64)
    ranks = {"devices": 2, "strategy": "ddp"}
    module = fit(
        model_dir, Path(work_dir), max_steps=2, trainer=ranks, on_module=watch, generator=engine, rewards=[even_tokens]
    )
    total = sum(parameter.double().abs().sum().item() for parameter in module.policy.parameters())
    found = {"rank": module.global_rank, "weights": total, "sampled": sampled, "metrics": module.step_metrics}
    print("FOUND " + json.dumps(found | {"group": torch.distributed.get_world_size()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
