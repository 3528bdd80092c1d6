"""Configs of TRL's SFTConfig, DPOConfig, KTOConfig and RewardConfig, for the commands ``sft``, ``dpo`` and ``rm``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from grpo_lightning.migration.compose.checkpoints import compose_checkpoints, compose_evaluation
from grpo_lightning.migration.compose.data import compose_data
from grpo_lightning.migration.compose.logs import compose_logging
from grpo_lightning.migration.compose.optimizer import compose_optimizer, compose_schedule
from grpo_lightning.migration.compose.order import compose_order
from grpo_lightning.migration.compose.policy import compose_policy
from grpo_lightning.migration.compose.run import compose_length, compose_strategy
from grpo_lightning.migration.migration import Migration
from grpo_lightning.migration.names import with_current_names
from grpo_lightning.migration.numbers import processes_of
from grpo_lightning.migration.refused import HARMLESS, REFUSED
from grpo_lightning.migration.same import SAME

EVERY_STAGE = (
    *("max_grad_norm", "use_liger_kernel", "torch_compile", "model_name_or_path", "tokenizer_name_or_path"),
    *("attn_implementation", "finetuning_type", "init_special_tokens", "new_special_tokens_config", "template"),
)
"""Of ``model.*``, under their own names."""
REFERENCE = ("beta", "precompute_ref_log_probs", "sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps")
BALANCE = "router_aux_loss_coef"
IMPLIED: dict[str, Any] = {
    **{"num_train_epochs": 3.0, "lr_scheduler_type": "linear", "per_device_train_batch_size": 8, "bf16": None},
    **{"gradient_checkpointing": True, "save_total_limit": None, "save_steps": 500, "logging_steps": 10},
    **{"train_sampling_strategy": "random", "dataloader_drop_last": False},
}
"""TRL's defaults that differ from ours, in all of these stages."""
SAMPLED = ("model.num_generations_eval", "model.temperature_eval", "model.top_p_eval")
"""Of the evaluation that GRPO has."""
COMPOSED = ("disable_dropout", "train_sampling_strategy", "dataloader_drop_last")
"""What GRPO's configs lose, and these keep."""
COMMON: dict[str, str] = {
    "dataset_num_proc": "Rows are converted and tokenised before training, in one process.",
    "padding_free": "Micro-batches are packed under model.max_tokens_per_microbatch; nothing is padded.",
    "precompute_ref_batch_size": "model.max_tokens_per_microbatch bounds these passes too.",
    "activation_offloading": "Use model.gradient_checkpointing.",
    "pad_token": "The tokenizer's.",
    "eos_token": "The tokenizer's.",
    "chat_template_path": "Put the template into the tokenizer's directory.",
    "truncation_mode": "Completions lose their end, texts for a reward model their beginning.",
}
PACKED = (
    "Rows stay whole, and micro-batches are packed under model.max_tokens_per_microbatch: data.batch_size counts rows, where TRL "
    "counts blocks of max_length."
)
OF_SFT: dict[str, str] = {
    "dataset_text_field": "Text alone has no completion: name its columns with data.converter_args.prompt_key and completion_key.",
    "dataset_kwargs": "Rows are read by data.converter_args.",
    **dict.fromkeys(("packing", "packing_strategy", "eval_packing"), PACKED),
    "assistant_only_loss": "All tokens of a completion are learnt, those of users and tools between its answers too.",
    "shuffle_dataset": "Rows come as train_sampling_strategy says, in TRL too.",
    "neftune_noise_alpha": "Embeddings get no noise.",
    "label_smoothing_factor": "The loss is the mean negative logprob of the tokens that are there.",
    "prediction_loss_only": "Evaluation logs the loss.",
    "remove_unused_columns": "Columns that the converter does not name are not read.",
}
DEFAULTS_OF_SFT: dict[str, Any] = {
    **{"dataset_text_field": "text", "packing": False, "packing_strategy": "bfd", "assistant_only_loss": False},
    **{"eval_packing": None, "dataset_kwargs": None, "shuffle_dataset": False, "label_smoothing_factor": 0.0},
    **{"neftune_noise_alpha": None, "prediction_loss_only": False, "remove_unused_columns": True},
}
"""Which ask for nothing."""
OF_DPO: dict[str, str] = {
    "loss_weights": "There is one loss. A sum of several is a subclass of PreferenceLoss, named in model.loss_type.",
    "ld_alpha": "All tokens of a completion weigh the same.",
    "f_divergence_type": "Rewards are log ratios: reverse_kl.",
    "f_alpha_divergence_coef": "See f_divergence_type.",
    "use_weighting": "Pairs weigh the same.",
    "discopop_tau": "The loss discopop is not here.",
}


@dataclass(frozen=True)
class Stage:
    """One of TRL's trainers in our words."""

    converter: str
    same: tuple[str, ...]
    """Settings of ``model.*`` of the same name and meaning."""
    refused: dict[str, str] = field(default_factory=dict)
    implied: dict[str, Any] = field(default_factory=dict)
    harmless: dict[str, Any] = field(default_factory=dict)
    """Values of refused settings that ask for nothing."""


STAGES = {
    "sft": Stage(
        "sft",
        (BALANCE,),
        OF_SFT,
        {"max_length": 1024, "loss_type": "nll", "learning_rate": 2e-5},
        DEFAULTS_OF_SFT,
    ),
    "dpo": Stage(
        "dpo", (*REFERENCE, BALANCE), OF_DPO, {"max_length": 1024, "loss_type": "sigmoid", "learning_rate": 1e-6}
    ),
    "kto": Stage(
        "kto",
        (*REFERENCE, BALANCE, "desirable_weight", "undesirable_weight"),
        implied={
            "max_length": 1024,
            "loss_type": "kto",
            "learning_rate": 1e-6,
            "train_sampling_strategy": "sequential",
        },
    ),
    "reward": Stage(
        "dpo",
        ("center_rewards_coefficient", "max_length"),
        {BALANCE: "The auxiliary loss for mixtures of experts is not part of a reward model's step."},
        implied={"max_length": 1024, "learning_rate": 1e-4},
    ),
}
LOSSES = {"dpo": ("sigmoid", "hinge", "ipo", "robust", "sigmoid_norm"), "kto": ("kto", "apo_zero_unpaired")}
"""TRL's that are here, under the same names."""


def migrate_stage(
    name: str, settings: dict[str, Any], devices: int | None = None, total_steps: int | None = None
) -> Migration:
    """A config of TRL 1.16's for another stage than GRPO, in our keys.

    Args:
        name: A key of ``STAGES``.
        settings: Their flat keys.
        devices: Processes that the run was made for; by default num_processes, where that is among the settings, else 1.
        total_steps: Optimizer steps of the run, for shares of the run; by default max_steps.

    Returns:
        Every key of ``settings`` is in ``mapped`` or in ``refused``, or in both where only a part fits.
    """
    stage = STAGES[name]
    current, written, overridden = with_current_names(settings)
    processes = processes_of(current, devices)
    migration = Migration(IMPLIED | stage.implied | current, dict(settings), written, processes, total_steps)
    migration.refused.update(overridden)
    _compose_batches(migration, name)
    compose_order(migration)
    for key, value in migration.source.items():
        _place(migration, stage, key, value)
    for compose in (
        compose_policy,
        compose_data,
        compose_optimizer,
        compose_schedule,
        compose_length,
        compose_strategy,
    ):
        compose(migration)
    for compose in (compose_logging, compose_checkpoints, compose_evaluation):
        compose(migration)
    for target in SAMPLED:
        migration.config.pop(target, None)
    if name == "sft":
        _compose_imitation(migration)
    elif name != "reward":
        _compose_loss(migration, name)
    if name != "sft":  # where TRL leaves dropout on
        _compose_dropout(migration)
    migration.config.setdefault("data.converter", stage.converter)
    for key in settings:
        if key not in migration.mapped and key not in migration.refused:
            migration.refused[key] = (
                f"It has no place in this stage, which samples nothing, or is unknown to TRL's {name} trainer."
            )
    migration.notes.insert(0, "What is left out has the defaults of TRL 1.16.")
    return migration


def _place(m: Migration, stage: Stage, key: str, value: Any) -> None:
    if key in stage.same:
        if value is not None:
            m.put(f"model.{key}", value, key)
        m.needs_nothing(key)
    elif key in stage.harmless and value == stage.harmless[key]:
        m.needs_nothing(key)
    elif key in stage.refused or key in COMMON:
        m.refuse(key, (stage.refused | COMMON)[key])
    elif key in SAME and (key in EVERY_STAGE or not SAME[key].startswith("model.")):
        m.put(SAME[key], value, key)
    elif key in HARMLESS and value == HARMLESS[key]:
        m.needs_nothing(key)
    elif key in REFUSED and key not in COMPOSED:
        m.refuse(key, REFUSED[key])


def _compose_batches(m: Migration, name: str) -> None:
    """Rows of an optimizer step, which is one batch here."""
    keys = "per_device_train_batch_size", "gradient_accumulation_steps"
    at_once, passes = int(m.get(keys[0])), int(m.get(keys[1]) or 1)
    m.put("data.batch_size", at_once * passes, *keys)
    if name == "kto" and passes > 1:
        m.say(
            keys[1],
            f"TRL estimates KTO's KL divergence from {at_once} rows at a time; here it is one of the whole step.",
        )
    if m.get("per_device_eval_batch_size"):
        m.put("data.eval_batch_size", int(m.get("per_device_eval_batch_size")), "per_device_eval_batch_size")


def _compose_length_of_completions(m: Migration) -> None:
    m.put("model.max_completion_length", int(m.get("max_length") or 2048), "max_length")
    m.say(
        "max_length",
        "It bounds completions alone here; data.max_prompt_length bounds prompts."
        if m.get("max_length")
        else "Nothing is cut off in TRL then; here completions of more than 2048 tokens lose their end. Raise the number.",
    )


def _compose_imitation(m: Migration) -> None:
    _compose_length_of_completions(m)
    if m.get("loss_type") not in ("nll", "chunked_nll"):
        m.refuse("loss_type", "The loss is the mean negative logprob, nll.")
    if m.get("completion_only_loss") is False:
        m.refuse("completion_only_loss", "Completions alone are learnt.")
    m.needs_nothing("loss_type", "completion_only_loss")
    m.notes.append(
        "Rows of messages are read with data.converter_args.messages_key=messages. TRL learns every token of them, here the last "
        "answer alone is learnt."
    )


def _compose_loss(m: Migration, name: str) -> None:
    _compose_length_of_completions(m)
    given = m.get("loss_type")
    losses = [given] if isinstance(given, str) else list(given)
    known = [loss for loss in losses if loss in LOSSES[name]]
    loss = (known or [LOSSES[name][0]])[0]
    m.put("model.loss_type", loss, "loss_type")
    if losses != [loss]:
        m.refuse("loss_type", f"Written: {loss}. There is one loss, of {', '.join(LOSSES[name])}.")
    if name == "dpo" and m.get("label_smoothing"):
        if loss == "robust":
            m.put("model.label_smoothing", float(m.get("label_smoothing")), "label_smoothing")
        else:
            m.refuse("label_smoothing", f"It has no effect on {loss}, as in TRL.")
    m.needs_nothing("label_smoothing")


def _compose_dropout(m: Migration) -> None:
    """TRL turns every dropout off unless it is told otherwise, LoRA's too."""
    has_adapters = m.config.get("model.finetuning_type", "full") != "full"
    if m.get("disable_dropout", True) and has_adapters:
        m.put("model.lora_dropout", 0.0, "disable_dropout")
    m.needs_nothing("disable_dropout")
