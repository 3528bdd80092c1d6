"""One signature: every setting is seen, documented, checked and saved; a subclass adds its own."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from async_copy_generator import AsyncCopyGenerator
from runs import fit, make_data, make_module, make_trainer, weights
from torch import Tensor

from grpo_lightning import GRPOModule, SFTModule
from grpo_lightning.commands.module_choice import chosen_class, chosen_path, with_one_option
from grpo_lightning.generation import TransformersGenerator
from grpo_lightning.modules.checks.data import check_positions
from grpo_lightning.modules.grpo_settings import GRPOSettings
from grpo_lightning.modules.sft import SFTSettings
from grpo_lightning.rollouts.source import RolloutSource
from grpo_lightning.settings.flat import documented


@pytest.mark.parametrize(("module", "settings"), [(GRPOModule, GRPOSettings), (SFTModule, SFTSettings)])
def test_the_signature_has_every_setting_and_each_has_a_text(module, settings):
    parameters = inspect.signature(module).parameters
    assert {"model_name_or_path", "lora_rank", "optimizer", "seed"} <= parameters.keys()
    assert all(each.kind is each.KEYWORD_ONLY for each in parameters.values())
    texts = documented(settings)
    assert texts.keys() == parameters.keys()
    assert [name for name, text in texts.items() if len(text) < 4] == []
    assert "seed: " in module.__init__.__doc__


class HalfLife(GRPOModule):
    """A subclass with a setting of its own."""

    def __init__(self, half_life: float = 8.0, **settings):
        super().__init__(**settings)
        self.half_life = half_life


def test_a_misspelt_setting_is_refused_with_the_one_that_was_meant(tiny_model_dir):
    with pytest.raises(TypeError, match=r"GRPOModule has no setting num_generation=8. Did you mean num_generations\?"):
        make_module(tiny_model_dir, num_generation=8)
    with pytest.raises(
        TypeError, match=r"GRPOModule is not told model_name_or_path and rewards. Settings are given by name"
    ):
        GRPOModule(beta=0.1)
    with pytest.raises(TypeError, match=r"HalfLife has no setting halflife=3. Did you mean half_life\?"):
        HalfLife(halflife=3)


class Counting(RolloutSource):
    """Counts the batches that come through it."""

    calls = 0

    def generate(self, *args, **kwargs):
        type(self).calls += 1
        return super().generate(*args, **kwargs)


class WithCounting(GRPOModule):
    def make_source(self, settings):
        return Counting(settings, self.sampling, self.policy, self.seed)


@pytest.mark.parametrize("given", ["grpo_lightning.generation.TransformersGenerator", TransformersGenerator])
def test_from_python_a_generator_is_the_object_and_not_its_name_or_class(tiny_model_dir, given):
    with pytest.raises(ValueError, match=r"From Python, give the object: generator=TransformersGenerator\(\.\.\.\)"):
        make_module(tiny_model_dir, generator=given)


@pytest.mark.parametrize("ahead", [0, 1])
def test_an_own_source_samples_every_batch_also_ahead_of_its_step(tiny_model_dir, tmp_path, ahead):
    settings = make_module(tiny_model_dir).given_settings
    settings |= {"generator": AsyncCopyGenerator(), "async_rollouts": ahead, "max_sampler_mismatch": None}
    Counting.calls = 0
    make_trainer(tmp_path, 3).fit(WithCounting(**settings), datamodule=make_data(tmp_path))
    assert Counting.calls == 3


def test_a_step_of_the_optimizer_that_nobody_of_ours_made_reaches_the_sampler(tiny_model_dir, tmp_path):
    def step_by_hand(module: GRPOModule) -> None:
        def step() -> Tensor:
            module.optimizers().step()
            module.optimizers().zero_grad()
            return torch.tensor(1.0)

        module.optimization.step = step

    generator = AsyncCopyGenerator()
    module = fit(tiny_model_dir, tmp_path, 3, on_module=step_by_hand, generator=generator)
    assert module.policy.version == 3
    assert generator.events.count("weights") == 3
    assert module.step_metrics["sampling/sampling_logp_difference/mean"] < 1e-4


def test_a_module_comes_back_from_its_checkpoint(tiny_model_dir, tmp_path):
    module = make_module(tiny_model_dir, rewards="accuracy", beta=0.1, temperature=0.7)
    trainer = make_trainer(tmp_path, 2)
    trainer.fit(module, datamodule=make_data(tmp_path))
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    loaded = GRPOModule.load_from_checkpoint(tmp_path / "two.ckpt")
    assert (loaded.steps_done, loaded.sampling.temperature, loaded.objective.beta) == (2, 0.7, 0.1)
    expected = weights(module)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(loaded).items())
    other = GRPOModule.load_from_checkpoint(tmp_path / "two.ckpt", temperature=0.5)
    assert other.sampling.temperature == 0.5
    with pytest.raises(TypeError, match=r"GRPOModule has no setting temprature=0.5. Did you mean temperature\?"):
        GRPOModule.load_from_checkpoint(tmp_path / "two.ckpt", temprature=0.5)


def test_a_checkpoint_whose_reward_is_an_object_says_how_it_is_given_again(tiny_model_dir, tmp_path):
    module = make_module(tiny_model_dir)  # rewarded by a function
    trainer = make_trainer(tmp_path)
    trainer.fit(module, datamodule=make_data(tmp_path))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(TypeError, match=r"Give them again: GRPOModule.load_from_checkpoint\(path, rewards=...\)"):
        GRPOModule.load_from_checkpoint(tmp_path / "one.ckpt")
    given = module.given_settings["rewards"]
    loaded = GRPOModule.load_from_checkpoint(tmp_path / "one.ckpt", map_location="cpu", rewards=given)
    assert loaded.steps_done == 1


def test_a_checkpoint_with_settings_that_nothing_used_is_loaded_without_them(tiny_model_dir, tmp_path):
    """Earlier versions took them; a checkpoint that held them could only be loaded with others given in their place."""
    module = make_module(tiny_model_dir, rewards="accuracy")
    trainer = make_trainer(tmp_path)
    trainer.fit(module, datamodule=make_data(tmp_path))
    entry = {"class_path": "accuracy", "init_args": {"mode": "exact", "weight": 3.0}}
    module.given_settings |= {
        "temperature_eval": 0.5,
        "top_p_eval": 0.9,
        "eval_rewards": [
            entry,
            f"{__name__}.weighing",
            {"class_path": f"{__name__}.weighing", "init_args": {"weight": 7}},
        ],
        "rewards": [entry, "format"],
        "reward_weights": [2.0, 1.0],
    }
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    loaded = GRPOModule.load_from_checkpoint(tmp_path / "one.ckpt")
    assert [reward.weight for reward in loaded.source.reward_runner.rewards] == [2.0, 1.0]
    names = ["accuracy", "format", "accuracy_2", "weighing", "weighing_2"]
    assert list(loaded.evaluation.reward_runner.names) == names and loaded.evaluation.sampling is None
    assert loaded.given_settings["eval_rewards"][2]["init_args"] == {"weight": 7}  # the function's own
    sampling = GRPOModule.load_from_checkpoint(tmp_path / "one.ckpt", num_generations_eval=2).evaluation.sampling
    assert sampling is not None and (sampling.temperature, sampling.top_p) == (0.5, 0.9)
    with pytest.raises(ValueError, match=r"model.temperature_eval=0.3 has no effect"):
        GRPOModule.load_from_checkpoint(tmp_path / "one.ckpt", temperature_eval=0.3)


def weighing(completions: list[str], weight: float = 1.0, **columns: Any) -> list[float]:
    return [weight for _ in completions]


def test_a_class_is_chosen_by_its_import_path_on_the_command_line_or_in_a_config(tmp_path: Path):
    path = f"{__name__}.WithCounting"
    for words in (["--model", path], [f"--model={path}"], ["--model.class_path", path], ["--model_class", path]):
        args = with_one_option(["fit", *words, "--model.beta", "0.1"])
        assert chosen_class(chosen_path(args), GRPOModule) is WithCounting
        assert args[-2:] == ["--model.beta", "0.1"]
    (tmp_path / "run.yaml").write_text(f"model_class: {path}\n")
    args = ["fit", "--config", str(tmp_path / "run.yaml")]
    assert chosen_path(with_one_option(args)) == path
    assert chosen_class(None, GRPOModule) is GRPOModule
    with pytest.raises(ValueError, match=r"model_class=os.path.join is no subclass of GRPOModule"):
        chosen_class("os.path.join", GRPOModule)
    with pytest.raises(ValueError, match=r"model_class=nowhere.Module cannot be imported"):
        chosen_class("nowhere.Module", GRPOModule)


def test_a_compiled_module_is_refused_naming_the_setting(tiny_model_dir, tmp_path):
    module = torch.compile(make_module(tiny_model_dir))
    with pytest.raises(ValueError, match=r"Give the Trainer the module itself, with model\.torch_compile=true"):
        make_trainer(tmp_path).fit(module, datamodule=make_data(tmp_path))


@pytest.mark.parametrize(
    ("limit", "completion", "refused"), [(20, 13, True), (20, 12, False), (None, 504, False), (None, 505, True)]
)
def test_a_completion_reaches_no_further_than_the_engine_and_the_model(tiny_model_dir, limit, completion, refused):
    generator = TransformersGenerator()
    generator.max_model_length = limit  # as VLLMColocate has it
    module = make_module(tiny_model_dir, max_completion_length=completion if completion < 20 else 8)
    settings = replace(module.settings, max_completion_length=completion)
    if not refused:
        check_positions(settings, module.policy.config, generator, longest_prompt=8)
        return
    name = "max_model_length" if limit else "max_position_embeddings"
    with pytest.raises(
        ValueError, match=rf"after the longest prompt of 8 tokens .*{name}.*Set it to {completion - 1} at most"
    ):
        check_positions(settings, module.policy.config, generator, longest_prompt=8)
