"""References: what they score as, what they cost, how they move."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from runs import fit
from toy_models import build_model

from grpo_lightning.policy.reference import AdapterReference, BaseReference, FrozenReference, make_reference

IDS = torch.arange(3, 30)[None]


@pytest.fixture
def policy():
    """A LoRA policy with a trained head and trained token rows, all away from their start."""
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], modules_to_save=["lm_head"])
    config.trainable_token_indices = [5]
    model = get_peft_model(build_model(), config).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def trained(policy):
    return {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}


def test_with_the_adapter_off_the_policy_is_the_base_and_on_again_itself(policy):
    before, names = logits(policy), set(trained(policy))
    reference = make_reference(policy)
    assert isinstance(reference, BaseReference) and reference.model is policy and reference.state_dict() == {}
    with reference.active():
        assert torch.equal(logits(reference.model), logits(build_model()))
    assert torch.equal(logits(policy), before)
    assert set(trained(policy)) == names  # still trainable


def test_a_second_set_starts_as_the_policy_and_stays_while_the_policy_moves(policy):
    reference = make_reference(policy, is_continued=True)
    assert isinstance(reference, AdapterReference)
    start = logits(policy)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data *= 2
    moved, weights = logits(policy), trained(policy)
    with reference.active():
        assert torch.equal(logits(reference.model), start)
    assert torch.equal(logits(policy), moved)
    assert all(torch.equal(w, weights[name]) for name, w in trained(policy).items())


def test_a_second_set_is_put_back_after_an_error(policy):
    reference = make_reference(policy, moves=True)
    weights = trained(policy)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + 1
    with pytest.raises(KeyboardInterrupt), reference.active():
        raise KeyboardInterrupt
    assert all(torch.equal(w, weights[name] + 1) for name, w in trained(policy).items())


def test_syncing_mixes_the_adapters_own_tensors(policy):
    reference = make_reference(policy, moves=True)
    old = trained(policy)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + torch.randn_like(parameter)
    new = trained(policy)
    reference.sync(policy, mixup_alpha=0.25)
    torch.testing.assert_close(reference.weights, {n: 0.25 * new[n] + 0.75 * old[n] for n in old})
    assert all(torch.equal(w, new[name]) for name, w in trained(policy).items())
    reference.sync(policy, mixup_alpha=1.0)
    with reference.active():
        torch.testing.assert_close(logits(reference.model), logits(policy))


def test_the_base_is_bit_identical_after_1000_syncs(policy):
    before = {n: p.detach().clone() for n, p in policy.named_parameters() if not p.requires_grad}
    reference = make_reference(policy, moves=True)
    for _ in range(1000):
        reference.sync(policy, 0.6)
        with reference.active():
            pass
    for name, parameter in policy.named_parameters():
        assert parameter.requires_grad or torch.equal(parameter, before[name]), name


def test_under_autocast_the_second_set_is_not_read_from_stale_casts(policy):
    reference = make_reference(policy, moves=True)
    with torch.autocast("cpu", torch.bfloat16):
        start = logits(policy)
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data + 0.3
        torch.clear_autocast_cache()
        policy(IDS).logits.sum().backward()  # with gradient: autocast keeps what it casts
        with reference.active():
            assert torch.equal(logits(reference.model), start)
        assert not torch.equal(logits(policy), start)


def test_a_frozen_copy_is_apart_from_the_policy_in_the_dtype_that_was_asked_for():
    policy = build_model()
    reference = make_reference(policy, device=torch.device("cpu"), dtype=torch.bfloat16)
    assert isinstance(reference, FrozenReference)
    assert {p.dtype for p in reference.model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in reference.model.parameters())
    before = logits(reference.model)
    for parameter in policy.parameters():
        parameter.data.zero_()
    with reference.active():
        assert torch.equal(logits(reference.model), before)


def test_full_training_keeps_the_copy_where_and_as_the_config_says(tiny_model_dir, tmp_path):
    module = fit(tiny_model_dir, tmp_path, beta=0.1, ref_model_device="cpu", ref_model_dtype="bfloat16")
    assert {(p.device.type, p.dtype) for p in module.reference_passes.reference.model.parameters()} == {
        ("cpu", torch.bfloat16)
    }
    assert not any(name.startswith("reference") for name, _ in module.named_parameters())
    assert 0 < module.step_metrics["kl"] < 0.01  # rounding alone sets the first reference apart


def test_the_adapter_reference_of_a_run_moves_when_it_is_synced(tiny_model_dir, tmp_path):
    settings = {"finetuning_type": "lora", "lora_dropout": 0.0, "beta": 0.1}
    kept = fit(tiny_model_dir, tmp_path, max_steps=2, **settings)
    assert isinstance(kept.reference_passes.reference, BaseReference)
    assert kept.reference_passes.scorer is kept.passes.scorer
    assert kept.step_metrics["kl"] > 0
    moving = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5}
    moved = fit(tiny_model_dir, tmp_path, max_steps=2, **moving, **settings)
    for name, parameter in moved.policy.model.named_parameters():
        if "lora_B" in name:  # started at 0
            torch.testing.assert_close(moved.reference_passes.reference.weights[name], 0.5 * parameter.detach())


def test_without_kl_there_is_no_reference(tiny_model_dir, tmp_path):
    assert fit(tiny_model_dir, tmp_path, finetuning_type="lora").reference_passes.reference is None
