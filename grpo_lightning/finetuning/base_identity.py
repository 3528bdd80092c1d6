"""Which base an adapter belongs to: a hash of its weights and its configuration, kept beside the adapter."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

FILE_NAME = "base_identity.json"
MODEL = "model.model_name_or_path"
"""The setting that names a base."""
VOLATILE_KEYS = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
"""Of a configuration: they change without the model becoming another one."""


@dataclass(frozen=True)
class BaseIdentity:
    """What tells one base model from another, wherever and however its files are stored."""

    model_name_or_path: str
    weights_sha256: str
    """Of names, dtypes, shapes and values of all tensors, however they are split over files."""
    config: dict[str, Any] = field(default_factory=dict)

    def difference(self, model_name_or_path: str, setting: str = MODEL) -> str | None:
        """Where the model at a directory or hub name differs, in words; None if it is the same one.

        Configurations are compared first, since weights take as long as reading them, and in the keys that both have: a newer
        transformers adds some.

        Args:
            model_name_or_path: Directory or hub name.
            setting: That names it, for errors.

        Raises:
            ValueError: As of :func:`identify_base`.
        """
        config = _lasting_config(model_name_or_path)
        different = sorted(key for key in self.config.keys() & config.keys() if self.config[key] != config[key])
        if different:
            return f"config.json differs in {', '.join(different)}"
        return None if _hash_weights(model_name_or_path, setting) == self.weights_sha256 else "the weights differ"

    def save(self, directory: Path) -> None:
        """Writes it beside an adapter."""
        (directory / FILE_NAME).write_text(json.dumps(asdict(self), indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> BaseIdentity | None:
        """The one stored beside an adapter, if there is one."""
        path = Path(directory) / FILE_NAME
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def identify_base(model_name_or_path: str) -> BaseIdentity:
    """The identity of the model at a directory or hub name; reads all its weights once a process.

    Raises:
        ValueError: If it has no safetensors weights, or they cannot be read.
    """
    weights = _hash_weights(model_name_or_path, MODEL)
    return BaseIdentity(model_name_or_path, weights, _lasting_config(model_name_or_path))


def weight_files(model_name_or_path: str, setting: str = MODEL) -> list[str]:
    """The safetensors files of a model, downloaded where they are not here yet.

    Raises:
        ValueError: If it has none.
    """
    options = {"_raise_exceptions_for_missing_entries": False}
    single = cached_file(model_name_or_path, SAFE_WEIGHTS_NAME, **options)
    if single is not None:
        return [single]
    index = cached_file(model_name_or_path, SAFE_WEIGHTS_INDEX_NAME, **options)
    if index is None:
        raise ValueError(
            f"{setting}={model_name_or_path!r} has no safetensors weights. Save it with "
            "save_pretrained(..., safe_serialization=True)."
        )
    names = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    return [str(cached_file(model_name_or_path, name)) for name in names]


def _lasting_config(model_name_or_path: str) -> dict[str, Any]:
    """A model's configuration as JSON gives it back, without ``VOLATILE_KEYS``."""
    config = AutoConfig.from_pretrained(model_name_or_path, trust_remote_code=False).to_dict()
    kept = {key: value for key, value in config.items() if key not in VOLATILE_KEYS}
    lasting: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return lasting


def _hash_weights(model_name_or_path: str, setting: str) -> str:
    files = weight_files(model_name_or_path, setting)
    stamps = tuple((path, os.stat(path).st_mtime_ns, os.stat(path).st_size) for path in files)
    try:
        return _hash_files(stamps)
    except SafetensorError as error:
        raise ValueError(
            f"{setting}={model_name_or_path!r}: the weights cannot be read. Check that its files are complete. ({error})"
        ) from error


@lru_cache(maxsize=8)
def _hash_files(stamps: tuple[tuple[str, int, int], ...]) -> str:
    tensors: dict[str, str] = {}
    for path, *_ in stamps:
        with safe_open(path, framework="pt") as file:
            tensors |= dict.fromkeys(file.keys(), path)
    names = sorted(tensors)
    with ThreadPoolExecutor(max_workers=8) as pool:  # hashlib releases the interpreter lock
        digests = list(pool.map(lambda name: _hash_tensor(tensors[name], name), names))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _hash_tensor(path: str, name: str) -> bytes:
    with safe_open(path, framework="pt") as file:
        tensor = file.get_tensor(name)
    digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.digest()
