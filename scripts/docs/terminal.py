"""Writes docs/images/terminal_end.svg: what a terminal of 100 columns shows at the end of a quickstart.

python scripts/docs/terminal.py           # minutes: it runs the quickstart, into runs/quickstart
"""

from __future__ import annotations

import os
import sys
from html import escape
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the terminal is that of the tests

from pseudo_terminal import Line, lines_in_terminal, text_of  # noqa: E402

COLUMNS = 100
COMMAND = [sys.executable, "-m", "grpo_lightning", "fit", "--config", "configs/quickstart.yaml"]
HEIGHT, WIDTH = 18, 8.43
"""Pixels of a line and of a character."""
COLOURS = {
    "default": "#d6deeb", "black": "#637777", "red": "#ef5350", "green": "#5bd175", "brown": "#e0c15a", "blue": "#82aaff",
    "magenta": "#c792ea", "cyan": "#5fd7e0", "white": "#ffffff",
}  # fmt: skip


def picture(lines: list[Line]) -> str:
    """The lines as SVG, every run of characters of one look at its column."""
    texts = []
    for row, line in enumerate(lines):
        column = 0
        for (colour, is_bold), characters in groupby(line, lambda character: (character.fg, character.bold)):
            text = "".join(character.data for character in characters)
            if text.strip():
                look = f' fill="{hex_of(colour)}"' + (' font-weight="bold"' if is_bold else "")
                place = f'x="{12 + column * WIDTH:.1f}" y="{22 + row * HEIGHT}" textLength="{len(text) * WIDTH:.1f}"'
                texts.append(f"<text {place}{look}>{escape(text)}</text>")
            column += len(text)
    width, height = round(24 + COLUMNS * WIDTH), 16 + len(lines) * HEIGHT
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" xml:space="preserve">',
            "<style>text { font: 14px monospace; white-space: pre; }</style>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#0f1720"/>',
            *texts,
            "</svg>\n",
        ]
    )


def hex_of(colour: str) -> str:
    """Of a terminal's name, or of six digits as they are."""
    return COLOURS.get(colour.removeprefix("bright"), f"#{colour}")


def result_of(lines: list[Line]) -> list[Line]:
    """From the comparison of before and after to the end."""
    texts = [text_of(line) for line in lines]
    start = next(i for i, text in enumerate(texts) if text.startswith("The same held-out prompts"))
    return lines[start : max(i for i, text in enumerate(texts) if text) + 1]


def main() -> None:
    """Runs, and writes the picture."""
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": "40"}
    path = ROOT / "docs" / "images" / "terminal_end.svg"
    path.write_text(picture(result_of(lines_in_terminal(COMMAND, ROOT, environment, COLUMNS, 40))), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
