"""Code blocks of the documentation, with what a test is told about them.

A comment before a block says how it is tested: ``<!-- test: parse -->`` only parses a command (it needs a GPU or a
download), ``<!-- test: add --trainer.max_steps 1 -->`` runs it with further options, ``<!-- test: script -->`` checks the
shell syntax of a launch script and parses our commands in it.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))

_BLOCK = re.compile(
    r"(?:<!-- test: (?P<how>.*?) -->\s*\n)?^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    language: str
    code: str
    title: str | None
    how: str

    @property
    def extra(self) -> list[str]:
        """Options that the test adds."""
        return shlex.split(self.how.removeprefix("add ")) if self.how.startswith("add ") else []

    def commands(self) -> list[str]:
        """Lines of a shell block, comments and continuations resolved."""
        joined = self.code.replace("\\\n", " ")
        return [line for line in (re.sub(r"\s+#.*$", "", line).strip() for line in joined.splitlines()) if line]

    def our_commands(self) -> list[list[str]]:
        """Arguments of each ``grpo_lightning`` command in a launch script, shell variables replaced by their names."""
        plain = re.sub(r"\$\{?(\w+)(\[\w+\])?\}?", r"\1", "\n".join(self.commands()))
        return [
            shlex.split(line.split("grpo_lightning ", 1)[1].rstrip("& "))
            for line in plain.splitlines()
            if "-m grpo" in line
        ]


def blocks(page: Path) -> list[Block]:
    """All fenced blocks with a language, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page.name, found["language"], found["code"], found["title"], found["how"] or "")
        for found in _BLOCK.finditer(text)
    ]
