"""Training passes before the first step: what they choose, what they refuse, and that they leave no trace."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from memory_device import Held, SavedTensors, on_device
from runs import fit, make_data, make_module, make_trainer, weights

from grpo_lightning.callbacks import RunPlan
from grpo_lightning.generation import TransformersGenerator, VLLMColocate
from grpo_lightning.memory import budget as memory_budget
from grpo_lightning.memory import rehearsal
from grpo_lightning.scoring.readout import LogprobReadout
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.training import passes

LONGEST = 8 + 8
"""Tokens of a completion in runs.make_module, and of the longest prompt in runs.write_prompts."""
LARGE = 2**34
LARGEST, STEP, PROBE = 512, 32, 128


@pytest.fixture(autouse=True)
def _a_world_32_times_smaller(request, monkeypatch):
    """Sizes of passes that toy models run in milliseconds on a CPU."""
    if request.node.get_closest_marker("gpu"):
        return
    for module in (memory_budget, rehearsal, passes):
        for name, value in {
            "LARGEST_BUDGET": LARGEST,
            "BUDGET_STEP": STEP,
            "PROBE_TOKENS": PROBE,
            "PASS_WORK": 0.0,
        }.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)


class Exhausted(Scorer):
    """Runs out of memory above so many completion tokens with gradient, whatever is free."""

    limit = 0

    def score(self, rollouts, rows, *args, **kwargs):
        if torch.is_grad_enabled() and int(rollouts.completion_lengths[rows].sum()) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().score(rollouts, rows, *args, **kwargs)


def exhausted_above(limit: int, gauge: SavedTensors):
    """Equips a module with a scorer that fails above ``limit`` completion tokens."""

    def equip(module):
        on_device(gauge)(module)

        def make_scorer(model):
            scorer = Exhausted(model, module.sampling.temperature)
            scorer.limit = limit
            return scorer

        module.passes.make_scorer = make_scorer

    return equip


def numbers(module) -> dict[str, float]:
    """Metrics of the last step but times and memory."""
    timed = ("time", "seconds", "per_second", "memory")
    return {name: value for name, value in module.step_metrics.items() if not any(word in name for word in timed)}


EVERYTHING = {
    "beta": 0.1,
    "entropy_coef": 0.01,
    "top_entropy_quantile": 0.7,
    "num_minibatches": 2,
    "gradient_checkpointing": "selective",
    "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        EVERYTHING | {"finetuning_type": "lora", "lora_dropout": 0.2},
        EVERYTHING | {"use_adaptive_entropy": True, "sync_ref_model": True, "ref_model_sync_steps": 1},
        {"microbatch_layout": "padded", "max_tokens_per_microbatch": 40},
    ],
    ids=["plain", "lora with dropout", "full with a reference", "padded"],
)
def test_a_run_is_the_same_to_the_bit_with_and_without(tiny_model_dir, tmp_path, settings):
    steps = 3 * settings.get("num_minibatches", 1)
    gauge = SavedTensors(LARGE)
    plain = fit(tiny_model_dir, tmp_path, max_steps=steps, **settings)
    rehearsed = fit(tiny_model_dir, tmp_path, max_steps=steps, on_module=on_device(gauge), **settings)
    assert gauge.passes > 3
    assert rehearsed.memory_plan is not None
    assert rehearsed.passes.max_tokens == plain.passes.max_tokens
    assert numbers(rehearsed) == numbers(plain)
    expected = weights(plain)
    for name, weight in weights(rehearsed).items():
        assert torch.equal(weight, expected[name]), name


def test_nothing_is_left_behind_not_even_after_running_out_of_memory(tiny_model_dir, tmp_path):
    seen = {}

    def state(module):
        modes = [part.training for part in module.policy.model.modules()]
        generators = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
        gradients = [p.grad is None for p in module.parameters()]
        return modes, generators, all(gradients), module.loss.entropy_controller.state_dict(), module.steps_done

    def watch(module):
        exhausted_above(150, SavedTensors(LARGE))(module)
        settle = module.settle_memory

        def watched():
            seen["before"], seen["weights"] = state(module), weights(module)
            settle()
            seen["after"] = state(module)
            for name, weight in weights(module).items():
                assert torch.equal(weight, seen["weights"][name])

        module.settle_memory = watched

    settings = {"finetuning_type": "lora", "beta": 0.1, "use_adaptive_entropy": True}
    module = fit(tiny_model_dir, tmp_path, on_module=watch, **settings)
    assert module.memory_plan.budget < LARGEST
    assert seen["before"] == seen["after"]


def test_auto_takes_what_the_device_has_room_for(tiny_model_dir, tmp_path):
    device = SavedTensors(1_300_000)
    module = fit(tiny_model_dir, tmp_path, on_module=on_device(device))
    plan = module.memory_plan
    assert plan.budget % STEP == 0
    assert STEP <= plan.budget < LARGEST
    assert module.passes.max_tokens == plan.budget
    assert plan.budget - 1 <= plan.needed.tokens <= plan.budget
    room = 0.95 * device.total
    per_token = plan.needed.bytes / plan.needed.tokens
    assert plan.needed.bytes < room < plan.needed.bytes + 1.1 * STEP * per_token
    assert device.used == 0
    assert "memory/peak_gib" in module.step_metrics


def test_states_that_the_optimizer_will_have_are_not_spent_on_passes(tiny_model_dir, tmp_path):
    def plan(factory):
        module = fit(tiny_model_dir, tmp_path, on_module=on_device(SavedTensors(4_000_000)), optimizer=factory)
        size = sum(p.numel() for p in module.parameters())
        return module.memory_plan, size

    without, size = plan(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    with_states, _ = plan(lambda parameters: torch.optim.AdamW(parameters, lr=0.1, amsgrad=True))
    assert without.state.optimizer == 0
    assert with_states.state.optimizer == 12 * size
    assert with_states.budget <= without.budget


def test_auto_halves_until_the_worst_micro_batch_fits(tiny_model_dir, tmp_path):
    # Measured at 64 and 128 tokens there is room for 512, and then there is not.
    module = fit(tiny_model_dir, tmp_path, on_module=exhausted_above(150, SavedTensors(LARGE)))
    assert module.passes.max_tokens == 128
    assert module.steps_done == 1


def test_a_number_that_does_not_fit_is_an_error_before_the_first_step(tiny_model_dir, tmp_path):
    module, device = make_module(tiny_model_dir, max_tokens_per_microbatch=256), SavedTensors(900_000)
    on_device(device)(module)
    with pytest.raises(MemoryError) as error:
        make_trainer(tmp_path).fit(module, datamodule=make_data(tmp_path, batch_size=6))
    assert module.steps_done == 0
    message = str(error.value)
    assert "A micro-batch of 256 tokens does not fit into memory" in message
    assert "model.gradient_checkpointing=selective, or true" in message
    assert "model.max_completion_length below 8; model.finetuning_type=lora." in message
    assert "the measurement of memory" in error.value.__notes__[0]
    advised = int(re.search(r"Any of these helps: model\.max_tokens_per_microbatch=(\d+);", message)[1])
    assert fit(tiny_model_dir, tmp_path, on_module=on_device(device), max_tokens_per_microbatch=advised).steps_done == 1


def test_a_number_that_fits_is_taken_as_it_is_without_a_margin(tiny_model_dir, tmp_path):
    settings = {"max_tokens_per_microbatch": 377, "data": {"batch_size": 12}}
    needed = fit(tiny_model_dir, tmp_path, on_module=on_device(SavedTensors(LARGE)), **settings).memory_plan.needed
    assert needed.tokens in (376, 377)
    exact = fit(tiny_model_dir, tmp_path, on_module=on_device(SavedTensors(needed.bytes)), **settings)
    assert exact.passes.max_tokens == 377
    with pytest.raises(MemoryError, match="377 tokens does not fit"):
        fit(tiny_model_dir, tmp_path, on_module=on_device(SavedTensors(needed.bytes - 1)), **settings)


def test_a_number_above_all_tokens_of_a_step_is_tried_with_these(tiny_model_dir, tmp_path):
    module = fit(tiny_model_dir, tmp_path, on_module=on_device(SavedTensors(LARGE)), max_tokens_per_microbatch=10**6)
    step = 3 * 4 * LONGEST  # prompts and completions of runs.make_data and make_module
    assert module.memory_plan.needed.tokens in (step - 1, step)
    assert module.passes.max_tokens == 10**6


def test_a_number_below_one_completion_is_tried_with_one_completion(tiny_model_dir, tmp_path):
    module = fit(tiny_model_dir, tmp_path, on_module=on_device(SavedTensors(LARGE)), max_tokens_per_microbatch=3)
    assert module.memory_plan.needed.tokens == LONGEST
    assert module.passes.max_tokens == 3


def test_where_not_even_one_completion_fits_auto_is_an_error_too(tiny_model_dir, tmp_path):
    with pytest.raises(MemoryError, match=f"A micro-batch of {LONGEST} tokens does not fit") as error:
        fit(tiny_model_dir, tmp_path, on_module=on_device(SavedTensors(150_000)))
    assert "max_tokens_per_microbatch" not in str(error.value)


def test_errors_that_are_not_about_memory_pass_through(tiny_model_dir, tmp_path):
    def equip(module):
        on_device(SavedTensors(LARGE))(module)
        module.policy_loss = lambda *arguments: 1 / 0

    with pytest.raises(ZeroDivisionError):
        fit(tiny_model_dir, tmp_path, on_module=equip)


class Sleeper(TransformersGenerator):
    """Holds memory of the device from its start and from each use to the next rest."""

    def __init__(self, gauge: SavedTensors, size: int) -> None:
        super().__init__()
        self.gauge, self.size, self.memory = gauge, size, None

    def start(self, *args):
        super().start(*args)
        self.memory = Held(self.gauge, self.size)

    def generate(self, *args, **kwargs):
        self.memory = self.memory or Held(self.gauge, self.size)
        rollouts = super().generate(*args, **kwargs)
        self.rest()
        return rollouts

    def rest(self):
        self.memory = None


def test_an_engine_that_sleeps_during_training_leaves_its_memory_to_the_passes(tiny_model_dir, tmp_path):
    def budget(generator_bytes):
        device = SavedTensors(1_300_000)
        module = fit(tiny_model_dir, tmp_path, on_module=on_device(device), generator=Sleeper(device, generator_bytes))
        return module.memory_plan

    assert budget(900_000) == budget(0)


def test_optimizer_states_have_to_fit_beside_an_engine_that_is_awake(tiny_model_dir, tmp_path):
    device = SavedTensors(1_300_000)
    settings = {"generator": Sleeper(device, 1_200_000), "optimizer": torch.optim.AdamW}
    with pytest.raises(MemoryError, match=r"The optimizer will keep 0\.00 GiB, and 0\.00 of 0\.00 GiB are free"):
        fit(tiny_model_dir, tmp_path, on_module=on_device(device), **settings)


def test_the_plan_names_the_chosen_size_and_what_it_takes(tiny_model_dir, tmp_path, capsys):
    gauge = SavedTensors(1_300_000)
    module = fit(tiny_model_dir, tmp_path, on_module=on_device(gauge), trainer={"callbacks": [RunPlan()]})
    printed = capsys.readouterr().out
    assert f"micro-batches of up to {module.passes.max_tokens:,} tokens" in printed
    assert "Measured: gradients and activations of" in printed
    passes = gauge.passes
    module.settle_memory()
    assert gauge.passes == passes  # once


def test_on_a_cpu_auto_is_the_largest_budget_and_nothing_is_measured(tiny_model_dir, tmp_path, capsys):
    module = fit(tiny_model_dir, tmp_path, trainer={"callbacks": [RunPlan()]})
    assert module.passes.max_tokens == LARGEST
    assert module.memory_plan is None
    assert "memory/peak_gib" not in module.step_metrics
    assert "Measured" not in capsys.readouterr().out


# -- resuming ---------------------------------------------------------------------------------------------------------


def fit_with_checkpoint(model_dir, tmp_path, gauge, max_steps=1, ckpt=None, **settings):
    module = make_module(model_dir, **settings)
    if gauge is not None:
        on_device(gauge)(module)
    checkpoints = ModelCheckpoint(tmp_path / "checkpoints", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = make_trainer(tmp_path, max_steps, callbacks=[checkpoints], enable_checkpointing=True)
    trainer.fit(module, datamodule=make_data(tmp_path), ckpt_path=ckpt, weights_only=False)
    return module


def test_a_resumed_run_keeps_the_size_that_auto_chose(tiny_model_dir, tmp_path):
    first = fit_with_checkpoint(tiny_model_dir, tmp_path, SavedTensors(1_300_000))
    chosen = first.passes.max_tokens
    assert chosen < LARGEST
    ckpt = tmp_path / "checkpoints" / "step=1.ckpt"
    roomier = fit_with_checkpoint(tiny_model_dir, tmp_path, SavedTensors(LARGE), 2, ckpt)
    assert (roomier.passes.max_tokens, roomier.steps_done) == (chosen, 2)
    on_cpu = fit_with_checkpoint(tiny_model_dir, tmp_path, None, 2, ckpt)
    assert on_cpu.passes.max_tokens == chosen
    named = fit_with_checkpoint(tiny_model_dir, tmp_path, None, 2, ckpt, max_tokens_per_microbatch=99)
    assert named.passes.max_tokens == 99


def test_where_the_saved_size_no_longer_fits_the_run_goes_on_with_less_and_says_so(tiny_model_dir, tmp_path):
    first = fit_with_checkpoint(tiny_model_dir, tmp_path, SavedTensors(3_000_000))
    ckpt = tmp_path / "checkpoints" / "step=1.ckpt"
    with pytest.warns(UserWarning, match=rf"micro-batches of {first.passes.max_tokens} tokens do not fit .*"):
        smaller = fit_with_checkpoint(tiny_model_dir, tmp_path, SavedTensors(900_000), 2, ckpt)
    assert smaller.passes.max_tokens < first.passes.max_tokens
    assert smaller.steps_done == 2


# -- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [150, "auto"])
def test_logits_are_kept_where_there_is_room_and_given_up_before_a_run_is_refused(
    tiny_model_dir, tmp_path, monkeypatch, budget
):
    """A CPU keeps none: here a pass that would holds a kilobyte a token instead."""
    read = LogprobReadout.read

    def holding(self, hidden, targets, **options):
        scores = read(self, hidden, targets, **options)
        if not self.keeps_logits:
            return scores
        nothing = (hidden[:, :1] * torch.ones(len(hidden), 256)).sum() * 0.0
        return scores._replace(logprobs=scores.logprobs + nothing)

    monkeypatch.setattr(LogprobReadout, "read", holding)

    def run(total, **settings):
        settings = {"max_tokens_per_microbatch": budget} | settings
        return fit(tiny_model_dir, tmp_path, on_module=on_device(SavedTensors(total)), **settings)

    roomy = run(LARGE)
    assert roomy.passes.keeps_logits
    frugal = run(LARGE, max_tokens_per_microbatch=roomy.passes.max_tokens, gradient_checkpointing=True)
    assert not frugal.passes.keeps_logits
    smallest = run(LARGE, max_tokens_per_microbatch=1) if budget == "auto" else roomy
    tight = run(smallest.memory_plan.needed.bytes - 1)
    assert not tight.passes.keeps_logits
    assert tight.steps_done == 1
    assert tight.memory_plan.needed.bytes < smallest.memory_plan.needed.bytes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_choice_follows_what_other_tensors_leave_free(tiny_model_dir, tmp_path):
    trainer = {"accelerator": "gpu", "precision": "bf16-mixed"}
    settings = {"optimizer": torch.optim.AdamW, "beta": 0.1, "trainer": trainer}
    roomy = fit(tiny_model_dir, tmp_path, **settings)
    assert roomy.passes.max_tokens == 65536
    assert 0 < roomy.step_metrics["memory/peak_gib"] < roomy.memory_plan.state.total / 2**30
    needed, state = roomy.memory_plan.needed, roomy.memory_plan.state
    # Leaves what half of that pass needs, and the margin.
    leave = needed.bytes // 2 + round(0.05 * state.total)
    torch.cuda.empty_cache()
    occupied = torch.empty(torch.cuda.mem_get_info()[0] - leave, dtype=torch.uint8, device="cuda")
    cramped = fit(tiny_model_dir, tmp_path, **settings)
    assert LONGEST <= cramped.passes.max_tokens < 65536
    assert cramped.steps_done == 1
    del occupied


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_number_that_does_not_fit_is_an_error_before_the_first_step(tiny_model_dir, tmp_path):
    torch.cuda.empty_cache()  # else torch goes on with what the test before has given back
    occupied = torch.empty(torch.cuda.mem_get_info()[0] - 2**30, dtype=torch.uint8, device="cuda")
    settings = {"num_generations": 2048, "max_completion_length": 400}
    module = make_module(tiny_model_dir, max_tokens_per_microbatch=2**20, **settings)
    with pytest.raises(MemoryError, match=r"1,048,576 tokens does not fit into memory.*GiB are free"):
        make_trainer(tmp_path, accelerator="gpu").fit(module, datamodule=make_data(tmp_path))
    assert module.steps_done == 0
    del occupied


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_sleeping_engine_leaves_its_memory_to_the_passes(tiny_model_dir, tmp_path):
    pytest.importorskip("vllm")

    def state(enable_sleep_mode):
        engine = VLLMColocate(
            gpu_memory_utilization=0.2, max_model_length=64, enforce_eager=True, enable_sleep_mode=enable_sleep_mode
        )
        trainer = {"accelerator": "gpu", "precision": "bf16-true"}
        module = fit(tiny_model_dir, tmp_path, max_steps=2, generator=engine, trainer=trainer)
        assert module.steps_done == 2
        return module.memory_plan.state

    awake, asleep = state(False), state(True)
    assert asleep.free - awake.free > 0.1 * awake.total
