"""GRPODataModule: what each stage reads, from where, with which converter; errors in the words of the config."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import lightning as L
import pandas as pd
import pytest
import torch
from jsonargparse import ArgumentParser
from runs import set_up_data, write_rows
from toy_models import build_tokenizer

from grpo_lightning.datamodules import GRPODataModule, GRPODatasetConverter
from grpo_lightning.types import PromptBatch

MATHS = [{"question": f"{n} + 1?", "answer": f"one more\n#### {n + 1}"} for n in range(6)]
TEXTS = [{"prompt": "z" * (n + 1), "kind": n} for n in range(6)]


def uids(loader: Any) -> list[int]:
    return [uid for batch in loader for uid in batch.uids]


def test_a_local_file_becomes_batches_with_the_columns_for_the_rewards(tmp_path: Path) -> None:
    data = set_up_data(dataset=write_rows(tmp_path / "m.jsonl", MATHS), converter="gsm8k", batch_size=2, shuffle=False)
    first = next(iter(data.train_dataloader()))
    assert (first.prompts, first.uids) == (["0 + 1?", "1 + 1?"], [0, 1])
    assert first.columns["ground_truth"] == ["1", "2"]
    assert first.columns["chain_of_thought"] == ["one more", "one more"]


def test_the_entry_of_dataset_info_names_the_converter_of_its_dataset_alone(tmp_path: Path) -> None:
    write_rows(tmp_path / "m.jsonl", MATHS)
    write_rows(tmp_path / "t.jsonl", TEXTS)
    entries = {
        "maths": {"file_name": "m.jsonl", "converter": "gsm8k", "converter_args": {"system_prompt": "Think."}},
        "texts": {"file_name": "t.jsonl", "columns": {"ground_truth": "kind"}},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    data = set_up_data(dataset="maths", eval_dataset="texts", dataset_info=str(tmp_path), batch_size=3)
    train, evaluation = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    assert train.prompts[0][0] == {"role": "system", "content": "Think."}
    assert evaluation.columns["ground_truth"] == [0, 1, 2]


def test_data_converter_overrides_the_entry(tmp_path: Path) -> None:
    entry = {"file_name": write_rows(tmp_path / "m.jsonl", MATHS), "converter": "gsm8k"}
    data = set_up_data(dataset=entry, converter="grpo", converter_args={"prompt_key": "question"}, batch_size=6)
    assert "ground_truth" not in data.train_prompts.columns
    instance = GRPODatasetConverter(prompt_key="answer")
    data = set_up_data(dataset=entry, converter=instance, batch_size=6, shuffle=False)
    assert next(iter(data.train_dataloader())).prompts[0] == "one more\n#### 1"


def capital(example: dict[str, Any], question: str = "{}?") -> dict[str, Any]:
    return {"prompt": question.format(example["country"])}


@pytest.mark.parametrize(
    ("entry", "prompt"),
    [
        ({"class_path": f"{__name__}.capital", "init_args": {"question": "Capital of {}?"}}, "Capital of Peru?"),
        ({"class_path": f"{__name__}.capital"}, "Peru?"),
        ({"class_path": "grpo", "init_args": {"prompt_key": "country"}}, "Peru"),
        ({"class_path": "GRPODatasetConverter", "init_args": {"prompt_key": "country"}}, "Peru"),
    ],
)
def test_a_converter_has_its_settings_beside_its_name(tmp_path: Path, entry: dict[str, Any], prompt: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(GRPODataModule, "data")
    rows = write_rows(tmp_path / "c.jsonl", [{"country": "Peru"}])
    data = parser.instantiate_classes(parser.parse_object({"data": {"dataset": rows, "converter": entry}})).data
    data = set_up_data(dataset=rows, converter=data.converter, converter_args=data.converter_args, batch_size=1)
    assert next(iter(data.train_dataloader())).prompts == [prompt]


def test_one_two_or_named_evaluation_datasets_have_one_loader_each(tmp_path: Path) -> None:
    path, other = write_rows(tmp_path / "a.jsonl", TEXTS), write_rows(tmp_path / "b.jsonl", TEXTS[:2])
    assert list(set_up_data("validate", eval_dataset=path).eval_prompts) == [""]
    several = set_up_data("validate", eval_dataset=[path, other], batch_size=4)
    assert list(several.eval_prompts) == [path, other]
    named = set_up_data("validate", eval_dataset={"long": path, "short": {"file_name": other}}, batch_size=4)
    assert list(named.eval_prompts) == ["long", "short"]
    assert [uids(loader) for loader in named.val_dataloader().values()] == [[0, 1, 2, 3, 4, 5], [0, 1]]
    with pytest.raises(ValueError, match=r"not all different. Give each a name"):
        set_up_data("validate", eval_dataset=[path, path])


def test_rows_and_datasets_may_be_given_from_python() -> None:
    import datasets

    data = set_up_data(dataset=TEXTS, eval_dataset={"a": datasets.Dataset.from_list(TEXTS[:2])}, batch_size=2)
    assert sorted(uids(data.train_dataloader())) == [0, 1, 2, 3, 4, 5]
    assert uids(data.val_dataloader()["a"]) == [0, 1]
    assert uids(set_up_data("validate", eval_dataset=TEXTS[:3]).val_dataloader()) == [0, 1, 2]


def test_test_and_predict_use_the_test_dataset_else_the_evaluation_dataset() -> None:
    assert uids(set_up_data("test", eval_dataset=TEXTS[:3]).test_dataloader()) == [0, 1, 2]
    data = set_up_data("predict", eval_dataset=TEXTS[:3], test_dataset=TEXTS[:2])
    assert uids(data.predict_dataloader()) == [0, 1]


def test_evaluation_keeps_the_last_incomplete_batch_and_its_own_batch_size() -> None:
    loader = set_up_data("validate", eval_dataset=TEXTS[:5], eval_batch_size=2).val_dataloader()
    assert [len(batch) for batch in loader] == [1, 2, 2]
    assert len(loader) == 3


def test_overlong_prompts_are_counted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        data = set_up_data(dataset=TEXTS, max_prompt_length=4, batch_size=4)
    assert data.train_prompts.num_dropped == 2
    assert "4 prompts, 2 dropped longer than data.max_prompt_length=4 tokens" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "data.batch_size=0"),
        ({"eval_batch_size": -1}, "data.eval_batch_size=-1"),
        ({"max_prompt_length": 0}, "data.max_prompt_length=0"),
        ({"overlong_prompts": "truncate"}, "overlong_prompts='truncate' cannot be used: it takes 'drop' or 'refuse'"),
        ({"converter": "gms8k"}, "'gms8k' not found. Did you mean gsm8k\\? Available converters"),
        ({"converter": "grpo", "converter_args": {"promt": "q"}}, "'grpo' takes no promt"),
        ({"converter": {"class_path": "grpo", "promt": "q"}}, "has the keys class_path and init_args"),
        ({"converter": {"class_path": "grpo", "init_args": {"promt": "q"}}}, "'grpo' takes no promt"),
        ({"converter": GRPODatasetConverter(), "converter_args": {"prompt": "q"}}, "no effect on a converter with"),
    ],
)
def test_settings_are_checked_on_construction(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        GRPODataModule(dataset="x.jsonl", **settings)


@pytest.mark.parametrize(
    ("settings", "stage", "message"),
    [
        ({}, "fit", "data.dataset is not set"),
        ({"dataset": TEXTS}, "validate", "data.eval_dataset is not set. Name the dataset to validate on"),
        ({"dataset": TEXTS}, "predict", "data.eval_dataset is not set. Name the dataset to predict on"),
        (
            {"dataset": (row for row in TEXTS)},
            "fit",
            r"is a stream \(generator\), which only training reads. Set data.streaming",
        ),
        ({"dataset": []}, "fit", "data given from Python has no rows"),
        ({"dataset": TEXTS, "split": "train[:1]"}, "fit", r"and 'train\[:1\]' is a part of one.*dataset.select"),
        (
            {"dataset": datasets.DatasetDict(a=datasets.Dataset.from_list(TEXTS)), "split": "a[:2]"},
            "fit",
            r"'a\[:2\]' is a part of one",
        ),
        (
            {"dataset": pd.DataFrame(TEXTS)},
            "fit",
            r"is a DataFrame that gives 'prompt', of type str.*to_dict\('records'\)",
        ),
        ({"dataset": ["1+1=", "2+2="]}, "fit", "is a list that gives '1.1=', of type str, where a row is a dictionary"),
        (
            {"dataset": TEXTS, "batch_size": 8},
            "fit",
            "data.batch_size=8 prompts need 8 prompts for a step, but .* has 6.*6",
        ),
        (
            {"dataset": TEXTS, "batch_size": 5, "max_prompt_length": 2},
            "fit",
            r"has 2 \(4 longer ones were dropped\). Set data.batch_size to at most 2",
        ),
        ({"dataset": MATHS}, "fit", "row 0 cannot be converted: .*Keys found: question, answer"),
        (
            {"dataset": TEXTS, "converter_args": {"ground_truth_key": "gold"}},
            "fit",
            "does not fit data.converter: ground_truth_key='gold' is not a column. Keys found: prompt, kind",
        ),
    ],
)
def test_data_that_cannot_work_is_refused_in_setup(settings: dict[str, Any], stage: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        set_up_data(stage, **settings)


def test_without_a_tokenizer_the_error_says_where_to_put_one() -> None:
    with pytest.raises(ValueError, match="no tokenizer"):
        GRPODataModule(TEXTS).setup("fit")


class Reader(L.LightningModule):
    """Takes part in every stage; says when its weights would load."""

    settings = SimpleNamespace(chat_template_kwargs={"mood": "calm"})  # as GRPOModule has it

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.tokenizer = build_tokenizer()
        self.tokenizer.chat_template = "{{ mood }}:{{ messages[0]['content'] }}"
        self.policy = SimpleNamespace(tokenizer=self.tokenizer)
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.loaded = False
        self.texts: list[tuple[int, str]] = []

    def configure_model(self) -> None:
        self.loaded = True

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.optimizers().step()

    def validation_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.texts.extend((dataloader_idx, self.tokenizer.decode(ids)) for ids in batch.prompt_ids)

    test_step = predict_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def quiet_trainer(**settings: Any) -> L.Trainer:
    switches = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "barebones": False}
    return L.Trainer(accelerator="cpu", enable_model_summary=False, **(switches | settings))


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_the_trainer_runs_every_evaluation_stage_over_all_datasets(stage: str) -> None:
    module = Reader()
    rows = [[{"prompt": [{"role": "user", "content": name}]}] for name in ("a", "b")]
    getattr(quiet_trainer(), stage)(module, GRPODataModule(eval_dataset={"a": rows[0], "b": rows[1]}))
    assert module.texts == [(0, "calm:a"), (1, "calm:b")]


@pytest.mark.filterwarnings("error:Total length")
def test_fitting_without_an_evaluation_dataset_needs_nothing_else() -> None:
    trainer = quiet_trainer(max_epochs=1, log_every_n_steps=1)
    trainer.fit(Reader(), GRPODataModule(TEXTS, batch_size=2))
    assert trainer.global_step == 3


def test_data_errors_come_before_weights_load(tmp_path: Path) -> None:
    for settings in ({"dataset": str(tmp_path / "no.jsonl")}, {"dataset": MATHS}, {"dataset": TEXTS, "batch_size": 9}):
        module = Reader()
        with pytest.raises((ValueError, FileNotFoundError)):
            quiet_trainer(max_epochs=1).fit(module, GRPODataModule(**settings))
        assert not module.loaded


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data.dataset=a.jsonl", "--data.eval_dataset=[a.jsonl, b.jsonl]", "--data.replace_text={a: b}"],
        ["--data.dataset={hf_hub_url: openai/gsm8k, subset: main}", "--data.eval_dataset={gsm: {file_name: x}, b: c}"],
        ["--data.converter=gsm8k", "--data.converter_args={system_prompt: Think.}", "--data.max_prompt_length=512"],
        ["--data.converter=GRPODatasetConverter", "--data.converter.prompt_key=question"],
    ],
)
def test_every_form_of_the_settings_parses_on_a_command_line(arguments: list[str]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(GRPODataModule, "data")
    data = parser.instantiate(parser.parse_args(arguments)).data
    assert isinstance(data, GRPODataModule)
    if "prompt_key" in arguments[-1]:
        assert data.converter == GRPODatasetConverter(prompt_key="question")


def text_warnings(record: pytest.WarningsRecorder) -> list[str]:
    return [str(one.message) for one in record if "chat template" in str(one.message)]


def test_text_for_a_tokenizer_with_a_chat_template_is_pointed_out_once(recwarn: pytest.WarningsRecorder) -> None:
    set_up_data(dataset=TEXTS, eval_dataset=TEXTS, batch_size=2)
    (message,) = text_warnings(recwarn)
    assert "are text" in message and "data.converter_args.conversational to true" in message


@pytest.mark.parametrize("conversational", [True, False])
def test_nothing_is_pointed_out_where_the_config_says_what_is_meant(
    conversational: bool, recwarn: pytest.WarningsRecorder
) -> None:
    set_up_data(dataset=TEXTS, batch_size=2, converter_args={"conversational": conversational})
    assert text_warnings(recwarn) == []


def test_a_users_own_converter_is_told_to_return_messages(recwarn: pytest.WarningsRecorder) -> None:
    set_up_data(dataset=TEXTS, batch_size=2, converter=dict)
    (message,) = text_warnings(recwarn)
    assert "list of messages" in message and "conversational" not in message
