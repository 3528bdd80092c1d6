"""A model that plays an episode, on tokens as a rollout does: what it sampled is never rendered again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from grpo_lightning.commands.quiet import quiet
from grpo_lightning.commands.saved_policy import load_for_chat
from grpo_lightning.messages import Message
from grpo_lightning.policy.end_of_sequence import end_of_sequence_ids
from grpo_lightning.rollouts.turns.chat_form import ChatForm
from grpo_lightning.rollouts.turns.tool_call_formats import ReadTurn


class ModelPlayer:
    """See :class:`~grpo_lightning.commands.env_play.Player`.

    Args:
        policy: In Hugging Face format.
        form: Renders and reads its turns.
        max_tokens: Of a turn.
        temperature: 0 for the likeliest token.
    """

    def __init__(self, policy: Any, form: ChatForm, max_tokens: int, temperature: float) -> None:
        self.policy, self.form = policy.eval(), form
        self.sampling: dict[str, Any] = {"max_new_tokens": max_tokens, "do_sample": temperature > 0}
        if temperature > 0:  # all tokens, as in training
            self.sampling |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
        self.ids: list[int] = []

    @torch.no_grad()
    def __call__(self, conversation: list[Message], news: list[Message], tools: list[dict[str, Any]]) -> ReadTurn:
        """Samples a turn.

        Raises:
            ValueError: If there is nothing to answer.
        """
        if not conversation:
            raise ValueError("a model has nothing to answer: reset says nothing, and there is no --prompt.")
        if self.ids:
            self.ids += self.form.suffix_ids(news, tools, self.ids[-1] in self.form.end_ids)
        else:
            self.ids = self.form.prompt_ids(self.form.quoted(conversation), tools)
        inputs = torch.tensor([self.ids], device=self.policy.device)
        output = self.policy.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            pad_token_id=self.form.tokenizer.pad_token_id,
            eos_token_id=sorted(self.form.end_ids),
            **self.sampling,
        )
        sampled = output[0, len(self.ids) :].tolist()
        turn = self.form.read(sampled, self.ids, tools)
        self.ids += sampled
        return turn


def load_player(source: Path, max_tokens: int, temperature: float, seed: int) -> ModelPlayer:
    """The policy in ``source``, which errors call ``--model`` as the command line does, on the CPU.

    Raises:
        ValueError, OSError: If it cannot be loaded, or has no chat template.
    """
    quiet()
    policy, tokenizer, _ = load_for_chat(source, None, "--model")
    torch.manual_seed(seed)
    form = ChatForm(tokenizer, end_of_sequence_ids(policy, tokenizer))
    return ModelPlayer(policy, form, max_tokens, temperature)
