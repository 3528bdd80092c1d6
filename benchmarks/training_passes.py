"""Forward and backward passes of one GRPO step alone, one change at a time: layout, budget, kernels, recomputation.

python benchmarks/training_passes.py --device cuda --shape 1.5b    # writes benchmarks/results/training_passes_1.5b_cuda.json
python benchmarks/training_passes.py --device cuda --shape 1.5b --trace passes.json.gz   # also: what the GPU does in them
python benchmarks/training_passes.py --device cpu --shape nano     # seconds, to see that it runs

The batch of the prototype that the project started from: 64 prompts of 60 to 199 tokens x 8 completions, about 270 tokens
long on average, at most 1,024. Useful tokens are prompt and completion tokens of every completion, as a trainer without
padding and without sharing would compute them; operations are 6 per parameter and useful token. ``gradient_error`` is the
distance of the whole gradient of the first prompts from that of the same weights in float32, padded, relative to its norm.
On a GPU weights are float32 and computed with in bfloat16 (``bf16-mixed``), or held in bfloat16 (``bf16-true``).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402 - reads the environment
from sides.command import this_command  # noqa: E402
from sides.make_model import SHAPES  # noqa: E402
from sides.record import versions  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.profiler import profile  # noqa: E402
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM  # noqa: E402

from grpo_lightning.policy.activation_checkpointing import Checkpointing, enable_checkpointing  # noqa: E402
from grpo_lightning.scoring.decoder_graphs import DecoderGraphs  # noqa: E402
from grpo_lightning.scoring.fast_kernels import compile_layers, liger_obstacle, use_liger_kernels  # noqa: E402
from grpo_lightning.scoring.scorer import Scorer  # noqa: E402
from grpo_lightning.scoring.weight_gradients import WeightGradients  # noqa: E402
from grpo_lightning.types import Rollouts  # noqa: E402

GRADIENTS = WeightGradients()
"""Of the linear layers on a GPU, as a run has them."""


@dataclass(frozen=True)
class Variant:
    """What differs between two measurements."""

    max_tokens: int
    layout: str = "packed"
    share_prompts: bool = True
    liger: bool = False
    compiled: bool = False
    checkpointing: Checkpointing = False
    graphs: bool = False


VARIANTS = {
    "padded": Variant(8192, layout="padded"),
    "packed": Variant(16384, share_prompts=False),
    "shared 8k": Variant(8192),
    "shared 16k": Variant(16384),
    "liger 8k": Variant(8192, liger=True),
    "liger 12k": Variant(12288, liger=True),
    "liger 16k": Variant(16384, liger=True),
    "liger 16k selective": Variant(16384, liger=True, checkpointing="selective"),
    "selective 16k": Variant(16384, checkpointing="selective"),
    "liger 16k recomputed": Variant(16384, liger=True, checkpointing=True),
    "graphs 12k": Variant(12288, liger=True, graphs=True),
    "compiled 8k": Variant(8192, compiled=True),
    "compiled graphs 12k": Variant(12288, compiled=True, graphs=True),
    "compiled 16k": Variant(16384, compiled=True),  # compiled ones last: what is registered for them stays
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="nano")
    parser.add_argument("--prompts", type=int, help="by default 64, on a CPU 4")
    parser.add_argument("--repeats", type=int, default=3, help="after one for warming up")
    parser.add_argument("--exact-prompts", type=int, default=8, help="for the gradient in float32; 0 for none")
    parser.add_argument("--precision", choices=("bf16-mixed", "bf16-true"), default="bf16-mixed", help="on a GPU")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="some of them; by default all")
    parser.add_argument("--trace", type=Path, help="a trace of one more step of the last variant, for Chrome's viewer")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/training_passes_<shape>_<device>.json")
    return parser.parse_args()


def ragged_batch(prompts: int, vocab_size: int) -> Rollouts:
    """Log-normal completion lengths, the same for the same number of prompts."""
    draw = torch.Generator().manual_seed(0)
    prompt_lengths = torch.randint(60, 200, (prompts,), generator=draw).tolist()
    lengths = torch.exp(torch.randn(prompts, 8, generator=draw) * 0.6 + math.log(220)).clamp(8, 1024).int().flatten()
    ids = lambda count: torch.randint(0, vocab_size, (count,), generator=draw).tolist()  # noqa: E731
    completions = [ids(length) for length in lengths.tolist()]
    groups = torch.arange(prompts).repeat_interleave(8).tolist()
    logprobs = [[0.0] * len(completion) for completion in completions]
    return Rollouts.from_lists(
        [ids(n) for n in prompt_lengths], completions, logprobs, [False] * len(completions), groups
    )


def first_prompts(rollouts: Rollouts, count: int) -> Rollouts:
    """The groups of the first prompts."""
    prompts, completions = rollouts.prompts()[:count], rollouts.completions()[: 8 * count]
    ids = [[one.tolist() for one in part] for part in (prompts, completions)]
    logprobs = [[0.0] * len(completion) for completion in ids[1]]
    groups = [group for group in range(len(prompts)) for _ in range(8)]
    return Rollouts.from_lists(*ids, logprobs, [False] * len(ids[1]), groups)


def make_model(shape: str, device: str, variant: Variant, precision: str) -> PreTrainedModel:
    """Random weights, the same for every variant."""
    torch.manual_seed(0)
    config = Qwen2Config(tie_word_embeddings=True, max_position_embeddings=32768, **SHAPES[shape])
    dtype = torch.bfloat16 if device == "cuda" and precision == "bf16-true" else torch.float32
    with torch.device(device):
        model = Qwen2ForCausalLM._from_config(config, dtype=dtype).train()
    enable_checkpointing(model, variant.checkpointing)
    if variant.liger:
        use_liger_kernels(model)
    if variant.compiled:
        compile_layers(model)
    elif device == "cuda":
        GRADIENTS.install(model)
    return model


def make_scorer(variant: Variant, model: PreTrainedModel) -> Scorer:
    scorer = Scorer(model, 1.0, variant.layout, variant.share_prompts)  # type: ignore[arg-type]
    scorer.keep_logits(not variant.checkpointing)
    if variant.graphs:
        scorer.use_graphs(DecoderGraphs(GRADIENTS))
    return scorer


def backward(scorer: Scorer, rollouts: Rollouts, max_tokens: int, is_mixed: bool) -> int:
    """The passes of one step on fresh gradients; returns the number of micro-batches."""
    scorer.model.zero_grad()
    device = next(scorer.model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=is_mixed):  # as Lightning has it around a step
        plan = scorer.plan(rollouts, torch.arange(rollouts.num_completions), max_tokens)
        for rows in plan:
            loss = scorer.score(rollouts, rows, with_entropy=True).logprobs.sum()
            with GRADIENTS.in_place():
                loss.backward()
    return len(plan)


def gradient(model: PreTrainedModel) -> Tensor:
    """All of it, flat, float32."""
    return torch.cat([parameter.grad.flatten().float() for parameter in model.parameters()])


def exact_gradient(shape: str, device: str, rollouts: Rollouts) -> Tensor:
    """Of padded passes in float32 on the weights of the variants."""
    variant = VARIANTS["padded"]
    model = make_model(shape, device, variant, "32-true")
    backward(make_scorer(variant, model), rollouts, variant.max_tokens, is_mixed=False)
    return gradient(model).cpu()  # the device's memory is measured


def measure(variant: Variant, scorer: Scorer, rollouts: Rollouts, repeats: int, is_mixed: bool) -> dict[str, Any]:
    """Seconds and memory."""
    parameters = list(scorer.model.parameters())
    device = parameters[0].device

    def timed() -> tuple[float, int]:
        synchronize(device)
        started = time.perf_counter()
        micro_batches = backward(scorer, rollouts, variant.max_tokens, is_mixed)
        synchronize(device)
        return time.perf_counter() - started, micro_batches

    first, _ = timed()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    runs = [timed() for _ in range(repeats)]
    seconds = statistics.median(seconds for seconds, _ in runs)
    useful = int(rollouts.prompt_lengths[rollouts.group].sum() + rollouts.completion_lengths.sum())
    is_counted = device.type == "cuda" and not variant.graphs
    operations = 6 * sum(p.numel() for p in parameters) * useful
    return asdict(variant) | {
        "seconds": round(seconds, 4),
        "first_seconds": round(first, 2),
        "micro_batches": runs[0][1],
        "useful_tokens": useful,
        "useful_tflops": round(operations / seconds / 1e12, 2),
        # Of graphs torch counts nothing when they are launched.
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if is_counted else None,
    }


def write(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """The record of the variants so far."""
    is_cuda = options.device == "cuda"
    record = {
        "command": this_command("benchmarks/training_passes.py"),
        "device": torch.cuda.get_device_name() if is_cuda else "cpu",
        "shape": options.shape,
        "precision": options.precision if is_cuda else "32-true",
        "versions": versions(),
        "variants": results,
    }
    out = options.out or ROOT / "benchmarks" / "results" / f"training_passes_{options.shape}_{options.device}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def trace(path: Path, step: Callable[[], object]) -> None:
    """Writes what host and GPU do in a step."""
    with profile() as profiler:
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    profiler.export_chrome_trace(str(path))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    options = parse()
    is_cuda = options.device == "cuda"
    is_mixed = is_cuda and options.precision == "bf16-mixed"
    rollouts = ragged_batch(options.prompts or (64 if is_cuda else 4), SHAPES[options.shape]["vocab_size"])
    without_liger = liger_obstacle(torch.device(options.device))
    few = first_prompts(rollouts, options.exact_prompts)
    exact = exact_gradient(options.shape, options.device, few) if options.exact_prompts else None
    results: dict[str, Any] = {}
    for name in options.variants or VARIANTS:
        variant = VARIANTS[name]
        if variant.liger and without_liger:
            print(f"{name}: {without_liger}.")
            continue
        model = make_model(options.shape, options.device, variant, options.precision)
        try:
            scorer = make_scorer(variant, model)
            results[name] = measure(variant, scorer, rollouts, options.repeats, is_mixed)
            if exact is not None:
                backward(scorer, few, variant.max_tokens, is_mixed)
                difference = gradient(model) - exact.to(model.device)
                results[name]["gradient_error"] = float(difference.norm()) / float(exact.norm())
                del difference
            if options.trace and variant is VARIANTS[(options.variants or list(VARIANTS))[-1]]:
                trace(options.trace, partial(backward, scorer, rollouts, variant.max_tokens, is_mixed))
        except torch.OutOfMemoryError as error:
            results[name] = asdict(variant) | {"out_of_memory": str(error).splitlines()[0]}
        print(name, json.dumps(results[name]), flush=True)
        write(options, results)  # now: the next may be cut off
        del model, scorer
        if is_cuda:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
