"""LoRA layers that add their adapter in one product: peft's numbers, fewer passes over them."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from runs import fit
from torch.utils._python_dispatch import TorchDispatchMode
from toy_models import build_model

from grpo_lightning.finetuning.lora_passes import add_in_one_product

LAYER = "base_model.model.model.layers.0.mlp.up_proj"
IDS = torch.arange(40).view(2, 20)


def policy(dtype=torch.float64, **options):
    """An adapter that does something, at a scale of its own, on a base in ``dtype``."""
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "up_proj"], init_lora_weights=False, **options)
    return get_peft_model(build_model().to(dtype), config)


def adapters_in(model, dtype):
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return model


def outcome(model, is_mixed=False):
    """Logits, and gradients of a logprob with respect to the adapter."""
    with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
        logits = model(input_ids=IDS).logits
    gradients = torch.autograd.grad(
        logits.double().log_softmax(-1)[..., 7].sum(), [p for p in model.parameters() if p.requires_grad]
    )
    return [logits, *gradients]


def in_one_product(model):
    changed = copy.deepcopy(model)
    add_in_one_product(changed)
    assert "forward" in vars(changed.get_submodule(LAYER))
    return changed


class Operations(TorchDispatchMode):
    """Names and result dtypes of the operations inside."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.seen.append((function.overloadpacket.__name__, getattr(result, "dtype", None)))
        return result


def test_logits_and_gradients_are_those_of_peft():
    model = adapters_in(policy(), torch.float64)
    torch.testing.assert_close(outcome(in_one_product(model)), outcome(model), rtol=1e-10, atol=1e-12)


def test_mixed_precision_is_as_near_to_the_exact_numbers_as_peft():
    exact = outcome(adapters_in(policy(), torch.float64))
    model = adapters_in(policy(torch.bfloat16), torch.float32)
    found, expected = outcome(in_one_product(model), is_mixed=True), outcome(model, is_mixed=True)
    for ours, theirs, truth in zip(found, expected, exact, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - truth).norm() < 1.1 * (theirs - truth).norm()


@pytest.mark.parametrize(("base", "adapter"), [(torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_without_autocast_results_have_the_dtype_of_the_base(base, adapter):
    exact = outcome(adapters_in(policy(), torch.float64))
    model = adapters_in(policy(base), adapter)
    found, expected = outcome(in_one_product(model)), outcome(model)
    for ours, theirs, truth in zip(found, expected, exact, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - truth).norm() < 1.1 * (theirs - truth).norm()


def test_a_layer_takes_three_products_and_no_copy_of_its_input():
    model = adapters_in(policy(torch.bfloat16), torch.float32)
    layer = in_one_product(model).get_submodule(LAYER)
    x = torch.randn(1, 20, 64, dtype=torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Operations() as operations:
        layer(x)
    work = [
        name
        for name, _ in operations.seen
        if name not in ("view", "t", "permute", "transpose", "_unsafe_view", "detach")
    ]
    assert work == ["mm", "_to_copy", "mm", "_to_copy", "addmm"]  # the copies are of the two small matrices
    assert {dtype for name, dtype in operations.seen if name in work} == {torch.bfloat16}


def test_dropout_is_drawn_as_peft_draws_it():
    model = adapters_in(policy(lora_dropout=0.5), torch.float64).train()
    changed, results = in_one_product(model), []
    for each in (model, changed):
        torch.manual_seed(3)
        results.append(outcome(each))
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(outcome(changed)[0], results[1][0])


def test_with_the_adapter_off_or_merged_the_layer_is_pefts():
    model = adapters_in(policy(), torch.float64)
    changed = in_one_product(model)
    with model.disable_adapter(), changed.disable_adapter():
        off = changed(input_ids=IDS).logits
        assert torch.equal(off, model(input_ids=IDS).logits)
    on = changed(input_ids=IDS).logits
    assert not torch.allclose(on, off)
    changed.merge_adapter()
    torch.testing.assert_close(changed(input_ids=IDS).logits, on, rtol=1e-8, atol=1e-10)


def test_a_second_adapter_is_used_when_it_is_chosen_and_both_add_up():
    model = adapters_in(policy(), torch.float64)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    changed = in_one_product(model)
    for chosen in (["default"], ["other"], ["default", "other"]):
        for each in (model, changed):
            each.base_model.set_adapter(chosen)
        torch.testing.assert_close(changed(input_ids=IDS).logits, model(input_ids=IDS).logits, rtol=1e-10, atol=1e-12)


def test_a_copy_computes_with_its_own_weights():
    changed = in_one_product(adapters_in(policy(), torch.float64))
    copied = copy.deepcopy(changed)
    copied.get_submodule(LAYER).lora_B.default.weight.data.zero_()
    assert not torch.allclose(copied(input_ids=IDS).logits, changed(input_ids=IDS).logits)
    assert copied.get_submodule(LAYER).forward.__self__ is copied.get_submodule(LAYER)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_layers_that_do_more_are_left_alone(options):
    model = policy(torch.float32, **options)
    add_in_one_product(model)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "32-true"])
def test_training_does_so_in_every_precision(tiny_model_dir, tmp_path, precision):
    module = fit(tiny_model_dir, tmp_path, max_steps=2, finetuning_type="lora", trainer={"precision": precision})
    assert "forward" in vars(module.policy.model.get_submodule(LAYER))
    assert module.steps_done == 2
