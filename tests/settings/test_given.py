"""What Python gives to modules and data modules is checked as a config is: names, types, the words of the answer."""

from __future__ import annotations

import inspect
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from runs import make_module, share_of_digits

from grpo_lightning import GRPODataModule, GRPOModule, SFTModule
from grpo_lightning.rollouts.dynamic_sampling import DynamicSampling
from grpo_lightning.settings.given import in_words, may_be


class Weekly(GRPODataModule):
    """A subclass with an argument of its own."""

    def __init__(self, week: int = 1, **settings):
        super().__init__(**settings)
        self.week = week


@pytest.mark.parametrize(
    ("made", "given", "said"),
    [
        (GRPODataModule, {"datset": "a"}, r"GRPODataModule has no setting datset='a'. Did you mean dataset\?$"),
        (GRPODataModule, {"dataset": "a", "batchsize": 3}, r"no setting batchsize=3. Did you mean batch_size\?$"),
        (GRPODataModule, {"dataset": "a", "zzz": 3}, r"GRPODataModule has no setting zzz=3.$"),
        (Weekly, {"weak": 3}, r"Weekly has no setting weak=3. Did you mean week\?$"),
        (
            GRPODataModule,
            {"batchsize": 3, "datset": "a"},
            r"batchsize=3. Did you mean batch_size\? GRPODataModule has no setting datset='a'. Did you mean dataset\?$",
        ),
        (
            SFTModule,
            {"learning_rate": 1},
            "no setting learning_rate=1. TRL's learning_rate is here: model.optimizer.init_args.lr",
        ),
        (
            SFTModule,
            {"lora_rank": 2},
            r"^SFTModule is not told model_name_or_path. .*: SFTModule\(model_name_or_path=..., ...\)",
        ),
        (GRPODataModule, {"batch_size": "8"}, r"batch_size='8' cannot be used: it takes a whole number.$"),
        (
            GRPODataModule,
            {"max_prompt_length": 8.5},
            "max_prompt_length=8.5 cannot be used: it takes a whole number or None",
        ),
        (GRPODataModule, {"shuffle": "no"}, "shuffle='no' cannot be used: it takes true or false.$"),
        (GRPODataModule, {"overlong_prompts": "cut"}, "it takes 'drop' or 'refuse'.$"),
        (
            GRPODataModule,
            {"curriculum": {"hard_share": 0.1}},
            r"it takes Curriculum\(...\) of grpo_lightning.datamodules",
        ),
        (
            SFTModule,
            {"model_name_or_path": "m", "lora_rank": True},
            "lora_rank=True cannot be used: it takes a whole number",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_answered_in_the_words_of_a_config(made, given, said):
    with pytest.raises(TypeError, match=said):
        made(**given)


@pytest.mark.parametrize(
    ("settings", "takes"),
    [
        ({"num_generations": "8"}, "a whole number"),
        ({"num_generations": 8.0}, "a whole number"),
        ({"beta": "0.1"}, "a number"),
        ({"stop": "###"}, "a list or None"),
        ({"rewards": ["accuracy"], "model_name_or_path": 5}, "a text"),
        ({"max_tokens_per_microbatch": "lots"}, "a whole number or 'auto'"),
        (
            {"dynamic_sampling": {"mode": "drop"}},
            r"DynamicSampling\(\.\.\.\) of grpo_lightning.rollouts.dynamic_sampling",
        ),
    ],
    ids=str,
)
def test_a_module_refuses_types_before_anything_is_read(settings, takes):
    name, value = list(settings.items())[-1]
    with pytest.raises(TypeError) as refused:
        GRPOModule(**{"model_name_or_path": "/no/such", "rewards": "accuracy"} | settings)
    found = str(refused.value)
    assert found.startswith(f"GRPOModule: {name}={value!r} cannot be used: it takes ")
    assert re.search(takes, found)


def test_numbers_of_numpy_paths_and_tuples_are_what_they_stand_for(tiny_model_dir):
    given = {"num_generations": np.int64(4), "beta": np.float32(0.5), "stop": ("#",), "temperature": 1}
    module = make_module(Path(tiny_model_dir), dynamic_sampling=DynamicSampling(mode="drop"), **given)
    assert (module.sampling.num_generations, module.objective.beta) == (4, 0.5)
    assert may_be(Path("a"), str | None) and not may_be(b"a", str | None)


def test_what_only_its_user_can_judge_passes():
    assert may_be(object(), int | type[Path]) and may_be(print, "anything")
    assert in_words(float | None) == ["a number", "None"]


def test_objects_that_no_config_holds_reach_what_uses_them(tiny_model_dir):
    rows = [{"prompt": "a"}]
    for dataset in (Dataset.from_list(rows), Dataset.from_list(rows).to_iterable_dataset(), iter(rows), OneRow()):
        assert GRPODataModule(dataset=dataset).dataset is dataset
    module = make_module(Path(tiny_model_dir), rewards=share_of_digits, beta=torch.tensor(0.5))
    assert list(module.source.reward_runner.names) == ["share_of_digits"] and module.objective.beta == 0.5


class OneRow:
    """As torch's datasets are."""

    def __len__(self):
        return 1

    def __getitem__(self, row):
        return {"prompt": "a"}


def test_a_function_is_a_converter_and_no_other_object_is():
    def first_words(row):
        return {"prompt": row["text"].split()[0]}

    assert GRPODataModule(dataset="a", converter=first_words).converter is first_words
    with pytest.raises(TypeError, match=r"converter=5 cannot be used: it takes a text or DatasetConverter\(\.\.\.\)"):
        GRPODataModule(dataset="a", converter=5)


def test_a_data_module_shows_its_arguments_and_can_be_sent_to_another_process():
    assert list(inspect.signature(GRPODataModule).parameters)[:2] == ["dataset", "eval_dataset"]
    sent = pickle.loads(pickle.dumps(Weekly(week=2, batch_size=3)))
    assert (sent.week, sent.batch_size) == (2, 3)
