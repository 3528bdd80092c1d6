"""Messages of libraries on import that would send users the wrong way; imported before them, for its effect.

peft imports bitsandbytes wherever it is installed, and on CPUs with AVX512-BF16 that recommends a kernel for weights
repacked for inference. Training keeps them as they are (``quantization.keep_trainable_layout``), so it never runs here.
"""

from __future__ import annotations

import logging


def _is_of_use(record: logging.LogRecord) -> bool:
    return "gemm_4bit_forward" not in str(record.msg)


logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_of_use)
