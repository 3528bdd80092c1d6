"""PolicyModule: which weights are trained, and what a checkpoint holds of them."""

from dataclasses import fields
from typing import Any, Self

import lightning as L
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from grpo_lightning.distributed.rank_watch import RankWatch
from grpo_lightning.distributed.sharding import is_sharded, shard
from grpo_lightning.distributed.stop_signals import StopSignals
from grpo_lightning.distributed.strategies import FSDP2Strategy, check_strategy
from grpo_lightning.distributed.tensor_parallel import split_plan
from grpo_lightning.finetuning.adapter_files import adapter_record, check_record, load_adapter
from grpo_lightning.finetuning.lora_passes import add_in_one_product
from grpo_lightning.finetuning.quantization import keep_trainable_layout
from grpo_lightning.finetuning.settings import COMPUTE_DTYPES, FinetuningSettings
from grpo_lightning.finetuning.special_tokens import add_special_tokens, special_token_descriptions, start_embeddings
from grpo_lightning.memory.activation_checkpointing import Checkpointing, check_checkpointing, enable_checkpointing
from grpo_lightning.metrics.start_times import StartTimes
from grpo_lightning.policy.dtypes import hold_trained_weights, weights_dtype
from grpo_lightning.policy.loading import causal_lm_without_weights, load_causal_lm, load_config, load_tokenizer
from grpo_lightning.policy.weight_sample import WeightSample
from grpo_lightning.scoring.fast_kernels import compile_layers, liger_obstacle, use_liger_kernels
from grpo_lightning.seeds import forked_seed


class PolicyModule(L.LightningModule):
    """A causal language model with its tokenizer and the contents of its checkpoints.

    The tokenizer and the configuration are read on construction, the weights only in ``configure_model``, so that every
    other mistake in a config is reported first.

    Args:
        model_name_or_path: Directory or hub name of the policy, in Hugging Face format with safetensors weights.
        tokenizer_name_or_path: The tokenizer, where it is not beside the model.
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
        init_special_tokens: Add the tokens of new_special_tokens_config to tokenizer and model. Under LoRA their rows
            of the embeddings are trained, and no others.
        new_special_tokens_config: Token -> description; its embeddings start at the mean of the description's.
        replace_text: Text to replace in every prompt, old by new; the same as data.replace_text.
        template: Model family (llama3, qwen3) whose special tokens are added where new_special_tokens_config is not
            set.
        dtype: auto, float32, bfloat16 or float16: what the weights are held in. ``auto`` follows trainer.precision:
            bfloat16 for bf16-true, else float32 (bf16-mixed computes in bfloat16 over float32 weights); a base that
            adapters freeze is held in bfloat16 under bf16-mixed too.
        attn_implementation: Attention of transformers for generation and padded passes; None lets transformers choose.
        use_liger_kernel: Fused norms and gated activations (Liger): less time and memory per pass. null for where
            training runs on a GPU, the package is installed and knows the architecture.
        torch_compile: Compile the policy's layers, in place of Liger's kernels: faster passes for some 20 seconds at
            the start.
        float32_head: Compute the logits of training passes in float32 also where the rest is bfloat16, from a head of one
            matrix: more exact logprobs for the time and memory of that product.
        gradient_checkpointing: Recompute activations in the backward pass; the gradient stays the same. true: all of
            them, about a third more time; selective: all but the outputs of matrix products and attention, less memory
            saved and less time on models that keep the GPU busy; a number: true for that share of the layers (0.5 for
            every second one). Fewer tokens per micro-batch save memory for less time, as long as they suffice.
        seed: With the step and the prompt, decides every sampled token and dropout mask of the run.
    """

    def __init__(
        self,
        model_name_or_path: str,
        tokenizer_name_or_path: str | None = None,
        finetuning_type: str = "full",
        lora_rank: int = 8,
        lora_alpha: int = 16,
        lora_dropout: float = 0.05,
        lora_target: str | list[str] = "all",
        peft_config: PeftConfig | None = None,
        adapter_name_or_path: str | None = None,
        load_in_4bit: bool = False,
        bnb_4bit_compute_dtype: str = "bfloat16",
        bnb_4bit_quant_type: str = "nf4",
        bnb_4bit_use_double_quant: bool = True,
        init_special_tokens: bool = False,
        new_special_tokens_config: dict[str, str] | None = None,
        replace_text: dict[str, str] | None = None,
        template: str | None = None,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        use_liger_kernel: bool | None = None,
        torch_compile: bool = False,
        float32_head: bool = False,
        gradient_checkpointing: Checkpointing = False,
        seed: int = 0,
    ) -> None:
        names = {field.name for field in fields(FinetuningSettings) if field.init}
        finetuning = FinetuningSettings(**{name: value for name, value in locals().items() if name in names})
        super().__init__()
        self.finetuning = finetuning
        self.strict_loading = False  # a checkpoint holds trained weights only; on_load_checkpoint checks them itself
        self.model_name_or_path = model_name_or_path
        self.model_config = load_config(model_name_or_path)
        self.tokenizer = load_tokenizer(tokenizer_name_or_path or model_name_or_path)
        descriptions = special_token_descriptions(init_special_tokens, new_special_tokens_config, template)
        self.new_tokens = add_special_tokens(self.tokenizer, descriptions, self.model_config)
        self.replace_text = replace_text
        weights_dtype(dtype, "32-true")  # an unknown name is an error now
        self.dtype_name = dtype
        self.attn_implementation = attn_implementation
        self.use_liger_kernel = use_liger_kernel
        self.torch_compile = torch_compile
        if use_liger_kernel and torch_compile:
            raise ValueError(
                "model.use_liger_kernel=true and model.torch_compile=true: torch.compile makes kernels of its own, and "
                "cannot look into Liger's. Leave one of them out."
            )
        check_checkpointing(gradient_checkpointing, torch_compile)
        self.gradient_checkpointing = gradient_checkpointing
        self.float32_head = float32_head
        self.seed = seed
        self.policy: PreTrainedModel | None = None
        self.weight_sample: WeightSample | None = None
        """Of the weights that training starts from, also in a run that goes on from a checkpoint."""
        self.rank_watch = RankWatch()
        self.start_times = StartTimes()
        self.start_times.mark("imports")

    def configure_callbacks(self) -> list[Callback]:
        """Refuses strategies that these weights cannot be trained with, before they load."""
        trainer = self.trainer
        check_strategy(trainer.strategy)
        if self.use_liger_kernel and (obstacle := liger_obstacle(trainer.strategy.root_device)) is not None:
            raise ValueError(f"model.use_liger_kernel=true: {obstacle}.")
        if isinstance(trainer.strategy, ModelParallelStrategy) and self.finetuning.is_quantized:
            raise ValueError(
                "model.finetuning_type=qlora: 4-bit weights cannot be sharded. Use trainer.strategy=ddp, or lora."
            )
        if isinstance(trainer.strategy, FSDP2Strategy) and trainer.strategy.tensor_parallel_size > 1:
            self._check_tensor_parallel(trainer.strategy.tensor_parallel_size)
        return [self.rank_watch, StopSignals()]

    def _check_tensor_parallel(self, size: int) -> None:
        """Refuses what splitting matrices over ranks does not go with."""
        split_plan(self.model_config, size)
        for setting, is_on in (
            (f"model.finetuning_type={self.finetuning.finetuning_type}", self.finetuning.has_adapters),
            ("model.torch_compile=true", self.torch_compile),
        ):
            if is_on:
                raise ValueError(
                    f"{setting} does not go with trainer.strategy.init_args.tensor_parallel_size={size}. Use "
                    "tensor_parallel_size=1, which shards the weights all the same."
                )

    def configure_model(self) -> None:
        """Loads the weights, once."""
        if self.policy is None:
            self.start_times.mark("data")
            self.policy = self.load_policy()
            self.weight_sample = WeightSample(self.policy.parameters())
            self.start_times.mark("weights")

    def load_policy(self) -> PreTrainedModel:
        """The weights that training starts from, with the adapter on; in parts where the strategy shards them."""
        settings, precision = self.finetuning, str(self.trainer.precision)
        dtype = weights_dtype(self.dtype_name, precision, is_frozen=settings.has_adapters)
        if settings.is_quantized and self.dtype_name == "auto":
            dtype = COMPUTE_DTYPES[settings.bnb_4bit_compute_dtype]
        loading = settings.quantized_loading(self.trainer.strategy.root_device)
        if self._is_sent_weights():
            policy = causal_lm_without_weights(self.model_name_or_path, dtype, self.attn_implementation)
        else:
            policy = load_causal_lm(self.model_name_or_path, dtype, self.attn_implementation, **loading)
        if settings.is_quantized:
            keep_trainable_layout(policy)
        start_embeddings(policy, self.new_tokens, len(self.tokenizer))
        enable_checkpointing(policy, self.gradient_checkpointing)
        if settings.has_adapters:
            policy = self._with_adapter(policy)
            hold_trained_weights(policy, torch.float32)
            add_in_one_product(policy)
        self._speed_up(policy)
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            policy = shard(policy, self.trainer.strategy.device_mesh, precision == "bf16-mixed")
        return policy.train()  # loaded in eval mode, in which gradient checkpointing stays off

    def _speed_up(self, policy: PreTrainedModel) -> None:
        is_possible = liger_obstacle(self.trainer.strategy.root_device) is None and not self.torch_compile
        wanted = is_possible if self.use_liger_kernel is None else self.use_liger_kernel
        if wanted and not use_liger_kernels(policy) and self.use_liger_kernel:
            raise ValueError(
                f"model.use_liger_kernel=true: Liger has no kernels for {policy.config.model_type}. Leave the setting out."
            )
        if self.torch_compile:
            compile_layers(policy)

    def _is_sent_weights(self) -> bool:
        """Whether another rank reads the weights for this one; new tokens are started from weights on every rank."""
        is_sharded = isinstance(self.trainer.strategy, ModelParallelStrategy)
        return is_sharded and self.global_rank > 0 and all(token.is_started for token in self.new_tokens)

    def _with_adapter(self, policy: PreTrainedModel) -> PeftModel:
        """The frozen policy with a fresh adapter, or with the one to continue from."""
        if self.finetuning.adapter_name_or_path is not None:
            return load_adapter(policy, self.finetuning.adapter_name_or_path, self.model_name_or_path)
        config = self.finetuning.make_peft_config(policy, self.new_tokens)
        with forked_seed(self.seed, "adapter"):  # the same adapter on every rank and after a resume
            try:
                return get_peft_model(policy, config)
            except ValueError as error:
                raise ValueError(f"model.lora_target / model.peft_config do not fit the model: {error}") from error

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Moves the module. The policy keeps the dtypes that it was loaded in.

        Under bf16-true Lightning casts the whole module. The weights are in bfloat16 already, and the rest, which models
        keep in float32 on purpose, must not be rounded: rotary frequencies so rounded turn a token by the wrong angle, the
        more so the later it comes, unlike in the engine that samples and in whatever loads the export.
        """
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is None or self.policy is None:
            return super().to(*args, **kwargs)
        policy: Any = self.policy
        self.policy = None
        try:
            super().to(*args, **kwargs)
        finally:
            self.policy = policy
        if device is not None:
            policy.to(device, non_blocking=non_blocking)
        return self

    @property
    def is_sharded(self) -> bool:
        """Whether ranks hold parts of the weights, and so have to run every pass together."""
        return self.policy is not None and is_sharded(self.policy)

    @property
    def datamodule(self) -> Any:
        """The Trainer's; None where it has plain dataloaders."""
        return getattr(self.trainer, "datamodule", None)

    def trained_names(self) -> set[str]:
        """Names in ``state_dict`` of what training changes: trainable weights, tied names included."""
        return {name for name, p in self.named_parameters(remove_duplicate=False) if p.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps trained weights only; frozen ones are read from model_name_or_path again."""
        trained = self.trained_names()
        strategy = self.trainer.strategy
        if not isinstance(strategy, ModelParallelStrategy) or isinstance(strategy, FSDP2Strategy):
            # Lightning's own ModelParallelStrategy loads by the names of the whole module.
            checkpoint["state_dict"] = {name: t for name, t in checkpoint["state_dict"].items() if name in trained}
        checkpoint["trained_names"] = sorted(trained)
        checkpoint["model_name_or_path"] = self.model_name_or_path
        if isinstance(self.policy, PeftModel) and self.global_rank == 0:  # which writes it
            checkpoint["adapter"] = adapter_record(self.policy, self.model_name_or_path)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint that does not fit, before any weight is changed."""
        self.check_checkpoint(checkpoint)

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError where a checkpoint's weights would not fit, or would mean another model on this base."""
        saved, trained = set(checkpoint.get("trained_names") or checkpoint["state_dict"]), self.trained_names()
        if saved != trained:
            missing, unknown = sorted(trained - saved)[:3], sorted(saved - trained)[:3]
            raise ValueError(
                f"The checkpoint holds other weights than this config trains: missing {missing}, unknown {unknown}. "
                f"It was made from model_name_or_path={checkpoint.get('model_name_or_path')!r}; use its config.yaml."
            )
        if isinstance(self.policy, PeftModel):
            check_record(checkpoint["adapter"], self.policy, self.model_name_or_path)
