"""Migration: one config on its way from there to here. Everything that composes settings writes into it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

SECTIONS = ("seed_everything", "trainer", "model", "data", "checkpoint", "ckpt_path")


@dataclass
class Migration:
    """Their settings, ours as far as they are worked out, and what became of each of theirs."""

    source: dict[str, Any]
    """Theirs under the names of TRL 1.16, with the defaults of where they came from."""
    given: dict[str, Any]
    """What the user wrote, as it was written."""
    written: dict[str, str] = field(default_factory=dict)
    """Name in TRL 1.16 -> the user's name, where it is another one."""
    devices: int = 1
    total_steps: int | None = None
    """Optimizer steps of the run, where the user said so."""
    counts_prompts: bool = False
    """per_device_train_batch_size counts prompts, as in TRL 0.14, and not completions."""
    is_grpo_arguments: bool = False
    """The config is of GRPOArguments, whose names of rewards and datasets are ours."""
    config: dict[str, Any] = field(default_factory=dict)
    """Ours: dotted key -> value."""
    mapped: dict[str, list[str]] = field(default_factory=dict)
    """Their key -> our keys that its value went into; empty where it needs nothing here."""
    refused: dict[str, str] = field(default_factory=dict)
    """Their key -> why it, or its value, has no counterpart."""
    notes: list[str] = field(default_factory=list)
    """What belongs to no key that was given: a default that another version has, a step of another size."""

    def get(self, key: str, default: Any = None) -> Any:
        """Their value."""
        return self.source.get(key, default)

    def has(self, key: str) -> bool:
        """Whether the user wrote it, under this name or an older one."""
        return self.written.get(key, key) in self.given

    def put(self, target: str, value: Any, *keys: str) -> None:
        """Sets ``target``, worked out from their ``keys``."""
        self.config[target] = value
        for key in keys:
            if key in self.source:
                self.mapped.setdefault(self.written.get(key, key), []).append(target)

    def needs_nothing(self, *keys: str) -> None:
        """Marks keys as done where the value is what happens here anyway."""
        for key in keys:
            if key in self.source:
                self.mapped.setdefault(self.written.get(key, key), [])

    def refuse(self, key: str, reason: str) -> None:
        """Their value has no counterpart, or only a part of one; several reasons for one key add up."""
        name = self.written.get(key, key)
        if name in self.given:
            known = self.refused.get(name)
            self.refused[name] = reason if known in (None, reason) else f"{known} {reason}"

    def say(self, key: str, reason: str) -> None:
        """As ``refuse`` where the user wrote the key; where its value is a default, a note."""
        if self.has(key):
            self.refuse(key, reason)
        else:
            self.notes.append(f"{key} (by default): {reason}")

    def lost(self) -> dict[str, str]:
        """What is refused and was in use: a key set to nothing (None, False, empty) costs nothing."""
        return {key: reason for key, reason in self.refused.items() if self.given[key] not in (None, False, "", [], {})}

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
        return {key: tree[key] for key in SECTIONS if key in tree}

    def to_yaml(self, origin: str) -> str:
        """The config as a file; what it leaves out stands at its head."""
        head = [f"# Written by `python -m grpo_lightning migrate` from {origin}."]
        head += [_comment("# ", note) for note in self.notes]
        if self.lost():
            head.append("# Without a counterpart here, or with another meaning:")
            head += [_comment("#   ", f"{key}: {reason}") for key, reason in self.lost().items()]
        if self.off():
            head.append(f"# Without a counterpart, and off: {', '.join(self.off())}.")
        body = yaml.safe_dump(self.nested(), sort_keys=False, allow_unicode=True, width=100)
        return "\n".join(head) + "\n\n" + body


def _comment(start: str, text: str) -> str:
    # A value of the user's may have lines, which would end the comment.
    return start + " ".join(text.split("\n"))
