"""Every value of report_to arrives as a logger that our parser takes, or with what to do instead."""

from __future__ import annotations

import pytest
from parsed_config import BASE, written
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from grpo_lightning.migration import migrate
from grpo_lightning.migration.compose.logs import LOGGERS, WITHOUT

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


def test_every_integration_of_transformers_is_known():
    assert set(INTEGRATION_TO_CALLBACK) <= LOGGERS.keys() | WITHOUT.keys()
    assert not LOGGERS.keys() & WITHOUT.keys()


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_is_named_with_project_and_run(name, tmp_path):
    result = migrate(BASE | {"report_to": [name], "run_name": "one", "project": "p"})
    (logger,) = result.config["trainer.logger"]
    assert logger["class_path"] == LOGGERS[name]
    given = {**logger["init_args"], **logger.get("dict_kwargs", {})}
    assert given[{"mlflow": "run_name"}.get(name, "name")] == "one"
    assert given.get("project") == (None if name in ("mlflow", "tensorboard") else "p")
    assert ("project" in result.refused) == (name in ("mlflow", "tensorboard"))
    (parsed,) = written(BASE | {"report_to": [name], "run_name": "one"}, tmp_path).trainer.logger
    assert parsed.class_path == LOGGERS[name]


def test_trackio_keeps_its_space_and_says_so_where_it_is_not_used():
    names = {"project": "p", "run_name": "one", "trackio_space_id": "me/space", "trackio_bucket_id": "me/bucket"}
    result = migrate(BASE | names | {"report_to": "trackio"})
    assert result.config["trainer.logger"] == [
        {
            "class_path": "grpo_lightning.trackers.TrackioLogger",
            "init_args": {"name": "one", "project": "p", "space_id": "me/space"},
            "dict_kwargs": {"bucket_id": "me/bucket"},
        }
    ]
    assert not result.refused
    other = migrate(BASE | names | {"report_to": "tensorboard"}).refused
    assert other["trackio_space_id"] == "It belongs to trackio, and report_to names none of these."


def test_what_one_of_several_loggers_takes_is_not_refused_for_the_others():
    result = migrate(BASE | {"report_to": ["tensorboard", "wandb"], "project": "p"})
    assert "project" not in result.refused and result.mapped["project"] == ["trainer.logger"]


@pytest.mark.parametrize("name", [*WITHOUT, "tensorbord"])
def test_a_tracker_without_a_logger_is_refused_with_what_to_do(name):
    result = migrate(BASE | {"report_to": name})
    assert result.refused["report_to"] == WITHOUT.get(
        name, "tensorbord is no tracker that transformers knows: name a logger's class path in trainer.logger."
    )
    assert "trainer.logger" not in result.config
