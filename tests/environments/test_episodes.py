"""Tools and environments in every form that users write them in, and what happens when they misbehave."""

from __future__ import annotations

import asyncio
import random
import re
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import worlds

from grpo_lightning.environments import (
    EnvironmentContractError,
    EnvironmentFault,
    ToolMistake,
    behind_prompt,
    open_episodes,
)
from grpo_lightning.environments.forms import _classes

DEADLINE = 0.3


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    worlds.RELEASE.clear()
    yield
    worlds.RELEASE.set()


def run(coroutine):
    return asyncio.run(coroutine)


def opened(**settings):
    return open_episodes(**{"deadline": 5.0, **settings})


async def started(factory, **row):
    episode = factory(row)
    return episode, await episode.reset(row)


# ---- forms


def test_without_tools_and_environment_there_are_no_episodes():
    assert open_episodes() is None


@pytest.mark.parametrize("tool", [worlds.add, worlds.wait_and_add, "worlds.add", "worlds.wait_and_add"])
def test_a_typed_function_is_a_tool(tool):
    async def play():
        episode, first = await started(opened(tools=[tool]))
        return episode, first, await episode.call(episode.tools[0]["function"]["name"], '{"a": 2, "b": 40}')

    episode, first, result = run(play())
    assert first == [] and (result.content, result.mistake) == ("42", False)
    assert episode.tools[0]["function"]["parameters"]["required"] == ["a", "b"]
    assert run(episode.respond("text")) is None and run(episode.final_reward()) is None


def test_a_class_of_trl_runs_unchanged_and_is_kept_and_reset():
    async def play():
        factory = opened(environment="worlds.Counter", tools=[worlds.add])
        episode, first = await started(factory, start=3)
        said = await episode.call("increase", {"by": 4})
        reward = await episode.final_reward()
        await episode.close()
        looked_at = episode.environment
        other, _ = await started(factory, start=1)
        is_kept = looked_at.total == 7 and other.environment is not looked_at
        name = id(looked_at)
        del looked_at
        again, second = await started(factory)
        return episode, first, said, reward, second, again.environment, is_kept and id(again.environment) == name

    episode, first, said, reward, second, kept, is_reused_when_free = run(play())
    assert is_reused_when_free
    assert [tool["function"]["name"] for tool in episode.tools] == ["add", "increase"]
    assert first == [{"role": "user", "content": "The count is 3."}]
    assert (said.content, reward) == ("The count is 7.", 7.0)
    assert second[0]["content"] == "The count is 0." and isinstance(kept, worlds.Counter)


def test_step_answers_turns_of_text_with_a_reward_each_and_ends_the_episode():
    async def play():
        episode, first = await started(opened(environment=worlds.Guess), secret=7, ignored="column")
        return episode, first, await episode.respond("5"), episode.done, await episode.respond("7")

    episode, first, wrong, was_done, right = run(play())
    assert (first, episode.tools) == ([], [])
    assert (wrong, was_done) == ([{"role": "user", "content": "wrong"}], False)
    assert right[0]["content"] == "right" and episode.done and episode.rewards == [0.0, 1.0]


def test_rows_choose_among_several_classes_which_are_not_told_the_choice():
    class Told:
        def reset(self, **row):
            """Says what it was told."""
            return str(sorted(row))

    async def play():
        factory = opened(environment={"count": "worlds.Counter", "told": Told})
        said = (await started(factory, environment="told", level=1))[1]
        counting = (await started(factory, environment="count", start=2))[0]
        with pytest.raises(
            EnvironmentContractError, match=r"environment='chess', but model.environment has count, told"
        ):
            factory({"environment": "chess"})
        return said[0]["content"], counting.tools[0]["function"]["name"]

    assert run(play()) == ("['level']", "increase")


@pytest.mark.parametrize("limit", [{"init_args": {"shift": 3}}, {"shift": 3}])
def test_settings_of_an_environment_on_the_command_line_are_its_own(monkeypatch, limit):
    """`--model.environment.class_path worlds.Shelf --model.environment.init_args.shift 3` leaves the second form."""

    class Shelf(worlds.Library):
        def reset(self, **row):
            return None

    monkeypatch.setattr(worlds, "Shelf", Shelf, raising=False)
    (environment,) = _classes({"class_path": "worlds.Shelf", **limit}).values()
    assert environment.make().shift == 3


def test_settings_of_any_name_stand_under_init_args_and_named_ones_beside_it_too():
    made = _classes({"class_path": "worlds.Open", "init_args": {"size": 3, "level": 1}, "level": 2})[None].make()
    assert (made.level, made.further) == (2, {"size": 3})


def test_settings_reach_the_class_and_an_attribute_done_ends_the_episode():
    class Timed:
        def __init__(self, turns: int) -> None:
            self.turns = turns

        async def reset(self):
            """Starts."""
            self.done = False

        async def tick(self) -> str:
            """Lets a turn pass."""
            self.turns -= 1
            self.done = self.turns == 0
            return "tick"

        async def get_reward(self):
            """From a judge."""
            return True

    worlds.Timed = Timed

    async def play():
        episode, _ = await started(opened(environment={"class_path": "worlds.Timed", "init_args": {"turns": 2}}))
        ends = []
        for _ in range(2):
            await episode.call("tick", "")
            ends.append(episode.done)
        return ends, await episode.final_reward()

    assert run(play()) == ([False, True], 1.0)


def test_a_method_step_with_another_argument_is_a_tool_as_in_trl():
    class Trl:
        def reset(self, **row):
            """Starts."""

        def step(self, action: str) -> str:
            """Acts.

            Args:
                action: What to do.
            """
            return action.upper()

    async def play():
        episode, _ = await started(opened(environment=Trl))
        return await episode.respond("x"), (await episode.call("step", {"action": "go"})).content

    assert run(play()) == (None, "GO")


def test_an_observation_continues_the_last_message_of_the_prompt_as_in_trl():
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "Play. "}]
    joined = behind_prompt(prompt, [{"role": "user", "content": "Board"}])
    assert joined == [prompt[0], {"role": "user", "content": "Play. Board"}]
    assert prompt[1]["content"] == "Play. "


# ---- what is refused before a run


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tools": "worlds.sub"}, r"model.tools=worlds.sub names nothing.*worlds has add"),
        ({"tools": "nowhere.add"}, "there is no module 'nowhere'"),
        ({"tools": [lambda a: a]}, "cannot be a tool"),
        ({"tools": [worlds.add, "worlds.add"]}, "Two tools are called 'add'"),
        ({"environment": dict}, r"dict has no method reset"),
        (
            {"environment": {"class_path": "worlds.Counter", "arguments": {}}},
            r"model\.environment has arguments beside class_path, and worlds\.Counter names no such",
        ),
        (
            {"environment": {"class_path": "worlds.Open", "init_arg": {"size": 3}}},
            r"has init_arg beside class_path, and worlds\.Open names .*\(but level\).*under init_args",
        ),
        (
            {"environment": {"class_path": "worlds.Counter", "init_args": {"size": 3}}},
            "Its arguments are the init_args",
        ),
        ({"tools": worlds.add, "deadline": 0.0}, "leaves no time"),
        ({"tools": worlds.add, "output_limit": 0}, "output_limit=0"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(settings, message):
    with pytest.raises(EnvironmentContractError, match=message):
        open_episodes(**settings)


def test_a_column_that_reset_needs_stops_the_run():
    with pytest.raises(EnvironmentContractError, match=r"Guess\.reset needs secret, but the row has prompt"):
        run(started(opened(environment=worlds.Guess), prompt="p"))


# ---- the model's mistakes


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("sub", {}, "There is no tool 'sub'. The tools are: add."),
        ("add", '{"a": 1,', "The arguments of add are no JSON: .* It takes a \\(integer\\), b \\(integer\\)."),
        ("add", "[1, 2]", "The arguments of add are no JSON object but \\[1, 2\\]"),
        ("add", {"a": 1}, "add got wrong arguments?: 'b' is a required property|'b' is a required property"),
        ("add", {"a": 1, "b": "two"}, "'two' is not of type 'integer'"),
        ("add", {"a": 1, "b": 2, "c": 3}, "add has no argument 'c'"),
    ],
)
def test_a_mistake_of_the_model_is_told_to_it(name, arguments, told):
    async def play():
        episode, _ = await started(opened(tools=[worlds.add]))
        return await episode.call(name, arguments)

    result = run(play())
    assert result.mistake and re.search(told, result.content)


def test_a_tool_may_tell_the_model_itself_and_keeps_its_environment():
    class Strict:
        def reset(self):
            """Starts."""

        def look(self, page: int) -> str:
            """Opens a page.

            Args:
                page: Its number.
            """
            raise ToolMistake(f"There is no page {page}.")

    async def play():
        factory = opened(environment=Strict)
        episode, _ = await started(factory)
        result = await episode.call("look", {"page": 9})
        await episode.close()
        return result, len(factory.hosts[None].idle), dict(factory.faults)

    result, idle, faults = run(play())
    assert (result.content, result.mistake, idle) == ("There is no page 9.", True, 1)
    assert not any(faults.values())


# ---- faults: a tool that hangs, dies, floods, prints, raises, is not thread-safe; a reset that fails


@pytest.mark.parametrize("tool", [worlds.hang, worlds.hang_politely])
def test_a_tool_that_hangs_costs_its_own_rollout_alone(tool):
    async def play():
        factory = open_episodes(tools=[tool, worlds.add, worlds.wait_and_add], deadline=DEADLINE)
        episodes = [(await started(factory))[0] for _ in range(6)]
        hung = [episode.call(tool.__name__, {}) for episode in episodes[:2]]
        others = [
            episode.call(("add", "wait_and_add")[n % 2], {"a": n, "b": 1}) for n, episode in enumerate(episodes[2:])
        ]
        results = await asyncio.gather(*hung, *others, return_exceptions=True)
        during = dict(factory.faults)
        worlds.RELEASE.set()
        await asyncio.sleep(0.1)
        return results, during, dict(factory.faults)

    results, during, later = run(play())
    assert all(isinstance(result, EnvironmentFault) for result in results[:2])
    assert f"{tool.__name__} took more than 0.3 s and was given up" in str(results[0])
    assert [result.content for result in results[2:]] == ["1", "2", "3", "4"]
    assert during["time_outs"] == 2 and during["abandoned"] == (2 if tool is worlds.hang else 0)
    assert later["abandoned"] == 0


def test_later_calls_leave_a_loop_that_a_coroutine_blocks():
    async def play():
        factory = open_episodes(tools=[worlds.block, worlds.wait_and_add], deadline=DEADLINE)
        episode, _ = await started(factory)
        with pytest.raises(EnvironmentFault, match="block took more than"):
            await episode.call("block", {})
        for _ in range(40):
            await asyncio.sleep(0.1)
            if factory.faults["abandoned"]:  # the blocked loop was left
                break
        return (await episode.call("wait_and_add", {"a": 1, "b": 2})).content

    assert run(play()) == "3"


def test_what_floods_is_cut_and_the_model_is_told():
    async def play():
        return await (await started(opened(tools=[worlds.flood], output_limit=50)))[0].call("flood", {})

    assert run(play()).content == "x" * 50 + "\n[cut: the first 50 of 100000000 characters]"


def test_prints_stay_off_the_screen_and_those_of_others_do_not(capsys):
    async def play():
        factory = opened(tools=[worlds.chatter, worlds.wait_and_add])
        episode, _ = await started(factory)
        results = await asyncio.gather(episode.call("chatter", {}), episode.call("wait_and_add", {"a": 1, "b": 1}))
        print("the run's own")
        return results

    results = run(play())
    assert [result.content for result in results] == ["done", "2"]
    assert capsys.readouterr().out == "the run's own\n"
    assert type(sys.stdout).__name__ != "_Routed"


@pytest.mark.parametrize(("tool", "said"), [("fail", "no such page"), ("leave", r"SystemExit\(3\)")])
def test_a_tool_that_raises_is_a_fault_that_says_where_and_what_was_printed(tool, said):
    async def play():
        factory = opened(tools=[getattr(worlds, tool)])
        with pytest.raises(EnvironmentFault, match=said) as fault:
            await (await started(factory))[0].call(tool, {})
        return str(fault.value), factory.faults["exceptions"]

    text, count = run(play())
    assert count == 1 and text.startswith(f"{tool} raised:") and "worlds.py" in text
    assert tool != "fail" or text.endswith("It printed:\nabout to fail\n")


def test_exceptions_can_be_told_to_the_model_as_trl_does():
    async def play():
        factory = open_episodes(tools=[worlds.fail, worlds.hang], deadline=DEADLINE, tool_exceptions="tell")
        episode, _ = await started(factory)
        told = await episode.call("fail", {})
        with pytest.raises(EnvironmentFault, match="took more than"):
            await episode.call("hang", {})
        return told

    told = run(play())
    assert told.mistake and told.content == str({"error": "'no such page'"})


def test_a_reset_that_fails_for_one_row_costs_that_row_alone():
    async def play():
        factory = opened(environment="worlds.Counter")
        rows = [{"start": n, "broken": n == 1} for n in range(4)]
        results = await asyncio.gather(*(started(factory, **row) for row in rows), return_exceptions=True)
        for result in results:
            if not isinstance(result, BaseException):
                await result[0].close()
        return results, len(factory.hosts[None].idle)

    results, idle = run(play())
    assert "the row's server is gone" in str(results[1]) and isinstance(results[1], EnvironmentFault)
    assert [results[n][1][0]["content"] for n in (0, 2, 3)] == [f"The count is {n}." for n in (0, 2, 3)]
    assert idle == 3


def test_an_environment_after_a_fault_is_not_used_again():
    class Fragile:
        def reset(self):
            """Starts."""

        def crash(self) -> str:
            """Raises."""
            raise ValueError

    async def play():
        factory = opened(environment=Fragile)
        episode, _ = await started(factory)
        with pytest.raises(EnvironmentFault):
            await episode.call("crash", {})
        await episode.close()
        return factory.hosts[None].idle

    assert run(play()) == []


def test_an_environment_that_is_not_thread_safe_gets_one_call_at_a_time_and_a_hung_one_makes_room():
    async def play():
        factory = open_episodes(environment=worlds.OneAtATime, deadline=DEADLINE)
        first, _ = await started(factory)
        results = await asyncio.gather(
            first.call("hang", {}), *(started(factory) for _ in range(5)), return_exceptions=True
        )
        return results

    worlds.OneAtATime.most = 0
    results = run(play())
    assert isinstance(results[0], EnvironmentFault) and worlds.OneAtATime.most == 1
    assert [result[1][0]["content"] for result in results[1:]] == ["in"] * 5


def test_episodes_go_on_in_another_event_loop():
    factory = opened(environment=worlds.OneAtATime, tools=[worlds.wait_and_add])
    for _ in range(2):
        episode, first = run(started(factory))
        assert first[0]["content"] == "in"
        assert run(episode.call("wait_and_add", {"a": 1, "b": 2})).content == "3"
        run(episode.close())
    run(factory.close())


@pytest.mark.parametrize(
    ("gives", "message"), [(float("nan"), "no finite number"), ("much", "no finite number"), (None, None)]
)
def test_a_reward_that_is_no_number_is_a_fault(gives, message):
    class Scored:
        def reset(self):
            """Starts."""

        def get_reward(self):
            """A reward."""
            return gives

    async def play():
        return await (await started(opened(environment=Scored)))[0].final_reward()

    if message is None:
        assert run(play()) is None
    else:
        with pytest.raises(EnvironmentFault, match=message):
            run(play())


@pytest.mark.parametrize("said", [5, [1], {"role": "user"}])
def test_an_observation_that_is_no_text_is_a_fault(said):
    class Odd:
        def reset(self):
            """Starts."""
            return said

    with pytest.raises(EnvironmentFault, match=r"Odd.reset returned .*Return text, messages"):
        run(started(opened(environment=Odd)))


@pytest.mark.parametrize(
    ("says", "is_over"),
    [(True, True), (0, False), (None, False), (np.bool_(True), True), (torch.tensor([False]), False)],
)
def test_an_episode_ends_where_the_environment_says_true(says, is_over):
    assert run(after_a_turn(says)).done is is_over


@pytest.mark.parametrize("says", ["no", "False", 2, [], np.array([True, False])])
def test_what_is_neither_true_nor_false_does_not_end_an_episode_unnoticed(says):
    with pytest.raises(EnvironmentFault, match=r"Talks.*gave done=.*It is True where the episode is over, else False"):
        run(after_a_turn(says))


async def after_a_turn(says):
    class Talks:
        def reset(self):
            """Starts."""

        def step(self, text):
            """Answers."""
            return "so", 0.0, says

    episode, _ = await started(opened(environment=Talks))
    await episode.respond("x")
    return episode


def parts() -> str:
    """Says it bit by bit."""
    yield "a"


def lengths() -> list:
    """Counts, later."""
    return map(len, ["a"])


async def late_parts() -> str:
    """Says it bit by bit, later."""
    yield "a"


@pytest.mark.parametrize(
    ("tool", "kind"),
    [(parts, "generator"), (lengths, "map"), (late_parts, "async_generator")],
)
def test_a_tool_whose_values_are_yet_to_come_is_refused_in_its_first_call(tool, kind):
    async def play():
        return await (await started(opened(tools=[tool])))[0].call(tool.__name__, {})

    with pytest.raises(EnvironmentContractError, match=f"A tool returned a {kind}, .*in place of yield"):
        run(play())


def test_a_process_without_a_console_keeps_what_is_printed_beside_a_call_to_itself(monkeypatch):
    """As under pythonw, where sys.stdout is None and print says nothing."""

    def says() -> str:
        """Prints, while another thread does too."""
        print("of the tool")
        thread = threading.Thread(target=lambda: others.append(print("of training", flush=True)))
        thread.start()
        thread.join()
        raise KeyError("no such page")

    async def play():
        episode, _ = await started(opened(tools=[says]))
        with pytest.raises(EnvironmentFault, match=r"It printed:\nof the tool\n$"):
            await episode.call("says", {})

    others: list[None] = []
    monkeypatch.setattr(sys, "stdout", None)
    run(play())
    assert others == [None] and sys.stdout is None


# ---- environments in processes of their own


def test_an_environment_in_a_process_of_its_own_may_die_hang_raise_and_seed():
    async def play():
        factory = open_episodes(environment=worlds.Apart, deadline=2.0)
        random.seed(5)
        (first, said), (second, _) = [await started(factory, seed=n) for n in (1, 2)]
        drawn = random.random()
        calls = [first.call("die", {}), second.call("draw", {})]
        died, kept = await asyncio.gather(*calls, return_exceptions=True)
        await first.close()
        with pytest.raises(EnvironmentFault, match=r"Apart\.fail raised in its process:") as failed:
            await second.call("fail", {})
        third, again = await started(factory, seed=1)
        with pytest.raises(EnvironmentFault, match="was killed after 2 s"):
            await third.call("hang", {})
        faults = dict(factory.faults)
        await factory.close()
        return said, drawn, died, kept, str(failed.value), again, faults

    said, drawn, died, kept, failed, again, faults = run(play())
    random.seed(5)
    assert drawn == random.random()  # the run's own generator
    assert isinstance(died, EnvironmentFault) and "died" in str(died)
    random.seed(2)
    random.random()
    assert float(kept.content) == random.random()
    assert failed.endswith("It printed:\nabout to fail\n")
    pids = [re.search(r"process (\d+)", messages[0]["content"])[1] for messages in (said, again)]
    assert pids[0] != pids[1] and said[0]["content"].split("drew")[1] == again[0]["content"].split("drew")[1]
    assert (faults["time_outs"], faults["exceptions"]) == (1, 2)


def test_an_episode_that_waits_for_a_process_when_the_run_closes_is_a_fault():
    async def play():
        factory = opened(environment=worlds.Apart)
        for seed in range(worlds.Apart.concurrency):
            await started(factory, seed=seed)
        waiting = asyncio.create_task(started(factory, seed=9))
        while not factory.hosts[None].pool._free._cond._waiters:
            await asyncio.sleep(0.01)
        await factory.close()
        with pytest.raises(EnvironmentFault, match="Apart: the environment's processes were ended"):
            await waiting

    run(play())


def test_a_class_that_a_process_cannot_have_is_refused():
    class Local:
        isolation = "process"

        def reset(self):
            """Starts."""

    with pytest.raises(EnvironmentContractError, match="Define it in a module of its own"):
        open_episodes(environment=Local)


# ---- what the breaker found


def test_brackets_without_end_are_a_mistake_of_the_model():
    async def play():
        episode, _ = await started(opened(tools=[worlds.add]))
        return await episode.call("add", '{"a": ' + "[" * 100_000)

    result = run(play())
    assert result.mistake and "The arguments of add are no JSON" in result.content


def test_half_a_surrogate_pair_becomes_text_that_can_be_encoded():
    def broken() -> str:
        """Says half a character."""
        return "a\ud800b\U0001f600"

    async def play():
        episode, _ = await started(opened(tools=[broken]))
        return (await episode.call("broken", {})).content

    assert run(play()) == "a?b\U0001f600"


@pytest.mark.parametrize("error", [SystemExit(4), asyncio.CancelledError("4")], ids=lambda error: type(error).__name__)
def test_an_async_tool_that_exits_or_is_cancelled_is_a_fault_at_once_and_the_loop_lives_on(error):
    async def leave_later() -> str:
        """Ends the interpreter, or the call, as it thinks."""
        raise error

    async def play():
        factory = open_episodes(tools=[leave_later, worlds.wait_and_add], deadline=60.0)
        episode, _ = await started(factory)
        with pytest.raises(EnvironmentFault, match=rf"leave_later raised:(.|\n)*{type(error).__name__}\('?4'?\)"):
            await episode.call("leave_later", {})
        answer = await episode.call("wait_and_add", {"a": 1, "b": 2})
        return answer.content, dict(factory.faults)

    content, faults = run(play())
    assert content == "3" and (faults["exceptions"], faults["time_outs"]) == (1, 0)


def test_an_answer_that_cannot_leave_its_process_says_so():
    async def play():
        factory = opened(environment=worlds.Unsendable)
        episode, _ = await started(factory)
        with pytest.raises(EnvironmentFault, match=r"step: what it gave cannot leave its process: .*pickle"):
            await episode.respond("go")
        await factory.close()

    run(play())


def test_a_property_done_that_lacks_what_it_reads_is_a_fault():
    class Forgets:
        def reset(self):
            """Starts."""

        @property
        def done(self):
            return self.never_set

    async def play():
        with pytest.raises(EnvironmentFault, match="never_set"):
            await started(opened(environment=Forgets))

    run(play())


def test_tools_that_a_constructor_adds_are_read_where_a_function_makes_the_environment():
    async def play():
        episode, _ = await started(opened(environment="worlds.make_desk"))
        names = [tool["function"]["name"] for tool in episode.tools]
        return names, await episode.call("search", '{"word": "abc"}')

    names, answer = run(play())
    assert names == ["search"] and answer.content == "4"


@pytest.mark.parametrize("path", ["worlds.Desk", "worlds.DeskInAProcess"])
def test_a_class_whose_constructor_adds_tools_says_how_to_name_it(path):
    factory = opened(environment=path)

    async def play():
        try:
            await started(factory)
        finally:
            await factory.close()

    with pytest.raises(EnvironmentContractError, match=r"adds the tools search\..*def make\(\): return Desk"):
        run(play())


def test_an_import_path_leads_to_attributes_of_objects_and_classes():
    async def play(path):
        episode, _ = await started(opened(tools=[path]))
        return await episode.call("look_up", '{"word": "abc"}')

    assert run(play("worlds.registry.look_up")).content == "103"
    with pytest.raises(EnvironmentContractError, match=r"names nothing: .* worlds\.registry has look_up\."):
        opened(tools=["worlds.registry.lok_up"])
    with pytest.raises(EnvironmentContractError, match=r"there is no module 'nowhere'"):
        opened(tools=["nowhere.registry.look_up"])
