"""What a model's chat template makes of several turns: prompts, the tokens between two turns, and how calls are written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Final, Literal

from transformers import PreTrainedTokenizerBase

from grpo_lightning.messages import in_parts, reads_parts_alone
from grpo_lightning.rollouts.turns.same_start import same_start
from grpo_lightning.rollouts.turns.tool_call_formats import READERS, ReadTurn, ToolCall
from grpo_lightning.types import Message

MARK = "7f3aQx"
"""Stands for what the policy said, in a rendering of which only what follows is used."""
PROBE_ARGUMENTS: Final = {"text": "7f3aQy"}
PROBE: Final = ToolCall("probe_tool", PROBE_ARGUMENTS)


class ChatForm:
    """Renders and reads turns with one tokenizer.

    The suffix behind a turn of the policy is what the template puts between a turn and the next one: the tool's or user's
    messages and the opening of the policy's next turn. It is rendered behind a dummy, and the policy's own tokens are never
    rendered again: as text, they may be other tokens than were sampled.

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
        self._takes_parts = reads_parts_alone(tokenizer, self.template_kwargs)
        self._has_text_arguments = False  # until a mapping has failed
        self._has_text_arguments = self._needs_text_arguments()

    def with_kwargs(self, template_kwargs: Mapping[str, Any]) -> ChatForm:
        """The same, with further arguments of the chat template."""
        other = copy(self)
        other.template_kwargs = {**self.template_kwargs, **template_kwargs}
        return other

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
        options = {**self.template_kwargs, "tools": list(tools) or None, "add_generation_prompt": opens_turn}
        written = [self._written(message) for message in (in_parts(messages) if self._takes_parts else messages)]
        text = self.tokenizer.apply_chat_template(written, **options, tokenize=False)
        assert isinstance(text, str)
        return text

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[int]:
        """Tokens of a prompt, as the data module makes them."""
        return self._ids(self.render(messages, tools))

    def suffix_ids(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], has_ended: bool) -> list[int]:
        """Tokens between a turn of the policy and the first of its next one.

        Args:
            messages: What tools or the user said.
            tools: Schemas, as in the prompt.
            has_ended: Whether the turn's last token is one that ends turns; else such a token comes first.

        Raises:
            ValueError: If the template renders the dummy in a way that does not show where its turn ends.
        """
        dummy = self._dummy(messages)
        rendered = self.render([*dummy, *messages], tools)
        said = str(messages[0]["content"]).strip()
        if dummy[1].get("tool_calls") and said and rendered.rfind(said) < rendered.rfind(MARK):
            dummy[1]["content"] = (
                ""  # some write the results of calls before the text of the turn that made them (Gemma 4)
            )
            rendered = self.render([*dummy, *messages], tools)
        start = self._turn_end(rendered, dummy, messages, tools, has_ended)
        before, whole = self._ids(rendered[:start]), self._ids(rendered)
        if whole[: len(before)] == before:
            return whole[len(before) :]
        return self._ids(rendered[start:])

    def keeps_history(self, messages: Sequence[Message]) -> bool:
        """Whether the template renders a turn of the policy in the same way once these messages follow it."""
        thought: Message = {"role": "assistant", "content": f"<think>\n{MARK}\n</think>\n\n{MARK}"}
        asked, calls = self._dummy(messages)[0], self._dummy(messages)[1].get("tool_calls")
        return self.keeps_turn([asked], {**thought, "tool_calls": calls} if calls else thought, messages, [])

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

    def note(self, has_tools: bool, history: Literal["append", "as_template"] = "append") -> str:
        """What the template means for turns, and ``model.turns.history`` for it, in words."""
        said: list[Message] = [{"role": "user", "content": "?"}]
        result: list[Message] = [{"role": "tool", "name": PROBE.name, "content": "1", "tool_call_id": "call00000"}]
        kinds = [("what the user says", said), *([("the result of a tool", result)] if has_tools else [])]
        changed = [name for name, messages in kinds if not self.keeps_history(messages)]
        calls = f"Tool calls are read as {self.format_name}. " if has_tools else ""
        if not changed:
            return f"{calls}The chat template keeps earlier turns as they are, as training does."
        means = {
            "append": "The policy reads its turns as they were sampled, whole; where it is used later, keep its reasoning in the "
            "conversation too, or set model.turns.history=as_template.",
            "as_template": "There the policy goes on from what the template writes, as where it is used later; such a rollout "
            "has several histories, each computed of its own, and counts as one completion.",
        }
        return (
            f"{calls}The chat template writes earlier turns otherwise behind {' and '.join(changed)} (it leaves out their "
            f"reasoning, for one). {means[history]}"
        )

    def _dummy(self, messages: Sequence[Message]) -> list[Message]:
        """A question and an answer, with the calls that the messages answer."""
        answer: Message = {"role": "assistant", "content": MARK}
        calls = [
            {
                "type": "function",
                "id": message.get("tool_call_id", f"call{n:05d}"),
                "function": {"name": message.get("name", "tool"), "arguments": {MARK: MARK}},
            }
            for n, message in enumerate(messages)
            if message["role"] == "tool"
        ]
        return [{"role": "user", "content": "?"}, {**answer, "tool_calls": calls} if calls else answer]

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
        dummy: Sequence[Message],
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]],
        has_ended: bool,
    ) -> int:
        """Where in a rendering the dummy's turn ends: behind the first text that ends turns, or before it."""
        mark = rendered.rfind(MARK)
        if mark < 0:
            raise ValueError(
                "The chat template leaves out what the assistant says, so that turns cannot be told apart."
            )
        # An end behind what follows is that of another turn: some models end a call by the opening of its result.
        last = rendered.find(str(messages[0]["content"]).strip(), mark)
        ends = [(place, len(text)) for text in self.end_texts if mark < (place := rendered.find(text, mark)) < last]
        if ends:
            place, length = min(ends)
            return place + length if has_ended else place
        alone = self.render(dummy, tools, opens_turn=False)
        same = same_start(alone, rendered)
        if same <= mark:
            raise ValueError(
                f"The chat template of {self.tokenizer.name_or_path!r} ends turns by none of {self.end_texts}, and renders a "
                "turn in another way once another one follows. Give model.chat_template_kwargs a chat_template that keeps "
                "the history as it was."
            )
        return same

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
            "response_template."
        )

    def _ids(self, text: str) -> list[int]:
        encodable = text.encode("utf-8", "replace").decode(
            "utf-8"
        )  # a model may write half a surrogate pair, as \ud83d
        ids: Any = self.tokenizer(encodable, add_special_tokens=False)["input_ids"]
        return list(ids)
