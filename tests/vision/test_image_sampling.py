"""TransformersGenerator on prompts with images: what it samples from is what is scored."""

from __future__ import annotations

import pytest
import torch

from grpo_lightning.generation.base import SamplingSettings
from grpo_lightning.generation.transformers.generator import TransformersGenerator
from grpo_lightning.scoring import Scorer
from grpo_lightning.types import Rollouts
from tests.toy_models import build_tokenizer
from tests.vision.toy_vision import CONFIGS, image_rollouts, toy_vision_model

SIZES = [[(16, 16), (24, 16)], [], [(16, 32)]]


@pytest.mark.parametrize("family", CONFIGS)
def test_sampled_tokens_of_prompts_with_images_have_the_probabilities_of_scoring(family: str):
    model, prompts = toy_vision_model(family), image_rollouts(family, SIZES, [1, 1, 1])
    generator = TransformersGenerator()
    generator.start(model, build_tokenizer(), family)
    shown = [(ids.tolist(), images) for ids, images in zip(prompts.prompts(), prompts.images, strict=True)]
    generator.check_images([shown[0], shown[2]])
    sampling = SamplingSettings(num_generations=3, max_completion_length=6)
    ids = [each for each, _ in shown]
    with torch.no_grad():
        sampled = generator.generate(ids, sampling, [1, 2, 3], images=prompts.images)
        rollouts = Rollouts(**{**sampled.__dict__, "images": prompts.images})
        scores = Scorer(model, 1.0, probe=prompts).score(rollouts, torch.arange(9)).logprobs
    torch.testing.assert_close(rollouts.sampling_logprobs, scores, atol=1e-4, rtol=0)
