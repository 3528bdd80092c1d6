"""The list of what this package changes in vLLM: whole, and true of the vLLM that is installed."""

from __future__ import annotations

import ast
import inspect
import pydoc
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import grpo_lightning
from grpo_lightning.generation.vllm.compat import installed_version, why_unusable
from grpo_lightning.generation.vllm.patches.patch_list import PATCHES
from grpo_lightning.generation.vllm.patches.process import keeping_process_group, keeping_threads
from grpo_lightning.generation.vllm.patches.reloading import copying_after_reload
from grpo_lightning.rewards.sandbox.python_source import parsed

PACKAGE, HERE = Path(grpo_lightning.__path__[0]), Path(__file__).parent
FOREIGN = ("vllm", "torch", "transformers", "peft")


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.changes)
def test_each_change_names_its_function_and_a_test(patch):
    name = f"grpo_lightning.generation.vllm.patches.{patch.by}"
    function = pydoc.locate(name)
    assert inspect.isfunction(function) and f"{function.__module__}.{function.__name__}" == name
    file, _, test = patch.test.partition("::")
    assert re.search(rf"^def {test}\(", (HERE / file).read_text(), re.MULTILINE)


@pytest.mark.skipif(why_unusable() is not None, reason="needs vLLM")
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.changes)
def test_what_is_changed_is_there(patch):
    since = tuple(int(part) for part in re.search(r"[\d.]+", patch.versions)[0].split("."))
    if tuple(int(part) for part in installed_version()[0].split(".")[:2]) < since:
        pytest.skip(f"from {patch.versions.partition(' ')[0]} on")
    assert pydoc.locate(patch.changes) is not None


def test_all_changes_are_in_one_folder():
    found = {path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if changes_of(path.read_text())}
    assert found == {Path("generation/vllm/patches")}


def test_the_search_finds_what_it_looks_for():
    assert changes_of("import torch\ntorch.add = None") == ["torch.add"]
    assert changes_of("from vllm.a import B\nc: Any = B\nc.load = 1") == ["c.load"]
    assert changes_of("import torch\nx = torch.add\nself.torch = x") == []


def changes_of(text: str) -> list[str]:
    """Assignments to attributes of foreign modules and of what is imported from them."""
    foreign: set[str] = set()
    found = []
    for node in ast.walk(parsed(text)):
        if isinstance(node, ast.Import):
            foreign |= {(a.asname or a.name).split(".")[0] for a in node.names if a.name.split(".")[0] in FOREIGN}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FOREIGN:
            foreign |= {alias.asname or alias.name for alias in node.names}
    for node in ast.walk(parsed(text)):
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if isinstance(node, ast.AnnAssign) and isinstance(value, ast.Name) and value.id in foreign:
            foreign.add(ast.unparse(node.target))
    for node in ast.walk(parsed(text)):
        for target in node.targets if isinstance(node, ast.Assign) else []:
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id in foreign:
                found.append(ast.unparse(target))
    return found


def test_threads_are_set_as_before_after_what_took_that_away():
    threads, real = torch.get_num_threads(), torch.set_num_threads
    with keeping_threads():
        torch.set_num_threads(1)
        torch.set_num_threads = lambda count: None
    assert torch.set_num_threads is real and torch.get_num_threads() == threads


def test_the_default_group_outlives_what_destroys_it(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with keeping_process_group():
            dist.destroy_process_group()
            dist.destroy_process_group(dist.group.WORLD)
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()
    assert not dist.is_initialized()


def test_what_loads_weights_is_again_what_it_was_after_a_reload():
    """A server puts a function of its own on a model with LoRA layers; copies go through it too."""

    class GptOssForCausalLM(torch.nn.Module):
        pass

    model, loaded = GptOssForCausalLM(), []
    model.load_weights = own = lambda weights: loaded.append([name for name, _ in weights])
    with copying_after_reload(model):
        model.load_weights([("a.weight", torch.ones(1)), ("a.experts.b", torch.ones(1)), ("a.sinks", torch.ones(1))])
    assert loaded == [["a.weight"], ["a.experts.b", "a.sinks"]]
    assert model.load_weights is own
