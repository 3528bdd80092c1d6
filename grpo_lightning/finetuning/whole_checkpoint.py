"""What a policy does not train of the checkpoint that it was loaded from, such as a vision tower, put into its export."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from grpo_lightning.finetuning.base_identity import weight_files

logger = logging.getLogger(__name__)

TRAINED, UNTRAINED = "model-trained.safetensors", "model-untrained.safetensors"
PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")


def complete_checkpoint(path: Path, model_name_or_path: str) -> bool:
    """Makes the language model in ``path`` the whole model again that it was taken from, where it was taken from one.

    Args:
        path: Written by ``save_pretrained``; gets further weights, the configuration of the whole, and its processor.
        model_name_or_path: What the policy was loaded from.

    Returns:
        Whether there was something to add.
    """
    whole: Any = AutoConfig.from_pretrained(model_name_or_path, trust_remote_code=False)
    part: Any = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if whole.model_type == part.model_type or whole.get_text_config() is whole:
        return False
    written, source = _tensor_files(str(path)), _tensor_files(model_name_or_path)
    if not written.keys() <= source.keys():
        logger.warning(
            "%s holds the language model alone: its weights have other names than those of %s (%s, for example), so the "
            "parts that were not trained cannot be added.",
            path,
            model_name_or_path,
            min(written.keys() - source.keys()),
        )
        return False
    # A head that is tied to the embeddings is not written, and must not come back as it was before training.
    missing = [name for name in source if name not in written and not name.endswith("lm_head.weight")]
    _add_weights(path, written, {name: _read(source[name], name) for name in missing})
    text = whole.get_text_config()
    text.vocab_size, whole.dtype = part.vocab_size, part.dtype
    whole.save_pretrained(path)
    for name in PROCESSOR_FILES:
        file = cached_file(model_name_or_path, name, _raise_exceptions_for_missing_entries=False)
        if file is not None:
            shutil.copyfile(file, path / name)
    return True


def _tensor_files(model_name_or_path: str) -> dict[str, str]:
    """The file of each tensor, by name."""
    places: dict[str, str] = {}
    for file in weight_files(model_name_or_path):
        with safe_open(file, framework="pt") as opened:
            places |= dict.fromkeys(opened.keys(), file)
    return places


def _read(file: str, name: str) -> Tensor:
    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(name)


def _add_weights(path: Path, written: dict[str, str], further: dict[str, Tensor]) -> None:
    """One more file of weights, and the index that then says which file has which."""
    single = path / SAFE_WEIGHTS_NAME
    if single.exists():  # which readers would take for the whole
        single.rename(path / TRAINED)
        written = dict.fromkeys(written, TRAINED)
    save_file(further, path / UNTRAINED, metadata={"format": "pt"})
    places = {name: Path(file).name for name, file in written.items()} | dict.fromkeys(further, UNTRAINED)
    size = sum((path / name).stat().st_size for name in set(places.values()))
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    (path / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
