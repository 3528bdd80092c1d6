"""Rewards by a reward model behind HTTP: vLLM's endpoints, or any that speaks like them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from grpo_lightning.messages import Prompt
from grpo_lightning.rewards.base import Completion, completion_text
from grpo_lightning.rewards.kinds.http_client import RemoteError
from grpo_lightning.rewards.kinds.remote_reward import RemoteReward
from grpo_lightning.rewards.registry import register_reward
from grpo_lightning.rewards.text.chat_text import prompt_text, whole_text


@register_reward("remote_reward_model")
@dataclass
class RemoteRewardModelReward(RemoteReward):
    """The score that a served reward model gives prompt and completion; range as the server's.

    Args:
        name: What metrics and errors call this reward.
        weight: Factor in the total reward.
        url: Complete address, such as ``http://127.0.0.1:8000/classify``.
        api: What the address speaks: ``classify`` (probabilities; ``label`` says which), ``pooling`` (a reward model's
            output; its last number) or ``score`` (prompt and completion as a pair).
        model: Name of the model on the server.
        label: Which of the class probabilities is the score, for ``classify``.
        tokenizer: Whose chat template makes the text; by default prompt and completion one after the other.
        timeout: Seconds per attempt.
        retries: Further attempts after a lost connection, a time-out, a busy or failing server.
        backoff: Seconds before the second attempt, doubled for each further one.
        concurrency: Requests at the same time.
        max_chars: Of the text; a longer one loses its beginning.
        api_key_env: Environment variable with the key.
    """

    name: str = "remote_reward_model"
    api: Literal["classify", "pooling", "score"] = "classify"
    model: str | None = None
    label: int = 0
    tokenizer: str | None = None
    max_chars: int = 200_000
    _tokenizer: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.api not in ("classify", "pooling", "score"):
            raise ValueError(f"{self.name}: api={self.api!r} is unknown. Choose classify, pooling or score.")
        if self.api == "score" and self.tokenizer is not None:
            raise ValueError(f"{self.name}: tokenizer has no effect with api=score, which sends a pair. Remove it.")
        super().__post_init__()

    async def __call__(
        self,
        prompts: list[Prompt],
        completions: list[Completion],
        **columns: Any,
    ) -> list[float]:
        """One score per completion.

        Raises:
            RemoteError: If the server cannot be reached or its answer is not understood.
        """
        answer = await self._client.post(self._request(prompts, completions))
        try:
            rows = sorted(answer["data"], key=lambda row: row.get("index", 0))
            scores = [self._score(row) for row in rows]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise RemoteError(f"{self.url} does not answer like api={self.api}: {str(answer)[:300]}") from error
        if len(scores) != len(completions) or not all(math.isfinite(score) for score in scores):
            raise RemoteError(
                f"{self.url} gave {len(scores)} scores for {len(completions)} texts, or no numbers: {scores}"
            )
        return scores

    def _request(self, prompts: list[Prompt], completions: list[Completion]) -> dict[str, Any]:
        named = {} if self.model is None else {"model": self.model}
        if self.api == "score":
            queries = [prompt_text(prompt)[-self.max_chars :] for prompt in prompts]
            return {**named, "text_1": queries, "text_2": [completion_text(c)[-self.max_chars :] for c in completions]}
        texts = [whole_text(p, c, self._template()) for p, c in zip(prompts, completions, strict=True)]
        return {**named, "input": [text[-self.max_chars :] for text in texts]}

    def _template(self) -> Any:
        if self.tokenizer is not None and self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(self.tokenizer, trust_remote_code=False)
        return self._tokenizer

    def _score(self, row: dict[str, Any]) -> float:
        if self.api == "classify":
            return float(row["probs"][self.label])
        if self.api == "score":
            return float(row["score"])
        value = row["data"]
        while isinstance(value, list):  # a vector per text, or one per token
            value = value[-1]
        return float(value)
