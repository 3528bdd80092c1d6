"""FSDP2 over gloo: sharded steps equal whole ones, checkpoints move between rank counts, exports are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from copy_generator import CopyGenerator
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig, get_peft_model
from ranks import run_ranks
from runs import make_data, make_module, make_trainer
from torch.distributed.checkpoint import FileSystemReader
from toy_models import save_toy_model
from transformers import AutoModelForCausalLM

from grpo_lightning.callbacks import HuggingFaceExport
from grpo_lightning.distributed.sharding import is_sharded, whole
from grpo_lightning.distributed.strategies import FSDP2Strategy
from grpo_lightning.finetuning.adapter_files import save_adapter

PROMPTS_PER_STEP, STEPS = 6, 4

SCENARIOS: dict[str, dict[str, Any]] = {
    "full": {
        "max_tokens_per_microbatch": 24,  # ranks then differ in their number of passes
        "num_minibatches": 2,
        "max_grad_norm": 0.5,
        "beta": 0.1,
        "sync_ref_model": True,
        "ref_model_sync_steps": 1,
        "gradient_checkpointing": True,
    },
    "lora": {
        "finetuning_type": "lora",
        "lora_rank": 4,
        "lora_dropout": 0.0,
        "importance_sampling_correction": False,  # weighs tokens by rounding here, beside which these losses are small
        "beta": 0.1,
        "sync_ref_model": True,
        "ref_model_sync_steps": 1,
    },
    "adapter": {"finetuning_type": "lora", "beta": 0.1},  # goes on from one, which is the reference too
}


def fit(
    folder: Path,
    data: Path,
    model_dir: Path,
    ranks: int,
    scenario: str,
    ckpt: Path | None = None,
    in_one_file: bool = False,
    **changed: Any,
) -> dict[str, Any]:
    """Four GRPO steps with a checkpoint after each and an export at the end."""
    start = {"adapter_name_or_path": str(data / "adapter")} if scenario == "adapter" else {}
    module = make_module(
        model_dir,
        generator=CopyGenerator(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
        **(SCENARIOS[scenario] | start | changed),
    )
    steps: list[dict[str, float]] = []
    end_step = module.end_step

    def note(report: Any) -> None:
        end_step(report)
        steps.append(module.step_metrics)

    module.end_step = note
    updates = module.num_updates
    strategy = FSDP2Strategy(save_distributed_checkpoint=False) if in_one_file else "fsdp2"
    checkpoints = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=updates, save_top_k=-1)
    trainer = make_trainer(
        folder,
        STEPS * updates,
        devices=ranks,
        strategy=strategy if ranks > 1 else "auto",
        callbacks=[checkpoints, HuggingFaceExport()],
        enable_checkpointing=True,
    )
    prompts = make_data(data, batch_size=PROMPTS_PER_STEP // ranks)
    trainer.fit(module, datamodule=prompts, ckpt_path=ckpt, weights_only=False)
    wholes = {name: whole(parameter.detach()).clone() for name, parameter in module.policy.model.named_parameters()}
    return {"steps": steps, "weights": wholes, "sharded": is_sharded(module.policy.model)}


def journey(folder: Path, model_dir: Path, ranks: int, scenario: str) -> dict[str, Any]:
    """A whole run, and one that goes on after the second step of two ranks' run."""
    started, updates = folder / "ranks2", SCENARIOS[scenario].get("num_minibatches", 1)
    return {
        "whole": fit(folder / f"ranks{ranks}", folder / "data", model_dir, ranks, scenario),
        "resumed": fit(
            folder / f"resumed{ranks}",
            folder / "data",
            model_dir,
            ranks,
            scenario,
            started / f"step={2 * updates}.ckpt",
        )
        if ranks > 1
        else None,
    }


def save_random_adapter(model_dir: Path, path: Path) -> None:
    """An adapter that changes the model from the first step on, without dropout."""
    torch.manual_seed(0)  # a module's fixture is set up before the seed of a test
    config = LoraConfig(r=4, lora_alpha=1, target_modules="all-linear", init_lora_weights=False)
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    save_adapter(get_peft_model(base, config), path, str(model_dir))


@pytest.fixture(scope="module", params=sorted(SCENARIOS))
def journeys(request, tmp_path_factory) -> dict[Any, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "data").mkdir()
    model_dir = save_toy_model(folder / "model", tie_word_embeddings=True)
    if request.param == "adapter":
        save_random_adapter(model_dir, folder / "data" / "adapter")
    runs = {count: run_ranks(count, journey, folder, model_dir, count, request.param) for count in (2, 1, 3)}
    last = STEPS * SCENARIOS[request.param].get("num_minibatches", 1)
    return runs | {"folder": folder, "model_dir": model_dir, "last": last}


def test_sharded_steps_are_those_of_one_process(journeys):
    (alone,) = journeys[1]
    assert not alone["whole"]["sharded"]
    for count in (2, 3):
        for rank in journeys[count]:
            assert rank["whole"]["sharded"]
            torch.testing.assert_close(rank["whole"]["weights"], alone["whole"]["weights"], rtol=1e-4, atol=1e-6)
            for found, expected in zip(rank["whole"]["steps"], alone["whole"]["steps"], strict=True):
                for name in ("loss", "grad_norm", "kl", "entropy", "reward"):
                    assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
    assert alone["whole"]["steps"][-1]["kl"] > 0


def test_a_sharded_checkpoint_is_continued_by_as_many_ranks_and_by_more(journeys):
    for count, tolerance in ((2, 0.0), (3, 1e-4)):
        for rank in journeys[count]:
            assert len(rank["resumed"]["steps"]) == STEPS - 2
            expected = journeys[2][0]["whole"]["weights"]
            torch.testing.assert_close(rank["resumed"]["weights"], expected, rtol=tolerance, atol=tolerance / 100)


def test_a_sharded_checkpoint_holds_what_is_trained_and_no_more(journeys):
    checkpoint = journeys["folder"] / "ranks2" / f"step={journeys['last']}.ckpt"
    stored = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    names = {name.removeprefix("state_dict.policy.model.") for name in stored if name.startswith("state_dict.")}
    everything = set(journeys[2][0]["whole"]["weights"])
    trained = {name for name in everything if "lora_" in name} or everything
    assert names - {"lm_head.weight"} == trained  # tied to the embeddings
    moments = {name for name in stored if name.endswith(".momentum_buffer")}
    found = {name.removeprefix("optimizer_0.state.policy.model.").removesuffix(".momentum_buffer") for name in moments}
    assert found - {"lm_head.weight"} == trained
    rest = torch.load(checkpoint / "meta.pt", weights_only=True)
    assert not {"state_dict", "optimizer_states"} & rest.keys()
    assert {name.removeprefix("policy.model.") for name in rest["reference"]} <= trained | {"lm_head.weight"}


def test_the_export_of_a_sharded_policy_is_a_whole_model(journeys):
    folder = journeys["folder"]
    exported = AutoModelForCausalLM.from_pretrained(folder / "ranks2" / "hf" / "last", dtype=torch.float32)
    alone = AutoModelForCausalLM.from_pretrained(folder / "ranks1" / "hf" / "last", dtype=torch.float32)
    start = AutoModelForCausalLM.from_pretrained(journeys["model_dir"], dtype=torch.float32)
    assert type(exported) is type(start)
    moved = 0.0
    for name, weight in exported.named_parameters():
        torch.testing.assert_close(weight, alone.get_parameter(name), rtol=1e-4, atol=1e-6)
        moved = max(moved, (weight - start.get_parameter(name)).abs().max().item())
    assert moved > 1e-3
    assert exported.lm_head.weight is exported.model.embed_tokens.weight


def in_one_file(folder: Path, model_dir: Path) -> dict[str, Any]:
    """A sharded LoRA run that writes whole checkpoints, and one that goes on from its second."""
    first = fit(folder / "first", folder, model_dir, 2, "lora", in_one_file=True)
    second = fit(folder / "second", folder, model_dir, 2, "lora", folder / "first" / "step=2.ckpt", in_one_file=True)
    return {"first": first["weights"], "second": second["weights"]}


def test_a_checkpoint_in_one_file_holds_adapters_only_and_is_continued_exactly(tmp_path):
    for rank in run_ranks(2, in_one_file, tmp_path, save_toy_model(tmp_path / "model")):
        torch.testing.assert_close(rank["second"], rank["first"], rtol=0, atol=0)
    checkpoint = torch.load(tmp_path / "first" / "step=2.ckpt", weights_only=True)
    assert {name.removeprefix("policy.model.") for name in checkpoint["state_dict"]} == {
        name for name in rank["first"] if "lora_" in name
    }


def refusal(folder: Path, model_dir: Path) -> str:
    fit(folder / "first", folder, model_dir, 2, "lora")
    try:
        fit(folder / "second", folder, model_dir, 2, "lora", folder / "first" / "step=2.ckpt", lora_rank=2)
    except ValueError as error:
        return str(error)
    return "it was continued"


def test_a_sharded_checkpoint_that_would_mean_another_model_is_refused(tmp_path):
    for message in run_ranks(2, refusal, tmp_path, save_toy_model(tmp_path / "model")):
        assert message.startswith("The checkpoint's adapter has other settings than this config: r was 4, is 2.")
