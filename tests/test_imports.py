"""What importing the package costs: processes of rewards and quick commands do without torch."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import grpo_lightning
from grpo_lightning import generation, rewards
from grpo_lightning.__main__ import LIGHTNING_COMMANDS, main
from grpo_lightning.commands import COMMANDS, STAGES
from grpo_lightning.rewards import RewardRunner, get_reward_function

HEAVY = ("torch", "lightning", "transformers", "peft", "datasets", "jsonargparse")

REWARD = """
import sys
from grpo_lightning import BaseRewardFunction, register_reward

@register_reward("heavy_imports")
class HeavyImports(BaseRewardFunction):
    isolation = "process"

    def __call__(self, prompts, completions, log_extra, **columns):
        log_extra("imported", [[name for name in {heavy!r} if name in sys.modules]])
        return [1.0]
"""


def heavy_imports_after(statement: str) -> list[str]:
    script = f"{statement}\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return ended.stdout.splitlines()[-1].split()


@pytest.mark.parametrize("package", [grpo_lightning, generation, rewards], ids=lambda package: package.__name__)
def test_every_exported_name_resolves_and_is_listed(package):
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)
    with pytest.raises(AttributeError, match="has no attribute 'GRPOModul'"):
        _ = package.GRPOModul


def test_an_exported_name_is_the_same_object_as_where_it_is_defined():
    module = importlib.import_module("grpo_lightning.modules.grpo")
    assert grpo_lightning.GRPOModule is module.GRPOModule
    assert rewards.RewardRunner is importlib.import_module("grpo_lightning.rewards.runner").RewardRunner


@pytest.mark.parametrize(
    "statement",
    [
        "import grpo_lightning",
        "from grpo_lightning import BaseRewardFunction, register_reward, get_reward_function",
        "from grpo_lightning.concurrency import worker, worker_pool\nfrom grpo_lightning.rewards.runtime import process_caller, reward_call",
        "from grpo_lightning.rewards.grading import math_worker\nfrom grpo_lightning.rewards.sandbox import child, judge",
        "from grpo_lightning.commands import migrate, report",
        "from grpo_lightning.commands import serve\nserve.build_parser().format_help()",
        "from grpo_lightning.generation.vllm.serving import guard",
        "from grpo_lightning.__main__ import main\nmain(['--help'])",
    ],
)
def test_what_a_reward_process_or_a_quick_command_imports_is_light(statement):
    assert heavy_imports_after(statement) == []


def test_a_server_and_what_starts_it_need_no_training_code():
    """Nor do the processes of the server itself, which import the guard and the worker."""
    serve = "from grpo_lightning.commands import serve\nfrom grpo_lightning.policy import model_config"
    assert heavy_imports_after(serve) == ["torch", "transformers"]
    assert heavy_imports_after("from grpo_lightning.generation.vllm.weights import loading") == ["torch"]


def test_the_check_above_would_notice_torch():
    assert "torch" in heavy_imports_after("import torch")


def test_a_users_reward_runs_in_a_process_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "reward_that_looks.py").write_text(REWARD.format(heavy=HEAVY))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("reward_that_looks")
    runner = RewardRunner([get_reward_function("heavy_imports")])
    try:
        assert runner.score(["p"], ["c"], [[1]]).extra["imported"] == [[]]
    finally:
        runner.close()
        del rewards.REWARD_FUNCTIONS["heavy_imports"], sys.modules["reward_that_looks"]


def test_help_lists_every_command_and_each_is_a_module(capsys):
    main(["--help"])
    printed = capsys.readouterr().out
    for name in [*COMMANDS, *LIGHTNING_COMMANDS]:
        assert f"\n  {name} " in printed
    modules = {path.stem for path in Path(grpo_lightning.__path__[0], "commands").glob("*.py")}
    assert modules - {
        "__init__",
        "arguments",
        "chat_tools",
        "cli",
        "env_model",
        "env_play",
        "hub",
        "module_choice",
        "path_options",
        "quiet",
        "saved_policy",
        "stage_cli",
        "usage_errors",
    } == set(COMMANDS) - set(STAGES)


def test_the_version_is_told_at_once_and_is_that_of_the_package():
    command = [sys.executable, "-X", "importtime", "-m", "grpo_lightning", "--version"]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["grpo_lightning", version("grpo-lightning")]
    assert version("grpo-lightning") == grpo_lightning.__version__
    assert re.search(r"\| +grpo_lightning$", told.stderr, re.MULTILINE)
    assert not re.search(r"\| +(torch|transformers|lightning)$", told.stderr, re.MULTILINE)


def test_no_command_is_an_error_that_lists_them():
    with pytest.raises(SystemExit, match=r"(?s)report .*error: no COMMAND was given"):
        main([])


def test_an_unknown_command_is_an_error_that_names_the_nearest():
    with pytest.raises(
        SystemExit,
        match=r"^error: exprot is no COMMAND. Did you mean export\? grpo_lightning --help lists all of them.$",
    ):
        main(["exprot"])


def test_the_installed_command_finds_files_beside_the_config_as_python_m_does(tmp_path, monkeypatch):
    (tmp_path / "beside_the_config.py").write_text("number = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # pip's script has its own folder first
    main(["--help"])
    assert importlib.import_module("beside_the_config").number == 3
