"""Before and after: held-out accuracy on both sides of training, with samples, on the screen and as JSON."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from grpo_lightning.callbacks.completion_rows import plain_text, shown_completion
from grpo_lightning.callbacks.samples import evenly_spread, sample_table, show
from grpo_lightning.callbacks.try_it import shown_path
from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.distributed.gather import gather_objects
from grpo_lightning.metrics.diagnostics import skipped_if_not_written
from grpo_lightning.metrics.evaluation import NamedMeans
from grpo_lightning.numerics.evaluation_mode import evaluating
from grpo_lightning.rewards.text.valid_text import valid_text

PASS_1 = "pass@1"


def held_out_checksums(trainer: Trainer) -> dict[str, int]:
    """Of the prompts and of each column of the held-out datasets, by name; the same where they are the same."""
    held_out = getattr(getattr(trainer, "datamodule", None), "eval_prompts", {})
    found = {name: each for name, each in held_out.items() if isinstance(each, PromptDataset)}
    prompts = {name: each.checksum for name, each in found.items()}
    columns = {f"{name}.{column}": crc for name, each in found.items() for column, crc in each.column_checksums.items()}
    return prompts | columns


class BeforeAfterSummary(Callback):
    """Evaluates the held-out prompts before the first and after the last step, prints both and writes summary.json.

    The file holds ``accuracy_before``, ``accuracy_after`` (lenient: the right answer can be found),
    ``strict_before``, ``strict_after`` (the right answer in exactly the asked format), as fractions in [0, 1] of greedy
    completions, null where the reward applied to none, ``sampled_before`` and ``sampled_after`` with model.num_generations_eval
    (pass@1: the accuracy of sampled completions), ``steps``, ``seconds`` (wall time of fit, both evaluations included, over all
    resumes) and ``samples``: the prompts shown, with both completions and what the strict reward gave them. Of a run that first
    measured when it went on from a checkpoint it holds ``step_before`` too: the steps that were done then.

    Args:
        path: The file; by default summary.json in trainer.default_root_dir.
        lenient: The reward in model.rewards or model.eval_rewards behind ``accuracy_*``.
        strict: The reward behind ``strict_*``.
        num_samples: Held-out prompts shown, spread evenly over all of them.
    """

    def __init__(
        self,
        path: str | None = None,
        lenient: str = "accuracy_lenient",
        strict: str = "accuracy_strict",
        num_samples: int = 4,
    ) -> None:
        self.path = path
        self.lenient = lenient
        self.strict = strict
        self.num_samples = num_samples
        self.before: dict[str, Any] | None = None
        self.measured: dict[str, Any] | None = None
        """What decides whether numbers and prompts can be compared with ``before``; None of a checkpoint that does not tell."""
        self.seconds_before_resume = 0.0
        self._started = time.perf_counter()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts the clock, and looks for the two rewards before weights load.

        Raises:
            ValueError: If one of them is not among the rewards, or there is nothing to evaluate.
        """
        if stage == "fit" and getattr(trainer.datamodule, "eval_dataset", None) is None:  # type: ignore[attr-defined]
            raise ValueError(
                "BeforeAfterSummary evaluates data.eval_dataset, which is not set. Set it, or leave the callback out of "
                "trainer.callbacks."
            )
        self._started = time.perf_counter()
        module: Any = pl_module
        names: tuple[str, ...] = module.evaluation.reward_runner.names
        for setting in (self.lenient, self.strict):
            if setting not in names:
                raise ValueError(
                    f"BeforeAfterSummary: no reward called {setting!r} in model.rewards or model.eval_rewards "
                    f"({', '.join(names)})."
                )

    def _evaluate(self, trainer: Trainer, module: Any) -> dict[str, Any]:
        means: NamedMeans = module.evaluation_means()
        rows: dict[tuple[int, int], dict[str, Any]] = {}  # by dataset and row number, the same for any number of ranks
        loaders = trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
        with evaluating(module.policy.model):
            for number, loader in enumerate(loaders.values() if isinstance(loaders, dict) else [loaders]):
                for batch in loader:
                    rows |= {(number, row["uid"]): row for row in module.evaluate_batch(batch, means)}
        shown = evenly_spread(sorted(key for keys in gather_objects(list(rows)) for key in keys), self.num_samples)
        samples = gather_objects({key: rows[key] for key in shown if key in rows})
        everywhere = {key: row for of_rank in samples for key, row in of_rank.items()}
        return {"metrics": means.compute(), "samples": [everywhere[key] for key in shown]}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates the policy that training starts from; a resumed run remembers it, unless it is measured by other things."""
        rewards: tuple[str, ...] = pl_module.evaluation.reward_runner.names  # type: ignore[assignment, union-attr]
        now = {"held_out": held_out_checksums(trainer), "rewards": list(rewards), "num_samples": self.num_samples}
        if self.before is not None and self.measured not in (None, now):
            rank_zero_warn(
                "BeforeAfterSummary: the held-out prompts, the rewards or num_samples are not those that the run was measured by "
                f"before it started, so that it is measured again: before means after step {pl_module.steps_done}."
            )
            self.before = None
        if self.before is None:
            self.before = {**self._evaluate(trainer, pl_module), "step": pl_module.steps_done}
        self.measured = now

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates again, prints and writes the comparison."""
        after = self._evaluate(trainer, pl_module)
        if trainer.is_global_zero and self.before is not None:
            summary = self._summary(self.before, after, pl_module.steps_done)  # type: ignore[arg-type]
            path = Path(self.path) if self.path else Path(trainer.default_root_dir) / "summary.json"
            with skipped_if_not_written(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
            self._print(self.before, after, summary, path)

    def _summary(self, before: dict[str, Any], after: dict[str, Any], steps: int) -> dict[str, Any]:
        def fraction(evaluation: dict[str, Any], reward: str) -> float | None:
            value = evaluation["metrics"].get(f"rewards/{reward}")
            return None if value is None else round(value, 4)

        of_both = {"sampled_before": before["metrics"], "sampled_after": after["metrics"]}
        sampled = {name: round(metrics[PASS_1], 4) for name, metrics in of_both.items() if PASS_1 in metrics}
        return {
            "accuracy_before": fraction(before, self.lenient),
            "accuracy_after": fraction(after, self.lenient),
            "strict_before": fraction(before, self.strict),
            "strict_after": fraction(after, self.strict),
            **sampled,
            **({"step_before": before["step"]} if before.get("step") else {}),
            "steps": steps,
            "seconds": round(self.seconds_before_resume + time.perf_counter() - self._started, 1),
            "samples": [
                {
                    "prompt": valid_text(plain_text(old["prompt"])),
                    "before": valid_text(shown_completion(old["completion"])),
                    "after": valid_text(shown_completion(new["completion"])),
                    "reward_before": old["rewards"][self.strict],
                    "reward_after": new["rewards"][self.strict],
                }
                for old, new in zip(before["samples"], after["samples"], strict=True)
            ],
        }

    def _print(self, before: dict[str, Any], after: dict[str, Any], summary: dict[str, Any], path: Path) -> None:
        step = before.get("step")
        first = f"step {step}" if step else "before"
        title = f"The same held-out prompts {f'after {first} and at the end' if step else 'before and after training'}"
        samples = [
            {
                "prompt": old["prompt"],
                first: old["completion"],
                f"correct {first}": old["rewards"][self.strict],
                "after": new["completion"],
                "correct after": new["rewards"][self.strict],
            }
            for old, new in zip(before["samples"], after["samples"], strict=True)
        ]
        columns = ["prompt", first, f"correct {first}", "after", "correct after"]
        scores = [
            {
                "held-out greedy accuracy": kind,
                first: _percent(summary[f"{key}_before"]),
                "after": _percent(summary[f"{key}_after"]),
            }
            for kind, key in (
                ("lenient (the answer is right)", "accuracy"),
                ("strict (and the format is exact)", "strict"),
            )
        ]
        show(
            sample_table(title, samples, columns),
            sample_table("", scores, ["held-out greedy accuracy", first, "after"]),
            f"{summary['steps']} steps in {summary['seconds']} s; written to {shown_path(path)}",
        )

    def state_dict(self) -> dict[str, Any]:
        """What was measured before training, and the time already spent."""
        spent = self.seconds_before_resume + time.perf_counter() - self._started
        return {"before": self.before, "measured": self.measured, "seconds": spent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A resumed run compares with the start of the first one."""
        self.before, self.measured = state_dict["before"], state_dict.get("measured")
        self.seconds_before_resume = state_dict["seconds"]


def _percent(fraction: float | None) -> str:
    return "none" if fraction is None else f"{fraction:.1%}"
