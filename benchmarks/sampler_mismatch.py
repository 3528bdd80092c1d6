"""How far the sampler's and the trainer's logprobs are apart, and how far each is from float32.

python benchmarks/sampler_mismatch.py --device cpu --shape nano --type qlora     # a minute, to see that it runs
python benchmarks/sampler_mismatch.py --device cuda --shape 7b --type qlora

The step's mismatch is one number, and two causes look alike in it: other weights on one side, or rounding. Here the same
sampled tokens are scored five ways, with the same weights, before any update: by the sampler that drew them, by the
trainer, by the policy with the plain code of transformers, and by a plain model that holds the merged weights, in the
dtype of training and in float32. Rounding puts all but the last one about as far from float32; a wrong weight one of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

import torch  # noqa: E402
from lora import SHAPES  # noqa: E402
from sides import make_model  # noqa: E402
from sides.command import this_command  # noqa: E402
from sides.our_side import PRECISIONS, make_module  # noqa: E402
from sides.our_trainer import make_trainer  # noqa: E402
from sides.record import versions  # noqa: E402
from sides.workload import Workload, word_problems  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from grpo_lightning import GRPODataModule, GRPOModule  # noqa: E402
from grpo_lightning.finetuning.adapters import merged_state_dict  # noqa: E402
from grpo_lightning.numerics.dtypes import with_float32_defaults  # noqa: E402
from grpo_lightning.scoring.fast_kernels import plain_kernels  # noqa: E402
from grpo_lightning.types import PromptBatch, Rollouts  # noqa: E402

REFERENCE = "merged, float32"
POSITIONS = (0, 16, 64, 256, 1024)
"""Bounds of the ranges of token positions, over which differences are told apart."""


class ComparedModule(GRPOModule):
    """A module whose only step samples, scores the tokens in every way, and trains nothing."""

    logprobs: dict[str, Tensor]
    """(T,) nats of each way."""
    positions: Tensor
    """(T,) of each token in its completion."""

    @with_float32_defaults
    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Scores one batch of rollouts."""
        rollouts = self.source.sample_as(batch, self.sampling, "train", self.steps_done)
        starts = rollouts.completion_lengths.cumsum(0) - rollouts.completion_lengths
        self.positions = torch.arange(rollouts.completion_ids.numel()) - starts[rollouts.token_rows()]
        self.policy.model.eval()
        with torch.no_grad(), plain_kernels(self.policy.model):
            plain = plain_logprobs(self.policy.model, rollouts, self.sampling.temperature)
        self.logprobs = {
            "sampler": rollouts.sampling_logprobs,
            "trainer": self.trainer_logprobs(rollouts),
            "policy, plain code": plain,
        }
        for dtype in dict.fromkeys((next(self.policy.model.parameters()).dtype, torch.float32)):
            name = f"merged, {str(dtype).removeprefix('torch.')}"
            self.logprobs[name] = merged_logprobs(self.policy.model, dtype, rollouts, self.sampling.temperature)

    @torch.no_grad()
    def trainer_logprobs(self, rollouts: Rollouts) -> Tensor:
        """As a training step computes them: packed where possible, with fused kernels where there are any."""
        scores = torch.empty_like(rollouts.sampling_logprobs)
        every = torch.arange(rollouts.num_completions)
        for rows in self.passes.scorer.plan(rollouts, every, self.passes.max_tokens):
            scores[rollouts.tokens_of(rows)] = self.passes.scorer.score(rollouts, rows).logprobs.float().cpu()
        return scores


@torch.no_grad()
def merged_logprobs(policy: nn.Module, dtype: torch.dtype, rollouts: Rollouts, temperature: float) -> Tensor:
    """Of a plain model in this dtype, which holds what the policy computes with."""
    device = next(policy.parameters()).device
    with device:
        model = AutoModelForCausalLM.from_config(policy.config, dtype=dtype).eval()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, weight in merged_state_dict(policy):
        parameters[name].copy_(weight)
    with torch.autocast(device.type, enabled=False):
        return plain_logprobs(model, rollouts, temperature)


def plain_logprobs(model: Any, rollouts: Rollouts, temperature: float) -> Tensor:
    """(T,) float32 from log_softmax of the model's own logits, one completion at a time."""
    found, prompts = [], rollouts.prompts()
    for row, completion in enumerate(rollouts.completions()):
        prompt = prompts[int(rollouts.group[row])]
        ids = torch.cat([prompt, completion])[None].to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float() / temperature
        chosen = logits.gather(1, completion[:, None].to(model.device))[:, 0]
        found.append((chosen - logits.logsumexp(1)).float().cpu())
    return torch.cat(found)


def differences(found: Tensor, expected: Tensor, positions: Tensor) -> dict[str, Any]:
    """Mean size, mean and largest size of the differences in nats, and the mean size by ranges of positions."""
    gap = found.double() - expected.double()
    by_position = {
        f"{low}-{high - 1}": round(float(gap[inside].abs().mean()), 5)
        for low, high in pairwise(POSITIONS)
        if (inside := (low <= positions) & (positions < high)).any()
    }
    numbers = {"mean_size": gap.abs().mean(), "mean": gap.mean(), "largest": gap.abs().max()}
    return {name: round(float(value), 5) for name, value in numbers.items()} | {"by_position": by_position}


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="nano")
    parser.add_argument("--type", choices=("full", "lora", "qlora"), default="qlora")
    parser.add_argument("--initializer-range", type=float, help="standard deviation of the random weights")
    parser.add_argument("--prompts", type=int, default=8, help="with 8 completions each")
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.3, help="share of the engine")
    parser.add_argument("--engine-options", type=json.loads, default={}, help="JSON: arguments of the generator")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "sampler_mismatch", help="model, prompts")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/sampler_mismatch_<shape>_<device>.json")
    return parser.parse_args()


def prepare(options: argparse.Namespace) -> Workload:
    """One step's workload, its prompts and its model written down."""
    folder = options.folder / f"{options.shape}_{options.initializer_range}"
    folder.mkdir(parents=True, exist_ok=True)
    if options.initializer_range is not None:
        make_model.SHAPES[options.shape]["initializer_range"] = options.initializer_range
    workload = replace(
        SHAPES[options.shape],
        device=options.device,
        dtype="bfloat16" if options.device == "cuda" else "float32",
        steps=1,
        warmup_steps=0,
        prompts_per_step=options.prompts,
        num_generations=8,
        gpu_memory_utilization=options.gpu_memory_utilization,
        engine_options=options.engine_options,
        model=str(folder / "model"),
        prompts=str(folder / "prompts.jsonl"),
    )
    rows = word_problems(max(64, options.prompts))
    Path(workload.prompts).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    make_model.make_model(workload.shape, Path(workload.prompts), Path(workload.model), workload.mean_length)
    return workload


def compare(workload: Workload, finetuning_type: str) -> ComparedModule:
    """Runs the one step."""
    if workload.device == "cpu":
        torch.set_num_threads(workload.threads)
    settings = {"finetuning_type": finetuning_type} | ({} if finetuning_type == "full" else {"lora_dropout": 0.0})
    module = make_module(workload, lambda **arguments: ComparedModule(**arguments, **settings))
    one_step = {"limit_train_batches": 1, "max_epochs": 1}
    folder = Path(workload.model).parent
    trainer = make_trainer(workload.device, PRECISIONS[workload.dtype], 1, folder, **one_step)
    data = GRPODataModule(dataset=workload.prompts, batch_size=workload.prompts_per_step, shuffle=False)
    trainer.fit(module, datamodule=data)
    return module


def main() -> None:
    options = parse()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    workload = prepare(options)
    module = compare(workload, options.type)
    found, positions = module.logprobs, module.positions
    result: dict[str, Any] = {
        "command": this_command("benchmarks/sampler_mismatch.py"),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else platform.machine() + " cpu",
        "versions": versions(),
        "finetuning_type": options.type,
        "options": workload.options(),
        "layout": module.passes.scorer.layout,
        "tokens": len(positions),
        "sampler_and_trainer": differences(found["trainer"], found["sampler"], positions),
        "from_float32": {
            name: differences(logprobs, found[REFERENCE], positions)
            for name, logprobs in found.items()
            if name != REFERENCE
        },
    }
    print(
        json.dumps(
            {name: result[name] for name in ("tokens", "layout", "sampler_and_trainer", "from_float32")}, indent=1
        )
    )
    name = f"sampler_mismatch_{options.shape}_{options.device}.json"
    out = options.out or ROOT / "benchmarks" / "results" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # an engine in this process may hang at exit
