"""A stream's place in a checkpoint is exact: a run that goes on reads the prompts that were left, and no others."""

from __future__ import annotations

import gzip
import json
import re
import warnings
from pathlib import Path
from typing import Any

import datasets
import lightning as L
import pytest
import torch
from async_copy_generator import AsyncCopyGenerator
from lightning.pytorch.callbacks import ModelCheckpoint
from recorder import BatchRecorder
from runs import make_data, make_module, make_trainer, write_rows
from toy_models import build_tokenizer

from grpo_lightning.datamodules import GRPODataModule
from grpo_lightning.datamodules.drawing.stream_loader import ShortStreamError, StreamLoader
from grpo_lightning.datamodules.sources.row_stream import RowStream
from grpo_lightning.types import PromptBatch

ROWS = [{"prompt": f"question {index}"} for index in range(23)]  # 11 steps of 2 an epoch, one row left out


def iterable(shuffle: bool = False) -> datasets.IterableDataset:
    rows = datasets.Dataset.from_list(ROWS).to_iterable_dataset(num_shards=3)
    return rows.shuffle(seed=1, buffer_size=5) if shuffle else rows


class ByHand:
    """An iterable that keeps no state."""

    def __iter__(self) -> Any:
        return iter(ROWS)


class Recorder(BatchRecorder):
    """Notes after which steps it was validated, too."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__(fail_at)
        self.evaluated_after: list[int] = []

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.evaluated_after.append(self.global_step)


def fit(directory: Path, module: Recorder, rows: Any, ckpt_path: str | None = None, **trainer: Any) -> Recorder:
    """Trains for 2 epochs unless told otherwise, with a checkpoint after every step."""
    data = GRPODataModule(
        rows, eval_dataset=ROWS[:2], batch_size=2, seed=4, streaming=True, shuffle_block=trainer.pop("shuffle_block", 5)
    )
    save = ModelCheckpoint(directory, every_n_train_steps=1, save_top_k=-1, save_last=True, filename="{step}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        callbacks = [save, *trainer.pop("callbacks", [])]
        settings = {"max_epochs": 2, "max_steps": -1} | trainer
        make_trainer(directory, callbacks=callbacks, enable_checkpointing=True, **settings).fit(
            module, data, ckpt_path=ckpt_path, weights_only=True
        )
    return module


SOURCES = {"arrow": iterable, "buffered": lambda: iterable(shuffle=True), "plain": ByHand}


@pytest.mark.parametrize("source", SOURCES)
def test_every_checkpoint_of_a_run_over_a_stream_continues_where_it_was_written(source: str, tmp_path: Path) -> None:
    whole = fit(tmp_path, Recorder(), SOURCES[source]())
    assert len(whole.seen) == 22
    for epoch in range(2):
        uids = [uid for step in whole.seen[11 * epoch : 11 * epoch + 11] for uid in step]
        assert len(set(uids)) == 22 and set(uids) <= set(range(23))
    assert whole.seen[:11] != whole.seen[11:]
    for step in (1, 2, 3, 10, 11, 12, 21):  # inside blocks, at the border of epochs and of the run
        on = fit(tmp_path / "on", Recorder(), SOURCES[source](), str(tmp_path / f"step={step}.ckpt"))
        assert on.seen == whole.seen[step:], step
        assert torch.equal(on.weight, whole.weight)


ANSWERED = [row | {"answer": str(index)} for index, row in enumerate(ROWS)]
OTHER = {
    "the same": (ANSWERED, None),
    "changed behind the block": ([*ANSWERED[:10], *ANSWERED[:13]], None),
    "a row less before it": (ANSWERED[1:], "have other tokens, or another order"),
    "another order": (ANSWERED[::-1], "have other tokens, or another order"),
    "a row of the block changed": ([*ANSWERED[:7], {"prompt": "another"}, *ANSWERED[8:]], "have other tokens"),
    "an answer of the block changed": ([*ANSWERED[:9], ANSWERED[9] | {"answer": "7"}], "other values in answer"),
    "fewer rows than were read": (
        ANSWERED[:5],
        "ends before row 5, which the checkpoint's run had read.*Epoch 0 is over",
    ),
}


@pytest.mark.parametrize("case", OTHER)
def test_a_stream_that_holds_other_rows_where_a_run_goes_on_says_so(case: str, tmp_path: Path) -> None:
    """The third step of two prompts ends inside the second block of five rows."""
    path = tmp_path / "rows.jsonl"
    write_rows(path, ANSWERED)
    fit(tmp_path, Recorder(), str(path), max_steps=3)
    rows, message = OTHER[case]
    write_rows(path, rows)
    saved = tmp_path / "step=3.ckpt"
    for step in (3, 4):  # the second time from a checkpoint of a run that had gone on from one
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            data = GRPODataModule(str(path), batch_size=2, seed=4, streaming=True, shuffle_block=5)
            module, keep = Recorder(), ModelCheckpoint(tmp_path / "on", filename="{step}", every_n_train_steps=1)
            trainer = make_trainer(tmp_path / "on", step + 1, callbacks=[keep], enable_checkpointing=True)
            trainer.fit(module, data, ckpt_path=str(saved), weights_only=True)
        lines = [line for line in (str(warning.message) for warning in said) if "checkpoint's run" in line]
        expected = message if step == 3 else None  # it has been said of this block
        assert len(lines) == (expected is not None), lines
        assert expected is None or re.search(expected, lines[0]), lines
        saved = tmp_path / "on" / "step=4.ckpt"


def test_the_prompts_of_a_failed_step_are_given_out_again(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import OnExceptionCheckpoint

    whole = fit(tmp_path / "whole", Recorder(), iterable())
    for fail_at in (0, 4, 10, 11):
        failing = Recorder(fail_at)
        folder = tmp_path / str(fail_at)
        with pytest.raises(RuntimeError, match="gone"):
            fit(folder, failing, iterable(), callbacks=[OnExceptionCheckpoint(folder, "failed")])
        assert failing.seen == whole.seen[:fail_at]
        on = fit(tmp_path / "on", Recorder(), iterable(), str(folder / "failed.ckpt"))
        assert on.seen == whole.seen[fail_at:], fail_at


def test_validation_inside_an_epoch_disturbs_nothing(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", Recorder(), iterable())
    validated = fit(tmp_path / "on", Recorder(), iterable(), val_check_interval=2, num_sanity_val_steps=1)
    assert validated.seen == whole.seen


def test_a_run_that_goes_on_evaluates_after_the_steps_of_the_whole_one(tmp_path: Path) -> None:
    """Lightning does not know where a pass ends: from a checkpoint of its last step it counted on into the next pass."""
    whole = fit(tmp_path, Recorder(), iterable(), val_check_interval=3)
    assert whole.evaluated_after == [3, 6, 9, 14, 17, 20]  # passes of 11 steps
    for step in (4, 10, 11, 12):
        on = fit(tmp_path / "on", Recorder(), iterable(), str(tmp_path / f"step={step}.ckpt"), val_check_interval=3)
        assert on.seen == whole.seen[step:], step
        assert on.evaluated_after == [after for after in whole.evaluated_after if after > step], step


def made(rows: Any, **settings: Any) -> GRPODataModule:
    data = GRPODataModule(rows, streaming=True, **settings)
    data.tokenizer = build_tokenizer()
    data.setup("fit")
    return data


def test_without_shuffling_a_stream_keeps_its_order_and_ranks_share_each_step() -> None:
    stream = made(iterable(), batch_size=4, shuffle=False).train_stream
    ranks = [StreamLoader(*stream, 2, rank, 2, seed=None, block_size=3) for rank in range(2)]
    batches = [[batch.uids for batch in loader] for loader in ranks]
    assert batches[0] == [[4 * step, 4 * step + 1] for step in range(5)]
    assert batches[1] == [[4 * step + 2, 4 * step + 3] for step in range(5)]


def test_a_rank_makes_batches_of_its_own_prompts_alone() -> None:
    """Pixels of their images are most of the work, and those of the other ranks' prompts were made and thrown away."""
    rows, make = made(iterable(), batch_size=4, shuffle=False).train_stream
    asked: list[int] = []

    def noting(block: Any, first_row: int) -> Any:
        prompts = make(block, first_row)
        batch = prompts.batch
        prompts.batch = lambda places: asked.extend(prompts.uids[place] for place in places) or batch(places)
        return prompts

    seen = [uid for batch in StreamLoader(rows, noting, 2, 1, 2, seed=None, block_size=3) for uid in batch.uids]
    assert seen == asked == [4 * step + place for step in range(5) for place in (2, 3)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("in_a_folder", [False, True])
def test_a_slice_of_a_split_is_not_streamed_and_several_splits_are(
    tmp_path: Path, kind: str, in_a_folder: bool
) -> None:
    """Of JSON the slice was overlooked and all rows were read; in a folder its name was looked up as a split's."""
    table = datasets.Dataset.from_list(ROWS)
    file = tmp_path / f"train.{kind}"
    table.to_parquet(file) if kind == "parquet" else table.to_json(file)
    place = str(tmp_path if in_a_folder else file)
    with pytest.raises(ValueError, match=r"split train\[:3\] cannot be streamed.*num_samples"):
        made({"file_name": place, "split": "train[:3]"})
    rows, _ = made({"file_name": place, "split": "train+train", "num_samples": 25}).train_stream
    assert [row["prompt"] for block, _ in rows.blocks(100, 0) for row in block] == [
        row["prompt"] for row in (ROWS + ROWS)[:25]
    ]


def test_overlong_prompts_of_a_stream_are_left_out_and_uids_stay_row_numbers() -> None:
    rows = [{"prompt": "z" * (9 if index % 2 else 2), "kind": index} for index in range(8)]
    data = made(rows, batch_size=2, shuffle=False, shuffle_block=3, max_prompt_length=4)
    batches = list(data.train_dataloader())
    assert [batch.uids for batch in batches] == [[0, 2], [4, 6]]
    assert [batch.columns["kind"] for batch in batches] == [[0, 2], [4, 6]]


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (None, "need 24 prompts for a step, but a whole pass over .* has 23. Use a smaller data.batch_size or fewer"),
        (1, "has 0 .23 of its 23 rows are longer than data.max_prompt_length.. Use .*, raise data.max_prompt_length"),
    ],
)
def test_a_stream_that_never_fills_a_step_ends_the_run_and_is_not_read_for_ever(
    limit: int | None, message: str, tmp_path: Path
) -> None:
    data = GRPODataModule(iterable(), batch_size=24, streaming=True, shuffle_block=5, max_prompt_length=limit)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, max_steps=2, default_root_dir=tmp_path, enable_progress_bar=False
    )
    with pytest.raises(ShortStreamError, match=message):
        trainer.fit(Recorder(), data)


def test_a_local_file_is_streamed_with_its_values(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps({"prompt": "q", "ground_truth": f"2024-01-{day:02}"}) + "\n" for day in range(1, 9))
    data = made(str(path), batch_size=2, shuffle=False)
    columns = [batch.columns["ground_truth"] for batch in data.train_dataloader()]
    assert columns == [[f"2024-01-{day:02}", f"2024-01-{day + 1:02}"] for day in (1, 3, 5, 7)]


def test_a_cursor_goes_on_behind_its_block() -> None:
    for rows in (iterable(), ByHand(), iterable(shuffle=True)):
        whole = list(RowStream(rows, "it").blocks(4, epoch=1))
        for place, (_, cursor) in enumerate(whole):
            rest = [block for block, _ in RowStream(rows, "it").blocks(4, 1, cursor)]
            assert rest == [block for block, _ in whole[place + 1 :]]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ((row for row in ROWS), {}, "is a generator, which can be read once"),
        ([], {}, "has no rows"),
        (ROWS, {"shuffle_block": 0}, "data.shuffle_block=0"),
        ("no.jsonl", {}, "there is no file"),
    ],
)
def test_a_stream_that_cannot_be_read_again_or_is_empty_is_refused(
    rows: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        made(rows, batch_size=2, **settings)


def test_what_a_stream_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data.datasets needs all prompts"):
        GRPODataModule(datasets={"a": ROWS}, streaming=True)
    with pytest.raises(ValueError, match=r"is a stream \(IterableDataset\), which only training reads"):
        data = GRPODataModule(eval_dataset=iterable())
        data.tokenizer = build_tokenizer()
        data.setup("validate")


def test_a_run_that_samples_ahead_of_a_stream_is_refused_before_weights_load(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    module = make_module(tiny_model_dir, async_rollouts=1, generator=AsyncCopyGenerator())
    with pytest.raises(
        ValueError, match=r"data.streaming reads the next prompts when .*model.async_rollouts=1 wants them"
    ):
        make_trainer(tmp_path, 2).fit(module, datamodule=make_data(tmp_path, streaming=True))
    assert not module.policy.is_loaded
