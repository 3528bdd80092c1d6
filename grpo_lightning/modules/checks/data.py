"""What the settings of GRPO refuse of the data, in the words of the config, before weights load."""

from __future__ import annotations

from typing import Any

from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.datamodules.prompts.mixture import MixedPrompts
from grpo_lightning.generation.base import Generator
from grpo_lightning.modules.checks.partial_rollouts import check_carried
from grpo_lightning.modules.grpo_settings import GRPOSettings
from grpo_lightning.policy.positions import positions_of
from grpo_lightning.rewards import RewardContractError, RewardRunner
from grpo_lightning.rollouts.source import RolloutSource
from grpo_lightning.rollouts.turns.source import text_prompts
from grpo_lightning.training.distillation.lessons import check_columns


def check_positions(settings: GRPOSettings, config: Any, generator: Generator, longest_prompt: int = 0) -> None:
    """Refuses completions that reach beyond the last position that the model, or its engine, has.

    Args:
        settings: Of the module.
        config: Of the model, in transformers' form.
        generator: Whose ``max_model_length``, where it has one, is a limit too.
        longest_prompt: Tokens, of the training data; 0 before it is read.

    Raises:
        ValueError: With a way out.
    """
    limits = {
        "positions of the model (max_position_embeddings)": positions_of(config),
        "of model.generator.init_args.max_model_length": getattr(generator, "max_model_length", None),
    }
    longest = longest_prompt + settings.max_completion_length
    for name, limit in limits.items():
        if limit is not None and longest > limit:
            prompt = f" after the longest prompt of {longest_prompt} tokens" if longest_prompt else ""
            raise ValueError(
                f"model.max_completion_length={settings.max_completion_length}{prompt} reaches beyond the {limit} {name}. "
                f"Set it to {max(1, limit - max(longest_prompt, 1))} at most"
                + (", or data.max_prompt_length to leave out long prompts." if longest_prompt else ".")
            )


def check_data(settings: GRPOSettings, data: Any, config: Any, source: RolloutSource) -> None:
    """Refuses data that cannot give what training asks for, or that the model or a reward cannot read.

    Args:
        settings: Of the module.
        data: The Trainer's datamodule; None where it has plain dataloaders.
        config: Of the model, in transformers' form.
        source: Of the module.

    Raises:
        ValueError: With a way out.
    """
    check_amount(settings, data)
    prompts = getattr(data, "train_prompts", None)  # streams are read as training goes
    if prompts is not None:
        check_positions(settings, config, source.generator, max(prompts.lengths))
        check_form(settings, prompts)
        if settings.rollout_func is None:  # which gives rewards columns of its own
            source.reward_runner.check_columns(prompts.columns)
        if settings.distillation is not None:
            check_columns(settings.distillation, prompts.columns)


def check_held_out(settings: GRPOSettings, data: Any, runner: RewardRunner) -> None:
    """Refuses held-out prompts without a column that a reward needs: the first evaluation may be hours away.

    Args:
        settings: Of the module.
        data: The Trainer's datamodule; None where it has plain dataloaders.
        runner: Of all that is reported in evaluation.

    Raises:
        RewardContractError: Naming dataset, reward and column.
        ValueError: See ``check_form``.
    """
    if settings.rollout_func is not None:
        return
    for name, prompts in (getattr(data, "eval_prompts", None) or {}).items():
        check_form(settings, prompts)
        try:
            runner.check_columns(prompts.columns)
        except RewardContractError as error:
            raise RewardContractError(f"data.eval_dataset{f'.{name}' if name else ''}: {error}") from error


def check_form(settings: GRPOSettings, prompts: PromptDataset | MixedPrompts) -> None:
    """Refuses prompts of text where tools or an environment speak in messages.

    Raises:
        ValueError: With a way out.
    """
    if settings.has_turns and not prompts.is_conversational:
        raise ValueError(text_prompts(f"the prompts of {prompts.name} are"))


def check_amount(settings: GRPOSettings, data: Any) -> None:
    """Refuses a source of prompts that has too few of them, or does not say which come next.

    Raises:
        ValueError: With a way out.
    """
    prompts, minibatches = getattr(data, "batch_size", settings.num_minibatches), settings.num_minibatches
    if prompts < minibatches:
        raise ValueError(
            f"data.batch_size={prompts} prompts cannot be dealt out to model.num_minibatches="
            f"{minibatches}: a group stays in one minibatch. Use fewer minibatches or more prompts."
        )
    if hasattr(data, "batch_size"):
        check_carried(settings, prompts)
    if getattr(data, "train_prompts", None) is not None:
        return
    if settings.async_rollouts:
        raise ValueError(
            "model.async_rollouts asks GRPODataModule for the next prompts, and the Trainer has another source of data. "
            "Use GRPODataModule, or async_rollouts=0."
        )
    if settings.dynamic_sampling.mode == "refill":
        raise ValueError(
            "model.dynamic_sampling.mode=refill draws further prompts from GRPODataModule, and the Trainer has "
            "another source of data. Use mode=drop, or GRPODataModule."
        )
