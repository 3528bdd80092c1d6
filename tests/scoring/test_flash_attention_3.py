"""FlashAttention 3 is kept where it agrees with the plain model, and undone where it does not.

A CPU has no such kernel: torch's registry is real here, what is registered in it as FA3 is not.
"""

from __future__ import annotations

import copy
import logging
from importlib.util import find_spec

import pytest
import torch
from test_scorer import TEMPERATURE, loss_gradient, one_by_one, some_rollouts, toy
from torch.nn.attention import _registry as registry
from torch.nn.attention import (
    current_flash_attention_impl,
    list_flash_attention_impls,
    restore_flash_attention_impl,
)

from grpo_lightning.scoring import packed_attention as attention
from grpo_lightning.scoring import settling
from grpo_lightning.scoring.packed_attention import activate_flash_attention_3
from grpo_lightning.scoring.scorer import Scorer

HOPPER, BLACKWELL, AMPERE = (9, 0), (10, 0), (8, 0)
CUDA, CPU = torch.device("cuda"), torch.device("cpu")

plain_attention = attention._in_blocks


class Kernel:
    """What torch is told to use as FA3: attention that scales its output by ``error``, or raises it."""

    def __init__(self, error: float | Exception):
        self.error = error
        self.is_active = False
        self.uses = 0

    def activate(self):
        self.is_active = True
        return self

    def remove(self):
        self.is_active = False

    def attend(self, *args):
        if not self.is_active:
            return plain_attention(*args)
        self.uses += 1
        if isinstance(self.error, Exception):
            raise self.error
        return plain_attention(*args) * self.error


@pytest.fixture(autouse=True)
def _torch_as_it_was():
    implementations = dict(registry._FLASH_ATTENTION_IMPLS)
    yield
    restore_flash_attention_impl(_raise_warn=False)
    registry._FLASH_ATTENTION_IMPLS.clear()
    registry._FLASH_ATTENTION_IMPLS.update(implementations)


@pytest.fixture
def machine(monkeypatch):
    """A CPU that says it is a GPU with FA3."""

    def make(capability=HOPPER, is_installed: bool = True, error: float | Exception = 1.0) -> Kernel:
        kernel = Kernel(error)
        torch.nn.attention.register_flash_attention_impl("FA3", register_fn=kernel.activate)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(attention, "find_spec", lambda name: object() if is_installed else None)
        monkeypatch.setattr(attention, "_in_blocks", kernel.attend)
        # The scorer computes on the CPU, and asks for the GPU that the machine pretends to have.
        monkeypatch.setattr(settling, "activate_flash_attention_3", lambda device: activate_flash_attention_3(CUDA))
        return kernel

    return make


def test_it_is_activated_on_a_hopper_with_the_package(machine):
    kernel = machine()
    assert activate_flash_attention_3(CUDA)
    assert kernel.is_active
    assert current_flash_attention_impl() == "FA3"


@pytest.mark.parametrize(
    ("device", "capability", "is_installed"),
    [(CPU, HOPPER, True), (CUDA, AMPERE, True), (CUDA, BLACKWELL, True), (CUDA, HOPPER, False)],
    ids=["cpu", "ampere", "blackwell", "no package"],
)
def test_elsewhere_nothing_is_activated(machine, device, capability, is_installed):
    kernel = machine(capability, is_installed)
    assert not activate_flash_attention_3(device)
    assert not kernel.is_active
    assert current_flash_attention_impl() is None


def test_a_package_that_does_not_load_is_said_and_done_without(machine, monkeypatch, caplog):
    machine()

    def broken(name):
        raise ModuleNotFoundError("No module named 'flash_attn_3'")

    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", broken)
    assert not activate_flash_attention_3(CUDA)
    assert "cannot be used: No module named 'flash_attn_3'" in caplog.text


def score(layout: str = "auto"):
    """A scorer after its first call, with its scores and those of the model on one sequence at a time."""
    model, rollouts, rows = toy("qwen2"), some_rollouts(), torch.arange(7)
    scorer = Scorer(model, TEMPERATURE, layout)
    return scorer, scorer.score(rollouts, rows).logprobs, one_by_one(model, rollouts, rows).logprobs


def test_where_it_agrees_with_the_plain_model_it_is_kept(machine, caplog):
    kernel = machine(error=1.0 + 1e-6)
    with caplog.at_level(logging.WARNING):
        scorer, found, expected = score()
    assert kernel.is_active
    assert current_flash_attention_impl() == "FA3"
    assert scorer.layout == "packed"
    assert not caplog.records
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    tried = kernel.uses
    scorer.score(some_rollouts(), torch.arange(7))
    assert kernel.uses == tried + 3  # once a layer: it computes what comes after the check


@pytest.mark.parametrize("error", [1.5, float("nan"), RuntimeError("FA3 flash_attention forward unsupported")])
@pytest.mark.parametrize("layout", ["auto", "packed"])
def test_where_it_disagrees_or_fails_packing_goes_on_without_it(machine, caplog, layout, error):
    kernel = machine(error=error)
    with caplog.at_level(logging.WARNING):
        scorer, found, expected = score(layout)
    assert kernel.uses  # it was tried
    assert not kernel.is_active
    assert current_flash_attention_impl() is None
    assert scorer.layout == "packed"
    assert not scorer.is_plain
    assert not caplog.records
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_kernel_that_is_wrong_in_dense_attention_as_well_is_not_measured_by_itself(machine, monkeypatch):
    kernel, plain = machine(), torch.nn.functional.scaled_dot_product_attention

    def wrong_once_active(*args, **options):
        return plain(*args, **options) * (1.5 if kernel.is_active else 1.0)

    # Packed and plain passes call it, and are wrong alike.
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", wrong_once_active)
    _, found, expected = score()
    assert kernel.uses
    assert not kernel.is_active
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_model_that_cannot_be_packed_is_padded_without_it(machine, caplog):
    kernel = machine()
    model, rollouts, rows = toy("qwen2", attention_dropout=0.1).eval(), some_rollouts(), torch.arange(7)
    scorer = Scorer(model, TEMPERATURE)
    with caplog.at_level(logging.WARNING, "grpo_lightning"):
        found = scorer.score(rollouts, rows).logprobs
    assert scorer.layout == "padded"
    assert "attention_dropout=0.1" in caplog.text
    assert not kernel.is_active
    torch.testing.assert_close(found, one_by_one(model, rollouts, rows).logprobs, rtol=1e-5, atol=1e-5)


def test_where_torch_has_none_nothing_changes(machine, monkeypatch, caplog):
    kernel = machine(is_installed=False, error=1.5)
    restored = []
    monkeypatch.setattr(settling, "restore_flash_attention_impl", lambda: restored.append(1))
    with caplog.at_level(logging.WARNING):
        scorer, found, expected = score()
    assert (kernel.uses, restored, caplog.records) == (0, [], [])
    assert current_flash_attention_impl() is None
    assert scorer.layout == "packed"
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_padded_layout_does_not_ask_for_it(machine):
    kernel = machine(error=1.5)
    scorer, found, expected = score("padded")
    assert (scorer.layout, kernel.is_active) == ("padded", False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def has_flash_attention_3() -> bool:
    listed = "FA3" in list_flash_attention_impls() and find_spec("flash_attn_interface") is not None
    return listed and torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9


@pytest.mark.gpu
@pytest.mark.skipif(not has_flash_attention_3(), reason="needs a Hopper GPU and FlashAttention 3")
@pytest.mark.parametrize("name", ["qwen2", "qwen2 with windows in some layers"])
def test_on_a_gpu_it_is_as_close_to_float32_as_the_plain_kernel(name):
    rollouts, rows = some_rollouts(), torch.arange(7)
    # Heads of 64, as small as models have them; the kernel pads those of the other toys.
    exact_model = toy(name, hidden_size=256, head_dim=64)
    model = copy.deepcopy(exact_model).to("cuda", torch.bfloat16)
    exact = one_by_one(exact_model, rollouts, rows)
    wanted = loss_gradient(exact_model, [exact], rollouts, [rows])

    def errors(scorer: Scorer) -> tuple[float, float]:
        scores = scorer.score(rollouts, rows, with_entropy=True, entropy_grad=True)
        gradient = loss_gradient(model, [scores], rollouts, [rows]).float().cpu()
        return float((scores.logprobs.cpu() - exact.logprobs).norm()), float((gradient - wanted).norm())

    scorer = Scorer(model, TEMPERATURE, "packed")
    scorer.check()
    assert current_flash_attention_impl() == "FA3"
    found = errors(scorer)
    restore_flash_attention_impl()
    plain = errors(scorer)
    assert found[0] < 1.5 * plain[0]
    assert found[1] < 1.5 * plain[1]
