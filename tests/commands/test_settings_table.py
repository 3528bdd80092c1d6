"""The table that the first check reads is that of the real signatures, and so is what the check refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands.mistakes import CLASSES, NAMES, TYPES, Mistake
from test_imports import heavy_imports_after

from grpo_lightning.__main__ import main
from grpo_lightning.commands.cli import GRPOCLI
from grpo_lightning.commands.settings.check import mistakes
from grpo_lightning.commands.settings.table import FILE, SettingsTable, load_table
from grpo_lightning.commands.settings.values import fits
from grpo_lightning.settings.names import hint

ROOT = Path(__file__).parents[2]
CONFIGS = [*(ROOT / "configs").glob("*.yaml"), *(ROOT / "examples").rglob("*.yaml")]


def test_the_table_is_what_the_signatures_say():
    # In a process of its own: optional packages that other tests have imported give some classes other signatures.
    rendered = subprocess.run(
        [sys.executable, "-c", "import sys, settings_table; sys.stdout.write(settings_table.render())"],
        cwd=ROOT / "scripts" / "docs",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert FILE.read_text() == rendered, "python scripts/docs/settings_table.py writes it anew"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_pass_the_first_check(path):
    if "model:" in path.read_text():
        assert mistakes(["--config", str(path)], load_table()) == []


@pytest.mark.parametrize(("stage", "path"), [("sft", "1_sft"), ("dpo", "2_dpo"), ("rm", "2_rm"), ("grpo", "3_grpo")])
def test_each_config_of_the_chain_passes_the_check_of_its_stage(stage, path):
    config = ["--config", str(ROOT / "configs" / "chain" / f"{path}.yaml")]
    assert mistakes(config, load_table(stage)) == []
    assert "model.bata is no setting" in mistakes([*config, "--model.bata", "4"], load_table(stage))[0]


LOST = "grpo_lightning.algorithm.losses.clip_cov.ClipCovLoss"
IS_NOW = f"{LOST} is not there ({{}}). Did you mean grpo_lightning.algorithm.losses.covariance.ClipCovLoss?"


def given(tmp_path, name: str, value) -> list[str]:
    section, _, key = name.partition(".")
    content = {"model": {"model_name_or_path": "m", "rewards": "accuracy"}, "data": {"dataset": "a.jsonl"}}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**content, section: content.get(section, {}) | {key: value}}))
    return ["--config", str(path)]


@pytest.mark.parametrize(
    ("value", "line"), [(LOST, 4), ({"class_path": LOST}, 5), ({"class_path": LOST, "init_args": {"epsilon": 0.1}}, 5)]
)
def test_a_path_of_a_module_of_ours_that_is_gone_is_answered_with_where_the_class_is(tmp_path, value, line):
    (said,) = mistakes(given(tmp_path, "model.loss_type", value), load_table())
    assert said == f"model.loss_type: {IS_NOW.format(f'{tmp_path}/run.yaml, line {line}')}"


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["--model.loss_type", LOST], "model.loss_type"),
        (["--model.loss_type.class_path", LOST], "model.loss_type"),
        (["--model.rewards+", "accuracy", "--model.loss_type", f"{{class_path: {LOST}}}"], "model.loss_type"),
    ],
)
def test_so_is_one_of_the_command_line(tmp_path, words, where):
    config = given(tmp_path, "model.rewards", "accuracy")
    assert mistakes([*config, *words], load_table()) == [f"{where}: {IS_NOW.format('command line')}"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.loss_type", "grpo_lightning.algorithm.losses.covariance.ClipCovLoss"),
        ("model.rewards", [{"class_path": "grpo_lightning.rewards.AccuracyReward"}]),
        ("model.generator", {"class_path": "grpo_lightning.generation.VLLMServer"}),
        ("trainer.logger", {"class_path": "grpo_lightning.trackers.TrackioLogger"}),
        ("trainer.default_root_dir", "grpo_lightning.runs.first"),
        ("data.dataset", "grpo_lightning.jsonl"),
    ],
)
def test_paths_that_are_there_and_texts_that_are_none_pass(tmp_path, name, value):
    assert mistakes(given(tmp_path, name, value), load_table()) == []


def test_a_class_that_no_module_of_ours_has_is_refused_as_it_stands(tmp_path):
    (said,) = mistakes(given(tmp_path, "model.rewards", ["grpo_lightning.rewards.NoSuchReward"]), load_table())
    assert said == f"model.rewards: grpo_lightning.rewards.NoSuchReward is not there ({tmp_path}/run.yaml, line 5)."


def test_an_evaluation_of_a_config_is_turned_off_by_the_command_line(tmp_path):
    path = tmp_path / "run.yaml"
    model = "model: {model_name_or_path: m, rewards: accuracy}\ntrainer: {val_check_interval: 5}\n"
    path.write_text(model + "data: {dataset: a.jsonl, eval_dataset: b.jsonl}\n")
    config = ["--config", str(path)]
    assert mistakes([*config, "--data.eval_dataset", "null"], load_table()) == []
    both = ["--data.eval_dataset", "null", "--trainer.val_check_interval", "3"]
    assert "has no effect without held-out prompts" in mistakes([*config, *both], load_table())[0]
    path.write_text(model + "data: {dataset: a.jsonl, eval_dataset: null}\n")
    assert "has no effect without held-out prompts" in mistakes(config, load_table())[0]


def test_a_config_for_sft_is_checked_against_its_own_settings():
    sft = ["--config", str(ROOT / "scripts" / "quickstart" / "sft.yaml")]
    assert mistakes(sft, load_table("sft")) == []
    assert (
        "model.num_generations is no setting" in mistakes([*sft, "--model.num_generations", "4"], load_table("sft"))[0]
    )


class ParserOnly(GRPOCLI):
    """Stops with the parser."""

    def parse_arguments(self, parser, args):
        type(self).made = parser
        raise InterruptedError


@pytest.fixture(scope="module")
def parser():
    with pytest.raises(InterruptedError):
        ParserOnly(args=["fit"])
    return ParserOnly.made


def refused_by(parser, mistake: Mistake) -> bool:
    nested: dict = {"model": {"model_name_or_path": "m", "rewards": "accuracy"}}
    for name, value in mistake.change.items():
        *sections, key = name.split(".")
        at = nested
        for section in sections:
            at = at.setdefault(section, {})
        at[key] = value
    try:
        parser.parse_object({"subcommand": "fit", "fit": nested})
    except SystemExit:
        return True
    return False


def test_the_first_check_refuses_nothing_that_the_parser_takes(parser, capsys):
    assert not refused_by(parser, Mistake("", {"model.beta": 0.1}))
    assert [str(mistake) for mistake in NAMES + TYPES + CLASSES if not refused_by(parser, mistake)] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model.beta", "4e-2", "--model.stop", "[a, b]", "--trainer.max_steps=1e2", "--data.split", "5"],
        ["--model.optimizer", "my.package.Optimizer", "--model.optimizer.anything", "1"],
        ["--model.generator", "my.Generator", "--model.generator.init_args.anything", "1"],
        ["--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor", "reward"],
        ["--model", "my.GRPO", "--model.of_its_own", "1", "--model.beta", "text"],
        ["--model_class=my.GRPO", "--model.of_its_own", "1"],
        ["--trainer.devices", "0,1", "--trainer.devices", "auto", "--print_config"],
        ["--model.dynamic_sampling", "{mode: drop}", "--model.gradient_checkpointing", "0.5", "--model.delta", "null"],
        [
            "--model.finetuning_type",
            "lora",
            "--model.peft_config",
            "LoraConfig",
            "--model.peft_config.use_dora",
            "true",
        ],
        ["--model.finetuning_type", "lora", "--model.peft_config", "elsewhere/lora.yaml"],
        ["--data.datasets", "{a: {dataset: x, weight: 1}}", "--model.generator.help", "VLLMColocate"],
    ],
    ids=" ".join,
)
def test_what_may_be_meant_passes(arguments):
    assert mistakes(["--config", str(ROOT / "configs" / "quickstart.yaml"), *arguments], load_table()) == []


def test_another_version_of_lightning_or_torch_answers_for_its_own_settings():
    known = load_table()
    other = SettingsTable(known.settings, known.classes, is_current=False)
    config = ["--config", str(ROOT / "configs" / "quickstart.yaml")]
    newer = ["--trainer.new_option", "1", "--model.optimizer.new_option", "1"]
    assert len(mistakes([*config, *newer], known)) == 2
    assert mistakes([*config, *newer], other) == []
    assert len(mistakes([*config, "--model.betaa", "1"], other)) == 1


def test_numbers_that_yaml_takes_for_texts_are_numbers():
    lr = load_table().classes["model.optimizer"]["AdamW"].arguments["lr"]
    assert [fits(value, lr) for value in ("1e-6", "2.5E3", ".5", 1, "1e", "1.0.0")] == [True] * 4 + [False] * 2


def test_the_nearest_name_of_the_same_section_comes_before_equal_ones_elsewhere():
    names = list(load_table().settings)
    assert hint("model.temperture", names) == "Did you mean model.temperature?"
    assert hint("data.dataset_inf", names) == "Did you mean data.dataset_info?"
    assert hint("checkpoint.nothing_like_it", names) == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["fit", "--help"],
            ["usage: grpo_lightning fit --config run.yaml", "Most runs set:", "  model.rewards ", "Sections:"],
        ),
        (["sft", "--help"], ["usage: grpo_lightning sft --config", "data.dataset"]),
        (["dpo", "--help"], ["usage: grpo_lightning dpo --config", "data.dataset"]),
        (["rm", "--help", "model.center_rewards_coefficient"], ["(TRL"]),
        (
            ["fit", "--help", "model.rewards"],
            ["model.rewards  (a text, a list, a mapping or a class_path with init_args; required)"],
        ),
        (["fit", "--help", "samples"], ["samples.every_n_steps  (a whole number; default 20)"]),
        (
            ["fit", "--help", "model.dynamic_sampling"],
            ["model.dynamic_sampling.max_rounds  (a whole number; default 3)"],
        ),
        (["fit", "--help", "VLLMColocate"], ["gpu_memory_utilization  (a number"]),
        (["fit", "--help", "model.lr_scheduler"], ["  WarmupSchedule\n", "CosineAnnealingLR"]),
    ],
    ids=lambda each: " ".join(each),
)
def test_help_is_a_page_or_what_there_is_about_a_setting(words, expected, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in expected)
    assert all(len(line) <= 120 for line in printed.splitlines())
    if len(words) == 2:
        assert len(printed.splitlines()) < 45


def test_help_on_nothing_names_the_nearest():
    with pytest.raises(SystemExit, match=r"no help on model\.reward\. Did you mean model\.rewards\?"):
        main(["fit", "--help", "model.reward"])


@pytest.mark.parametrize("words", [["fit", "--help"], ["fit", "--model.betaa", "1"], ["sft", "--config", "none.yaml"]])
def test_neither_help_nor_a_mistake_imports_torch(words):
    statement = f"from grpo_lightning.__main__ import main\ntry:\n    main({words!r})\nexcept SystemExit: pass"
    assert heavy_imports_after(statement) == []


def test_a_run_says_that_it_starts_before_torch_is_imported(tmp_path):
    script = (
        "import sys\nfrom grpo_lightning.__main__ import begin\n"
        f"begin(['fit', '--config', {str(ROOT / 'configs' / 'quickstart.yaml')!r}])\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, torch_is_there = done.stdout.splitlines()
    assert first.startswith("fit: settings of ") and first.endswith(
        "quickstart.yaml are read; importing torch, Lightning and transformers."
    )
    assert torch_is_there == "False"
