"""What every test shares: an offline, quiet, single-threaded process and one toy model directory."""

from __future__ import annotations

import io
import os
import sys

# Before anything imports transformers or tokenizers: both read these once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The suite gives the same numbers on every machine. -m gpu, or CUDA_VISIBLE_DEVICES=0, runs the tests marked gpu. Workers of
# pytest-xdist have another command line, and what the main process left them in the environment.
if ("-m", "gpu") not in zip(sys.argv, sys.argv[1:], strict=False) and "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import linecache
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from frozen_imports import freeze_imports

from grpo_lightning.generation.vllm.serving.process import RANK_VARIABLES

# What a shell starts with & is deaf to Ctrl-C, and so is what that starts; but tests interrupt runs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Toy matrices are faster on one thread than on several, and their sums do not depend on the machine's core count.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def pytest_configure(config: pytest.Config) -> None:
    """Give the run a cache of converted datasets of its own: what an earlier run left behind cannot decide a test."""
    cache = tempfile.TemporaryDirectory(prefix="datasets-cache-", ignore_cleanup_errors=True)
    config.add_cleanup(cache.cleanup)
    os.environ["HF_DATASETS_CACHE"] = cache.name


def pytest_collection_finish() -> None:
    """Here every file of the tests has been imported."""
    freeze_imports()


def pytest_runtest_logfinish() -> None:
    """What a test needs and nobody imports before it, such as vLLM."""
    freeze_imports()


@pytest.fixture(scope="session", autouse=True)
def _source_as_it_was_imported() -> Iterator[None]:
    """Lets an edit during the run change no test.

    jsonargparse reads ``**kwargs`` and the default of ``model.optimizer`` from the source of ``__init__``, by the line
    numbers of the imported code. In a file that was edited since, it finds other lines: ``--model.optimizer.lr`` is
    then an unrecognized argument.
    """
    package = str(Path(__file__).parents[1] / "grpo_lightning")
    for path in Path(package).rglob("*.py"):
        linecache.getlines(str(path))
    check = linecache.checkcache

    def check_others(filename: str | None = None) -> None:
        for name in list(linecache.cache) if filename is None else [filename]:
            if not name.startswith(package):
                check(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linecache, "checkcache", check_others)
        yield


@pytest.fixture(autouse=True)
def _launcher_variables_as_they_were() -> Iterator[None]:
    """What Lightning or vLLM say about ranks in this process must not reach the processes that later tests start."""
    before = {name: os.environ.get(name) for name in RANK_VARIABLES}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture
def registry_as_it_was() -> Iterator[None]:
    """Takes rewards that a test registers out of the registry again."""
    from grpo_lightning.rewards.registry import REWARD_FUNCTIONS

    before = dict(REWARD_FUNCTIONS)
    yield
    REWARD_FUNCTIONS.clear()
    REWARD_FUNCTIONS.update(before)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the number of each pause of a ``VLLMClient``, which takes no time; test_vllm_client.py has their lengths."""
    from grpo_lightning.generation.vllm.serving.client import VLLMClient

    made: list[int] = []
    monkeypatch.setattr(VLLMClient, "pause", lambda self, attempt: made.append(attempt))
    return made


@pytest.fixture(autouse=True)
def _same_random_numbers_in_any_order() -> None:
    """Seed torch before each test, so that no test depends on the ones before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a random float32 Qwen2 model with its tokenizer and chat template; shared, so do not write to it."""
    from toy_models import save_toy_model  # imports transformers, for which a test without a model does not wait

    return save_toy_model(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts lines on standard input, as if they were typed."""
    return lambda *lines: monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
