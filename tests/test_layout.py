"""Where files are: a folder per idea of a step, and none that needs a folder which needs it."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from grpo_lightning.rewards.sandbox.python_source import parsed

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "grpo_lightning"
AT_THE_TOP = {
    "__init__",
    "__main__",
    "class_entry",
    "errors",
    "messages",
    "ordinary_text",
    "seeds",
    "types",
    "uncollected",
    "version",
}

Imports = dict[str, set[str]]
"""Module -> modules of the package that it imports."""


def imported_names(tree: ast.AST) -> Iterator[str]:
    """What a module imports, inside functions and for types alone too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import: {ast.unparse(node)}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def read_imports(package: Path) -> Imports:
    """The imports of every module; a name of a package counts as an import of the package itself."""
    files = {}
    for path in sorted(package.rglob("*.py")):
        dotted = ".".join([package.name, *path.relative_to(package).with_suffix("").parts])
        files[dotted.removesuffix(".__init__")] = path
    imports: Imports = {}
    for module, path in files.items():
        names = imported_names(parsed(path.read_text()))
        known = (name if name in files else name.rpartition(".")[0] for name in names)
        imports[module] = {name for name in known if name in files and name != module}
    return imports


def between_folders(imports: Imports, within: str = "grpo_lightning") -> Imports:
    """The same between what stands in a folder: folders, and files that are in none of these."""
    depth = within.count(".") + 2

    def place(module: str) -> str:
        return ".".join(module.split(".")[:depth])

    inside = {module for module in imports if f"{module}.".startswith(f"{within}.")}
    folders: Imports = {}
    for module in inside:
        needed = {place(name) for name in imports[module] & inside}
        folders.setdefault(place(module), set()).update(needed - {place(module)})
    return folders


def circle_in(imports: Imports) -> list[str]:
    """One circle, its first name again at its end; empty where there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def imports() -> Imports:
    return read_imports(PACKAGE)


def test_the_top_of_the_package_holds_nothing_but_what_every_folder_speaks():
    assert {path.stem for path in PACKAGE.glob("*.py")} == AT_THE_TOP


def test_no_folder_needs_a_folder_that_needs_it(imports):
    assert len(between_folders(imports)) > 15
    assert circle_in(between_folders(imports)) == []


def test_no_folder_inside_another_needs_one_that_needs_it(imports):
    folders = [
        ".".join((PACKAGE.name, *path.parent.relative_to(PACKAGE).parts)) for path in PACKAGE.rglob("__init__.py")
    ]
    assert "grpo_lightning.generation.vllm" in folders
    found = {folder: circle_in(between_folders(imports, folder)) for folder in folders}
    assert {folder: circle for folder, circle in found.items() if circle} == {}


def test_no_file_needs_a_file_that_needs_it(imports):
    assert len(imports) > 200
    assert circle_in(imports) == []


def test_mathematics_and_numerics_need_no_lightning_module_and_no_config(imports):
    folders = between_folders(imports)
    allowed = {
        f"grpo_lightning.{name}" for name in ("class_entry", "distributed", "numerics", "seeds", "types", "errors")
    }
    for folder in ("algorithm", "numerics", "scoring"):
        assert folders[f"grpo_lightning.{folder}"] <= allowed


def test_the_design_page_lists_every_folder_and_every_file_at_the_top():
    section = (ROOT / "docs" / "design.md").read_text().split("\n## Layout\n")[1].split("\n## ")[0]
    listed = set(re.findall(r"^ {6}([\w.]+/?) ", section, re.MULTILINE))
    folders = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    assert listed == folders | {f"{name}.py" for name in AT_THE_TOP - {"__init__"}}


@pytest.mark.parametrize(
    ("late", "circle"),
    [
        ("", []),
        ("def late():\n    from toy.a import one\n", ["toy.a", "toy.b", "toy.a"]),
        ("import toy.a.one\n", ["toy.a", "toy.b", "toy.a"]),
        ("if TYPE_CHECKING:\n    from toy.a.one import One\n", ["toy.a", "toy.b", "toy.a"]),
    ],
)
def test_the_check_finds_late_imports_and_those_for_types(tmp_path, late, circle):
    for folder, name, text in (("a", "one", "from toy.b import two\n"), ("b", "two", late)):
        (tmp_path / "toy" / folder).mkdir(parents=True)
        (tmp_path / "toy" / folder / "__init__.py").touch()
        (tmp_path / "toy" / folder / f"{name}.py").write_text(text)
    found = circle_in(between_folders(read_imports(tmp_path / "toy"), "toy"))
    assert set(found) == set(circle) and bool(found) == bool(circle)


def test_files_are_short_and_so_are_functions():
    lengths, long_functions = {}, []
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        lengths[str(path.relative_to(PACKAGE))] = text.count("\n")
        for node in ast.walk(parsed(text)):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if is_function and node.end_lineno - node.lineno + 1 > 50:  # with signature and docstring
                long_functions.append(f"{path.name}: {node.name}")
    written = sorted(length for name, length in lengths.items() if not name.endswith("__init__.py"))
    assert written[len(written) // 2] < 120
    assert {name for name, length in lengths.items() if length > 300} == set()
    assert long_functions == []


def test_no_two_classes_of_the_package_have_one_name():
    nodes = (node for path in PACKAGE.rglob("*.py") for node in ast.walk(parsed(path.read_text())))
    names = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    assert len(names) > 300
    assert [name for name, count in names.items() if count > 1] == []


def test_no_two_files_of_the_tests_have_one_name():
    """Pytest imports them by name alone."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("*.py") if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []
