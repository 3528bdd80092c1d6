from __future__ import annotations

import json
import math
import re
import socket
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from runs import fit, make_data, make_module, make_trainer

from grpo_lightning.callbacks.completion_rows import COLUMNS, chosen_rows, completions_table
from grpo_lightning.callbacks.completions import CompletionWriter
from grpo_lightning.callbacks.predictions import PredictionWriter
from grpo_lightning.callbacks.samples import sample_table, shorten, show
from grpo_lightning.callbacks.system import SystemRecord
from grpo_lightning.callbacks.terminal import SampleTable, sample_rows
from grpo_lightning.commands.cli import with_own_loggers
from grpo_lightning.errors import ExplainedError
from grpo_lightning.report.metrics import launch_directories, read_metrics


def steps_of(directory: Path) -> list[int]:
    return sorted(int(path.name.split(".")[0].removeprefix("step-")) for path in directory.glob("*.parquet"))


def test_files_hold_what_the_step_sampled_scored_and_trained_on(tiny_model_dir, tmp_path):
    module = fit(tiny_model_dir, tmp_path, max_steps=2, trainer={"callbacks": [CompletionWriter()]})
    table = pq.read_table(tmp_path / "completions" / "step-00000001.rank0.parquet")
    assert table.column_names == [*COLUMNS, "rewards/share_of_digits"]
    record = module.last_step
    rows = table.to_pylist()
    assert len(rows) == 12 and {row["step"] for row in rows} == {1}
    assert [row["uid"] for row in rows] == [record.batch.uids[b] for b in record.rollouts.group]
    assert [row["sample"] for row in rows] == [0, 1, 2, 3] * 3
    for n, row in enumerate(rows):
        ids = record.rollouts.completions()[n]
        assert row["completion"] == module.policy.tokenizer.decode(ids, skip_special_tokens=True)
        assert row["length"] == len(ids)
        assert row["reward"] == row["rewards/share_of_digits"] == record.rewards.values[n, 0].item()
        assert row["advantage"] == record.advantages[n].item()
        assert row["truncated"] == record.rollouts.truncated[n].item()
        assert json.loads(row["columns"])["ground_truth"] == record.batch.columns["ground_truth"][n // 4]
    first = record.rollouts.sampling_logprobs[: rows[0]["length"]].mean().item()
    assert rows[0]["mean_logprob"] == pytest.approx(first)


def test_a_resumed_run_repeats_no_step_and_a_run_from_the_start_replaces_all(tiny_model_dir, tmp_path):
    def run(steps: int, **settings: Any) -> None:
        trainer = make_trainer(tmp_path, steps, callbacks=[CompletionWriter()])
        trainer.fit(make_module(tiny_model_dir), datamodule=make_data(tmp_path), **settings)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")

    directory = tmp_path / "completions"
    run(2)
    run(4, ckpt_path=tmp_path / "2.ckpt")
    before = pq.read_table(directory).to_pylist()
    (directory / "step-00000003.rank0.parquet.part").write_bytes(b"torn")
    run(3, ckpt_path=tmp_path / "2.ckpt", weights_only=False)
    assert steps_of(directory) == [0, 1, 2] and not list(directory.glob("*.part"))
    assert pq.read_table(directory).to_pylist() == [row for row in before if row["step"] < 3]
    run(1)
    assert steps_of(directory) == [0]


def test_the_size_limit_thins_out_steps_but_keeps_the_first_and_the_last(tiny_model_dir, tmp_path):
    one_file = 7000 / 2**20
    writer = CompletionWriter(max_mib=4 * one_file)
    fit(tiny_model_dir, tmp_path, max_steps=9, trainer={"callbacks": [writer]})
    steps = steps_of(tmp_path / "completions")
    size = sum(path.stat().st_size for path in (tmp_path / "completions").iterdir())
    assert steps[0] == 0 and steps[-1] == 8 and 2 < len(steps) < 9
    assert size <= writer.max_mib * 2**20


def test_every_n_steps_and_rows_per_step_bound_what_is_written(tiny_model_dir, tmp_path):
    writer = CompletionWriter(every_n_steps=2, max_rows_per_step=9)
    fit(tiny_model_dir, tmp_path, max_steps=4, trainer={"callbacks": [writer]})
    assert steps_of(tmp_path / "completions") == [0, 2]
    rows = pq.read_table(tmp_path / "completions" / "step-00000002.rank0.parquet").to_pylist()
    assert len(rows) == 8 and len({row["uid"] for row in rows}) == 2  # two whole groups of four


def test_the_same_prompts_are_kept_whatever_their_neighbours():
    kept = chosen_rows([0, 0, 1, 1, 2, 2], uids=[30, 10, 20], max_rows=2)
    uid = [30, 10, 20][kept[0] // 2]
    others = [99, uid, 98]
    first_of_pair = chosen_rows([0, 0, 1, 1], uids=[uid, next(u for u in (30, 10, 20) if u != uid)], max_rows=2)
    assert first_of_pair == [0, 1]
    assert len(chosen_rows([0, 0, 1, 1, 2, 2], uids=others, max_rows=1)) == 1


def test_rewards_without_a_value_are_null(tiny_model_dir, tmp_path):
    def only_first(completions: list[str], **_: Any) -> list[float | None]:
        return [float(len(text)) if n % 4 == 0 else None for n, text in enumerate(completions)]

    fit(tiny_model_dir, tmp_path, trainer={"callbacks": [CompletionWriter()]}, rewards=[only_first])
    rows = pq.read_table(tmp_path / "completions").to_pylist()
    assert [row["reward"] is None for row in rows] == [False, True, True, True] * 3
    assert all(torch.isfinite(torch.tensor(row["advantage"])) for row in rows)


def test_settings_that_would_write_nothing_or_everything_are_refused():
    with pytest.raises(ValueError, match="every_n_steps=-1"):
        CompletionWriter(every_n_steps=-1)
    with pytest.raises(ValueError, match="max_rows_per_step=0"):
        CompletionWriter(max_rows_per_step=0)


def test_sample_table_prints_the_best_and_the_worst_completion(tiny_model_dir, tmp_path, capsys):
    table = SampleTable(2, num_prompts=1)
    module = fit(tiny_model_dir, tmp_path, max_steps=4, trainer={"callbacks": [table]})
    out = capsys.readouterr().out
    assert re.findall(r"Step (\d+): reward", out) == ["1", "2", "4"]
    now, change = re.search(r"Step 4: reward (\S+) \((\S+) since step 1\)", out).groups()
    (first,) = re.findall(r"Step 1: reward (\S+),", out)
    assert float(change) == pytest.approx(float(now) - float(first), abs=0.0011)
    assert "share_of_digits" in out and "advantage" in out
    best = module.last_step.advantages[:4].max().item()
    assert f"{best:.2f}" in out


def test_a_dead_group_has_one_row_that_says_so(tiny_model_dir, tmp_path, capsys):
    def only_the_first_prompt(completions: list[str], **_: Any) -> list[float]:
        return [float(n) if n < 4 else 0.5 for n in range(len(completions))]

    table = SampleTable(1, num_prompts=2)
    module = fit(tiny_model_dir, tmp_path, trainer={"callbacks": [table]}, rewards=[only_the_first_prompt])
    alive, worst, dead = sample_rows(module.last_step, ["text"] * 12, num_prompts=2)
    assert alive["advantage"] > 0 > worst["advantage"] and dead["advantage"] == "dead: 4 equal"
    assert capsys.readouterr().out.count("dead: 4 equal") == 1


def test_what_rewards_log_about_a_completion_is_shown_and_written(tiny_model_dir, tmp_path, capsys):
    def first_letters(completions: list[str], log_extra: Any, **_: Any) -> list[float]:
        log_extra("letters", [list(text[:2]) for text in completions])
        log_extra("tokens", [-1] * len(completions))  # the table's own column goes first
        return [float(len(text)) for text in completions]

    callbacks = [SampleTable(1, num_prompts=1), CompletionWriter()]
    module = fit(tiny_model_dir, tmp_path, trainer={"callbacks": callbacks}, rewards=[first_letters])
    (header,) = [line for line in capsys.readouterr().out.splitlines() if "prompt" in line and "completion" in line]
    assert header.rstrip(" ┃").endswith(" letters")
    record = module.last_step
    best, *_ = sample_rows(record, ["text"] * 12, num_prompts=1)
    assert best["letters"] == record.rewards.extra["letters"][int(record.advantages[:4].argmax())]
    assert best["tokens"] != -1
    written = pq.read_table(tmp_path / "completions").to_pylist()
    assert [json.loads(row["columns"])["letters"] for row in written] == record.rewards.extra["letters"]


def test_the_system_is_written_down_without_naming_the_machine(tiny_model_dir, tmp_path):
    fit(tiny_model_dir, tmp_path, trainer={"callbacks": [SystemRecord()]})
    system = json.loads((tmp_path / "system.json").read_text())
    assert system["ranks"] == 1 and system["packages"]["torch"] == torch.__version__ and system["cpu_cores"] >= 1
    assert socket.gethostname() not in (tmp_path / "system.json").read_text()


def test_text_without_utf_8_is_written_out_and_read_back_as_it_was(tiny_model_dir, tmp_path, capsys):
    half = chr(0xD83D)

    def logs_a_half(completions: list[str], log_extra: Any, **columns: Any) -> list[float]:
        log_extra(f"seen {half}", [f'"{half}\\' for _ in completions])
        return [float(len(text)) for text in completions]

    callbacks = [CompletionWriter(), SampleTable(every_n_steps=1)]
    module = fit(tiny_model_dir, tmp_path, max_steps=1, rewards=logs_a_half, trainer={"callbacks": callbacks})
    (row, *_) = pq.read_table(tmp_path / "completions").to_pylist()
    assert json.loads(row["columns"])[f"seen {half}"] == f'"{half}\\'
    record = module.last_step
    texts = [f"caf\u00e9 {half}"] * len(record.rollouts.group)
    table = completions_table(record, texts, [0.0] * len(texts), 0, max_rows=2)
    assert table.column("completion").to_pylist() == ["caf\u00e9 \\ud83d"] * 2
    show(sample_table("t", [{"a": half, "b": [half]}], ["a", "b"]))
    assert "\\ud83d" in capsys.readouterr().out


class Unspeakable:
    """Of a library whose objects cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("closed")


def test_what_a_reward_logs_needs_no_form_in_json_and_no_good_name(tiny_model_dir, tmp_path):
    endless: list[Any] = []
    endless.append(endless)

    def logs_anything(completions: list[str], log_extra: Any, log_metric: Any, **columns: Any) -> list[float]:
        for name, value in {
            "endless": endless,
            "pairs": {(1, 2): "x"},
            "lost": Unspeakable(),
            "none": math.nan,
            "kept": [1],
        }.items():
            log_extra(name, [value] * len(completions))
        for name in ("step", "epoch", f"half {chr(0xD83D)}", "mine"):
            log_metric(name, 41.0)
        return [float(len(text)) for text in completions]

    loggers = with_own_loggers(None, str(tmp_path))
    fit(
        tiny_model_dir,
        tmp_path,
        2,
        {"callbacks": [CompletionWriter()], "logger": loggers, "log_every_n_steps": 1},
        rewards=logs_anything,
    )
    (row, *_) = pq.read_table(tmp_path / "completions").to_pylist()
    seen = json.loads(row["columns"])
    assert {name: seen[name] for name in ("endless", "pairs", "lost", "none", "kept")} == {
        "endless": "[[...]]",
        "pairs": "{(1, 2): 'x'}",
        "lost": "<Unspeakable>",
        "none": "nan",
        "kept": [1],
    }
    metrics = read_metrics(launch_directories(tmp_path))
    assert metrics["reward"].steps == [1, 2]  # which a metric called step would have counted
    for name in ("logs_anything/step", "logs_anything/epoch", "half \\ud83d", "mine"):
        assert metrics[name].values == [41.0, 41.0]


def test_predictions_without_utf_8_are_lines_of_json(tmp_path):
    half = chr(0xD83D)
    writer = PredictionWriter(str(tmp_path / "predictions.jsonl"))
    trainer = make_trainer(tmp_path, 1)
    writer.on_predict_start(trainer, None)
    writer.write_on_batch_end(trainer, None, [{"completion": half}], None, None, 0, 0)
    assert json.loads((tmp_path / "predictions.jsonl").read_text(encoding="utf-8")) == {"completion": half}


def test_predictions_that_cannot_be_written_end_the_command_with_what_to_do(tmp_path):
    (tmp_path / "file").touch()
    lost = PredictionWriter(str(tmp_path / "file" / "predictions.jsonl"))
    gone = PredictionWriter(str(tmp_path / "gone" / "predictions.jsonl"))
    trainer = make_trainer(tmp_path, 1)
    with pytest.raises(ExplainedError, match=r"could not be written to .*Free disk space"):
        lost.on_predict_start(trainer, None)
    with pytest.raises(ExplainedError, match=r"could not be written to .*Free disk space"):
        gone.write_on_batch_end(trainer, None, [{"completion": "a"}], None, None, 0, 0)


def test_prompts_with_images_are_shown_as_their_text():
    blocks = [{"type": "image"}, {"type": "text", "text": "How many?"}]
    assert shorten([{"role": "system", "content": "Count."}, {"role": "user", "content": blocks}], 90) == (
        "Count. [image]How many?"
    )
    assert shorten([{"content": [1, 2]}], 90) == "[1, 2]", "what a reward logged"
