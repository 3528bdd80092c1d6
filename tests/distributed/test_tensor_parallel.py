"""Tensor parallelism over gloo: ranks that split matrices take the steps of one process that has them whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from copy_generator import CopyGenerator
from lightning.pytorch.callbacks import ModelCheckpoint
from ranks import run_ranks
from runs import fit as fit_alone
from runs import make_data, make_module, make_trainer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from toy_models import build_model, save_toy_model
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from grpo_lightning.callbacks import HuggingFaceExport
from grpo_lightning.distributed.sharding import shard, whole
from grpo_lightning.distributed.strategies import FSDP2Strategy
from grpo_lightning.distributed.tensor_parallel import settle_gradients, split_plan
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.types import Rollouts

PROMPTS_PER_STEP, STEPS = 8, 3
SETTINGS: dict[str, Any] = {
    "max_tokens_per_microbatch": 40,  # one or two passes, and not equally many on every rank
    "num_minibatches": 2,
    "max_grad_norm": 0.5,
    "beta": 0.1,
    "sync_ref_model": True,
    "ref_model_sync_steps": 1,
    "top_entropy_quantile": 0.5,
    "gradient_checkpointing": True,
}
ROLLOUTS = Rollouts.from_lists(
    [[5, 6, 7], [8, 9]],
    [[10, 11, 12, 13], [14, 15], [16, 17, 18]],
    [[-1.0] * 4, [-1.0] * 2, [-1.0] * 3],
    [False] * 3,
    [0, 0, 1],
)
MESHES = {2: 2, 4: 2}
"""Ranks, and how many of them hold a matrix between them."""


def fit(folder: Path, model_dir: Path, ranks: int, size: int, ckpt: Path | None = None) -> dict[str, Any]:
    """A run with a checkpoint after each step and an export at the end; continues one where given."""
    module = make_module(
        model_dir,
        generator=CopyGenerator(),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, eps=1e-3, weight_decay=0.0),
        **SETTINGS,
    )
    steps: list[dict[str, float]] = []
    end_step = module.end_step

    def note(report: Any) -> None:
        end_step(report)
        steps.append(module.step_metrics)

    module.end_step = note
    checkpoints = ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=module.num_updates, save_top_k=-1, save_last=False
    )
    trainer = make_trainer(
        folder,
        STEPS * module.num_updates,
        devices=ranks,
        strategy=FSDP2Strategy(tensor_parallel_size=size) if ranks > 1 else "auto",
        callbacks=[checkpoints, HuggingFaceExport()],
        enable_checkpointing=True,
    )
    data = make_data(folder.parent / "data", batch_size=PROMPTS_PER_STEP // ranks)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=False)
    parameters = dict(module.policy.model.named_parameters())
    local = {n: tuple(p.to_local().shape) if isinstance(p, DTensor) else tuple(p.shape) for n, p in parameters.items()}
    wholes = {name: whole(parameter.detach()).clone() for name, parameter in parameters.items()}
    return {"steps": steps, "weights": wholes, "local": local}


def runs_of(folder: Path, architecture: str, meshes: dict[int, int]) -> dict[Any, Any]:
    (folder / "data").mkdir()
    model_dir = save_toy_model(folder / "model", architecture, num_key_value_heads=2)
    found: dict[Any, Any] = {"folder": folder, "model_dir": model_dir}
    found[1] = run_ranks(1, fit, folder / "ranks1", model_dir, 1, 1)
    return found | {n: run_ranks(n, fit, folder / f"ranks{n}", model_dir, n, size) for n, size in meshes.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[Any, Any]:
    """Qwen3 has norms inside its heads, of which a rank sees its own heads alone."""
    return runs_of(tmp_path_factory.mktemp("qwen3"), "qwen3", MESHES)


@pytest.fixture(scope="module")
def runs_with_biases(tmp_path_factory) -> dict[Any, Any]:
    """Qwen2 has biases, which are split with their matrices; whatever else it has Qwen3 has too."""
    return runs_of(tmp_path_factory.mktemp("qwen2"), "qwen2", {2: MESHES[2]})


@pytest.mark.parametrize(("of", "ranks"), [("runs", 2), ("runs", 4), ("runs_with_biases", 2)])
def test_split_steps_are_those_of_one_process(of, ranks, request):
    runs = request.getfixturevalue(of)
    (alone,) = runs[1]
    assert len(alone["steps"]) == STEPS
    for rank in runs[ranks]:
        torch.testing.assert_close(rank["weights"], alone["weights"], rtol=1e-4, atol=1e-6)
        for found, expected in zip(rank["steps"], alone["steps"], strict=True):
            for name in ("loss", "grad_norm", "kl", "entropy", "reward", "num_tokens", "clip_ratio/region_mean"):
                assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
    assert alone["steps"][-1]["kl"] > 0


def test_each_rank_holds_its_part_of_a_matrix(runs):
    whole_shape = runs[1][0]["local"]["model.layers.0.mlp.gate_proj.weight"]
    for rank in runs[2]:
        assert rank["local"]["model.layers.0.mlp.gate_proj.weight"] == (whole_shape[0] // 2, whole_shape[1])
        assert rank["local"]["model.layers.0.mlp.down_proj.weight"] == (whole_shape[1], whole_shape[0] // 2)
    for rank in runs[4]:
        assert rank["local"]["model.layers.0.mlp.gate_proj.weight"] == (whole_shape[0] // 4, whole_shape[1])
        assert rank["local"]["lm_head.weight"][0] * 4 == runs[1][0]["local"]["lm_head.weight"][0]


def test_a_checkpoint_moves_between_ways_to_split(runs):
    checkpoint = runs["folder"] / "ranks4" / "step=4.ckpt"
    for ranks, size, tolerance in ((4, 2, 0.0), (2, 1, 1e-4), (2, 2, 1e-4)):
        folder = runs["folder"] / f"resumed{ranks}{size}"
        for rank in run_ranks(ranks, fit, folder, runs["model_dir"], ranks, size, checkpoint):
            assert len(rank["steps"]) == 1
            torch.testing.assert_close(rank["weights"], runs[4][0]["weights"], rtol=tolerance, atol=tolerance / 100)


def gradients(architecture: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Gradients of the same logprobs from split weights and from whole ones."""
    torch.distributed.init_process_group("gloo", rank=int(os.environ["LOCAL_RANK"]))
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data_parallel", "tensor_parallel"))
    found: list[dict[str, torch.Tensor]] = []
    for is_split in (False, True):
        model = build_model(architecture, num_key_value_heads=2).train()
        if is_split:
            shard(model, mesh)
        scores = Scorer(model, 0.7, "packed").score(ROLLOUTS, torch.arange(3), True, entropy_grad=True)
        assert scores.entropy is not None
        (scores.logprobs.square().sum() + scores.entropy.sum()).backward()
        if is_split:
            settle_gradients(model, mesh)
        found.append({name: whole(parameter.grad) for name, parameter in model.named_parameters()})
    return {name: (found[0][name], found[1][name]) for name in found[0]}


@pytest.mark.parametrize("architecture", ["gemma2", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3"])
def test_split_architectures_have_the_gradient_of_whole_ones(architecture):
    for rank in run_ranks(2, gradients, architecture):
        for name, (expected, found) in rank.items():
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()), msg=name)


def test_what_cannot_be_split_is_refused_with_the_way_out():
    config = build_model("qwen2").config  # one key head
    with pytest.raises(
        ValueError, match=r"tensor_parallel_size=2: the model's num_key_value_heads=1 cannot be divided"
    ):
        split_plan(config, 2)
    with pytest.raises(ValueError, match=r"gpt2 has no plan of how to split its layers. Use tensor_parallel_size=1"):
        split_plan(build_model("gpt2").config, 2)
    with pytest.raises(ValueError, match=r"qwen3_moe splits its layers in ways not built here \(\['moe_tp_experts'"):
        split_plan(Qwen3MoeConfig(), 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"finetuning_type": "lora"}, "model.finetuning_type=lora does not go with .*tensor_parallel_size=2. Use "),
        ({"torch_compile": True}, "model.torch_compile=true does not go with"),
        ({}, "tensor_parallel_size=2 does not divide the 1 ranks of trainer.devices"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused_before_weights_load(tmp_path, settings, message):
    model_dir = save_toy_model(tmp_path / "model", num_key_value_heads=2)
    strategy = FSDP2Strategy(tensor_parallel_size=2)
    with pytest.raises(ValueError, match=message):
        fit_alone(model_dir, tmp_path, trainer={"strategy": strategy}, generator=CopyGenerator(), **settings)


def test_the_export_of_a_split_policy_is_a_whole_model(runs):
    exported = AutoModelForCausalLM.from_pretrained(runs["folder"] / "ranks4" / "hf" / "last", dtype=torch.float32)
    torch.testing.assert_close(
        dict(exported.named_parameters()), runs[1][0]["weights"], rtol=1e-4, atol=1e-6, check_device=False
    )
