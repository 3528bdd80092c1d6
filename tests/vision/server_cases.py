"""As ``engine_cases.py``, of a real vLLM server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from grpo_lightning.generation import VLLMServer
from tests.forked_python import ForkedPython
from tests.ports import free_port
from tests.vision.engine_cases import gaps
from tests.vision.toy_checkpoint import save_toy_checkpoint
from tests.vllm_cases import SMALL_SERVER, eager_torch
from tests.vllm_program_forks import import_vllm

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def served(checkpoint: Path, *further: str) -> Iterator[int]:
    """The port of `python -m grpo_lightning serve --images`, with further options of vLLM."""
    port = free_port()
    command = [sys.executable, "-m", "grpo_lightning", "serve", "--model", str(checkpoint), "--port", str(port)]
    with (checkpoint.parent / "serve.log").open("wb") as log:
        options = ["--images", "--max_model_length", "256", "--", *SMALL_SERVER, *further]
        process = subprocess.Popen([*command, *options], cwd=ROOT, stdout=log, stderr=log)
        try:
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


@contextmanager
def forked() -> Iterator[None]:
    """Servers have what this process has imported, torchvision too."""
    import_vllm()
    popen = subprocess.Popen
    subprocess.Popen = ForkedPython  # type: ignore[misc]
    try:
        yield
    finally:
        subprocess.Popen = popen  # type: ignore[misc]


def main(folder: str, family: str) -> None:
    """Writes FOLDER/FAMILY.json, of one server that also adds adapters."""
    checkpoint = save_toy_checkpoint(family, Path(folder, family))
    with eager_torch(), forked(), served(checkpoint, "--enable-lora", "--max-lora-rank", "8") as port:
        found = gaps(checkpoint, partial(VLLMServer, port=port, timeout=200))
    Path(folder, f"{family}.json").write_text(json.dumps(found))
