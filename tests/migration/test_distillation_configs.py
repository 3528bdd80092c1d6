"""Configs of TRL's distillation trainers, as fit reads them."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from parsed_config import parse
from trl import DistillationConfig
from trl.experimental.gkd import GKDConfig
from trl.experimental.server_distillation import ServerDistillationConfig

from grpo_lightning.commands.migrate import main
from grpo_lightning.migration import migrate_distillation

TRAINERS = {"gkd": GKDConfig, "distillation": DistillationConfig, "server_distillation": ServerDistillationConfig}
BASE = {
    "model_name_or_path": "some/model",
    "dataset_name": "some/prompts",
    "max_steps": 100,
    "teacher_model_name_or_path": "a/teacher",
}


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_field_of_trl_is_placed_or_refused_with_its_reason(trainer):
    defaults = {
        f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        for f in dataclasses.fields(TRAINERS[trainer])
        if f.init and not f.default is f.default_factory is dataclasses.MISSING
    }
    result = migrate_distillation(trainer, defaults | BASE)
    assert set(result.mapped) | set(result.refused) >= set(defaults)
    assert [key for key, reason in result.refused.items() if reason.startswith("Unknown")] == []


@pytest.mark.parametrize(
    ("trainer", "settings", "found"),
    [
        ("gkd", {}, ("jsd", None, 0.9, 128, 8)),
        ("gkd", {"beta": 0.0, "max_new_tokens": 50, "temperature": 1.0}, ("forward_kl", None, 1.0, 50, 8)),
        ("distillation", {"per_device_train_batch_size": 4}, ("reverse_kl", None, 1.0, 512, 4)),
        ("server_distillation", {"beta": 0.0, "loss_top_k": 8}, ("forward_kl", 8, 1.0, 512, 8)),
    ],
)
def test_a_migrated_config_is_a_run_of_fit(tmp_path, trainer, settings, found):
    (tmp_path / "new.yaml").write_text(migrate_distillation(trainer, BASE | settings).to_yaml("a test"))
    config = parse(tmp_path / "new.yaml")
    model, taught = config.model, config.model.distillation
    assert taught.teacher == "a/teacher" and model.reward_weights == [0.0] and model.num_generations == 2
    assert (
        taught.divergence,
        taught.top_k,
        model.temperature,
        model.max_completion_length,
        config.data.batch_size,
    ) == found
    assert model.beta == 0.0


def test_sampling_and_order_of_an_old_config_are_kept(tmp_path):
    old = BASE | {"min_p": 0.0, "train_sampling_strategy": "sequential", "shuffle": False}
    migrated = migrate_distillation("gkd", old)
    (tmp_path / "new.yaml").write_text(migrated.to_yaml("a test"))
    config = parse(tmp_path / "new.yaml")
    assert (config.model.min_p, config.data.shuffle) == (0.0, False)
    assert "shuffle" in migrated.off()


def test_the_rows_of_gkd_come_in_random_order_and_are_conversations(tmp_path):
    (tmp_path / "new.yaml").write_text(migrate_distillation("gkd", BASE).to_yaml("a test"))
    data = parse(tmp_path / "new.yaml").data
    assert data.shuffle and data.converter_args == {"prompt_key": "messages", "drop_solution": True}
    assert "shuffle_dataset" in migrate_distillation("gkd", BASE | {"shuffle_dataset": False}).off()


@pytest.mark.parametrize(
    ("trainer", "settings", "reason"),
    [
        ("gkd", {"lmbda": 0.5}, "Every step is on the policy's own completions"),
        ("gkd", {"beta": 0.4}, "Written: jsd, of beta 0.5"),
        ("gkd", {"temperature": 0.7}, "Sampled at 0.7 as in TRL, and compared with the teacher at that too"),
        ("gkd", {}, "TRL divides by those of the data's completions"),
        ("distillation", {"teacher_model_revision": "v2"}, "name its directory as the teacher"),
        (
            "distillation",
            {"teacher_model_init_kwargs": {"dtype": "bfloat16", "attn_implementation": "sdpa"}},
            "Only dtype",
        ),
        ("server_distillation", {"loss_add_tail": False}, "always one more token here"),
        ("distillation", {"epsilom": 0.1}, "Unknown"),
    ],
)
def test_what_has_no_counterpart_is_said(trainer, settings, reason):
    result = migrate_distillation(trainer, BASE | settings)
    assert any(reason in each for each in (*result.lost().values(), *result.notes))


def test_the_command_writes_a_teacher_on_a_server(tmp_path):
    old = {name: value for name, value in BASE.items() if not name.startswith("teacher")}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(old | {"teacher_model_server_url": "http://host:8000/"}))
    options = ["--trainer", "server_distillation", "--output", str(tmp_path / "new.yaml")]
    assert main([str(tmp_path / "old.yaml"), *options]) == 0
    taught = yaml.safe_load((tmp_path / "new.yaml").read_text())["model"]["distillation"]
    assert taught == {"teacher": "http://host:8000", "top_k": 1, "divergence": "reverse_kl"}
