"""One run of a side with adapters: ``python -m sides.lora_side {make,trl,grpo_lightning} WORKLOAD.json RECORD.json``.

Both sides run as in ``trl_side`` and ``our_side``, with the same rank, scale, dropout and target layers. The adapter's
settings are read from ``adapter.json`` beside the workload.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from sides import make_model
from sides.workload import Workload


def ours(workload: Workload, record: str, adapter: dict[str, Any]) -> None:
    """This project: the settings go to the module as they are, and adapters are float32 over a bfloat16 base, as TRL's."""
    from sides import our_side

    our_side.PRECISIONS["bfloat16"] = "bf16-mixed"
    plain = our_side.measured_module
    our_side.measured_module = lambda clock: partial(plain(clock), **adapter)  # type: ignore[assignment]
    our_side.main(workload, record)


def trl(workload: Workload, record: str, adapter: dict[str, Any]) -> None:
    """TRL: the same settings as a PEFT configuration and, for qlora, a quantised base."""
    import torch
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig

    from sides import trl_side

    config = LoraConfig(
        r=adapter["lora_rank"],
        lora_alpha=adapter["lora_alpha"],
        lora_dropout=adapter["lora_dropout"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    trainer, arguments = trl_side.measured_trainer, trl_side.make_config

    def make_config(*args: Any) -> Any:
        made = arguments(*args)
        if adapter["finetuning_type"] == "qlora":
            made.model_init_kwargs["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
        return made

    trl_side.make_config = make_config
    trl_side.measured_trainer = lambda clock: partial(trainer(clock), peft_config=config)  # type: ignore[assignment]
    trl_side.main(workload, record)


def main(side: str, settings: Path, record: str) -> None:
    workload = Workload.load(settings)
    if side == "make":
        make_model.make_model(workload.shape, Path(workload.prompts), Path(workload.model), workload.mean_length)
        return
    adapter = json.loads(settings.with_name("adapter.json").read_text(encoding="utf-8"))
    {"trl": trl, "grpo_lightning": ours}[side](workload, record, adapter)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
    sys.stdout.flush()
    os._exit(0)  # an engine in this process may hang at exit
