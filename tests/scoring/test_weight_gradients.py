"""Gradients of linear layers under autocast against float64, alone and added up."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from test_scorer import toy
from torch import nn
from transformers import Qwen2ForSequenceClassification

from grpo_lightning.policy.activation_checkpointing import enable_checkpointing
from grpo_lightning.scoring import weight_gradients
from grpo_lightning.scoring.norms import compile_norms
from grpo_lightning.scoring.weight_gradients import MANY_ROWS, WeightGradients

IDS = torch.arange(2, 42)[None]
PARTS = [IDS[:, :9], IDS[:, 9:13], IDS[:, 13:]]


def loss_of(model, ids):
    logits = model(ids, use_cache=False).logits
    return -logits.float().log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None]).sum()


def gradients(model, parts=PARTS, in_place=None, mixed=True):
    model.zero_grad()
    for ids in parts:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = loss_of(model, ids)
        if in_place is None:
            loss.backward()
        else:
            with in_place():
                loss.backward()
    return {name: p.grad.double().clone() for name, p in model.named_parameters()}


def trained(name="qwen2", **options):
    model = toy(name, **options).train()
    model.weight_gradients = WeightGradients()
    model.weight_gradients.install(model)
    return model


def linear_names(model):
    return [name for name, module in model.named_modules() if type(module) is nn.Linear and "lm_head" not in name]


class OneLayer(nn.Module):
    """As little of a language model as has a linear layer besides its output head."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(2, 2), nn.Linear(2, 3)


@pytest.fixture
def layer(monkeypatch):
    model = OneLayer()
    monkeypatch.setattr(
        weight_gradients, "base_model", lambda model: SimpleNamespace(get_output_embeddings=lambda: model.head)
    )
    made = WeightGradients()
    made.install(model)
    assert "forward" not in vars(model.head)
    model.layer.gradients = made
    return model.layer


def passed_back(layer, rows, of_outputs):
    with torch.autocast("cpu", torch.bfloat16):
        outputs = layer(torch.tensor(rows))
    assert outputs.dtype == torch.bfloat16
    outputs.backward(torch.tensor(of_outputs, dtype=torch.bfloat16))


def test_a_gradient_is_the_sum_of_products_in_float32(layer):
    """256 + 1 is 256 in bfloat16."""
    passed_back(layer, [[256.0, 2.0], [1.0, 4.0]], [[1.0, 6.0], [1.0, 8.0]])
    assert layer.weight.grad.tolist() == [[257, 2 + 4], [6 * 256 + 8, 6 * 2 + 8 * 4]]
    assert layer.bias.grad.tolist() == [2, 14]
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32


@pytest.mark.parametrize("in_place", [False, True])
def test_products_are_added_to_the_gradient_that_is_there(layer, in_place):
    passed_back(layer, [[1.0, 0.0]], [[2.0, 3.0]])
    there = layer.weight.grad
    with layer.gradients.in_place() if in_place else nullcontext():
        passed_back(layer, [[0.0, 1.0]], [[4.0, 5.0]])
    assert layer.weight.grad.tolist() == [[2, 4], [3, 5]]
    assert layer.bias.grad.tolist() == [6, 8]
    assert layer.weight.grad is there
    assert not layer.gradients.are_added_in_place


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_weight_with_a_hook_has_its_gradient_from_autograd(layer, register):
    passed_back(layer, [[1.0, 0.0]], [[2.0, 3.0]])
    seen = []
    getattr(layer.weight, register)(lambda of: seen.append(of) if register == "register_hook" else seen.append(of.grad))
    with layer.gradients.in_place():
        passed_back(layer, [[0.0, 1.0]], [[4.0, 5.0]])
    assert layer.weight.grad.tolist() == [[2, 4], [3, 5]]
    assert seen[0].tolist() == ([[0, 4], [0, 5]] if register == "register_hook" else [[2, 4], [3, 5]])


def test_an_error_in_a_pass_ends_adding_in_place(layer):
    with pytest.raises(RuntimeError, match="of a loss"), layer.gradients.in_place():
        raise RuntimeError("of a loss")
    assert not layer.gradients.are_added_in_place


def test_what_is_not_trained_under_autocast_is_computed_as_before(layer):
    plain, x = nn.Linear(2, 2), torch.randn(3, 2)
    plain.load_state_dict(layer.state_dict())
    names = []
    for dtype, grad, mixed in ((torch.float32, True, False), (torch.float32, False, True), (torch.float64, True, True)):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            found, expected = layer.to(dtype)(x.to(dtype)), plain.to(dtype)(x.to(dtype))
        assert torch.equal(found, expected)
        assert found.dtype == expected.dtype
        names.append(type(found.grad_fn).__name__)
    assert "_LinearBackward" not in names
    layer.float().requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert type(layer(x.requires_grad_()).grad_fn).__name__ != "_LinearBackward"


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama", "gemma2"])
@pytest.mark.parametrize("checkpointing", [False, True, "selective"])
def test_logits_are_autocasts_own_and_gradients_as_close_to_float64_or_closer(name, checkpointing):
    exact = gradients(toy(name).double().train(), mixed=False)
    plain, model = toy(name).train(), trained(name)
    for one in (plain, model):
        enable_checkpointing(one, checkpointing)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(IDS, use_cache=False).logits, plain(IDS, use_cache=False).logits)
    theirs, alone, together = (
        gradients(plain),
        gradients(model),
        gradients(model, in_place=model.weight_gradients.in_place),
    )

    def errors(found):
        return {n: float((found[f"{n}.weight"] - exact[f"{n}.weight"]).norm()) for n in linear_names(model)}

    assert linear_names(model)
    assert sum(errors(alone).values()) < 1.01 * sum(errors(theirs).values())
    for key, gradient in together.items():  # what is not a linear layer's is autocast's in both
        assert (gradient - alone[key]).norm() < 1e-5 * alone[key].norm(), key


def test_a_copy_of_a_model_has_the_gradients_of_its_own_weights():
    model = trained()
    copied = deepcopy(model)
    before = gradients(model)
    with torch.no_grad():
        copied.model.layers[0].mlp.up_proj.weight.zero_()
    gradients(copied)
    assert all(torch.equal(p.grad.double(), before[name]) for name, p in model.named_parameters())
    assert not copied.model.layers[0].mlp.gate_proj.weight.grad.any()


def test_a_reward_model_has_them_too_and_the_scores_of_autocast():
    """A classifier has no output embeddings."""
    torch.manual_seed(0)
    config = toy("qwen2").config
    config.num_labels, config.pad_token_id = 1, 0
    plain = Qwen2ForSequenceClassification(config).train()
    model, made = deepcopy(plain), WeightGradients()
    made.install(model)
    compile_norms(model)
    scores = []
    for one in (model, plain):
        with torch.autocast("cpu", torch.bfloat16):
            scores.append(one(IDS).logits)
        scores[-1].sum().backward()
    assert torch.equal(*scores)
    assert "forward" in vars(model.model.layers[0].input_layernorm)
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (one.grad - other.grad).norm() < 0.02 * other.grad.norm() + 1e-3, name


def test_a_product_of_bfloat16_is_added_up_in_float32_inside_autocast_too(layer):
    """Lightning's backward passes are inside."""
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.tensor([[256.0, 2.0], [1.0, 4.0]])).backward(torch.tensor([[1.0, 6.0], [1.0, 8.0]]).bfloat16())
    assert layer.weight.grad.tolist() == [[257, 2 + 4], [6 * 256 + 8, 6 * 2 + 8 * 4]]


@pytest.mark.parametrize("rows", [MANY_ROWS - 1, MANY_ROWS])
def test_a_long_pass_without_gradient_leaves_no_copy_of_a_weight_in_autocasts_cache(layer, rows):
    """A sampler's short ones do, which cast a weight once for many tokens."""
    x, kept = torch.randn(rows, 2), []
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            found = layer(x)
        layer.weight.data.zero_()  # as nobody may: what is kept would not see it
        kept.append(torch.nn.functional.linear(x[:1], layer.weight).any())
    assert bool(kept[0]) == (rows < MANY_ROWS)
    assert found.shape == (rows, 2)
    assert found.dtype == torch.bfloat16


def test_one_vector_is_a_row(layer):
    with torch.autocast("cpu", torch.bfloat16):
        outputs = layer(torch.tensor([1.0, 2.0]))
    outputs.backward(torch.tensor([3.0, 4.0]).bfloat16())
    assert layer.weight.grad.tolist() == [[3, 6], [4, 8]]


def test_a_second_derivative_is_refused(layer):
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(torch.ones(1, 2, requires_grad=True)).float().square().sum()
    (first,) = torch.autograd.grad(loss, [layer.weight], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_a_whole_model_that_was_saved_loads_and_computes_as_its_class_does(tmp_path):
    model = trained()
    compile_norms(model)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits)
