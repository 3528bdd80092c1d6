"""The quickstart's model and problems are what the README says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_runs import run_command
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

ROOT = Path(__file__).parent.parent
ASSETS = ROOT / "assets/quickstart"


def problems(name: str) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in (ASSETS / name).read_text().splitlines()]
    return [(row["prompt"][0]["content"], row["ground_truth"]) for row in rows]


def family(problem: str) -> frozenset[int]:
    """The addition x + y = z behind a problem: z - x = y and y + x = z are the same piece of knowledge."""
    a, sign, b = re.fullmatch(r"(\d+)([+-])(\d+)=", problem).groups()
    return frozenset({(int(a), int(b), int(a) + int(b)) if sign == "+" else (int(b), int(a) - int(b), int(a))}.pop())


def test_each_reference_is_the_result():
    for name in ("train.jsonl", "heldout.jsonl"):
        for problem, truth in problems(name):
            a, sign, b = re.fullmatch(r"(\d+)([+-])(\d+)=", problem).groups()
            assert int(truth) == (int(a) + int(b) if sign == "+" else int(a) - int(b)), problem


def test_no_held_out_problem_is_trained_on_in_any_form():
    assert family("3+5=") == family("5+3=") == family("8-3=") == family("8-5=") != family("5-3=")
    trained = {family(problem) for problem, _ in problems("train.jsonl")}
    held_out = {family(problem) for problem, _ in problems("heldout.jsonl")}
    assert len(trained) > 2000
    assert len(held_out) > 300
    assert not trained & held_out


def test_the_model_is_small_safe_and_whole():
    files = list((ASSETS / "model").iterdir())
    assert sum(path.stat().st_size for path in files) <= 5 * 2**20
    assert not [path.name for path in files if path.suffix in (".bin", ".pt", ".py")]
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "model")
    assert AutoConfig.from_pretrained(ASSETS / "model").vocab_size == len(tokenizer)
    worked = "<think>7+5=12,4+8+1=13</think><answer>132</answer>"
    ids = tokenizer(worked + "<|end|>", add_special_tokens=False).input_ids
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == worked


@pytest.mark.slow
def test_the_script_makes_the_same_rows_and_a_model_of_the_same_form_by_imitation(tmp_path):
    options = ["--steps", "2", "--out", str(tmp_path / "made"), "--work", str(tmp_path / "work")]
    status, output = run_command(tmp_path, *options, script=ROOT / "scripts/quickstart/make_model.py")
    assert status == 0, output[-3000:]
    assert re.search(r"val/pass@8", output)
    shipped = {path.relative_to(ASSETS): path for path in ASSETS.rglob("*") if path.is_file()}
    made = {path.relative_to(tmp_path / "made"): path for path in (tmp_path / "made").rglob("*") if path.is_file()}
    assert made.keys() == shipped.keys()
    weights = Path("model/model.safetensors")
    for name in shipped.keys() - {weights}:
        assert made[name].read_bytes() == shipped[name].read_bytes(), name
    found, expected = load_file(made[weights]), load_file(shipped[weights])
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in expected.items()}
    start = load_file(tmp_path / "work/start/model.safetensors")
    assert any((tensor != start[name]).any() for name, tensor in found.items())  # it has been trained
