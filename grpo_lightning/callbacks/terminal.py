"""A small table of prompts, completions, rewards and advantages every n steps, on the screen or in a log file."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from grpo_lightning.callbacks.completion_rows import shown_completion
from grpo_lightning.callbacks.samples import fitting, sample_table, screen, show
from grpo_lightning.metrics.step_report import StepRecord

SHOWN_METRICS = {
    "reward": "reward {:.3f}",
    "completions/mean_length": "length {:.0f}",
    "completions/clipped_ratio": "cut off {:.0%}",
    "frac_reward_zero_std": "dead groups {:.0%}",
    "tokens_per_second": "{:,.0f} tokens/s",
}

DEAD = 1e-6
"""Below this an advantage is the rounding of 0."""


class SampleTable(Callback):
    """Prints the best and the worst completion of a few prompts, with a line of numbers, every n GRPO steps.

    Without a terminal it is plain text, so a log file shows how the run goes. What rewards logged about a completion
    (``log_extra``) has a column each, where the terminal has room for it beside the completion.

    Args:
        every_n_steps: GRPO steps between tables; the first step, which is step 1, has one too. 0 for none.
        num_prompts: Prompts shown each time.
    """

    def __init__(self, every_n_steps: int = 20, num_prompts: int = 2) -> None:
        if every_n_steps < 0 or num_prompts < 1:
            raise ValueError(
                f"samples.every_n_steps={every_n_steps} must be 0 or more and samples.num_prompts={num_prompts} at least 1."
            )
        self.every_n_steps = every_n_steps
        self.num_prompts = num_prompts
        self.first_reward: float | None = None
        """Mean reward of the run's first step, which later ones are compared with."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prints on the first rank."""
        record: StepRecord | None = getattr(pl_module, "last_step", None)
        metrics: dict[str, float] = getattr(pl_module, "step_metrics", {})
        if self.first_reward is None:
            self.first_reward = metrics.get("reward")
        if not self.every_n_steps or record is None or not trainer.is_global_zero:
            return
        step: int = pl_module.steps_done  # type: ignore[assignment]
        if step != 1 and step % self.every_n_steps:
            return
        source: Any = pl_module.source
        texts = source.texts.completions(record.batch, record.rollouts)
        rows = sample_rows(record, texts, self.num_prompts)
        numbers = [form.format(metrics[name]) for name, form in SHOWN_METRICS.items() if name in metrics]
        if step > 1 and self.first_reward is not None and "reward" in metrics:
            numbers[0] += f" ({metrics['reward'] - self.first_reward:+.3f} since step 1)"
        columns = ["prompt", "completion", *record.rewards.names, "advantage", "tokens"]
        columns = fitting(columns, [n for n in record.rewards.extra if n not in columns], rows, screen().width)
        show(sample_table(f"Step {step}: {', '.join(numbers)}", rows, columns))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run compares with."""
        return {"first_reward": self.first_reward}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        self.first_reward = state_dict["first_reward"]


def sample_rows(record: StepRecord, texts: list[Any], num_prompts: int) -> list[dict[str, Any]]:
    """Rows of the completions with the highest and lowest advantage of each of the first prompts.

    A dead group, whose completions are all as good as each other and teach nothing, has one row, which says so.
    """
    rows = []
    for b in range(min(num_prompts, len(record.batch))):
        members = [n for n, other in enumerate(record.rollouts.group.tolist()) if other == b]
        members.sort(key=lambda n: -record.advantages[n].item())
        best, worst = record.advantages[members[0]].item(), record.advantages[members[-1]].item()
        is_dead = max(abs(best), abs(worst)) < DEAD
        for n in members[:1] if is_dead else dict.fromkeys([members[0], members[-1]]):
            cut_off = " (cut off)" if record.rollouts.truncated[n] else ""
            rows.append(
                {name: entries[n] for name, entries in record.rewards.extra.items()}
                | {
                    "prompt": record.batch.prompts[b],
                    "completion": shown_completion(texts[n]),
                    "advantage": f"dead: {len(members)} equal" if is_dead else record.advantages[n].item(),
                    "tokens": f"{int(record.rollouts.completion_lengths[n])}{cut_off}",
                }
                | {name: record.rewards.values[n, r].item() for r, name in enumerate(record.rewards.names)}
            )
    return rows
