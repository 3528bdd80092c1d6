"""What a run with images refuses, and what reads images."""

from __future__ import annotations

import json
import re
import sys
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

import grpo_lightning
from grpo_lightning import DPOModule, GRPODataModule, GRPOModule, RewardModelModule, SFTModule
from grpo_lightning.commands.rewards import main as rewards_command
from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.datamodules.prompts.form import PromptForm
from grpo_lightning.generation import VLLMColocate, VLLMServer
from grpo_lightning.generation.vllm.models import refuse_own_head
from grpo_lightning.vision.images import read_image, reference_of
from grpo_lightning.vision.messages import with_images
from grpo_lightning.vision.thumbnails import is_thumbnail, thumbnails
from tests.copy_generator import CopyGenerator
from tests.runs import make_module
from tests.vision.toy_checkpoint import save_toy_llava
from tests.vision.toy_vision import picture
from tests.vllm_cases import needs_vllm


@pytest.fixture(scope="module")
def toy_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_llava(tmp_path_factory.mktemp("llava"))


def module_with(model: Path, **settings: Any) -> GRPOModule:
    return make_module(model, **({"vision_tower": "frozen"} | settings))


class OfTheOldForm(CopyGenerator):
    def see_images(self, processing: Any, config: Any) -> None: ...

    def check_images(self, prompts: Any) -> None: ...

    def generate_with_images(self, prompt_ids: Any, images: Any, sampling: Any, seeds: Any, on_completed: Any = None):
        raise AssertionError


class PassesOn(OfTheOldForm):
    def generate(self, *args: Any, **kwargs: Any):
        return super().generate(*args, **kwargs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"generator": OfTheOldForm()},
            r"OfTheOldForm has a generate that does not take images\. Write def generate\(",
        ),
        ({"generator": CopyGenerator()}, "CopyGenerator samples text alone. Use VLLMColocate, VLLMServer or Transf"),
        ({"rollout_func": lambda prompts, trainer: {}}, "model.rollout_func: prompts with images are not covered"),
        ({"vision_tower": "molten"}, "vision_tower='molten' cannot be used: it takes 'frozen' or 'trained' or None"),
        ({"vision_tower": "trained", "finetuning_type": "lora"}, "Use vision_tower=frozen"),
    ],
)
def test_what_is_not_covered_with_images_is_refused_by_name(toy_llava: Path, settings: dict[str, Any], message: str):
    with pytest.raises((TypeError, ValueError), match=message):
        module_with(toy_llava, **settings)


def test_a_generator_of_ones_own_that_passes_keywords_on_is_taken(toy_llava: Path):
    generator = PassesOn()
    assert module_with(toy_llava, generator=generator).source.generator is generator


def test_a_model_without_a_tower_is_refused(tiny_model_dir: Path):
    with pytest.raises(ValueError, match="which sees no images"):
        module_with(tiny_model_dir)


def write_with_text_of_cohere(path: Path, is_tied: bool) -> Path:
    """A LLaVA whose language part is one that vLLM knows with a tied head alone."""
    config = json.loads((save_toy_llava(path) / "config.json").read_text())
    of_cohere = {"model_type": "cohere2", "layer_types": ["full_attention"] * 2, "tie_word_embeddings": is_tied}
    changed = config | {"tie_word_embeddings": is_tied, "text_config": config["text_config"] | of_cohere}
    (path / "config.json").write_text(json.dumps(changed))
    return path


@pytest.mark.parametrize("generator", [VLLMServer, pytest.param(VLLMColocate, marks=needs_vllm)])
def test_a_head_of_its_own_is_refused_beside_a_tower_where_vllm_ties_it(generator: Any, tmp_path: Path):
    model = write_with_text_of_cohere(tmp_path, is_tied=False)
    with pytest.raises(ValueError, match=rf"{generator.__name__}: .* logits of cohere2 with the embedding\. Use"):
        module_with(model, generator=generator())


def test_a_tied_head_beside_a_tower_is_taken(tmp_path: Path):
    generator = VLLMServer()
    module_with(write_with_text_of_cohere(tmp_path, is_tied=True), generator=generator)
    assert generator.images.processor is not None


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("part_says", [True, False])
def test_beside_a_tower_the_setting_of_the_whole_model_ties_the_head(is_tied: bool, part_says: bool):
    text = {"model_type": "cohere2", "num_hidden_layers": 1, "tie_word_embeddings": part_says}
    config = AutoConfig.for_model("cohere2_vision", tie_word_embeddings=is_tied, text_config=text)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    model.tie_weights()
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == is_tied
    with nullcontext() if is_tied else pytest.raises(ValueError, match="output head of its own"):
        refuse_own_head("VLLMServer", config, has_tower=True)


def data_of(module: GRPOModule, rows: list[dict[str, Any]]) -> PromptDataset:
    form = PromptForm(module.policy.tokenizer, image_processing=module.policy.image_processing)
    return PromptDataset(rows, dict, form, "rows")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "text"}, "data.converter_args.conversational=true"),
        ({"prompt": [{"role": "user", "content": "?"}], "image": "https://somewhere/a.png"}, "nothing is fetched"),
        ({"prompt": [{"role": "user", "content": "?"}], "image": "missing.png"}, "cannot be read"),
        ({"prompt": [{"content": "?"}], "image": "missing.png"}, "no message of the user"),
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


@pytest.mark.parametrize("stage", [SFTModule, DPOModule])
@pytest.mark.parametrize(
    "shown",
    [
        {"prompt": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]},
        {"prompt": [{"role": "user", "content": "?"}], "image": picture(0)},
        {"prompt": [{"role": "user", "content": "?"}], "images": [{"bytes": b"png", "path": None}]},
        {"prompt": [{"role": "user", "content": "?"}], "images": ["photos/dog.PNG"]},
        {"prompt": [{"role": "user", "content": "?"}], "image": "data:image/jpeg;base64,AAAA"},
    ],
)
def test_stages_that_train_on_text_refuse_rows_with_images_by_name(
    tiny_model_dir: Path, stage: type[Any], shown: dict[str, Any]
):
    says = [{"role": "assistant", "content": "4"}]
    row = {"prompt": [{"role": "user", "content": "2 + 2"}], "completion": says, "chosen": says, "rejected": says}
    data = GRPODataModule(dataset=[row, row | shown], batch_size=1, converter=dict)
    data.trainer = SimpleNamespace(lightning_module=stage(model_name_or_path=str(tiny_model_dir)))
    with pytest.raises(ValueError, match=f"row 1 has an image, and {stage.__name__} trains on text alone"):
        data.setup("fit")


@pytest.mark.parametrize("stage", [SFTModule, DPOModule, RewardModelModule])
def test_rows_may_have_lists_beside_their_texts(tiny_model_dir: Path, stage: type[Any]):
    row = {"prompt": "2 + 2", "completion": "4", "chosen": "4", "rejected": "5", "image": "a dog in the snow"}
    tokenizer = stage(model_name_or_path=str(tiny_model_dir)).policy.tokenizer
    listed = {**row, "rating": [9.0, 7.5], "tags": ["sum", "easy"]}
    assert PromptDataset([listed], dict, PromptForm(tokenizer, text_stage=stage.__name__), "rows").values("rating") == [
        [9.0, 7.5]
    ]


def test_without_pillow_the_error_says_what_to_install(toy_llava: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ValueError, match=r"pip install 'grpo-lightning\[vision\]'"):
        module_with(toy_llava)


def test_runs_on_text_need_no_pillow():
    """Where it is installed other packages import it too, so the sources are what tells."""
    found = []
    for path in Path(grpo_lightning.__file__).parent.rglob("*.py"):
        lines = path.read_text().splitlines()
        found += [
            path.name
            for before, line in pairwise(lines)
            if re.match(r"\s*(from|import) PIL\b", line) and before != "if TYPE_CHECKING:"
        ]
    assert set(found) == {"pillow.py"}


def test_thumbnails_are_small_whatever_the_image_is():
    wide, comment = picture(1, 4000, 2), picture(2, 300, 300)
    comment.info["comment"] = b"x" * 60_000
    small = thumbnails([wide, comment, *[picture(3)] * 4])
    assert len(small) == 4 and all(is_thumbnail(each) for each in small)
    assert [read_image(each).size for each in small] == [(128, 1), (128, 128), (16, 16), (16, 16)]
    assert wide.size == (4000, 2), "left as it is"
    assert len(comment.info["comment"]) == 60_000


@pytest.mark.parametrize(
    ("cell", "kept"),
    [
        ("dots.png", "dots.png"),
        (None, None),
        ("data:image/png;base64,AAAA", "data:image/png;base64, image of 26 characters"),
        ({"bytes": b"12", "path": "a.png"}, "a.png"),
        (b"123", "image of 3 bytes"),
        (Path("a.png"), "a.png"),
        ([picture(0, 5, 4)], ["image of 5 x 4 pixels"]),
    ],
)
def test_tables_of_results_keep_a_reference_and_no_pixels(cell: Any, kept: Any):
    assert reference_of(cell) == kept


def test_rewards_are_tried_with_the_images_of_a_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    picture(0, 20, 10).save(tmp_path / "dots.png")
    (tmp_path / "rewards_of_images.py").write_text(
        "from grpo_lightning.vision.images import read_image\n"
        "def width(prompts, completions, image, **columns):\n"
        "    kinds = [[part['type'] for part in prompt[0]['content']] for prompt in prompts]\n"
        "    assert kinds == [['image', 'text']] * len(completions)\n"
        "    return [read_image(one).width + len(c[0]['content']) for one, c in zip(image, completions)]\n"
    )
    monkeypatch.chdir(tmp_path)
    command = ["try", "--rewards", "rewards_of_images.width", "--prompt", "How wide?", "--completion", "four"]
    assert rewards_command([*command, "--image", "dots.png"]) == 0
    assert "24.0000" in capsys.readouterr().out
    assert rewards_command([*command, "--image", "none.png"]) == 2
    assert "the image 'none.png' cannot be read" in capsys.readouterr().err
