"""The optimizer with its arguments."""

from __future__ import annotations

from grpo_lightning.migration.migration import Migration

ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw")
OPTIMIZERS = {
    **{name: "torch.optim.AdamW" for name in ADAMW},
    "sgd": "torch.optim.SGD",
    "adagrad": "torch.optim.Adagrad",
    "rmsprop": "torch.optim.RMSprop",
    "adamw_8bit": "bitsandbytes.optim.AdamW8bit",
    "adamw_bnb_8bit": "bitsandbytes.optim.AdamW8bit",
    "paged_adamw_8bit": "bitsandbytes.optim.PagedAdamW8bit",
    "paged_adamw_32bit": "bitsandbytes.optim.PagedAdamW32bit",
}


def compose_optimizer(m: Migration) -> None:
    """Class path, learning rate, weight decay and what else the class takes."""
    name = str(m.get("optim", "adamw_torch_fused")).removeprefix("OptimizerNames.").lower()
    keys = ("learning_rate", "weight_decay")
    if name not in OPTIMIZERS:
        m.refuse(
            "optim", f"No class path is known for {name}; AdamW is written. Name yours in model.optimizer.class_path."
        )
    is_adam = "adam" in OPTIMIZERS.get(name, ".AdamW").lower()
    m.put(
        "model.optimizer.class_path", OPTIMIZERS.get(name, "torch.optim.AdamW"), "optim" if name in OPTIMIZERS else ""
    )
    m.put("model.optimizer.init_args.lr", float(m.get("learning_rate", 1e-6)), keys[0])
    m.put("model.optimizer.init_args.weight_decay", float(m.get("weight_decay", 0.0)), keys[1])
    if is_adam:
        betas = [float(m.get("adam_beta1", 0.9)), float(m.get("adam_beta2", 0.999))]
        m.put("model.optimizer.init_args.betas", betas, "adam_beta1", "adam_beta2")
        m.put("model.optimizer.init_args.eps", float(m.get("adam_epsilon", 1e-8)), "adam_epsilon")
    else:
        for key in ("adam_beta1", "adam_beta2", "adam_epsilon"):
            m.refuse(key, f"optim: {name} has no such argument.")
    if name == "adamw_torch_fused":
        m.put("model.optimizer.init_args.fused", True, "optim")
