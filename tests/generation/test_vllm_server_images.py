"""Prompts with images from a real vLLM server: its completions have the probabilities of training."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_vllm_server import fake_vllm
from PIL import Image
from ports import free_port
from vllm_cases import SMALL_SERVER, eager_torch, needs_vllm

from grpo_lightning import GRPODataModule
from grpo_lightning.generation import SamplingSettings, VLLMServer
from grpo_lightning.generation.vllm.serving import images as server_images
from grpo_lightning.generation.vllm.serving.client import VLLMClient
from grpo_lightning.generation.vllm.serving.endpoints import TOKENS
from grpo_lightning.policy.policy import Policy
from grpo_lightning.policy.settings import PolicySettings
from grpo_lightning.rollouts.sampler_canary import MISMATCH
from grpo_lightning.vision.probe import image_prompts
from tests.runs import make_module, make_trainer
from tests.vision.cpu_torchvision import is_installed, main_with_torchvision
from tests.vision.engine_cases import check_gaps, gap, prompts_of, sample, shift_tower, told
from tests.vision.server_cases import served
from tests.vision.test_image_runs import digits, picture_rows
from tests.vision.toy_checkpoint import save_toy_checkpoint
from tests.vision.toy_vision import picture

pytestmark = [*needs_vllm, pytest.mark.slow]
needs_torchvision = pytest.mark.skipif(not is_installed(), reason="needs torchvision beside the environment")


@pytest.fixture(scope="module", autouse=True)
def _eager():
    with eager_torch():
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_checkpoint("idefics3", tmp_path_factory.mktemp("toy") / "idefics3")


def small_server(**settings: Any) -> VLLMServer:
    options = {"launch_arguments": SMALL_SERVER, "max_model_length": 256}
    return VLLMServer(port=free_port(), launch=True, **options, **settings)


@pytest.mark.skipif(is_installed(), reason="Qwen3-VL is compared, which asks more: a server takes a minute to start")
def test_completions_of_prompts_with_images_have_the_probabilities_of_training(checkpoint: Path):
    policy = Policy(PolicySettings(model_name_or_path=str(checkpoint)), vision_tower="trained").load()
    with served(checkpoint) as port, told(VLLMServer(port=port, timeout=200), policy) as generator:
        rollouts = sample(generator, prompts_of(policy))
        assert rollouts.group.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        other = tuple(images for _, images in prompts_of(policy, first=9))
        assert gap(policy, rollouts) < 1e-4 < 0.01 < gap(policy, replace(rollouts, images=other))
        shift_tower(policy)
        assert gap(policy, sample(generator, prompts_of(policy))) > 0.1, "the server has the tower before"
        generator.update_weights(policy.model)
        assert gap(policy, sample(generator, prompts_of(policy))) < 1e-4, "and forgets what that made of the images"
        greedy = SamplingSettings(num_generations=1, max_completion_length=6, temperature=0.0)
        prompts = prompts_of(policy, first=5)
        for (ids, images), found in zip(prompts, sample(generator, prompts, greedy).completions(), strict=True):
            said = policy.model.generate(torch.tensor([ids]), **images.pixels, max_new_tokens=6, do_sample=False)
            assert found.tolist() == said[0, len(ids) :].tolist()


def test_a_server_that_makes_other_tokens_of_a_prompt_is_refused():
    server_images.check_tokens([1, 2, 3], [1, 2, 3])
    with pytest.raises(ValueError, match=r"become 2 tokens .* and 3 in training"):
        server_images.check_tokens([1, 2], [1, 2, 3])


@needs_torchvision
def test_a_server_takes_images_weights_and_adapters_of_a_family_with_positions_on_three_axes(tmp_path: Path):
    main_with_torchvision("tests.vision.server_cases", str(tmp_path), "qwen3_vl")
    check_gaps(json.loads((tmp_path / "qwen3_vl.json").read_text()))


@pytest.mark.usefixtures("forked_servers")
def test_a_run_with_images_and_a_hot_adapter_is_sampled_by_a_server(tmp_path: Path, checkpoint: Path):
    generator = small_server(lora_sync="hot")
    lora = {"finetuning_type": "lora", "lora_rank": 8, "lora_target": "q_proj,v_proj"}
    module = make_module(
        checkpoint, vision_tower="frozen", rewards=[digits], generator=generator, max_sampler_mismatch=1e-3, **lora,
        optimizer=lambda weights: torch.optim.SGD(weights, lr=1.0),
    )  # fmt: skip
    data = GRPODataModule(dataset=picture_rows(tmp_path), batch_size=3)
    make_trainer(tmp_path, max_steps=3).fit(module, data)
    assert module.steps_done == 3 and module.step_metrics[MISMATCH] < 1e-4
    assert generator.launched is None


def test_a_server_that_takes_no_images_is_refused_with_how_to_start_one(checkpoint: Path):
    policy = Policy(PolicySettings(model_name_or_path=str(checkpoint)), vision_tower="frozen").load()
    assert policy.image_processing is not None
    prompts = image_prompts(policy.image_processing)
    with fake_vllm() as server:
        client = VLLMClient("127.0.0.1", server.server_address[1], request_timeout=5)
        server.answer(TOKENS.path, always=403)
        with pytest.raises(ValueError, match=r"takes no images .*403.* serve --images, on vLLM 0\.32"):
            server_images.check_shown(client, "policy", prompts)
        client.close()


def test_an_older_vllm_is_refused_before_it_is_launched(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    policy = Policy(PolicySettings(model_name_or_path=str(checkpoint)), vision_tower="frozen").load()
    monkeypatch.setattr("grpo_lightning.generation.vllm.compat.installed_version", lambda: ("0.31.0+cpu", True))
    with pytest.raises(ValueError, match=r"VLLMServer cannot show images: .* from vLLM 0\.32 on, and 0\.31\.0"):
        small_server().see_images(policy.image_processing, policy.config)


def test_pictures_reach_a_server_with_every_pixel_as_it_is():
    image = picture(3, 24, 16)
    data = base64.b64decode(server_images.data_uri(image).partition(",")[2])
    assert Image.open(io.BytesIO(data)).tobytes() == image.tobytes()
