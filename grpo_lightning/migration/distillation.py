"""Configs of TRL's GKDConfig, DistillationConfig and ServerDistillationConfig, for ``fit`` with model.distillation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from grpo_lightning.migration.compose.order import compose_order
from grpo_lightning.migration.migrate import migrate_with_own
from grpo_lightning.migration.migration import Migration
from grpo_lightning.migration.stage import COMMON

TEACHER = "model.distillation.teacher"
OF_BETA = {0.0: "forward_kl", 0.5: "jsd", 1.0: "reverse_kl"}
"""TRL's beta of what is here."""
OF_THE_POLICY_LOSS = ("loss_type", "beta", "epsilon", "epsilon_high", "scale_rewards", "mask_truncated_completions")
"""Of ``model.*``: GRPO's, which has nothing to learn from here."""
PACKED = "Micro-batches are packed under model.max_tokens_per_microbatch."
OF_SFT: dict[str, str] = {
    **{key: reason for key, reason in COMMON.items() if key != "router_aux_loss_coef"},  # which GRPO's step has
    "dataset_text_field": "Prompts are read by data.converter_args.",
    "dataset_kwargs": "Prompts are read by data.converter_args.",
    "max_length": "model.max_completion_length bounds completions, data.max_prompt_length prompts.",
    "packing": PACKED,
    "packing_strategy": PACKED,
    "eval_packing": PACKED,
    "completion_only_loss": "The divergence is at the tokens of completions.",
    "assistant_only_loss": "The divergence is at the tokens of completions.",
    "loss_type": "The loss is the divergence.",
    "shuffle_dataset": "Rows come as train_sampling_strategy says, in TRL too.",
}
"""Settings of SFTConfig, which GKDConfig inherits."""


@dataclass(frozen=True)
class Trainer:
    """One of TRL's."""

    beta: float
    implied: dict[str, Any] = field(default_factory=dict)
    """Its defaults, where they are not GRPOConfig's, under the names of that."""
    own: tuple[str, ...] = ()
    """Settings that GRPOConfig does not have, or has with another meaning."""


TEACHERS = ("beta", "teacher_model_name_or_path", "teacher_model_revision", "teacher_model_init_kwargs")
SERVER = ("teacher_model_server_url", "loss_top_k", "loss_add_tail", "reverse_kl_top_1_mode")
DISTILLATION = {
    "gkd": Trainer(
        0.5,
        {"temperature": 0.9, "learning_rate": 2e-5, "disable_dropout": True},
        (*TEACHERS, *OF_SFT, "lmbda", "seq_kd", "max_new_tokens", "train_sampling_strategy"),
    ),
    "distillation": Trainer(1.0, {}, TEACHERS),
    "server_distillation": Trainer(1.0, {"vllm_server_port": 8001}, (*TEACHERS, *SERVER)),
}


def migrate_distillation(
    name: str, settings: dict[str, Any], devices: int | None = None, total_steps: int | None = None
) -> Migration:
    """A config of one of TRL 1.16's distillation trainers, in our keys.

    Args:
        name: A key of ``DISTILLATION``.
        settings, devices, total_steps: See ``migrate_stage``.

    Returns:
        Every key of ``settings`` is in ``mapped`` or in ``refused``, or in both where only a part fits.
    """
    trainer = DISTILLATION[name]
    implied: dict[str, Any] = {"num_generations": 1, **trainer.implied}
    if name == "gkd":
        implied["max_completion_length"] = settings.get("max_new_tokens", 128)
    m = migrate_with_own(settings, trainer.own, implied, devices, total_steps)
    for key in OF_THE_POLICY_LOSS:
        m.config.pop(f"model.{key}", None)
    _compose_teacher(m)
    _compose_divergence(m, trainer)
    if name == "server_distillation":
        _compose_server(m)
    if name == "gkd":
        _compose_gkd(m)
    m.config |= {"model.num_generations": 2, "model.rewards": ["length"], "model.reward_weights": [0.0]}
    m.notes.append("Each prompt has 2 completions here, where TRL has 1; the reward is only watched.")
    return m


def _compose_teacher(m: Migration) -> None:
    if m.get("teacher_model_name_or_path") is not None:
        m.put(TEACHER, m.get("teacher_model_name_or_path"), "teacher_model_name_or_path")
    m.needs_nothing("teacher_model_name_or_path")
    options = m.get("teacher_model_init_kwargs")
    known = dict(options) if isinstance(options, dict) else {}
    dtype = known.pop("dtype", known.pop("torch_dtype", None))
    if dtype in ("float32", "bfloat16", "float16"):
        m.put("model.distillation.dtype", dtype, "teacher_model_init_kwargs")
    elif dtype is not None:
        known["dtype"] = dtype
    if known or (options and not isinstance(options, dict)):
        m.refuse("teacher_model_init_kwargs", "Only dtype has a place: model.distillation.dtype.")
    m.needs_nothing("teacher_model_init_kwargs")
    m.refuse("teacher_model_revision", "Download that revision, and name its directory as the teacher.")
    if TEACHER not in m.config and m.get("teacher_model_server_url") is None:
        m.notes.append(f"Still to be set, since the config does not say: {TEACHER}.")


def _compose_divergence(m: Migration, trainer: Trainer) -> None:
    beta = float(m.get("beta") if m.has("beta") else trainer.beta)
    nearest = min(OF_BETA, key=lambda known: abs(known - beta))
    m.put("model.distillation.divergence", OF_BETA[nearest], "beta")
    if nearest != beta:
        m.refuse(
            "beta",
            f"Written: {OF_BETA[nearest]}, of beta {nearest}. There are 0 (forward_kl), 0.5 (jsd), 1 (reverse_kl).",
        )


def _compose_server(m: Migration) -> None:
    if m.get("teacher_model_server_url") is not None:
        m.put(TEACHER, str(m.get("teacher_model_server_url")).rstrip("/"), "teacher_model_server_url")
    m.put("model.distillation.top_k", int(m.get("loss_top_k") or 1), "loss_top_k")
    if m.get("loss_add_tail") is False:
        m.refuse("loss_add_tail", "What is not among the top_k is always one more token.")
        m.notes.append("loss_add_tail false: what is not among the top_k is always one more token here.")
    m.needs_nothing("loss_add_tail", "teacher_model_server_url")
    m.refuse(
        "reverse_kl_top_1_mode",
        "The teacher's likeliest tokens are told apart, whatever was sampled; sampled_token needs no top_k.",
    )
    m.notes.append("model.temperature has to be 1.0 with a teacher on a server, whose logprobs are at that.")


def _compose_gkd(m: Migration) -> None:
    m.put("model.max_completion_length", int(m.get("max_new_tokens", 128)), "max_new_tokens")
    share = m.get("lmbda", 0.5)
    if share != 1.0:
        m.say("lmbda", "Every step is on the policy's own completions, lmbda 1. Completions of the data are for `sft`.")
    m.needs_nothing("lmbda")
    m.refuse("seq_kd", "Sample from the teacher once, and imitate that with `sft`.")
    compose_order(m)
    # A row is a conversation; its last message is what the policy writes itself.
    m.config.setdefault("data.converter_args.prompt_key", "messages")
    m.config.setdefault("data.converter_args.drop_solution", True)
    temperature = float(m.config["model.temperature"])
    if temperature != 1.0:
        m.say(
            "temperature",
            f"Sampled at {temperature:g} as in TRL, and compared with the teacher at that too; TRL does so at 1.",
        )
    m.notes.append(
        "The divergence is a mean over the tokens that were sampled; TRL divides by those of the data's completions."
    )
    for key, reason in OF_SFT.items():
        m.refuse(key, reason)
