"""The choice of a micro-batch's size from measurements, on numbers worked out by hand; and what is measured with."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memory_device import SavedTensors

from grpo_lightning.memory.budget import (
    GIB,
    DeviceState,
    MemoryLine,
    MemoryPlan,
    PassMemory,
    check_budget,
    choose_budget,
    does_not_fit,
    least_room,
    smaller_budget,
)
from grpo_lightning.memory.gauge import CudaGauge, gauge_of, is_out_of_memory, optimizer_bytes
from grpo_lightning.memory.worst_case import filling_rollouts, worst_shapes
from grpo_lightning.scoring.planning import count_tokens, plan_micro_batches

MIB = 2**20
LINE = MemoryLine.through(PassMemory(2048, 3 * GIB), PassMemory(4096, 5 * GIB))
"""1 GiB, and 1 MiB a token."""


def test_two_passes_give_what_is_fixed_and_what_each_token_adds():
    assert MemoryLine(1.0 * GIB, 1.0 * MIB) == LINE
    assert LINE.at(16384) == 17 * GIB
    assert LINE.tokens_in(17 * GIB) == 16384
    assert LINE.tokens_in(17 * GIB - 1) == 16383
    assert LINE.tokens_in(0) < 0


def test_a_larger_pass_that_needed_no_more_is_taken_for_a_constant():
    flat = MemoryLine.through(PassMemory(10, 500), PassMemory(20, 400))
    assert (flat.at(7), flat.tokens_in(399), flat.tokens_in(400)) == (400, 0, 65536)
    assert MemoryLine.through(PassMemory(10, 500), PassMemory(10, 600)).at(99) == 600


@pytest.mark.parametrize(
    ("free", "optimizer", "longest", "expected"),
    [
        (80, 0, 1000, 16384),  # more brings little
        (21, 0, 1000, 16384),  # 21 - 4 (5% of 80) = 17 GiB: just enough
        (20.99, 0, 1000, 15360),
        (21, 4, 1000, 12288),  # the optimizer's states are still to come
        (6, 0, 1000, 1024),
        (6, 0, 1500, 1500),  # a micro-batch holds one completion at least
        (5.5, 0, 300, 300),  # 0.5 GiB for tokens: less than 1024 of them
        (30, 0, 32_000, 32_000),
    ],
)
def test_the_budget_leaves_a_twentieth_of_the_device_free(free, optimizer, longest, expected):
    state = DeviceState(total=80 * GIB, free=round(free * GIB), optimizer=optimizer * GIB)
    assert choose_budget(LINE, state, longest, 16384) == expected


@given(budget=st.integers(1, 20_000), longest=st.integers(2, 20_000))
def test_halving_ends_at_the_longest_completion(budget, longest):
    seen = [max(budget, longest)]
    while (smaller := smaller_budget(seen[-1], longest)) is not None:
        assert longest <= smaller < seen[-1]
        assert smaller <= max(seen[-1] // 2, longest)
        seen.append(smaller)
    assert seen[-1] == longest
    assert len(seen) < 20


def test_the_rank_with_the_least_left_for_passes_counts():
    states = [DeviceState(80, 60, 0), DeviceState(80, 70, 30), DeviceState(80, 50, 0)]
    assert least_room(states) == states[1]


def test_a_setting_without_meaning_is_refused():
    for setting in (0, -3, "much"):
        with pytest.raises(ValueError, match=rf"model\.max_tokens_per_microbatch={setting} holds no token"):
            check_budget(setting)
    check_budget(1)
    check_budget("auto")


def test_plan_and_error_say_how_much_is_needed_and_free():
    state = DeviceState(total=80 * GIB, free=30 * GIB, optimizer=6 * GIB)
    plan = str(MemoryPlan(16384, PassMemory(16380, 17 * GIB), state))
    assert "16,380 tokens take up to 17.00 GiB" in plan
    assert "23.00 GiB of 30.00 GiB free" in plan
    error = does_not_fit(32768, 33 * GIB, state, ["model.a=1", "model.b below 2"])
    assert "32,768 tokens does not fit" in error
    assert "6.00 GiB of optimizer states take about 39.00 GiB; 30.00 of 80.00 GiB are free" in error
    assert error.endswith("model.a=1; model.b below 2.")
    assert "take more;" in does_not_fit(32768, None, state, [])


# -- the worst case ---------------------------------------------------------------------------------------------------


@given(
    tokens=st.integers(2, 400),
    prompt=st.integers(1, 60),
    completion=st.integers(1, 60),
    group_size=st.integers(1, 6),
)
def test_a_packed_worst_case_is_one_micro_batch_of_the_asked_size(tokens, prompt, completion, group_size):
    rollouts = filling_rollouts(tokens, prompt, completion, group_size, 50, "packed")
    sizes = (rollouts.prompt_lengths, rollouts.completion_lengths, rollouts.group)
    rows = torch.arange(rollouts.num_completions)
    count = count_tokens(*sizes, rows)
    assert tokens - 1 <= count <= tokens
    assert len(plan_micro_batches(*sizes, rows, count)) == 1
    assert rollouts.prompt_lengths.max() <= prompt
    assert rollouts.completion_lengths.max() <= completion
    assert rollouts.group.bincount().max() <= group_size


def test_it_is_made_of_the_longest_completions_with_their_prompts():
    rollouts = filling_rollouts(53, 4, 10, 2, 50, "packed")
    assert rollouts.prompt_lengths.tolist() == [4, 4, 4]
    assert rollouts.completion_lengths.tolist() == [10, 10, 10, 10, 1]
    assert rollouts.group.tolist() == [0, 0, 1, 1, 2]


def test_padded_it_is_made_of_whole_rows():
    rollouts = filling_rollouts(53, 4, 10, 2, 50, "padded")
    assert rollouts.completion_lengths.tolist() == [10, 10, 10]
    assert rollouts.group.tolist() == [0, 1, 2]
    cut = filling_rollouts(9, 4, 10, 2, 50, "padded")
    assert (cut.prompt_lengths.tolist(), cut.completion_lengths.tolist()) == ([4], [5])


def test_short_completions_are_a_worst_case_only_where_prompts_are_shared():
    assert worst_shapes("packed", 512) == (512, 1)
    assert worst_shapes("padded", 512) == (512,)


# -- measuring --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "dtype", "bytes_per_weight"),
    [
        (torch.optim.SGD, torch.float32, 0),
        (lambda weights: torch.optim.SGD(weights, momentum=0.9), torch.float32, 4),
        (torch.optim.AdamW, torch.float32, 8),
        (torch.optim.AdamW, torch.bfloat16, 4),
        (lambda weights: torch.optim.AdamW(weights, amsgrad=True), torch.float32, 12),
    ],
)
def test_an_optimizers_states_are_counted_before_its_first_step_and_not_after_it(factory, dtype, bytes_per_weight):
    weights = [torch.nn.Parameter(torch.zeros(*shape, dtype=dtype)) for shape in ((30, 7), (11,))]
    optimizer, gauge = factory(weights), SavedTensors(10**6)
    assert optimizer_bytes(optimizer, factory, gauge) == (221 * bytes_per_weight, 0)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert optimizer_bytes(optimizer, factory, gauge)[0] == 0 or factory is torch.optim.SGD


def test_what_a_library_runs_out_of_counts_as_out_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_memory_of_a_cpu_is_not_measured():
    assert gauge_of(torch.device("cpu")) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpus_memory_is_measured_to_the_megabyte():
    gauge = CudaGauge(torch.device("cuda", 0))
    free = gauge.free()
    with gauge.measuring() as peak:
        held = gauge.hold(300 * MIB)
        passing = torch.empty(200 * MIB, dtype=torch.uint8, device="cuda")
        del passing
        assert abs(peak() - 500 * MIB) < MIB
    assert abs(free - gauge.free() - 300 * MIB) < 4 * MIB
    del held
    assert abs(free - gauge.free()) < 4 * MIB
    with pytest.raises(torch.OutOfMemoryError):
        gauge.hold(gauge.total + 1)
    weights = [torch.nn.Parameter(torch.zeros(1024, 1024, device="cuda"))]
    kept, passing_bytes = optimizer_bytes(torch.optim.AdamW(weights), torch.optim.AdamW, gauge)
    assert kept == 8 * MIB
    assert 0 <= passing_bytes < 20 * MIB
