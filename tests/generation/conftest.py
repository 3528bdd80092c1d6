"""How the tests of generators start what they need."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest


@pytest.fixture
def forked_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that launches a vLLM server forks it from a process that has imported vLLM."""
    from vllm_program_forks import VLLMFork

    popen = subprocess.Popen

    def start(args: Any, **options: Any) -> Any:
        is_server = list(args[1:3]) == ["-m", "vllm.entrypoints.openai.api_server"]
        return (VLLMFork if is_server else popen)(args, **options)

    monkeypatch.setattr(subprocess, "Popen", start)
