"""The fused kernels against the formulas: by triton's interpreter where there is no GPU, and on one where there is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grpo_lightning.numerics import divergence_formulas, divergence_kernels
from grpo_lightning.numerics.logit_transform import LogitTransform

KINDS = ("reverse_kl", "forward_kl", "jsd")
TRANSFORMS = [
    (LogitTransform(), LogitTransform()),
    (LogitTransform(0.7, 1.5, 3.0), LogitTransform(0.7, 0.5)),
    (LogitTransform(1.3), LogitTransform(1.3, 1.0, 2.0)),
]


def check(kind: str, transforms: tuple[LogitTransform, LogitTransform], device: str, vocab: int = 37) -> None:
    """Statistics and gradient of both ways; the teacher's rows lie further apart than they are long."""
    torch.manual_seed(0)
    student, upstream = torch.randn(5, vocab, device=device) * 3, torch.randn(5, device=device) * 10
    teacher = (torch.randn(5, vocab + 27, device=device) * 3)[:, :vocab]
    found = divergence_kernels.divergence_statistics(student, teacher, transforms, kind)
    expected = divergence_formulas.divergence_statistics(student.clone(), teacher.clone(), transforms, kind)
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-4, atol=1e-5)
    mine = divergence_kernels.student_gradient_(student.clone(), teacher, found, upstream, transforms, kind)
    arguments = (student.clone(), teacher.clone(), expected, upstream, transforms, kind)
    theirs = divergence_formulas.student_gradient_(*arguments)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert float(theirs.abs().max()) > 1e-3


@pytest.mark.slow
def test_kernels_compute_what_the_formulas_say_under_tritons_interpreter():
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}  # read when triton is imported
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("as the formulas") == len(KINDS) * len(TRANSFORMS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transforms", TRANSFORMS)
def test_kernels_compute_what_the_formulas_say_on_a_gpu(kind, transforms):
    check(kind, transforms, "cuda", vocab=10_007)


if __name__ == "__main__":
    divergence_kernels.BLOCK = 16
    for kind in KINDS:
        for transforms in TRANSFORMS:
            check(kind, transforms, "cpu")
            print(kind, "as the formulas", Path(__file__).name)
