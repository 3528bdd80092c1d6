"""What a name that is no setting perhaps meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from grpo_lightning.migration import COMPOSED, SAME

ELSEWHERE = {
    "lr": "model.optimizer.lr",
    "seed": "seed_everything",
    "epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "gpus": "trainer.devices",
    "steps": "trainer.max_steps",
    "train_file": "data.dataset",
    "train_dataset": "data.dataset",
    "model_name": "model.model_name_or_path",
    "reward_fn": "model.rewards",
    "num_samples": "model.num_generations",
    "output_dir": "trainer.default_root_dir",
    "resume_from_checkpoint": "ckpt_path",
    "peft": "model.finetuning_type",
}
"""Words of other trainers -> ours."""
OF_A_CLASS = ("model.class_path", "model.init_args")
"""How a module of one's own is named in other projects of Lightning's."""


def hint(name: str, known: Iterable[str]) -> str:
    """What to add to an error about ``name``: a sentence, or nothing.

    Args:
        name: Dotted, as it was given.
        known: Dotted names of all settings, and short names of classes.

    Example:
        >>> hint("data.beta", ["model.beta", "data.dataset"])
        'Did you mean model.beta?'
    """
    section, _, key = name.rpartition(".")
    if name in OF_A_CLASS:
        return "A module of your own is named by model_class, as in model_class: my.GRPO, and its settings stand under model."
    names = sorted(set(known))
    if key in ELSEWHERE:
        return f"Did you mean {ELSEWHERE[key]}?"
    elsewhere = [each for each in names if each.rpartition(".")[2] == key and not each.endswith((".help", ".seed"))]
    if (
        not elsewhere and (key in SAME or key in COMPOSED) and SAME.get(key) != name
    ):  # GRPO's own, asked of another stage
        return f"TRL's {key} is here: {SAME.get(key) or COMPOSED[key]}."
    beside = {each.rpartition(".")[2]: each for each in names if each.rpartition(".")[0] == section}
    near = [beside[each] for each in get_close_matches(key, beside, 1, cutoff=0.8)]
    whole = get_close_matches(name, [each for each in names if "." in each or "." not in name], 1, cutoff=0.75)
    meant = near or elsewhere[:3] or whole
    return f"Did you mean {' or '.join(meant)}?" if meant else ""
