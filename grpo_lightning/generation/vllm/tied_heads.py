"""Families whose output head vLLM always ties to the embedding, also where a checkpoint has a head of its own."""

from __future__ import annotations

from transformers import PretrainedConfig

ALWAYS_TIED = ("cohere", "cohere2", "cohere2_moe", "gemma2", "gemma3n_text", "lfm2", "lfm2_moe", "zamba2")
"""By ``model_type`` of the language model, as vLLM 0.32 has them; 0.25 too, or it ends there with an assertion."""


def refuse_own_head(generator: str, config: PretrainedConfig, has_tower: bool = False) -> None:
    """Makes sure that vLLM computes logits with the head that is trained, before weights load.

    It would load the head and the embedding into one tensor, whichever came last, and sample from another model.

    Args:
        generator: Its name in the config.
        config: Of the model.
        has_tower: Whether it is trained whole, with its vision tower: its own setting ties the head then, else its text's.

    Raises:
        ValueError: If it does not.
    """
    text = config.get_text_config()
    trained = config if has_tower else text
    if text.model_type in ALWAYS_TIED and not trained.tie_word_embeddings:
        raise ValueError(
            f"model.generator={generator}: the model has an output head of its own (tie_word_embeddings: false in its "
            f"config.json), and vLLM computes logits of {text.model_type} with the embedding. Use a checkpoint whose head is tied (published "
            "ones are), or set model.generator=TransformersGenerator."
        )
