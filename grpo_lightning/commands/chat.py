"""``python -m grpo_lightning chat SOURCE``: type prompts, read completions; or pipe one prompt per line."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_lightning.commands.arguments import CommandParser, temperature, whole
from grpo_lightning.commands.chat_tools import ToolChat, open_tool_chat
from grpo_lightning.commands.quiet import quiet
from grpo_lightning.commands.saved_policy import load_for_chat
from grpo_lightning.environments import EnvironmentContractError
from grpo_lightning.messages import as_read

COMMANDS = "/new starts a new conversation, /quit ends."
ANEW = "Each prompt starts anew, as the run trained on prompts of one turn; --conversation keeps what was said. /quit ends."


def build_parser() -> CommandParser:
    """The command's options."""
    parser = CommandParser(
        prog="grpo_lightning chat",
        description="Tries a policy. Without a terminal each line of standard input is a prompt of its own.",
    )
    parser.add_argument("source", type=Path, help="a .ckpt file, a run directory, or a Hugging Face directory")
    parser.add_argument("--config", type=Path, help="the run's config; by default the config.yaml of its last launch")
    parser.add_argument("--temperature", type=temperature, default=0.0, help="0 (default) takes the likeliest token")
    parser.add_argument(
        "--max_completion_length", type=whole("number of tokens", 1), default=512, help="tokens (default 512)"
    )
    parser.add_argument("--system", help="system prompt; by default that of the run's converter")
    parser.add_argument("--plain", action="store_true", help="no chat template: the prompt as it is typed")
    parser.add_argument("--conversation", action="store_true", help="keep what was said, whatever the run trained on")
    parser.add_argument(
        "--tools",
        action="store_true",
        help="run the tools and the environment of the run's config, and show calls and results; imports their code",
    )
    parser.add_argument("--row", type=json.loads, default={}, help="with --tools: columns for the environment, as JSON")
    parser.add_argument("--seed", type=int, default=0, help="of sampled tokens (default 0)")
    return parser


def system_prompt(config: dict[str, Any]) -> str | None:
    """The system prompt that the run trained with, where its converter has one."""
    data = config.get("data") or {}
    converter = data.get("converter")
    arguments = [data.get("converter_args"), converter.get("init_args") if isinstance(converter, dict) else None]
    return next((a["system_prompt"] for a in arguments if a and a.get("system_prompt")), None)


def trained_on_one_turn(source: Path) -> bool:
    """Whether the completions of the run that ``source`` belongs to answer prompts of one turn; False where there are none."""
    resolved = source.resolve()
    for folder in (resolved, *list(resolved.parents)[:3]):
        files = sorted((folder / "completions").glob("step-*.parquet"))
        if files:
            prompts = pq.read_table(files[-1], columns=["prompt"])["prompt"].to_pylist()
            return bool(prompts) and not any(has_several_turns(prompt) for prompt in prompts)
    return False


def has_several_turns(prompt: str) -> bool:
    """Whether a recorded prompt holds an answer already; conversations are recorded as JSON.

    Example:
        >>> has_several_turns('[{"role": "user", "content": "1+2="}]'), has_several_turns("1+2=")
        (False, False)
    """
    try:
        messages = json.loads(prompt)
    except ValueError:
        return False
    return isinstance(messages, list) and any(isinstance(m, dict) and m.get("role") == "assistant" for m in messages)


class Chat:
    """A conversation with a policy.

    Args:
        policy: In Hugging Face format, in memory.
        tokenizer: Its tokenizer; without a chat template prompts are plain text.
        system: System prompt, or None.
        plain: Use no chat template.
        temperature: 0 for greedy.
        max_completion_length: Tokens.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        system: str | None = None,
        plain: bool = False,
        temperature: float = 0.0,
        max_completion_length: int = 512,
    ) -> None:
        self.policy: Any = policy.eval()
        self.tokenizer: Any = tokenizer
        self.is_plain = plain or not tokenizer.chat_template
        self.system = system
        self.sampling: dict[str, Any] = {"max_new_tokens": max_completion_length, "do_sample": temperature > 0}
        if temperature > 0:  # all tokens, as in training: other defaults of the generation config are switched off
            self.sampling |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
        self.reset()

    def reset(self) -> None:
        """Forgets the conversation."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    @torch.no_grad()
    def answer(self, prompt: str) -> str:
        """The completion of the conversation with ``prompt`` added to it."""
        self.messages.append({"role": "user", "content": prompt})
        text = prompt
        if not self.is_plain:
            (messages,) = as_read([self.messages], self.tokenizer, {})
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = self.tokenizer(text, return_tensors="pt", add_special_tokens=self.is_plain)
        ids = inputs["input_ids"].to(self.policy.device)
        output = self.policy.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pad_token_id=self.tokenizer.pad_token_id,
            **self.sampling,
        )
        completion = str(self.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
        self.messages.append({"role": "assistant", "content": completion})
        return completion

    def close(self) -> None:
        """Nothing is held."""


def typed_prompts(chat: Chat | ToolChat, starts_anew: bool) -> Iterator[str]:
    """Prompts from the keyboard until /quit or the end of input; with ``starts_anew`` each is a conversation of its own."""
    print(ANEW if starts_anew else COMMANDS)
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line in ("/quit", "/exit"):
            return
        if line == "/new":
            chat.reset()
        elif line:
            if starts_anew:
                chat.reset()
            yield line


def piped_prompts(chat: Chat | ToolChat) -> Iterator[str]:
    """Prompts of standard input, each a conversation of its own."""
    for line in sys.stdin:
        if line.strip():
            chat.reset()
            yield line.rstrip("\n")


def main(args: list[str]) -> int:
    """Runs the command; 1 where the source cannot be loaded."""
    options = build_parser().parse_args(args)
    quiet()
    try:
        policy, tokenizer, config = load_for_chat(options.source, options.config)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    policy.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    try:
        chat = open_chat(options, policy, tokenizer, config)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    torch.manual_seed(options.seed)
    starts_anew = not options.conversation and trained_on_one_turn(options.source)
    try:
        for prompt in typed_prompts(chat, starts_anew) if sys.stdin.isatty() else piped_prompts(chat):
            print(chat.answer(prompt), flush=True)
    except EnvironmentContractError as error:  # such as a column that reset needs
        print(error, file=sys.stderr)
        return 1
    finally:
        chat.close()
    return 0


def open_chat(options: Namespace, policy: Any, tokenizer: Any, config: dict[str, Any]) -> Chat | ToolChat:
    """The conversation that the options ask for.

    Raises:
        ValueError: If the run's tools cannot be used.
    """
    system, model = options.system or system_prompt(config), config.get("model") or {}
    limits = (options.temperature, options.max_completion_length)
    if options.tools:
        if options.plain:
            raise ValueError("--tools and --plain exclude each other: tools need the chat template. Leave one out.")
        sys.path.insert(0, "")  # tools in a file of the working directory, as python -m finds them
        return open_tool_chat(policy, tokenizer, model, options.row, system, *limits)
    if options.row:
        raise ValueError("--row has no effect without --tools. Add --tools.")
    if model.get("tools") or model.get("environment"):
        print("The run had tools or an environment. --tools imports their code and runs them.", file=sys.stderr)
    return Chat(policy, tokenizer, system, options.plain, *limits)
