"""The nine ideas of docs/extending.md: each trains, and takes the lines that the page says."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from doc_blocks import ROOT, blocks
from runs import fit, make_data, make_module, make_trainer, share_of_digits

from grpo_lightning import GRPOModule
from grpo_lightning.algorithm.advantages import ScoredStep
from grpo_lightning.algorithm.losses import LossInputs
from grpo_lightning.datamodules.curriculum import Curriculum
from grpo_lightning.generation import TransformersGenerator
from grpo_lightning.rewards.sandbox.python_source import parsed
from grpo_lightning.types import Rollouts

PAGE = ROOT / "docs" / "extending.md"
BLOCKS = {block.title: block for block in blocks(PAGE) if block.title}
ROWS = re.findall(r"^\| \[(.*?)\]\(.*?\) \| `(.*?)` \| (\d+) \|$", PAGE.read_text(), re.MULTILINE)
SETTINGS = {
    "model.advantages": {},
    "model.loss_type": {"max_grad_norm": 1.0},
    "model.kl_estimator": {"beta": 0.1},
    "model.generator": {"max_sampler_mismatch": None},
    "model.rewards": {},
}


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for title, block in BLOCKS.items():
        (tmp_path / title).write_text(block.code)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield
    for title in BLOCKS:
        sys.modules.pop(title.removesuffix(".py"), None)


def lines_of(code: str) -> int:
    """Lines of statements, without docstrings."""
    tree = parsed(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    numbers = {
        number
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt | ast.expr)
        for number in range(node.lineno, node.end_lineno + 1)
        if not isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    heads = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    return len(numbers | heads)


def test_there_are_nine():
    assert len(ROWS) == 9


@pytest.mark.parametrize(("idea", "setting", "lines"), ROWS, ids=[row[0] for row in ROWS])
def test_an_idea_takes_the_lines_that_the_page_says(idea, setting, lines):
    name = setting.partition(": ")[2] or setting.rpartition(" ")[2]
    title = name.partition(".")[0] + ".py"
    if title in BLOCKS:
        assert lines_of(BLOCKS[title].code) == int(lines)
    else:
        written = [b.code for b in blocks(PAGE) if b.language == "yaml" and setting.removeprefix("data.") in b.code]
        assert [len(code.strip().splitlines()) for code in written] == [int(lines)]


def test_lines_of_code_are_counted_without_what_explains_them():
    assert (
        lines_of(
            '"""Doc."""\n\nimport os\n\n\ndef f(a,\n      b):\n    """Doc."""\n    # why\n    return (a,\n            b)\n'
        )
        == 4
    )


@pytest.mark.parametrize(("setting", "value"), [r[1].split(": ") for r in ROWS if ": " in r[1]])
def test_an_idea_that_a_setting_names_trains(setting, value, tiny_model_dir, tmp_path):
    given: Any = value
    if setting == "model.generator":
        given = importlib.import_module("uniform").Uniform()
    settings = SETTINGS[setting] | {setting.removeprefix("model."): given}
    before = {n: p.clone() for n, p in started(tiny_model_dir).policy.model.named_parameters()}
    after = fit(tiny_model_dir, tmp_path, max_steps=2, **settings)
    assert after.steps_done == 2
    assert any(not torch.equal(p, before[n]) for n, p in after.policy.model.named_parameters())


def test_a_reward_that_sees_its_group_compares_texts_and_conversations_alike():
    from novelty import novelty

    texts, group = ["ab", "ac", "b", "ab"], [0, 0, 0, 1]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    assert novelty(texts, group) == novelty(messages, group) == [0.5, 0.5, 1.0, 1.0]


def started(model_dir):
    module = make_module(model_dir)
    module.configure_model()
    return module


def after_a_step(kind, model_dir, tmp_path, **settings):
    """A module with a loop of its own, one step on."""
    module = kind(
        model_name_or_path=str(model_dir),
        rewards=[share_of_digits],
        num_generations=4,
        max_completion_length=8,
        generator=TransformersGenerator(),
        **settings,
    )
    make_trainer(tmp_path, 1).fit(module, datamodule=make_data(tmp_path))
    return module


def test_a_loop_of_two_turns_learns_from_both_attempts_and_not_from_the_words_between(tiny_model_dir, tmp_path):
    from two_turns import TwoTurns

    module = after_a_step(TwoTurns, tiny_model_dir, tmp_path)
    rollouts = module.last_step.rollouts
    words = module.policy.tokenizer.encode("Again:", add_special_tokens=False)
    for ids, mask in zip(
        rollouts.completions(), rollouts.completion_mask.split(rollouts.completion_lengths.tolist()), strict=True
    ):
        assert ids[~mask].tolist() == words and mask[0] and mask[-1]


@pytest.mark.parametrize("name", ["curriculum", "streaming"])
def test_an_idea_of_the_data_trains(name, tiny_model_dir, tmp_path):
    (text,) = [b.code for b in blocks(PAGE) if b.language == "yaml" and f"  {name}:" in b.code]
    value = yaml.safe_load(text)["data"][name]
    data = {name: Curriculum(**value) if name == "curriculum" else value}
    assert fit(tiny_model_dir, tmp_path, max_steps=2, data=data).steps_done == 2


def first_column(head: str) -> list[str]:
    """Names in the first column of the table below the head."""
    rows = PAGE.read_text().split(head)[1].split("\n\n")[0].splitlines()[2:]
    return [name for row in rows for name in re.findall(r"`(.+?)`", row.split("|")[1])]


def test_the_page_says_what_an_advantage_and_a_loss_are_given():
    assert set(first_column("| of `step`")) == {field.name for field in fields(ScoredStep)}
    assert set(first_column("| of `inputs`")) == {field.name for field in fields(LossInputs)} - {"level"} | {
        "log_ratio"
    }
    said = PAGE.read_text().split("\n`rollouts`, on the CPU")[1].split("\n\n")[0]
    special = {"conversations", "images", "routed_experts"}  # of several turns, of images, of experts
    assert set(re.findall(r"`(\w+)`", said)) == {field.name for field in fields(Rollouts)} - special


def test_the_page_lists_what_training_step_calls_of_the_module_as_it_is_called():
    source = inspect.getsource(GRPOModule.training_step)
    listed = first_column("\n| method | gives |")
    for call in listed:
        name, _, arguments = call.partition("(")
        assert list(inspect.signature(getattr(GRPOModule, name)).parameters)[1:] == arguments.rstrip(")").split(", ")
    own = [name for name in re.findall(r"self\.(\w+)\(", source) if name not in ("begin_step", "moment")]
    assert [call.partition("(")[0] for call in listed] == own


def test_a_loop_with_a_setting_gives_tokens_that_nothing_learns_from(tiny_model_dir, tmp_path):
    from my_loop import GRPOWithGivenTokens

    module = after_a_step(GRPOWithGivenTokens, tiny_model_dir, tmp_path, num_given=2)
    rollouts = module.last_step.rollouts
    places = torch.cat([torch.arange(length) for length in rollouts.completion_lengths.tolist()])
    assert torch.equal(rollouts.completion_mask, places >= 2)


def test_leave_one_out_of_a_completion_alone_is_zero():
    from leave_one_out import leave_one_out

    rewards, groups, none = torch.tensor([5.0, 1.0, 0.0, 0.5]).double(), torch.tensor([0, 1, 1, 1]), torch.zeros(4)
    found = leave_one_out(ScoredStep(rewards, groups, none, none, rewards[:, None], none))
    assert found.tolist() == [0.0, 0.75, -0.75, 0.0]
