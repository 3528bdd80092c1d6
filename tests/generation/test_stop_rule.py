"""Where a completion ends."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from toy_models import build_model, build_tokenizer
from transformers import GenerationConfig, PreTrainedTokenizerFast

from grpo_lightning.generation.stopping import StopRule
from grpo_lightning.policy.end_of_sequence import end_of_sequence_ids

TOKENIZER = build_tokenizer()


def end(rule: StopRule, ids: list[int]) -> int | None:
    """How many tokens the completion has when it ends."""
    return next((n for n in range(1, len(ids) + 1) if rule.ends(ids[:n])), None)


def ids_of(text: str) -> list[int]:
    """One token a byte, whatever merges the tokenizer has."""
    return [TOKENIZER.convert_tokens_to_ids(piece) for byte in text for piece in TOKENIZER.backend_tokenizer.pre_tokenizer.pre_tokenize_str(byte)[0][0]]  # fmt: skip


@pytest.mark.parametrize(("configured", "expected"), [(None, {2}), (7, {2, 7}), ([7, 8], {2, 7, 8}), ((2,), {2})])
def test_end_of_sequence_ids_are_those_of_the_generation_config_and_of_the_tokenizer(configured, expected):
    model = build_model(tokenizer=TOKENIZER)
    model.generation_config = GenerationConfig()
    model.generation_config.eos_token_id = configured
    assert TOKENIZER.eos_token_id == 2
    assert end_of_sequence_ids(model, TOKENIZER) == frozenset(expected)


@pytest.mark.parametrize(
    ("stop", "text", "length"),
    [
        ("</answer>", "a</answer>b", 10),  # one byte a token
        ("END", "ENEND", 5),
        ("42", "4 2 4", None),
        ("\n\n", "a\n b\n\nc", 6),
        (" ", "ab c", 3),
        ("é", "caf\u00e9!", 5),  # two bytes: not before the second
        ("🙂.", "x🙂.", 6),
    ],
)
def test_a_stop_string_ends_with_the_token_that_completes_it(stop, text, length):
    rule = StopRule([2], ["never", stop], TOKENIZER)
    assert end(rule, ids_of(text)) == length


def test_stop_strings_that_span_or_lie_inside_merged_tokens_are_found():
    ids = TOKENIZER("so the <answer>5</answer> is")["input_ids"]
    pieces = [TOKENIZER.decode(ids[: n + 1]) for n in range(len(ids))]
    for stop in ("</answer>", "r>5", "the", "swer>5</an"):
        expected = next(n + 1 for n, text in enumerate(pieces) if stop in text)
        assert end(StopRule([], [stop], TOKENIZER), ids) == expected


def test_a_special_token_may_be_a_stop_string():
    start = TOKENIZER.convert_tokens_to_ids("<|im_start|>")
    assert end(StopRule([], ["<|im_start|>"], TOKENIZER), [*ids_of("ab"), start, *ids_of("c")]) == 3


def test_a_stop_string_survives_a_tokenizer_that_strips_the_first_space():
    words = {"<unk>": 0, "\u2581": 1, "\u2581the": 2, "\u2581end": 3, "x": 4}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert tokenizer.decode([2, 3]) == "the end" and tokenizer.decode([3]) == "end"
    assert end(StopRule([], [" end"], tokenizer), [2] * 20 + [3, 4]) == 21
    assert end(StopRule([], ["the "], tokenizer), [2] * 3 + [1, 4]) == 2
    assert end(StopRule([], ["x "], tokenizer), [4, 4, 1, 4]) == 3


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match=r"model\.stop"):
        StopRule([], ["a", ""], TOKENIZER)
