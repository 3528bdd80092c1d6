"""Tools, environments and rollout functions in the forms that TRL takes, unchanged."""

from __future__ import annotations

import pytest
import torch
from rollouts.turns.test_seams import IncrementEnv, table_of
from rollouts.turns.test_turn_source import batch
from rollouts.turns.tool_models import Scripted, tool_tokenizer
from toy_models import build_model

from grpo_lightning.generation import SamplingSettings
from grpo_lightning.policy.policy import Policy
from grpo_lightning.policy.settings import PolicySettings
from grpo_lightning.rollouts.base import Moment
from grpo_lightning.rollouts.source import RolloutSettings
from grpo_lightning.rollouts.turns.make import make_source
from grpo_lightning.rollouts.turns.settings import ToolSettings, Turns


def multiply(a: int, b: int) -> int:
    """Multiplies two integers.

    Args:
        a: The first integer.
        b: The second integer.

    Returns:
        The product of the two integers.
    """
    return a * b


async def async_add(a: int, b: int) -> int:
    """Asynchronously adds two integers.

    Args:
        a: The first integer.
        b: The second integer.

    Returns:
        The sum of the two integers.
    """
    return a + b


def fails(a: int) -> int:
    """Raises.

    Args:
        a: Anything.
    """
    raise ValueError(f"no {a}")


def call(name: str, **arguments: int) -> str:
    written = ", ".join(f'"{key}": {value}' for key, value in arguments.items())
    return f'<tool_call>\n{{"name": "{name}", "arguments": {{{written}}}}}\n</tool_call><|im_end|>'


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("model"), tool_tokenizer()
    model = build_model(tokenizer=tokenizer, max_position_embeddings=4096)  # schemas take hundreds of tokens
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    policy = Policy(PolicySettings(model_name_or_path=str(folder)), 0)
    policy.model = model
    return policy


def source_of(policy, script, rewards, **talks_to):
    settings = RolloutSettings(rewards=rewards, generator=Scripted(policy.tokenizer, script))
    how = SamplingSettings(num_generations=2, max_completion_length=400)
    return make_source(settings, ToolSettings(**talks_to), how, policy, 0)


def test_its_tools_run_sync_and_async_and_exceptions_are_told_as_it_does(policy):
    script = [call("multiply", a=6, b=7), call("async_add", a=1, b=2), call("fails", a=3), "done<|im_end|>"]
    seen = []

    def reward(completions, **kwargs):
        seen.extend(completions)
        return [1.0] * len(completions)

    tools, turns = [multiply, async_add, fails], Turns(tool_exceptions="tell")
    table_of(source_of(policy, script, [reward], tools=tools, turns=turns), "go")
    for messages in seen:
        told = [(m["name"], m["content"]) for m in messages if m["role"] == "tool"]
        assert told == [("multiply", "42"), ("async_add", "3"), ("fails", "{'error': 'no 3'}")]
        assert messages[-1] == {"role": "assistant", "content": "done"}


def test_its_environments_by_name_offer_their_own_tools_alone(policy):
    class Other(IncrementEnv):
        increment = None

        def decrement(self, step: int) -> int:
            """Decrement the counter.

            Args:
                step: By how much.
            """
            self.counter -= step
            return self.counter

    def reward(environments, **kwargs):
        return [float(environment.counter) for environment in environments]

    script = [call("increment", step=2), "ok<|im_end|>"]
    source = source_of(policy, script, [reward], environment={"up": IncrementEnv, "down": Other})
    prompts = batch("a ", "b ")
    prompts.columns["environment"] = ["up", "down"]
    sampled = source.sample(prompts, Moment())
    rewards = sampled.await_rewards()
    source.close(0)
    assert rewards.values[:, 0].tolist() == [2.0, 2.0, 0.0, 0.0]
    texts = [policy.tokenizer.decode(ids) for ids in sampled.rollouts.prompts()]
    assert ["increment" in text for text in texts] == [True, False]
    assert [conversation.mistakes for conversation in sampled.rollouts.conversations] == [0, 0, 1, 1]


def rollout_func(prompts, trainer):
    """Samples, lets a world answer, samples again: in the form of TRL's ``rollout_func``."""
    tokenizer = trainer.processing_class
    prompt_ids = [
        tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False) for prompt in prompts
    ]
    first, logprobs = trainer.generate(prompt_ids)
    said = tokenizer("\n<|im_start|>tool\n7<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    second, more = trainer.generate([p + f + said for p, f in zip(prompt_ids, first, strict=True)])
    rows = list(zip(first, second, strict=True))
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": [one + said + other for one, other in rows],
        "logprobs": [one + [0.0] * len(said) + other for one, other in zip(logprobs, more, strict=True)],
        "env_mask": [[1] * len(one) + [0] * len(said) + [1] * len(other) for one, other in rows],
        "env_reward": [float(n) for n in range(len(prompts))],
    }


def env_reward(completions, env_reward, **kwargs):
    return env_reward


def test_a_rollout_function_gives_tokens_mask_and_columns(policy):
    source = source_of(policy, ["a<|im_end|>", "bc<|im_end|>"], [env_reward], rollout_func=rollout_func)
    sampled, rewards = table_of(source, "x", "y")
    assert rewards.values[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    rollouts = sampled.rollouts
    ids = rollouts.completions()[0]
    own = rollouts.completion_mask[: len(ids)]
    assert policy.tokenizer.decode(ids[own]) == "a<|im_end|>bc<|im_end|>"
    assert policy.tokenizer.decode(ids[~own]) == "\n<|im_start|>tool\n7<|im_end|>\n<|im_start|>assistant\n"
    assert [each.turns for each in rollouts.conversations] == [2] * 4 and not rollouts.truncated.any()
    assert policy.tokenizer.decode(rollouts.prompts()[1]).endswith("y<|im_end|>\n<|im_start|>assistant\n")
    assert len(set(source.generator.seeds)) == 8
    assert torch.equal(rollouts.sampling_logprobs[: len(ids)][own], torch.full((int(own.sum()),), -0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logprobs": [[0.0]] * 3}, r"3 logprobs .* 4 entries"),
        ({"env_mask": [[1]] * 4}, r"1 entries of env_mask for completion 0"),
        ({"completions": ["a"] * 4}, r"completions where that cannot be"),
    ],
)
def test_what_is_no_rollout_is_refused(policy, change, message):
    source = source_of(
        policy, ["a<|im_end|>", "b<|im_end|>"], [env_reward], rollout_func=lambda *a: rollout_func(*a) | change
    )
    with pytest.raises(ValueError, match=message):
        source.sample(batch("x", "y"), Moment())
    source.close(0)


def test_a_rollout_function_beside_tools_is_refused():
    with pytest.raises(ValueError, match=r"model\.rollout_func makes rollouts itself"):
        ToolSettings(tools=[multiply], rollout_func=rollout_func)
