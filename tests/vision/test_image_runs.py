"""Whole runs of GRPO on prompts with images, with a toy LLaVA on the CPU."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoModelForImageTextToText, AutoProcessor

from grpo_lightning import GRPODataModule
from grpo_lightning.callbacks.completions import CompletionWriter
from grpo_lightning.callbacks.export import export
from grpo_lightning.commands.chat import main as chat_command
from grpo_lightning.commands.export import main as export_command
from grpo_lightning.generation import TransformersGenerator
from grpo_lightning.report.completions import read_completions
from grpo_lightning.rollouts.sampler_canary import StaleSamplerError
from grpo_lightning.types import Rollouts
from grpo_lightning.vision.images import read_image
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
        logprobs.append(module.passes.scorer.score(rollouts, torch.tensor([0])).logprobs)
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


def test_commands_read_the_checkpoint_of_a_run_and_its_export(
    tmp_path: Path, toy_llava: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    lora = {"finetuning_type": "lora", "lora_rank": 2, "lora_target": "all"}
    module, fit = run(tmp_path / "run", toy_llava, max_steps=1, **lora)
    fit.save_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    settings = {"model": {"model_name_or_path": str(toy_llava), "vision_tower": "frozen", **lora}}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    assert export_command([str(tmp_path / "run"), str(tmp_path / "out"), "--config", str(config)]) == 0
    again, ids = AutoModelForImageTextToText.from_pretrained(tmp_path / "out"), torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(again(ids).logits, module.policy.model.eval()(ids).logits)
    for source in ("run", "out"):
        capsys.readouterr()
        monkeypatch.setattr("sys.stdin", io.StringIO("2 + 3\n"))
        assert chat_command([str(tmp_path / source), "--config", str(config), "--max_completion_length", "4"]) == 0
        assert capsys.readouterr().out.strip()


ADAMW = {"optimizer": lambda weights: torch.optim.AdamW(weights, lr=1e-2)}
RESUMED = {"full": ADAMW, "lora": {**ADAMW, "finetuning_type": "lora", "lora_target": "q_proj,v_proj", "beta": 0.1}}


@pytest.fixture(scope="module", params=RESUMED)
def whole_run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, toy_llava: Path
) -> tuple[dict[str, Any], Path, Any]:
    """Settings, folder with a checkpoint of every step, and module of a run over one and a half epochs of two steps."""
    folder, settings = tmp_path_factory.mktemp("whole"), RESUMED[request.param]
    keep = ModelCheckpoint(folder, "after-{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = {"enable_checkpointing": True, "callbacks": [keep]}
    module, _ = run(folder, toy_llava, max_steps=3, trainer=trainer, **settings)
    return settings, folder, module


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_with_images_resumed_inside_or_after_an_epoch_ends_in_the_same_weights(
    whole_run: tuple[dict[str, Any], Path, Any], toy_llava: Path, tmp_path: Path, steps: int
):
    settings, folder, whole = whole_run
    module = make_module(toy_llava, vision_tower="frozen", rewards=[digits], **settings)
    data = GRPODataModule(dataset=picture_rows(folder), batch_size=3)
    (checkpoint,) = folder.glob(f"after-step={steps}.ckpt")
    make_trainer(tmp_path, max_steps=3).fit(module, data, ckpt_path=str(checkpoint))
    before = AutoModelForImageTextToText.from_pretrained(toy_llava).state_dict()
    expected, found = whole.policy.model.state_dict(), module.policy.model.state_dict()
    assert any(name not in before or not weight.equal(before[name]) for name, weight in expected.items())
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert weight.equal(found[name]), name


class SeesNoise(TransformersGenerator):
    """Samples as if other images were shown."""

    def generate(self, *arguments: Any, images: Any) -> Rollouts:
        noise = [{name: torch.randn_like(tensor) for name, tensor in each.pixels.items()} for each in images]
        seen = [replace(each, pixels=pixels) for each, pixels in zip(images, noise, strict=True)]
        return super().generate(*arguments, images=seen)


def test_a_sampler_that_sees_other_images_is_found_at_the_first_step(tmp_path: Path, toy_llava: Path):
    with pytest.raises(StaleSamplerError, match=r"Step 1: .*They never agreed"):
        run(tmp_path, toy_llava, max_steps=1, generator=SeesNoise(), max_sampler_mismatch=1e-4)


def test_completions_are_written_with_thumbnails_and_without_pixels(tmp_path: Path, toy_llava: Path):
    run(tmp_path, toy_llava, trainer={"callbacks": [CompletionWriter()]})
    rows = pq.read_table(tmp_path / "completions").to_pylist()
    shown = {row["uid"]: row["images"] for row in rows}
    assert {uid: len(images or ()) for uid, images in shown.items()} == {0: 1, 1: 2, 2: 2, 3: 1, 4: 0, 5: 1}
    assert read_image(shown[1][0]).size == (17, 16) and shown[1][0] == shown[5][0]
    columns = {row["uid"]: json.loads(row["columns"]) for row in rows}
    assert columns[1]["images"] == [str(tmp_path / "1.png"), str(tmp_path / "2.png")]
    page = read_completions(tmp_path, max_rows=100)
    assert page is not None
    assert [page["thumbnails"][place] for place in page["images"]] == [tuple(row["images"] or ()) for row in rows]


def test_held_out_prompts_with_images_are_answered_as_transformers_own_generate_answers(
    tmp_path: Path, toy_llava: Path
):
    answers: dict[str, str] = {}

    def reward(completions: Sequence[Any], image: Sequence[Any], **columns: Any) -> list[float]:
        answers.update(zip(map(str, image), [completion[0]["content"] for completion in completions], strict=True))
        return digits(completions)

    rows = picture_rows(tmp_path)
    module = make_module(toy_llava, vision_tower="frozen", rewards=[reward])
    data = GRPODataModule(dataset=rows, eval_dataset=rows, batch_size=3, eval_batch_size=3)
    make_trainer(tmp_path).validate(module, data, verbose=False)
    for path in (rows[0]["image"], rows[5]["image"]):
        blocks = [{"type": "image"}, {"type": "text", "text": "How many?"}]
        ids, images = module.policy.image_processing([{"role": "user", "content": blocks}], [read_image(path)], {})
        said = module.policy.model.generate(torch.tensor([ids]), **images.pixels, max_new_tokens=8, do_sample=False)
        assert answers[path] == module.policy.tokenizer.decode(said[0, len(ids) :], skip_special_tokens=True) != ""
    assert len(set(answers.values())) > 1


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
