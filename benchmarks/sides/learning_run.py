"""What both sides of ``learning.py`` are given. Standard library only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sides.saved_settings import SavedSettings


@dataclass(frozen=True)
class LearningRun(SavedSettings):
    """One training run, less its seed. Lengths in tokens.

    What the two would do differently by default is set to the same: loss ``dapo`` (mean over the tokens of the optimizer step),
    no KL term, one update per batch, constant learning rate, AdamW without weight decay.
    """

    task: str = "add2"
    device: str = "cuda"
    steps: int = 100
    eval_every: int = 10
    """Optimizer steps between evaluations."""
    held_out: int = 512
    """Prompts of an evaluation."""
    prompts_per_step: int = 64
    num_generations: int = 8
    max_completion_length: int = 24
    max_model_length: int = 512
    """Of a prompt with its completion, for vLLM."""
    temperature: float = 1.0
    learning_rate: float = 1e-5
    max_grad_norm: float = 1.0
    epsilon: float = 0.2
    per_device_batch: int = 64
    """TRL: completions in one forward and backward pass."""
    gpu_memory_utilization: float = 0.2
    """Share of the device's memory for the colocated engine, of either side."""
    model: str = ""
    """Model directory."""
    folder: str = ""
    """For datasets, configs and records."""

    @property
    def on_gpu(self) -> bool:
        """Where both sample with vLLM and compute in bfloat16; on a CPU, with transformers and in float32."""
        return self.device == "cuda"

    @property
    def train_file(self) -> Path:
        """JSONL of prompts to train on."""
        return Path(self.folder) / f"{self.task}_train.jsonl"

    @property
    def held_out_file(self) -> Path:
        """JSONL of held-out prompts."""
        return Path(self.folder) / f"{self.task}_held_out.jsonl"

    def record_file(self, side: str, seed: int) -> Path:
        """Where the run of a seed leaves its curve."""
        return Path(self.folder) / f"{side}_seed{seed}.json"

    def settings(self) -> dict[str, Any]:
        """Everything but the places of files."""
        return {name: value for name, value in asdict(self).items() if name not in ("model", "folder")}


ON_CPU = replace(
    LearningRun(), device="cpu", steps=2, eval_every=1, held_out=16, prompts_per_step=2, per_device_batch=8
)
"""To see that it runs."""
