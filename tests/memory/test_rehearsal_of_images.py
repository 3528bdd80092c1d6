"""Passes before the first step show the images that prompts show: a tower that trains keeps what they take."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_device import SavedTensors, on_device

from grpo_lightning import GRPODataModule, GRPOModule
from grpo_lightning.memory import budget, rehearsal
from grpo_lightning.memory.worst_case import filling_rollouts, showing
from grpo_lightning.modules.rehearsed_step import most_shown
from grpo_lightning.types import PromptImages, Rollouts
from tests.runs import make_module, make_trainer, weights
from tests.vision.test_image_runs import digits, picture_rows
from tests.vision.toy_checkpoint import save_toy_llava

LARGE = 2**34
BUDGET = 120
"""Tokens of a micro-batch: two prompts with images, with their completions."""


@pytest.fixture(scope="module")
def toy_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_llava(tmp_path_factory.mktemp("llava"))


def fit(folder: Path, model: Path, tower: str, gauge: SavedTensors | None, rows: Iterable[int] = range(6)) -> Any:
    """A run of two steps; ``peaks`` has what each micro-batch of them kept for its backward pass."""
    module, all_rows = make_module(model, vision_tower=tower, rewards=[digits], **_SETTINGS), picture_rows(folder)
    module.peaks = []
    if gauge is not None:
        on_device(gauge)(module)
        loss = module.policy_loss

        def measured(*arguments: Any) -> Any:
            if module.memory_plan is None:  # rehearsed, and measured around
                return loss(*arguments)
            with gauge.measuring() as peak:
                found = loss(*arguments)
                module.peaks.append(peak())
            return found

        module.policy_loss = measured
    data = GRPODataModule(dataset=[all_rows[row] for row in rows], batch_size=3)
    make_trainer(folder, max_steps=2).fit(module, data)
    return module


_SETTINGS: dict[str, Any] = {
    "max_tokens_per_microbatch": BUDGET,
    "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
}


def test_what_was_measured_is_enough_for_every_micro_batch_and_a_tower_that_trains_takes_more(
    tmp_path: Path, toy_llava: Path
):
    needed = {}
    for tower in ("frozen", "trained"):
        module = fit(tmp_path, toy_llava, tower, SavedTensors(LARGE))
        needed[tower] = module.memory_plan.needed.bytes
        assert max(module.peaks) <= needed[tower]
        assert max(module.peaks) > 0.6 * needed[tower], "not by far more than enough"
    assert needed["trained"] > 1.1 * needed["frozen"]


def test_prompts_of_text_alone_are_rehearsed_without_images(tmp_path: Path, toy_llava: Path):
    text = fit(tmp_path, toy_llava, "trained", SavedTensors(LARGE), rows=[4, 4, 4])
    frozen = fit(tmp_path, toy_llava, "frozen", SavedTensors(LARGE), rows=[4, 4, 4])
    assert most_shown(text.datamodule, text.policy) is None
    assert text.memory_plan.needed.bytes == pytest.approx(frozen.memory_plan.needed.bytes, rel=0.01)


def test_the_prompt_with_most_of_its_tokens_from_images_is_rehearsed(tmp_path: Path, toy_llava: Path):
    module = fit(tmp_path, toy_llava, "frozen", None)
    ids, images = most_shown(module.datamodule, module.policy)
    assert len(images.images) == 2 and int(images.is_image.sum()) == 32 == ids.count(
        module.policy.config.image_token_id
    )
    module.datamodule.train_prompts = None  # as of a stream
    _, made_up = most_shown(module.datamodule, module.policy)
    assert len(made_up.images) == 1


def test_a_run_with_images_is_the_same_to_the_bit_with_and_without(tmp_path: Path, toy_llava: Path):
    gauge = SavedTensors(LARGE)
    plain, rehearsed = (fit(tmp_path, toy_llava, "trained", each) for each in (None, gauge))
    assert gauge.passes > 3
    expected = weights(plain)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(rehearsed).items())


def test_auto_is_bounded_by_the_models_size_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, toy_llava: Path):
    monkeypatch.setattr(rehearsal, "PROBE_TOKENS", 256)
    monkeypatch.setattr(budget, "BUDGET_STEP", 32)
    monkeypatch.setattr(rehearsal, "largest_budget", lambda parameters: 512)
    monkeypatch.setitem(_SETTINGS, "max_tokens_per_microbatch", "auto")
    monkeypatch.setattr(GRPOModule, "prompts_in_a_step", lambda self: 2**20)
    module = fit(tmp_path, toy_llava, "trained", SavedTensors(LARGE))
    assert module.memory_plan.budget == module.passes.max_tokens == 512


def test_every_whole_prompt_of_filling_rollouts_shows_the_images_and_a_cut_one_none():
    ids = [7, 9, 9, 8]
    images = PromptImages(("picture",), [7, 9, 8], torch.tensor([False, True, True, False]), {}, {})  # type: ignore[arg-type]
    found: Rollouts = showing(filling_rollouts(24, 4, 3, 2, 100, "packed"), ids, images)
    assert [prompt.tolist() for prompt in found.prompts()][:2] == [ids, ids]
    assert found.prompt_lengths.tolist() == [4, 4, 3]
    assert [len(each.images) for each in found.images] == [1, 1, 0]
    assert found.images[2].is_image.tolist() == [False] * 3
