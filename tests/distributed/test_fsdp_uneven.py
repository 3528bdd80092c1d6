"""Sharded weights need every rank in every pass: ranks with less to compute, or nothing, keep the others company."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from copy_generator import CopyGenerator
from ranks import run_ranks
from runs import make_data, make_module, make_trainer
from toy_models import save_toy_model

from grpo_lightning import GRPODataModule, SFTModule
from grpo_lightning.distributed.sharding import whole
from grpo_lightning.distributed.strategies import FSDP2Strategy
from grpo_lightning.generation.vllm.skeleton import save_skeleton
from grpo_lightning.rollouts.dynamic_sampling import DynamicSampling

PROMPTS_PER_STEP = 6


def only_later_prompts(completions_ids, ground_truth, **columns):
    """Equal inside the groups of the first three prompts of every step: the first rank of two has no gradient."""
    shares = [sum(token % 2 for token in ids) / len(ids) for ids in completions_ids]
    is_later = [int(answer) // 2 % PROMPTS_PER_STEP >= 3 for answer in ground_truth]
    return [share if later else 0.0 for later, share in zip(is_later, shares, strict=True)]


SCENARIOS: dict[str, dict[str, Any]] = {
    "idle_rank": {"num_iterations": 2},
    # The first rank is left without a completion: no old and no reference logprobs to compute either.
    "empty_rank": {
        "dynamic_sampling": DynamicSampling(mode="drop"),
        "num_iterations": 2,
        "beta": 0.1,
        "top_entropy_quantile": 0.7,
    },
}


def wholes(module: Any) -> dict[str, torch.Tensor]:
    return {name: whole(parameter.detach()).clone() for name, parameter in module.policy.model.named_parameters()}


def train(folder: Path, model_dir: Path, ranks: int, scenario: str) -> dict[str, Any]:
    """Two clipped steps; the whole weights and the last metrics of this rank."""
    module = make_module(
        model_dir,
        generator=CopyGenerator(),
        rewards=[only_later_prompts],
        max_tokens_per_microbatch=24,
        max_grad_norm=0.1,
        **SCENARIOS[scenario],
    )
    trainer = make_trainer(folder, 2 * module.num_updates, devices=ranks, strategy="fsdp2" if ranks > 1 else "auto")
    trainer.fit(module, datamodule=make_data(folder / "data", batch_size=PROMPTS_PER_STEP // ranks, shuffle=False))
    engine = folder / f"engine{trainer.global_rank}"
    save_skeleton(module.policy.model, module.policy.tokenizer, engine)
    architectures = json.loads((engine / "config.json").read_text())["architectures"]
    return {"weights": wholes(module), "metrics": module.step_metrics, "architectures": architectures}


def imitate(folder: Path, model_dir: Path, ranks: int, split: int = 1) -> dict[str, Any]:
    """Supervised steps with evaluations of three rows of different lengths, a pass each."""
    rows = [{"prompt": f"{i}+{i}=", "completion": f"<answer>{2 * i}</answer>" * (1 + i % 3)} for i in range(12)]
    path = folder / f"rows{ranks}.{torch.distributed.get_rank() if torch.distributed.is_initialized() else 0}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = path.with_name(f"held_out.{path.name}")
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    module = SFTModule(
        model_name_or_path=str(model_dir),
        max_tokens_per_microbatch=24,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    strategy = FSDP2Strategy(tensor_parallel_size=split) if ranks > 1 else "auto"
    trainer = make_trainer(folder, 2, devices=ranks, strategy=strategy, val_check_interval=1)
    data = GRPODataModule(str(path), str(held_out), converter="sft", batch_size=6 // ranks)
    trainer.fit(module, datamodule=data)
    return {"weights": wholes(module), "loss": float(trainer.callback_metrics["val/loss"])}


@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_a_sharded_step_is_the_same_where_ranks_have_less_to_compute_or_nothing(tiny_model_dir, tmp_path, scenario):
    (tmp_path / "data").mkdir()
    (alone,) = run_ranks(1, train, tmp_path, tiny_model_dir, 1, scenario)
    assert alone["metrics"]["grad_norm"] > 0.1  # so that clipping acts
    for count in (2, 3):
        for rank in run_ranks(count, train, tmp_path, tiny_model_dir, count, scenario):
            assert rank["architectures"] == ["Qwen2ForCausalLM"]  # what an engine is asked for
            torch.testing.assert_close(rank["weights"], alone["weights"], rtol=1e-4, atol=1e-6)
            for name in ("loss", "grad_norm", "entropy", "reward", "num_tokens"):
                assert rank["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("split", [1, 2])
def test_supervised_evaluation_of_sharded_weights_waits_for_nobody(tmp_path, split):
    model_dir = save_toy_model(tmp_path / "model", num_key_value_heads=2)
    (alone,) = run_ranks(1, imitate, tmp_path, model_dir, 1)
    for rank in run_ranks(2, imitate, tmp_path, model_dir, 2, split):
        torch.testing.assert_close(rank["weights"], alone["weights"], rtol=1e-4, atol=1e-6)
        assert rank["loss"] == pytest.approx(alone["loss"], rel=1e-4)
