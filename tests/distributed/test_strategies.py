"""Strategies that cannot train are refused by name, before weights load."""

from __future__ import annotations

import pytest
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, StrategyRegistry
from lightning.pytorch.strategies.fsdp import FSDPStrategy
from runs import fit

from grpo_lightning.distributed.strategies import FSDP2Strategy, check_strategy, check_strategy_name
from grpo_lightning.generation import TransformersGenerator
from grpo_lightning.modules.checks.settings import check_generator


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (FSDPStrategy(), "trainer.strategy=fsdp is FSDP1.*Use trainer.strategy=fsdp2"),
        (ModelParallelStrategy(), "tensor_parallel_size=auto.*Use trainer.strategy=fsdp2"),
        (ModelParallelStrategy(2, 2), "tensor_parallel_size=2"),
    ],
)
def test_strategies_that_cannot_train_are_refused_with_the_one_that_can(strategy, message):
    with pytest.raises(ValueError, match=message):
        check_strategy(strategy)


def test_ddp_fsdp2_and_single_devices_train():
    for strategy in (DDPStrategy(), FSDP2Strategy(), ModelParallelStrategy(2, 1), SingleDeviceStrategy("cpu")):
        check_strategy(strategy)


@pytest.mark.parametrize(
    "name", ["auto", "ddp", "fsdp2", "grpo_lightning.distributed.strategies.FSDP2Strategy", "None"]
)
def test_names_of_strategies_that_train_pass(name):
    check_strategy_name(name)


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_spawn_find_unused_parameters_true"])
def test_a_strategy_that_spawns_is_refused_by_name_and_in_python_with_those_that_train(
    tiny_model_dir, tmp_path, strategy
):
    """It was `cannot pickle '_thread.lock' object`, out of Lightning's launcher."""
    with pytest.raises(ValueError, match=r"Use trainer.strategy=ddp, .*ddp_notebook"):
        check_strategy_name(strategy)
    with pytest.raises(ValueError, match=r"Use trainer.strategy=ddp, .*ddp_notebook"):
        fit(tiny_model_dir, tmp_path, trainer={"strategy": strategy, "devices": 2})


def test_a_generator_that_needs_whole_weights_is_refused_before_they_load(tiny_model_dir, tmp_path):
    with pytest.raises(ValueError, match=r"model.generator=TransformersGenerator needs them whole"):
        fit(tiny_model_dir, tmp_path, trainer={"strategy": "fsdp2"}, generator=TransformersGenerator())
    check_generator(DDPStrategy(), TransformersGenerator())


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_strategies_are_found_by_name(name):
    assert isinstance(StrategyRegistry.get(name), DDPStrategy if name == "ddp" else FSDP2Strategy)
