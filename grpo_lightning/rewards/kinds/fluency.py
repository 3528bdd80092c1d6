"""Is the completion well-formed text, by the measure of a language model?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grpo_lightning.messages import Prompt
from grpo_lightning.rewards.base import Completion, RewardContractError, completion_text
from grpo_lightning.rewards.kinds.local_model_reward import LocalModelReward
from grpo_lightning.rewards.registry import register_reward
from grpo_lightning.rewards.text.chat_text import prompt_text

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_lightning.rewards.kinds.local_model import LocalModel, Tokens


def fluency_score(nats_per_token: float, tokens: int, best: float, worst: float, full_length: int) -> float:
    """1 at perplexity ``best`` or less, 0 at ``worst`` or more, linear in log perplexity; less for very short texts.

    Capped on the good side: repetition has the lowest perplexity of all, and must not be the way to more reward. A
    text of fewer than ``full_length`` tokens earns its share, as the mean over a few tokens says little.

    Example:
        >>> [round(fluency_score(math.log(p), 20, best=10, worst=1000, full_length=10), 2) for p in (2, 10, 100, 5000)]
        [1.0, 1.0, 0.5, 0.0]
        >>> fluency_score(math.log(10), 5, best=10, worst=1000, full_length=10)
        0.5
    """
    place = (math.log(worst) - nats_per_token) / (math.log(worst) - math.log(best))
    return min(max(place, 0.0), 1.0) * min(tokens / full_length, 1.0)


@register_reward("fluency")
@dataclass
class FluencyReward(LocalModelReward):
    """How likely a frozen language model finds the completion after its prompt; range [0, 1].

    ``fluency_score`` of the perplexity per token. The perplexity itself is logged as the column ``perplexity``.

    Args:
        name: What metrics and errors call this reward.
        weight: Factor in the total reward.
        model: Causal language model, directory or hub name. Default: the frozen reference, a copy of
            ``model.model_name_or_path``.
        tokenizer: Its tokenizer, where it is not beside the model.
        device: auto (a CUDA device where there is one), cpu, cuda:1, ...
        dtype: auto, float32, bfloat16 or float16.
        batch_size: Texts per forward pass.
        max_length: Tokens read of prompt and completion together: the prompt loses its beginning first, then the
            completion its end. Default: what the model can read.
        best_perplexity: At or below it the score is 1.
        worst_perplexity: At or above it the score is 0.
        full_length: Tokens from which on a completion can earn all.
        with_prompt: Score the completion as the prompt's continuation; False scores it on its own.
    """

    name: str = "fluency"
    best_perplexity: float = 10.0
    worst_perplexity: float = 1000.0
    full_length: int = 10
    with_prompt: bool = True

    auto_class = "AutoModelForCausalLM"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.best_perplexity < self.worst_perplexity or self.full_length < 1:
            raise ValueError(
                f"{self.name}: 1 <= best_perplexity={self.best_perplexity} < worst_perplexity={self.worst_perplexity} and "
                f"full_length={self.full_length} of 1 or more must hold."
            )

    def __call__(
        self,
        prompts: list[Prompt],
        completions: list[Completion],
        trainer_state: Any | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """One float per completion; 0 for an empty one.

        Raises:
            RewardContractError: If neither ``model`` nor the run says which model to use.
        """
        local = self._model(trainer_state)
        pairs = [self._tokens(local, p, completion_text(c)) for p, c in zip(prompts, completions, strict=True)]
        scored = [i for i, (_, start, tokens) in enumerate(pairs) if len(tokens["input_ids"]) > start]
        inputs = [pairs[i][2] | {"labels_start": [pairs[i][1]] * len(pairs[i][2]["input_ids"])} for i in scored]
        nats = dict(zip(scored, local.map(inputs, _nats_per_token), strict=True))
        if log_extra is not None:
            log_extra("perplexity", [math.exp(min(nats[i], 700.0)) if i in nats else None for i in range(len(pairs))])
        bounds = (self.best_perplexity, self.worst_perplexity, self.full_length)
        return [fluency_score(nats[i], pairs[i][0], *bounds) if i in nats else 0.0 for i in range(len(pairs))]

    def _model(self, trainer_state: Any) -> LocalModel:
        if self._local is None:
            name = getattr(trainer_state, "model_name_or_path", None)
            if name is None:
                raise RewardContractError(f"Reward '{self.name}' does not know which model to use: set model.")
            self._local = self._unloaded(name)
        return self._local

    def _tokens(self, local: LocalModel, prompt: Prompt, completion: str) -> tuple[int, int, Tokens]:
        """Tokens of the completion, place of the first that is scored, and what the model reads."""
        tokenizer, limit = local.tokenizer, local.max_length(self.max_length)
        before: list[int] = []
        if self.with_prompt:
            before = tokenizer(prompt_text(prompt, tokenizer), add_special_tokens=False)["input_ids"]
        elif tokenizer.bos_token_id is not None:
            before = [tokenizer.bos_token_id]
        # About as many characters as a tokenizer can fit into the limit: hostile megabytes are not tokenised.
        own = tokenizer(completion[: 32 * limit], add_special_tokens=False)["input_ids"]
        own = own[:limit]
        before = before[len(before) - max(0, min(len(before), limit - len(own))) :]
        start = max(len(before), 1)  # the first token of all has no prediction
        return len(own), start, {"input_ids": before + own}


def _nats_per_token(model: Any, batch: dict[str, Tensor]) -> Tensor:
    import torch

    start = batch.pop("labels_start")[:, :1]
    logits = model(**batch, use_cache=False).logits[:, :-1].float()
    logprobs = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    places = torch.arange(1, logprobs.shape[1] + 1, device=logprobs.device)  # of the predicted token
    counted = batch["attention_mask"][:, 1:].bool() & (places >= start)
    return -(logprobs * counted).sum(1) / counted.sum(1)
