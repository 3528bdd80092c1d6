"""Stages under FSDP2 over gloo: steps of one process, checkpoints that two ranks and one continue, exports that the next reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from ranks import run_ranks
from runs import make_trainer
from safetensors.torch import load_file
from torch import Tensor
from toy_models import save_toy_model
from transformers import AutoModelForCausalLM

from grpo_lightning import DPOModule, GRPODataModule, SFTModule
from grpo_lightning.callbacks import HuggingFaceExport
from grpo_lightning.distributed.sharding import is_sharded, whole

STEPS, STOPPED_AFTER = 4, 2
ROWS = [
    {"prompt": "0" * (i % 3) + f"{i}+{i}=", "chosen": f"{2 * i}" * (1 + i % 2), "rejected": f"<answer>{i}</answer>"}
    for i in range(16)
]
LORA: dict[str, Any] = {"finetuning_type": "lora", "lora_rank": 4, "lora_alpha": 12}
STAGES: dict[str, tuple[type, dict[str, Any]]] = {
    "sft": (SFTModule, {}),
    "sft_lora": (SFTModule, LORA | {"lora_dropout": 0.1}),
    "dpo": (DPOModule, {"sync_ref_model": True, "ref_model_sync_steps": 1}),
    "dpo_lora": (DPOModule, LORA | {"lora_dropout": 0.0}),
    "dpo_precomputed": (DPOModule, {"precompute_ref_log_probs": True}),
}
"""Dropout is drawn on each rank: sft_lora is compared with as many."""


def train(folder: Path, model_dir: Path, data: Path, stage: str, ranks: int, resume_from: Path | None = None) -> Any:
    """Metrics of each step and the whole weights at the end."""
    module_class, settings = STAGES[stage]
    module = module_class(
        model_name_or_path=str(model_dir),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=2e-3),
        max_tokens_per_microbatch=40,
        **settings,
    )
    steps: list[dict[str, float]] = []
    log = module.steps.log

    def note(metrics: dict[str, float]) -> None:
        log(metrics)
        steps.append({name: metrics[name] for name in ("loss", "grad_norm")})

    module.steps.log = note
    converter = {"converter": "dpo"} if module_class is DPOModule else {"converter": "sft"}
    arguments = {} if module_class is DPOModule else {"converter_args": {"completion_key": "chosen"}}
    source = GRPODataModule(dataset=str(data), batch_size=4 // ranks, **converter, **arguments)
    kept = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    options = {"callbacks": [kept, HuggingFaceExport()], "enable_checkpointing": True}
    trainer = make_trainer(folder, STEPS, devices=ranks, strategy="fsdp2", **options)
    trainer.fit(module, datamodule=source, ckpt_path=resume_from, weights_only=False)
    weights = {name: whole(p.detach()).clone() for name, p in module.policy.model.named_parameters()}
    return {"steps": steps, "weights": weights, "sharded": is_sharded(module.policy.model)}


def journey(folder: Path, model_dir: Path, stage: str, ranks: int, others: int) -> dict[str, Any]:
    """A whole run, and runs that go on from the checkpoints of it and of the other number of ranks, if that was before it."""
    data, stopped = folder / "rows.jsonl", f"step={STOPPED_AFTER}.ckpt"
    found = {"whole": train(folder / f"ranks{ranks}", model_dir, data, stage, ranks)}
    for by in (ranks, others):
        if (folder / f"ranks{by}" / stopped).exists():
            target = folder / f"ranks{ranks}_after_{by}"
            found[f"after {by}"] = train(target, model_dir, data, stage, ranks, folder / f"ranks{by}" / stopped)
    return found


@pytest.fixture(scope="module", params=STAGES)
def journeys(request, tmp_path_factory) -> dict[Any, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    model_dir = save_toy_model(folder / "model", tie_word_embeddings=True)
    two = run_ranks(2, journey, folder, model_dir, request.param, 2, 1)
    (one,) = run_ranks(1, journey, folder, model_dir, request.param, 1, 2)
    source = folder / "ranks1" / f"step={STOPPED_AFTER}.ckpt"
    arguments = (folder / "ranks2_after_1", model_dir, folder / "rows.jsonl", request.param, 2, source)
    two[0]["after 1"] = run_ranks(2, train, *arguments)[0]
    return {"stage": request.param, "folder": folder, "one": one, "two": two[0], "other rank": two[1]}


def test_a_killed_run_goes_on_bit_for_bit_on_as_many_ranks(journeys):
    for name, ranks in (("one", 1), ("two", 2), ("other rank", 2)):
        run = journeys[name]
        assert run["whole"]["sharded"]
        assert run[f"after {ranks}"]["steps"] == run["whole"]["steps"][STOPPED_AFTER:]
        torch.testing.assert_close(run[f"after {ranks}"]["weights"], run["whole"]["weights"], rtol=0, atol=0)


def test_a_checkpoint_is_continued_by_fewer_ranks_and_by_more_with_the_same_steps(journeys):
    if journeys["stage"] == "sft_lora":
        pytest.skip("dropout is drawn on each rank")
    for by, on, ranks in (("two", "one", 2), ("one", "two", 1)):
        expected, found = journeys[by]["whole"], journeys[on][f"after {ranks}"]
        for found_step, expected_step in zip(found["steps"], expected["steps"][STOPPED_AFTER:], strict=True):
            assert found_step == pytest.approx(expected_step, rel=1e-3, abs=1e-5)
        torch.testing.assert_close(found["weights"], expected["weights"], rtol=1e-3, atol=2e-4)


def test_the_export_of_two_ranks_is_the_model_that_they_trained(journeys):
    folder, trained = journeys["folder"], journeys["two"]["whole"]["weights"]
    exported = AutoModelForCausalLM.from_pretrained(folder / "ranks2" / "hf" / "last", dtype=torch.float32)
    start = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    moved = max((weight - start.get_parameter(name)).abs().max() for name, weight in exported.named_parameters())
    assert moved > 1e-3
    has_adapters = "lora" in journeys["stage"]
    for name, weight in exported.named_parameters():
        expected = added_in(start.get_parameter(name), trained, name) if has_adapters else trained[name]
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-7 if has_adapters else 0)


def added_in(base: Tensor, trained: dict[str, Tensor], name: str) -> Tensor:
    """A weight of the base with what LoRA adds to it, by its definition: alpha / rank times B A."""
    layer = f"base_model.model.{name.removesuffix('.weight')}"
    if f"{layer}.lora_A.default.weight" not in trained:
        return base
    a, b = (trained[f"{layer}.lora_{part}.default.weight"] for part in "AB")
    return base + LORA["lora_alpha"] / LORA["lora_rank"] * b @ a


def test_the_adapter_of_two_ranks_is_exported_as_they_trained_it(journeys):
    if "lora" not in journeys["stage"]:
        pytest.skip("trains no adapter")
    trained = journeys["two"]["whole"]["weights"]
    found = load_file(journeys["folder"] / "ranks2" / "hf" / "last-adapter" / "adapter_model.safetensors")
    expected = {name.replace(".default", ""): weight for name, weight in trained.items() if ".lora_" in name}
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert all(weight.abs().max() > 1e-4 for name, weight in found.items() if ".lora_B" in name)
