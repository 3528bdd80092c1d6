"""PolicyModule: which weights are trained, how they are stepped, and what a checkpoint holds of them."""

from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel

from grpo_lightning.modules.loading import load_causal_lm, load_config, load_tokenizer, weights_dtype


class PolicyModule(L.LightningModule):
    """A causal language model with its tokenizer, optimizer and checkpoint contents; manual optimization.

    The tokenizer and the configuration are read on construction, the weights only in ``configure_model``, so that every
    other mistake in a config is reported first.

    Args:
        model_name_or_path: Directory or hub name of the policy, in Hugging Face format with safetensors weights.
        tokenizer_name_or_path: The tokenizer, where it is not beside the model.
        dtype: auto, float32, bfloat16 or float16: what the weights are held in. ``auto`` follows trainer.precision:
            bfloat16 for bf16-true, else float32 (bf16-mixed computes in bfloat16 over float32 weights).
        attn_implementation: Attention of transformers for generation and padded passes; None lets transformers choose.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
        optimizer: Class path and arguments of the optimizer.
        lr_scheduler: Class path and arguments of a scheduler that is stepped once per optimizer step.
        max_grad_norm: Gradients are scaled down to this global 2-norm; 0 leaves them alone.
        seed: With the step and the prompt, decides every sampled token and dropout mask of the run.
    """

    def __init__(
        self,
        model_name_or_path: str,
        tokenizer_name_or_path: str | None = None,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        gradient_checkpointing: bool = False,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-6, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable | None = None,
        max_grad_norm: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds trained weights only; on_load_checkpoint checks them itself
        self.model_name_or_path = model_name_or_path
        self.model_config = load_config(model_name_or_path)
        self.tokenizer = load_tokenizer(tokenizer_name_or_path or model_name_or_path)
        weights_dtype(dtype, "32-true")  # an unknown name is an error now
        self.dtype_name = dtype
        self.attn_implementation = attn_implementation
        self.gradient_checkpointing = gradient_checkpointing
        self.optimizer_factory = optimizer
        self.lr_scheduler_factory = lr_scheduler
        if max_grad_norm < 0:
            raise ValueError(f"model.max_grad_norm={max_grad_norm} is negative. Use 0 for no clipping.")
        self.max_grad_norm = max_grad_norm
        self.seed = seed
        self.policy: PreTrainedModel | None = None

    def configure_callbacks(self) -> list[Callback]:
        """Refuses Trainer settings without effect; the only hook before Lightning refuses them in its own words."""
        trainer = self.trainer
        if trainer.gradient_clip_val:
            raise ValueError("trainer.gradient_clip_val is not used by GRPO. Set model.max_grad_norm instead.")
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(
                "trainer.accumulate_grad_batches is not used: one batch is one GRPO step whatever its size. "
                "Set data.batch_size to the prompts of a step; model.max_tokens_per_microbatch bounds the memory."
            )
        if str(trainer.precision) == "16-mixed":
            raise ValueError("trainer.precision=16-mixed needs loss scaling. Use bf16-mixed, bf16-true or 32-true.")
        return []

    def configure_model(self) -> None:
        """Loads the weights, once."""
        if self.policy is not None:
            return
        dtype = weights_dtype(self.dtype_name, str(self.trainer.precision))
        policy = load_causal_lm(self.model_name_or_path, dtype, self.attn_implementation)
        if self.gradient_checkpointing:
            policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.policy = policy.train()  # loaded in eval mode, in which gradient checkpointing stays off

    def configure_optimizers(self) -> Any:
        """The optimizer over trainable weights and, where set, its scheduler."""
        optimizer = self.optimizer_factory([p for p in self.parameters() if p.requires_grad])
        if self.lr_scheduler_factory is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.lr_scheduler_factory(optimizer)}

    def step_optimizer(self) -> Tensor:
        """One optimizer step on the accumulated gradients, clipped; a gradient with NaN or inf is dropped instead.

        Returns:
            The 2-norm of the gradient before clipping, a 0-dim tensor; not finite where the step was skipped.
        """
        optimizer = cast(LightningOptimizer, self.optimizers())
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter in parameters:
            if parameter.grad is None:  # no completion had an advantage: momentum and decay act on a zero gradient
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm or float("inf"))
        if torch.isfinite(norm):
            optimizer.step()
            torch.clear_autocast_cache()  # Lightning's autocast spans the step: later passes would see the old weights
            scheduler = cast(LRScheduler | None, self.lr_schedulers())
            if scheduler is not None:
                scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        return norm.detach()

    def trained_names(self) -> set[str]:
        """Names in ``state_dict`` of what training changes: trainable weights, tied names included."""
        return {name for name, p in self.named_parameters(remove_duplicate=False) if p.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps trained weights only; frozen ones are read from model_name_or_path again."""
        trained = self.trained_names()
        checkpoint["state_dict"] = {name: t for name, t in checkpoint["state_dict"].items() if name in trained}
        checkpoint["model_name_or_path"] = self.model_name_or_path

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint that does not fit, before any weight is changed."""
        saved, trained = set(checkpoint["state_dict"]), self.trained_names()
        if saved != trained:
            missing, unknown = sorted(trained - saved)[:3], sorted(saved - trained)[:3]
            raise ValueError(
                f"The checkpoint holds other weights than this config trains: missing {missing}, unknown {unknown}. "
                f"It was made from model_name_or_path={checkpoint.get('model_name_or_path')!r}; use its config.yaml."
            )
