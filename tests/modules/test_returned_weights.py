"""Weights that a module is given before it has any wait for its policy, and are refused whole where they do not fit it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import fit, make_data, make_module, make_trainer, weights
from torch import Tensor

from grpo_lightning import GRPOModule


def entries(module: GRPOModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def trained(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> GRPOModule:
    return fit(tiny_model_dir, tmp_path_factory.mktemp("trained"))


def test_weights_given_before_a_policy_loads_are_what_it_has_then(trained: GRPOModule, tiny_model_dir: Path) -> None:
    module = make_module(tiny_model_dir)
    module.load_state_dict(entries(trained))
    module.configure_model()
    torch.testing.assert_close(weights(module), weights(trained), rtol=0, atol=0)


@pytest.mark.parametrize("fault", ["unknown", "missing", "shape", "shape, not strict"])
def test_weights_that_do_not_fit_are_refused_before_any_is_copied_and_again_at_the_next_attempt(
    fault: str, trained: GRPOModule, tiny_model_dir: Path
) -> None:
    given = entries(trained)
    last = list(given)[-1]  # the others would be there already
    if fault == "unknown":
        given["nonsense.weight"], said = torch.ones(2), "nonsense.weight is unknown"
    elif fault == "missing":
        last = next(name for name in reversed(given) if "norm" in name)  # tied weights go by either name
        said = f"{last} is missing"
        del given[last]
    else:
        given[last], said = torch.ones(2, 3), rf"{last} has shape \(2, 3\), not \("
    module, untrained = make_module(tiny_model_dir), make_module(tiny_model_dir)
    untrained.configure_model()
    module.load_state_dict(given, strict="not strict" not in fault)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=said + r".*Nothing was copied"):
            module.configure_model()
        torch.testing.assert_close(weights(module), weights(untrained), rtol=0, atol=0)
    module.load_state_dict(entries(trained))
    module.configure_model()
    torch.testing.assert_close(weights(module), weights(trained), rtol=0, atol=0)


def test_tied_weights_may_have_one_name(trained: GRPOModule, tiny_model_dir: Path) -> None:
    module = make_module(tiny_model_dir)
    names = {id(value): name for name, value in trained.state_dict(keep_vars=True).items()}
    module.load_state_dict({name: value for name, value in entries(trained).items() if name in names.values()})
    module.configure_model()
    torch.testing.assert_close(weights(module), weights(trained), rtol=0, atol=0)


def test_without_strict_other_names_are_left_out_as_torch_does(trained: GRPOModule, tiny_model_dir: Path) -> None:
    module, name = make_module(tiny_model_dir), next(iter(weights(trained)))
    given = {f"policy.model.{name}": weights(trained)[name], "nonsense.weight": torch.ones(2)}
    assert f"policy.model.{name}" in trained.state_dict()
    module.load_state_dict(given, strict=False)
    base = make_module(tiny_model_dir)
    for each in (module, base):
        each.configure_model()
    assert not torch.equal(weights(base)[name], weights(trained)[name])
    torch.testing.assert_close(weights(module), weights(base) | {name: weights(trained)[name]}, rtol=0, atol=0)


def test_weights_given_are_those_of_the_call(tiny_model_dir: Path, tmp_path: Path) -> None:
    first, second, untrained = (make_module(tiny_model_dir) for _ in range(3))
    for each in (first, untrained):
        each.configure_model()
    second.load_state_dict(first.state_dict())
    make_trainer(tmp_path).fit(first, datamodule=make_data(tmp_path))
    second.configure_model()
    torch.testing.assert_close(weights(second), weights(untrained), rtol=0, atol=0)
    assert any(not torch.equal(weight, weights(first)[name]) for name, weight in weights(second).items())


@pytest.mark.parametrize("strict", [True, False])
def test_weights_given_on_purpose_are_what_training_starts_from(
    strict: bool, trained: GRPOModule, tiny_model_dir: Path, tmp_path: Path
) -> None:
    module = make_module(tiny_model_dir, beta=0.1)
    module.load_state_dict(entries(trained), strict)
    make_trainer(tmp_path).fit(module, datamodule=make_data(tmp_path))
    reference = module.reference_passes.reference
    assert reference is not None
    torch.testing.assert_close(dict(reference.model.named_parameters()), weights(trained), rtol=0, atol=0)
