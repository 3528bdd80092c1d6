"""When a completion ends: an end-of-sequence token, or text that contains a stop string."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase


class StopRule:
    """Decides after each token whether the completion ends with it.

    Args:
        eos_ids: Token ids that end a completion.
        stop: Strings that end it once its text, special tokens included, contains one of them.
        tokenizer: Turns ids into text.
    """

    def __init__(self, eos_ids: Iterable[int], stop: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        if "" in stop:
            raise ValueError('model.stop contains "", which every text contains. Leave it out.')
        self.eos_ids = frozenset(eos_ids)
        self.stop = tuple(stop)
        self._tokenizer = tokenizer
        # A token adds at least one byte of text. The 4 more give the tail's first character, which may be cut in the
        # middle or lose its leading space, room to go wrong outside the stop string.
        self._tail = max((len(text.encode()) for text in self.stop), default=0) + 4
        self._last_characters = frozenset(text[-1] for text in self.stop)
        self._can_complete: dict[int, bool] = {}

    def ends(self, completion: Sequence[int]) -> bool:
        """Whether the last token of ``completion`` ends it, given that no earlier one did."""
        if completion[-1] in self.eos_ids:
            return True
        if not self.stop or not self._may_complete_a_stop_string(completion[-1]):
            return False
        text = self._decode(completion[-self._tail :])
        return any(stop in text for stop in self.stop)

    def _may_complete_a_stop_string(self, token: int) -> bool:
        """False only if the token, decoded alone, lacks the last character of every stop string.

        Most tokens do, and decoding the tail of every completion at every token would cost more than a toy model.
        """
        known = self._can_complete.get(token)
        if known is None:
            text = self._decode([token])
            # U+FFFD is a piece of a character, and a lone token may lose its spaces: neither rules anything out.
            uncertain = "\ufffd" in text or any(last.isspace() for last in self._last_characters)
            known = uncertain or any(last in text for last in self._last_characters)
            self._can_complete[token] = known
        return known

    def _decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)  # one sequence in, one string out
        return text
