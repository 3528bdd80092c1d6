"""Backward passes that overwrite what they have saved, over a graph that is gone through twice."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from test_fast_kernels import toy
from torch import nn
from torch.autograd import Function
from torch.nn import functional as F

from grpo_lightning.scoring.fast_kernels import fused_modules, use_liger_kernels
from grpo_lightning.scoring.kept_graphs import leave_saved


def function_that_overwrites():
    class OverwritingProduct(Function):
        """``factor * a * b``, as a kernel that keeps memory small: the gradients take the place of what was saved."""

        @staticmethod
        def forward(ctx, a, b, factor):
            ctx.save_for_backward(a, b)
            ctx.factor = factor
            return factor * a * b

        @staticmethod
        def backward(ctx, of_product):
            a, b = ctx.saved_tensors
            of_a, of_b = ctx.factor * of_product * b, ctx.factor * of_product * a
            a.data.copy_(of_a)
            b.data.copy_(of_b)
            return a, b, None

    return OverwritingProduct


def layer_of(function):
    """With a forward pass of a source file that names the function, as Liger's are put into models."""
    layer, names = nn.Identity(), {"function": function}
    exec("def forward(self, a, b):\n    return function.apply(a, b, 3.0)", names)
    layer.__dict__["forward"] = names["forward"].__get__(layer)
    return layer


def test_a_second_backward_pass_finds_what_the_first_one_found():
    layer = layer_of(function_that_overwrites())
    leave_saved([layer, layer])
    a, b = torch.tensor([2.0], requires_grad=True), torch.tensor([5.0], requires_grad=True)
    product = layer(a.clone(), b.clone())
    for _ in range(2):
        assert [g.item() for g in torch.autograd.grad(product, [a, b], retain_graph=True)] == [15, 6]
    product.backward()
    assert (a.grad.item(), b.grad.item()) == (15, 6)


def test_nothing_is_copied_where_the_graph_ends_with_the_pass():
    layer = layer_of(function_that_overwrites())
    leave_saved([layer])
    a, b = torch.tensor([2.0], requires_grad=True), torch.tensor([5.0], requires_grad=True)
    saved = a.clone()
    layer(saved, b.clone()).backward()
    assert saved.item() == a.grad.item() == 15


@pytest.mark.gpu
@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="liger-kernel is not installed")
@pytest.mark.parametrize("name", ["qwen2", "gemma2", "phi3", "mixtral"])
def test_gradients_of_ligers_kernels_are_the_same_the_second_time(name):
    ids = torch.arange(2, 42, device="cuda")[None]
    model = toy(name).cuda().train()
    assert use_liger_kernels(model)
    assert fused_modules(model)
    with torch.autocast("cuda", torch.bfloat16):
        loss = F.cross_entropy(model(ids, use_cache=False).logits[0, :-1].float(), ids[0, 1:])
    first, second = (torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for _ in range(2))
    loss.backward()
    for one, other, parameter in zip(first, second, model.parameters(), strict=True):
        torch.testing.assert_close(other, one)
        torch.testing.assert_close(parameter.grad, one)
