"""A Hugging Face model that scores text: loaded once, used by one thread at a time, in batches of equal make-up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from grpo_lightning.rewards.base import RewardContractError

Tokens = dict[str, list[int]]


class LocalModel:
    """A frozen model with its tokenizer, loaded at the first use.

    Copies and pickles hold the settings only, so that a config, a deep copy or another process loads its own.

    Args:
        auto_class: Of transformers: ``AutoModelForCausalLM``, ``AutoModelForSequenceClassification``, ...
        model: Directory or hub name.
        tokenizer: Of the tokenizer, where it is not beside the model.
        device: auto (a CUDA device where there is one: with several ranks, this rank's), cpu, cuda:1, ...
        dtype: auto (as stored; float32 on a CPU), float32, bfloat16 or float16.
        batch_size: Texts per forward pass.
    """

    def __init__(
        self, auto_class: str, model: str, tokenizer: str | None, device: str, dtype: str, batch_size: int
    ) -> None:
        self.settings = (auto_class, model, tokenizer, device, dtype, batch_size)
        self.name, self.batch_size = model, batch_size
        self._lock = threading.RLock()
        self._loaded: tuple[Any, Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.settings

    def __deepcopy__(self, memo: dict[int, Any]) -> LocalModel:
        return type(self)(*self.settings)

    @property
    def tokenizer(self) -> Any:
        """The model's own tokenizer."""
        return self._load()[1]

    @property
    def model(self) -> Any:
        """The model, in evaluation mode on its device."""
        return self._load()[0]

    def close(self) -> None:
        """Lets go of the weights; the next use loads them again."""
        with self._lock:
            self._loaded = None

    def max_length(self, limit: int | None) -> int:
        """Tokens that the model can read, at most ``limit`` where that is given."""
        config = self.model.config
        positions = getattr(config, "max_position_embeddings", None) or 2**31
        # RoBERTa's positions start after the padding index, so that two of them are never used.
        positions -= (config.pad_token_id or 0) + 1 if getattr(config, "model_type", "") in _OFFSET_POSITIONS else 0
        return min(positions, limit or positions)

    @torch.inference_mode()
    def map(self, inputs: Sequence[Tokens], score: Callable[[Any, dict[str, Tensor]], Tensor]) -> list[Any]:
        """``score(model, padded batch)`` for all inputs, as lists in the order of the inputs.

        Batches are of neighbours in length, so that little of a batch is padding. How they are made up depends on the
        inputs alone, and so do the results, to the last bit.

        Args:
            inputs: What the tokenizer gives for each text, as lists.
            score: Gets right-padded (b, longest) tensors with ``attention_mask`` and returns ``(b, ...)``.
        """
        with self._lock:
            model, tokenizer = self._load()
            results: list[Any] = [None] * len(inputs)
            order = sorted(range(len(inputs)), key=lambda i: len(inputs[i]["input_ids"]))
            for start in range(0, len(order), self.batch_size):
                places = order[start : start + self.batch_size]
                batch = _padded([inputs[i] for i in places], tokenizer.pad_token_id or 0, model.device)
                for place, result in zip(places, score(model, batch).float().cpu().tolist(), strict=True):
                    results[place] = result
            return results

    def _load(self) -> tuple[Any, Any]:
        with self._lock:
            if self._loaded is None:
                auto_class, name, tokenizer, device, dtype, _ = self.settings
                where = _device(device)
                kind = "float32" if dtype == "auto" and where.type == "cpu" else dtype
                model, found = getattr(transformers, auto_class).from_pretrained(
                    name,
                    dtype=kind if kind == "auto" else getattr(torch, kind),
                    trust_remote_code=False,
                    use_safetensors=True,  # a pickled weight file is code
                    output_loading_info=True,
                )
                if found["missing_keys"]:
                    raise RewardContractError(
                        f"{name} has no weights for {min(found['missing_keys'])}, one of {len(found['missing_keys'])}, which would be "
                        f"drawn at random: it is no complete {type(model).__name__}. Use a directory with all of them."
                    )
                model.requires_grad_(False).eval().to(where)
                self._loaded = (model, _tokenizer(tokenizer or name))
            return self._loaded


def _tokenizer(name: str) -> Any:
    return transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)


_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer")


def _device(device: str) -> torch.device:
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _padded(inputs: Sequence[Tokens], pad_token_id: int, device: torch.device) -> dict[str, Tensor]:
    longest = max(len(tokens["input_ids"]) for tokens in inputs)
    fill = {"input_ids": pad_token_id}
    columns = {
        name: [tokens[name] + [fill.get(name, 0)] * (longest - len(tokens["input_ids"])) for tokens in inputs]
        for name in inputs[0]
        if name != "attention_mask"
    }
    mask = [[1] * len(tokens["input_ids"]) + [0] * (longest - len(tokens["input_ids"])) for tokens in inputs]
    return {name: torch.tensor(rows, device=device) for name, rows in (columns | {"attention_mask": mask}).items()}
