# mypy: disable-error-code="import-not-found"
"""triton, in which kernels are written: torch for CPUs comes without it; kernels can be imported then, and not launched."""

from __future__ import annotations

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

AVAILABLE = triton is not None
jit = triton.jit if AVAILABLE else lambda function: function

__all__ = ["AVAILABLE", "jit", "tl", "triton"]
