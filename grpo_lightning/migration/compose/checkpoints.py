"""When checkpoints are written, how many stay, and when held-out prompts are scored."""

from __future__ import annotations

from grpo_lightning.migration.compose.data import evaluates
from grpo_lightning.migration.compose.logs import choice
from grpo_lightning.migration.compose.steps import TOTAL, in_grpo_steps, in_steps, total_steps, updates
from grpo_lightning.migration.migration import Migration


def compose_checkpoints(m: Migration) -> None:
    """save_*."""
    strategy, limit = choice(m, "save_strategy", "steps"), m.get("save_total_limit")
    if strategy == "epoch":
        m.put("checkpoint.every_n_epochs", 1, "save_strategy")
        m.put("checkpoint.every_n_train_steps", 0, "save_strategy")
        if choice(m, "eval_strategy", "no") == "steps":  # else Lightning saves after every evaluation
            m.put("checkpoint.save_on_train_epoch_end", True, "save_strategy")
        m.refuse("save_steps", "save_strategy: epoch decides, as in TRL.")
    elif strategy != "steps":
        m.refuse("save_strategy", f"{strategy}: checkpoints are always written; set checkpoint.every_n_train_steps.")
        m.refuse("save_steps", f"save_strategy: {strategy} decides, as in TRL.")
    else:
        _save_every(m)
    if limit is None or limit == 1:
        m.put("checkpoint.save_top_k", -1 if limit is None else 1, "save_total_limit")
    else:
        m.put("checkpoint.monitor", "step", "save_total_limit")
        m.put("checkpoint.mode", "max", "save_total_limit")
        m.put("checkpoint.save_top_k", int(limit), "save_total_limit")


def _save_every(m: Migration) -> None:
    steps = in_steps(m, float(m.get("save_steps")))
    m.needs_nothing("save_strategy")
    if steps is not None:
        every = in_grpo_steps(m, "save_steps", steps, "saved") * updates(m)  # Lightning counts optimizer steps here
        m.put("checkpoint.every_n_train_steps", every, "save_steps", "save_strategy")
        _at_the_end(m, "save_steps", every, "saves", "The trained policy is exported in any case (export.*).")
        return
    m.refuse(
        "save_steps",
        f"{float(m.get('save_steps')):g} is a share of the run: {TOTAL}. Until then a checkpoint is written every 50 steps.",
    )


def compose_evaluation(m: Migration) -> None:
    """eval_*, and the completions that are sampled for it."""
    strategy, steps = choice(m, "eval_strategy", "no"), m.get("eval_steps")
    if strategy == "steps":
        _evaluate_every(m, float(steps if steps is not None else m.get("logging_steps")))
    elif strategy == "epoch":
        m.put("trainer.check_val_every_n_epoch", 1, "eval_strategy")
    elif m.has("eval_strategy"):
        m.put("trainer.limit_val_batches", 0, "eval_strategy")
    if strategy != "steps" and steps is not None:
        m.refuse("eval_steps", f"eval_strategy: {strategy} decides, as in TRL.")
    m.needs_nothing("eval_steps")
    _eval_sampling(m)


def _evaluate_every(m: Migration, interval: float) -> None:
    """val_check_interval counts GRPO steps, and where it is a float, shares of an epoch."""
    steps = in_steps(m, interval)
    m.needs_nothing("eval_strategy")
    if steps is not None:
        every = in_grpo_steps(m, "eval_steps", steps, "evaluated")
        m.put("trainer.val_check_interval", every, "eval_steps", "eval_strategy")
        m.put("trainer.check_val_every_n_epoch", None, "eval_strategy")
        _at_the_end(m, "eval_steps", every * updates(m), "evaluates", "`validate --ckpt_path last` does it.")
        return
    of_an_epoch = interval * max(1.0, float(m.get("num_train_epochs")))  # of less than one, the share that is run
    if of_an_epoch <= 1:
        m.put("trainer.val_check_interval", of_an_epoch, "eval_steps", "eval_strategy")
    else:
        m.refuse("eval_steps", f"{interval:g} is a share of the run: {TOTAL}. Until then it is once an epoch.")


def _at_the_end(m: Migration, key: str, every: int, what: str, instead: str) -> None:
    total = total_steps(m)
    if total is not None and total % every:
        m.say(
            key, f"TRL {what} once more after the last step, {total}; here the interval of {every} decides. {instead}"
        )


def _eval_sampling(m: Migration) -> None:
    """TRL draws num_generations_eval or num_generations completions a prompt, as in training."""
    if not evaluates(m):
        m.refuse("num_generations_eval", "eval_strategy: no decides, as in TRL.")
        return
    each = int(m.get("num_generations_eval") or m.get("num_generations") or 8)
    m.put("model.num_generations_eval", each, "num_generations_eval", "num_generations")
    for key, default in (("temperature", 1.0), ("top_p", 1.0)):
        if m.get(key, default) != default:
            m.put(f"model.{key}_eval", float(m.get(key)), key)
    for key in ("top_k", "min_p", "repetition_penalty"):
        if m.get(key) and m.get(key) not in (1.0, -1):
            m.say(key, "It acts in training only: evaluation samples without it, where TRL's samples with it.")
