"""The process in which reasoning-gym makes tasks: reads an order from stdin, writes tasks to stdout, both pickled.

It is run as a file, so that it imports nothing but reasoning-gym.
"""

from __future__ import annotations

import os
import pickle
import random
import sys


def main() -> None:
    """Makes the tasks of one order: ``name``, ``settings`` with ``seed``, and ``count``."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # makers print
    from reasoning_gym.factory import create_dataset

    order = pickle.load(sys.stdin.buffer)
    maker = create_dataset(order["name"], **order["settings"])
    tasks = []
    for index in range(order["count"]):
        random.seed(f"{order['settings']['seed']} {index}")  # some makers draw from it beside their own
        tasks.append(maker[index])
    with answers:
        pickle.dump(tasks, answers)


if __name__ == "__main__":
    main()
