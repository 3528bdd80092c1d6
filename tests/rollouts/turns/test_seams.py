"""Where rollouts of several turns, environments and rewards meet: as in TRL 1.16."""

from __future__ import annotations

import itertools
import threading

import pytest
from rollouts.turns.test_turn_source import batch
from rollouts.turns.tool_models import Scripted, tool_policy

from grpo_lightning.environments import ToolMistake
from grpo_lightning.errors import RefusedRowError
from grpo_lightning.generation import SamplingSettings, TransformersGenerator
from grpo_lightning.rollouts.base import Moment
from grpo_lightning.rollouts.source import RolloutSettings
from grpo_lightning.rollouts.turns.make import make_source
from grpo_lightning.rollouts.turns.settings import ToolSettings, Turns
from grpo_lightning.rollouts.turns.source import EnvironmentsFailedError
from grpo_lightning.types import PromptBatch

CALL = '<tool_call>\n{"name": "increment", "arguments": {"step": 2}}\n</tool_call><|im_end|>'
SCRIPT = [CALL, CALL, "It is 4.<|im_end|>"]


class IncrementEnv:
    """The form of TRL's ``environment_factory``, docstring and all."""

    def reset(self, **kwargs) -> str | None:
        self.counter = 0
        return "Increment the counter by 1."

    def increment(self, step: int) -> int:
        """Increment the internal counter.

        Args:
            step: Value to add to the counter.

        Returns:
            The updated counter value.
        """
        self.counter += step
        return self.counter


class OwnsItsReward(IncrementEnv):
    def get_reward(self) -> float:
        return float(self.counter)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tool_policy(tmp_path_factory.mktemp("model"))


def source_of(policy, rewards, environment=IncrementEnv, script=SCRIPT, turns=None, generator=None, **sampling):
    settings = RolloutSettings(rewards=rewards, generator=generator or Scripted(policy.tokenizer, script))
    how = SamplingSettings(**({"num_generations": 2, "max_completion_length": 300} | sampling))
    talks_to = ToolSettings(environment=environment, turns=turns or Turns())
    return make_source(settings, talks_to, how, policy, 0)


def table_of(source, *texts):
    sampled = source.sample(batch(*texts), Moment())
    rewards = sampled.await_rewards()
    source.close(0)
    return sampled, rewards


def by_keyword(completions, **kwargs):
    return [float(environment.counter) for environment in kwargs["environments"]]


def by_name(completions, environments, **kwargs):
    return [float(environment.counter) for environment in environments]


async def later(environments, **kwargs):
    return [float(environment.counter) for environment in environments]


@pytest.mark.parametrize("reward", [by_keyword, by_name, later])
def test_a_reward_of_trl_gets_the_instance_of_each_completion(policy, reward):
    sampled, rewards = table_of(source_of(policy, [reward]), "count", "on")
    assert rewards.values[:, 0].tolist() == [4.0] * 4
    instances = [conversation.environment for conversation in sampled.rollouts.conversations]
    assert len(set(map(id, instances))) == 4


def test_rewards_without_environments_are_not_told_of_any(policy):
    seen = []

    def reward(completions, **kwargs):
        seen.append(set(kwargs))
        return [0.0] * len(completions)

    settings = RolloutSettings(rewards=[reward], generator=Scripted(policy.tokenizer, ["no<|im_end|>"]))
    talks_to = ToolSettings(tools=[IncrementEnv().increment])
    source = make_source(settings, talks_to, SamplingSettings(num_generations=2), policy, 0)
    table_of(source, "count")
    assert seen and all("environments" not in names for names in seen)


def test_a_reward_sees_the_prompt_with_what_reset_said_as_in_trl(policy):
    seen = []

    def reward(prompts, completions, **kwargs):
        seen.extend(prompts)
        return [0.0] * len(completions)

    table_of(source_of(policy, [reward]), "Hello. ")
    assert seen == [[{"role": "user", "content": "Hello. Increment the counter by 1."}]] * 2


def test_the_prompt_is_tokenised_with_the_schemas_of_the_tools(policy):
    sampled, _ = table_of(source_of(policy, [by_name]), "Go. ")
    text = policy.tokenizer.decode(sampled.rollouts.prompts()[0])
    assert '"name": "increment"' in text and "Value to add to the counter." in text
    assert text.endswith("Go. Increment the counter by 1.<|im_end|>\n<|im_start|>assistant\n")


def test_a_reward_of_the_environments_that_nothing_reads_is_named(policy, caplog):
    table_of(source_of(policy, [lambda completions, **kw: [0.0] * len(completions)], OwnsItsReward), "go")
    assert "OwnsItsReward.get_reward" in caplog.text and "model.rewards" in caplog.text
    caplog.clear()
    _, rewards = table_of(source_of(policy, "environment", OwnsItsReward), "go")
    assert rewards.values[:, 0].tolist() == [4.0, 4.0]
    assert "get_reward" not in caplog.text


class Hangs:
    """Every second one does not answer."""

    made = itertools.count()
    release = threading.Event()

    def __init__(self) -> None:
        self.hangs = next(self.made) % 2 == 1

    def reset(self, **row) -> None:
        pass

    def step(self, text: str):
        if self.hangs:
            self.release.wait(30)
        return "", 1.0, True


def test_the_limit_of_a_call_reaches_the_environment_and_costs_one_rollout(policy):
    turns = Turns(call_time_limit=0.3, max_fault_share=1.0)
    source = source_of(policy, "environment", Hangs, ["a<|im_end|>"], turns)
    sampled, rewards = table_of(source, "go", "on")
    Hangs.release.set()
    assert sorted(each.stop for each in sampled.rollouts.conversations) == ["done", "done", "fault", "fault"]
    assert rewards.values[:, 0].isnan().sum() == 2 and rewards.values.nan_to_num().sum() == 2.0


def test_a_rollout_ends_where_the_model_has_no_positions_left(policy):
    class Talks:
        def reset(self, **row):
            return "x" * 60

        def step(self, text):
            return "y" * 60

    generator = TransformersGenerator(max_model_length=260)
    source = source_of(
        policy,
        [lambda completions, **kw: [1.0] * len(completions)],
        Talks,
        generator=generator,
        max_completion_length=200,
        turns=Turns(max_turn_length=20),
    )
    source.prepare()
    sampled, _ = table_of(source, "go")
    rollouts = sampled.rollouts
    assert int((rollouts.prompt_lengths[rollouts.group] + rollouts.completion_lengths).max()) <= 260
    assert {conversation.stop for conversation in rollouts.conversations} == {"max_tokens"}


class Long(IncrementEnv):
    """Says more than the model reads, where the row asks for it."""

    def reset(self, prompt, **row):
        super().reset()
        return "x" * (600 if prompt[0]["content"] == "long" else 2)


def test_what_an_environment_says_beyond_the_models_room_costs_its_own_rollouts_alone(policy):
    generator = TransformersGenerator()
    sources = [
        source_of(policy, [by_name], Long, generator=generator, turns=Turns(max_fault_share=1.0)) for _ in range(2)
    ]
    for source in sources:
        source.prepare()
    sampled, _ = table_of(sources[0], "short", "long")
    assert [each.stop == "fault" for each in sampled.rollouts.conversations] == [False, False, True, True]
    assert sampled.rollouts.prompt_lengths.max() + sampled.rollouts.completion_lengths.max() <= 512
    with pytest.raises(EnvironmentsFailedError, match=r"takes 512 with the completion"):
        sources[1].sample(batch("long"), Moment())
    sources[1].close(0)


ALTERNATING = (
    "{% for m in messages %}{% if loop.index0 and m['role'] == messages[loop.index0 - 1]['role'] %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Twice:
    """Says two things in a row, where the row asks for it."""

    def reset(self, prompt, **row) -> None:
        self.answers = [{"role": "user", "content": "a"}] * (2 if prompt[0]["content"] == "twice" else 1)

    def step(self, text):
        return self.answers


def test_what_the_template_refuses_to_write_costs_its_own_rollouts_alone(policy):
    template, policy.tokenizer.chat_template = policy.tokenizer.chat_template, ALTERNATING
    turns = Turns(max_turns=2, max_fault_share=1.0)
    source = source_of(policy, [lambda completions, **kw: [1.0] * len(completions)], Twice, ["a<|im_end|>"] * 2, turns)
    sampled, rewards = table_of(source, "once", "twice")
    policy.tokenizer.chat_template = template
    assert [each.stop for each in sampled.rollouts.conversations] == ["max_turns"] * 2 + ["fault"] * 2
    assert rewards.values[:, 0].isnan().tolist() == [False, False, True, True]


@pytest.mark.parametrize("where", ["reset", "step", "get_reward"])
def test_a_mistake_raised_where_nothing_was_called_is_an_answer_or_a_fault(policy, where):
    def raises(self, text="", **row):
        raise ToolMistake("Not like this.")

    def answers(self, text):
        return raises(self)

    sound = {
        "reset": lambda self, **row: None,
        "step": lambda self, text: ("", 1.0, True),
        "get_reward": lambda self: 2.0,
    }
    kind = type("Raises", (), sound | {where: answers if where == "step" else raises})
    classes = {"sound": type("Sound", (), sound), "raises": kind}
    turns = Turns(max_turns=2, max_fault_share=1.0)
    source = source_of(policy, "environment", classes, ["a<|im_end|>"] * 2, turns)
    both = batch("one", "two")
    both.columns["environment"] = ["sound", "raises"]
    conversations = source.sample(both, Moment()).rollouts.conversations
    source.close(0)
    assert [each.stop for each in conversations[:2]] == ["done"] * 2
    assert [each.stop for each in conversations[2:]] == ["max_turns" if where == "step" else "fault"] * 2
    if where == "step":
        assert conversations[2].messages[1] == {"role": "user", "content": "Not like this."}


@pytest.mark.parametrize(
    ("prompt", "columns", "message"),
    [
        ("Go.", {}, r"row 4 \('Go.'\) is text"),
        ([{"role": "user", "content": "Go."}], {"tools": [[{"name": "look"}]]}, "column 'tools' names tools"),
        (
            [{"role": "user", "content": "Go. " * 600}],
            {},
            r"^row 4 \('Go. .* the tools .* has \d+ tokens, and the model .* takes 512",
        ),
    ],
)
def test_a_row_that_cannot_be_played_is_refused(policy, prompt, columns, message):
    def reward(completions, **kwargs):
        return [0.0] * len(completions)

    settings = RolloutSettings(rewards=[reward], generator=Scripted(policy.tokenizer, SCRIPT))
    how = SamplingSettings(num_generations=2, max_completion_length=300)
    source = make_source(settings, ToolSettings(tools=[IncrementEnv().increment]), how, policy, 0)
    with pytest.raises(RefusedRowError, match=message):
        source.sample(PromptBatch([prompt], [[5]], [4], columns), Moment())
    source.close(0)
