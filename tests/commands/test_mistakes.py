"""Each mistake is answered in one line that says what to change, before any weights are read."""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path

import pytest
import yaml
from commands.mistakes import FIRST, LATER, Mistake, write_files

from grpo_lightning.__main__ import main
from grpo_lightning.commands.settings.start import no_numbers
from grpo_lightning.policy.policy import Policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("mistakes")
    write_files(made)
    return made


@pytest.fixture
def works(folder, tiny_model_dir, monkeypatch) -> dict:
    """A config that works, in the folder of its files."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return {
        "trainer": {
            "default_root_dir": str(folder / "run"),
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 1,
            "enable_progress_bar": False,
        },
        "model": {
            "model_name_or_path": str(tiny_model_dir),
            "rewards": "accuracy,format",
            "num_generations": 4,
            "max_completion_length": 6,
            "generator": "TransformersGenerator",
        },
        "data": {"dataset": "train.jsonl", "eval_dataset": "eval.jsonl", "batch_size": 3},
    }


def write_config(mistake: Mistake, works: dict, folder: Path) -> list[str]:
    """The arguments of the command, its config written."""
    config = copy.deepcopy(works)
    for name, value in mistake.change.items():
        *sections, key = name.split(".")
        at = config
        for section in sections:
            at = at.setdefault(section, {})
        at[key] = value.format(folder=folder) if isinstance(value, str) else value
    Path("run.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return ["fit", "--config", "run.yaml", *(word.replace("{folder}", str(folder)) for word in mistake.arguments)]


def answer(arguments: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code not in (0, None)
    printed = capsys.readouterr().err + (stopped.value.code if isinstance(stopped.value.code, str) else "")
    shown = [line for line in printed.splitlines() if line.strip() and not line.startswith("On rank")]
    assert len(shown) == 1, printed
    assert shown[0].startswith("error: ")
    return re.sub(r" \(run\.yaml, line \d+\)", "", shown[0])


@pytest.mark.parametrize("mistake", FIRST, ids=str)
def test_names_and_types_are_answered_at_once(mistake, works, folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "grpo_lightning.commands.cli", None)  # what is heavy is not imported
    assert mistake.answer in answer(write_config(mistake, works, folder), capsys)


@pytest.mark.parametrize("command", [("dpo",), ("rm",), ("sft",), ("sft", "validate"), ("dpo", "fit")], ids=" ".join)
@pytest.mark.parametrize(
    "section", ["trainer", "model", "data", "checkpoint", "alarms", "export", "completions", "samples"]
)
@pytest.mark.parametrize("value", [None, 5], ids=repr)
def test_every_stage_answers_at_once(command, section, value, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "grpo_lightning.commands.stage_cli", None)
    monkeypatch.chdir(tmp_path)
    config = {"model": {"model_name_or_path": "m"}, "data": {"dataset": "d"}} | {section: value}
    Path("run.yaml").write_text(yaml.safe_dump(config))
    shown = "null" if value is None else repr(value)
    assert f"{section}={shown} cannot be used: it holds settings" in answer([*command, "--config", "run.yaml"], capsys)


@pytest.mark.parametrize(
    "command",
    [
        ["export", "foreign.ckpt", "out"],
        ["chat", "foreign.ckpt"],
        ["rewards", "try", "--completion", "a"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("value", [None, ["a"], "text", 5], ids=repr)
def test_commands_that_read_the_config_of_a_run_answer_in_a_line(command, value, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    Path("run.yaml").write_text(yaml.safe_dump({"model": value}))
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--config", "run.yaml"])
    assert stopped.value.code in (1, 2)
    shown = "null" if value is None else repr(value)
    assert f"model={shown} cannot be used (run.yaml, line 1): it holds settings." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ["export", "run"],
            "export: error: the following arguments are required: output. `grpo_lightning export --help`",
        ),
        (["report", "run", "--max-completions", "3"], "Did you mean --max_completions?"),
        (["report"], "the following arguments are required: RUN_DIR"),
        (["chat", "run", "--temprature", "1"], "Did you mean --temperature?"),
        (["chat", "run", "--temperature", "-1"], "argument --temperature: -1 is no temperature: choose 0 or more"),
        (["chat", "run", "--max_completion_length", "0"], "0 is no number of tokens: choose 1 or more"),
        (["serve", "--model", "m", "--port", "99999"], "99999 is no port: choose a whole number from 1 to 65535"),
        (["serve", "--model", "m", "--max_model_length", "-3"], "-3 is no number of tokens: choose 1 or more"),
        (["serve", "--model", "m", "--dtype", "float9"], "argument --dtype: invalid choice: 'float9'"),
        (["serve", "--model", "m", "--enforce-eager"], "Those of vLLM follow after --, as in: -- --enforce-eager."),
        (["serve", "--model", "m", "--port", "0"], "0 is no port: choose a whole number from 1 to 65535"),
        (["serve", "--model", "m", "--gpus", "a,b"], "a,b names no CUDA devices: write numbers"),
        (["migrate", "run.yaml", "--devices", "0"], "0 is no number of devices: choose 1 or more"),
        (["env", "play", "m.Env", "--max_turns", "none"], "none is no number of turns: choose 1 or more"),
    ],
    ids=" ".join,
)
def test_arguments_of_other_commands_are_answered_in_a_line(command, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["python", "train.py"],
            "No settings were found in python train.py. Give TRL's YAML config, or a command with",
        ),
        (["accelerate launch train.py"], "No settings were found in accelerate launch train.py."),
        (["missing.yaml"], "missing.yaml does not exist. Give the path of a config of TRL."),
        (["folder.yaml"], "folder.yaml is a folder. Give"),
        (["run"], "run is a folder. Give the path of a config of TRL."),
        (["run", "--beta", "0.1"], "run is a folder."),
        (["trl", "grpo"], "No settings were found in trl grpo."),
        (["--config", "missing.yaml"], "missing.yaml does not exist."),
        (["binary"], "binary is no text in UTF-8. Give the path of a config of TRL."),
        (["tab.yaml"], "tab.yaml is no valid YAML: line 2: found character '\\t'"),
        (
            ["good.yaml", "--output", "none/new.yaml"],
            "--output none/new.yaml cannot be written: No such file or directory.",
        ),
    ],
    ids=" ".join,
)
def test_migrate_says_which_file_it_cannot_read_or_write(words, said, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    Path("good.yaml").write_text("model_name_or_path: m\n")
    Path("binary").write_bytes(b"\x7fELF\xc0")
    for name in ("folder.yaml", "run", "trl"):
        Path(name).mkdir(exist_ok=True)
    with pytest.raises(SystemExit) as stopped:
        main(["migrate", *words])
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)


def test_a_setting_of_another_stage_is_not_said_to_be_where_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("model: {model_name_or_path: m, num_generations: 4}\ndata: {dataset: d}\n")
    said = answer(["dpo", "--config", "run.yaml"], capsys)
    assert "model.num_generations is no setting" in said and "is here: model.num_generations" not in said


def test_a_config_for_chat_is_read_also_beside_a_model_of_transformers(tiny_model_dir, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["chat", str(tiny_model_dir), "--config", str(tmp_path / "none.yaml")])
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "none.yaml" in line


def test_a_server_says_which_model_it_cannot_read(tmp_path, capsys):
    pytest.importorskip("vllm")
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "--model", str(tmp_path / "nothing")])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"grpo_lightning serve: --model '{tmp_path}/nothing' cannot be read. ")


@pytest.mark.parametrize("mistake", LATER, ids=str)
def test_the_rest_is_answered_before_weights_are_read(mistake, works, folder, capsys, monkeypatch):
    def load(self, placement=None):
        raise AssertionError("weights are read")

    monkeypatch.setattr(Policy, "load", load)
    assert mistake.answer in answer(write_config(mistake, works, folder), capsys)


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
@pytest.mark.parametrize("path", ["best", "last", "hpc", "registry", "none.ckpt"])
def test_a_checkpoint_that_is_not_there_is_said_in_words_of_the_command(command, path, works, folder, capsys):
    words = write_config(Mistake("", arguments=("--ckpt_path", path)), works, folder)
    said = answer([command, *words[1:]], capsys)
    assert f"--ckpt_path {path}" in said
    assert "TrainerFn" not in said


def test_a_mistake_in_a_file_is_told_with_its_line(works, folder, capsys):
    Path("lines.yaml").write_text("model:\n  beta: 0.1\n  epsilon: high\n")
    with pytest.raises(SystemExit):
        main(["fit", "--config", "lines.yaml"])
    assert "model.epsilon='high' cannot be used (lines.yaml, line 3)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["LOCAL_RANK", "RANK", "SLURM_PROCID", "SLURM_NTASKS"])
@pytest.mark.parametrize("command", ["fit", "sft"])
def test_a_launchers_variable_that_is_no_number_is_answered_in_a_line(command, name, monkeypatch, capsys):
    """Lightning and torchmetrics ended in a traceback, of which int() was the last line, while they were imported."""
    monkeypatch.setenv(name, "x")
    with pytest.raises(SystemExit) as ended:
        main([command])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: the environment variable {name} is 'x', not a number.") and said.count("\n") == 1


def test_a_launchers_variable_below_zero_is_called_that_and_not_no_number():
    asked = "Unset it, unless a launcher numbers processes with it."
    (said,) = no_numbers({"LOCAL_RANK": "-1", "RANK": " 0 "})
    assert said == f"the environment variable LOCAL_RANK is '-1', below 0, where numbers of processes begin. {asked}"


SLURM = {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "grpo", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "GROUP_RANK": "0", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        (SLURM, "SLURM_NTASKS=2: the job asks for tasks by --ntasks, which does not say how many run on a node."),
        (SLURM | {"SLURM_NTASKS_PER_NODE": "2"}, "(SLURM) has started 2 processes, but trainer.devices=1"),
        (TORCHRUN, "(TorchElastic) has started 2 processes, but trainer.devices=1 on trainer.num_nodes=1 are 1."),
    ],
    ids=["ntasks", "SLURM", "torchrun"],
)
def test_ranks_of_a_launcher_that_the_trainer_is_not_for_are_refused(
    variables, told, works, folder, capsys, monkeypatch
):
    """The first was a traceback of Lightning's; in the others each process would have trained by itself."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    words = write_config(Mistake(""), works, folder)
    assert told in answer(words, capsys)


def test_the_table_is_as_long_as_people_are_inventive():
    assert len(FIRST) + len(LATER) >= 130
    assert len({str(mistake) for mistake in FIRST + LATER}) == len(FIRST) + len(LATER)
