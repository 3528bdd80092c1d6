"""Each tracker is the real package, writing offline; what it wrote is read from its files."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from runs import fit

from grpo_lightning.callbacks.tracking import Tracking
from grpo_lightning.trackers import Table, TrackioLogger, tracker_of

SETTINGS = {"model": {"beta": 0.25, "rewards": ["share_of_digits"]}}
TABLE = Table(["prompt", "reward"], [["<b>1 + 1?</b>", 0.5], ["a|b", None]])


def tell(logger: Any) -> None:
    """Sends one of everything to a logger's tracker."""
    tracker = tracker_of(logger)
    assert tracker is not None
    tracker.metadata({"model.beta": "0.25"}, {"python": "3.11", "gpus": []})
    logger.log_metrics({"reward": 0.75}, step=3)
    tracker.table("completions", TABLE, 3)
    tracker.alert("warn", "Dead groups", "99% of the groups taught nothing.", 3)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {
        "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path), "WANDB_CACHE_DIR": str(tmp_path / "cache"),
        "WANDB_DATA_DIR": str(tmp_path / "data"), "COMET_OFFLINE_DIRECTORY": str(tmp_path), "COMET_LOGGING_CONSOLE": "ERROR",
        "COMET_DISABLE_AUTO_LOGGING": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def test_weights_and_biases_gets_table_alert_and_config(tmp_path):
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    logger = WandbLogger(project="p", save_dir=tmp_path, offline=True)
    tell(logger)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    wandb.finish()
    wandb.teardown()  # its process writes what is left when it ends
    (file,) = (folder / "files" / "media" / "table").glob("completions*.json")
    table = json.loads(file.read_text())
    assert table["columns"] == TABLE.columns and table["data"] == TABLE.rows
    (log,) = folder.glob("*.wandb")
    written = log.read_bytes()
    assert b"Dead groups" in written and b"99% of the groups" in written
    assert b"model.beta" in written and b"0.25" in written


def test_mlflow_gets_table_notice_parameters_and_metrics(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    address = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)  # which the logger sets, and other tests would read
    logger = MLFlowLogger("p", tracking_uri=address)
    tell(logger)
    run = mlflow.MlflowClient(address).get_run(logger.run_id)
    assert run.data.params["model.beta"] == "0.25" and run.data.metrics["reward"] == 0.75
    assert run.data.tags["notice.Dead groups"] == "warn, step 3: 99% of the groups taught nothing."
    assert run.data.tags["system.python"] == "3.11"
    (file,) = (tmp_path / "mlruns").rglob("completions.json")
    table = json.loads(file.read_text())
    assert table["columns"] == TABLE.columns and table["data"] == TABLE.rows


def test_comet_gets_table_notice_parameters_and_metrics(tmp_path):
    comet_ml = pytest.importorskip("comet_ml")
    from lightning.pytorch.loggers import CometLogger

    offline = {"online": False, "project": "p", "api_key": "0" * 25}
    logger = CometLogger(**offline)
    # Lightning disables an experiment that is offline, so that it would write nothing at all.
    settings = comet_ml.ExperimentConfig(offline_directory=str(tmp_path), log_code=False, log_git_metadata=False)
    logger._experiment = comet_ml.start(**offline, experiment_config=settings)
    tell(logger)
    logger.experiment.end()
    (archive,) = tmp_path.glob("*.zip")
    with zipfile.ZipFile(archive) as files:
        messages = files.read("messages.json").decode()
        table = next(
            text
            for name in files.namelist()
            if (text := files.read(name).decode("utf-8", "replace")).startswith("prompt")
        )
    assert list(csv.reader(io.StringIO(table)))[:2] == [["prompt", "reward"], ["<b>1 + 1?</b>", "0.5"]]
    for said in ("model.beta", "notice: Dead groups", "99% of the groups", "reward", "0.75"):
        assert said in messages


def test_tensorboard_shows_the_table_as_text_that_opens_no_tag(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="", version="")
    tell(logger)
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = events.Tags()["tensors"]
    text = {
        tag.removesuffix("/text_summary"): events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags
    }
    assert "| &lt;b&gt;1 + 1?&lt;/b&gt; | 0.5 |" in text["completions"] and "a&#124;b" in text["completions"]
    assert text["notices"] == "**Dead groups** (warn): 99% of the groups taught nothing."
    assert "| model.beta | 0.25 |" in text["config"]


@pytest.fixture
def trackio_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trackio's storage, in a folder of the test's own."""
    pytest.importorskip("trackio")
    from trackio import sqlite_storage, utils

    for module in (sqlite_storage, utils):
        for name in ("TRACKIO_DIR", "MEDIA_DIR"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, tmp_path / name)
    return sqlite_storage.SQLiteStorage


def test_trackio_is_a_logger_of_lightnings_with_table_alert_and_config(trackio_files):
    logger = TrackioLogger("p", "first")
    tell(logger)
    logger.finalize("success")
    rows = trackio_files.get_logs("p", "first")
    assert [row["reward"] for row in rows if "reward" in row] == [0.75] and {row["step"] for row in rows} == {3}
    (table,) = [row["completions"] for row in rows if "completions" in row]
    assert [list(row.values()) for row in table["_value"]] == TABLE.rows
    (alert,) = trackio_files.get_alerts("p", "first")
    assert (alert["title"], alert["level"], alert["step"]) == ("Dead groups", "warn", 3)
    config = trackio_files.get_run_config("p", "first")
    assert config["model.beta"] == "0.25" and config["system.python"] == "3.11"


def test_a_run_sends_its_completions_notices_and_settings(tiny_model_dir, tmp_path, trackio_files):
    logger = TrackioLogger("p", "run")
    callback = Tracking(SETTINGS, every_n_steps=2, max_rows=4)
    fit(
        tiny_model_dir,
        tmp_path,
        max_steps=3,
        trainer={"logger": [logger], "callbacks": [callback], "log_every_n_steps": 1},
    )
    rows = trackio_files.get_logs("p", "run")
    tables = {row["step"]: row["completions"]["_value"] for row in rows if "completions" in row}
    assert sorted(tables) == [0, 2]
    assert all(0 < len(table) <= 4 for table in tables.values())
    assert {"prompt", "completion", "reward", "advantage", "rewards/share_of_digits"} <= set(tables[0][0])
    assert sum("step_time" in row for row in rows) == 3
    assert trackio_files.get_run_config("p", "run")["model.beta"] == "0.25"
    assert len({alert["title"] for alert in trackio_files.get_alerts("p", "run")}) == len(
        trackio_files.get_alerts("p", "run")
    )


def test_a_tracker_that_fails_is_said_once_and_training_goes_on(tiny_model_dir, tmp_path):
    class BrokenLogger(CSVLogger):
        pass

    class TensorBoardLogger(BrokenLogger):  # its experiment has no add_text
        pass

    logger = TensorBoardLogger(tmp_path, name="logs")
    with pytest.warns(UserWarning, match="TensorBoardLogger could not be sent the run's metadata .*curves only"):
        module = fit(
            tiny_model_dir, tmp_path, max_steps=2, trainer={"logger": logger, "callbacks": [Tracking(every_n_steps=1)]}
        )
    assert module is not None
    assert tracker_of(CSVLogger(tmp_path)) is None


def test_a_chosen_logger_keeps_csv_and_tensorboard_beside_it(tmp_path, trackio_files):
    from grpo_lightning.commands.cli import with_own_loggers

    trackio = TrackioLogger("p")
    csv_logger, board, last = with_own_loggers(trackio, str(tmp_path))
    assert isinstance(csv_logger, CSVLogger) and isinstance(board, TensorBoardLogger) and last is trackio
    assert csv_logger.log_dir == board.log_dir == str(tmp_path / "logs" / "version_0")
    mine = CSVLogger(tmp_path, name="mine")
    assert with_own_loggers([trackio, mine], str(tmp_path))[0] is mine
    assert [type(logger).__name__ for logger in with_own_loggers(None, str(tmp_path))] == [
        "LenientCSVLogger",
        "LenientTensorBoardLogger",
    ]
