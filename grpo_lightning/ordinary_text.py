"""What tools, environments and policies say, as ordinary tokens: no text opens or ends a turn of the conversation."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

CUT = "\ufdd0"
"""Where a text is encoded in two parts. Unicode promises that no text has this character, and it becomes no token."""


class OrdinaryText:
    """Encodes texts in which the template's special tokens count, and those that somebody wrote into a message do not.

    A tokenizer takes ``<|im_end|>`` for the end of a turn wherever it stands. What others say is therefore cut inside of
    each such text before the chat template is rendered, and the parts are encoded one by one. Texts without any are left
    as they are, and so are their tokens.

    Args:
        tokenizer: Its special tokens are refused, and what else it added that the template writes (``</tool_response>``).
        template: The chat template.
        marks: Further texts that must not be found in what others say.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str = "", marks: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        refused = {
            token.content: id
            for id, token in added.items()
            if token.content.strip() and (token.special or token.content in template)
        }
        longest_first = sorted([*refused, *marks], key=len, reverse=True)
        self._written = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        # The unknown token stands for any text that the vocabulary lacks.
        self._ids = frozenset(refused.values()) - {tokenizer.unk_token_id}
        self._names = {id: text for text, id in refused.items()}
        normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
        self._schemas: dict[int, tuple[Any, Any]] = {}
        self._rewrites = not tokenizer.is_fast or normalizer is not None or any(len(text) == 1 for text in refused)

    def quoted(self, value: Any, own: Collection[int] = ()) -> Any:
        """The value with every text in it cut where it would be taken for a special token.

        Args:
            value: Messages, or schemas of tools: mappings and lists of any depth.
            own: Tokens that the policy itself sampled; the texts of special ones stay.
        """
        return self._quoted(value, frozenset(own))

    def quoted_schemas(self, schemas: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Schemas of tools, quoted; all rollouts of a run have the same ones, and each is looked at once."""
        for schema in schemas:
            if id(schema) not in self._schemas:
                self._schemas[id(schema)] = (schema, self.quoted(schema))  # which keeps the schema, and so its id
        return [self._schemas[id(schema)][1] for schema in schemas]

    def ids(self, text: str) -> list[int]:
        """Tokens of a rendering, with cuts in it or without."""
        return [token for part in text.split(CUT) for token in self._encoded(part)]

    def encoded(self, text: str, add_special_tokens: bool) -> Mapping[str, list[int]]:
        """What the tokenizer gives for a text, with cuts in it or without.

        Args:
            text: Rendered or plain.
            add_special_tokens: Whether those that the tokenizer puts around every text are wanted.
        """
        if CUT not in text:
            found: Mapping[str, list[int]] = self.tokenizer(encodable(text), add_special_tokens=add_special_tokens)
            return found
        before, behind = self._around() if add_special_tokens else ([], [])
        ids = [*before, *self.ids(text), *behind]
        kinds = {"token_type_ids": [0] * len(ids)} if "token_type_ids" in self.tokenizer.model_input_names else {}
        return {"input_ids": ids, **kinds}

    def _around(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and behind every text."""
        alone, whole = self._encoded("a"), list(self.tokenizer("a")["input_ids"])
        start = next(n for n in range(len(whole)) if whole[n : n + len(alone)] == alone)
        return whole[:start], whole[start + len(alone) :]

    def _quoted(self, value: Any, own: frozenset[int]) -> Any:
        if isinstance(value, str):
            return self._quoted_text(value, own)
        if isinstance(value, dict):
            names = {name: self._quoted(name, own) for name in value}
            return {names[name]: self._quoted(each, own) for name, each in value.items()}
        return [self._quoted(each, own) for each in value] if isinstance(value, list | tuple) else value

    def _quoted_text(self, text: str, own: frozenset[int]) -> str:
        texts = {self._names[id] for id in own & self._names.keys()}
        parts = [each for part in text.split(CUT) for each in self._parts(part, texts)]
        if self._rewrites:  # what it does to a text may make a special token of it: ＜/s＞ of </s>
            refused = self._ids - own
            parts = [
                each
                for part in parts
                for each in (self._letters(part, refused) if self._forges(part, refused) else [part])
            ]
        return CUT.join(parts)

    def _parts(self, text: str, own: Collection[str]) -> Iterator[str]:
        start = place = 0
        while found := self._written.search(text, place):
            place = found.start() + 1
            if found[0] not in own:
                yield text[start:place]
                start = place
        yield text[start:]

    def _letters(self, text: str, refused: frozenset[int]) -> list[str]:
        return ["?" if self._forges(letter, refused) else letter for letter in text]

    def _forges(self, text: str, refused: frozenset[int]) -> bool:
        return not refused.isdisjoint(self._encoded(text))

    def _encoded(self, text: str) -> list[int]:
        if not text:
            return []
        ids: Any = self.tokenizer(encodable(text), add_special_tokens=False)["input_ids"]
        return list(ids)


def encodable(text: str) -> str:
    r"""The text with a question mark for each half of a surrogate pair, which a model may write in JSON.

    Example:
        >>> encodable("caf\u00e9 " + chr(0xD83D)) == "caf\u00e9 ?"
        True
    """
    return text.encode("utf-8", "replace").decode("utf-8")
