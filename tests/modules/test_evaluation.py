"""Evaluation measures what it says and leaves no trace in training."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from runs import fit, make_data, make_module, make_trainer, weights, write_prompts, write_rows

from grpo_lightning.callbacks import PredictionWriter
from grpo_lightning.metrics.evaluation import NamedMeans, pass_at_k


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_one():
    from itertools import combinations

    samples = [True, False, False, True, False]
    for k in range(1, 6):
        subsets = list(combinations(samples, k))
        expected = sum(any(subset) for subset in subsets) / len(subsets)
        assert pass_at_k(5, 2, k) == pytest.approx(expected)


def test_pass_at_more_than_was_sampled_is_refused():
    with pytest.raises(ValueError, match="pass@3 needs at least 3 completions per prompt, got 2"):
        pass_at_k(2, 1, 3)


def test_means_weigh_entries_and_not_batches():
    means = NamedMeans(["accuracy"])
    means.update({"accuracy": [1.0]})
    means.update({"accuracy": [0.0, 0.0, float("nan")]})
    assert means.compute() == {"accuracy": pytest.approx(1 / 3)}


def test_training_is_the_same_with_and_without_validation(tiny_model_dir, tmp_path):
    held_out = {"eval_dataset": str(write_prompts(tmp_path / "eval.jsonl", 4))}
    plain = fit(tiny_model_dir, tmp_path, max_steps=4)
    checked = fit(
        tiny_model_dir,
        tmp_path,
        max_steps=4,
        trainer={"val_check_interval": 1},
        data=held_out,
        num_generations_eval=2,
    )
    assert checked.trainer.callback_metrics["val/pass@2"] is not None
    for name, weight in weights(plain).items():
        assert torch.equal(weight, weights(checked)[name]), name


def test_accuracy_is_greedy_and_pass_at_k_sampled(tiny_model_dir, tmp_path):
    lengths = []

    def right_when_sampled(completions, **columns):
        """Right for all but the first of several completions of a prompt: never for a greedy one alone."""
        lengths.append(len(completions))
        per_prompt = len(completions) // 4
        return [float(i % per_prompt > 0) for i in range(len(completions))]

    module = make_module(tiny_model_dir, rewards=[right_when_sampled], num_generations_eval=4)
    data = make_data(tmp_path, eval_dataset=str(write_prompts(tmp_path / "eval.jsonl", 4)), eval_batch_size=4)
    (metrics,) = make_trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    assert lengths == [4, 16]
    assert metrics["val/accuracy"] == 0.0
    assert metrics["val/pass@1"] == pytest.approx(0.75)
    assert metrics["val/pass@2"] == metrics["val/pass@4"] == 1.0


def test_what_the_success_reward_does_not_score_is_neither_right_nor_wrong(tiny_model_dir, tmp_path):
    """Greedy: of four prompts two are scored. Sampled: all, three, one and none of four completions."""
    scores = {
        4: [1.0, None, 0.0, None],
        16: [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, None, 0.0, None, None, None, None, None, None, None],
    }
    module = make_module(
        tiny_model_dir, rewards=[lambda completions, **columns: scores[len(completions)]], num_generations_eval=4
    )
    data = make_data(tmp_path, eval_dataset=str(write_prompts(tmp_path / "eval.jsonl", 4)), eval_batch_size=4)
    (metrics,) = make_trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    assert metrics["val/accuracy"] == 0.5
    assert metrics["val/pass@1"] == pytest.approx((1 / 4 + 1 / 3 + 0) / 3)
    assert metrics["val/pass@2"] == pytest.approx((3 / 6 + 2 / 3) / 2)  # the first two prompts
    assert metrics["val/pass@4"] == 1.0  # the first one alone


def test_several_held_out_datasets_are_logged_by_name(tiny_model_dir, tmp_path):
    paths = {name: str(write_prompts(tmp_path / f"{name}.jsonl", 3)) for name in ("easy", "hard")}
    module = make_module(tiny_model_dir)
    trainer = make_trainer(tmp_path)
    trainer.validate(module, datamodule=make_data(tmp_path, eval_dataset=paths), verbose=False)
    assert {"val/easy/accuracy", "val/hard/accuracy"} <= set(trainer.callback_metrics)


@pytest.mark.parametrize("kind", ["validate", "test"])
def test_an_evaluation_is_logged_where_that_of_the_run_was(kind, tiny_model_dir, tmp_path):
    """A CSV file of ``validate`` said step 0, whatever the weights were."""
    data = {"eval_dataset": str(write_prompts(tmp_path / "eval.jsonl", 4))}
    trained = fit(
        tiny_model_dir,
        tmp_path,
        max_steps=3,
        trainer={"val_check_interval": 3, "logger": CSVLogger(tmp_path, "fit"), "log_every_n_steps": 1},
        data=data,
    )
    trained.trainer.save_checkpoint(tmp_path / "third.ckpt")
    logger = CSVLogger(tmp_path, "after")
    after = make_trainer(tmp_path, logger=logger)
    evaluate = {"validate": after.validate, "test": after.test}[kind]
    held_out = make_data(tmp_path, **data)
    evaluate(make_module(tiny_model_dir), held_out, ckpt_path=str(tmp_path / "third.ckpt"), verbose=False)
    of_run = [row for row in csv_rows(trained.trainer.logger) if row.get("val/accuracy")]
    assert [row["step"] for row in csv_rows(logger)] == [row["step"] for row in of_run] == ["2"]
    assert after.fit_loop.epoch_loop._batches_that_stepped == 0  # as Lightning left it
    assert trained.trainer.fit_loop.epoch_loop._batches_that_stepped == 3


def csv_rows(logger: CSVLogger) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(logger.log_dir, "metrics.csv").read_text().splitlines()))


def test_the_table_of_several_datasets_has_a_column_of_each(tiny_model_dir, tmp_path, capsys):
    """Lightning's had the metrics of all of them in each column, and no names."""
    paths = {name: str(write_prompts(tmp_path / f"{name}.jsonl", 3)) for name in ("easy", "hard")}
    trainer = make_trainer(tmp_path)
    (metrics, _) = trainer.validate(make_module(tiny_model_dir), make_data(tmp_path, eval_dataset=paths))
    lines = [line.replace("┃", "│").split("│") for line in capsys.readouterr().out.splitlines()]
    rows = {line[1].strip(): [cell.strip() for cell in line[2:-1]] for line in lines if len(line) > 3}
    assert rows["Validate metric"] == ["easy", "hard"]
    means = [metrics[f"val/{name}/completions/mean_length"] for name in ("easy", "hard")]
    assert rows["val/completions/mean_length"] == [f"{mean:.6g}" for mean in means]


def test_predictions_show_what_a_reward_says_of_each_completion(tiny_model_dir, tmp_path):
    def talks(completions, log_extra, **columns):
        log_extra("shouted", [text.upper() for text in completions])
        return [0.0] * len(completions)

    module = make_module(tiny_model_dir, rewards=[talks])
    data = make_data(tmp_path, eval_dataset=str(write_prompts(tmp_path / "eval.jsonl", 4)))
    batches = make_trainer(tmp_path).predict(module, datamodule=data)
    rows = [row for batch in batches for row in batch]
    assert len(rows) == 4 * module.sampling.num_generations
    assert all(row["shouted"] == row["completion"].upper() for row in rows)


def test_written_predictions_are_not_said_to_be_without_indices(tiny_model_dir, tmp_path):
    """Lightning warned of it at every `predict`; whatever else it warns of is heard as before."""
    data = make_data(tmp_path, eval_dataset=str(write_prompts(tmp_path / "eval.jsonl", 4)))
    trainer = make_trainer(tmp_path, callbacks=[PredictionWriter()])
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        filters = list(warnings.filters)
        trainer.predict(make_module(tiny_model_dir), datamodule=data)
        assert warnings.filters == filters
    assert not [each for each in heard if "batch indices" in str(each.message)]
    assert (tmp_path / "predictions.jsonl").read_text().count("\n") == 16


def test_written_predictions_of_several_datasets_say_which_one_they_are_of(tiny_model_dir, tmp_path):
    files = {name: write_prompts(tmp_path / f"{name}.jsonl", 2) for name in ("easy", "hard")}
    data = make_data(tmp_path, eval_dataset={name: str(file) for name, file in files.items()})
    make_trainer(tmp_path, callbacks=[PredictionWriter()]).predict(make_module(tiny_model_dir), datamodule=data)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [row["dataset"] for row in rows] == ["easy"] * 2 * 4 + ["hard"] * 2 * 4


def test_columns_of_the_data_do_not_hide_what_a_prediction_says(tiny_model_dir, tmp_path):
    """A data set with completions of its own had these in predictions.jsonl, as if the policy had written them."""
    taken = {"uid": "mine", "completion": "mine", "truncated": "mine", "dataset": "mine", "rewards": "share_of_digits"}
    row = {"prompt": "1+1=", "ground_truth": "2", **taken}
    files = {name: write_rows(tmp_path / f"{name}.jsonl", [row]) for name in ("easy", "hard")}
    data = make_data(tmp_path, eval_dataset=files)
    make_trainer(tmp_path, callbacks=[PredictionWriter()]).predict(make_module(tiny_model_dir), datamodule=data)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert {row["dataset"] for row in rows} == {"easy", "hard"}
    assert all(type(row["truncated"]) is bool and row["completion"] != "mine" and row["uid"] == 0 for row in rows)
