"""A language model with a head of one number in place of logits: what reward models are."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftConfig
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from grpo_lightning.policy.loading import exact_attention, refuse_drawn, without_weights
from grpo_lightning.policy.model_config import load_config
from grpo_lightning.policy.policy import Policy
from grpo_lightning.seeds import forked_seed


@contextmanager
def without_load_report() -> Iterator[None]:
    """Leaves out the table in which transformers lists a head that is drawn and one that is left out, as they are meant to be."""
    log = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    log.addFilter(is_other)
    try:
        yield
    finally:
        log.removeFilter(is_other)


class RewardPolicy(Policy):
    """A sequence classifier with one output, from a language model or from a reward model to continue.

    A head that the directory does not have is drawn from the run's seed, the same on every rank. Under LoRA it is trained as
    a whole beside the adapters.
    """

    def _check_class(self) -> None:
        """Any class with a head for sequences will do."""

    def _skeleton(self) -> PreTrainedModel:
        config = load_config(self.name_or_path)
        config.num_labels = 1
        return without_weights(AutoModelForSequenceClassification, config, self.settings.attn_implementation)

    def _read_weights(self, dtype: torch.dtype, loading: dict[str, Any]) -> PreTrainedModel:
        name, attention = self.name_or_path, self.settings.attn_implementation
        with forked_seed(self.seed, "reward head"), without_load_report():
            try:
                model, found = AutoModelForSequenceClassification.from_pretrained(
                    name,
                    num_labels=1,
                    dtype=dtype,
                    attn_implementation=exact_attention(load_config(name), attention),
                    use_safetensors=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                    **loading,
                )
            except (OSError, ValueError, RuntimeError) as error:
                raise ValueError(
                    f"model.model_name_or_path={name!r} cannot be loaded as a sequence classifier with one output. Use a "
                    f"language model with one in transformers, or a reward model. ({str(error).splitlines()[0]})"
                ) from error
        if not hasattr(model, "score"):
            raise ValueError(
                f"{type(model).__name__} has no head named score on the last token, so that its texts cannot be scored "
                "packed. Use a decoder such as Qwen or Llama."
            )
        refuse_drawn(name, set(found["missing_keys"]) - {"score.weight"})
        model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id  # finds the last token of a text
        return model

    def _peft_config(self, model: PreTrainedModel) -> PeftConfig:
        config = super()._peft_config(model)
        config.task_type = "SEQ_CLS"  # peft then trains the head too
        return config
