"""The forms of prompts and completions. Apart from ``types.py``, whose tensors would make every reward's process import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Message = dict[str, Any]
"""``{"role": ..., "content": ...}``, as in the OpenAI chat format and in transformers' chat templates."""

Prompt = str | list[Message]
"""Plain text, or a conversation."""

ContentForm = Literal["parts", "strings", "any"]
"""What a chat template reads as the content of a message: a list of parts alone, text alone, or either."""

StopReason = Literal["eos", "done", "max_turns", "max_tokens", "time", "fault"]
"""Why a rollout of several turns ended: the policy had nothing more to ask, the environment was done, a budget was used up,
or the environment failed."""


def said(message: Message) -> str:
    """The text of a message for a reader, an image as a mark in its place.

    Example:
        >>> said({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]})
        '[image]How many?'
    """
    content = message.get("content", "")
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        return str(content)
    return "".join(str(block.get("text", f"[{block.get('type')}]")) for block in content)


def behind_prompt(prompt: list[Message], observation: list[Message]) -> list[Message]:
    """The conversation that the policy answers: what a reset said, behind the prompt, whose messages stay untouched.

    A first message of the user continues the text of a last one, without anything between them: TRL does so, and chat
    templates expect turns that alternate.

    Example:
        >>> behind_prompt([{"role": "user", "content": "Play. "}], [{"role": "user", "content": "Guess 1-9."}])
        [{'role': 'user', 'content': 'Play. Guess 1-9.'}]
        >>> parts = [{"type": "text", "text": "Play. "}]
        >>> said(behind_prompt([{"role": "user", "content": parts}], [{"role": "user", "content": "Guess 1-9."}])[0])
        'Play. Guess 1-9.'
        >>> behind_prompt([{"content": "Play. "}], [{"role": "user", "content": "Guess 1-9."}])  # a template may need no roles
        [{'content': 'Play. '}, {'role': 'user', 'content': 'Guess 1-9.'}]
    """
    if not prompt or not observation or not prompt[-1].get("role") == observation[0].get("role") == "user":
        return [*prompt, *observation]
    last, first = prompt[-1], observation[0]
    if type(last["content"]) is not type(first["content"]):
        last, first = in_parts([last, first])
    joined = {**last, "content": last["content"] + first["content"]}
    return [*prompt[:-1], joined, *observation[1:]]


@dataclass(frozen=True)
class Conversation:
    """What happened in one rollout of several turns, beside its tokens."""

    messages: list[Message]
    """The completion: turns of the policy with their ``tool_calls``, and what tools and environment answered."""
    stop: StopReason
    rewards: list[float] = field(default_factory=list)
    """The environment's, one for each turn of the policy; 0 for a turn that it gave none."""
    final_reward: float | None = None
    """The environment's for the whole; None where it has none."""
    calls: int = 0
    """Tool calls that the policy made."""
    mistakes: int = 0
    """Those of them that could not be made as written, and turns that held no readable call."""
    opening: list[Message] = field(default_factory=list)
    """What the environment said first, behind the prompt."""
    branches: list[tuple[int, int]] = field(default_factory=list)
    """Of a rollout whose history the chat template wrote anew: for each history, how many tokens of its group's prompt it begins
    with, and how many of the completion's tokens follow them. Empty where everything stands behind everything before it."""
    columns: dict[str, Any] = field(default_factory=dict)
    """What rewards get as columns of this completion, of a rollout function."""
    environment: Any = field(default=None, repr=False, compare=False)
    """The instance, for rewards in this process; it goes neither into checkpoints nor to other processes."""

    def asked(self, prompt: Prompt) -> Prompt:
        """What the policy was asked: the prompt, with what the environment said behind it."""
        return behind_prompt(prompt, self.opening) if isinstance(prompt, list) else prompt

    @property
    def turns(self) -> int:
        """Turns of the policy."""
        return len(self.rewards)

    @property
    def is_fault(self) -> bool:
        """Whether the environment failed, so that the completion counts for nothing."""
        return self.stop == "fault"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "environment": None}

    def plain(self) -> dict[str, Any]:
        """The fields but for the instance, as plain values."""
        return {name: value for name, value in self.__getstate__().items() if name != "environment"}


def as_read(chats: Sequence[Sequence[Message]], tokenizer: Any, template_kwargs: Mapping[str, Any]) -> list[Any]:
    """The chats in the form that the chat template reads: texts as parts where it leaves a string out, or the reverse."""
    form = content_form(tokenizer, template_kwargs)
    return [in_form(chat, form) for chat in chats]


def in_form(messages: Sequence[Message], form: ContentForm) -> list[Message]:
    """The messages with their texts in this form."""
    if form == "any":
        return list(messages)
    return in_parts(messages) if form == "parts" else in_strings(messages)


def content_form(tokenizer: Any, template_kwargs: Mapping[str, Any]) -> ContentForm:
    """How a chat template reads the content of a message.

    Templates of models for images (SmolVLM, Idefics 3, LLaVA-NeXT) read ``parts`` and leave a string out. Many of models
    for text read ``strings``: a list of parts fails (Qwen 2.5), vanishes (Qwen 3), or is written as Python writes lists
    (Llama 3, whose ``| trim`` makes text of it).

    Args:
        tokenizer: With a chat template.
        template_kwargs: Further arguments of the template.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template and "chat_template" not in template_kwargs:  # of a class that writes chats in its own way
        return _found_form(tokenizer, template_kwargs)
    key = type(tokenizer), repr(template), repr(sorted(template_kwargs.items()))
    form = _FORMS.get(key)
    if form is None:
        if len(_FORMS) >= KEPT_FORMS:
            _FORMS.clear()
        form = _FORMS[key] = _found_form(tokenizer, template_kwargs)
    return form


KEPT_FORMS = 256
_FORMS: dict[tuple[type, str, str], ContentForm] = {}
"""Of kinds of tokenizers, templates and arguments, as text: finding one costs two renderings, and each scored text asks for it."""


def _found_form(tokenizer: Any, template_kwargs: Mapping[str, Any]) -> ContentForm:
    asked: list[Message] = [{"role": "user", "content": _ASKED}]

    def shown(messages: list[Message]) -> str | None:
        try:
            text: str = tokenizer.apply_chat_template(messages, **template_kwargs, tokenize=False)
        except Exception:  # templates raise their own kinds, on what they do not know
            return None
        return text if _ASKED in text else None

    of_string, of_parts = shown(asked), shown(in_parts(asked))
    if of_string is None:
        return "any" if of_parts is None else "parts"
    return "any" if of_parts == of_string else "strings"


_ASKED = "7f3aQz"


def in_parts(messages: Sequence[Message]) -> list[Message]:
    """The messages with each text as a list of one part.

    Example:
        >>> in_parts([{"role": "user", "content": "2 + 2?"}])
        [{'role': 'user', 'content': [{'type': 'text', 'text': '2 + 2?'}]}]
    """
    texts = (message.get("content") for message in messages)
    return [
        {**message, "content": [{"type": "text", "text": text}]} if isinstance(text, str) else dict(message)
        for message, text in zip(messages, texts, strict=True)
    ]


def in_strings(messages: Sequence[Message]) -> list[Message]:
    """The messages with parts that are all text joined, with nothing between them, as templates that read parts do.

    Example:
        >>> in_strings([{"role": "user", "content": [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}]}])
        [{'role': 'user', 'content': '2 + 2?'}]
    """
    return [{**each, "content": said(each)} if _is_text_in_parts(each.get("content")) else each for each in messages]


def _is_text_in_parts(content: Any) -> bool:
    return isinstance(content, list) and all(
        isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    )
