"""Steps of each stage are the same on one rank and on two: demonstrations, preferences, reward models, teachers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_vllm_server import fake_vllm
from ranks import run_ranks
from runs import make_data, make_module, make_trainer
from taught_by_server import answers_of
from toy_models import save_toy_model

from grpo_lightning import DPOModule, GRPODataModule, RewardModelModule, SFTModule
from grpo_lightning.training.distillation import Distillation

ROWS = [
    {"prompt": "0" * (i % 3) + f"{i}+{i}=", "chosen": f"{2 * i}" * (1 + i % 2), "rejected": f"<answer>{i}</answer>"}
    for i in range(12)
]
STAGES: dict[str, dict[str, Any]] = {
    "dpo": {},
    "dpo_lora": {"finetuning_type": "lora", "lora_dropout": 0.0},
    "dpo_precomputed": {"precompute_ref_log_probs": True},
    "kto": {"loss_type": "kto", "beta": 0.5},
    "rm": {"center_rewards_coefficient": 0.1},
    "sft": {},
    "sft_experts": {"router_aux_loss_coef": 0.5},
    "distillation": {},
    "sampled_distillation": {},
    "server_distillation": {},
    "self_distillation": {},
}
MODULES = {"rm": RewardModelModule, "sft": SFTModule, "sft_experts": SFTModule}
TIMED = ("time", "tokens_per_second", "seconds", "packing/fill")


def make(stage: str, model_dir: Path, folder: Path) -> Any:
    common = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "max_tokens_per_microbatch": 40, "max_grad_norm": 0.5}
    if stage == "distillation":
        return make_module(model_dir, distillation=Distillation(str(folder / "teacher"), weight=0.5), **common)
    if stage == "sampled_distillation":
        taught = Distillation(str(folder / "teacher"), divergence="sampled_token", is_clip=2.0)
        return make_module(model_dir, distillation=taught, num_iterations=2, reward_weights=[0.0], **common)
    if stage == "server_distillation":
        address = (folder / "address").read_text()
        return make_module(model_dir, distillation=Distillation(address, weight=0.5, top_k=5, timeout=60.0), **common)
    if stage == "self_distillation":
        told = "{prompt} Solved: {successful_attempt} Again: "
        taught = Distillation("self", teacher_prompt=told, success_reward_threshold=0.1)
        return make_module(model_dir, distillation=taught, **common)
    policy = folder / "experts" if stage == "sft_experts" else model_dir
    return MODULES.get(stage, DPOModule)(model_name_or_path=str(policy), **common, **STAGES[stage])


def train(folder: Path, model_dir: Path, ranks: int) -> dict[str, Any]:
    """Three steps of every stage; metrics and weights at their end."""
    found = {}
    for stage in STAGES:
        module = make(stage, model_dir, folder)
        if stage.endswith("distillation"):
            data = make_data(folder, batch_size=4 // ranks)
        else:
            converter = {"converter": "sft", "converter_args": {"completion_key": "chosen"}}
            converter = converter if stage.startswith("sft") else {"converter": "dpo"}
            data = GRPODataModule(dataset=str(folder / "rows.jsonl"), batch_size=4 // ranks, **converter)
        trainer = make_trainer(folder, 3, devices=ranks, strategy="ddp" if ranks > 1 else "auto")
        trainer.fit(module, datamodule=data)
        weights = {name: p.detach().clone() for name, p in module.policy.model.named_parameters() if p.requires_grad}
        found[stage] = (module.step_metrics, weights)
    return found


@pytest.fixture(scope="module")
def runs(tiny_model_dir, tmp_path_factory) -> dict[int, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("stages")
    save_toy_model(folder / "teacher", seed=5)
    save_toy_model(folder / "experts", "qwen3_moe")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with fake_vllm() as server:
        server.answer_to = answers_of(folder / "teacher")
        (folder / "address").write_text(f"http://127.0.0.1:{server.server_address[1]}")
        return {count: run_ranks(count, train, folder, tiny_model_dir, count) for count in (1, 2)}


@pytest.mark.parametrize("stage", STAGES)
def test_steps_and_what_they_log_do_not_depend_on_the_number_of_ranks(runs, stage):
    (expected, weights), (metrics, first), (_, second) = (run[stage] for run in (*runs[1], *runs[2]))
    torch.testing.assert_close(first, weights, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    expected = {name: value for name, value in expected.items() if not any(word in name for word in TIMED)}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-3, abs=1e-5)
