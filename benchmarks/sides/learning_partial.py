"""As ``learning_ours``, with partial rollouts: ``python -m sides.learning_partial RUN.json SEED [SEED ...]``."""

from __future__ import annotations

import sys

from sides.learning_ours import main

if __name__ == "__main__":
    main(sys.argv[1], [int(seed) for seed in sys.argv[2:]], side="partial")
