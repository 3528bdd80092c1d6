"""What rewards have in common that score with a Hugging Face model in this process."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_lightning.rewards.base import BaseRewardFunction

if TYPE_CHECKING:  # it imports torch, which processes of other rewards do without
    from grpo_lightning.rewards.kinds.local_model import LocalModel


@dataclass
class LocalModelReward(BaseRewardFunction):
    """Settings of the model, and the model: loaded by the first call, let go by ``close``.

    Args:
        name: What metrics and errors call this reward.
        weight: Factor in the total reward.
        model: Directory or hub name; with None or "", the subclass says what happens.
        tokenizer: Its tokenizer, where it is not beside the model.
        device: auto (a CUDA device where there is one), cpu, cuda:1, ...
        dtype: auto, float32, bfloat16 or float16.
        batch_size: Texts per forward pass.
        max_length: Tokens per text. Default: what the model can read.
    """

    model: str | None = None
    tokenizer: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = 8
    max_length: int | None = None
    _local: LocalModel | None = field(default=None, init=False, repr=False, compare=False)

    auto_class = "AutoModelForSequenceClassification"  # of transformers
    scope = "completion"
    batched = True
    concurrency = 1  # one model
    call_time_limit = 1800.0  # the first call loads it

    def __post_init__(self) -> None:
        """Refuses settings that no model can have.

        Raises:
            ValueError: Naming the reward and the setting.
        """
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(
                f"{self.name}: dtype={self.dtype!r} is unknown. Choose auto, float32, bfloat16 or float16."
            )
        if self.batch_size < 1 or (self.max_length is not None and self.max_length < 8):
            raise ValueError(
                f"{self.name}: batch_size={self.batch_size} must be 1 or more, max_length={self.max_length} 8 tokens or "
                "more."
            )
        if not self.model:
            return
        is_path = self.model.startswith(("/", "./", "../")) or self.model.count("/") > 1  # a hub name has one at most
        if is_path and not Path(self.model).is_dir():
            raise ValueError(f"{self.name}: model={self.model!r} is no directory. Train it first, or name another one.")
        self._refuse_folder_without_model(Path(self.model))
        self._refuse_language_model(Path(self.model, "config.json"))
        self._local = self._unloaded(self.model)

    def _refuse_folder_without_model(self, folder: Path) -> None:
        """The folder of a run, first of all, whose model is further inside; an adapter is read with its base."""
        if folder.is_dir() and not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            from grpo_lightning.policy.model_config import where_to_look  # it imports transformers

            raise ValueError(
                f"{self.name}: model={self.model!r} has no config.json. {where_to_look(str(folder))} Name a model's own directory."
            )

    def _refuse_language_model(self, config: Path) -> None:
        """Where transformers would draw a head at random."""
        kind = self.auto_class.removeprefix("AutoModel")
        if kind != "ForSequenceClassification" or not config.is_file():
            return
        try:
            made_as = json.loads(config.read_text(encoding="utf-8")).get("architectures") or [kind]
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"{self.name}: {config} cannot be read ({error}). Check that it was copied whole."
            ) from error
        if not any(name.endswith(kind) for name in made_as):
            raise ValueError(
                f"{self.name}: model={self.model!r} is a {made_as[0]} and no sequence classifier: its score would be drawn at random. "
                "Train one of it with `python -m grpo_lightning rm`, and name that one's hf/last."
            )

    @property
    def processing_class(self) -> Any | None:
        """The scoring model's own tokenizer; None where there is no model, or none is known yet."""
        return self._local.tokenizer if self._local else None

    def close(self) -> None:
        """Lets go of the weights."""
        if self._local is not None:
            self._local.close()

    def _unloaded(self, model: str) -> LocalModel:
        from grpo_lightning.rewards.kinds.local_model import LocalModel

        return LocalModel(self.auto_class, model, self.tokenizer, self.device, self.dtype, self.batch_size)
