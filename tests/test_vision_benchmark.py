"""The comparison with TRL on prompts with images, of both sides at the smallest size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from tests.vision.cpu_torchvision import is_installed, main_with_torchvision

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from sides.vision_workload import VISION_WORKLOADS, VisionWorkload, write_rows  # noqa: E402


def test_pictures_and_questions_are_the_same_every_time(tmp_path: Path):
    for name in ("one", "other"):
        write_rows(tmp_path / f"{name}.jsonl", 3, 56)
    one, other = ((tmp_path / f"{name}.jsonl").read_text() for name in ("one", "other"))
    assert one.replace(str(tmp_path / "one"), str(tmp_path / "other")) == other
    rows = [json.loads(line) for line in one.splitlines()]
    pictures = [Path(row["image"]).read_bytes() for row in rows]
    assert len(set(pictures)) == len({row["prompt"][0]["content"] for row in rows}) == 3
    assert pictures == [(tmp_path / "other" / f"{number}.png").read_bytes() for number in range(3)]


def test_on_a_gpu_both_sides_sample_with_vllm_unless_told_otherwise():
    workload = VISION_WORKLOADS["3b"]
    assert not workload.uses_vllm, "on a CPU"
    assert VisionWorkload(device="cuda").uses_vllm
    assert not VisionWorkload(device="cuda", sampler="transformers").uses_vllm


@pytest.mark.slow
@pytest.mark.skipif(not is_installed(), reason="needs torchvision beside the environment")
def test_both_sides_train_on_the_same_pictures_and_leave_the_tower_as_it_is(tmp_path: Path):
    out, again, folder = tmp_path / "result.json", tmp_path / "again.json", tmp_path / "runs"
    options = ["--device=cpu", "--shape=nano", "--dtype=mixed", "--steps=1", f"--folder={folder}"]
    commands = ([*options, f"--out={out}"], [*options, f"--out={again}", "--reuse"])
    script = str(ROOT / "benchmarks" / "vision_vs_trl.py")
    main_with_torchvision("tests.vision.benchmark_runs", script, *map(json.dumps, commands))
    found = json.loads(out.read_text())
    assert found["sampler"] == "transformers" and found["options"]["vision_tower"] == "frozen"
    assert found["step_cpu_ratio"] > 0 and str(tmp_path) not in out.read_text()
    trl, ours = found["trl"]["tokens"], found["grpo_lightning"]["tokens"]
    assert trl["prompt_tokens"] == ours["prompt_tokens"] > 8 * 4, "four tokens of an image among those of 8 prompts"
    assert trl["completions"] == ours["completions"] == 8
    assert ours["trained_per_useful_token"] < 1 < trl["trained_per_useful_token"]
    assert found["trl"]["parameters"] == found["grpo_lightning"]["parameters"]
    assert json.loads(again.read_text())["trl"] == found["trl"]
    check_placeholders_are_not_drawn(folder / "nano_cpu" / "model")


@torch.no_grad()
def check_placeholders_are_not_drawn(checkpoint: Path) -> None:
    """Whatever the policy has read, a text or random ids."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = torch.randint(100, 1000, (4, 40), generator=torch.Generator().manual_seed(0))
    probabilities = model(ids).logits.softmax(-1)
    drawn = [model.config.image_token_id, model.config.video_token_id]
    assert probabilities[..., drawn].max() < 1e-12 < 1e-5 < probabilities.median()
