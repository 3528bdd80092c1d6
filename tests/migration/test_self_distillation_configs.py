"""Configs of TRL's SDPO and SDFT trainers, as fit reads them."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from parsed_config import parse
from trl.experimental.sdft import SDFTConfig
from trl.experimental.sdpo import SDPOConfig

from grpo_lightning.commands.migrate import main
from grpo_lightning.migration import migrate_self_distillation
from grpo_lightning.migration.self_distillation import SELF_DISTILLATION

TRAINERS = {"sdpo": SDPOConfig, "sdft": SDFTConfig}
BASE = {"model_name_or_path": "some/model", "dataset_name": "some/prompts", "max_steps": 100}
WITH_REWARD = BASE | {"reward_funcs": "accuracy_reward"}
SHOWN = "{prompt}\nCorrect solution:\n\n{successful_attempt}\n\n\n\nCorrectly solve the original question.\n"


def defaults_of(trainer: str) -> dict:
    return {
        f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        for f in dataclasses.fields(TRAINERS[trainer])
        if f.init and not f.default is f.default_factory is dataclasses.MISSING
    }


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_field_of_trl_is_placed_or_refused_with_its_reason(trainer):
    defaults = defaults_of(trainer)
    assert {name: defaults[name] for name in SELF_DISTILLATION[trainer]} == SELF_DISTILLATION[trainer]
    result = migrate_self_distillation(trainer, defaults | BASE)
    assert set(result.mapped) | set(result.refused) >= set(defaults)
    assert [key for key, reason in result.refused.items() if reason.startswith("Unknown")] == []


def parsed(tmp_path, trainer: str, settings: dict):
    (tmp_path / "new.yaml").write_text(migrate_self_distillation(trainer, settings).to_yaml("a test"))
    return parse(tmp_path / "new.yaml")


def test_sdpo_by_default_is_a_slow_self_that_is_shown_what_succeeded(tmp_path):
    model = parsed(tmp_path, "sdpo", WITH_REWARD).model
    taught = model.distillation
    assert (taught.teacher, taught.divergence, taught.top_k, taught.is_clip) == (
        "reference",
        "sampled_token",
        None,
        None,
    )
    assert taught.teacher_prompt == SHOWN and taught.success_reward_threshold is None
    assert (model.sync_ref_model, model.ref_model_mixup_alpha, model.ref_model_sync_steps) == (True, 0.05, 1)
    assert model.reward_weights == [0.0] and model.max_completion_length == 256 and model.num_generations == 8


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"num_iterations": 2}, {"is_clip": 2.0}),
        ({"num_iterations": 2, "distillation_is_clip": None}, {"is_clip": None}),
        ({"teacher_model_kind": "live"}, {"teacher": "self"}),
        ({"success_reward_threshold": 0.5}, {"success_reward_threshold": 0.5}),
        ({"distillation_mode": "full_logits", "distillation_alpha": 0.0}, {"divergence": "forward_kl"}),
        ({"distillation_mode": "topk_logits", "distillation_topk": 7}, {"divergence": "reverse_kl", "top_k": 7}),
        ({"distillation_weight": 0.75}, {"weight": 3.0}),
        (
            {
                "include_environment_feedback": True,
                "use_successful_as_teacher": False,
                "feedback_template": " {feedback_raw}",
            },
            {"teacher_prompt": "{prompt} {privileged_context}\n\nCorrectly solve the original question.\n"},
        ),
    ],
)
def test_what_sdpo_is_told_has_its_place(tmp_path, settings, found):
    model = parsed(tmp_path, "sdpo", WITH_REWARD | settings).model
    assert {name: getattr(model.distillation, name) for name in found} == found
    assert (model.reward_weights == [0.0]) == ("distillation_weight" not in settings)
    assert model.sync_ref_model == ("teacher_model_kind" not in settings)


def test_sdft_is_the_start_of_training_that_reads_a_column(tmp_path):
    model = parsed(tmp_path, "sdft", BASE).model
    taught = model.distillation
    assert (taught.teacher, taught.divergence, taught.top_k) == ("reference", "jsd", 100)
    assert taught.teacher_prompt == "{prompt}\n\n{privileged_context}" and not model.sync_ref_model


@pytest.mark.parametrize(
    ("trainer", "settings", "reason"),
    [
        ("sdpo", {"distillation_weight": 0.5}, "The loss is 2 times TRL's"),
        ("sdpo", {"distillation_weight": 0.0}, "migrate with --trainer grpo"),
        ("sdpo", {"include_environment_feedback": True}, "a completion that lacks one of two things has no teacher"),
        ("sdpo", {"dont_reprompt_on_self_success": False}, "never itself"),
        ("sdpo", {"distillation_mode": "full_logits", "distillation_alpha": 0.3}, "Written: jsd"),
        ("sdft", {"num_loss_tokens_to_skip": 3}, "All tokens of a completion count"),
        ("sdft", {"generate_from_teacher": True}, "are for `sft`"),
        ("sdft", {"distillation_add_tail": False}, "always one more token here"),
    ],
)
def test_what_has_no_counterpart_is_said(trainer, settings, reason):
    result = migrate_self_distillation(trainer, BASE | settings)
    assert any(reason in each for each in (*result.lost().values(), *result.notes))


def test_the_command_writes_a_config_of_sdft(tmp_path):
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(BASE | {"teacher_model_kind": "live"}))
    assert main([str(tmp_path / "old.yaml"), "--trainer", "sdft", "--output", str(tmp_path / "new.yaml")]) == 0
    assert yaml.safe_load((tmp_path / "new.yaml").read_text())["model"]["distillation"]["teacher"] == "self"
