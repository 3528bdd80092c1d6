"""Which way an adapter takes to an engine: added there (hot), or merged into the weights that are sent (merge)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import Any, Literal, cast

from lightning.pytorch.utilities import rank_zero_info

from grpo_lightning.distributed.gather import gather_objects
from grpo_lightning.finetuning.adapters import hot_load_obstacle

Way = Literal["hot", "merge"]
LoraSync = Literal["hot", "merge", "auto"]
TRIAL: tuple[Way, ...] = ("hot",) * 4 + ("merge",) * 4
"""Ways of the first updates under auto. The first of each does not count: it sends the base, and meets cold caches."""


class AdapterRoute:
    """hot, merge, or auto: the way that needed fewer seconds for a sampled token, its update included.

    Neither way is always the faster one: a merged copy takes long to send where the model is large or the engine far
    away, and an adapter that the engine adds slows down every token. So auto takes each way for a few updates and keeps
    the one with the better best: what else happens on a machine only ever adds time. Clocks decide it, so two runs of
    the same seed may choose differently, and then differ by rounding.

    Args:
        setting: ``lora_sync``; None for hot where vLLM can load the adapter, else merge.
    """

    def __init__(self, setting: LoraSync | None) -> None:
        self.setting = setting
        self.way: Way = "merge"
        """Of the last update, and of the one to come until ``next_update``."""
        self.engine_adds_adapters = False
        """Whether the engine has to be built for adapters."""
        self._chosen: Way | None = None
        self._forget_trial()

    def _forget_trial(self) -> None:
        self._updates = 0
        self._is_first = True
        self._costs: dict[Way, float] = {}
        self._update_seconds: float | None = None

    def start(self, policy: Any, of_engine: str | None = None) -> None:
        """Gets ready for a policy.

        Args:
            policy: With an adapter or without.
            of_engine: Why the engine adds no adapters to this model, whatever they are like.

        Raises:
            ValueError: If the setting asks for what the policy's adapter, or the engine, does not allow.
        """
        obstacle = hot_load_obstacle(policy)
        if obstacle is not None:
            obstacle += ", which vLLM does not load as an adapter"
        obstacle = obstacle or of_engine
        if self.setting == "hot" and obstacle is not None:
            raise ValueError(f"model.generator.init_args.lora_sync=hot, but {obstacle}. Use lora_sync=merge, or null.")
        self.engine_adds_adapters = self.setting != "merge" and obstacle is None
        self.way = "hot" if self.engine_adds_adapters else "merge"
        if self.engine_adds_adapters and self.setting == "auto" and self._chosen is not None:
            self.way = self._chosen
        self._forget_trial()

    @property
    def is_hot(self) -> bool:
        """Whether the engine adds the adapter to its own copy of the base, rather than getting merged weights."""
        return self.way == "hot"

    @property
    def is_on_trial(self) -> bool:
        """Whether the ways are still being compared."""
        return self.setting == "auto" and self.engine_adds_adapters and self._chosen is None

    @contextmanager
    def update(self) -> Iterator[None]:
        """Around an update: sets its way, on all ranks together, and counts its time with what is sampled next."""
        started = time.perf_counter()
        self.next_update()
        yield
        self.updated(time.perf_counter() - started)

    def next_update(self) -> None:
        """Sets the way of the update to come; on all ranks together, which choose the same."""
        if self.is_on_trial and self._updates == len(TRIAL):
            self._choose()
        if self.is_on_trial:
            self.way = TRIAL[self._updates]
            self._is_first = self._updates == TRIAL.index(self.way)
            self._updates += 1

    def updated(self, seconds: float) -> None:
        """An update took so long; what is sampled next is sampled with it."""
        self._update_seconds = seconds

    def sampled(self, seconds: float, tokens: int) -> None:
        """A batch was sampled; only the first one after an update is counted, most often that of the step."""
        if self.is_on_trial and not self._is_first and self._update_seconds is not None and tokens:
            cost = (self._update_seconds + seconds) / tokens
            self._costs[self.way] = min(cost, self._costs.get(self.way, cost))
        self._update_seconds = None

    def _choose(self) -> None:
        complete = [costs for costs in gather_objects(self._costs) if len(costs) == len(set(TRIAL))]
        if not complete:  # nothing was sampled
            self._forget_trial()
            return
        costs = {way: fmean(costs[way] for costs in complete) for way in TRIAL}
        self.way = self._chosen = "hot" if costs["hot"] <= costs["merge"] else "merge"
        rank_zero_info(
            f"lora_sync=auto: {self.way} from now on. 1,000 tokens took {costs['hot'] * 1000:.3f} s hot and "
            f"{costs['merge'] * 1000:.3f} s merged, updates included. lora_sync={self.way} leaves the comparison out."
        )

    def state_dict(self) -> dict[str, Any]:
        """What auto has chosen, so that a resumed run samples as the run before."""
        return {} if self._chosen is None else {"lora_sync": self._chosen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Before ``start``. What is not there is measured again."""
        self._chosen = cast("Way | None", state.get("lora_sync"))
