"""Prompts with images in a real vLLM engine on this CPU: what it samples from is what is trained."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from vllm_cases import eager_torch, needs_vllm, small_engine
from vllm_forks import run_engine_ranks

from grpo_lightning import GRPODataModule
from grpo_lightning.generation import SamplingSettings, VLLMColocate
from grpo_lightning.policy.policy import Policy
from grpo_lightning.policy.settings import PolicySettings
from grpo_lightning.rollouts.sampler_canary import MISMATCH, StaleSamplerError
from grpo_lightning.types import Rollouts
from tests.runs import make_module, make_trainer
from tests.vision.cpu_torchvision import FOLDER, is_installed, main_with_torchvision
from tests.vision.engine_cases import SETTINGS, check_gaps, gap, gaps, prompts_of, sample, told
from tests.vision.engine_on_ranks import train
from tests.vision.test_image_runs import digits, picture_rows
from tests.vision.toy_checkpoint import save_toy_checkpoint
from tests.vision.toy_vision import picture

pytestmark = needs_vllm

WITH_TORCHVISION = ("qwen2_5_vl", "qwen3_vl", "smolvlm", "llava", "gemma3")
"""Families whose processor, or whose class in vLLM, imports it: not in this process, where nothing else may find it."""
LANGUAGE_PARTS = {"gemma3-text": 1e-5, "qwen3_5-text": 0.05}
"""Those that are trained alone, and how far the engine may be off: by rounding to float32, and to bfloat16."""
needs_torchvision = pytest.mark.skipif(not is_installed(), reason="needs torchvision beside the environment")


@pytest.fixture(autouse=True)
def _eager():
    with eager_torch():
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_checkpoint("idefics3", tmp_path_factory.mktemp("toy") / "idefics3")


@pytest.fixture(scope="module")
def policy(checkpoint: Path) -> Policy:
    return Policy(PolicySettings(model_name_or_path=str(checkpoint)), vision_tower="frozen").load()


@pytest.fixture
def generator(policy: Policy):
    with told(small_engine(), policy) as engine:
        yield engine


@pytest.fixture(scope="module")
def of_child(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the families of ``WITH_TORCHVISION`` gave, one after the other in one process."""
    folder = tmp_path_factory.mktemp("families")
    main_with_torchvision("tests.vision.engine_cases", str(folder), *WITH_TORCHVISION, *LANGUAGE_PARTS)
    return folder


def test_sampled_tokens_have_the_probabilities_of_training(checkpoint: Path):
    check_gaps(gaps(checkpoint))


@needs_torchvision
@pytest.mark.parametrize("family", [family for family in WITH_TORCHVISION if family != "gemma3"])
def test_sampled_tokens_of_other_families_have_the_probabilities_of_training(of_child: Path, family: str):
    check_gaps(json.loads((of_child / f"{family}.json").read_text()))


@needs_torchvision
@pytest.mark.parametrize("family", LANGUAGE_PARTS)
def test_a_language_part_that_is_trained_alone_is_sampled_from_without_its_tower(of_child: Path, family: str):
    assert json.loads((of_child / f"{family}.json").read_text()) < LANGUAGE_PARTS[family]


def test_a_language_part_that_this_vllm_has_no_class_for_is_refused_before_weights_load(
    monkeypatch: pytest.MonkeyPatch,
):
    vllm = pytest.importorskip("vllm")
    config = AutoConfig.for_model("qwen3_5")
    VLLMColocate().check_model(config)
    monkeypatch.delitem(vllm.ModelRegistry.models, "Qwen3_5ForCausalLM")  # as in 0.25
    with pytest.raises(
        ValueError, match=r"has Qwen3_5ForConditionalGeneration alone, and Qwen3_5ForCausalLM is trained"
    ):
        VLLMColocate().check_model(config)
    VLLMColocate().check_model(AutoConfig.for_model("gemma3"))


@needs_torchvision
def test_a_model_whose_images_are_read_both_ways_is_refused_on_a_cpu(of_child: Path):
    assert "see only those before them" in json.loads((of_child / "gemma3.json").read_text())["refused"]


def test_the_images_of_a_prompt_are_processed_once_for_its_group(generator: VLLMColocate, policy: Policy):
    assert generator._engine is not None
    renderer, rendered = generator._engine.llm.llm_engine.renderer, []
    original = renderer.render_cmpl
    renderer.render_cmpl = lambda prompts: rendered.append(len(prompts)) or original(prompts)
    for sampling in (SETTINGS, replace(SETTINGS, temperature=0.0)):
        rendered.clear()
        rollouts = sample(generator, prompts_of(policy), sampling)
        assert rollouts.group.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert rendered == [1, 1], "two of the three prompts show images"


def test_greedy_completions_of_prompts_with_images_are_those_of_transformers(generator: VLLMColocate, policy: Policy):
    prompts = prompts_of(policy, first=5)
    found = sample(generator, prompts, SamplingSettings(num_generations=1, max_completion_length=6, temperature=0.0))
    for (ids, images), completion in zip(prompts, found.completions(), strict=True):
        said = policy.model.generate(torch.tensor([ids]), **images.pixels, max_new_tokens=6, do_sample=False)
        assert completion.tolist() == said[0, len(ids) :].tolist()


def test_other_images_are_sampled_from_otherwise(generator: VLLMColocate, policy: Policy):
    rollouts = sample(generator, prompts_of(policy))
    other = tuple(images for _, images in prompts_of(policy, first=9))
    assert gap(policy, rollouts) < 1e-4 < 0.01 < gap(policy, replace(rollouts, images=other))


def test_images_that_the_engine_reads_as_other_tokens_are_refused(generator: VLLMColocate, policy: Policy):
    (ids, images), *_ = prompts_of(policy)
    with pytest.raises(ValueError, match=rf"prompt 0 become {len(ids)} tokens .* and {len(ids) + 1} in training"):
        generator.generate([[*ids, 5]], SETTINGS, [1], images=[images])


def run(folder: Path, checkpoint: Path, generator: VLLMColocate, **settings: Any) -> Any:
    module = make_module(
        checkpoint, vision_tower="frozen", rewards=[digits], generator=generator, max_sampler_mismatch=1e-3, **settings
    )
    data = GRPODataModule(dataset=picture_rows(folder), batch_size=3)
    make_trainer(folder, max_steps=3).fit(module, data)
    return module


def test_a_run_with_images_is_sampled_by_the_engine_and_ends_it(tmp_path: Path, checkpoint: Path):
    generator = small_engine()
    module = run(tmp_path, checkpoint, generator, optimizer=lambda weights: torch.optim.SGD(weights, lr=1.0))
    assert module.steps_done == 3
    assert module.step_metrics[MISMATCH] < 1e-4
    assert generator._engine is None


class SeesOthers(VLLMColocate):
    """Shows the engine other pictures of the same sizes."""

    def generate(self, *arguments: Any, images: Sequence[Any]) -> Rollouts:
        other = [tuple(picture(50 + n, *image.size) for n, image in enumerate(each.images)) for each in images]
        shown = [replace(each, images=pictures) for each, pictures in zip(images, other, strict=True)]
        return super().generate(*arguments, images=shown)


def test_an_engine_that_sees_other_images_is_found_at_the_first_step(tmp_path: Path, checkpoint: Path):
    settings = {"enforce_eager": True, "kv_cache_memory_gb": 1 / 16, "max_model_length": 256}
    with pytest.raises(StaleSamplerError, match=r"Step 1: .*They never agreed"):
        run(tmp_path, checkpoint, SeesOthers(**settings))


@pytest.mark.slow
def test_ranks_of_one_engine_tell_each_other_of_pictures_and_of_no_pixels(tmp_path: Path, checkpoint: Path):
    (ranks,) = run_engine_ranks(train, [(checkpoint, tmp_path)])
    for found in ranks:
        assert found["steps"] == 2 and found["mismatch"] < 1e-4
        assert found["told"] and all(told < pictures + 2500 for told, pictures in found["told"])


def test_the_process_of_the_tests_itself_does_not_see_the_torchvision_of_others():
    assert str(FOLDER) not in sys.path


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_a_model_that_vllm_cannot_load_here_is_refused_before_weights_load(policy: Policy):
    config = type(policy.config)(architectures=["Qwen2_5_VLForConditionalGeneration"])
    with pytest.raises(
        ValueError,
        match=r"cannot show images: vLLM [\d.]+'s Qwen2_5_VL\w+ needs the package torchvision, which is missing",
    ):
        small_engine().see_images(policy.image_processing, config)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [("NoSuchModel", r"vLLM [\d.]+ has no NoSuchModel"), ("LlamaForCausalLM", "'s LlamaForCausalLM sees text alone")],
)
def test_a_model_without_eyes_in_vllm_is_refused_by_name(policy: Policy, architecture: str, message: str):
    with pytest.raises(ValueError, match=message):
        small_engine().see_images(policy.image_processing, type(policy.config)(architectures=[architecture]))
