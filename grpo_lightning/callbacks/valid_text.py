"""Text as files and terminals can hold it."""

from __future__ import annotations


def valid_text(text: str) -> str:
    r"""The text with each half of a surrogate pair that stands alone written out, since UTF-8 has no bytes for it.

    Models, rewards and data sets produce such halves: cut emoji, JSON with ``\ud83d``. Of JSON it makes JSON again: the
    escape is the one that JSON has for it.

    Example:
        >>> valid_text("caf\u00e9 " + chr(0xD83D)) == "caf\u00e9 \\ud83d"
        True
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
