"""How models write tool calls, by name: text of a turn in, calls out. What a model wrote is parsed, never evaluated."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo_lightning.rewards.sandbox.python_source import parsed_expression


@dataclass(frozen=True)
class ToolCall:
    """A call as the model wrote it."""

    name: str
    arguments: dict[str, Any] | str
    """A mapping; text where the model's is none."""


@dataclass(frozen=True)
class ReadTurn:
    """What a turn says."""

    content: str
    """The text beside the calls."""
    calls: list[ToolCall] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    """Why something that looks like a call is none, for the model to read."""


Reader = Callable[[str, Sequence[dict[str, Any]]], ReadTurn]
"""The text of a turn, special tokens included, and the schemas of the tools."""


def read_hermes(text: str, tools: Sequence[dict[str, Any]] = ()) -> ReadTurn:
    r"""``<tool_call>{"name": ..., "arguments": ...}</tool_call>``: Hermes, Qwen 2.5 and 3.

    Example:
        >>> read_hermes('So: <tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>')
        ReadTurn(content='So:', calls=[ToolCall(name='add', arguments={'a': 1})], unreadable=[])
        >>> read_hermes('<tool_call>{"name": </tool_call>').unreadable
        ['it is not valid JSON (Expecting value, character 8)']
    """
    blocks = re.findall(r"<tool_call>(.*?)(?:</tool_call>|$)", text, re.DOTALL)
    return _of_json(re.sub(r"<tool_call>.*?(?:</tool_call>|$)", "", text, flags=re.DOTALL), blocks)


def read_llama3_json(text: str, tools: Sequence[dict[str, Any]] = ()) -> ReadTurn:
    """``{"name": ..., "parameters": ...}`` as the whole turn, or several with semicolons between them: Llama 3.1 to 3.3.

    Example:
        >>> read_llama3_json('<|python_tag|>{"name": "add", "parameters": {"a": 1}}').calls
        [ToolCall(name='add', arguments={'a': 1})]
        >>> read_llama3_json('{4} is a set').content
        '{4} is a set'
    """
    stripped = text.strip().removeprefix("<|python_tag|>").strip()
    if not re.match(r'\{\s*"(name|type|function|parameters)"', stripped):
        return ReadTurn(text)
    decoder, blocks, place = json.JSONDecoder(), [], 0
    while place < len(stripped):
        try:
            _, end = decoder.raw_decode(stripped, place)
        except ValueError:
            end = len(stripped)
        blocks.append(stripped[place:end])
        rest = re.match(r"[\s;]*", stripped[end:])
        place = end + (rest.end() if rest else 0)
    return _of_json("", blocks)


def read_mistral(text: str, tools: Sequence[dict[str, Any]] = ()) -> ReadTurn:
    """``[TOOL_CALLS] [{"name": ..., "arguments": ...}]``, or ``[TOOL_CALLS]name[ARGS]{...}`` for each call.

    Example:
        >>> read_mistral('[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}]').calls
        [ToolCall(name='add', arguments={'a': 1})]
        >>> read_mistral('[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]sub[ARGS]{}').calls[1]
        ToolCall(name='sub', arguments={})
    """
    content, mark, rest = text.partition("[TOOL_CALLS]")
    if not mark:
        return ReadTurn(text)
    if "[ARGS]" not in rest:
        return _of_json(content, [rest])
    calls, unreadable = [], []
    for part in rest.split("[TOOL_CALLS]"):
        name, separator, arguments = part.partition("[ARGS]")
        name = re.sub(r"\[CALL_ID\].*", "", name, flags=re.DOTALL).strip()
        if not separator or not name:
            unreadable.append("it lacks a name or [ARGS]")
        else:
            calls.append(ToolCall(name, _mapping_or_text(arguments.strip())))
    return ReadTurn(content.strip(), calls, unreadable)


def read_xml_parameters(text: str, tools: Sequence[dict[str, Any]] = ()) -> ReadTurn:
    r"""``<function=name><parameter=a>1</parameter></function>`` in ``<tool_call>``: Qwen 3 Coder and 3.5, Nemotron 3.

    Values are text; where the tool's schema asks for something else, they are read as JSON.

    Example:
        >>> read_xml_parameters("<tool_call><function=say><parameter=a>\nhi\n</parameter></function></tool_call>").calls
        [ToolCall(name='say', arguments={'a': 'hi'})]
    """
    calls, unreadable = [], []
    for block in re.findall(r"<tool_call>(.*?)(?:</tool_call>|$)", text, re.DOTALL):
        function = re.search(r"<function=([^>\s]+)>(.*?)(?:</function>|$)", block, re.DOTALL)
        if function is None:
            unreadable.append("it lacks <function=name>")
            continue
        name, body = function.groups()
        found = re.findall(r"<parameter=([^>\s]+)>\n?(.*?)\n?(?:</parameter>|$)", body, re.DOTALL)
        calls.append(ToolCall(name, {key: _typed(value, name, key, tools) for key, value in found}))
    content = re.sub(r"<tool_call>.*?(?:</tool_call>|$)", "", text, flags=re.DOTALL)
    return ReadTurn(content.strip(), calls, unreadable)


def read_pythonic(text: str, tools: Sequence[dict[str, Any]] = ()) -> ReadTurn:
    """``[name(a=1), other(b="x")]``, perhaps between ``<|tool_call_start|>`` and ``<|tool_call_end|>``: LFM2, Llama 4.

    Example:
        >>> read_pythonic('<|tool_call_start|>[add(a=1, b=[2])]<|tool_call_end|>ok')
        ReadTurn(content='ok', calls=[ToolCall(name='add', arguments={'a': 1, 'b': [2]})], unreadable=[])
    """
    framed = re.search(r"<\|tool_call_start\|>(.*?)(?:<\|tool_call_end\|>|$)", text, re.DOTALL)
    source = (framed.group(1) if framed else text).strip()
    if not framed and not re.match(r"\[\s*[\w.]+\(.*\)\s*\]$", source, re.DOTALL):
        return ReadTurn(text)
    content = (text[: framed.start()] + text[framed.end() :]).strip() if framed else ""
    try:
        tree = parsed_expression(source)
        nodes = tree.elts if isinstance(tree, ast.List) else [tree]
        return ReadTurn(content, [_python_call(node) for node in nodes])
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return ReadTurn(content, [], [f"it is no list of calls with plain values ({error})"])


READERS: dict[str, Reader] = {
    "hermes": read_hermes,
    "xml_parameters": read_xml_parameters,
    "llama3_json": read_llama3_json,
    "mistral": read_mistral,
    "pythonic": read_pythonic,
}
"""By the names of ``model.turns.tool_call_format``."""


def _of_json(content: str, blocks: Sequence[str]) -> ReadTurn:
    calls, unreadable = [], []
    for block in blocks:
        try:
            value = json.loads(block.strip())
        except (ValueError, RecursionError) as error:
            why = f"{error.msg}, character {error.pos}" if isinstance(error, json.JSONDecodeError) else str(error)
            unreadable.append(f"it is not valid JSON ({why})")
            continue
        for one in value if isinstance(value, list) else [value]:
            name = one.get("name") if isinstance(one, dict) else None
            if not isinstance(name, str) or not name:
                unreadable.append('it has no "name"')
                continue
            arguments = one.get("arguments", one.get("parameters"))
            arguments = {} if arguments is None else arguments
            calls.append(ToolCall(name, arguments if isinstance(arguments, dict) else _mapping_or_text(arguments)))
    return ReadTurn(content.strip(), calls, unreadable)


def _mapping_or_text(arguments: Any) -> dict[str, Any] | str:
    if not isinstance(arguments, str):
        return json.dumps(arguments)
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _typed(value: str, name: str, key: str, tools: Sequence[dict[str, Any]]) -> Any:
    for tool in tools:
        function = tool.get("function", tool)
        schema = function.get("parameters", {}).get("properties", {}).get(key, {})
        if function.get("name") == name and schema.get("type", "string") != "string":
            try:
                return json.loads(value)
            except (ValueError, RecursionError):
                return value
    return value


def _python_call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError("arguments need names")
    return ToolCall(ast.unparse(node.func), {str(k.arg): ast.literal_eval(k.value) for k in node.keywords})
