"""What the command line answers to a setting that it does not know: a line, and the setting that was perhaps meant."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any, NoReturn

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from grpo_lightning import callbacks, generation
from grpo_lightning.settings.given import WORDS
from grpo_lightning.settings.names import hint

UNKNOWN = (
    r"unrecognized arguments: --([\w.]+)",
    r"does not accept option '([\w.]+)'",
    r"^Option '([\w.]+)' is not accepted",
    r"Expected a dot import path string: ([\w.]+)",
)
"""jsonargparse's words for a name that is none: a setting, an argument of a class or of a section, the name of a class."""


# The default of Lightning's Timer is a member of a StrEnum, which yaml writes as little as any other kind of text of its own.
yaml.SafeDumper.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str.__str__(text)))


class Parser(LightningArgumentParser):
    """LightningArgumentParser with errors of one line, and without abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Adds the name that was perhaps meant and exits with 2, without the two hundred options above it."""
        parser = getattr(ex, "subcommand_parser", None) or self
        text = in_one_line(message) + meant_by(message, parser._option_string_actions)
        if os.environ.get("JSONARGPARSE_DEBUG") == "true" or not self.exit_on_error:  # then it is raised
            super().error(text, ex)
        self.exit(2, f"error: {text}\n")


FRAME = (
    *("Does not validate", "Subtypes:", "Errors:", "Given value", "Parser key", "Unable to load"),
    *("Expected a path", "Expected a <class 'NoneType'>", "Problem with given class_path"),
)
"""How lines of jsonargparse begin that tell of types and not of the mistake."""
TELLING = (
    "not accepted",
    "are required",
    "Did you mean",
    "Multiple subclasses",
    "has no attribute",
    "No module",
    "No action",
)


def in_one_line(message: str) -> str:
    r"""An error of jsonargparse about a union of types, without the types; others as they are.

    Example:
        >>> print(in_one_line(
        ...     'Parser key "model.generator":\n  Does not validate against any of the Union subtypes\n'
        ...     "  Subtypes: [A, B]\n  Errors:\n    - Option 'foo' is not accepted\n    - Expected a <class 'NoneType'>"
        ... ))
        model.generator: Option 'foo' is not accepted
        >>> print(in_one_line("Does not validate against any of the Union subtypes\nErrors:\n  - weight=-1 is none.\nGiven value: 1"))
        weight=-1 is none.
    """
    key = re.search(r'Parser key "([\w.]+)"', message)
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()]
    if len(lines) < 2 or (key is None and not message.startswith(FRAME[0])):
        return message
    reasons = [line for line in lines if not line.startswith(FRAME)] or lines[1:]
    reason = next((line for line in reasons if any(words in line for words in TELLING)), reasons[0])
    reason = re.sub(r"^Type .*? expects a function or a callable class: |\.? Got value: Namespace.*$", "", reason)
    reason = re.sub(r"Expected a <class '(\w+)'>", lambda found: f"it takes {WORDS.get(found[1], found[1])}", reason)
    reason = re.sub(
        r"Expected a dot import path string: ([\w.]+)$",
        r"\1 is no known class. Name one by its import path, such as package.module.Class",
        reason,
    )
    return reason if key is None else f"{key[1]}: {reason}"


def meant_by(message: str, options: Iterable[str]) -> str:
    """A hint to append to an error, or nothing.

    Args:
        message: In jsonargparse's words.
        options: ``--model.beta`` and all others of the command.
    """
    name = next((found[1] for pattern in UNKNOWN if (found := re.search(pattern, message))), None)
    if name is None or "Did you mean" in message:
        return ""
    classes = [*callbacks.__all__, *generation.__all__]
    text = hint(name, [*(option.removeprefix("--") for option in options), *classes])
    return f"{'' if message.endswith('.') else '.'} {text}" if text else ""
