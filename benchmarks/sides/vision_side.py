"""One run of a side on prompts with images: ``python -m sides.vision_side {trl,grpo_lightning} WORKLOAD.json RECORD.json``.

Both sides run as in ``trl_side`` and ``our_side``, on a vision-language model whose tower is frozen or trained on both.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

from sides.vision_workload import VisionWorkload


def ours(workload: VisionWorkload, record: str) -> None:
    """This project: ``model.vision_tower``; images of a JSONL file are paths."""
    from sides import our_side

    plain = our_side.measured_module
    our_side.measured_module = lambda clock: partial(plain(clock), vision_tower=workload.vision_tower)  # type: ignore[assignment]
    our_side.main(workload, record)


def trl(workload: VisionWorkload, record: str) -> None:
    """TRL: the model's processor, the column of images as one, and a tower without gradients where it is frozen."""
    import datasets
    from transformers import AutoProcessor

    from sides import trl_side

    read_rows, plain = trl_side.read_rows, trl_side.measured_trainer

    def measured_trainer(clock: Any) -> Any:
        class OnImages(plain(clock)):  # type: ignore[misc]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self.model.model.visual.requires_grad_(workload.vision_tower == "trained")

        return OnImages

    trl_side.measured_trainer = measured_trainer
    trl_side.load_processing = lambda _: AutoProcessor.from_pretrained(workload.model, padding_side="left")
    trl_side.read_rows = lambda *args: read_rows(*args).cast_column("image", datasets.Image())
    trl_side.main(workload, record)


if __name__ == "__main__":
    {"trl": trl, "grpo_lightning": ours}[sys.argv[1]](VisionWorkload.load(sys.argv[2]), sys.argv[3])
    sys.stdout.flush()
    os._exit(0)  # an engine in this process may hang at exit
