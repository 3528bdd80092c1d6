"""Trackio, as a logger for Lightning's Trainer."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.logger import _convert_params, _flatten_dict
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from grpo_lightning.trackers.base import Table, Tracker

LEVELS = {"bad": "error", "warn": "warn", "info": "info"}


class TrackioLogger(Logger):
    """Logs to trackio: files on this machine, a Space on the hub, or a server of one's own.

    Args:
        project: Name of the project.
        name: Of the run; trackio makes one up otherwise.
        space_id: Space on the hub to write to; without it, nothing leaves this machine.
        resume: never, allow or must: whether a run of this name goes on.
        **options: Further arguments of ``trackio.init``, such as ``group`` or ``server_url``.

    Raises:
        ModuleNotFoundError: If trackio is not installed.
    """

    def __init__(
        self,
        project: str = "grpo_lightning",
        name: str | None = None,
        space_id: str | None = None,
        resume: str = "allow",
        **options: Any,
    ) -> None:
        super().__init__()
        try:
            import trackio  # noqa: F401
        except ImportError as error:
            raise ModuleNotFoundError(
                f"TrackioLogger needs trackio, which cannot be imported ({error}): pip install trackio."
            ) from error
        self._project, self._name = project, name
        self._options = {"space_id": space_id, "resume": resume, **options}
        self._config: dict[str, Any] = {}
        self._run: Any = None

    @property
    def name(self) -> str:
        """The project's."""
        return self._project

    @property
    def version(self) -> str | None:
        """The run's name; None before it has one."""
        return self._name if self._run is None else self._run.name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The ``trackio.Run``, which begins when it is first asked for."""
        if self._run is None:
            import trackio

            quiet: dict[str, Any] = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
            self._run = trackio.init(self._project, self._name, config=self._config, **(quiet | self._options))
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Adds to the run's config, flat; trackio sends it with the next metrics."""
        self._config |= {name: value for name, value in _flatten_dict(_convert_params(params)).items()}
        if self._run is not None:
            self._run.config.update(self._config)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Sends the metrics of a step."""
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Sends what is waiting and ends the run."""
        if self._run is not None:
            self._run.finish()
            self._run = None


class TrackioTracker(Tracker):
    """Config, tables and alerts of trackio's own."""

    def metadata(self, settings: dict[str, str], system: dict[str, Any]) -> None:
        """See Tracker."""
        self.logger.log_hyperparams({**settings, **{f"system.{name}": str(value) for name, value in system.items()}})

    def table(self, name: str, table: Table, step: int) -> None:
        """See Tracker."""
        import trackio

        self.logger.experiment.log({name: trackio.Table(columns=table.columns, data=table.rows)}, step=step)

    def alert(self, level: str, title: str, text: str, step: int) -> None:
        """See Tracker."""
        import trackio

        self.logger.experiment.alert(title, text, level=trackio.AlertLevel(LEVELS[level]), step=step)
