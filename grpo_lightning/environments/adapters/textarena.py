"""TextArena's games for one player."""

from __future__ import annotations

from typing import Any

import textarena


class TextArena:
    """A game that ``textarena.make`` makes. The row's column ``seed`` chooses it.

    In a process of its own: its reset seeds Python's global ``random``, and the games draw from it.

    Args:
        id: Registered name, such as ``GuessTheNumber-v0``. What is new since the last turn is shown, not the whole game
            again, which the conversation holds.
        settings: Keyword arguments of the game.
    """

    isolation = "process"

    def __init__(self, id: str, settings: dict[str, Any] | None = None) -> None:
        raw = id if id.endswith("-raw") else f"{id}-raw"
        self.game: Any = textarena.make(raw, **(settings or {}))

    def reset(self, seed: int = 0) -> str:
        """The rules."""
        self.game.reset(num_players=1, seed=seed)
        return self._news()

    def step(self, text: str) -> tuple[str, float, bool]:
        """What the game says; its reward comes with its end."""
        is_done, _ = self.game.step(action=text)
        if not is_done:
            return self._news(), 0.0, False
        rewards, information = self.game.close()
        return str(information[0].get("reason") or ""), float(rewards[0]), True

    def _news(self) -> str:
        player, said = self.game.get_observation()
        return "\n".join(message for speaker, message, _ in said if speaker != player)
