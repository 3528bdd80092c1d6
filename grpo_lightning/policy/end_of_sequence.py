"""What ends a completion of a model, of itself."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def end_of_sequence_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token id that ends a completion: all of the generation config's and the tokenizer's.

    Chat models have several (Llama 3: end of text, of turn, of message); one that is left out is generated past.
    """
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(configured if isinstance(configured, list | tuple) else [configured])}
    return frozenset(int(token) for token in ids if token is not None)
