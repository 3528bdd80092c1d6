"""Prompts that can be trained on, but are hardly what was meant: said once, with the way out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from grpo_lightning.datamodules.converters import Converter, DatasetConverter
from grpo_lightning.datamodules.prompts.chat_templates import row_template_kwargs
from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.messages import as_read

ROLES = ("system", "user", "assistant", "tool", "developer")
FOREIGN_ROLES = {
    **dict.fromkeys(("human", "prompter", "User", "Human"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "ai", "Assistant"), "assistant"),
    "System": "system",
}
"""Roles of other formats (ShareGPT, OpenAssistant, LangChain), and what templates know them as."""
MARK, UNKNOWN = "7f3aQz", "7f3aqy"
"""A content, and a role that nobody has."""


class PromptWarnings:
    """Looks at the prompts of each dataset of a run, and says a thing once.

    Args:
        tokenizer: Of the policy.
        chat_template_kwargs: Of the run; they may say that what looks wrong is meant.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: Mapping[str, Any]) -> None:
        self.tokenizer, self.chat_template_kwargs = tokenizer, chat_template_kwargs
        self._said: set[str] = set()

    def check(self, prompts: PromptDataset, convert: Converter, arguments: Mapping[str, Any]) -> None:
        """Says what is odd about these prompts.

        Args:
            prompts: Of a dataset.
            convert: Its converter.
            arguments: That converter's arguments; ``conversational`` and ``drop_solution`` say what is meant.
        """
        if not prompts.is_conversational and "conversational" not in arguments:
            self._text_for_a_chat_model(prompts, convert)
        ending = prompts.ending_with_the_assistant()
        is_meant = "continue_final_message" in self.chat_template_kwargs or "drop_solution" in arguments
        if ending and not is_meant:
            self._solution_in_the_prompt(prompts, ending)
        for role, (place, index) in prompts.first_of_roles().items():
            self._message_that_is_not_read(prompts, role, place, index)

    def _text_for_a_chat_model(self, prompts: PromptDataset, convert: Converter) -> None:
        if self.tokenizer.chat_template is None:
            return
        how = (
            "Set data.converter_args.conversational to true to make each prompt a user message, or to false to say that "
            "text is meant."
            if isinstance(convert, DatasetConverter)
            else "Return a list of messages from data.converter to have it applied."
        )
        self._say(
            "text",
            f"The prompts of {prompts.name} are text. The tokenizer has a chat template, which is applied to messages "
            f"only. {how}",
        )

    def _solution_in_the_prompt(self, prompts: PromptDataset, ending: list[int]) -> None:
        self._say(
            "solution",
            f"{len(ending)} of {len(prompts)} prompts of {prompts.name} end with a message of the assistant (row "
            f"{prompts.uids[ending[0]]}): the policy reads that answer and then gives another. Set "
            "data.converter_args.drop_solution to true to leave it out. If it is the start of the answer, set "
            "model.chat_template_kwargs to {add_generation_prompt: false, continue_final_message: true}; if it is meant, "
            "drop_solution to false.",
        )

    def _message_that_is_not_read(self, prompts: PromptDataset, role: str, place: int, index: int) -> None:
        """Says where the template leaves out a message of this role, or writes whatever role there is."""
        row = prompts.row(place)
        options = row_template_kwargs(row, self.chat_template_kwargs)
        if self.tokenizer.chat_template is None and "chat_template" not in options:
            return  # of a model for images, whose processor has the template

        def written(role: str) -> str | None:
            chat = [*row["prompt"]]
            chat[index] = {**chat[index], "role": role, "content": MARK}
            try:
                (read,) = as_read([chat], self.tokenizer, options)
                return str(self.tokenizer.apply_chat_template(read, **{**options, "tokenize": False}))
            except Exception:  # templates raise their own kinds
                return None

        text, where = written(role), f"messages of the role {role!r} (row {prompts.uids[place]})"
        new_name = f" to {FOREIGN_ROLES[role]}" if role in FOREIGN_ROLES else ""
        if text is not None and MARK not in text:
            self._say(
                f"left out: {role}",
                f"{prompts.name} has {where}, which the chat template leaves out: the policy does not see them. Rename the "
                f"role{new_name}, or put what they say into a message of the user. Roles that templates know are {', '.join(ROLES)}.",
            )
        elif text is None or role in ROLES or f"<|{role}|>" in self.tokenizer.all_special_tokens:
            return  # the last: templates of GLM write every role so, and it is one that the model knows
        elif (written(UNKNOWN) or "").replace(UNKNOWN, role) == text:
            self._say(
                f"unknown: {role}",
                f"{prompts.name} has {where}, which the chat template writes as it would any other word. Unless the model knows "
                f"it, rename it{new_name}: roles that models know are {', '.join(ROLES)}.",
            )

    def _say(self, subject: str, message: str) -> None:
        if subject not in self._said:
            self._said.add(subject)
            rank_zero_warn(message)
