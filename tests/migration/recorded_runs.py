"""One config through TRL's own script and through migrate and fit, in this process: what each did, optimizer step by step."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trl
import yaml
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from trl.scripts import grpo as trl_script

from grpo_lightning.commands.cli import GRPOCLI
from grpo_lightning.commands.migrate import main as migrate

EVALUATION = "held out "
"""How prompts of the evaluation split begin."""


@dataclass
class Recorded:
    """What a run did."""

    prompts: dict[int, Counter[str]] = field(default_factory=dict)
    """Optimizer steps done -> completions of each training prompt that were scored then."""
    evaluated: dict[int, Counter[str]] = field(default_factory=dict)
    """The same for held-out prompts."""
    learning_rates: list[float] = field(default_factory=list)
    """Of each optimizer step."""
    checkpoints: set[int] = field(default_factory=set)
    """Optimizer steps after which one was written."""
    trained: set[str] = field(default_factory=set)
    """Names of trained weights, without what wraps them."""
    longest: int = 0
    """Tokens of the longest completion."""
    objective: dict[str, Any] = field(default_factory=dict)
    """What is optimized and how it is sampled, by TRL's names."""


OBJECTIVE = (
    "beta",
    "loss_type",
    "importance_sampling_level",
    "mask_truncated_completions",
    "num_iterations",
    "temperature",
    "top_p",
)
"""Attributes of TRL's trainer, and settings of ours."""
SCALES = {True: "group", False: "none"}

CURRENT = Recorded()


def recorded_reward(
    prompts: list[Any], completions: list[Any], completion_ids: Any = None, trainer_state: Any = None, **columns: Any
) -> list[float]:
    """A reward that writes down what it is asked about, for both trainers."""
    steps = trainer_state.global_step
    for prompt in prompts:
        texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        kind = CURRENT.evaluated if texts[-1].startswith(EVALUATION) else CURRENT.prompts
        kind.setdefault(steps, Counter())["\n".join(texts)] += 1
    ids = completion_ids if completion_ids is not None else columns.get("completions_ids") or [[]]
    CURRENT.longest = max(CURRENT.longest, *(len(one) for one in ids))
    return [float(sum(map(ord, str(completion))) % 7) for completion in completions]


@contextlib.contextmanager
def recording() -> Iterator[Recorded]:
    """An empty record, filled by what runs inside."""
    global CURRENT
    CURRENT = Recorded()

    def write_down(optimizer: Optimizer, *_: Any) -> None:
        CURRENT.learning_rates.append(optimizer.param_groups[0]["lr"])

    handle = register_optimizer_step_pre_hook(write_down)
    try:
        yield CURRENT
    finally:
        handle.remove()


def run_trl(config: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """`trl grpo --config`, in this process."""
    trainers = []

    class Kept(trl.GRPOTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            trainers.append(self)

    monkeypatch.setattr(trl, "GRPOTrainer", Kept)
    arguments = trl_script.make_parser().parse_args_and_config(["--config", str(config)])
    with recording() as record:
        trl_script.main(*arguments)
    record.trained = trained_names(trainers[0].model)
    record.objective = {name: getattr(trainers[0], name) for name in OBJECTIVE}
    record.objective |= {
        "scale_rewards": SCALES.get(trainers[0].scale_rewards, trainers[0].scale_rewards),
        "bounds": (trainers[0].epsilon_low, trainers[0].epsilon_high),
    }
    record.checkpoints = {int(p.name.split("-")[1]) for p in Path(arguments[1].output_dir).glob("checkpoint-*")}
    return record


def run_migrated(config: Path, *options: str, command: Sequence[str] = ()) -> Recorded:
    """`migrate` of a file, or of the command that starts a run, `fit --print_config` and `fit` with what that printed."""
    new, printed = config.with_name("new.yaml"), config.with_name("printed.yaml")
    assert migrate([*(command or [str(config)]), "--output", str(new), *options]) == 0
    printed.write_text(printed_config(new), encoding="utf-8")
    with recording() as record:
        cli = GRPOCLI(args=["fit", "--config", str(printed)])
    record.trained = trained_names(cli.model.policy.model)
    model = cli.config.fit.model
    record.objective = {name: getattr(model, name) for name in OBJECTIVE}
    epsilon = 0.2 if model.epsilon is None else model.epsilon  # what null means for TRL's losses
    record.objective |= {
        "scale_rewards": SCALES.get(model.scale_rewards, model.scale_rewards),
        "bounds": (epsilon, epsilon if model.epsilon_high is None else model.epsilon_high),
    }
    names = [path.name for path in Path(cli.trainer.default_root_dir, "checkpoints").glob("*step=*.ckpt")]
    record.checkpoints = {int(found[1]) for name in names if (found := re.search(r"step=(\d+)", name))}
    return record


def printed_config(config: Path) -> str:
    """What --print_config says of a config."""
    written = io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.suppress(SystemExit):
        GRPOCLI(args=["fit", "--config", str(config), "--print_config"])
    return written.getvalue()


def trained_names(model: Any) -> set[str]:
    """Trained weights by the names that the plain model and its adapters give them."""
    return {name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad}


def write_config(folder: Path, model: Path, settings: dict[str, Any]) -> Path:
    """A TRL config on a toy model and a local dataset of 12 training and 2 held-out prompts."""
    data = folder / "data"
    data.mkdir(parents=True)
    conversational = settings.pop("conversational", False)

    (data / "train.jsonl").write_text("".join(_json(f"{i} + {i} =", conversational) for i in range(12)))
    (data / "test.jsonl").write_text("".join(_json(f"{EVALUATION}{i}", conversational) for i in range(2)))
    base = {
        "model_name_or_path": str(model),
        "dataset_name": str(data),
        "reward_funcs": ["recorded_runs.recorded_reward"],
        "output_dir": str(folder / "run"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "shuffle_dataset": False,
        "num_generations": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 2,
        "max_completion_length": 6,
        "learning_rate": 1.0e-3,
        "max_steps": 2,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    path = folder / "old.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in (base | settings).items() if value is not None}))
    return path


def _json(text: str, conversational: bool | str) -> str:
    """A row; as messages, after a system prompt where one is given."""
    prompt: Any = [{"role": "user", "content": text}] if conversational else text
    if isinstance(conversational, str):
        prompt = [{"role": "system", "content": conversational}, *prompt]
    return json.dumps({"prompt": prompt}) + "\n"
