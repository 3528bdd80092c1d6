"""Whole runs of GRPO on prompts with images, with a toy LLaVA on the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoModelForImageTextToText, AutoProcessor

from grpo_lightning import GRPODataModule
from grpo_lightning.callbacks.export import export
from grpo_lightning.types import Rollouts
from tests.runs import make_module, make_trainer, share_of_digits
from tests.vision.toy_checkpoint import save_toy_llava
from tests.vision.toy_vision import picture


@pytest.fixture(scope="module")
def toy_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_llava(tmp_path_factory.mktemp("llava"))


def digits(completions: Sequence[Any], **columns: Any) -> list[float]:
    """``share_of_digits`` of messages."""
    return share_of_digits([completion[0]["content"] for completion in completions])


def picture_rows(folder: Path, count: int = 6) -> list[dict[str, Any]]:
    """Questions about pictures in the forms that TRL takes, and one about none."""
    for n in range(count):
        picture(n, 16 + n, 16).save(folder / f"{n}.png")
    paths = [str(folder / f"{n}.png") for n in range(count)]
    ask = [{"role": "user", "content": "How many?"}]
    blocks = [{"type": "text", "text": "First "}, {"type": "image"}, {"type": "image"}, {"type": "text", "text": "?"}]
    return [
        {"prompt": ask, "image": paths[0]},
        {"prompt": ask, "images": [paths[1], paths[2]]},
        {"prompt": [{"role": "user", "content": blocks}], "images": [paths[3], paths[4]]},
        {"prompt": [{"role": "user", "content": [{"type": "image", "image": paths[5]}, *blocks[:1]]}]},
        {"prompt": [{"role": "user", "content": "2 + 3 = "}]},
        {"prompt": ask, "image": paths[1]},
    ]


def run(folder: Path, model: Path, max_steps: int = 2, trainer: dict[str, Any] | None = None, **settings: Any) -> Any:
    folder.mkdir(exist_ok=True)
    module = make_module(
        model, **({"vision_tower": "frozen", "max_sampler_mismatch": 0.001, "rewards": [digits]} | settings)
    )
    data = GRPODataModule(dataset=picture_rows(folder), batch_size=3)
    fit = make_trainer(folder, max_steps=max_steps, **(trainer or {}))
    fit.fit(module, data)
    return module, fit


def test_a_run_on_prompts_with_images_samples_what_it_scores_and_trains_the_language_part_alone(
    tmp_path: Path, toy_llava: Path
):
    seen: list[Any] = []

    def reward(completions: Sequence[Any], images: Sequence[Any], prompts: Sequence[Any], **_: Any) -> list[float]:
        seen.extend(zip(prompts, images, strict=True))
        return digits(completions)

    module, fit = run(tmp_path, toy_llava, rewards=[reward])
    before = AutoModelForImageTextToText.from_pretrained(toy_llava).state_dict()
    moved = {name for name, weight in module.policy.model.state_dict().items() if not weight.equal(before[name])}
    assert fit.callback_metrics["sampling/sampling_logp_difference/mean"] < 1e-5, "image prompts, sampled and scored"
    assert moved and all("language_model" in name or "lm_head" in name for name in moved)
    assert math.isfinite(fit.callback_metrics["loss"])
    with_two = [(prompt, images) for prompt, images in seen if images is not None]
    assert with_two and all(len(images) == 2 for _, images in with_two)
    assert [part["type"] for part in with_two[0][0][-1]["content"]].count("image") == 2


def test_an_image_decides_what_is_sampled(tmp_path: Path, toy_llava: Path):
    module, _ = run(tmp_path, toy_llava, max_steps=1)
    shown = module.policy.image_processing
    logprobs = []
    for n in (0, 3):
        ids, images = shown([{"role": "user", "content": [{"type": "image"}]}], [picture(n)], {})
        rollouts = Rollouts.from_lists([ids], [[5, 6]], [[0.0, 0.0]], [False], [0])
        rollouts = Rollouts(**{**rollouts.__dict__, "images": (images,)})
        logprobs.append(module.passes.scorer.score(rollouts, torch.tensor([0]), "cpu").logprobs)
    assert (logprobs[0] - logprobs[1]).abs().max() > 1e-3


def test_the_export_is_the_whole_model_with_its_processor(tmp_path: Path, toy_llava: Path):
    module, _ = run(tmp_path, toy_llava, max_steps=1)
    export(module, tmp_path / "out")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    for name, weight in module.policy.model.state_dict().items():
        assert weight.equal(again.state_dict()[name]), name
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    text = processor.apply_chat_template(message, add_generation_prompt=True)
    ids = processor(text=[text], images=[[picture(0)]])["input_ids"][0]
    assert ids == module.policy.image_processing([*message], [picture(0)], {})[0]


def test_a_run_with_images_that_is_resumed_ends_in_the_same_weights(tmp_path: Path, toy_llava: Path):
    whole, _ = run(tmp_path / "whole", toy_llava, max_steps=3)
    keep = {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(tmp_path, "half", every_n_train_steps=1)]}
    run(tmp_path / "first", toy_llava, max_steps=1, trainer=keep)
    module = make_module(toy_llava, vision_tower="frozen", rewards=[digits])
    data = GRPODataModule(dataset=picture_rows(tmp_path), batch_size=3)
    make_trainer(tmp_path, max_steps=3).fit(module, data, ckpt_path=str(tmp_path / "half.ckpt"))
    for name, weight in whole.policy.model.state_dict().items():
        assert weight.equal(module.policy.model.state_dict()[name]), name


def test_adapters_leave_the_vision_tower_out(tmp_path: Path, toy_llava: Path):
    module, fit = run(tmp_path, toy_llava, max_steps=1, finetuning_type="lora", lora_target="q_proj,v_proj", beta=0.1)
    adapted = {name for name, _ in module.policy.model.named_parameters() if "lora_" in name}
    assert adapted and all("language_model" in name for name in adapted)
    assert fit.callback_metrics["sampling/sampling_logp_difference/mean"] < 1e-5


def test_a_tower_that_is_trained_moves(tmp_path: Path, toy_llava: Path):
    module, _ = run(tmp_path, toy_llava, max_steps=1, vision_tower="trained", beta=0.1)
    before = AutoModelForImageTextToText.from_pretrained(toy_llava).state_dict()
    moved = {name for name, weight in module.policy.model.state_dict().items() if not weight.equal(before[name])}
    assert any("vision_tower" in name for name in moved) and any("projector" in name for name in moved)
