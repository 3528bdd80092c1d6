"""Is the completion in the language that was asked for?"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from grpo_lightning.rewards.completion_reward import CompletionReward
from grpo_lightning.rewards.registry import register_reward

MAX_CHARS = 20_000
"""Read of a completion; more does not change the verdict."""


@register_reward("language")
@dataclass
class LanguageReward(CompletionReward):
    """Probability in [0, 1] that the completion is in the wanted language; None where it is too short to tell.

    Identified with py3langid (97 languages, offline, Naive Bayes over byte n-grams).

    Args:
        name: What metrics and errors call this reward.
        weight: Factor in the total reward.
        language: ISO 639-1 code of the wanted language: en, de, zh, ...
        language_key: Dataset column with the code of each row, instead of ``language``.
        among: Codes to choose from. Fewer candidates make short texts easier; all that the identifier knows by default.
        min_chars: Letters below which there is no verdict.
    """

    name: str = "language"
    language: str | None = None
    language_key: str | None = None
    among: list[str] = field(default_factory=list)
    min_chars: int = 20

    def __post_init__(self) -> None:
        if (self.language is None) == (self.language_key is None):
            raise ValueError(f"{self.name}: set language (such as en), or language_key to a column with it; not both.")
        known = _identifier().labels
        for code in [*self.among, *([self.language] if self.language else [])]:
            if code not in known:
                raise ValueError(f"{self.name}: language {code!r} is unknown. Known: {', '.join(sorted(known))}.")
        if self.among and self.language and self.language not in self.among:
            raise ValueError(f"{self.name}: language={self.language} is not in among={self.among}. Add it there.")

    def score(self, completion: str, **row: Any) -> float | None:
        """The probability; None for a short text, or a row without a language.

        Raises:
            RewardContractError: If the column is missing.
        """
        wanted, text = self.of_row("language", row), completion[:MAX_CHARS]
        if wanted is None or sum(character.isalpha() for character in text) < self.min_chars:
            return None
        return probabilities(text, tuple(sorted({*self.among, wanted})) if self.among else ()).get(wanted, 0.0)


def probabilities(text: str, among: tuple[str, ...] = ()) -> dict[str, float]:
    """Language code -> probability, which add up to 1 over ``among``, by default over all languages."""
    return {code: float(probability) for code, probability in _identifier(among).rank(text)}


@cache
def _identifier(among: tuple[str, ...] = ()) -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]  # ships no types

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if among:
        identifier.set_languages(list(among))
    return identifier
