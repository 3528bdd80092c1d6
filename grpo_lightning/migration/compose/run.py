"""How long the run is, on what it runs, and how a model is spread."""

from __future__ import annotations

import math

from grpo_lightning.migration.compose.steps import updates
from grpo_lightning.migration.migration import Migration


def compose_length(m: Migration) -> None:
    """Steps or epochs, precision, devices, and where to go on."""
    if (m.get("max_steps") or -1) > 0:
        steps = int(m.get("max_steps"))
        m.put("trainer.max_steps", steps, "max_steps")
        m.refuse("num_train_epochs", "max_steps decides, as in TRL.")
        if steps % updates(m):
            end = -(-steps // updates(m)) * updates(m)
            m.say("max_steps", f"A GRPO step of {updates(m)} optimizer steps is never cut: the run ends after {end}.")
    else:
        m.needs_nothing("max_steps")
        epochs = float(m.get("num_train_epochs"))
        m.put("trainer.max_epochs", max(1, math.ceil(epochs)), "num_train_epochs")
        if 0 < epochs < 1:
            m.put("trainer.limit_train_batches", epochs, "num_train_epochs")
            m.say("num_train_epochs", f"{epochs:g} of an epoch's steps, rounded down, where TRL rounds up.")
        elif epochs != int(epochs):
            m.refuse("num_train_epochs", f"{epochs:g}: epochs are whole here. Set trainer.max_steps for less.")
    if m.get("use_cpu"):
        m.put("trainer.accelerator", "cpu", "use_cpu")
    m.needs_nothing("use_cpu", "fp16", "bf16", "stage")
    _precision(m)
    if m.devices > 1:
        m.put("trainer.devices", m.devices, "num_processes", "nproc_per_node")
    m.needs_nothing("num_processes", "nproc_per_node")
    _nodes(m)
    if m.get("resume_from_checkpoint"):
        if m.get("resume_from_checkpoint") is True:
            m.put("ckpt_path", "last", "resume_from_checkpoint")
        else:
            reason = "TRL's checkpoints cannot be resumed here: give their weights as model.model_name_or_path."
            m.refuse("resume_from_checkpoint", reason)
    m.needs_nothing("resume_from_checkpoint")


def _precision(m: Migration) -> None:
    """bf16, fp16, and what accelerate's mixed_precision says where they do not."""
    launched = str(m.get("mixed_precision") or "no")
    if m.get("fp16") or (launched == "fp16" and not m.has("bf16")):
        key = "fp16" if m.get("fp16") else "mixed_precision"
        m.refuse(key, "16-bit floats need loss scaling, which GRPO here does not do. bf16-mixed is written.")
        m.put("trainer.precision", "bf16-mixed", key)
    else:
        uses_bf16 = m.get("bf16") is not False or (launched == "bf16" and not m.has("bf16"))
        m.put("trainer.precision", "bf16-mixed" if uses_bf16 else "32-true", "bf16", "mixed_precision")
    m.needs_nothing("mixed_precision")


def _nodes(m: Migration) -> None:
    """num_processes counts over all machines, nproc_per_node does not."""
    nodes = int(str(m.get("num_machines") or m.get("nnodes") or 1).split(":")[-1])
    if nodes > 1:
        m.put("trainer.num_nodes", nodes, "num_machines", "nnodes")
        if m.devices % nodes == 0 and "num_processes" in m.source:
            m.put("trainer.devices", m.devices // nodes, "num_processes")
    m.needs_nothing("num_machines", "nnodes")


def compose_strategy(m: Migration) -> None:
    """How a model is spread."""
    if m.get("ddp_find_unused_parameters"):
        m.put("trainer.strategy", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters")
    for key in ("fsdp", "deepspeed", "use_deepspeed", "use_fsdp"):
        if not m.get(key):
            continue
        m.put("trainer.strategy", "fsdp2", key)
        notes = ["The rest of its settings, offloading among them, is not read."] if "deepspeed" in key else []
        if not m.get("use_vllm"):
            notes.append("It needs an engine beside the policy: use_vllm: true, or VLLMColocate as model.generator.")
        if notes:
            m.refuse(key, " ".join(["Written: trainer.strategy fsdp2.", *notes]))
    m.needs_nothing("ddp_find_unused_parameters", "fsdp", "deepspeed", "use_deepspeed", "use_fsdp")
