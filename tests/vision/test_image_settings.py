"""What a run with images refuses, and what reads images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grpo_lightning import GRPOModule
from grpo_lightning.datamodules.prompts import PromptDataset
from grpo_lightning.generation.vllm.server import VLLMServer
from grpo_lightning.vision.images import read_image
from grpo_lightning.vision.messages import with_images
from tests.runs import make_module
from tests.vision.toy_checkpoint import save_toy_llava
from tests.vision.toy_vision import picture


@pytest.fixture(scope="module")
def toy_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_llava(tmp_path_factory.mktemp("llava"))


def module_with(model: Path, **settings: Any) -> GRPOModule:
    return make_module(model, **({"vision_tower": "frozen"} | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generator": VLLMServer()}, "VLLMServer samples text alone. Use TransformersGenerator"),
        ({"rollout_func": lambda prompts, trainer: {}}, "model.rollout_func: prompts with images are not covered"),
        ({"vision_tower": "molten"}, "model.vision_tower='molten' is unknown"),
        ({"vision_tower": "trained", "finetuning_type": "lora"}, "Use vision_tower=frozen"),
    ],
)
def test_what_is_not_covered_with_images_is_refused_by_name(toy_llava: Path, settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        module_with(toy_llava, **settings)


def test_a_model_without_a_tower_is_refused(tiny_model_dir: Path):
    with pytest.raises(ValueError, match="which sees no images"):
        module_with(tiny_model_dir)


def data_of(module: GRPOModule, rows: list[dict[str, Any]]) -> PromptDataset:
    return PromptDataset(rows, dict, module.policy.tokenizer, "rows", image_processing=module.policy.image_processing)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "text"}, "data.converter_args.conversational=true"),
        ({"prompt": [{"role": "user", "content": "?"}], "image": "https://somewhere/a.png"}, "nothing is fetched"),
        ({"prompt": [{"role": "user", "content": "?"}], "image": "missing.png"}, "cannot be read"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "1 blocks of images to be filled"),
        ({"prompt": [{"role": "user", "content": "?"}], "images": "a.png"}, "not a list"),
    ],
)
def test_rows_whose_images_cannot_be_shown_are_refused_with_their_number(
    toy_llava: Path, row: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=f"row 0.*{message}"):
        data_of(module_with(toy_llava), [row])


def test_a_prompt_with_an_image_is_refused_where_the_policy_sees_text_alone(toy_llava: Path):
    rows = [{"prompt": [{"role": "user", "content": [{"type": "image"}]}], "image": picture(0)}]
    with pytest.raises(ValueError, match=r"rows, row 0 shows an image.*model.vision_tower is not set"):
        data_of(make_module(toy_llava), rows)


def test_images_of_blocks_and_columns_come_in_the_order_of_the_blocks():
    content = [{"type": "image"}, {"type": "image", "image": "own"}, {"type": "text", "text": "?"}, {"type": "image"}]
    messages, images = with_images({"prompt": [{"role": "user", "content": content}], "images": ["a", "b"]})
    assert images == ["a", "own", "b"]
    assert messages[0]["content"][1] == {"type": "image"}
    assert content[1] == {"type": "image", "image": "own"}, "the row stays as it was"


def test_an_image_is_the_same_from_every_form_that_holds_it(tmp_path: Path):
    picture(3).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    expected = picture(3).tobytes()
    for form in (
        picture(3),
        str(tmp_path / "a.png"),
        {"bytes": data},
        {"path": str(tmp_path / "a.png"), "bytes": None},
    ):
        assert read_image(form).tobytes() == expected
