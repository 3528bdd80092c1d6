"""What an engine in this process holds of the policy's weights, and how it gets those that have changed."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel

from grpo_lightning.generation.vllm.engine.engine import ColocatedEngine
from grpo_lightning.generation.vllm.weights.adapter_route import AdapterRoute
from grpo_lightning.generation.vllm.weights.adapters import copy_adapter, size_of, write_adapter
from grpo_lightning.generation.vllm.weights.stream import WeightStream, check_same_weights, trained_names, weight_shapes

Held = Literal["nothing", "base", "merged"]
"""Weights of an engine: none that mean anything, the base without its adapter, or all with the adapter added."""


class EngineWeights:
    """The weights of one engine, which at first mean nothing.

    Args:
        policy: Whose configuration the engine is built from.
        route: Of an adapter to the engine.
    """

    def __init__(self, policy: PreTrainedModel, route: AdapterRoute) -> None:
        self._policy, self._route, self._shapes = policy, route, weight_shapes(policy)
        self._files = Path(tempfile.mkdtemp(prefix="grpo_lightning-vllm-"))
        self.held: Held = "nothing"

    def follow(self, policy: PreTrainedModel) -> None:
        """From here on it is this policy's weights that are sent.

        Raises:
            ValueError: If they are not those that the engine was built for.
        """
        check_same_weights(policy, self._shapes)
        self._policy = policy

    def send(self, engine: ColocatedEngine) -> dict[str, float]:
        """All weights at first, later the trained ones or the adapter.

        Returns:
            Seconds, megabytes and GB/s. With a hot adapter, of the adapter.
        """
        return self._send_adapter(engine) if self._route.is_hot else self._send_weights(engine, "merged")

    def _send_weights(self, engine: ColocatedEngine, kind: Held) -> dict[str, float]:
        partly = self.held != "nothing" and engine.takes_weights_directly()
        stream = WeightStream(self._policy, kind == "merged", trained_names(self._policy) if partly else None)
        engine.load_weights(stream)
        self.held = kind
        return stream.metrics()

    def _send_adapter(self, engine: ColocatedEngine) -> dict[str, float]:
        """The base where it is missing, as training sees it (dequantised where it is quantized), then the adapter alone.

        vLLM reads the first one from a directory, and checks it; of later ones it is given the numbers.
        """
        if self.held != "base":
            self._send_weights(engine, "base")
        policy: Any = self._policy
        watch, directory = WeightStream(policy), self._files / "adapter"
        if directory.exists() and not engine.is_mixture:
            matrices = copy_adapter(policy)
            watch.bytes = size_of(matrices)
            engine.load_adapter(str(directory), matrices)
        else:
            watch.bytes = write_adapter(policy, directory)
            engine.load_adapter(str(directory))
        return watch.metrics()

    def remove_files(self) -> None:
        """Of adapters; once the engine has ended."""
        shutil.rmtree(self._files, ignore_errors=True)
