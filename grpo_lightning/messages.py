"""The forms of a prompt. Apart from ``types.py``, whose tensors would make every reward's process import torch."""

from __future__ import annotations

from typing import Any

Message = dict[str, Any]
"""``{"role": ..., "content": ...}``, as in the OpenAI chat format and in transformers' chat templates."""

Prompt = str | list[Message]
"""Plain text, or a conversation."""
