"""The end of a rank whose parent, the first rank, ends before the two are connected.

From then on ``RankWatch`` notices. Until then a rank would look for the first one for as long as the time limit of the
process group, half an hour.
"""

from __future__ import annotations

import os
import threading

POLL_SECONDS = 0.5
_is_met = threading.Event()


def end_with_parent(parent: int) -> None:
    """Ends this process without a word soon after its parent, until ``met`` is called.

    Args:
        parent: Its process id.
    """
    threading.Thread(target=_watch, args=(parent,), name="first-rank", daemon=True).start()


def met() -> None:
    """From here on others notice the end of the first rank."""
    _is_met.set()


def _watch(parent: int) -> None:
    while not _is_met.wait(POLL_SECONDS):
        if os.getppid() != parent:
            os._exit(1)  # what there is to say is the first rank's
