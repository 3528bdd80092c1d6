"""VLLMColocate against a bare LLM.generate loop on the same engine, prompts and lengths; and the time of a weight sync.

python benchmarks/generation.py --device cpu --shape tiny     # writes benchmarks/results/generation_tiny_cpu.json
python benchmarks/generation.py --device cuda --shape 0.5b    # one GPU, 64 prompts x 8, up to 1,024 tokens

One engine in this process serves every variant, --rounds times in turn, so that they share its graphs, its memory and
its moods. The model is random (sides/make_model.py): about one token in mean_length ends a completion. Variants differ in
one thing each from `bare`, which asks as a user would who wants token ids and their logprobs:

- bare: llm.generate, one request a prompt with n, logprobs=0, no text made
- text: the same with detokenize=True, vLLM's default
- no_logprobs: the same without logprobs
- single_requests: every prompt n times with n=1
- flat_logprobs: the same with vLLM's flat list of logprobs instead of one dictionary a token
- colocate: VLLMColocate as training calls it
- colocate_seeded: the same with seed_per_prompt, a generator of random numbers for each completion
- own_bookkeeping: colocate with vLLM's own bookkeeping of each token

Variants without logprobs or with flat ones have the shortened bookkeeping too, since they ask for nothing that it leaves out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402 - reads the environment
from sides.command import this_command  # noqa: E402
from sides.make_model import make_model  # noqa: E402
from sides.record import versions  # noqa: E402
from sides.workload import WORKLOADS, Workload, word_problems  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel  # noqa: E402

from grpo_lightning.generation import SamplingSettings, VLLMColocate  # noqa: E402
from grpo_lightning.policy.end_of_sequence import end_of_sequence_ids  # noqa: E402

ENGINE_ON_CPU = {"enforce_eager": True, "kv_cache_memory_gb": 1.0}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=WORKLOADS, default="tiny")
    parser.add_argument("--prompts", type=int, help="prompts a step; by default the shape's")
    parser.add_argument("--max-completion-length", type=int)
    parser.add_argument("--mean-length", type=int, help="of completions, before the limit cuts them")
    parser.add_argument("--rounds", type=int, default=5, help="how often each variant runs; the first does not count")
    parser.add_argument("--syncs", type=int, default=10)
    parser.add_argument("--variants", nargs="+", help="some of them; by default all")
    parser.add_argument("--engine-options", type=json.loads, default={}, help="JSON: arguments of VLLMColocate")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "generation", help="model and prompts")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/generation_<shape>_<device>.json")
    return parser.parse_args()


def prepare(options: argparse.Namespace) -> tuple[Workload, PreTrainedModel, Any, list[list[int]]]:
    """The model directory and token ids of the prompts, through the chat template."""
    given = {
        "prompts_per_step": options.prompts,
        "max_completion_length": options.max_completion_length,
        "mean_length": options.mean_length,
    }
    changed = {name: value for name, value in given.items() if value is not None}
    workload = replace(WORKLOADS[options.shape], device=options.device, **changed)
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    rows = word_problems(max(256, workload.prompts_per_step))
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model_dir = folder / f"{workload.shape}-{workload.mean_length}"
    make_model(workload.shape, prompts, model_dir, workload.mean_length)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    policy = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype).to(options.device)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    conversations = [row["prompt"] for row in rows[: workload.prompts_per_step]]
    encoded = tokenizer.apply_chat_template(conversations, add_generation_prompt=True)
    ids = encoded["input_ids"] if not isinstance(encoded, list) else encoded
    return replace(workload, model=str(model_dir)), policy, tokenizer, ids


class Variants:
    """Each returns the sampled tokens of one call.

    Args:
        generator: Started, with the policy's weights.
        prompts: B lists of ids.
        sampling: What to sample.
        eos_ids: What ends a completion.
    """

    def __init__(
        self, generator: VLLMColocate, prompts: list[list[int]], sampling: SamplingSettings, eos_ids: list[int]
    ) -> None:
        self.generator, self.prompts, self.sampling, self.eos_ids = generator, prompts, sampling, eos_ids

    def _bare(self, repeats: int = 1, **changes: Any) -> int:
        """A plain loop: ask, then read token ids and logprobs as a trainer has to."""
        from vllm import SamplingParams

        assert self.generator._engine is not None
        settings: dict[str, Any] = {
            "n": self.sampling.num_generations,
            "max_tokens": self.sampling.max_completion_length,
            "temperature": self.sampling.temperature,
            "logprobs": 0,
            "detokenize": False,
            "ignore_eos": True,
            "stop_token_ids": self.eos_ids,
        }
        params = SamplingParams(**(settings | changes))
        asked = [{"prompt_token_ids": ids} for ids in self.prompts for _ in range(repeats)]
        outputs = self.generator._engine.llm.generate(asked, params, use_tqdm=False)
        tokens = 0
        for output in outputs:
            for completion in output.outputs:
                ids = list(completion.token_ids)
                tokens += len(ids)
                if changes.get("flat_logprobs"):
                    torch.tensor(completion.logprobs.logprobs)
                elif settings["logprobs"] is not None and changes.get("logprobs", 0) is not None:
                    torch.tensor([row[token].logprob for row, token in zip(completion.logprobs, ids, strict=True)])
        return tokens

    def run(self, name: str) -> int:
        """Runs the variant of this name, as the module's docstring describes it."""
        if name.startswith("colocate"):
            return self._colocate(seeded=name == "colocate_seeded")
        if name == "own_bookkeeping":
            with self._own_bookkeeping():
                return self._colocate(seeded=False)
        changes = {
            "bare": {},
            "text": {"detokenize": True},
            "no_logprobs": {"logprobs": None},
            "single_requests": {"n": 1, "repeats": self.sampling.num_generations},
            "flat_logprobs": {"flat_logprobs": True},
        }
        return self._bare(**changes[name])

    @contextmanager
    def _own_bookkeeping(self) -> Iterator[None]:
        """Inside, nothing stands before the methods of vLLM's scheduler."""
        assert self.generator._engine is not None
        scheduler = self.generator._engine.llm.llm_engine.engine_core.engine_core.scheduler
        places = [(vars(scheduler), "update_from_output"), (vars(scheduler.kv_cache_manager), "allocate_slots")]
        short = [(own, name, own.pop(name)) for own, name in places if name in own]
        try:
            yield
        finally:
            for own, name, method in short:
                own[name] = method

    def _colocate(self, seeded: bool) -> int:
        self.generator.seed_per_prompt = seeded
        seeds = [time.monotonic_ns() % 2**31 + n for n in range(len(self.prompts))]
        return self.generator.generate(self.prompts, self.sampling, seeds).completion_ids.numel()


VARIANTS = (
    "bare",
    "text",
    "no_logprobs",
    "single_requests",
    "flat_logprobs",
    "colocate",
    "colocate_seeded",
    "own_bookkeeping",
)


def timed(device: str, work: Callable[[], int]) -> dict[str, float]:
    """Wall and CPU seconds of a call that returns a number of tokens."""
    if device == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return {"tokens": tokens, "seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def summary(runs: list[dict[str, float]]) -> dict[str, float]:
    """Medians; tokens a second of each run, since every run samples its own completions."""
    median = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    speeds = sorted(run["tokens"] / run["seconds"] for run in runs)
    cpu = statistics.median(run["tokens"] / run["cpu_seconds"] for run in runs)
    return median | {
        "tokens_per_second": statistics.median(speeds),
        "slowest": speeds[0],
        "fastest": speeds[-1],
        "tokens_per_cpu_second": cpu,
    }


def main() -> None:
    options = parse()
    if options.device == "cpu":
        torch.set_num_threads(1)
    workload, policy, tokenizer, prompts = prepare(options)
    sampling = SamplingSettings(workload.num_generations, workload.max_completion_length, workload.temperature)
    longest = max(map(len, prompts)) + workload.max_completion_length
    settings = (ENGINE_ON_CPU if options.device == "cpu" else {}) | {"max_model_length": longest}
    generator = VLLMColocate(**(settings | options.engine_options))
    started = time.perf_counter()
    generator.start(policy, tokenizer, workload.model)
    result: dict[str, Any] = {"engine_start_seconds": time.perf_counter() - started}
    try:
        syncs = [generator.update_weights(policy) for _ in range(options.syncs)]
        variants = Variants(generator, prompts, sampling, sorted(end_of_sequence_ids(policy, tokenizer)))
        names = options.variants or VARIANTS
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for _ in range(options.rounds + 1):
            for name in names:
                generator._engine.llm.reset_prefix_cache()  # type: ignore[union-attr]  # as after an update
                runs[name].append(timed(options.device, partial(variants.run, name)))
    finally:
        generator.stop()
    result["variants"] = {name: summary(found[1:]) for name, found in runs.items()}
    steady = syncs[2:] or syncs  # the first sends what later ones need not
    result["weight_sync"] = {name: statistics.median(s[name] for s in steady) for name in steady[0]}
    result["first_weight_sync_seconds"] = syncs[0]["weight_sync/seconds"]
    if {"own_bookkeeping", "colocate"} <= result["variants"].keys():
        own, ours = (result["variants"][name] for name in ("own_bookkeeping", "colocate"))
        result["colocate_over_own_bookkeeping"] = ours["tokens_per_second"] / own["tokens_per_second"]
    if {"bare", "colocate"} <= result["variants"].keys():
        bare, ours = (result["variants"][name] for name in ("bare", "colocate"))
        result["colocate_over_bare"] = ours["tokens_per_second"] / bare["tokens_per_second"]
        result["colocate_over_bare_cpu"] = ours["tokens_per_cpu_second"] / bare["tokens_per_cpu_second"]
    result |= {
        "command": this_command("benchmarks/generation.py"),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "workload": workload.options(),
        "end_of_sequence_ids": len(variants.eos_ids),
        "versions": versions(),
    }
    out = options.out or ROOT / "benchmarks" / "results" / f"generation_{options.shape}_{options.device}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
