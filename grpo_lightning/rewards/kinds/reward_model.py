"""Rewards by a trained reward model: a sequence classifier in this process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from grpo_lightning.messages import Prompt
from grpo_lightning.rewards.base import Completion, RewardContractError
from grpo_lightning.rewards.kinds.local_model_reward import LocalModelReward
from grpo_lightning.rewards.registry import register_reward
from grpo_lightning.rewards.text.chat_text import whole_text

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_lightning.ordinary_text import OrdinaryText
    from grpo_lightning.rewards.kinds.local_model import LocalModel, Tokens

MAX_CHARS_PER_TOKEN = 32


@register_reward("reward_model")
@dataclass
class RewardModelReward(LocalModelReward):
    """The score that a sequence-classification model gives prompt and completion; any range, [0, 1] with sigmoid.

    The text is made with the reward model's own chat template, where its tokenizer has one, from the messages, not from
    the policy's tokens. Special tokens that a completion spells are encoded as text: no policy learns to write
    ``<|im_end|>`` and a turn in praise of itself.

    Args:
        name: What metrics and errors call this reward.
        weight: Factor in the total reward.
        model: Sequence classifier, directory or hub name.
        tokenizer: Its tokenizer, where it is not beside the model.
        label: Which of the model's outputs is the score.
        squash: ``none``: the raw output; ``sigmoid`` of it; ``softmax`` over all outputs.
        device: auto (the training device where there is one), cpu, cuda:1, ...
        dtype: auto, float32, bfloat16 or float16.
        batch_size: Texts per forward pass.
        max_length: Tokens; a longer text loses its beginning. Default: what the model can read.
    """

    name: str = "reward_model"
    model: str = ""
    label: int = 0
    squash: Literal["none", "sigmoid", "softmax"] = "none"
    _local: LocalModel = field(init=False, repr=False, compare=False)  # never None: model is required

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError(f"{self.name}: set model to the directory or hub name of a sequence classifier.")
        super().__post_init__()
        if self.squash not in ("none", "sigmoid", "softmax") or self.label < 0:
            raise ValueError(
                f"{self.name}: squash={self.squash!r} must be none, sigmoid or softmax, label={self.label} 0 or more."
            )

    def __call__(
        self,
        prompts: list[Prompt],
        completions: list[Completion],
        **columns: Any,
    ) -> list[float]:
        """One score per completion.

        Raises:
            RewardContractError: If the model has no output ``label``.
        """
        outputs = self._local.model.config.num_labels
        if self.label >= outputs:
            raise RewardContractError(
                f"Reward '{self.name}': label={self.label}, but {self.model} has {outputs} outputs. Choose 0 to {outputs - 1}."
            )
        from grpo_lightning.ordinary_text import OrdinaryText

        said = OrdinaryText(self._local.tokenizer)
        inputs = [self._tokens(p, c, said) for p, c in zip(prompts, completions, strict=True)]
        return self._local.map(inputs, self._score)

    def _tokens(self, prompt: Prompt, completion: Completion, said: OrdinaryText) -> Tokens:
        tokenizer, limit = self._local.tokenizer, self._local.max_length(self.max_length)
        text = whole_text(prompt, said.quoted(completion), tokenizer)[-MAX_CHARS_PER_TOKEN * limit :]
        # A template writes its own special tokens; plain text gets those that the tokenizer adds.
        encoded = said.encoded(text, add_special_tokens=not getattr(tokenizer, "chat_template", None))
        return {name: encoded[name][-limit:] for name in ("input_ids", "token_type_ids") if name in encoded}

    def _score(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        if model.config.pad_token_id is None:  # a decoder finds the last token of a text by what pads it
            model.config.pad_token_id = self._local.tokenizer.pad_token_id or 0
        logits = model(**batch).logits.float()
        if self.squash == "softmax":
            return logits.softmax(-1)[:, self.label]
        score = logits[:, self.label]
        return score.sigmoid() if self.squash == "sigmoid" else score
