"""The decoder and the output head of a Hugging Face causal language model, LoRA or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from grpo_lightning.numerics.logprobs import selected_logprobs, selected_logprobs_of_module


@dataclass(frozen=True)
class OutputHead:
    """What turns hidden states into logits."""

    module: nn.Module
    """Maps ``(n, H)`` to raw logits ``(n, V)``."""
    vocab_size: int
    logit_scale: float = 1.0
    softcap: float | None = None

    @property
    def is_one_matrix(self) -> bool:
        """False for a head with adapters, quantisation or hooks, which has to be called as a module."""
        return type(self.module) is nn.Linear and not self.module._forward_hooks and not self.module._forward_pre_hooks

    def logprobs(
        self, hidden: Tensor, targets: Tensor, keep_logits: bool = False, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Logprobs ``(T,)`` and entropies ``(T,)`` or None; options are those of ``selected_logprobs``."""
        options |= {"logit_scale": self.logit_scale, "softcap": self.softcap}
        if self.is_one_matrix:
            matrix = cast(nn.Linear, self.module)
            options |= {"bias": matrix.bias, "keep_logits": keep_logits}
            return selected_logprobs(hidden, matrix.weight, targets, **options)
        return selected_logprobs_of_module(hidden, self.module, targets, vocab_size=self.vocab_size, **options)


def base_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT wrapper, adapters still injected; any other model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return cast(PreTrainedModel, unwrap() if unwrap is not None else model)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of the decoder, by the class names that transformers keeps whole; empty where it names none."""
    base = base_model(model)
    return [module for module in base.modules() if type(module).__name__ in (base._no_split_modules or ())]


def decoder_of(model: nn.Module) -> nn.Module | None:
    """What makes hidden states of tokens, in a language model or a classifier; None where it is not found."""
    base = base_model(model)
    decoder = base.get_decoder()
    if decoder is base:  # transformers gives the model itself where it does not find a decoder by its known names
        decoder = getattr(base, "model", None)
    return cast(nn.Module | None, decoder)


def output_head(model: nn.Module) -> tuple[nn.Module, OutputHead]:
    """The decoder, which returns hidden states, and the head that belongs behind it.

    The scale and the soft cap of the logits are read from the config under the names that transformers models use:
    ``final_logit_softcapping`` (Gemma), ``logit_scale`` (Cohere), ``logits_scaling`` (Granite).

    Raises:
        ValueError: If the model has no output embeddings or no decoder behind them.
    """
    base = base_model(model)
    head, decoder = base.get_output_embeddings(), decoder_of(base)
    if head is None or decoder is None:
        raise ValueError(
            f"{type(base).__name__} has no decoder with an output head, so it gives no next-token probabilities. "
            "Set model.model_name_or_path to a causal language model."
        )
    config = base.config.get_text_config()
    scale = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    logit_scale = scale if scale is not None else 1.0 / divisor if divisor is not None else 1.0
    return decoder, OutputHead(head, config.vocab_size, logit_scale, getattr(config, "final_logit_softcapping", None))
