"""Whether a model's training passes are noisy."""

from __future__ import annotations

from torch import nn

from grpo_lightning.numerics.output_head import base_model

FUNCTIONAL_DROPOUT = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
"""Names under which configurations keep a dropout that no submodule stands for."""


def has_dropout(model: nn.Module) -> bool:
    """True if a forward pass in training mode differs from one in evaluation mode: LoRA's dropout, or the model's."""
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        return True
    config = base_model(model).config
    config = config.get_text_config()
    return any((getattr(config, name, None) or 0) > 0 for name in FUNCTIONAL_DROPOUT)
