"""The command line as a user meets it: what it prints, what it refuses, where things land."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from runs import write_prompts

from grpo_lightning import GRPOModule
from grpo_lightning.commands.cli import GRPOCLI
from grpo_lightning.distributed.checkpoint_io import AtomicCheckpointIO
from grpo_lightning.errors import ExplainedError
from grpo_lightning.metrics.step_report import StepReport
from grpo_lightning.training.step_rewards import StepRewards
from grpo_lightning.types import Rollouts

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tiny_model_dir, tmp_path) -> dict:
    return {
        "trainer": {
            "default_root_dir": str(tmp_path / "run"),
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 2,
            "enable_progress_bar": False,
        },
        "model": {
            "model_name_or_path": str(tiny_model_dir),
            "rewards": "accuracy,format",
            "num_generations": 4,
            "max_completion_length": 6,
            "generator": {
                "class_path": "TransformersGenerator"
            },  # also where vLLM is installed: its engine is slow to start
            "eval_rewards": "runs.share_of_digits",
        },
        "data": {
            "dataset": str(write_prompts(tmp_path / "train.jsonl")),
            "eval_dataset": str(write_prompts(tmp_path / "eval.jsonl", 5)),
            "batch_size": 3,
        },
    }


def run_in_process(config: dict, tmp_path: Path, command: str = "fit", *arguments: str) -> GRPOCLI:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return GRPOCLI(args=[command, "--config", str(path), *arguments])


def refusal(config: dict, tmp_path: Path, capsys, *arguments: str) -> str:
    """What is printed when the command line refuses a config; no weights may have been read."""
    with pytest.raises(SystemExit) as stopped:
        run_in_process(config, tmp_path, "fit", *arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed and len(printed.splitlines()) < 20
    return " ".join(printed.split())


class Needy(Callback):
    """Has an argument without a default."""

    def __init__(self, patience: int) -> None:
        self.patience = patience


class Mood(StrEnum):
    """A text and a name for it."""

    CALM = "calm"
    WILD = "wild"


class Moody(Callback):
    """Its default is such a text, in an argument of plain text, as Lightning's Timer has."""

    def __init__(self, mood: str = Mood.CALM) -> None:
        self.mood = mood


class FadingAdvantages(GRPOModule):
    """A setting of its own, and a method of the step replaced."""

    def __init__(self, half_life: float = 64.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.half_life = half_life

    def advantages(self, rollouts: Rollouts, rewards: StepRewards, report: StepReport) -> torch.Tensor:
        fading = torch.exp2(-rollouts.completion_lengths / self.half_life)
        report.add_mean("fading", fading)
        return super().advantages(rollouts, rewards, report) * fading


def test_a_subclass_by_its_import_path_trains_and_comes_back_from_its_checkpoint(config, tmp_path):
    cli = run_in_process(config, tmp_path, "fit", "--model", f"{__name__}.FadingAdvantages", "--model.half_life=3")
    assert type(cli.model) is FadingAdvantages and cli.model.steps_done == 2
    assert 0.25 <= cli.model.step_metrics["fading"] < 1  # 2 ** (-6 / 3) at the longest completion
    saved = yaml.safe_load((tmp_path / "run/logs/version_0/config.yaml").read_text())
    assert saved["model_class"] == f"{__name__}.FadingAdvantages" and saved["model"]["half_life"] == 3
    loaded = FadingAdvantages.load_from_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    assert (loaded.steps_done, loaded.half_life, loaded.sampling.num_generations) == (2, 3.0, 4)
    trained = dict(cli.model.policy.model.named_parameters())
    assert all(torch.equal(weight, trained[name]) for name, weight in loaded.policy.model.named_parameters())


def test_python_m_grpo_lightning_fits_from_a_config(config, tmp_path):
    config["model"]["rewards"] = "runs.share_of_digits"
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "grpo_lightning", "fit", "--config", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Each GRPO step: 3 prompts x 4 = 12 completions, up to 72 tokens" in done.stdout
    assert "2 GRPO steps; an epoch is 4 steps over 12 prompts" in done.stdout
    root = tmp_path / "run"
    for name in ("checkpoints/last.ckpt", "hf/last/model.safetensors", "logs/version_0/config.yaml"):
        assert (root / name).is_file(), name
    header, *rows = (root / "logs/version_0/metrics.csv").read_text().splitlines()
    assert len(rows) == 2
    trl_names = "reward reward_std frac_reward_zero_std rewards/share_of_digits/mean rewards/share_of_digits/std "
    trl_names += "completions/mean_length completions/max_length completions/clipped_ratio entropy clip_ratio/low_mean clip_ratio/high_max "
    trl_names += "clip_ratio/region_mean sampling/sampling_logp_difference/mean num_tokens step_time grad_norm loss"
    assert set(trl_names.split()) <= set(header.split(","))


def test_arguments_override_the_file(config, tmp_path):
    cli = run_in_process(
        config, tmp_path, "fit", "--model.epsilon_high=0.28", "--model.optimizer.lr=0.5", "--data.batch_size", "2"
    )
    assert cli.model.objective.epsilon_high == 0.28
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == 0.5
    assert cli.datamodule.batch_size == 2


@pytest.mark.parametrize("where", ["file", "command line"])
def test_dynamic_sampling_is_turned_off_by_the_word_that_yaml_reads_as_false(config, tmp_path, where):
    own = tmp_path / "own.yaml"
    own.write_text("model: {dynamic_sampling: {mode: off}}\n")
    off = ("--config", str(own)) if where == "file" else ("--model.dynamic_sampling.mode", "off")
    arguments = ("--model.dynamic_sampling.mode", "drop", *off)
    assert run_in_process(config, tmp_path, "fit", *arguments).model.settings.dynamic_sampling.mode == "off"


def test_checkpoints_are_written_whole_or_not_at_all(config, tmp_path):
    cli = run_in_process(config, tmp_path)
    assert isinstance(cli.trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["last.ckpt"]


def test_a_missing_argument_is_named(config, tmp_path, capsys):
    told = refusal(config, tmp_path, capsys, f"--trainer.callbacks={__name__}.Needy")
    assert told == "error: trainer.callbacks: the following arguments are required: patience"


def test_a_default_that_is_an_enumeration_of_text_is_written_as_its_text(config, tmp_path):
    run_in_process(config, tmp_path, "fit", f"--trainer.callbacks={__name__}.Moody")
    saved = yaml.safe_load((tmp_path / "run/logs/version_0/config.yaml").read_text())["trainer"]["callbacks"]
    assert saved["init_args"] == {"mood": "calm"}


@pytest.mark.parametrize("given", [["HeldOutLine"], "HeldOutLine"])
def test_a_callback_that_every_run_has_may_be_named_too(config, tmp_path, given):
    config["trainer"]["callbacks"] = [{"class_path": name} for name in given] if isinstance(given, list) else given
    callbacks = run_in_process(config, tmp_path).trainer.callbacks
    assert [type(callback).__name__ for callback in callbacks].count("HeldOutLine") == 1


def test_a_callback_makes_no_resume_of_a_start(config, tmp_path, capsys):
    """Lightning went on from last.ckpt, unasked, where OnExceptionCheckpoint was among the callbacks."""
    saver = {"class_path": "OnExceptionCheckpoint", "init_args": {"dirpath": str(tmp_path / "failed")}}
    config["trainer"]["callbacks"] = [saver]
    run_in_process(config, tmp_path)  # there is nothing to go on from
    last = tmp_path / "run/checkpoints/last.ckpt"
    told = refusal(config, tmp_path, capsys, "--trainer.max_steps=3")
    assert f"OnExceptionCheckpoint has Lightning go on from {last}" in told and "--ckpt_path last" in told
    config["trainer"]["max_steps"] = 3
    assert run_in_process(config, tmp_path, "fit", "--ckpt_path=last").trainer.global_step == 3
    config["trainer"] |= {"callbacks": None, "max_steps": 1}
    assert run_in_process(config, tmp_path).trainer.global_step == 1


def test_a_checkpoint_that_lightning_would_not_go_on_from_keeps_no_run_from_starting(config, tmp_path):
    """The start was refused, and the message said that Lightning would go on from it."""
    run_in_process(config, tmp_path)
    checkpoints = tmp_path / "run/checkpoints"
    (checkpoints / "last.ckpt").rename(checkpoints / "step=50.ckpt")
    config["trainer"]["callbacks"] = [
        {"class_path": "OnExceptionCheckpoint", "init_args": {"dirpath": str(tmp_path / "failed")}}
    ]
    assert run_in_process(config, tmp_path).trainer.global_step == 2
    assert (tmp_path / "run/earlier/1/checkpoints/step=50.ckpt").exists()


def test_a_start_looks_for_no_checkpoint_unasked_and_takes_what_a_kill_has_left_aside(config, tmp_path, capsys):
    """Where no callback asks for the newest one; a start that is refused had moved things already."""
    run_in_process(config, tmp_path)
    left = tmp_path / "own" / "step=4.ckpt.old"
    left.mkdir(parents=True)
    arguments = [f"--checkpoint.dirpath={left.parent}", f"--model.model_name_or_path={tmp_path / 'run/hf/last'}"]
    assert "would put its own results" in refusal(config, tmp_path, capsys, *arguments)
    assert left.exists()
    run_in_process(config, tmp_path, "fit", arguments[0])
    assert not left.exists() and (tmp_path / "own-earlier/1/step=4.ckpt").is_dir()


def test_one_seed_reaches_model_and_data(config, tmp_path):
    cli = run_in_process(config, tmp_path, "fit", "--seed_everything=7")
    assert (cli.model.seed, cli.datamodule.seed) == (7, 7)


def test_rewards_can_be_swapped_on_the_command_line(config, tmp_path):
    cli = run_in_process(
        config, tmp_path, "fit", "--model.rewards=runs.share_of_digits", "--model.reward_weights=[2.0]"
    )
    (reward,) = cli.model.source.reward_runner.rewards
    assert (reward.name, reward.weight) == ("share_of_digits", 2.0)


@pytest.mark.parametrize("where", ["file", "command line"])
def test_one_reward_with_settings_needs_no_list(config, tmp_path, where):
    one = {"class_path": "accuracy", "init_args": {"mode": "exact", "weight": 0.5}}
    given = {"rewards": one, "eval_rewards": {"class_path": "accuracy", "init_args": {"mode": "exact"}}}
    config["model"] |= given if where == "file" else {}
    arguments = [f"--model.{name}={json.dumps(each)}" for name, each in given.items()] if where != "file" else []
    cli = run_in_process(config, tmp_path, "fit", *arguments)
    (reward,) = cli.model.source.reward_runner.rewards
    assert (reward.name, reward.mode, reward.weight) == ("accuracy", "exact", 0.5)
    saved = yaml.safe_load((tmp_path / "run/logs/version_0/config.yaml").read_text())
    assert {name: saved["model"][name] for name in given} == given


def test_losses_and_advantages_are_names_import_paths_or_class_paths_with_settings(config, tmp_path):
    config["model"]["loss_type"] = {"class_path": "dppo", "init_args": {"divergence": "kl", "epsilon": 0.05}}
    own = "tests.algorithm.test_new_losses.reinforce"
    cli = run_in_process(config, tmp_path, "fit", "--model.advantages=rloo", "--model.delta=null")
    assert (cli.model.objective.policy_loss.divergence, cli.model.objective.policy_loss.epsilon) == ("kl", 0.05)
    assert cli.model.step_advantages.estimate.rule.__name__ == "rloo"
    config["model"] |= {"loss_type": own, "advantages": {"class_path": "grpo", "init_args": {"scale_rewards": "none"}}}
    cli = run_in_process(config, tmp_path, "fit", "--trainer.default_root_dir", str(tmp_path / "other"))
    assert cli.model.objective.policy_loss.name == "reinforce"
    assert cli.model.step_advantages.estimate.rule.scale_rewards == "none"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"betaa": 0.1}}, "'model.betaa'. Did you mean model.beta?"),
        ({"model": {"max_prompt_length": 64}}, "Did you mean data.max_prompt_length?"),
        ({"model": {"learning_rate": 1e-5}}, "TRL's learning_rate is here: model.optimizer.init_args.lr."),
        ({"model": {"loss_type": "ppo"}}, "ppo"),
        (
            {"model": {"rewards": "accuracy,speling"}},
            "Reward function 'speling' not found. Available reward functions:",
        ),
        ({"model": {"reward_weights": [1.0]}}, "reward_weights"),
        (
            {"model": {"model_name_or_path": "/no/such/model"}},
            "model.model_name_or_path='/no/such/model' cannot be read",
        ),
        ({"model": {"generator": {"class_path": "NoSuchGenerator"}}}, "NoSuchGenerator"),
        ({"model": {"generator": "VLLMColocat"}}, "Did you mean VLLMColocate?"),
        ({"data": {"dataset": "/no/such/file.jsonl"}}, "/no/such/file.jsonl"),
        ({"data": {"batch_size": 100}}, "data.batch_size=100"),
        # Lightning would ask for a package or a GPU first, with which neither trains.
        ({"trainer": {"strategy": "deepspeed"}}, "deepspeed is not supported. Use trainer.strategy=fsdp2"),
        ({"trainer": {"strategy": "deepspeed_stage_3"}}, "deepspeed_stage_3 is not supported. Use"),
        ({"trainer": {"strategy": "fsdp"}}, "trainer.strategy=fsdp is FSDP1"),
        (
            {"trainer": {"strategy": {"class_path": "lightning.pytorch.strategies.DeepSpeedStrategy"}}},
            "DeepSpeedStrategy is not supported. Use trainer.strategy=fsdp2",
        ),
        ({"data": {"converter": "gsm8k"}}, "question"),
        ({"trainer": {"gradient_clip_val": 1.0}}, "Set model.max_grad_norm instead"),
        ({"trainer": {"accumulate_grad_batches": 4}}, "model.max_tokens_per_microbatch"),
    ],
)
def test_a_config_that_cannot_work_is_one_clear_message(config, tmp_path, capsys, change, message):
    for section, settings in change.items():
        config[section].update(settings)
    assert message in refusal(config, tmp_path, capsys)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--model.num_generation=2",
            "unrecognized arguments: --model.num_generation=2. Did you mean model.num_generations?",
        ),
        ("--model.colour=red", "unrecognized arguments: --model.colour=red"),
    ],
)
def test_an_option_that_is_none_is_refused_and_never_taken_for_another(config, tmp_path, capsys, argument, message):
    assert refusal(config, tmp_path, capsys, argument).endswith(message)


ONE_FOR_ALL = """
def one_for_all(completions, **columns):
    return [1.0]

def broken(completions, **columns):
    raise KeyError("text")
"""


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("one_for_all", "error: Reward 'one_for_all' returned 1 values for 12 completions"),
        ("broken", "error: Reward 'broken' failed on 24 of the last 24 completions"),  # two calls of 12 each
    ],
)
def test_an_error_that_explains_itself_ends_the_run_without_our_traceback(
    config, tmp_path, monkeypatch, capsys, reward, message
):
    (tmp_path / "explained_rewards.py").write_text(ONE_FOR_ALL)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("explained_rewards", None)
    config["model"]["rewards"] = f"explained_rewards.{reward}"
    with pytest.raises(SystemExit) as stopped:
        run_in_process(config, tmp_path)
    printed = capsys.readouterr().err
    assert stopped.value.code == 1
    step = {"one_for_all": 1, "broken": 2}[reward]
    assert message in printed and printed.rstrip().endswith(f"On rank 0, in step {step}, phase rewards.")
    assert (
        re.findall(r'File "(.*)", line', printed.partition("error:")[2])
        == {
            "one_for_all": [],
            "broken": [str(tmp_path / "explained_rewards.py")],
        }[reward]
    )
    monkeypatch.setenv("JSONARGPARSE_DEBUG", "true")
    with pytest.raises(ExplainedError):
        run_in_process(config, tmp_path)


def test_predict_writes_every_completion_with_its_rewards(config, tmp_path):
    run_in_process(config, tmp_path, "predict")
    lines = (tmp_path / "run/predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 5 * 4
    assert {row["prompt"] for row in rows} == {"0+1=", "01+2=", "002+3=", "3+4=", "04+5="}
    assert all(set(row["rewards"]) == {"accuracy", "format", "share_of_digits"} for row in rows)
    digits = [sum(c.isdigit() for c in row["completion"]) / max(1, len(row["completion"])) for row in rows]
    assert [row["rewards"]["share_of_digits"] for row in rows] == pytest.approx(digits)


def test_validate_and_test_report_the_held_out_split(config, tmp_path):
    config["model"]["num_generations_eval"] = 3
    validated = run_in_process(config, tmp_path, "validate").trainer.callback_metrics
    assert {"val/accuracy", "val/rewards/share_of_digits", "val/pass@1", "val/pass@2", "val/pass@3"} <= set(validated)
    tested = run_in_process(config, tmp_path, "test").trainer.callback_metrics
    for name in ("accuracy", "rewards/share_of_digits", "pass@3", "completions/mean_length"):
        assert tested[f"test/{name}"] == validated[f"val/{name}"]


def test_print_config_shows_every_setting(config, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_in_process(config, tmp_path, "fit", "--print_config")
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["model"]["importance_sampling_max"] == 3.0
    assert shown["model"]["num_generations"] == 4
    assert shown["checkpoint"]["save_last"] is True


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_each_shipped_config_parses(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = path.read_text()
    assert f"--config configs/{path.name}" in text  # the first lines say how to run it
    assert ParseOnly(args=["--config", str(path)], run=False).config.model.rewards


class ParseOnly(GRPOCLI):
    """Checks a config against every signature without making anything: hub names cannot be read here."""

    def instantiate_classes(self) -> None:
        pass


def test_a_command_line_builds_the_options_of_its_own_subcommand_alone() -> None:
    """Those of all four took a second of every start."""

    class Parsed(GRPOCLI):
        def instantiate_classes(self) -> None:
            pass

        def _run_subcommand(self, subcommand: str) -> None:
            pass

    options = ["--model.model_name_or_path=some/model", "--model.rewards=accuracy", "--data.dataset=rows.jsonl"]
    fit = Parsed(args=["fit", *options])
    assert fit.config.fit.data.dataset == "rows.jsonl"
    assert "--model.rewards" in fit._subcommand_parsers["fit"].format_help()
    assert set(fit._subcommand_parsers) == {"fit"}
