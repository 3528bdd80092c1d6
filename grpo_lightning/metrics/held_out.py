"""What a round over held-out data says: the means of each of its datasets, under the names that are logged."""

from __future__ import annotations

from typing import Any

from grpo_lightning.metrics.evaluation import NamedMeans


class HeldOutMeans:
    """The means of each held-out dataset, by the number of its dataloader."""

    def __init__(self) -> None:
        self._of_dataset: dict[int, NamedMeans] = {}

    def start(self) -> None:
        """A round begins: nothing has been seen."""
        self._of_dataset = {}

    def of(self, number: int, empty: NamedMeans) -> NamedMeans:
        """Those of a dataset, to be updated.

        Args:
            number: Of its dataloader.
            empty: What they are before its first batch.
        """
        return self._of_dataset.setdefault(number, empty)

    def compute(self, stage: str, loaders: Any) -> dict[str, float]:
        """``<stage>/<name>`` of what was seen, or ``<stage>/<dataset>/<name>`` where there are several datasets.

        Args:
            stage: val or test.
            loaders: Of the round, by the name of their dataset where the data has names.

        Example:
            >>> means = HeldOutMeans()
            >>> means.of(1, NamedMeans(["loss"])).update({"loss": [2.0, 4.0]})
            >>> means.compute("val", {"easy": ..., "hard": ...}), means.compute("test", ...)
            ({'val/hard/loss': 3.0}, {'test/loss': 3.0})
        """
        names = list(loaders) if isinstance(loaders, dict) else []
        numbers: dict[str, float] = {}
        for number, means in self._of_dataset.items():
            prefix = f"{stage}/{names[number]}" if len(names) > 1 else stage
            numbers |= {f"{prefix}/{name}": value for name, value in means.compute().items()}
        return numbers
