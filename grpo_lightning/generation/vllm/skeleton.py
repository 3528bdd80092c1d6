"""Where an engine finds what it is built from: a place that is the same in every run, so that what it compiles is found again."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_lightning.generation.vllm.engine.settings import save_skeleton


def kept_skeleton(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, processor: Any = None) -> Path:
    """The directory of ``save_skeleton`` in vLLM's cache, named after its contents.

    vLLM keeps what torch.compile made, and finds it by a hash of its settings, the model's path among them (its
    ``ModelConfig.compute_hash``). From a directory with a new name, each run compiled everything again.

    Args:
        policy: Its configuration as it is now.
        tokenizer: As it is now.
        processor: Of a model that is shown images.
    """
    from vllm import envs

    root = Path(envs.VLLM_CACHE_ROOT) / "grpo_lightning"
    root.mkdir(parents=True, exist_ok=True)
    written = Path(tempfile.mkdtemp(prefix="writing-", dir=root))
    save_skeleton(policy, tokenizer, written)
    if processor is not None:
        processor.save_pretrained(written)
    place = root / _digest(written)
    try:
        written.rename(place)  # at once: another rank, or another run, may be about to do the same
    except OSError:  # it is there, with the same contents
        shutil.rmtree(written)
    return place


def _digest(directory: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        content = path.read_bytes()
        found.update(f"{path.relative_to(directory)} {len(content)}\n".encode() + content)
    return found.hexdigest()[:16]
