"""Completions that are carried over: what a step trains on, which weights sampled what, and that a run repeats and resumes."""

from __future__ import annotations

import itertools
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from runs import FailsInStep, make_data, make_module, make_trainer, token_logprobs, weights, write_prompts
from transformers import AutoModelForCausalLM
from vllm_cases import TOKENIZER, ending_model

from grpo_lightning.errors import RefusedRowError
from grpo_lightning.generation import TransformersGenerator, VLLMServer
from grpo_lightning.generation.parts import Part, PartRequest
from grpo_lightning.modules.checks.partial_rollouts import check_carried
from grpo_lightning.rollouts.dynamic_sampling import DynamicSampling
from grpo_lightning.rollouts.partial_rollouts import EnoughGroups, PartialRollouts, ages
from grpo_lightning.rollouts.sampler_canary import MISMATCH
from grpo_lightning.rollouts.unfinished_groups import GrowingGroup, batch_of, new_groups, rollouts_of
from grpo_lightning.types import PromptBatch

PROMPTS, PROMPT_COMPLETIONS, LIMIT = 4, 4, 24


def fast_sgd(parameters):
    return torch.optim.SGD(parameters, lr=1.0, momentum=0.9)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    """A toy model for which every eighth token ends a completion."""
    folder = tmp_path_factory.mktemp("ending")
    ending_model().save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


class Recorder(L.Callback):
    """Of each step: what it trained on, what it carried over, its numbers; and the weights before each and after the last."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_start(self, trainer, pl_module) -> None:
        self.weights.append(weights(pl_module))

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        record, source = pl_module.last_step, pl_module.noted.inner
        self.weights.append(weights(pl_module))
        numbers = {
            name: value for name, value in pl_module.step_metrics.items() if "time" not in name and "second" not in name
        }
        self.steps.append(
            {
                "uids": record.batch.uids,
                "completions": [ids.tolist() for ids in record.rollouts.completions()],
                "logprobs": record.rollouts.logprob_lists(),
                "carried": [group.state_dict() for group in source._carried],
                "numbers": numbers,
                "rollouts": record.rollouts,
            }
        )

    def told(self, *names: str) -> list[list[Any]]:
        return [[step[name] for name in names] for step in self.steps]


def train(model_dir: Path, folder: Path, max_steps: int = 5, ckpt_path: Path | None = None, **options: Any) -> Recorder:
    recorder = Recorder()
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    defaults = {
        "partial_rollouts": PartialRollouts(carry_over=0.5, max_staleness=3),
        "max_completion_length": LIMIT,
        "optimizer": fast_sgd,
        "max_sampler_mismatch": None,
    }
    folder.mkdir(exist_ok=True)
    callbacks = [recorder, saving, *options.pop("callbacks", [])]
    own = {"dataset": str(write_prompts(folder / "prompts.jsonl", 16))} | options.pop("data", {})
    module = make_module(model_dir, **(defaults | options))
    trainer = make_trainer(folder, max_steps, callbacks=callbacks, enable_checkpointing=True)
    trainer.fit(module, datamodule=make_data(folder, batch_size=PROMPTS, **own), ckpt_path=ckpt_path)
    return recorder


@pytest.fixture(scope="module")
def run(model_dir, tmp_path_factory) -> tuple[Recorder, Path]:
    folder = tmp_path_factory.mktemp("run")
    return train(model_dir, folder), folder


def test_sampling_ends_when_all_but_so_many_groups_are_complete():
    enough = EnoughGroups([2, 1, 1], num_left=1, must=[])
    assert [enough.ended(b) for b in (0, 1, 0)] == [False, False, True]
    assert bool(EnoughGroups([0, 3], 1, [])) and not EnoughGroups([0, 3, 1], 1, [])


def test_a_group_that_was_carried_for_too_long_is_waited_for():
    enough = EnoughGroups([2, 1], num_left=1, must=[0])
    assert [enough.ended(b) for b in (1, 0, 0)] == [False, False, True]


def a_group() -> GrowingGroup:
    (group,) = new_groups(PromptBatch(["p"], [[5, 6]], [7], {"answer": ["42"]}), [11], step=3, num_generations=2)
    group = group.followed_by({0: Part([1, 2], [-0.5, -0.25], "stop"), 1: Part([3], [-1.0], "cut")}, 3)
    return group.followed_by({1: Part([4, 5], [-2.0, -3.0], "limit")}, 5)


def test_a_completion_in_two_parts_has_the_logprobs_and_ages_of_both():
    group = a_group()
    rollouts = rollouts_of([group])
    assert rollouts.completion_ids.tolist() == [1, 2, 3, 4, 5]
    assert rollouts.sampling_logprobs.tolist() == [-0.5, -0.25, -1.0, -2.0, -3.0]
    assert rollouts.truncated.tolist() == [False, True]
    assert batch_of([group]).columns == {"answer": ["42"]}
    found = ages([group], [], step=5)
    assert found["sampling/age/mean"].tolist() == [2, 2, 2, 0, 0]
    assert found["sampling/age/oldest"].tolist() == [2, 2]
    assert found["sampling/age/off_policy"].tolist() == [1, 1, 1, 0, 0]


def test_a_part_goes_on_behind_the_tokens_before_it_with_another_seed():
    (group,) = new_groups(PromptBatch(["p"], [[5, 6]], [7]), [11], step=3, num_generations=2)
    first = group.requests(8)
    cut = group.followed_by({0: Part([1, 2], [-0.5, -0.25], "stop"), 1: Part([3], [-1.0], "cut")}, 3)
    second = cut.requests(8)
    assert (first[1].prompt_ids, first[1].limit) == ([5, 6], 8)
    assert list(second) == [1] and (second[1].prompt_ids, second[1].limit) == ([5, 6, 3], 7)
    assert len({first[0].seed, first[1].seed, second[1].seed}) == 3
    assert GrowingGroup.from_state(cut.state_dict()) == cut


def test_every_step_but_the_first_trains_on_as_many_whole_groups_as_it_begins(run):
    recorder, _ = run
    assert [len(step["uids"]) for step in recorder.steps] == [2, 4, 4, 4, 4]
    assert [len(step["carried"]) for step in recorder.steps] == [2] * 5
    trained = [uid for step in recorder.steps[:4] for uid in step["uids"]]
    left = [group["uid"] for group in recorder.steps[3]["carried"]]
    assert sorted(trained + left) == list(range(16))  # of the first epoch: each prompt once
    assert any(completion["segments"] and completion["end"] == "cut" for completion in all_carried(recorder))
    assert all(recorder.steps[k]["numbers"]["sampling/age/oldest"] <= 3 for k in range(5))
    assert max(step["numbers"]["sampling/age/off_policy"] for step in recorder.steps) > 0


def test_more_than_a_batch_is_under_way_once_half_of_each_step_has_filled_it_and_resumes(model_dir, tmp_path):
    settings = {"partial_rollouts": PartialRollouts(carry_over=1.5, max_staleness=4)}
    whole = train(model_dir, tmp_path / "whole", 6, **settings)
    assert [len(step["uids"]) for step in whole.steps] == [2, 2, 2, 4, 4, 4]
    assert [len(step["carried"]) for step in whole.steps] == [2, 4, 6, 6, 6, 6]
    resumed = train(model_dir, tmp_path / "resumed", 6, tmp_path / "whole" / "step=2.ckpt", **settings)
    names = ("uids", "completions", "logprobs", "carried", "numbers")
    assert resumed.told(*names) == whole.told(*names)[2:]
    fewer = train(
        model_dir, tmp_path / "fewer", 6, tmp_path / "whole" / "step=3.ckpt"
    )  # 6 groups are under way, 2 wanted
    assert [len(step["uids"]) for step in fewer.steps] == [
        6,
        6,
        4,
    ]  # no step is larger than what memory was measured for


def all_carried(recorder: Recorder) -> list[dict[str, Any]]:
    return [completion for step in recorder.steps for group in step["carried"] for completion in group["completions"]]


def test_each_token_has_its_logprob_at_the_weights_of_the_step_that_sampled_it(model_dir, run):
    recorder, _ = run
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)

    def logprobs_at(step: int, prompt: list[int], ids: list[int]) -> torch.Tensor:
        model.load_state_dict(recorder.weights[step], strict=False)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]

    went_on = 0
    for k, (before, after) in enumerate(itertools.pairwise(recorder.steps)):
        for group in before["carried"]:
            if group["uid"] not in after["uids"] or group["step"] < k:
                continue
            first = PROMPT_COMPLETIONS * after["uids"].index(group["uid"])
            for g, completion in enumerate(group["completions"]):
                ids, logprobs = after["completions"][first + g], torch.tensor(after["logprobs"][first + g])
                done = sum(len(segment["ids"]) for segment in completion["segments"])
                older, newer = (logprobs_at(step, group["prompt_ids"], ids) for step in (k, k + 1))
                torch.testing.assert_close(logprobs[:done], older[:done], rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(logprobs[done:], newer[done:], rtol=1e-4, atol=1e-4)
                went_on += 0 < done < len(ids) and (older - newer)[done:].abs().max().item() > 1e-3
    assert went_on >= 3


def test_with_weights_that_stay_the_parts_of_a_completion_are_one_sample_of_the_policy(model_dir, tmp_path):
    still = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.0)}
    recorder = train(model_dir, tmp_path, 4, **still)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    for step in recorder.steps:
        with torch.no_grad():
            expected = torch.cat(token_logprobs(model, step["rollouts"]))
        torch.testing.assert_close(step["rollouts"].sampling_logprobs, expected, rtol=1e-4, atol=1e-4)
        assert step["numbers"].get(MISMATCH, 0.0) < 1e-4  # there is none where every group is dead
    assert max(step["numbers"]["sampling/age/mean"] for step in recorder.steps) > 0


def test_a_resumed_run_goes_on_bit_for_bit(model_dir, run, tmp_path):
    whole, folder = run
    resumed = train(model_dir, tmp_path, ckpt_path=folder / "step=2.ckpt")
    names = ("uids", "completions", "logprobs", "carried", "numbers")
    assert resumed.told(*names) == whole.told(*names)[2:]
    torch.testing.assert_close(resumed.weights[-1], whole.weights[-1], rtol=0, atol=0)


def test_a_step_that_fails_after_it_sampled_is_sampled_again_as_it_was(model_dir, run, tmp_path):
    whole, _ = run

    failing = [FailsInStep(4), OnExceptionCheckpoint(str(tmp_path), "failed")]
    with pytest.raises(ArithmeticError, match="in step 4"):
        train(model_dir, tmp_path / "broken", callbacks=failing)
    resumed = train(model_dir, tmp_path / "resumed", ckpt_path=tmp_path / "failed.ckpt")
    assert resumed.told("uids", "completions", "carried") == whole.told("uids", "completions", "carried")[3:]
    torch.testing.assert_close(resumed.weights[-1], whole.weights[-1], rtol=0, atol=0)


def dated(completions, when, **columns):
    """Looks at a time of the row, and needs one."""
    return [value.day + len(text) / 100 for value, text in zip(when, completions, strict=True)]


def test_rows_of_a_table_with_times_are_carried_over_a_resume(model_dir, tmp_path):
    rows = [{"prompt": f"{i}+{i}=", "when": datetime(2024, 1, 1 + i), "price": Decimal(i)} for i in range(12)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    data = {"dataset": str(tmp_path / "rows.parquet")}
    whole = train(model_dir, tmp_path, 4, rewards=[dated], data=data)
    resumed = train(model_dir, tmp_path / "again", 4, tmp_path / "step=2.ckpt", rewards=[dated], data=data)
    assert resumed.told("uids", "carried", "numbers") == whole.told("uids", "carried", "numbers")[2:]
    assert whole.steps[1]["carried"][0]["columns"].keys() == {"when", "price"}


def test_a_row_that_no_checkpoint_could_hold_is_refused(model_dir, tmp_path):
    rows = [{"prompt": f"{i}+{i}=", "seen": range(i)} for i in range(12)]
    with pytest.raises(
        RefusedRowError, match=r"row \d+ has the range range\(.*\) in the column seen.*pass_through=false"
    ):
        train(model_dir, tmp_path, 1, data={"dataset": rows})


def test_messages_that_no_checkpoint_could_hold_are_refused_and_scalars_of_numpy_kept_as_pythons(tmp_path):
    def begun(**of_message: Any) -> GrowingGroup:
        prompt: Any = [{"role": "user", "content": "2+3?", **of_message}]
        return new_groups(PromptBatch([prompt], [[1]], [7], {"level": [np.float32(0.5)]}), [0], 0, 1)[0]

    with pytest.raises(RefusedRowError, match=r"row 7 has the list .* in the messages of its prompt\..*Make it one\.$"):
        begun(seen=range(3))
    group = begun(shown=np.True_)
    torch.save(group.state_dict(), tmp_path / "a.ckpt")
    again = GrowingGroup.from_state(torch.load(tmp_path / "a.ckpt", weights_only=True))
    assert again == group and repr(again.columns) == "{'level': 0.5}"
    assert repr(again.prompt) == "[{'role': 'user', 'content': '2+3?', 'shown': True}]"


def test_carried_groups_that_a_run_without_the_setting_leaves_out_are_told_of(model_dir, run, tmp_path):
    _, folder = run
    with pytest.warns(UserWarning, match="model.partial_rollouts.carry_over=0 leaves 2 carried groups out"):
        make_trainer(tmp_path, 3).fit(
            module := make_module(model_dir, max_completion_length=LIMIT, optimizer=fast_sgd),
            datamodule=make_data(tmp_path, batch_size=PROMPTS, dataset=str(folder / "prompts.jsonl")),
            ckpt_path=folder / "step=2.ckpt",
        )
    assert module.steps_done == 3 and module.last_step.rollouts.num_prompts == PROMPTS


def test_a_group_is_not_carried_for_longer_than_max_staleness(model_dir, tmp_path):
    recorder = train(model_dir, tmp_path, 6, partial_rollouts=PartialRollouts(carry_over=0.75, max_staleness=1))
    assert any(step["carried"] for step in recorder.steps)
    for k, step in enumerate(recorder.steps):
        assert all(group["step"] == k for group in step["carried"])  # those of the step before are trained on by now


def test_other_sampling_settings_start_the_carried_completions_anew(model_dir, run, tmp_path, caplog):
    whole, folder = run
    resumed = train(model_dir, tmp_path, 3, folder / "step=2.ckpt", temperature=0.5)
    assert "model.temperature; they start anew" in caplog.text
    assert set(group["uid"] for group in whole.steps[1]["carried"]) <= set(
        resumed.steps[0]["uids"] + [group["uid"] for group in resumed.steps[0]["carried"]]
    )
    assert resumed.steps[0]["numbers"]["sampling/age/mean"] == 0


def test_groups_without_signal_are_dropped_after_they_were_completed(model_dir, tmp_path):
    recorder = train(model_dir, tmp_path, 3, dynamic_sampling=DynamicSampling(mode="drop"))
    assert all(1 <= len(step["uids"]) <= 4 for step in recorder.steps)
    assert [step["numbers"]["sampling/age/carried_groups"] for step in recorder.steps] == [2.0] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stop": ["x"]}, r"carry_over=0.5 is not possible: model.stop=\['x'\] may lie across"),
        ({"structured_outputs": {"regex": "a"}}, "structured"),
        ({"async_rollouts": 1}, "samples"),
        ({"importance_sampling_correction": False}, "Turn the correction on"),
        ({"dynamic_sampling": DynamicSampling(mode="refill")}, "refill waits for the longest completions"),
        ({"generator": VLLMServer(port=1)}, "model.generator=VLLMServer cannot"),
        ({"generator": TransformersGenerator(max_batch_size=8)}, "max_batch_size=8 some after others"),
    ],
)
def test_what_it_cannot_be_combined_with_is_refused(model_dir, settings, message):
    with pytest.raises(ValueError, match=message):
        make_module(model_dir, partial_rollouts=PartialRollouts(carry_over=0.5), **settings)


@pytest.mark.parametrize(
    ("settings", "minibatches", "message"),
    [
        ({"carry_over": 0.2}, 1, "less than one group"),
        ({"carry_over": 0.75}, 3, "leaves 2 groups for the first step"),
        ({"carry_over": 1.5, "max_staleness": 1}, 1, "carry_over=1.5 carries groups for so many steps on average"),
        ({"carry_over": -0.5}, 1, "carry_over=-0.5 is no number of batches"),
    ],
)
def test_a_share_that_does_not_fit_the_step_is_refused(model_dir, tmp_path, settings, minibatches, message):
    with pytest.raises(ValueError, match=message):
        train(model_dir, tmp_path, partial_rollouts=PartialRollouts(**settings), num_minibatches=minibatches)


def test_a_step_of_one_prompt_is_refused_since_no_share_of_it_can_be_left(model_dir):
    settings = make_module(model_dir, partial_rollouts=PartialRollouts(carry_over=2.0)).settings
    with pytest.raises(ValueError, match=r"data\.batch_size=1 prompts: .* Use 2 or more prompts"):
        check_carried(settings, 1)


def test_a_part_of_a_sampled_request_is_as_long_as_its_limit(model_dir):
    generator = TransformersGenerator()
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    generator.start(model, TOKENIZER, str(model_dir))
    module = make_module(model_dir, max_completion_length=LIMIT)
    requests = [PartRequest([40, 41], 1, 5), PartRequest([40, 41], 2, 9), PartRequest([40, 41, 42, 43], 3, 3)]
    with torch.no_grad():
        together = generator.sample_parts(requests, module.sampling, lambda n: False)
        alone = [generator.sample_parts([one], module.sampling, lambda n: False)[0] for one in requests]
        cut = generator.sample_parts(requests, module.sampling, lambda n: True)
    assert [part.ids for part in together] == [part.ids for part in alone]
    for part, request in zip(together, requests, strict=True):
        assert len(part.ids) == request.limit if part.end == "limit" else len(part.ids) <= request.limit
        assert part.end != "cut"
    shortest = min(len(part.ids) for part in together)
    assert [part.ids for part in cut] == [part.ids[:shortest] for part in together]
