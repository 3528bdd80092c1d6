"""Where Lightning trains in processes that it forks, the notebook that started them has what they trained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import fit, make_data, make_trainer, weights

TESTS = Path(__file__).parents[1]


def test_a_notebook_has_the_weights_that_its_forked_ranks_trained_but_does_not_train_them_again(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    program = [sys.executable, str(TESTS / "distributed" / "notebook_ranks.py"), str(tiny_model_dir), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "OMP_NUM_THREADS": "1"}
    subprocess.run(program, check=True, env=environment, capture_output=True, text=True, timeout=300)
    seen = torch.load(tmp_path / "seen.pt", weights_only=True)

    here = fit(tiny_model_dir, tmp_path, max_steps=2)
    torch.testing.assert_close(seen["weights"], weights(here))
    start = weights(fit(tiny_model_dir, tmp_path, max_steps=0))
    assert not all(torch.equal(weight, start[name]) for name, weight in seen["weights"].items())
    data = make_data(tmp_path, eval_dataset=str(tmp_path / "train.jsonl"))
    expected = make_trainer(tmp_path).validate(here, datamodule=data, verbose=False)
    assert seen["held_out"][0] == pytest.approx(expected[0])

    for again in ("here", "forked", "evaluated"):  # a reference of trained weights, the seeds of the first steps
        assert "another experiment" in seen[again] and "make the module again" in seen[again]
    assert "inf" in seen["of a reward"] and seen["mended"] == ""
    assert seen["given"] == ""
