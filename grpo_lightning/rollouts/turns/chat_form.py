"""What a model's chat template makes of several turns: prompts, the tokens between two turns, and how calls are written."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from typing import Any, Final

from transformers import PreTrainedTokenizerBase

from grpo_lightning.messages import content_form, in_form
from grpo_lightning.ordinary_text import OrdinaryText
from grpo_lightning.rollouts.turns.dummy_exchange import ANSWER_MARK, MARK, dummy_exchange
from grpo_lightning.rollouts.turns.same_start import same_start
from grpo_lightning.rollouts.turns.tool_call_formats import READERS, ReadTurn, ToolCall
from grpo_lightning.types import Message

PROBE_ARGUMENTS: Final = {"text": "7f3aQy"}
PROBE: Final = ToolCall("probe_tool", PROBE_ARGUMENTS)


class ChatForm:
    """Renders and reads turns with one tokenizer.

    The suffix behind a turn of the policy is what the template puts between a turn and the next one: the tool's or user's
    messages and the opening of the policy's next turn. It is rendered behind a dummy, and the policy's own tokens are never
    rendered again: as text, they may be other tokens than were sampled. Special tokens are the template's alone: those that
    tools, users or schemas write out are encoded as text (:class:`OrdinaryText`).

    Args:
        tokenizer: With a chat template.
        end_ids: Tokens that end a turn.
        template_kwargs: Further arguments of the chat template.
        tool_call_format: A key of ``READERS``; None for what the tokenizer or its template says.

    Raises:
        ValueError: If there is no chat template, or the format is unknown.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: frozenset[int],
        template_kwargs: Mapping[str, Any] | None = None,
        tool_call_format: str | None = None,
    ) -> None:
        self.tokenizer, self.end_ids, self.template_kwargs = tokenizer, end_ids, dict(template_kwargs or {})
        if tokenizer.chat_template is None and "chat_template" not in self.template_kwargs:
            raise ValueError(
                f"model.tools and model.environment need a chat template, and the tokenizer {tokenizer.name_or_path!r} has "
                "none. Use model.tokenizer_name_or_path of an instruct model."
            )
        added = tokenizer.added_tokens_decoder  # a piece of ordinary text ends no turn of a rendering
        self.end_texts = tuple(added[token].content for token in sorted(end_ids) if token in added)
        self.reads_by_template = tool_call_format is None and getattr(tokenizer, "response_template", None) is not None
        if tool_call_format is not None and tool_call_format not in READERS:
            raise ValueError(
                f"model.turns.tool_call_format={tool_call_format!r} is unknown. Choose one of {', '.join(READERS)}."
            )
        self._format = tool_call_format
        self._text = self._ordinary_text()
        self._content_form = content_form(tokenizer, self.template_kwargs)
        self._has_text_arguments = False  # until a mapping has failed
        self._has_text_arguments = self._needs_text_arguments()

    def with_kwargs(self, template_kwargs: Mapping[str, Any]) -> ChatForm:
        """The same, with further arguments of the chat template."""
        other = copy(self)
        other.template_kwargs = {**self.template_kwargs, **template_kwargs}
        if "chat_template" in template_kwargs:
            other._text = other._ordinary_text()
            other._content_form = content_form(other.tokenizer, other.template_kwargs)
        return other

    def quoted(self, messages: Sequence[Message], own: Collection[int] = ()) -> list[Message]:
        """Messages of a tool or an environment, or of the policy, in which no text stands for a special token.

        Args:
            messages: As they were said.
            own: Special tokens that the policy sampled itself.
        """
        return [self._text.quoted(message, own) for message in messages]

    @property
    def format_name(self) -> str:
        """How calls are written: ``response_template`` where the tokenizer reads turns itself, or a key of ``READERS``.

        Raises:
            ValueError: If neither the tokenizer nor its template says.
        """
        if self.reads_by_template:
            return "response_template"
        if self._format is None:
            self._format = self._detected_format()
        return self._format

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], opens_turn: bool = True) -> str:
        """The conversation as text; with the opening of the policy's next turn."""
        options = {
            **self.template_kwargs,
            "tools": self._text.quoted_schemas(tools) or None,
            "add_generation_prompt": opens_turn,
        }
        written = [self._written(message) for message in in_form(messages, self._content_form)]
        text = self.tokenizer.apply_chat_template(written, **options, tokenize=False)
        assert isinstance(text, str)
        return text

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[int]:
        """Tokens of a prompt, as the data module makes them; ``quoted`` has seen what others than the data say in it."""
        return self._text.ids(self.render(messages, tools))

    def suffix_ids(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], has_ended: bool) -> list[int]:
        """Tokens between a turn of the policy and the first of its next one.

        Args:
            messages: What tools or the user said.
            tools: Schemas, as in the prompt.
            has_ended: Whether the turn's last token is one that ends turns; else such a token comes first.

        Raises:
            ValueError: If the template renders the dummy in a way that does not show where its turn ends.
        """
        said = self.quoted(messages)
        dummy = dummy_exchange(said)
        marked = [{**said[0], "content": ANSWER_MARK}, *said[1:]]
        shown = self.render([*dummy, *marked], tools)
        if dummy[1].get("tool_calls") and 0 <= shown.rfind(ANSWER_MARK) < shown.rfind(MARK):
            dummy[1]["content"] = (
                ""  # some write the results of calls before the text of the turn that made them (Gemma 4)
            )
            shown = self.render([*dummy, *marked], tools)
        rendered = self.render([*dummy, *said], tools)
        start = self._turn_end(rendered, shown, dummy, tools, has_ended)
        before, whole = self._text.ids(rendered[:start]), self._text.ids(rendered)
        if whole[: len(before)] == before:
            return whole[len(before) :]
        return self._text.ids(rendered[start:])

    def keeps_turn(
        self,
        asked: Sequence[Message],
        turn: Message,
        answers: Sequence[Message],
        tools: Sequence[dict[str, Any]],
        sampled: str | None = None,
    ) -> bool:
        """Whether the template writes a turn of the policy, and all before it, in the same way once it has been answered.

        Args:
            asked: What the turn answers, from the start.
            turn: The policy's.
            answers: What tools or the user said to it.
            tools: Schemas, as in the prompt.
            sampled: The turn's own text, with what ended it; None where there is none.
        """
        opened, whole = self.render(asked, tools), self.render([*asked, turn, *answers], tools)
        if not whole.startswith(opened):
            return False
        if sampled is not None and whole.startswith(opened + sampled):
            return True  # also where the template would write it otherwise with nothing behind it
        alone = self.render([*asked, turn], tools, opens_turn=False)
        ends = [place + len(text) for text in self.end_texts if (place := alone.rfind(text)) >= 0]
        return whole.startswith(alone[: max(ends, default=len(alone))])

    def _written(self, message: Message) -> Message:
        """With the arguments of its calls as the template takes them: some want a mapping, some its JSON text."""
        if not self._has_text_arguments or not message.get("tool_calls"):
            return message
        calls = []
        for call in message["tool_calls"]:
            function = call["function"]
            given = function["arguments"]
            text = given if isinstance(given, str) else json.dumps(given)
            calls.append({**call, "function": {**function, "arguments": text}})
        return {**message, "tool_calls": calls}

    def _needs_text_arguments(self) -> bool:
        try:
            self.render(self._probe(PROBE.arguments), [], opens_turn=False)
        except TypeError:
            return True
        except Exception:  # of a template that knows no tools, or no plain text: said where it is asked to
            return False
        return False

    def _probe(self, arguments: Any) -> list[Message]:
        """A conversation with one call."""
        call = {"type": "function", "id": "call00000", "function": {"name": PROBE.name, "arguments": arguments}}
        return [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]

    def _turn_end(
        self,
        rendered: str,
        shown: str,
        dummy: Sequence[Message],
        tools: Sequence[dict[str, Any]],
        has_ended: bool,
    ) -> int:
        """Where in a rendering the dummy's turn ends: behind the first text that ends turns, or before it.

        Args:
            rendered: The dummy, and what was answered.
            shown: The same with ``ANSWER_MARK`` for the first answer, which may be any text.
            dummy: The messages before it.
            tools: Schemas, as in the prompt.
            has_ended: Whether the text that ends turns belongs to the turn.
        """
        mark = rendered.rfind(MARK)
        if mark < 0:
            raise ValueError(
                "The chat template leaves out what the assistant says, so that turns cannot be told apart."
            )
        # An end behind what follows is that of another turn: some models end a call by the opening of its result.
        turn = shown[shown.rfind(MARK) : max(shown.rfind(ANSWER_MARK), 0)]
        ends = [(place, len(text)) for text in self.end_texts if (place := turn.find(text)) > 0]
        if ends:
            place, length = min(ends)
            return mark + (place + length if has_ended else place)
        same = same_start(self.render(dummy, tools, opens_turn=False), rendered)
        if same <= mark:
            raise ValueError(
                f"The chat template of {self.tokenizer.name_or_path!r} ends turns by none of {self.end_texts}, and renders a "
                "turn in another way once another one follows. Give model.chat_template_kwargs a chat_template that keeps "
                "the history as it was."
            )
        return same

    def _ordinary_text(self) -> OrdinaryText:
        template = self.template_kwargs.get("chat_template", self.tokenizer.chat_template)
        return OrdinaryText(self.tokenizer, str(template), (MARK, ANSWER_MARK))

    def read(self, ids: Sequence[int], prompt_ids: Sequence[int], tools: Sequence[dict[str, Any]]) -> ReadTurn:
        """What a sampled turn says."""
        plain = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        if not tools:
            return ReadTurn(plain)
        if self.reads_by_template:
            return self._read_by_template(ids, prompt_ids, tools, plain)
        turn = READERS[self.format_name](
            self._without_end(str(self.tokenizer.decode(list(ids), skip_special_tokens=False))), tools
        )
        return turn if turn.calls or turn.unreadable else ReadTurn(plain)

    def _read_by_template(
        self, ids: Sequence[int], prompt_ids: Sequence[int], tools: Sequence[dict[str, Any]], plain: str
    ) -> ReadTurn:
        try:
            message: Any = self.tokenizer.parse_response(list(ids), prefix=list(prompt_ids), tools=list(tools))
        except Exception as error:  # by the format of the model: JSON, XML, patterns
            return ReadTurn(plain, [], [str(error) or type(error).__name__])
        calls, unreadable = [], []
        for call in message.get("tool_calls") or []:
            function = call.get("function") or {}
            if isinstance(function.get("name"), str) and function["name"]:
                arguments = function.get("arguments")
                calls.append(ToolCall(function["name"], {} if arguments is None else arguments))
            else:
                unreadable.append("it has no name")
        return ReadTurn(message.get("content") or "" if calls else plain, calls, unreadable)

    def _without_end(self, text: str) -> str:
        for end in self.end_texts:
            text = text.removesuffix(end)
        return text

    def _detected_format(self) -> str:
        """The format whose reader finds, in the template's own rendering of a call, that call."""
        probe = self._probe({**PROBE_ARGUMENTS})
        try:
            opened, rendered = self.render(probe[:1], []), self.render(probe, [], opens_turn=False)
        except Exception as error:  # templates raise their own kinds
            raise ValueError(f"The chat template cannot render a tool call: {error}") from error
        turn = rendered[same_start(opened, rendered) :]
        end = min((place for text in self.end_texts if (place := turn.find(text)) > 0), default=len(turn))
        for name, reader in READERS.items():
            if PROBE in reader(turn[:end], []).calls:
                return name
        raise ValueError(
            f"The chat template of {self.tokenizer.name_or_path!r} renders a tool call as {turn!r:.200}, which is none of "
            f"{', '.join(READERS)}. Set model.turns.tool_call_format to what the model writes, or use a tokenizer with a "
            "response_template; a chat template that knows no tools has to be replaced (model.chat_template_kwargs)."
        )
