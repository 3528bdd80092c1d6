"""The trained policy in five lines of transformers, for a prompt in the form that it was trained on."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

from grpo_lightning.types import Prompt

LONGEST = 160
"""Characters of a prompt that is shown whole."""


def shown_path(path: str | Path) -> str:
    """The path as it is typed from the working directory, whole where it lies outside.

    Example:
        >>> shown_path(Path.cwd() / "runs" / "one"), shown_path("/elsewhere/run")
        ('runs/one', '/elsewhere/run')
    """
    inside = os.path.relpath(path)
    return inside if not inside.startswith("..") else str(path)


def typed_path(path: str | Path) -> str:
    """The same for a shell, where it holds what a shell would take apart.

    Example:
        >>> typed_path("runs/one"), typed_path("my runs/one")
        ('runs/one', "'my runs/one'")
    """
    return shlex.quote(shown_path(path))


def transformers_lines(path: Path, prompt: Prompt, max_new_tokens: int) -> str:
    """Python that prints the likeliest completion; a conversation goes through the chat template, a text as it is.

    Args:
        path: In Hugging Face format.
        prompt: One that the run trained on; a long one is replaced by words that ask for another.
        max_new_tokens: Of the completion.

    Example:
        >>> print(transformers_lines(Path("hf"), [{"role": "user", "content": "1+2="}], 8))
        from transformers import pipeline
        ask = pipeline("text-generation", "hf")
        prompt = [{'role': 'user', 'content': '1+2='}]
        reply = ask(prompt, max_new_tokens=8, do_sample=False)[0]["generated_text"]
        print(reply[-1]["content"])
    """
    is_chat = not isinstance(prompt, str)
    if len(repr(prompt)) > LONGEST:
        prompt = [{"role": "user", "content": "your prompt"}] if is_chat else "your prompt"
    whole = "" if is_chat else ", return_full_text=False"
    return "\n".join(
        [
            "from transformers import pipeline",
            f'ask = pipeline("text-generation", {json.dumps(shown_path(path), ensure_ascii=False)})',
            f"prompt = {prompt!r}",
            f'reply = ask(prompt, max_new_tokens={max_new_tokens}, do_sample=False{whole})[0]["generated_text"]',
            'print(reply[-1]["content"])' if is_chat else "print(reply)",
        ]
    )
