"""What of a policy is trained: everything, adapters on the frozen model, or adapters on a 4-bit copy of it."""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftConfig
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from grpo_lightning.finetuning.lora_targets import leave_out_unfit
from grpo_lightning.finetuning.special_tokens import NewToken
from grpo_lightning.numerics.dtypes import DTYPES

FINETUNING_TYPES = ("full", "lora", "qlora")
LORA_SETTINGS = ("lora_rank", "lora_alpha", "lora_dropout", "lora_target")
QUANTIZATION_SETTINGS = ("bnb_4bit_compute_dtype", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")


@dataclass(frozen=True)
class FinetuningSettings:
    """The ``model.*`` settings of the same names, checked against each other on construction.

    Args:
        finetuning_type: full trains every weight; lora trains low-rank adapters on the frozen model; qlora the same on
            a 4-bit copy of it (bitsandbytes).
        lora_rank: Rank of the adapters: the columns of B and rows of A in ``W + lora_alpha / lora_rank * B A``.
        lora_alpha: Scale of the adapters, see lora_rank.
        lora_dropout: Probability that an input of an adapter is dropped in training passes. Sampling, old and reference
            logprobs have none, so above 0 each step needs one more forward pass for the old logprobs.
        lora_target: Layers with adapters: all linear ones but the output head (all), names (q_proj,v_proj or a list),
            a regular expression over full names, or those that peft itself has for the architecture (peft).
        peft_config: Any peft configuration by class path, in place of lora_rank, lora_alpha and lora_dropout: DoRA,
            modules_to_save (a head or embeddings trained beside LoRA), ranks by layer, ...
        adapter_name_or_path: An adapter to continue from; the reference of beta is then the model with this adapter.
        load_in_4bit: With lora: the same as qlora.
        bnb_4bit_compute_dtype: bfloat16, float16 or float32: what 4-bit weights are multiplied in. With dtype auto, the
            rest of a 4-bit base is held in it too.
        bnb_4bit_quant_type: nf4 or fp4.
        bnb_4bit_use_double_quant: Quantise the scales of the 4-bit blocks as well: 0.4 bits less per weight.

    Raises:
        ValueError: If a setting that differs from its default has no effect beside another one, or a value is not possible.
    """

    finetuning_type: str = "full"
    lora_rank: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    lora_target: str | list[str] = "all"
    peft_config: PeftConfig | None = None
    adapter_name_or_path: str | None = None
    load_in_4bit: bool = False
    bnb_4bit_compute_dtype: str = "bfloat16"
    bnb_4bit_quant_type: str = "nf4"
    bnb_4bit_use_double_quant: bool = True
    targets: str | list[str] | None = field(init=False, repr=False, default="all-linear")
    """``lora_target`` in peft's form; None for the layers that peft chooses by architecture."""

    def __post_init__(self) -> None:
        if self.finetuning_type not in FINETUNING_TYPES:
            raise ValueError(
                f"model.finetuning_type={self.finetuning_type!r} is none of {', '.join(FINETUNING_TYPES)}."
            )
        if not self.has_adapters:
            names = (*LORA_SETTINGS, "peft_config", "adapter_name_or_path", "load_in_4bit", *QUANTIZATION_SETTINGS)
            self._refuse(names, "with model.finetuning_type=full, which trains every weight. Set it to lora or qlora")
        if not self.is_quantized:
            self._refuse(QUANTIZATION_SETTINGS, "on a base that is not in 4 bits. Set model.finetuning_type=qlora")
        if self.adapter_name_or_path is not None:
            reason = "beside model.adapter_name_or_path, whose own settings continue. Leave it out"
            self._refuse((*LORA_SETTINGS, "peft_config"), reason)
        if self.peft_config is not None:
            self._refuse(LORA_SETTINGS[:3], "beside model.peft_config. Set it there")
            self._check_peft_config(self.peft_config)
        self._check_values()
        object.__setattr__(self, "targets", _parse_targets(self.lora_target))
        if self.is_quantized and importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(
                "model.finetuning_type=qlora needs bitsandbytes, which is not installed. Install it with "
                "pip install 'grpo-lightning[qlora]', or set model.finetuning_type=lora."
            )

    def _refuse(self, names: Sequence[str], reason: str) -> None:
        defaults = {f.name: f.default for f in fields(self)}
        for name in names:
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"model.{name} has no effect {reason}.")

    def _check_values(self) -> None:
        if self.lora_rank < 1:
            raise ValueError(f"model.lora_rank={self.lora_rank} leaves nothing to train. Use 1 or more.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"model.lora_dropout={self.lora_dropout} is not a probability in [0, 1).")
        if self.bnb_4bit_compute_dtype not in DTYPES:
            known = ", ".join(DTYPES)
            raise ValueError(f"model.bnb_4bit_compute_dtype={self.bnb_4bit_compute_dtype!r} is none of {known}.")
        if self.bnb_4bit_quant_type not in ("nf4", "fp4"):
            raise ValueError(f"model.bnb_4bit_quant_type={self.bnb_4bit_quant_type!r} is neither nf4 nor fp4.")

    def _check_peft_config(self, config: PeftConfig) -> None:
        if config.is_prompt_learning or config.is_adaption_prompt:
            raise ValueError(
                f"model.peft_config: {type(config).__name__} puts tokens or prompts before the model's own, which cannot "
                "be packed or merged. Use LoRA or another method on the weights."
            )
        if getattr(config, "bias", "none") != "none":
            raise ValueError(
                f"model.peft_config has bias={config.bias!r}, which trains biases of the base itself: with the adapter "
                "off it would no longer be the base. Use bias: none."
            )
        if self.is_quantized and not isinstance(config, LoraConfig):
            raise ValueError(
                f"model.peft_config: {type(config).__name__} cannot be merged from 4-bit weights. Use peft.LoraConfig, or "
                "model.finetuning_type=lora."
            )

    @property
    def has_adapters(self) -> bool:
        """True for lora and qlora."""
        return self.finetuning_type != "full"

    @property
    def is_quantized(self) -> bool:
        """True where the base is held in 4 bits."""
        return self.finetuning_type == "qlora" or (self.has_adapters and self.load_in_4bit)

    @property
    def names_layers(self) -> bool:
        """Whether layers were chosen by name, so that a name may be that of none."""
        return self.has_adapters and (self.targets not in ("all-linear", None) or self.peft_config is not None)

    def quantized_loading(self, device: torch.device) -> dict[str, Any]:
        """What ``from_pretrained`` needs to load the base in 4 bits on a device; nothing otherwise."""
        if not self.is_quantized:
            return {}
        import bitsandbytes

        if device.type not in bitsandbytes.supported_torch_devices:
            supported = ", ".join(sorted(bitsandbytes.supported_torch_devices))
            raise ValueError(
                f"model.finetuning_type=qlora: bitsandbytes {bitsandbytes.__version__} does not run on {device.type} "
                f"({supported}). Set trainer.accelerator, or model.finetuning_type=lora."
            )
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=DTYPES[self.bnb_4bit_compute_dtype],
            bnb_4bit_quant_type=self.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=self.bnb_4bit_use_double_quant,
        )
        return {"quantization_config": config, "device_map": {"": device}}

    def make_peft_config(self, policy: PreTrainedModel, new_tokens: Sequence[NewToken] = ()) -> PeftConfig:
        """The configuration of a fresh adapter on ``policy``; of its embeddings, the rows of new tokens are trained."""
        config = copy.deepcopy(self.peft_config) if self.peft_config is not None else self._lora_config()
        config.task_type = "CAUSAL_LM"
        if getattr(config, "target_modules", "") is None:
            config.target_modules = self.targets or _targets_of_peft(policy.config.model_type)
        elif self.peft_config is not None and self.lora_target != "all":
            raise ValueError("model.lora_target has no effect beside target_modules in model.peft_config. Use one.")
        if getattr(config, "target_modules", None) == "all-linear":
            leave_out_unfit(policy, config)
        _check_tied_modules(policy, config)
        if new_tokens:
            _train_rows(policy, config, [token.id for token in new_tokens])
        return config

    def _lora_config(self) -> LoraConfig:
        return LoraConfig(r=self.lora_rank, lora_alpha=self.lora_alpha, lora_dropout=self.lora_dropout)


def _parse_targets(lora_target: str | list[str]) -> str | list[str] | None:
    """``all``, ``peft``, names as a list or with commas between them, or a regular expression over full module names."""
    if isinstance(lora_target, list):
        names = lora_target
    elif lora_target == "all":
        return "all-linear"
    elif lora_target == "peft":
        return None
    else:
        names = [name.strip() for name in lora_target.split(",")]
        if not all(re.fullmatch(r"[\w.]+", name) for name in names):
            try:
                re.compile(lora_target)
            except re.error as error:
                raise ValueError(f"model.lora_target={lora_target!r} is no regular expression: {error}.") from error
            return lora_target
    if not names or not all(names):
        raise ValueError(f"model.lora_target={lora_target!r} names no layer. Use all, or names such as q_proj,v_proj.")
    return names


def _targets_of_peft(model_type: str) -> list[str]:
    """The layers that peft adapts where nobody names any; for most architectures q_proj and v_proj.

    Raises:
        ValueError: If peft has none for the architecture.
    """
    names = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type)
    if names is None:
        raise ValueError(
            f"lora_target=peft: peft {peft.__version__} names no layers for {model_type}. Use all, or names."
        )
    return list(names)


def module_name(model: nn.Module, module: nn.Module | None) -> str | None:
    """The name of a submodule inside a model."""
    return next((name for name, candidate in model.named_modules() if candidate is module), None)


def _is_tied(policy: PreTrainedModel) -> bool:
    head = policy.get_output_embeddings()
    return head is not None and head.weight is policy.get_input_embeddings().weight


def _check_tied_modules(policy: PreTrainedModel, config: PeftConfig) -> None:
    """Training one of two tied matrices unties them: the model would no longer be the one that its config describes."""
    saved = set(getattr(config, "modules_to_save", None) or ())
    if not saved or not _is_tied(policy) or getattr(config, "ensure_weight_tying", False):
        return
    names = [module_name(policy, m) or "" for m in (policy.get_input_embeddings(), policy.get_output_embeddings())]
    trained = sorted(entry for entry in saved if any(name.endswith(entry) for name in names))
    if trained:
        raise ValueError(
            f"model.peft_config trains {', '.join(trained)}, which share one matrix with {' / '.join(names)}. Set "
            "ensure_weight_tying: true beside modules_to_save, so that they go on sharing it."
        )


def _train_rows(policy: PreTrainedModel, config: PeftConfig, ids: list[int]) -> None:
    if not isinstance(config, LoraConfig):
        raise ValueError(
            f"model.peft_config: {type(config).__name__} cannot train the rows of new special tokens. Use "
            "peft.LoraConfig, or model.init_special_tokens=false."
        )
    if config.trainable_token_indices:
        raise ValueError(
            "model.peft_config has trainable_token_indices, which model.new_special_tokens_config sets. Use one of them."
        )
    head = policy.get_output_embeddings()
    whole = set(config.modules_to_save or ())
    names = [module_name(policy, policy.get_input_embeddings())]
    if head is not None and not _is_tied(policy):
        if getattr(head, "bias", None) is not None:
            raise ValueError(
                f"{type(policy).__name__} has a bias on its output head, beside which rows of single tokens cannot be "
                "trained. Add the head to modules_to_save in model.peft_config."
            )
        names.append(module_name(policy, head))
    rows = {name: ids for name in names if name and not any(name.endswith(entry) for entry in whole)}
    config.trainable_token_indices = rows or None
