"""What tells about a run must not end it: a diagnostic that cannot be written is reported and left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from grpo_lightning.errors import ExplainedError, to_write

_reported: set[str] = set()


@contextmanager
def skipped_if_not_written(path: Path | str) -> Iterator[None]:
    """Turns a failed write into a warning, once for each folder: a full disk stays full for many steps."""
    try:
        yield
    except OSError as error:
        folder = str(Path(path).parent)
        if folder not in _reported:
            _reported.add(folder)
            rank_zero_warn(
                f"{path} could not be written ({error}) and is left out; training goes on. "
                f"{to_write(error, f'Free disk space, or make {folder} writable')}. Further files there are left out without a "
                "word."
            )


@contextmanager
def removed_on_error(part: Path) -> Iterator[None]:
    """Leaves no half-written file behind."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def not_begun(path: Path | str, error: OSError) -> ExplainedError:
    """The error of a command that cannot write where it would log: the system's names no file where a disk is full."""
    return ExplainedError(
        f"{path} could not be written ({error}). "
        f"{to_write(error, 'Free disk space, or set a trainer.default_root_dir that can be written')}; "
        "checkpoints of this one are then named by their paths, not as last or best."
    )


class LenientCSVLogger(CSVLogger):
    """CSVLogger whose lines wait in memory while the disk is full, in a folder that no other process takes."""

    def _get_next_version(self) -> int:
        """The next number, its folder made: ``validate`` and ``fit`` that start together would both take a free one."""
        number = super()._get_next_version()
        if getattr(rank_zero_only, "rank", 0) != 0:
            return number
        while True:
            try:
                Path(self.root_dir, f"version_{number}").mkdir(parents=True)
                return number
            except FileExistsError:
                number += 1
            except OSError:  # the first line that cannot be written says so
                return number

    @property
    def experiment(self) -> Any:
        """As CSVLogger, which makes its folder with it.

        Raises:
            ExplainedError: If it cannot be made.
        """
        try:
            return super().experiment
        except OSError as error:
            raise not_begun(self.log_dir, error) from error

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """As CSVLogger."""
        with skipped_if_not_written(f"{self.log_dir}/hparams.yaml"):
            super().log_hyperparams(*args, **kwargs)

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """As CSVLogger."""
        with skipped_if_not_written(f"{self.log_dir}/metrics.csv"):
            super().log_metrics(*args, **kwargs)

    def save(self) -> None:
        """As CSVLogger."""
        with skipped_if_not_written(f"{self.log_dir}/metrics.csv"):
            super().save()


class LenientTensorBoardLogger(TensorBoardLogger):
    """TensorBoardLogger that a full disk ends, and not the run."""

    beside: Logger | None = None
    """Whose version it takes."""

    def _get_next_version(self) -> int:
        """That of the logger beside it, taken once somebody asks: a run that is refused leaves no folder."""
        number: Any = super()._get_next_version() if self.beside is None else self.beside.version
        return cast("int", number)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """As TensorBoardLogger."""
        with skipped_if_not_written(f"{self.log_dir}/events"):
            super().log_hyperparams(*args, **kwargs)

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """As TensorBoardLogger."""
        with skipped_if_not_written(f"{self.log_dir}/events"):
            try:
                super().log_metrics(*args, **kwargs)
            except ValueError as error:  # what Lightning makes of any error, such as that the folder is gone
                raise error.__cause__ if isinstance(error.__cause__, OSError) else error from None

    def save(self) -> None:
        """As TensorBoardLogger."""
        with skipped_if_not_written(f"{self.log_dir}/events"):
            super().save()

    def finalize(self, status: str) -> None:
        """As TensorBoardLogger."""
        with skipped_if_not_written(f"{self.log_dir}/events"):
            super().finalize(status)
