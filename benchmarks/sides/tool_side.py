"""One run of a side with a tool: ``python -m sides.tool_side {make,trl,grpo_lightning} WORKLOAD.json RECORD.json``.

Both sides run as in ``trl_side`` and ``our_side``, with the same environment class and the same reading of turns.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from sides import make_model
from sides.tool_watch import GenerationWatch
from sides.tool_workload import CHAT_TEMPLATE, Store, ToolWorkload, call_in_every_turn


def under_way(record: str | Path) -> Path:
    """Where a side that is not through its first step that counts says how far it is."""
    return Path(f"{record}.under_way")


def make(workload: ToolWorkload) -> None:
    """The model, with a chat template that knows tools."""
    make_model.CHAT_TEMPLATE = CHAT_TEMPLATE
    make_model.make_model(workload.shape, Path(workload.prompts), Path(workload.model), workload.mean_length)


def ours(workload: ToolWorkload, record: str) -> None:
    """This project: the class is ``model.environment``."""
    from grpo_lightning.rollouts.turns.settings import Turns
    from sides import our_side

    plain = our_side.measured_module

    def measured_module(clock: Any) -> Any:
        watch = GenerationWatch(workload, clock, under_way(record))

        class ToolModule(plain(clock)):  # type: ignore[misc]
            def make_source(self, settings: Any) -> Any:
                call_in_every_turn(self.policy.tokenizer, workload.turns)
                source = super().make_source(settings)
                source.generate = watch.watched(source.generate)
                return source

        return partial(ToolModule, environment=Store, turns=Turns(max_turns=workload.turns))

    our_side.measured_module = measured_module
    our_side.main(workload, record)


def trl(workload: ToolWorkload, record: str) -> None:
    """TRL: the class is ``environment_factory``; all of its ``_generate`` is generation, the calls of the tool too."""
    from sides import trl_side

    trainer, plain_tokenizer, wrap = trl_side.measured_trainer, trl_side.load_processing, trl_side.wrap_phases

    def wrap_phases(made: Any, clock: Any) -> None:
        wrap(made, clock)
        watch = GenerationWatch(workload, clock, under_way(record))
        made._generate = clock.timed("generate", watch.watched(made._generate))

    trl_side.measured_trainer = lambda clock: partial(trainer(clock), environment_factory=Store)  # type: ignore[assignment]
    trl_side.load_processing = lambda given: call_in_every_turn(plain_tokenizer(given), workload.turns)
    trl_side.wrap_phases = wrap_phases
    trl_side.main(workload, record)


def main(side: str, settings: Path, record: str) -> None:
    workload = ToolWorkload.load(settings)
    assert isinstance(workload, ToolWorkload)
    if side == "make":
        make(workload)
        return
    {"trl": trl, "grpo_lightning": ours}[side](workload, record)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
    sys.stdout.flush()
    os._exit(0)  # an engine in this process may hang at exit
