"""One step off-policy: what is sampled from which weights and when, whatever happens in between."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from async_copy_generator import AsyncCopyGenerator
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from runs import FailsInStep, fit, make_data, make_module, make_trainer, share_of_digits, weights, write_prompts
from transformers import AutoModelForCausalLM

from grpo_lightning.generation import TransformersGenerator, VLLMColocate
from grpo_lightning.generation.base import WeightsLost
from grpo_lightning.modules import GRPOModule
from grpo_lightning.rollouts.dynamic_sampling import DynamicSampling
from grpo_lightning.rollouts.groups import TENSORS
from grpo_lightning.rollouts.sampler_canary import MISMATCH, StaleSamplerError
from grpo_lightning.seeds import derive_seed
from grpo_lightning.types import Rollouts

BATCHES = 4  # of an epoch: 12 prompts, 3 a step
LEARNING_RATE = 2.0


class Recorder(L.Callback):
    """The rollouts and metrics of every step, and the weights before the first step and after each."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.rollouts: list[Rollouts] = []
        self.uids: list[list[int]] = []
        self.metrics: list[dict[str, float]] = []
        self.validated: list[Rollouts] = []

    def on_train_start(self, trainer, pl_module) -> None:
        self.weights.append(weights(pl_module))

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        self.weights.append(weights(pl_module))
        self.rollouts.append(pl_module.last_step.rollouts)
        self.uids.append(pl_module.last_step.batch.uids)
        self.metrics.append(pl_module.step_metrics)


def train(
    model_dir: Path, folder: Path, max_steps: int = 6, recorder: Recorder | None = None, **options: Any
) -> GRPOModule:
    recorder = recorder or Recorder()
    trainer = {"callbacks": [recorder, *options.pop("callbacks", [])]} | options.pop("trainer", {})
    ckpt_path = options.pop("ckpt_path", None)
    data = options.pop("data", {})
    defaults = {
        "generator": AsyncCopyGenerator(),
        "async_rollouts": 1,
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=0.9),
        "max_sampler_mismatch": None,
    }
    module = make_module(model_dir, **(defaults | options))
    make_trainer(folder, max_steps, **trainer).fit(
        module, datamodule=make_data(folder, **data), ckpt_path=ckpt_path, weights_only=False
    )
    return module


def sampled_by(model_dir: Path, found: dict[str, torch.Tensor], module: GRPOModule, step: int, batch: Any) -> Rollouts:
    """What a generator with these weights gives the step, computed on its own."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    model.load_state_dict(found, strict=False)
    generator = TransformersGenerator()
    generator.start(model, module.policy.tokenizer, str(model_dir))
    seeds = [derive_seed(module.seed, "train", step, uid) for uid in batch]
    prompts = module.trainer.datamodule.train_prompts.batch(batch).prompt_ids
    with torch.no_grad():
        return generator.generate(prompts, module.sampling, seeds)


def assert_same_rollouts(found: Rollouts, expected: Rollouts) -> None:
    assert found.conversations == expected.conversations
    for name in TENSORS:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_each_batch_is_sampled_by_the_weights_of_one_step_before_with_the_seeds_of_its_own(tiny_model_dir, tmp_path):
    recorder = Recorder()
    module = train(tiny_model_dir, tmp_path, recorder=recorder)
    plain = Recorder()
    train(tiny_model_dir, tmp_path, recorder=plain, async_rollouts=0)
    assert recorder.uids == plain.uids  # the same prompts in the same order, over the end of an epoch
    for step, rollouts in enumerate(recorder.rollouts):
        older, uids = recorder.weights[max(0, step - 1)], recorder.uids[step]
        assert_same_rollouts(rollouts, sampled_by(tiny_model_dir, older, module, step, uids))
        if step:
            newer = sampled_by(tiny_model_dir, recorder.weights[step], module, step, uids)
            assert not torch.equal(newer.sampling_logprobs, rollouts.sampling_logprobs)
    assert [m["sampling/staleness_steps"] for m in recorder.metrics] == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert [m[MISMATCH] > 1e-5 for m in recorder.metrics] == [False, True, True, True, True, True]
    assert_same_rollouts(plain.rollouts[0], recorder.rollouts[0])
    assert not any(name.startswith("sampling/staleness") for name in plain.metrics[0])


def test_two_runs_give_the_same_numbers_though_one_waits_at_other_places(tiny_model_dir, tmp_path):
    runs = [Recorder(), Recorder()]
    train(tiny_model_dir, tmp_path, recorder=runs[0])
    lazy = AsyncCopyGenerator(before=lambda number: threading.Event().wait(0.2 * (number % 2)))
    train(tiny_model_dir, tmp_path, recorder=runs[1], generator=lazy)
    assert [m["loss"] for m in runs[0].metrics] == [m["loss"] for m in runs[1].metrics]
    torch.testing.assert_close(runs[0].weights[-1], runs[1].weights[-1], rtol=0, atol=0)


def test_a_batch_is_sampled_while_the_policy_is_trained_on_the_one_before(tiny_model_dir, tmp_path):
    updated = [threading.Event() for _ in range(5)]

    def wait_for_the_update_of_the_step_before(number: int) -> None:
        if number:
            assert updated[number - 1].wait(60), "the policy is not trained while the next batch is sampled"

    def watch(module: GRPOModule) -> None:
        step_optimizer = module.optimization.step

        def step() -> torch.Tensor:
            norm = step_optimizer()
            updated[module.steps_done].set()
            return norm

        module.optimization.step = step

    generator = AsyncCopyGenerator(before=wait_for_the_update_of_the_step_before)
    settings = {"generator": generator, "async_rollouts": 1, "max_sampler_mismatch": None}
    module = fit(tiny_model_dir, tmp_path, max_steps=5, on_module=watch, **settings)
    assert module.steps_done == 5
    assert generator.threads == ["MainThread"] + ["async_rollouts"] * 4  # none past the end
    assert generator.events == ["weights", "sample", "sampled"] + ["sample", "sampled", "weights"] * 3 + [
        "sample",
        "sampled",
        "weights",
    ]


@pytest.mark.parametrize(
    ("trainer", "steps"), [({"max_epochs": 2}, 8), ({"max_epochs": 3, "limit_train_batches": 2}, 6)]
)
def test_nothing_is_launched_past_the_last_epoch(tiny_model_dir, tmp_path, trainer, steps):
    generator, recorder, plain = AsyncCopyGenerator(), Recorder(), Recorder()
    train(tiny_model_dir, tmp_path, -1, recorder, generator=generator, trainer=trainer)
    assert len(recorder.rollouts) == len(generator.threads) == steps
    train(tiny_model_dir, tmp_path, -1, plain, async_rollouts=0, trainer=trainer)
    assert recorder.uids == plain.uids


def test_several_updates_a_step_count_in_the_staleness_and_in_the_end_of_training(tiny_model_dir, tmp_path):
    generator, recorder = AsyncCopyGenerator(), Recorder()
    settings = {"num_iterations": 2, "generator": generator, "importance_sampling_mode": "token_truncate"}
    train(tiny_model_dir, tmp_path, 6, recorder, **settings)
    assert [m["sampling/staleness_updates"] for m in recorder.metrics] == [0.0, 2.0, 2.0]
    assert len(generator.threads) == 3


def test_the_loss_is_corrected_by_the_ratio_of_the_policy_to_the_older_one(tiny_model_dir, tmp_path):
    recorder, experiences = Recorder(), []

    class Watch(L.Callback):
        def on_fit_start(self, trainer, pl_module) -> None:
            original = pl_module.experience
            pl_module.experience = lambda *args: experiences.append(original(*args)) or experiences[-1]

    correction = {"importance_sampling_mode": "token_truncate", "importance_sampling_max": 100.0}
    module = train(tiny_model_dir, tmp_path, 2, recorder, callbacks=[Watch()], **correction)
    assert experiences[1].old_logprobs is None  # the policy's own, as the step starts: no second pass
    module.policy.model.load_state_dict(recorder.weights[1], strict=False)
    trainers, _ = module.passes.score(module.passes.scorer, recorder.rollouts[1])
    is_trained = (module.last_step.advantages != 0)[recorder.rollouts[1].token_rows()]
    log_ratio = (trainers - recorder.rollouts[1].sampling_logprobs)[is_trained]
    found = recorder.metrics[1]
    assert found[MISMATCH] == pytest.approx(log_ratio.abs().mean().item(), rel=1e-3)
    assert found["sampling/importance_sampling_ratio/mean"] == pytest.approx(log_ratio.exp().mean().item(), rel=1e-4)
    assert found["clip_ratio/region_mean"] == 0.0


def test_validation_waits_for_the_next_batch_and_samples_from_the_newest_weights(tiny_model_dir, tmp_path):
    quiet, validated = Recorder(), Recorder()
    train(tiny_model_dir, tmp_path, recorder=quiet)
    sampled: list[tuple[int, list[int]]] = []

    class Watch(L.Callback):
        def on_fit_start(self, trainer, pl_module) -> None:
            original = pl_module.source.generate

            def generate(batch, sampling, *args, **named):
                rollouts = original(batch, sampling, *args, **named)
                if sampling.temperature == 0:
                    sampled.append((pl_module.steps_done, batch.prompt_ids[0], rollouts.completions()[0].tolist()))
                return rollouts

            pl_module.source.generate = generate

    data = {"eval_dataset": str(write_prompts(tmp_path / "eval.jsonl", 2))}
    settings = {"data": data, "callbacks": [Watch()], "trainer": {"val_check_interval": 2}}
    slow = AsyncCopyGenerator(before=lambda number: threading.Event().wait(0.5))  # refuses weights while it samples
    module = train(tiny_model_dir, tmp_path, recorder=validated, generator=slow, **settings)
    assert [step for step, _, _ in sampled] == [2, 4, 6]
    torch.testing.assert_close(validated.weights[-1], quiet.weights[-1], rtol=0, atol=0)
    for step, prompt, completion in sampled:
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
        model.load_state_dict(validated.weights[step], strict=False)
        expected = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=8, pad_token_id=0)
        assert completion == expected[0, len(prompt) :].tolist()
    assert (
        module.source.generator.events.count("weights") == 6 + 1
    )  # before step 1, at each validation or step, at the end


def save_all(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


def test_a_resumed_run_trains_on_exactly_the_batch_that_was_sampled_for_it(tiny_model_dir, tmp_path):
    whole = Recorder()
    saving = {"trainer": {"enable_checkpointing": True}}
    train(tiny_model_dir, tmp_path, recorder=whole, callbacks=[save_all(tmp_path)], **saving)
    for step in (1, 3, 4):  # inside an epoch, before its last batch, at its end
        resumed = Recorder()
        train(tiny_model_dir, tmp_path, recorder=resumed, ckpt_path=tmp_path / f"step={step}.ckpt")
        assert resumed.uids == whole.uids[step:]
        for n, metrics in enumerate(resumed.metrics, start=step):
            timed = {name for name in metrics if "time" in name or "seconds" in name or "per_second" in name}
            assert {k: v for k, v in metrics.items() if k not in timed} == {
                k: v for k, v in whole.metrics[n].items() if k not in timed
            }
        torch.testing.assert_close(resumed.weights[-1], whole.weights[-1], rtol=0, atol=0)
    saved = torch.load(tmp_path / "step=3.ckpt", weights_only=True)["sources"]["async_rollouts"]
    assert saved["parts"][0]["origin"] == {"step": 3, "weights_step": 2, "weights_update": 2, "global_step": 3}


@pytest.mark.parametrize("updates", [1, 2])
def test_a_resumed_run_tells_the_rewards_of_the_saved_batch_no_more_of_the_history(tiny_model_dir, tmp_path, updates):
    def told(folder: Path, **options: Any) -> dict[int, list[float]]:
        states: dict[int, list[float]] = {}

        def reward(completions: Any, trainer_state: Any, **columns: Any) -> list[float]:
            states[trainer_state.global_step] = [entry["step"] for entry in trainer_state.log_history]
            return share_of_digits(completions)

        train(tiny_model_dir, folder, 5 * updates, rewards=[reward], num_iterations=updates, **options)
        return states

    whole = told(tmp_path, callbacks=[save_all(tmp_path)], trainer={"enable_checkpointing": True})
    resumed = told(tmp_path, ckpt_path=tmp_path / f"step={2 * updates}.ckpt")
    assert resumed == {step: whole[step] for step in resumed}
    assert whole[3 * updates] == [updates, 2 * updates]  # step 3 was being trained as they were started


def test_a_run_that_failed_in_mid_step_resumes_with_the_batch_of_that_step(tiny_model_dir, tmp_path):
    whole = Recorder()
    train(tiny_model_dir, tmp_path, recorder=whole)

    on_exception = OnExceptionCheckpoint(str(tmp_path), "failed")
    saving = {"trainer": {"enable_checkpointing": True}, "callbacks": [FailsInStep(4), on_exception]}
    with pytest.raises(ArithmeticError, match="in step 4"):
        train(tiny_model_dir, tmp_path, **saving)
    resumed = Recorder()
    train(tiny_model_dir, tmp_path, recorder=resumed, ckpt_path=tmp_path / "failed.ckpt")
    assert resumed.uids == whole.uids[3:]
    torch.testing.assert_close(resumed.weights[-1], whole.weights[-1], rtol=0, atol=0)


def test_a_saved_batch_that_does_not_fit_is_sampled_again(tiny_model_dir, tmp_path, caplog):
    train(tiny_model_dir, tmp_path, 4, callbacks=[save_all(tmp_path)], trainer={"enable_checkpointing": True})
    resumed = Recorder()
    settings = {"max_completion_length": 6, "ckpt_path": tmp_path / "step=3.ckpt"}
    train(tiny_model_dir, tmp_path, 4, resumed, **settings)
    assert "sampled with another model.max_completion_length" in caplog.text
    assert resumed.metrics[0]["sampling/staleness_steps"] == 0.0
    synchronous = Recorder()
    with pytest.warns(UserWarning, match="async_rollouts=0 leaves out"):
        train(tiny_model_dir, tmp_path, 4, synchronous, async_rollouts=0, ckpt_path=tmp_path / "step=3.ckpt")
    assert synchronous.metrics[0][MISMATCH] < 1e-5


def test_an_error_in_the_thread_is_raised_by_the_step_that_waits_for_it(tiny_model_dir, tmp_path):
    def fail(number: int) -> None:
        if number == 2:
            raise ConnectionError("the server is gone for good")

    recorder = Recorder()
    with pytest.raises(ConnectionError, match="gone for good") as failure:
        train(tiny_model_dir, tmp_path, recorder=recorder, generator=AsyncCopyGenerator(before=fail))
    assert len(recorder.metrics) == 2
    assert {"fail", "generate", "work"} <= {entry.name for entry in failure.traceback}


def test_a_reward_that_fails_is_raised_by_the_step_that_it_belongs_to(tiny_model_dir, tmp_path):
    def reward(completions: list[str], trainer_state: Any, **columns: Any) -> list[float]:
        return share_of_digits(completions) if trainer_state.global_step < 3 else [1.0]

    recorder = Recorder()
    with pytest.raises(Exception, match="returned 1 values for 12 completions"):
        train(tiny_model_dir, tmp_path, recorder=recorder, rewards=[reward])
    assert len(recorder.metrics) == 3


def test_a_batch_whose_weights_were_lost_is_sampled_as_a_whole_from_the_new_ones(tiny_model_dir, tmp_path, caplog):
    def lose(number: int) -> None:
        if number == 2:
            raise WeightsLost("the server was lost.")

    recorder = Recorder()
    module = train(tiny_model_dir, tmp_path, recorder=recorder, generator=AsyncCopyGenerator(before=lose))
    assert [m["sampling/staleness_steps"] for m in recorder.metrics] == [0.0, 1.0, 0.0, 1.0, 1.0, 1.0]
    expected = sampled_by(tiny_model_dir, recorder.weights[2], module, 2, recorder.uids[2])
    assert_same_rollouts(recorder.rollouts[2], expected)
    assert "sampled again as a whole" in caplog.text


def test_an_interrupt_ends_the_sampling_of_the_next_batch(tiny_model_dir, tmp_path):
    class Interrupt(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args) -> None:
            if pl_module.steps_done == 2:
                raise KeyboardInterrupt

    def wait(number: int) -> None:
        if number == 2:
            assert generator.interrupted.wait(60)
            raise ConnectionAbortedError("interrupted")

    generator = AsyncCopyGenerator(before=wait)
    with pytest.raises(SystemExit):
        train(tiny_model_dir, tmp_path, generator=generator, callbacks=[Interrupt()])
    assert generator.interrupted.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "async_rollouts"]


def test_a_step_that_changes_the_policy_too_much_stops_the_run_and_says_why(tiny_model_dir, tmp_path):
    with pytest.raises(
        StaleSamplerError, match=r"Step 2: .* agreed at step 1. With model.async_rollouts=1 tokens come"
    ):
        train(tiny_model_dir, tmp_path, max_sampler_mismatch=0.1)


def test_groups_may_be_dropped(tiny_model_dir, tmp_path):
    recorder = Recorder()
    train(tiny_model_dir, tmp_path, recorder=recorder, dynamic_sampling=DynamicSampling("drop"))
    assert [m["sampling/staleness_steps"] for m in recorder.metrics] == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"async_rollouts": 2}, r"model.async_rollouts=2 is not possible. Use 0 .* or 1"),
        ({"async_rollouts": -1}, r"model.async_rollouts=-1 is not possible"),
        ({"generator": TransformersGenerator()}, r"generator=TransformersGenerator needs .*generator=VLLMServer"),
        ({"importance_sampling_correction": False}, r"importance_sampling_correction=false would treat as its own"),
        ({"dynamic_sampling": DynamicSampling("refill")}, r"mode=refill samples further prompts .* Use mode=drop"),
    ],
)
def test_settings_that_cannot_work_are_refused(tiny_model_dir, settings, message):
    with pytest.raises(ValueError, match=message):
        make_module(tiny_model_dir, **({"async_rollouts": 1, "generator": AsyncCopyGenerator()} | settings))
    assert not VLLMColocate.supports_async_rollouts


def test_another_source_of_prompts_is_refused(tiny_model_dir, tmp_path):
    module = make_module(tiny_model_dir, async_rollouts=1, generator=AsyncCopyGenerator())
    with pytest.raises(ValueError, match=r"model.async_rollouts asks GRPODataModule for the next prompts"):
        make_trainer(tmp_path).fit(module, train_dataloaders=[1, 2])
