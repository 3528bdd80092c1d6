"""Scores of prompts with images: packed, prompts and images shared, against the model's own forward pass."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from grpo_lightning.scoring import Scorer
from grpo_lightning.types import Rollouts
from tests.vision.toy_vision import CONFIGS, IMAGE_TOKEN, image_rollouts, toy_vision_model

LAYOUTS = {
    "qwen2_5_vl": "packed",
    "qwen3_vl": "packed",
    "llava": "packed",
    "idefics3": "packed",
    "gemma3": "one by one",
}
MODELS_PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
SIZES = [[(16, 16), (24, 16)], [], [(16, 32)]]


def own_logprobs(model: PreTrainedModel, rollouts: Rollouts) -> Tensor:
    """Of the completion tokens, one plain forward pass with pixels after the other."""
    found = []
    for n, completion in enumerate(rollouts.completions()):
        b = int(rollouts.group[n])
        prompt, images = rollouts.prompts()[b], rollouts.images[b]
        ids = torch.cat([prompt, completion])[None]
        kinds = {name: torch.cat([t, torch.zeros_like(completion)])[None] for name, t in images.per_token.items()}
        inputs = {**kinds, **images.pixels} if images.images else {}
        logits = model(input_ids=ids, **inputs).logits[0, len(prompt) - 1 : -1]
        found.append(logits.log_softmax(-1).gather(-1, completion[:, None])[:, 0])
    return torch.cat(found)


@pytest.mark.parametrize("family", LAYOUTS)
@pytest.mark.parametrize("share", [True, False])
def test_scores_of_prompts_with_images_are_those_of_the_models_own_forward_pass(family: str, share: bool):
    model, rollouts = toy_vision_model(family), image_rollouts(family, SIZES, [3, 2, 2])
    rows = torch.tensor([5, 0, 2, 3, 6])
    scorer = Scorer(model, 1.0, share_prompts=share, probe=rollouts)
    found = scorer.score(rollouts, rows).logprobs
    expected = own_logprobs(model, rollouts)[rollouts.tokens_of(rows)]
    assert ("one by one" if scorer.is_plain else scorer.layout) == LAYOUTS[family]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", LAYOUTS)
def test_gradients_of_prompts_with_images_are_those_of_the_models_own_forward_pass(family: str):
    model, rollouts = toy_vision_model(family), image_rollouts(family, SIZES, [3, 2, 2])
    weights = torch.randn(int(rollouts.completion_ids.numel()), generator=torch.Generator().manual_seed(0))
    (own_logprobs(model, rollouts) * weights).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    rows = torch.arange(rollouts.num_completions)
    scorer = Scorer(model, 1.0, probe=rollouts)
    scorer.check()
    (scorer.score(rollouts, rows).logprobs * weights).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    assert any("vis" in name for name in found), "the tower trains here"
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_images_are_encoded_once_for_all_completions_of_a_prompt(monkeypatch: pytest.MonkeyPatch):
    model, rollouts = toy_vision_model("llava"), image_rollouts("llava", SIZES, [3, 2, 2])
    seen = []
    own = model.model.vision_tower.forward
    monkeypatch.setattr(model.model.vision_tower, "forward", lambda *a, **k: seen.append(a) or own(*a, **k))
    scorer = Scorer(model, 1.0)
    scorer.check()
    seen.clear()
    scorer.score(rollouts, torch.arange(rollouts.num_completions))
    assert len(seen) == 2, "two of the prompts show images"


def test_a_sampled_placeholder_is_text():
    rollouts = image_rollouts("llava", SIZES, [1, 1, 1])
    sampled = rollouts.completion_ids.clone()
    sampled[1] = IMAGE_TOKEN
    rollouts = Rollouts(**{**rollouts.__dict__, "completion_ids": sampled})
    found = Scorer(toy_vision_model("llava"), 1.0).score(rollouts, torch.arange(3)).logprobs
    assert found.isfinite().all()


def test_the_page_of_models_says_what_is_tested_here():
    said = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([\w ]+) \| yes \| [^|]+ \|$", MODELS_PAGE.read_text(), re.MULTILINE)
    assert dict(said) == LAYOUTS
    assert set(LAYOUTS) == set(CONFIGS), "what test_image_sampling.py samples"
