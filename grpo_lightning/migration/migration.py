"""A config while it is translated: what it was, what it becomes, and what has no counterpart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml


@dataclass
class Migration:
    """A config on its way from there to here."""

    source: dict[str, Any]
    """What the user brought, with the defaults of where it came from."""
    given: frozenset[str]
    """Keys that the user wrote."""
    devices: int = 1
    total_steps: int | None = None
    """Optimizer steps of the run, where the user said so."""
    config: dict[str, Any] = field(default_factory=dict)
    """Ours: dotted key -> value."""
    mapped: dict[str, list[str]] = field(default_factory=dict)
    """Their key -> our keys that its value went into; empty where it needs nothing here."""
    refused: dict[str, str] = field(default_factory=dict)
    """Their key -> why it, or its value, has no counterpart."""

    def get(self, key: str, default: Any = None) -> Any:
        """Their value."""
        return self.source.get(key, default)

    def put(self, target: str, value: Any, *keys: str) -> None:
        """Sets ``target``, worked out from their ``keys``."""
        self.config[target] = value
        for key in keys:
            if key in self.source:
                self.mapped.setdefault(key, []).append(target)

    def needs_nothing(self, *keys: str) -> None:
        """Marks keys as done where the value is what happens here anyway."""
        for key in keys:
            if key in self.source:
                self.mapped.setdefault(key, [])

    def refuse(self, key: str, reason: str) -> None:
        """Their value has no counterpart."""
        if key in self.given:
            self.refused[key] = reason

    def lost(self) -> dict[str, str]:
        """What is refused and was in use: a key set to nothing (None, False, empty) costs nothing."""
        return {
            key: reason for key, reason in self.refused.items() if self.source[key] not in (None, False, "", [], {})
        }

    def off(self) -> list[str]:
        """Keys that are refused but were off."""
        return [key for key in self.refused if key not in self.lost()]

    def nested(self) -> dict[str, Any]:
        """Our config as YAML has it."""
        tree: dict[str, Any] = {}
        for target, value in self.config.items():
            *parents, name = target.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[name] = value
        order = ("seed_everything", "trainer", "model", "data", "checkpoint", "ckpt_path")
        return {key: tree[key] for key in order if key in tree}

    def to_yaml(self, origin: str) -> str:
        """The config as a file; what it leaves out stands at its head."""
        head = [f"# Written by `python -m grpo_lightning migrate` from {origin}."]
        if self.lost():
            head.append("# Without a counterpart here:")
            head += [f"#   {key}: {reason}" for key, reason in self.lost().items()]
        if self.off():
            head.append(f"# Without a counterpart, and off: {', '.join(self.off())}.")
        body = yaml.safe_dump(self.nested(), sort_keys=False, allow_unicode=True, width=100)
        return "\n".join(head) + "\n\n" + body
