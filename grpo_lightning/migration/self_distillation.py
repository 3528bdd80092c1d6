"""Configs of TRL's SDPOConfig and SDFTConfig, for ``fit`` with a policy that teaches itself."""

from __future__ import annotations

from typing import Any

from grpo_lightning.migration.distillation import OF_BETA, OF_THE_POLICY_LOSS
from grpo_lightning.migration.migrate import migrate_with_own
from grpo_lightning.migration.migration import Migration

DISTILLATION = "model.distillation"
COLUMN = "{privileged_context}"
"""TRL's column of what the teacher alone reads, as ``teacher_prompt`` names it."""
OWN: dict[str, Any] = {
    "distillation_mode": "sampled_token",
    "distillation_alpha": 1.0,
    "distillation_topk": None,
    "distillation_is_clip": 2.0,
    "distillation_add_tail": False,
    "teacher_model_kind": "ema",
    "teacher_update_rate": 0.05,
    "teacher_sync_steps": 1,
    "use_teacher_server": False,
}
"""What both have beside GRPOConfig's settings, with SDPO's defaults."""
OF_SDPO: dict[str, Any] = {
    "distillation_weight": 1.0,
    "use_successful_as_teacher": True,
    "success_reward_threshold": 1.0,
    "include_environment_feedback": False,
    "environment_feedback_only_without_solution": False,
    "reprompt_template": "{prompt}{solution}{feedback}\n\nCorrectly solve the original question.\n",
    "solution_template": "\nCorrect solution:\n\n{successful_previous_attempt}\n\n",
    "feedback_template": "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback_raw}\n\n",
    "dont_reprompt_on_self_success": True,
    "max_reprompt_len": 10240,
    "remove_thinking_from_demonstration": False,
    "diagnostics_warning_interval": 10,
    "diagnostics_flat_tolerance": 1e-8,
}
OF_SDFT: dict[str, Any] = {
    "distillation_mode": "topk_logits",
    "distillation_alpha": 0.5,
    "distillation_topk": 100,
    "teacher_model_kind": "base",
    "teacher_prompt_template": "{prompt}\n\n{privileged_context}",
    "generate_from_teacher": False,
    "num_loss_tokens_to_skip": 0,
}
REFUSED = {
    "use_teacher_server": "The policy teaches itself in this run; model.distillation.teacher may be the address of another one.",
    "max_reprompt_len": "What a teacher reads is bounded by the model's positions; longer ones teach nothing.",
    "dont_reprompt_on_self_success": "A completion is shown another one that succeeded, and never itself.",
    "remove_thinking_from_demonstration": "A completion is shown as it was sampled.",
    "diagnostics_warning_interval": "distillation/taught is logged, and callbacks watch a run that learns nothing.",
    "diagnostics_flat_tolerance": "See diagnostics_warning_interval.",
    "environment_feedback_only_without_solution": "Every completion is told the same kind of things.",
    "generate_from_teacher": "Completions are the policy's own; those of a teacher are for `sft`.",
    "num_loss_tokens_to_skip": "All tokens of a completion count.",
}
SAME_HERE = {"max_reprompt_len": 10240, "dont_reprompt_on_self_success": True}
"""Values of refused settings that need nothing."""


SELF_DISTILLATION = {"sdpo": OWN | OF_SDPO, "sdft": OWN | OF_SDFT}
"""TRL's trainers, with the settings that each has beside GRPOConfig's, and their defaults."""
IMPLIED = {"learning_rate": 5e-5, "max_completion_length": 256, "max_prompt_length": 512, "disable_dropout": True}
"""Their defaults, where they are not GRPOConfig's."""


def migrate_self_distillation(
    name: str, settings: dict[str, Any], devices: int | None = None, total_steps: int | None = None
) -> Migration:
    """A config of one of TRL 1.16's trainers for self-distillation, in our keys.

    Args:
        name: A key of ``SELF_DISTILLATION``.
        settings, devices, total_steps: See ``migrate_stage``.

    Returns:
        Every key of ``settings`` is in ``mapped`` or in ``refused``, or in both where only a part fits.
    """
    own = SELF_DISTILLATION[name]
    m = migrate_with_own(settings, own, IMPLIED, devices, total_steps)
    m.source = own | m.source
    _compose_teacher(m)
    _compose_loss(m)
    if name == "sdpo":
        _compose_weight(m)
        _compose_reprompt(m)
    else:
        _teach_alone(m)
        m.config["model.rewards"] = ["length"]
        m.notes.append("The reward is only watched.")
        m.put(f"{DISTILLATION}.teacher_prompt", str(m.get("teacher_prompt_template")), "teacher_prompt_template")
    for key, reason in REFUSED.items():
        if key in own and m.get(key) != SAME_HERE.get(key, own[key]):
            _tell(m, key, reason)
        m.needs_nothing(*({key} & own.keys()))
    return m


def _tell(m: Migration, key: str, reason: str) -> None:
    """As ``Migration.say``, also where the value is False or 0, which elsewhere means that a setting is off."""
    m.say(key, reason)
    if m.has(key) and not m.get(key):
        m.notes.append(f"{key}: {reason}")


def _compose_teacher(m: Migration) -> None:
    kind = m.get("teacher_model_kind")
    m.put(f"{DISTILLATION}.teacher", "self" if kind == "live" else "reference", "teacher_model_kind")
    if kind == "ema":
        m.put("model.sync_ref_model", True, "teacher_model_kind")
        m.put("model.ref_model_mixup_alpha", float(m.get("teacher_update_rate")), "teacher_update_rate")
        m.put("model.ref_model_sync_steps", int(m.get("teacher_sync_steps")), "teacher_sync_steps")
    m.needs_nothing("teacher_update_rate", "teacher_sync_steps")


def _compose_loss(m: Migration) -> None:
    mode, alpha = m.get("distillation_mode"), float(m.get("distillation_alpha"))
    nearest = min(OF_BETA, key=lambda known: abs(known - alpha))
    divergence = "sampled_token" if mode == "sampled_token" else OF_BETA[nearest]
    m.put(f"{DISTILLATION}.divergence", divergence, "distillation_mode", "distillation_alpha")
    if nearest != alpha:
        m.say("distillation_alpha", f"Written: {divergence}. There are 0 (forward_kl), 0.5 (jsd), 1 (reverse_kl).")
    if mode == "topk_logits":
        m.put(f"{DISTILLATION}.top_k", int(m.get("distillation_topk") or 100), "distillation_topk")
        m.say("distillation_topk", "The teacher's likeliest tokens are told apart here, the policy's in TRL.")
        if not m.get("distillation_add_tail"):
            _tell(m, "distillation_add_tail", "All other tokens are always one more token here.")
    m.needs_nothing("distillation_topk", "distillation_add_tail")
    updates = int(m.config.get("model.num_iterations") or 1) * int(m.config.get("model.num_minibatches") or 1)
    if m.get("distillation_is_clip") is not None and updates > 1:
        m.put(f"{DISTILLATION}.is_clip", float(m.get("distillation_is_clip")), "distillation_is_clip")
    m.needs_nothing("distillation_is_clip")
    m.notes.append("The divergence is averaged over tokens here, over completions in TRL.")


def _teach_alone(m: Migration) -> None:
    """No reward is learnt from: the policy loss has no settings then."""
    for key in OF_THE_POLICY_LOSS:
        m.config.pop(f"model.{key}", None)
    rewards = m.config.get("model.rewards")
    m.config["model.reward_weights"] = [0.0] * (len(rewards) if isinstance(rewards, list) else 1)


def _compose_weight(m: Migration) -> None:
    """TRL's loss is ``(1 - w) * policy + w * distillation``, ours ``policy + weight * distillation``."""
    share = float(m.get("distillation_weight"))
    if share >= 1:
        _teach_alone(m)
    elif share <= 0:
        _tell(m, "distillation_weight", "Without distillation this is GRPO: migrate with --trainer grpo.")
    else:
        m.put(f"{DISTILLATION}.weight", round(share / (1 - share), 6), "distillation_weight")
        m.say("distillation_weight", f"The loss is {1 / (1 - share):.4g} times TRL's; max_grad_norm acts on it.")
    m.needs_nothing("distillation_weight")
    if "model.rewards" not in m.config:
        m.notes.append("Still to be set, since the config does not say: model.rewards, of which one finds success.")


def _compose_reprompt(m: Migration) -> None:
    """One text out of TRL's three templates."""
    shows_solution, shows_feedback = (
        bool(m.get("use_successful_as_teacher")),
        bool(m.get("include_environment_feedback")),
    )
    if shows_solution and shows_feedback:
        m.refuse("include_environment_feedback", "Left out: a completion that lacks one of two things has no teacher.")
        shows_feedback = False
    solution = str(m.get("solution_template")).replace("{successful_previous_attempt}", "{successful_attempt}")
    feedback = str(m.get("feedback_template")).replace("{feedback_raw}", COLUMN)
    text = str(m.get("reprompt_template")).replace("{solution}", solution if shows_solution else "")
    target = f"{DISTILLATION}.teacher_prompt"
    m.put(target, text.replace("{feedback}", feedback if shows_feedback else ""), "reprompt_template")
    for key, is_shown in (("solution_template", shows_solution), ("feedback_template", shows_feedback)):
        if is_shown:
            m.put(target, m.config[target], key)
        m.needs_nothing(key)
    if shows_solution and float(m.get("success_reward_threshold")) != 1.0:
        m.put(
            f"{DISTILLATION}.success_reward_threshold",
            float(m.get("success_reward_threshold")),
            "success_reward_threshold",
        )
    if not (shows_solution or shows_feedback):
        m.refuse("use_successful_as_teacher", "A teacher that is told nothing has nothing to teach; name a column.")
    m.needs_nothing("success_reward_threshold", "use_successful_as_teacher", "include_environment_feedback")
