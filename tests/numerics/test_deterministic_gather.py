import pytest
import torch

from grpo_lightning.algorithm.segments import Segments
from grpo_lightning.numerics.deterministic_gather import inverse_of, rows_at, sums_at
from grpo_lightning.training.preference_passes import sum_per_completion


def test_the_gradient_of_repeated_rows_is_the_same_in_every_run_with_several_threads():
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(40, 4, 64, generator=generator, requires_grad=True)
    index = torch.randint(40, (64, 100), generator=generator)
    weight = torch.randn(64, 100, 4, 64, generator=generator)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gradients = [torch.autograd.grad(rows_at(tensor, index), tensor, weight)[0] for _ in range(20)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_rows_and_their_gradient_are_those_of_indexing():
    tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], requires_grad=True)
    rows = rows_at(tensor, torch.tensor([2, 0, 2]))
    assert rows.tolist() == [[5.0, 6.0], [1.0, 2.0], [5.0, 6.0]]
    rows.backward(torch.tensor([[1.0, 0.0], [0.0, 10.0], [100.0, 1000.0]]))
    assert tensor.grad.tolist() == [[0.0, 10.0], [0.0, 0.0], [101.0, 1000.0]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_with_the_index_turned_round_once_the_gradient_is_the_sum_over_the_places_of_a_row(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    index = torch.cat([torch.arange(7), torch.randint(2, 9, (90,), generator=generator)]).cuda()  # row 10 is not read
    tensor = torch.randn(11, 3, 40, generator=generator).to("cuda", dtype).requires_grad_()
    weight = torch.randn(97, 3, 40, generator=generator).to("cuda", dtype)
    inverse = inverse_of(index, 11)
    rows = rows_at(tensor, index, inverse)
    assert torch.equal(rows, tensor[index])
    (gradient,) = torch.autograd.grad(rows, tensor, weight)
    expected = torch.zeros(11, 3, 40, dtype=torch.float64, device="cuda").index_add_(0, index, weight.double())
    assert (gradient - expected).norm() < tolerance * expected.norm()
    assert not gradient[10].any()
    (again,) = torch.autograd.grad(rows_at(tensor, index, inverse), tensor, weight)
    assert torch.equal(gradient, again)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_are_those_of_the_values_with_the_same_index_in_any_order(dtype):
    values = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=dtype, requires_grad=True)
    sums = sums_at(values, torch.tensor([2, 0, 2, 0]), 4)
    assert sums.tolist() == [10.0, 0.0, 5.0, 0.0]
    sums.backward(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=dtype))
    assert values.grad.tolist() == [3.0, 1.0, 3.0, 1.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_sums_of_completions_and_gradients_of_what_is_spread_over_them_are_the_same_in_every_run():
    generator = torch.Generator().manual_seed(0)
    rows = torch.repeat_interleave(torch.arange(64), 1000)
    values = torch.randn(64000, generator=generator)
    segments = Segments.of(rows.cuda(), torch.ones(64000, dtype=torch.bool, device="cuda"), 64)
    of_rows = torch.randn(64, generator=generator).cuda().requires_grad_()
    runs = []
    for _ in range(20):
        sums = segments.sum(values.cuda())
        (gradient,) = torch.autograd.grad(segments.spread(of_rows), of_rows, values.cuda())
        runs.append(torch.stack([sums, gradient, sum_per_completion(values.cuda(), torch.full((64,), 1000))]))
    expected = torch.stack([part.sum() for part in values.double().split(1000)])
    for run in runs:
        torch.testing.assert_close(run.double().cpu(), expected.expand(3, 64), rtol=1e-5, atol=1e-4)
        assert torch.equal(run, runs[0])
