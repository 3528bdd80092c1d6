"""TRL's GRPOTrainer and this project side by side on prompts with images: the same model, pictures, questions, reward, sampling.

python benchmarks/vision_vs_trl.py --device cpu --shape nano                 # to see that it runs
python benchmarks/vision_vs_trl.py --device cuda --shape 3b --dtype mixed    # one GPU, vLLM colocated on both sides

As ``vs_trl.py``, whose options and figures it has. The model is a random one of Qwen2.5-VL's shape, its vision tower frozen on
both sides. ``--sampler transformers`` samples without vLLM on both.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import cast

import vs_trl
from sides.vision_workload import VISION_WORKLOADS, VisionWorkload, write_rows

BENCHMARK = "vision_vs_trl"
SIDES = {side: ("sides.vision_side", side) for side in vs_trl.SIDES}
OF_LANGUAGE = "training_tflops_on_useful_tokens"
"""Counts all parameters for each token; a frozen tower has no backward pass, and few tokens go through it."""


def prepare(workload: VisionWorkload, folder: Path) -> VisionWorkload:
    """Writes pictures, questions and the model directory, and says where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts, model = folder / "prompts.jsonl", folder / "model"
    write_rows(prompts, (workload.warmup_steps + workload.steps) * workload.prompts_per_step, workload.image_size)
    options = {"shape": workload.shape, "prompts": prompts, "out": model, "mean-length": workload.mean_length}
    made = ("sides.make_vision_model", *(f"--{name}={value}" for name, value in options.items()))
    vs_trl._run(*made, device=workload.device)
    return replace(workload, model=str(model), prompts=str(prompts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments, found = vs_trl.parse(parser, VISION_WORKLOADS, "nano")
    workload = prepare(cast(VisionWorkload, found), vs_trl.folder_of(arguments, BENCHMARK))
    results = vs_trl.compare(BENCHMARK, arguments, workload, SIDES)
    for side in SIDES:
        results.get(side, {}).pop(OF_LANGUAGE, None)
    results["sampler"] = "vllm" if workload.uses_vllm else "transformers"
    vs_trl.report(BENCHMARK, arguments, results)


if __name__ == "__main__":
    main()
