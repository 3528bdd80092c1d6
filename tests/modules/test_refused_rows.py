"""Rows that only a step finds wrong, with weights loaded: each is refused by its number, in an error that needs no traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runs import make_module, make_trainer, write_rows
from toy_models import build_tokenizer

from grpo_lightning import GRPODataModule, RewardModelModule
from grpo_lightning.datamodules.written.compared_texts import compared_texts
from grpo_lightning.datamodules.written.demonstrations import WrittenSettings, demonstrations
from grpo_lightning.datamodules.written.preferences import read_preferences
from grpo_lightning.errors import RefusedRowError
from grpo_lightning.generation import SamplingSettings
from grpo_lightning.generation.vllm.requests.prompts import check_prompts
from grpo_lightning.modules.sft import SFTModule
from grpo_lightning.rollouts.partial_rollouts import PartialRollouts
from grpo_lightning.training.distillation import Distillation
from grpo_lightning.training.distillation.lessons import lessons_of
from grpo_lightning.types import PromptBatch, Rollouts

ASK = [{"role": "user", "content": "2+3?"}]
SAY = [{"role": "assistant", "content": "5"}]
LOOK = [{"role": "tool", "content": "five"}, *SAY]
TWO_ROLES = (
    "{% for message in messages %}{% if message.role not in ['user', 'assistant'] %}"
    "{{ raise_exception('no role ' + message.role) }}{% endif %}{{ message.content }}<|im_end|>{% endfor %}"
)
"""A template that knows user and assistant only, as Gemma's and Mistral's do."""


@pytest.fixture
def tokenizer() -> Any:
    made = build_tokenizer()
    made.chat_template = TWO_ROLES
    return made


def batch(tokenizer: Any, prompt: Any, **columns: Any) -> PromptBatch:
    """Two rows with the numbers 7 and 8."""
    ids = tokenizer.apply_chat_template(ASK, return_dict=True)["input_ids"]
    return PromptBatch([prompt] * 2, [ids] * 2, [7, 8], columns)


def read_pairs(tokenizer: Any, **columns: Any) -> Any:
    return read_preferences(batch(tokenizer, ASK, **columns), tokenizer, WrittenSettings(), in_pairs=True)


def read_completions(tokenizer: Any, **columns: Any) -> Any:
    return demonstrations(batch(tokenizer, ASK, **columns), tokenizer, WrittenSettings())


def read_texts(tokenizer: Any, **columns: Any) -> Any:
    return compared_texts(batch(tokenizer, ASK, **columns), tokenizer, None)


@pytest.mark.parametrize(
    ("read", "columns"),
    [
        (read_completions, {"completion": [SAY, LOOK]}),
        (read_pairs, {"chosen": [SAY, SAY], "rejected": [SAY, LOOK]}),
        (read_texts, {"chosen": [SAY, SAY], "rejected": [SAY, LOOK]}),
    ],
)
def test_a_completion_that_the_chat_template_fails_on_is_refused(tokenizer, read, columns):
    with pytest.raises(RefusedRowError, match=r"^The chat template cannot be applied to .* of row 8: no role tool$"):
        read(tokenizer, **columns)


def test_what_fails_without_a_chat_template_is_not_said_to_be_its_fault(tokenizer):
    tokenizer.chat_template = None
    rows = PromptBatch(["2+3="] * 2, [[1]] * 2, [7, 8], {"chosen": ["5", "6"], "rejected": ["4", 4]})
    with pytest.raises(TypeError, match=r"^'int' object is not iterable$"):
        compared_texts(rows, tokenizer, None)


def test_a_text_prompt_leaves_what_is_for_chat_templates_alone(tokenizer):
    rows = batch(tokenizer, "2+3=", completion=["5", "6"], tools=["search", None])
    assert (
        tokenizer.decode(demonstrations(rows, tokenizer, WrittenSettings()).completion_ids) == "5<|im_end|>6<|im_end|>"
    )


@pytest.mark.parametrize("read", [read_completions, read_pairs, read_texts])
def test_columns_that_a_stream_turns_out_not_to_have_are_refused(tokenizer, read):
    with pytest.raises(RefusedRowError, match=r"column.* answer"):
        read(tokenizer, answer=["5", "6"])


@pytest.mark.parametrize("margin", [None, "much", float("inf")])
def test_a_margin_that_is_none_is_refused(tokenizer, margin):
    with pytest.raises(RefusedRowError, match=r"margin holds .* not a finite number in every row: see row 8\."):
        read_texts(tokenizer, chosen=[SAY] * 2, rejected=[LOOK[1:]] * 2, margin=[0.5, margin])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"hint": ["small", "odd"]}, "chat template cannot be applied to the prompts of row 8: odd"),
        ({"other": ["small", "odd"]}, "teacher_prompt names the column 'hint', which the data does not have"),
    ],
)
def test_a_row_that_cannot_be_told_to_a_teacher_is_refused(tokenizer, columns, message):
    tokenizer.chat_template += "{% if 'odd' in messages[-1].content %}{{ raise_exception('odd') }}{% endif %}"
    rows = batch(tokenizer, ASK, **columns)
    rollouts = Rollouts.from_lists(rows.prompt_ids, [[9], [10]], [[0.0], [0.0]], [False] * 2, [0, 1])
    with pytest.raises(RefusedRowError, match=message):
        lessons_of(Distillation("self", teacher_prompt="{prompt} {hint}"), rows, rollouts, tokenizer, {})


@pytest.mark.parametrize(
    ("module", "converter", "good", "bad", "message"),
    [
        (
            SFTModule,
            "sft",
            {"completion": "2"},
            {"completion": ""},
            "row 1 cannot be converted: the row has no completion",
        ),
        (
            RewardModelModule,
            "dpo",
            {"chosen": "2", "rejected": "3", "margin": 0.5},
            {"chosen": "2", "rejected": "3", "margin": "much"},
            "margin holds 'much'.* see row 1",
        ),
    ],
)
def test_a_row_that_a_stream_comes_to_is_refused(
    tiny_model_dir: Path, tmp_path: Path, module: Any, converter: str, good: dict, bad: dict, message: str
):
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "1+1=", **row} for row in (good, bad)])
    data = GRPODataModule(path, converter=converter, streaming=True, batch_size=1, shuffle=False, shuffle_block=1)
    stage = module(model_name_or_path=str(tiny_model_dir))
    with pytest.raises(RefusedRowError, match=message):
        make_trainer(tmp_path, 2).fit(stage, datamodule=data)
    assert stage.policy.is_loaded


@pytest.mark.parametrize("settings", [{}, {"partial_rollouts": PartialRollouts(carry_over=0.5)}])
def test_a_prompt_that_leaves_no_room_for_its_completion_is_refused(
    tiny_model_dir: Path, tmp_path: Path, settings: dict
):
    rows = [{"prompt": prompt, "ground_truth": "2"} for prompt in ("1+1=", "2=", "2-0=", "1" * 510)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    data = GRPODataModule(path, streaming=True, batch_size=2, shuffle=False, shuffle_block=1)
    found = r"^row 3 \('1{60}'\) has 510 tokens and may reach 518 .* the model has 512 positions"
    with pytest.raises(RefusedRowError, match=found):
        make_trainer(tmp_path, 2).fit(make_module(tiny_model_dir, **settings), datamodule=data)


def test_a_prompt_that_leaves_no_room_in_an_engine_is_refused_by_its_place_where_nobody_knows_rows():
    found = r"^prompt 1 of the batch has 510 tokens and may reach 518 .* the vLLM engine holds 512"
    with pytest.raises(RefusedRowError, match=found):
        check_prompts([[5], [5] * 510], SamplingSettings(max_completion_length=8), [0, 1], 512)


def test_a_row_is_called_by_the_last_thing_that_is_said_in_its_prompt():
    shown = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]}]
    prompts = ["2+3=", [{"role": "system", "content": "Be brief."}, *ASK], shown]
    rows = PromptBatch(prompts, [[5]] * 3, [7, 8, 9])
    assert [rows.row_name(b) for b in range(3)] == ["row 7 ('2+3=')", "row 8 ('2+3?')", "row 9 ('[image]How many?')"]
