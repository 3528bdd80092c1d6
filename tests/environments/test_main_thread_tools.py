"""Tools that were written for the main thread, where TRL calls them."""

from __future__ import annotations

import asyncio

import pytest
import worlds

from grpo_lightning.environments import EnvironmentFault, open_episodes


def called(environment, tool):
    async def play():
        factory = open_episodes(environment=environment, deadline=10.0)
        episode = factory({})
        await episode.reset({})
        try:
            return await episode.call(tool, {})
        finally:
            await episode.close()
            await factory.close()

    return asyncio.run(play())


@pytest.mark.parametrize(
    ("tool", "way_out"),
    [
        ("work", "a class with isolation = 'process' it has a main thread"),
        ("wait", "Make it `async def` and await there"),
    ],
)
def test_what_a_thread_cannot_do_is_a_fault_that_says_the_way_out(tool, way_out):
    with pytest.raises(EnvironmentFault) as fault:
        called(worlds.Alarmed, tool)
    assert way_out in str(fault.value)


def test_a_process_of_its_own_has_signals():
    assert called(worlds.AlarmedApart, "work").content == "It took too long."
