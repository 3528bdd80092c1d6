"""What Dockerfile and devcontainer name is there; nothing is built, for want of docker where the tests run."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from grpo_lightning.__main__ import LIGHTNING_COMMANDS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text()
STEPS = [(found[1], found[2]) for found in re.finditer(r"^([A-Z]+) (.+)$", TEXT.replace("\\\n", " "), re.MULTILINE)]
DEVCONTAINER = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())


def test_every_file_that_is_copied_exists_and_is_not_ignored():
    ignored = {line.strip("/") for line in (ROOT / ".dockerignore").read_text().split()}
    copied = [source for step, rest in STEPS if step == "COPY" for source in shlex.split(rest)[:-1]]
    assert {"pyproject.toml", "constraints.txt", "grpo_lightning"} <= set(copied)
    assert [source for source in copied if not (ROOT / source).exists() or source in ignored] == []


def test_the_package_can_be_installed_from_what_was_copied_before():
    (install,) = [n for n, (step, rest) in enumerate(STEPS) if step == "RUN" and "pip install" in rest]
    before = {source for step, rest in STEPS[:install] if step == "COPY" for source in shlex.split(rest)[:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    words = shlex.split(STEPS[install][1])
    assert words[words.index("-c") + 1] == "constraints.txt"
    assert {
        "pyproject.toml",
        "constraints.txt",
        project["project"]["readme"],
        *project["project"].get("license-files", []),
    } <= before


def test_extras_and_python_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {name for group in re.findall(r"EXTRAS='\[(.*?)\]'", TEXT) for name in group.split(",")}
    assert named and named <= project["optional-dependencies"].keys()
    image = next(rest for step, rest in STEPS if step == "FROM")
    assert image.startswith("python:3.11-") and "on Python 3.11" in (ROOT / "constraints.txt").read_text()


def test_the_variables_of_a_run_are_those_of_the_makefile():
    exported = re.findall(r"^export (\w+) \?= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert exported and [f"{name}={value}" for name, value in exported] == shlex.split(dict(STEPS)["ENV"])


def test_the_commands_that_are_shown_are_commands_with_configs_that_parse():
    shown = re.findall(r"grpo_lightning (\w+) --config (\S+)$", TEXT, re.MULTILINE)
    assert {command for command, _ in shown} <= LIGHTNING_COMMANDS.keys()
    assert "model" in yaml.safe_load((ROOT / shown[0][1]).read_text())


def test_the_devcontainer_builds_the_same_file_and_makes_a_target_that_exists():
    build = DEVCONTAINER["build"]
    assert (ROOT / ".devcontainer" / build["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert (ROOT / ".devcontainer" / build["context"]).resolve() == ROOT
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    words = DEVCONTAINER["postCreateCommand"].split()
    assert words[0] == "make" and words[1] in targets


@pytest.mark.parametrize("tool", ["make", "git", "build-essential"])
def test_what_is_needed_beside_python_is_installed(tool):
    assert any(step == "RUN" and "apt-get install" in rest and tool in rest.split() for step, rest in STEPS)
