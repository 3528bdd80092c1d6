"""Five turns behind every chat template that TRL ships: what is trained on is what was sampled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import trl
from rollouts.turns.test_turn_source import batch, make_source
from rollouts.turns.tool_models import Echo, tool_tokenizer
from toy_models import build_model
from transformers import GenerationConfig

from grpo_lightning.policy.policy import Policy
from grpo_lightning.policy.settings import PolicySettings
from grpo_lightning.rollouts.base import Moment
from grpo_lightning.rollouts.turns.settings import Turns

TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
UNCLEAR = "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}({{ m.content }}){% else %}[{{ m.content }}]{% endif %}{% endfor %}"
"""Writes a turn otherwise once another follows, and marks its end by nothing."""
ANEW = ("gptoss", "nemotron_3_nano", "qwen3_5_think", "qwen3_5_nothink", "qwen3_6")
"""Some of the templates that open a turn with what they leave out of it later."""
ENDS = ["<|im_end|>", "<end_of_turn>", "<turn|>", "<|eot_id|>", "<|end|>", "</s>", "<|END_OF_TURN_TOKEN|>"]
ENDS += [
    "<|tool_response>",
    "<|observation|>",
    "<|user|>",
    "<|eot|>",
    "<｜end▁of▁sentence｜>",
    "<|return|>",
    "<|call|>",
    "<end_of_utterance>",
    "[/INST]",
    "<|eom_id|>",
    "<eos>",
]


class Both(Echo):
    """What comes behind a turn is by turns a result of a tool and a message of the user."""

    async def respond(self, text):
        messages = await super().respond(text)
        if len(self.rewards) % 2 and self.tool_role:
            return [{"role": "tool", "name": "add", "content": f"result {len(text)}", "tool_call_id": "call00000"}]
        return messages

    tool_role = True


class UserOnly(Both):
    tool_role = False


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("model"), tool_tokenizer()
    tokenizer.add_tokens(ENDS, special_tokens=True)
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    model = build_model(tokenizer=tokenizer, vocab_size=len(tokenizer), max_position_embeddings=8192)
    ordinary = list(range(60, 120))  # so that a random model ends its turns
    model.generation_config = GenerationConfig(eos_token_id=[*tokenizer.convert_tokens_to_ids(ENDS), *ordinary])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    policy = Policy(PolicySettings(model_name_or_path=str(folder)), 0)
    policy.model = model
    return policy


def takes_tools(tokenizer) -> bool:
    call = {"type": "function", "id": "call00000", "function": {"name": "add", "arguments": '{"a": 1}'}}
    asked = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x", "tool_calls": [call]}]
    result = {"role": "tool", "name": "add", "content": "Q7Z", "tool_call_id": "call00000"}
    try:
        return "Q7Z" in tokenizer.apply_chat_template([*asked, result], tokenize=False)
    except Exception:
        return False


def scored_apart(model, prompt, completion, branches):
    """Logprobs of a completion's tokens, each history a forward pass of its own."""
    found = []
    for (kept, _), ids in zip(branches, completion.split([length for _, length in branches]), strict=True):
        with torch.no_grad():
            logits = model(torch.cat([prompt[:kept], ids])[None]).logits[0, kept - 1 : -1]
        found.append(logits.log_softmax(-1).gather(1, ids[:, None])[:, 0])
    return torch.cat(found)


@pytest.mark.parametrize("history", ["append", "as_template"])
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_the_trainer_scores_the_tokens_that_were_sampled(policy, template, history):
    policy.tokenizer.chat_template = template.read_text(encoding="utf-8")
    # Both answers as a tool that nobody called, which gpt-oss's templates refuse to write.
    refuses = history == "as_template" and template.stem.startswith("gptoss")
    kind = Both if takes_tools(policy.tokenizer) and not refuses else UserOnly
    source = make_source(
        policy,
        lambda row: kind(turns=5),
        turns=Turns(max_turns=5, history=history),
        has_tools=False,
        max_completion_length=3000 if history == "append" else 8000,
    )
    rollouts = source.sample(batch("one"), Moment()).rollouts
    source.close(0)
    assert [conversation.stop for conversation in rollouts.conversations] == ["done"] * 2
    assert [conversation.turns for conversation in rollouts.conversations] == [5] * 2
    for n, completion in enumerate(rollouts.completions()):
        prompt, places = rollouts.prompts()[0], rollouts.tokens_of(torch.tensor([n]))
        branches = rollouts.conversations[n].branches or [(len(prompt), len(completion))]
        assert history == "as_template" or len(branches) == 1
        assert len(branches) > 1 or history == "append" or template.stem not in ANEW
        expected = scored_apart(policy.model, prompt, completion, branches)
        own = rollouts.completion_mask[places]
        torch.testing.assert_close(rollouts.sampling_logprobs[places][own], expected[own], atol=2e-5, rtol=1e-4)
        given = policy.tokenizer.decode(completion[~own])
        heard = [message["content"] for message in rollouts.conversations[n].messages if message["role"] != "assistant"]
        assert len(heard) == 5  # the last one ends the rollout
        assert all(given.count(text) >= 1 for text in heard[:4])


def test_a_template_that_does_not_show_where_a_turn_ends_is_refused(policy):
    policy.tokenizer.chat_template = UNCLEAR
    source = make_source(policy, lambda row: UserOnly(turns=5), has_tools=False, max_completion_length=3000)
    with pytest.raises(ValueError, match=r"model\.chat_template_kwargs"):
        source.sample(batch("one"), Moment())
    source.close(0)
