"""Imitation against plain cross-entropy of the completion tokens."""

from __future__ import annotations

import shutil
from functools import partial

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import make_trainer, train_stage, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from grpo_lightning import DPOModule, GRPODataModule
from grpo_lightning.datamodules.converters import get_dataset_converter
from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.datamodules.prompts.form import PromptForm
from grpo_lightning.datamodules.written.demonstrations import WrittenSettings, demonstrations
from grpo_lightning.errors import RefusedRowError
from grpo_lightning.modules.sft import SFTModule
from grpo_lightning.types import PromptBatch

ROWS = [
    {"prompt": "0" * (i % 3) + f"{i}+{i}=", "completion": f"<answer>{2 * i}</answer>" * (1 + i % 2)} for i in range(6)
]

train = partial(train_stage, SFTModule, "sft", ROWS)


def completion_losses(model, tokenizer, rows: list[dict]) -> torch.Tensor:
    """Cross-entropy of each completion token and the end-of-sequence token, one row at a time."""
    losses = []
    for row in rows:
        prompt = tokenizer(row["prompt"]).input_ids
        completion = [*tokenizer(row["completion"]).input_ids, tokenizer.eos_token_id]
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(completion), reduction="none"))
    return torch.cat(losses)


@pytest.mark.parametrize("settings", [{}, {"max_tokens_per_microbatch": 30}, {"microbatch_layout": "padded"}])
def test_a_step_descends_the_mean_cross_entropy_of_completion_tokens(tiny_model_dir, tmp_path, settings):
    module = train(tiny_model_dir, tmp_path, **settings)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    loss = completion_losses(model, AutoTokenizer.from_pretrained(tiny_model_dir), ROWS[:3]).mean()
    loss.backward()
    expected = {name: (p - 0.1 * p.grad).detach() for name, p in model.named_parameters()}
    trained = {name: p.detach() for name, p in module.policy.model.named_parameters()}
    torch.testing.assert_close(trained, expected, rtol=1e-4, atol=1e-6)
    assert module.step_metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_validation_reports_the_mean_over_tokens_of_all_batches(tiny_model_dir, tmp_path):
    module = SFTModule(model_name_or_path=str(tiny_model_dir))
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    data = GRPODataModule(eval_dataset=path, eval_batch_size=4, converter="sft")
    (metrics,) = make_trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    with torch.no_grad():
        losses = completion_losses(model, AutoTokenizer.from_pretrained(tiny_model_dir), ROWS)
    assert metrics["val/loss"] == pytest.approx(losses.mean().item(), rel=1e-5)


def test_lora_learns_by_heart_and_resumes_bit_for_bit(tiny_model_dir, tmp_path):
    settings = {
        "finetuning_type": "lora",
        "lora_dropout": 0.1,
        "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2),
        "trainer": {
            "callbacks": [ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=10)],
            "enable_checkpointing": True,
        },
    }
    first = train(tiny_model_dir, tmp_path, 1, **{**settings, "trainer": {}}).step_metrics["loss"]
    whole = train(tiny_model_dir, tmp_path, 30, **settings)
    assert whole.step_metrics["loss"] < 0.3 * first
    resumed = train(tiny_model_dir, tmp_path, 30, resume_from=str(tmp_path / "step=20.ckpt"), **settings)
    assert resumed.steps_done == 30
    for name, parameter in whole.policy.model.named_parameters():
        assert torch.equal(parameter, resumed.policy.model.get_parameter(name)), name


# ---- completions as tokens


def batch(tokenizer, prompt, completion) -> PromptBatch:
    if isinstance(prompt, str):
        ids = tokenizer(prompt).input_ids
    else:
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    return PromptBatch([prompt], [ids], [7], {"completion": [completion]})


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def test_text_is_followed_by_the_end_of_sequence_token(tokenizer):
    rollouts = demonstrations(batch(tokenizer, "2+3=", "5"), tokenizer, WrittenSettings(max_completion_length=10))
    assert tokenizer.decode(rollouts.completion_ids) == "5<|im_end|>"
    assert not rollouts.truncated.any()


@pytest.mark.parametrize("completion", ["It is 5", [{"role": "assistant", "content": "It is 5"}]])
def test_a_chat_completion_ends_where_generation_would(tokenizer, completion):
    prompt = [{"role": "user", "content": "2+3?"}]
    rollouts = demonstrations(
        batch(tokenizer, prompt, completion), tokenizer, WrittenSettings(max_completion_length=100)
    )
    assert tokenizer.decode(rollouts.completion_ids) == "It is 5<|im_end|>"
    whole = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": "It is 5"}], tokenize=False)
    both = tokenizer.decode(torch.cat([rollouts.prompt_ids, rollouts.completion_ids]))
    assert whole == both + "\n"


@pytest.mark.parametrize("settings", [{}, {"finetuning_type": "lora"}], ids=["full", "lora"])
@pytest.mark.parametrize(
    ("stage", "row"), [(SFTModule, {"completion": "5"}), (DPOModule, {"chosen": "5", "rejected": "6"})]
)
def test_a_chat_ends_with_whatever_ends_generation_where_the_tokenizer_says_otherwise(
    tiny_model_dir, tmp_path, stage, row, settings
):
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    turn_end, tokenizer.eos_token = tokenizer.eos_token_id, tokenizer.pad_token  # as in Gemma
    tokenizer.save_pretrained(tmp_path / "model")
    GenerationConfig(eos_token_id=[turn_end, tokenizer.eos_token_id]).save_pretrained(tmp_path / "model")
    rows = [{"prompt": [{"role": "user", "content": "2+3?"}], **row}] * 3
    converter = "sft" if stage is SFTModule else "dpo"
    module = train_stage(stage, converter, rows, tmp_path / "model", tmp_path, **settings)
    made = PromptDataset(rows, get_dataset_converter(converter), PromptForm(module.policy.tokenizer), "rows").batch([0])
    read = module.demonstrations(made) if stage is SFTModule else module.own_preferences(made).rollouts
    assert [ids[-1] for ids in read.completions()] == [turn_end] * len(row)
    assert [len(ids) for ids in read.completions()] == [2] * len(row)


def test_a_long_completion_is_cut_and_not_ended(tokenizer):
    rollouts = demonstrations(batch(tokenizer, "1+1=", "123456"), tokenizer, WrittenSettings(max_completion_length=3))
    assert tokenizer.decode(rollouts.completion_ids) == "123"
    assert rollouts.truncated.tolist() == [True]


def test_a_template_that_writes_the_prompt_otherwise_is_refused(tokenizer):
    import copy

    thinking = copy.deepcopy(tokenizer)
    thinking.chat_template += "{% if add_generation_prompt %}<think>{% endif %}"
    prompt = [{"role": "user", "content": "2+3?"}]
    with pytest.raises(
        RefusedRowError, match=r"row 7: with the completion behind it, the chat template writes the prompt"
    ):
        demonstrations(batch(thinking, prompt, "5"), thinking, WrittenSettings())


@pytest.mark.parametrize(
    ("rows", "converter", "message"),
    [
        ([{"prompt": "a"}], "sft", "completion_key='completion' is not a column"),
        ([{"prompt": "a", "completion": ""}], "sft", "row 0 cannot be converted: the row has no completion"),
        ([{"prompt": "a", "answer": "b"}], "grpo", "The dataset has no column 'completion' to learn from, only answer"),
        ([{"messages": []}], "sft", "whole conversations are read with data.converter_args.messages_key=messages"),
    ],
)
def test_rows_without_a_completion_are_refused_before_weights_load(
    tiny_model_dir, tmp_path, monkeypatch, rows, converter, message
):
    monkeypatch.setattr(SFTModule, "configure_model", lambda self: pytest.fail("weights have loaded"))
    path = write_rows(tmp_path / "bad.jsonl", rows)
    with pytest.raises(ValueError, match=message):
        train(tiny_model_dir, tmp_path, data={"dataset": str(path), "converter": converter, "batch_size": 1})


@pytest.mark.parametrize("longest", [{"prompt": "1" * 505}, {"completion": "2" * 512}])
def test_a_row_that_reaches_beyond_the_positions_of_the_model_is_refused(tiny_model_dir, tmp_path, longest):
    rows = [{"prompt": "1" * 500, "completion": "2" * 11}, {"prompt": "1+1=", "completion": "3333333"} | longest]
    with pytest.raises(
        RefusedRowError, match=r"row 1 has 51[37] tokens.*the 512 positions of the model.*max_completion_length"
    ):
        train(tiny_model_dir, tmp_path, rows=rows, data={"batch_size": 2})
    train(tiny_model_dir, tmp_path, rows=rows, data={"batch_size": 1})


def test_a_row_that_a_later_step_refuses_ends_the_command_with_its_message_alone(tiny_model_dir, tmp_path, capsys):
    from grpo_lightning.commands.stage_cli import main

    rows = [{"prompt": "1+1=", "completion": "2"}, {"prompt": "1" * 505, "completion": "3333333333"}]
    data = ["--data.dataset", write_rows(tmp_path / "rows.jsonl", rows), "--data.batch_size", "1"]
    model = ["--model.model_name_or_path", str(tiny_model_dir), "--data.shuffle", "false"]
    run = [
        "--trainer.default_root_dir",
        str(tmp_path / "run"),
        "--trainer.accelerator",
        "cpu",
        "--trainer.max_steps",
        "2",
    ]
    with pytest.raises(SystemExit) as ended:
        main("sft", [*model, *data, *run])
    assert ended.value.code == 1
    assert "\nerror: row 1 has 516 tokens, prompt and completion" in capsys.readouterr().err


def test_a_completion_that_is_no_answer_is_refused(tokenizer):
    prompt = [{"role": "user", "content": "2+3?"}]
    with pytest.raises(RefusedRowError, match="row 7 has a completion that begins with a message of the user"):
        demonstrations(
            batch(tokenizer, prompt, [*prompt, {"role": "assistant", "content": "5"}]),
            tokenizer,
            WrittenSettings(max_completion_length=100),
        )


@pytest.mark.parametrize(
    ("of_model", "of_data"), [(None, {"answer": "a"}), ({"answer": "a"}, {}), ({"answer": "a"}, {"other": "b"})]
)
def test_replaced_text_is_replaced_in_completions_too(tiny_model_dir, tmp_path, of_model, of_data):
    seen = []
    module = SFTModule(model_name_or_path=str(tiny_model_dir), replace_text=of_model)
    module.imitation_loss, original = (
        lambda rollouts, micro: seen.append(rollouts) or original(rollouts, micro),
        module.imitation_loss,
    )
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    data = GRPODataModule(dataset=path, batch_size=6, replace_text=of_data, shuffle=False)
    make_trainer(tmp_path).fit(module, datamodule=data)
    assert "<a>2</a>" in module.policy.tokenizer.decode(seen[0].completion_ids)


def test_the_command_line_trains_and_exports(tiny_model_dir, tmp_path):
    from grpo_lightning.commands.stage_cli import main

    config = {
        "trainer": {"default_root_dir": str(tmp_path / "run"), "accelerator": "cpu", "devices": 1, "max_steps": 2},
        "model": {"model_name_or_path": str(tiny_model_dir), "optimizer": {"class_path": "torch.optim.AdamW"}},
        "data": {"dataset": write_rows(tmp_path / "rows.jsonl", ROWS), "batch_size": 3},
    }
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(config))
    assert main("sft", ["--config", str(tmp_path / "sft.yaml"), "--trainer.enable_progress_bar=false"]) == 0
    assert (tmp_path / "run/hf/last/model.safetensors").is_file()
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()
