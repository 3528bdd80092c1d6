"""Messages of libraries that would send users the wrong way, or are no news; everything else stays."""

from __future__ import annotations

import logging
import warnings

import datasets
import transformers

NO_NEWS = ("GPU available:", "TPU available:", "HPU available:", "💡 Tip:", "`Trainer(")
"""How lines of Lightning begin that list accelerators which are not used, advertise, or repeat the config."""


def is_news(record: logging.LogRecord) -> bool:
    """Whether a log record says what a user of this run does not know."""
    return not record.getMessage().startswith(NO_NEWS)


def quiet() -> None:
    """Silences them in this process."""
    # The state after the step is the one to resume from: the next step starts there.
    warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")  # `sft` hands `fit` to it
    warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")  # EarlierRun minds it
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")  # Lightning's own
    warnings.filterwarnings("ignore", message="Total length of `(list|dict)` across ranks is zero")  # no eval_dataset
    # What is logged has been brought together from all ranks already.
    warnings.filterwarnings("ignore", message=r"It is recommended to use `self.log\(.*sync_dist=True")
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)  # the seed stands in the config
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(is_news)
    logging.getLogger("liger_kernel.backends.registry").setLevel(logging.ERROR)  # lists backends for other hardware
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
