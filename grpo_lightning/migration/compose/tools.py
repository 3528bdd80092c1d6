"""Tools, environments and rollout functions: arguments of TRL's GRPOTrainer, given to ``migrate`` by import path."""

from __future__ import annotations

from typing import Any

from grpo_lightning.migration.compose.rewards import split
from grpo_lightning.migration.migration import Migration

UNLIMITED = 999
"""Turns of a rollout that only its length ends, as in TRL without max_tool_calling_iterations."""
LIMIT = "max_tool_calling_iterations"


def compose_tools(m: Migration) -> None:
    """``--tools my.add,my.search --environment_factory my.Env``; what TRL does with exceptions and without a limit."""
    tools, environment = [str(tool) for tool in split(m.get("tools"))], m.get("environment_factory")
    if tools:
        m.put("model.tools", tools, "tools")
    if environment:
        m.put("model.environment", environment, "environment_factory")
        _add_reward(m, environment)
    if m.get("rollout_func"):
        m.put("model.rollout_func", m.get("rollout_func"), "rollout_func")
        m.notes.append(
            "model.rollout_func gets, as its trainer, what FunctionTrainer has (docs/environments.md): trainer.generate samples, "
            "and takes the place of TRL's generate_rollout_completions and vllm_generation."
        )
    m.needs_nothing("tools", "environment_factory", "rollout_func")
    limit = m.get(LIMIT)
    if not tools and not environment:
        if limit is not None:
            m.refuse(
                LIMIT, "It has no effect without tools. Give migrate --tools or --environment_factory, by import path."
            )
        m.needs_nothing(LIMIT)
        return
    m.put("model.turns.max_turns", UNLIMITED if limit is None else int(limit) + 1, LIMIT)
    m.put("model.turns.tool_exceptions", "tell", "tools", "environment_factory")


def _add_reward(m: Migration, environment: Any) -> None:
    """TRL takes ``get_reward`` for a further reward; without others there has to be one."""
    if "model.rewards" in m.config:
        m.notes.append(
            f"If {environment} has get_reward, TRL adds it with weight 1: add environment to model.rewards, and its weight 1 "
            "to model.reward_weights where those are set."
        )
    else:
        m.put("model.rewards", ["environment"], "environment_factory")
