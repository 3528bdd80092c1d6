"""Every command, config and script on the site runs."""

from __future__ import annotations

import ast
import importlib.util
import io
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from doc_blocks import PAGES, ROOT, Block, blocks
from runs import write_prompts

from grpo_lightning.commands import COMMANDS, STAGES, cli, stage_cli
from grpo_lightning.commands.cli import GRPOCLI
from grpo_lightning.rewards.sandbox.python_source import parsed

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")

BASE = "model: {model_name_or_path: some/model, rewards: accuracy}\ndata: {dataset: train.jsonl}\n"
TOY = ["--trainer.max_steps", "2", "--data.batch_size", "4", "--data.eval_dataset", "null"]
WRITER = "grpo_lightning.callbacks.completions.CompletionWriter"


class ParserOnly(GRPOCLI):
    """Parses and stops: instantiating would read the model."""

    def instantiate_classes(self) -> None:
        pass


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a reader has after cloning and running the quickstart: two steps of it, and another run."""
    root = tmp_path_factory.mktemp("workspace")
    for name in ("assets", "configs", "examples", "Makefile", "pyproject.toml"):
        (root / name).symlink_to(ROOT / name)
    write_prompts(root / "train.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        config = ["fit", "--config", "configs/quickstart.yaml", "--trainer.callbacks", WRITER, *TOY]
        cli.main(config)
        shutil.copytree("runs/quickstart", "runs/other")
    return root


@pytest.fixture
def at(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workspace)
    monkeypatch.syspath_prepend(str(workspace))
    return workspace


def all_blocks(language: str) -> list[object]:
    found = [block for page in PAGES for block in blocks(page) if block.language == language]
    return [pytest.param(block, id=f"{block.page}-{n}") for n, block in enumerate(found)]


def write_titled(block: Block, at: Path) -> None:
    """Writes the files that the block's page shows with a title: what it names by import path."""
    for other in (b for page in PAGES if page.name == block.page for b in blocks(page) if b.language == "python"):
        if other.title:
            (at / other.title).write_text(other.code)
    importlib.invalidate_caches()


def run_command(line: str, block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs one line of a shell block, in this process where it is ours."""
    piped = re.fullmatch(r'echo "(.*?)" \| (.*)', line)
    if piped:
        monkeypatch.setattr("sys.stdin", io.StringIO(piped[1] + "\n"))
        line = piped[2]
    words = shlex.split(line)
    if words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for names in re.findall(r"\[(.*?)\]", line):
            assert set(names.split(",")) <= extras.keys(), line
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", Path("Makefile").read_text(), re.MULTILINE), line
    elif words[:3] == ["python", "-m", "grpo_lightning"]:
        run_ours(words[3:] + block.extra, is_parsed_only=block.how == "parse")
    else:
        assert words[0] == "python", f"no test knows how to run {line!r}"
        monkeypatch.setattr("sys.argv", words[1:])
        call(lambda: runpy.run_path(words[1], run_name="__main__"))


def run_ours(arguments: list[str], is_parsed_only: bool) -> None:
    if is_parsed_only or arguments[0] == "serve":  # a server runs until it is stopped
        if arguments[0] in COMMANDS:
            importlib.import_module(f"grpo_lightning.commands.{arguments[0]}").build_parser().parse_args(arguments[1:])
            return
        assert arguments[0] in ("fit", "validate", "test", "predict")
        ParserOnly(args=arguments[1:], run=False)
    elif arguments[0] in STAGES:
        assert stage_cli.main(arguments[0], arguments[1:]) == 0
    elif arguments[0] in COMMANDS:
        command = importlib.import_module(f"grpo_lightning.commands.{arguments[0]}")
        assert command.main(arguments[1:]) == 0
    else:
        call(lambda: cli.main(arguments))


def call(action) -> None:
    """Calls what may end with a successful exit."""
    try:
        action()
    except SystemExit as ended:
        assert ended.code in (None, 0)


@pytest.mark.slow
@pytest.mark.parametrize("block", all_blocks("bash"))
def test_commands_of_the_documentation_run(block: Block, at: Path, monkeypatch: pytest.MonkeyPatch):
    if block.how == "script":
        subprocess.run(["bash", "-n"], input=block.code, text=True, check=True)
        assert block.our_commands()
        for arguments in block.our_commands():
            run_ours(arguments, is_parsed_only=True)
        return
    write_titled(block, at)
    for line in block.commands():
        run_command(line, block, monkeypatch)


@pytest.mark.parametrize("block", all_blocks("python"))
def test_python_of_the_documentation_runs(block: Block, at: Path):
    path = at / (block.title or "snippet.py")
    path.write_text(block.code)
    named = {node.name for node in parsed(block.code).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert named <= runpy.run_path(str(path)).keys()


def test_the_lines_of_the_readme_show_what_the_exported_model_says(at: Path, capsys: pytest.CaptureFixture[str]):
    (lines,) = [block.code for block in blocks(ROOT / "README.md") if "pipeline" in block.code]
    assert len([line for line in lines.splitlines() if line]) == 5
    (at / "snippet.py").write_text(lines)
    runpy.run_path(str(at / "snippet.py"))
    answer = re.fullmatch(r"<think>(.*)</think><answer>(\d+)</answer>", capsys.readouterr().out.strip())
    assert answer is not None and answer[2] == "46"


@pytest.mark.parametrize("block", all_blocks("yaml"))
def test_configs_of_the_documentation_parse(block: Block, at: Path):
    write_titled(block, at)
    (at / "base.yaml").write_text(BASE)
    (at / "block.yaml").write_text(block.code)
    parsed = ParserOnly(args=["--config", "base.yaml", "--config", "block.yaml"], run=False).config
    for section, settings in yaml.safe_load(block.code).items():
        for name, value in settings.items() if isinstance(settings, dict) else ():
            assert name in parsed[section], f"{section}.{name}"
            if isinstance(value, bool | int | float):
                assert parsed[section][name] == value, f"{section}.{name}"


def test_pages_show_no_shell_block_that_the_tests_do_not_see():
    for page in PAGES:
        fences = len(re.findall(r"^```\w", page.read_text(), re.MULTILINE))
        assert fences == len(blocks(page)), page.name


@pytest.mark.parametrize("script", ["configuration", "from_trl", "performance"])
def test_generated_pages_are_up_to_date(script: str):
    spec = importlib.util.spec_from_file_location(f"docs_{script}", ROOT / "scripts" / "docs" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.render(), f"run python scripts/docs/{script}.py"


def test_the_examples_of_what_the_grader_accepts_are_up_to_date():
    spec = importlib.util.spec_from_file_location("docs_verdicts", ROOT / "scripts" / "docs" / "verdicts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.PAGE.read_text()
    assert page == module.render(page), "run python scripts/docs/verdicts.py"
    assert "| right | `1234` | `1,234` | comma |" in page


def test_the_table_of_columns_is_up_to_date():
    spec = importlib.util.spec_from_file_location("docs_schema", ROOT / "scripts" / "docs" / "report_schema.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.PAGE.read_text()
    assert page == module.render(page), "run python scripts/docs/report_schema.py"
    assert "| `advantage` |" in page


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_first_page_leads_to_every_other():
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "index.md").read_text()))
    assert linked | {"index.md"} == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_the_site_has_every_page_and_builds(tmp_path: Path):
    text = (ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r"[\w-]+\.md", text))
    assert {page.name for page in PAGES} <= named
    assert yaml.safe_load(text)["strict"] is True
    if importlib.util.find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed; pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path), "-f", str(ROOT / "mkdocs.yml")]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "index.html").exists()


EXAMPLES = [path for path in sorted((ROOT / "examples").rglob("*.yaml")) if path.parent.name != "evaluate"]
"""Our configs; those of evaluation are lm-eval's."""


@pytest.mark.parametrize("config", EXAMPLES, ids=lambda path: path.stem)
def test_examples_parse(config: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    if config.parent.name == "trl":
        from grpo_lightning.migration import migrate, read_source

        assert migrate(read_source(config)).config["data.batch_size"] == 16
        return
    ParserOnly(args=["--config", str(config)], run=False)


@pytest.mark.slow
def test_the_script_trains_on_a_local_file(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = "".join(f'{{"question": "{i}+1=", "answer": "so\\n#### {i + 1}"}}\n' for i in range(8))
    (tmp_path / "train.jsonl").write_text(rows)
    script = runpy.run_path(str(ROOT / "examples" / "gsm8k_0.5b.py"))
    module = script["make_module"](str(tiny_model_dir))
    assert (module.sampling.num_generations, module.source.reward_runner.names) == (8, ("accuracy", "format"))
    arguments = [
        "--model",
        str(tiny_model_dir),
        "--dataset",
        str(tmp_path / "train.jsonl"),
        "--root",
        str(tmp_path / "run"),
    ]
    script["main"](
        [*arguments, "--max_steps", "1", "--batch_size", "2", "--precision", "32-true", "--max_completion_length", "16"]
    )
    assert (tmp_path / "run" / "hf" / "last" / "config.json").exists()
    assert len(list((tmp_path / "run" / "completions").glob("*.parquet"))) == 1


def test_the_tests_that_reliability_cites_exist_and_every_promise_has_one() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    cited = set(re.findall(r"`(tests/[\w/]+\.py)`", page))
    assert cited and {path for path in cited if not (ROOT / path).is_file()} == set()
    promises = [line for line in page.partition("## The fault matrix")[0].splitlines() if re.match(r"\| [A-Z`]", line)]
    assert len(promises) > 12 and [line for line in promises if "`tests/" not in line] == []
