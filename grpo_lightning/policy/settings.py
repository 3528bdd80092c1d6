"""The settings of the policy, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass

from grpo_lightning.finetuning.settings import FinetuningSettings
from grpo_lightning.policy.activation_checkpointing import Checkpointing, check_checkpointing
from grpo_lightning.policy.dtypes import weights_dtype


@dataclass(frozen=True, kw_only=True)
class PolicySettings(FinetuningSettings):
    """Which model is trained, in which precision, with which kernels.

    Args:
        model_name_or_path: Directory or hub name of the policy, in Hugging Face format with safetensors weights.
        tokenizer_name_or_path: The tokenizer, where it is not beside the model.
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
        torch_compile: Compile the policy's layers, each with its attention, in place of Liger's kernels: fewer kernels to
            launch, for some 20 seconds at the start. Passes of small models and small steps are faster by it; a run whose
            passes the host bounds says so. What the start compares with plain passes is the model without it.
        cuda_graphs: Launch the layers of each training pass over text as two CUDA graphs, at once: passes of small models
            and small steps, which the host bounds, are faster by it. For one GPU. A graph is recorded for every size of
            pass when it first comes, and the memory of the largest stays taken.
        float32_head: Compute the logits of training passes in float32 also where the rest is bfloat16, from a head of one
            matrix: more exact logprobs for the time and memory of that product.
        gradient_checkpointing: Recompute activations in the backward pass; the gradient stays the same. true: all of
            them, about a third more time; selective: all but the outputs of matrix products and attention, less memory
            saved and less time on models that keep the GPU busy; a number: true for that share of the layers (0.5 for
            every second one). Fewer tokens per micro-batch save memory for less time, as long as they suffice.

    Raises:
        ValueError: For settings that cannot work together.
    """

    model_name_or_path: str
    tokenizer_name_or_path: str | None = None
    init_special_tokens: bool = False
    new_special_tokens_config: dict[str, str] | None = None
    replace_text: dict[str, str] | None = None
    template: str | None = None
    dtype: str = "auto"
    attn_implementation: str | None = None
    use_liger_kernel: bool | None = None
    torch_compile: bool = False
    cuda_graphs: bool = False
    float32_head: bool = False
    gradient_checkpointing: Checkpointing = False

    def __post_init__(self) -> None:
        super().__post_init__()
        weights_dtype(self.dtype, "32-true")  # an unknown name is an error now
        if self.use_liger_kernel and self.torch_compile:
            raise ValueError(
                "model.use_liger_kernel=true and model.torch_compile=true: torch.compile makes kernels of its own, and "
                "cannot look into Liger's. Leave one of them out."
            )
        if self.cuda_graphs and self.gradient_checkpointing is not False:
            raise ValueError(
                "model.cuda_graphs=true records passes that keep their activations, and model.gradient_checkpointing computes "
                "them again. Leave one of them out; model.max_tokens_per_microbatch saves memory too."
            )
        check_checkpointing(self.gradient_checkpointing, self.torch_compile)
