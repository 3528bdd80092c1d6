"""Tests of the rewards that look at text alone: repetition, language, json_schema, regex."""

from __future__ import annotations

import time
from typing import Any

import pytest

from grpo_lightning.rewards import RewardContractError, get_reward_function
from grpo_lightning.rewards.kinds.json_schema import last_fence, strict_json
from grpo_lightning.rewards.kinds.language import probabilities

GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund, und niemand weiß warum."
ENGLISH = "The quick brown fox jumps over the lazy dog, and nobody really knows why."


def values(name: str, completions: list[Any], /, ids: Any = None, log_error: Any = None, **settings: Any) -> list[Any]:
    columns = settings.pop("columns", {})
    reward = get_reward_function(name, **settings)
    extra = {"log_error": log_error} if log_error else {}
    return list(reward(["p"] * len(completions), completions, completions_ids=ids, **extra, **columns))


def test_repetition_is_the_share_of_ngrams_seen_before() -> None:
    # "a b c a b c a": abc bca cab abc bca: 3 distinct of 5.
    assert values("repetition", ["a b c a b c a", "A a a a", "a b", ""]) == pytest.approx([-0.4, -0.5, 0.0, 0.0])
    assert values("repetition", ["x x x x x"], ngram_size=1, max_penalty=-2.0) == pytest.approx([-1.6])


def test_repetition_counts_tokens_where_asked_and_refuses_to_guess_them() -> None:
    assert values("repetition", ["无"], ids=[[7, 8, 7, 8, 7]], unit="tokens", ngram_size=2) == pytest.approx([-0.5])
    with pytest.raises(RewardContractError, match="without completions_ids"):
        values("repetition", ["a"], unit="tokens")


def test_repetition_of_a_megabyte_takes_no_time() -> None:
    started = time.monotonic()
    (value,) = values("repetition", ["{" * 10 + " a" * 500_000])
    assert value == pytest.approx(-1.0, abs=1e-4)
    assert time.monotonic() - started < 60


def test_language_is_a_probability_over_the_candidates() -> None:
    german, english = values("language", [GERMAN, ENGLISH], language="de", among=["de", "en", "fr"])
    assert german > 0.9 and english < 0.1
    assert sum(probabilities(GERMAN, ("de", "en", "fr")).values()) == pytest.approx(1.0, abs=1e-5)


def test_language_has_no_verdict_on_texts_without_letters_or_rows_without_language() -> None:
    assert values("language", ["1 + 1 = 2 " * 50, "{}" * 100_000, "kurz"], language="de") == [None] * 3
    column = {"lang": ["de", None, "en"]}
    found = values("language", [GERMAN, ENGLISH, ENGLISH], language_key="lang", among=["de", "en"], columns=column)
    assert found[0] > 0.9 and found[1] is None and found[2] > 0.9


def test_language_settings_that_cannot_work_are_refused() -> None:
    for settings, message in (
        ({}, "set language"),
        ({"language": "tlh"}, "language 'tlh' is unknown. Known: .*de"),
        ({"language": "de", "among": ["en", "fr"]}, "is not in among"),
    ):
        with pytest.raises(ValueError, match=message):
            get_reward_function("language", **settings)
    with pytest.raises(RewardContractError, match="needs the column language_key='lang'"):
        values("language", [GERMAN], language_key="lang")


SCHEMA = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0}},
    "required": ["x"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"x": 3}', 1.0),
        (' {"x": 0}\n', 1.0),
        ('{"x": -1}', 0.3),
        ('{"x": 1.5}', 0.3),
        ('{"x": 1, "y": 2}', 0.3),
        ("[]", 0.3),
        ('{"x": 3} and more', 0.0),
        ('{"x": NaN}', 0.0),
        ('{"x": 1, "x": 2}', 0.0),
        ('Here: {"x": 3}', 0.0),
        ("{'x': 3}", 0.0),
        ("", 0.0),
        ("[" * 50_000, 0.0),
        ("{" * 1_000_000, 0.0),
        ('{"x": ' + "9" * 20_000 + "}", 0.0),
    ],
    ids=lambda value: str(value)[:20],
)
def test_json_is_read_strictly_and_checked(text: str, value: float) -> None:
    assert values("json_schema", [text], schema=SCHEMA, parsed_score=0.3) == [value]


def test_json_is_found_in_a_fence_or_an_answer_and_each_row_may_have_its_schema() -> None:
    fenced = 'So:\n```json\n{"x": 1}\n```\nDone.'
    assert values("json_schema", [fenced, '{"x": 1}'], schema=SCHEMA, source="fence") == [1.0, 1.0]
    assert values("json_schema", ['<answer>{"x": 1}</answer>', '{"x": 1}'], schema=SCHEMA, source="answer") == [
        1.0,
        0.0,
    ]
    columns = {"schema": ['{"type": "array"}', {"type": "object"}, None]}
    assert values("json_schema", ["[]", "[]", "[]"], schema_key="schema", columns=columns) == [1.0, 0.0, None]


def test_a_schema_that_is_none_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="is no JSON schema"):
        get_reward_function("json_schema", schema={"type": "integre"})
    with pytest.raises(ValueError, match="exactly one of schema, schema_file and schema_key"):
        get_reward_function("json_schema")
    with pytest.raises(RewardContractError, match="is no JSON schema"):
        values("json_schema", ["1"], schema_key="s", columns={"s": ["{"]})
    path = tmp_path / "schema.json"
    path.write_text('{"type": "integer"}')
    assert values("json_schema", ["1", "1.5"], schema_file=str(path)) == [1.0, 0.0]


def test_the_last_complete_fence_counts_with_or_without_a_language() -> None:
    assert last_fence("```\nfirst\n```\n```python\nsecond\n```") == "second\n"
    assert last_fence("a ```inline``` b") == "inline"
    assert last_fence("```python\nnever closed") == "```python\nnever closed"
    assert last_fence("```a\none\n```\n```b\nopen") == "one\n"
    with pytest.raises(ValueError, match="occurs twice"):
        strict_json('{"a": {"b": 1, "b": 1}}')


def test_regex_searches_matches_and_forbids() -> None:
    assert values("regex", ["a1b", "ab"], pattern=r"\d") == [1.0, 0.0]
    assert values("regex", ["a1b", "1"], pattern=r"\d", match="full") == [0.0, 1.0]
    assert values("regex", ["As an AI", "fine"], pattern="(?i)as an ai", forbid=True) == [0.0, 1.0]
    columns = {"wanted": ["x.y", r"\bz\b", None]}
    assert values("regex", ["x\ny", "zz", "z"], pattern_key="wanted", columns=columns) == [1.0, 0.0, None]


def test_a_catastrophic_pattern_is_given_up_and_reported() -> None:
    errors: dict[int, str] = {}
    texts = ["x" + "a" * 40 + "c", "xab"]
    found = values("regex", texts, pattern=r"x(a|a|aa)+b$", time_limit=0.2, log_error=errors.__setitem__)
    assert found == [None, 1.0]
    assert "took more than time_limit=0.2 s" in errors[0]


def test_regex_settings_that_cannot_work_are_refused() -> None:
    for settings, message in (
        ({}, "set pattern"),
        ({"pattern": "("}, "no regular expression"),
        ({"pattern": "a", "time_limit": 0}, "time_limit=0"),
    ):
        with pytest.raises(ValueError, match=message):
            get_reward_function("regex", **settings)
