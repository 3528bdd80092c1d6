"""Completions and prompts in the form in which rewards and callbacks see them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from transformers import PreTrainedTokenizerBase

from grpo_lightning.types import Conversation, Message, Prompt, PromptBatch, Rollouts


class RolloutTexts:
    """Text for text prompts, one assistant message for conversations, all messages of rollouts of several turns.

    Args:
        tokenizer: Decodes; special tokens are left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def completion(
        self, prompt: Prompt, ids: list[int], conversation: Conversation | None = None
    ) -> str | list[Message]:
        """One completion of a prompt."""
        if conversation is not None and isinstance(prompt, list):
            return deepcopy(conversation.messages)  # a reward may change them
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return [{"role": "assistant", "content": text}] if isinstance(prompt, list) else text

    def completions(self, batch: PromptBatch, rollouts: Rollouts) -> list[str] | list[list[Message]]:
        """N completions, all in the form of the batch's first prompt."""
        if rollouts.conversations and batch.prompts and isinstance(batch.prompts[0], list):
            return [deepcopy(conversation.messages) for conversation in rollouts.conversations]
        ids = [completion.tolist() for completion in rollouts.completions()]
        texts: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        if batch.prompts and isinstance(batch.prompts[0], list):
            return [[{"role": "assistant", "content": text}] for text in texts]
        return texts

    def per_completion(self, batch: PromptBatch, of_prompt: Sequence[int]) -> tuple[list[Prompt], dict[str, list[Any]]]:
        """The prompt and the columns of each completion, given the prompt that it belongs to."""
        columns = {name: [values[b] for b in of_prompt] for name, values in batch.columns.items()}
        return [batch.prompts[b] for b in of_prompt], columns
