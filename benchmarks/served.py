"""What a vLLM server does for each token of 64 prompts x 8: process seconds of the one that answers and of its engine.

python benchmarks/served.py                     # a toy on a CPU, three minutes
python benchmarks/served.py --device cuda --shape 0.5b

``own`` is vLLM's scheduler and ``/v1/completions``; ``ours`` hands over whole completions as tokens (docs/vllm.md, "What bounds the
time"). Tokens and logprobs of the last round are compared. Medians of the rounds after the first. Threads that wait actively count
as busy: on a CPU the engine has one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from sides.command import this_command
from sides.make_model import make_model
from sides.ports import free_port
from sides.record import versions
from sides.workload import word_problems
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_lightning.generation import SamplingSettings, VLLMServer
from grpo_lightning.generation.vllm.serving.endpoints import TEXT
from grpo_lightning.types import Rollouts

ROOT = Path(__file__).resolve().parents[1]
MEAN_LENGTH = {"nano": 170, "0.5b": 220}
LIMIT = {"nano": 256, "0.5b": 1024}
OWN = ["--scheduler-cls", "vllm.v1.core.sched.scheduler.Scheduler"]
ON_CPU = ["--enforce-eager", "--kv-cache-memory-bytes", str(2**30), "--max-num-seqs", "512"]
ON_CPU += ["--distributed-executor-backend", "vllm.v1.executor.uniproc_executor.UniProcExecutor"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=MEAN_LENGTH, default="nano")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--server-gpus", default="0", help="the policy is on the first")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "served")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/served_<shape>_<device>.json")
    return parser.parse_args()


def process_seconds(server: psutil.Process) -> dict[str, float]:
    """Of the process that answers, and of its engine's with all below it."""
    answering, engine = server.cpu_times(), 0.0
    for child in server.children(recursive=True):
        times = child.cpu_times()
        engine += times.user + times.system
    return {"answering": answering.user + answering.system, "engine": engine}


def measured(options: argparse.Namespace, is_own: bool, model: Path, prompts: Path) -> tuple[dict[str, Any], Rollouts]:
    """One server: medians of its rounds, and what it answered last."""
    on_gpu, limit = options.device == "cuda", LIMIT[options.shape]
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16 if on_gpu else torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()][:64]
    ids = [tokenizer.apply_chat_template(text, add_generation_prompt=True, return_dict=False) for text in texts]
    arguments = ([] if on_gpu else ON_CPU) + (OWN if is_own else [])
    where = {"launch_gpus": options.server_gpus, "weight_transfer": "files"} if on_gpu else {"weight_transfer": "files"}
    generator = VLLMServer(
        port=free_port(), launch=True, launch_arguments=arguments, max_model_length=limit + 256, timeout=400, **where
    )
    sampling = SamplingSettings(num_generations=8, max_completion_length=limit, temperature=1.0)
    rounds: list[dict[str, float]] = []
    generator.start(policy, tokenizer, str(model))
    try:
        generator.update_weights(policy)
        if is_own:
            generator._endpoint = TEXT
        assert generator.launched is not None and generator.launched.process.pid is not None
        server = psutil.Process(generator.launched.process.pid)
        for n in range(options.rounds):
            before, started = process_seconds(server), time.perf_counter()
            rollouts = generator.generate(ids, sampling, [n * 1000 + seed for seed in range(len(ids))])
            seconds, after = time.perf_counter() - started, process_seconds(server)
            tokens = int(rollouts.completion_lengths.sum())
            rounds.append(
                {"seconds": seconds, "tokens": tokens, **{name: after[name] - before[name] for name in after}}
            )
    finally:
        generator.stop()
    counted = rounds[1:] or rounds
    medians = {name: round(statistics.median(each[name] for each in counted), 3) for name in rounds[0]}
    return medians | {"us_a_token": round(1e6 * medians["answering"] / medians["tokens"], 2)}, rollouts


def main() -> None:
    options = parse()
    if options.device == "cpu":
        os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TORCH_COMPILE_DISABLE": "1"}
    options.folder.mkdir(parents=True, exist_ok=True)
    prompts, model = options.folder / "prompts.jsonl", options.folder / f"model_{options.shape}"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in word_problems(64)))
    make_model(options.shape, prompts, model, MEAN_LENGTH[options.shape])
    own, expected = measured(options, True, model, prompts)
    ours, found = measured(options, False, model, prompts)
    result = {
        "command": this_command("benchmarks/served.py"),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "versions": versions(),
        "same_tokens": torch.equal(found.completion_ids, expected.completion_ids),
        "largest_difference_of_logprobs": float((found.sampling_logprobs - expected.sampling_logprobs).abs().max())
        if found.sampling_logprobs.shape == expected.sampling_logprobs.shape
        else None,
        "process_seconds_ratio": {name: round(own[name] / ours[name], 2) for name in ("answering", "engine")},
        "seconds_ratio": round(own["seconds"] / ours["seconds"], 2),
        "own": own,
        "ours": ours,
    }
    out = options.out or ROOT / "benchmarks" / "results" / f"served_{options.shape}_{options.device}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
