"""verl 0.9.1 on the workload of vs_trl.py, by the switches that its configuration offers for speed. Not run yet.

pip install 'verl[vllm]==0.9.1'        # in an environment of its own: torch 2.11.0, vLLM 0.24.0, transformers 5.9.0
python benchmarks/peers/verl_run.py --shape 0.5b --folder runs/verl --print-only
python benchmarks/peers/verl_run.py --shape 0.5b --folder runs/verl

Every override was looked up in verl's ``_generated_ppo_trainer.yaml`` (``--check`` does it again, with the installed one). The
console logger prints ``timing_s/step`` and ``timing_s/gen`` of each step. ``README.md`` says what each switch does there.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from sides.workload import WORKLOADS, Workload, word_problems  # noqa: E402

MAX_PROMPT_LENGTH = 512


def compute_score(data_source: str, solution_str: str, ground_truth: str, **further: Any) -> float:
    """Share of characters with an even code: cheap, and different for each completion. verl's form of a reward."""
    return sum(ord(character) % 2 == 0 for character in solution_str) / max(1, len(solution_str))


def overrides(workload: Workload, model: Path, prompts: Path, steps: int) -> dict[str, Any]:
    """What verl's command line is given, by dotted name.

    Args:
        workload: Sizes; one GPU.
        model: Directory in Hugging Face format.
        prompts: Parquet.
        steps: Of training.
    """
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    longest = MAX_PROMPT_LENGTH + workload.max_completion_length
    return {
        "algorithm.adv_estimator": "grpo",
        "data.train_files": prompts,
        "data.val_files": prompts,
        "data.train_batch_size": workload.prompts_per_step,
        "data.max_prompt_length": MAX_PROMPT_LENGTH,
        "data.max_response_length": workload.max_completion_length,
        "data.shuffle": False,
        "actor_rollout_ref.model.path": model,
        "actor_rollout_ref.model.use_remove_padding": True,
        "actor_rollout_ref.model.use_fused_kernels": True,
        "actor_rollout_ref.model.fused_kernel_options.impl_backend": "triton",
        "actor_rollout_ref.model.enable_gradient_checkpointing": workload.gradient_checkpointing,
        f"{actor}.use_dynamic_bsz": True,
        f"{actor}.ppo_max_token_len_per_gpu": max(workload.max_tokens_per_microbatch, longest),
        f"{actor}.ppo_mini_batch_size": workload.prompts_per_step,
        f"{actor}.use_kl_loss": False,
        f"{actor}.optim.lr": workload.learning_rate,
        f"{rollout}.name": "vllm",
        f"{rollout}.n": workload.num_generations,
        f"{rollout}.temperature": workload.temperature,
        f"{rollout}.tensor_model_parallel_size": 1,
        f"{rollout}.gpu_memory_utilization": workload.gpu_memory_utilization,
        f"{rollout}.free_cache_engine": False,
        f"{rollout}.max_num_seqs": workload.prompts_per_step * workload.num_generations,
        "reward.custom_reward_function.path": Path(__file__).resolve(),
        "trainer.n_gpus_per_node": 1,
        "trainer.nnodes": 1,
        "trainer.logger": "[console]",
        "trainer.val_before_train": False,
        "trainer.save_freq": -1,
        "trainer.test_freq": -1,
        "trainer.total_training_steps": steps,
    }


def write_prompts(path: Path, count: int) -> None:
    """Prompts of the workload in the columns that verl reads."""
    from datasets import Dataset

    rows = [
        {"prompt": row["prompt"], "data_source": "workload", "reward_model": {"style": "rule", "ground_truth": ""}}
        | {"extra_info": {"index": i}}
        for i, row in enumerate(word_problems(count))
    ]
    Dataset.from_list(rows).to_parquet(str(path))


def unknown_names(names: list[str], config: Path) -> list[str]:
    """Names that verl's generated configuration does not have."""
    import yaml

    tree, unknown = yaml.safe_load(config.read_text()), []
    for name in names:
        place = tree
        for part in name.split("."):
            place = place.get(part, KeyError) if isinstance(place, dict) else KeyError
        if place is KeyError:
            unknown.append(name)
    return unknown


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=WORKLOADS, default="0.5b")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "verl")
    parser.add_argument("--print-only", action="store_true", help="show the command")
    parser.add_argument("--check", type=Path, nargs="?", const=Path(), help="verl's _generated_ppo_trainer.yaml")
    return parser.parse_args()


def main() -> None:
    options = parse()
    workload = WORKLOADS[options.shape]
    model, prompts = options.folder / "model", options.folder / "prompts.parquet"
    given = overrides(workload, model, prompts, options.steps)
    if options.check is not None:
        found = importlib.util.find_spec("verl") if options.check == Path() else None
        folder = Path(str(found.origin)).parent / "trainer" / "config" if found is not None else options.check.parent
        unknown = unknown_names(list(given), folder / "_generated_ppo_trainer.yaml")
        raise SystemExit(f"verl does not know {', '.join(unknown)}" if unknown else 0)
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *(f"{name}={value}" for name, value in given.items())]
    print(" \\\n  ".join(command))
    if options.print_only:
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    count = workload.prompts_per_step * options.steps
    write_prompts(prompts, count)
    as_lines = options.folder / "prompts.jsonl"
    as_lines.write_text("".join(json.dumps(row) + "\n" for row in word_problems(count)))
    made = {"shape": options.shape, "prompts": as_lines, "out": model, "mean-length": workload.mean_length}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])}
    maker = [sys.executable, "-m", "sides.make_model", *(f"--{name}={value}" for name, value in made.items())]
    subprocess.run(maker, env=environment, check=True)
    subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main()
