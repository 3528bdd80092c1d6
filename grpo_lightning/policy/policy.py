"""Policy: which weights are trained, and what a checkpoint holds of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from grpo_lightning.distributed.accelerators import limit_host_threads
from grpo_lightning.distributed.checkpoint_check import CheckpointNotReadableError, check_complete
from grpo_lightning.distributed.sharding import is_first_rank, is_sharded, shard
from grpo_lightning.finetuning.adapter_files import adapter_record, check_record, load_adapter
from grpo_lightning.finetuning.lora_passes import add_in_one_product
from grpo_lightning.finetuning.lora_targets import exclude, refuse_unfit, refuse_unmatched, unfit_layers, why_no_adapter
from grpo_lightning.finetuning.quantization import keep_trainable_layout
from grpo_lightning.finetuning.special_tokens import add_special_tokens, special_token_descriptions, start_embeddings
from grpo_lightning.numerics.dtypes import DTYPES
from grpo_lightning.numerics.rope_scaling import fix_rope_scaling
from grpo_lightning.numerics.routers import has_experts
from grpo_lightning.policy.activation_checkpointing import enable_checkpointing
from grpo_lightning.policy.dtypes import hold_trained_weights, weights_dtype
from grpo_lightning.policy.end_of_sequence import end_of_sequence_ids
from grpo_lightning.policy.loading import causal_lm_without_weights, load_causal_lm, load_tokenizer
from grpo_lightning.policy.model_config import load_config
from grpo_lightning.policy.settings import PolicySettings
from grpo_lightning.policy.text_class import check_trained_on_text
from grpo_lightning.policy.vision_check import check_vision
from grpo_lightning.policy.weight_sample import WeightSample
from grpo_lightning.scoring.fast_kernels import compile_layers, liger_obstacle, use_liger_kernels
from grpo_lightning.scoring.images.tower import freeze_tower, tower_layers
from grpo_lightning.scoring.weight_gradients import WeightGradients
from grpo_lightning.seeds import forked_seed
from grpo_lightning.vision.processing import ImageProcessing, load_image_processing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """Where weights are loaded: by default as they are evaluated on a CPU, by a process of its own."""

    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    precision: str = "32-true"
    """``trainer.precision``."""
    mesh: DeviceMesh | None = None
    """Of the ranks that hold the weights in parts; None where each holds all."""


class Policy(nn.Module):
    """A causal language model with its tokenizer and the contents of its checkpoints.

    The tokenizer and the configuration are read on construction, the weights only in ``load``, so that every other
    mistake in a config is reported first.

    Args:
        settings: See there.
        seed: Of the run: adapters start from it.
        vision_tower: See VisionSettings.

    Example:
        >>> policy = Policy(PolicySettings(model_name_or_path="runs/grpo/hf/last"))  # doctest: +SKIP
        >>> policy.load().model.num_parameters()                                     # doctest: +SKIP
    """

    model: PreTrainedModel
    """The transformers model, a PEFT model where there are adapters; None until ``load``."""

    def __init__(self, settings: PolicySettings, seed: int = 0, vision_tower: str | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.seed = seed
        self.name_or_path = settings.model_name_or_path
        self.config = load_config(self.name_or_path)
        self.tokenizer = load_tokenizer(settings.tokenizer_name_or_path or self.name_or_path)
        descriptions = special_token_descriptions(
            settings.init_special_tokens, settings.new_special_tokens_config, settings.template
        )
        self.new_tokens = add_special_tokens(self.tokenizer, descriptions, self.config)
        self.vision_tower = vision_tower
        self.image_processing: ImageProcessing | None = None
        """What prompts with images go through; None of a policy that sees text alone."""
        if vision_tower is not None:
            check_vision(vision_tower, settings)
            self.image_processing = load_image_processing(self.name_or_path, self.tokenizer, self.config)
        self.weight_sample: WeightSample | None = None
        """Of the weights that training starts from, also in a run that goes on from a checkpoint."""
        self.version = 0
        """Raised whenever the weights change: who holds a copy of them compares it with the version of the copy."""
        self.context_length: int | None = None
        """Tokens of the longest sequence that the sampler admits; None for all positions of the model."""
        self.weight_gradients = WeightGradients()
        """Of the linear layers, on a GPU; the optimization says when they may be added up in place."""
        self.placement = Placement()
        self.is_given = False
        """Whether it started from weights that it was given, in place of those of model_name_or_path."""
        self.register_module("model", None)

    @property
    def is_loaded(self) -> bool:
        """Whether there are weights."""
        return self._modules["model"] is not None

    @property
    def is_sharded(self) -> bool:
        """Whether ranks hold parts of the weights, and so have to run every pass together."""
        return self.is_loaded and is_sharded(self.model)

    @property
    def end_ids(self) -> frozenset[int]:
        """Every token id that ends a completion."""
        return end_of_sequence_ids(self.model, self.tokenizer)

    def check_layers(self) -> None:
        """Refuses attention and adapters that the model's layers cannot have, on a skeleton of it: no weights are read.

        Raises:
            ValueError: In the words of the config.
        """
        settings = self.settings
        self._check_class()
        has_choice = settings.names_layers or (settings.has_adapters and has_experts(self.config.get_text_config()))
        if settings.attn_implementation is not None or has_choice:
            skeleton = self._skeleton()
            if has_choice and settings.adapter_name_or_path is None:
                self._with_adapter(skeleton)

    def _check_class(self) -> None:
        if self.vision_tower is None:
            check_trained_on_text(self.config)

    def _skeleton(self) -> PreTrainedModel:
        attention = self.settings.attn_implementation
        return causal_lm_without_weights(self.name_or_path, torch.float32, attention, self._kind)

    def load(self, placement: Placement | None = None) -> Self:
        """Loads the weights, once."""
        if not self.is_loaded:
            self.placement = placement or Placement()
            self.model = self.load_model()
            limit_host_threads(self.placement.device)
            self.weight_sample = WeightSample(self.model.parameters())
        return self

    def changed(self) -> None:
        """Notes that the weights are others now."""
        self.version += 1

    def load_model(self) -> PreTrainedModel:
        """The weights that training starts from, with the adapter on; in parts where there is a mesh."""
        settings, at = self.settings, self.placement
        dtype = weights_dtype(settings.dtype, at.precision, is_frozen=settings.has_adapters)
        if settings.is_quantized and settings.dtype == "auto":
            dtype = DTYPES[settings.bnb_4bit_compute_dtype]
        loading = settings.quantized_loading(at.device)
        model = self._read_weights(dtype, loading)
        if settings.is_quantized:
            keep_trainable_layout(model)
        for choice in fix_rope_scaling(model, self.context_length):
            logger.warning(
                "Every pass over %s takes %s. An engine has to do the same: set model.generator.init_args.max_model_length "
                "to the tokens that a prompt and its completion may have.",
                self.name_or_path,
                choice,
            )
        start_embeddings(model, self.new_tokens, len(self.tokenizer))
        if self.vision_tower == "frozen":
            freeze_tower(model)
        enable_checkpointing(model, settings.gradient_checkpointing)
        if settings.has_adapters:
            model = cast(PreTrainedModel, self._with_adapter(model))
            hold_trained_weights(model, torch.float32)
            add_in_one_product(model)
        self._speed_up(model)
        if at.mesh is not None:
            model = shard(model, at.mesh, at.precision == "bf16-mixed")
        return model.train()  # loaded in eval mode, in which gradient checkpointing stays off

    def _read_weights(self, dtype: torch.dtype, loading: dict[str, Any]) -> PreTrainedModel:
        if self._is_sent_weights():
            return causal_lm_without_weights(self.name_or_path, dtype, self.settings.attn_implementation, self._kind)
        return load_causal_lm(self.name_or_path, dtype, self.settings.attn_implementation, self._kind, **loading)

    @property
    def _kind(self) -> type[AutoModelForCausalLM] | type[AutoModelForImageTextToText]:
        return AutoModelForCausalLM if self.vision_tower is None else AutoModelForImageTextToText

    def _speed_up(self, model: PreTrainedModel) -> None:
        settings = self.settings
        is_possible = liger_obstacle(self.placement.device) is None and not settings.torch_compile
        wanted = is_possible if settings.use_liger_kernel is None else settings.use_liger_kernel
        if wanted and not use_liger_kernels(model) and settings.use_liger_kernel:
            raise ValueError(
                f"model.use_liger_kernel=true: Liger has no kernels for {model.config.model_type}. Leave the setting out."
            )
        if settings.torch_compile:
            compile_layers(model)
        elif self.placement.device.type == "cuda":
            self.weight_gradients.install(model)

    def _is_sent_weights(self) -> bool:
        """Whether another rank reads the weights for this one; new tokens are started from weights on every rank."""
        is_in_parts = self.placement.mesh is not None
        return is_in_parts and not is_first_rank() and all(token.is_started for token in self.new_tokens)

    def _with_adapter(self, model: PreTrainedModel) -> PeftModel:
        """The frozen model with a fresh adapter, or with the one to continue from."""
        if self.settings.adapter_name_or_path is not None:
            return load_adapter(model, self.settings.adapter_name_or_path, self.name_or_path)
        config, unfit = self._peft_config(model), unfit_layers(model)
        refuse_unmatched(model, config)
        with forked_seed(self.seed, "adapter"):  # the same adapter on every rank and after a resume
            try:
                adapted = get_peft_model(model, config)
            except ValueError as error:
                raise ValueError(why_no_adapter(model, config, error)) from error
        refuse_unfit(model, unfit)  # which has the adapters now
        return adapted

    def _peft_config(self, model: PreTrainedModel) -> PeftConfig:
        config = self.settings.make_peft_config(model, self.new_tokens)
        if self.vision_tower is not None:
            exclude(config, tower_layers(model), "adapters leave the layers of the vision tower out")
        return config

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves the weights and keeps the dtypes that they were loaded in.

        Under bf16-true Lightning casts the whole module. The weights are in bfloat16 already, and the rest, which models
        keep in float32 on purpose, must not be rounded: rotary frequencies so rounded turn a token by the wrong angle, the
        more so the later it comes, unlike in the engine that samples and in whatever loads the export.
        """

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(fn(torch.empty(0, device=tensor.device)).device)

        return super()._apply(move, recurse)

    def trained_names(self, prefix: str) -> set[str]:
        """Names in a module's ``state_dict`` of what training changes: trainable weights, tied names included."""
        return {name for name, p in self.named_parameters(prefix, remove_duplicate=False) if p.requires_grad}

    def add_to_checkpoint(self, checkpoint: dict[str, Any], prefix: str, keeps_all_names: bool = False) -> None:
        """Keeps trained weights only; frozen ones are read from model_name_or_path again.

        Args:
            checkpoint: Lightning's, with the whole ``state_dict``.
            prefix: Of the policy's names in it.
            keeps_all_names: Where what loads the checkpoint asks for every name of the module.
        """
        trained = self.trained_names(prefix)
        if not keeps_all_names:
            checkpoint["state_dict"] = {name: t for name, t in checkpoint["state_dict"].items() if name in trained}
        checkpoint["trained_names"] = sorted(trained)
        checkpoint["model_name_or_path"] = self.name_or_path
        if isinstance(self.model, PeftModel) and is_first_rank():  # which writes it
            checkpoint["adapter"] = adapter_record(self.model, self.name_or_path)

    def check_checkpoint(self, checkpoint: dict[str, Any], prefix: str) -> None:
        """Refuses a checkpoint whose weights would not fit, or would mean another model on this base.

        Raises:
            CheckpointNotReadableError: With the names that differ.
        """
        saved = set(checkpoint.get("trained_names") or checkpoint["state_dict"])
        trained = self.trained_names(prefix)
        if saved != trained:
            missing, unknown = sorted(trained - saved)[:3], sorted(saved - trained)[:3]
            raise CheckpointNotReadableError(
                f"The checkpoint holds other weights than this config trains: missing {missing}, unknown {unknown}. "
                f"It was made from model_name_or_path={checkpoint.get('model_name_or_path')!r}; use its config.yaml."
            )
        if isinstance(self.model, PeftModel):
            check_record(checkpoint["adapter"], self.model, self.name_or_path)
        parameters = {f"{prefix}.{name}": p for name, p in self.named_parameters(remove_duplicate=False)}
        check_complete(checkpoint, {name: parameters[name].shape for name in trained})
