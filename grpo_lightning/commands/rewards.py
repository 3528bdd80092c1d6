"""``python -m grpo_lightning rewards [NAME]`` lists rewards; ``rewards try`` shows what a completion would earn."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

from grpo_lightning.algorithm.advantages import combine_rewards
from grpo_lightning.commands.arguments import CommandParser
from grpo_lightning.commands.settings.yaml_file import read_sections
from grpo_lightning.rewards import (
    CALLING,
    REWARD_FUNCTIONS,
    RewardComposition,
    RewardContractError,
    RewardFailedError,
    RewardRunner,
    RewardState,
    RewardTable,
    resolve_rewards,
)
from grpo_lightning.rewards.registry import NoRewardMadeError, import_reward


def build_parser() -> CommandParser:
    """The options of ``rewards try``."""
    parser = CommandParser(
        prog="grpo_lightning rewards try",
        description="Scores completions as a run would, without a model. Further options are dataset columns, the same "
        "for each completion: --ground_truth 42, --tests '[\"assert f(1) == 2\"]' (lists and objects as JSON).",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, help="a run's config: its model.rewards, weights and composition")
    parser.add_argument("--rewards", help="names or import paths instead, as in model.rewards: accuracy,format")
    parser.add_argument("--completion", action="append", required=True, help="give it again to compare several")
    parser.add_argument("--prompt", default="", help="of all completions")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        help="a file that the prompt shows; give it again for several. Rewards get the column image, or images, and messages",
    )
    parser.add_argument(
        "--tokenizer", help="counts tokens; by default that of the config's model, if it is on this disk"
    )
    parser.add_argument("--step", type=int, default=0, help="trainer_state.global_step, for curricula (default 0)")
    return parser


def main(args: list[str]) -> int:
    """Runs the command; 1 where a reward fails, 2 for a mistake in the options or the config."""
    if args[:1] in (["-h"], ["--help"]):
        print("usage: grpo_lightning rewards            lists all rewards with their arguments")
        print(
            "       grpo_lightning rewards NAME ...   says what is known about each argument; an import path is a name too"
        )
        print("       grpo_lightning rewards try ...    scores a completion without a model; see try --help")
        return 0
    sys.path.insert(0, "")  # a reward in a file of the working directory, as python -m finds it
    if args[:1] != ["try"]:
        return list_rewards(args)
    options, rest = build_parser().parse_known_args(args[1:])
    try:
        return try_rewards(options, columns_of(rest))
    except (RewardContractError, RewardFailedError) as error:
        print(error, file=sys.stderr)
        return 1
    except (ValueError, FileNotFoundError, ModuleNotFoundError, NoRewardMadeError) as error:
        print(f"rewards try: {error}", file=sys.stderr)
        return 2


def list_rewards(names: list[str]) -> int:
    """Prints all rewards with their arguments, or the named ones with all that is known about each argument.

    Args:
        names: Registered names and import paths; none for all that are registered.
    """
    unknown = [name for name in names if name not in REWARD_FUNCTIONS and "." not in name]
    if unknown:
        print(
            f"rewards: no reward is called {', '.join(unknown)}. There are {', '.join(REWARD_FUNCTIONS)}, and try. One of "
            "your own goes by its import path, as in fit: my_rewards.short_lines."
        )
        return 2
    try:
        rewards = {
            name: REWARD_FUNCTIONS.get(name) or import_reward(name) for name in names or sorted(REWARD_FUNCTIONS)
        }
    except (ValueError, TypeError) as error:
        print(f"rewards: {error}")
        return 2
    for name, reward in rewards.items():
        summary, _, explained = (inspect.getdoc(reward) or "no docstring").partition("\n\n")
        print(f"{name}: {summary.replace(chr(10), ' ')}")
        if names and explained:
            print(f"\n{explained}\n")
        else:
            print(f"    {', '.join(arguments_of(reward)) or 'no settings'}")
    return 0


def arguments_of(reward: Any) -> list[str]:
    """``name=default`` of each argument that a config can give."""
    if dataclasses.is_dataclass(reward):
        fields = [field for field in dataclasses.fields(reward) if field.init and field.name not in ("name", "weight")]
        return [f"{field.name}={_default(field)!r}" for field in fields]
    parameters = inspect.signature(reward).parameters.values()
    return [f"{p.name}={p.default!r}" for p in parameters if p.default is not p.empty and p.name not in CALLING]


def _default(field: Any) -> Any:
    return field.default_factory() if field.default is dataclasses.MISSING else field.default


def columns_of(arguments: list[str]) -> dict[str, Any]:
    """``--name value`` and ``--name=value`` pairs; values that start like JSON lists or objects are read as such.

    Raises:
        ValueError: If something else stands there.

    Example:
        >>> columns_of(["--ground_truth", "42", '--tests=["assert True"]'])
        {'ground_truth': '42', 'tests': ['assert True']}
    """
    columns: dict[str, Any] = {}
    waiting = list(arguments)
    while waiting:
        option = re.fullmatch(r"--([A-Za-z_]\w*)(?:=(.*))?", waiting.pop(0), re.DOTALL)
        if option is None or (option[2] is None and not waiting):
            raise ValueError(
                f"{' '.join(arguments)!r} is not made of columns with their values, as in --ground_truth 42."
            )
        value = waiting.pop(0) if option[2] is None else option[2]
        columns[option[1]] = json.loads(value) if value[:1] in ("[", "{") else value
    return columns


def try_rewards(options: argparse.Namespace, columns: dict[str, Any]) -> int:
    """Scores the completions and prints what each reward gave."""
    if (options.config is None) == (options.rewards is None):
        raise ValueError("give --config with a run's config, or --rewards with names; not both.")
    config = read_sections(options.config) if options.config else {}
    model = config.get("model") or {}
    rewards = resolve_rewards(options.rewards or model.get("rewards") or [], model.get("reward_weights"))
    compose = RewardComposition(**(model.get("reward_composition") or {}))
    compose.check([reward.name for reward in rewards], [reward.weight for reward in rewards])
    name = model.get("model_name_or_path")
    state = RewardState(options.step, -1, 0.0, model.get("max_completion_length", 256), name)
    count = len(options.completion)
    prompt, completions = options.prompt, options.completion
    if options.image:
        prompt, completions, shown = with_shown_images(prompt, completions, options.image)
        columns = shown | columns
    runner = RewardRunner(rewards, **(model.get("reward_runtime") or {}))
    try:
        table = runner.score(
            [prompt] * count,
            completions,
            token_ids(options.completion, options.tokenizer or name),
            {column: [value] * count for column, value in columns.items()},
            state,
        )
    finally:
        runner.close()
    show_table(table, options.completion, combine_rewards(*compose(table.values, table.names, table.weights)).tolist())
    return int(any(table.metrics[f"rewards/{reward}/errors"] for reward in table.names))


def with_shown_images(
    prompt: str, completions: list[str], images: list[str]
) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Prompt, completions and the column of images as a run hands them to rewards: messages, with a block an image.

    Raises:
        ValueError: If a file is no image.
    """
    from grpo_lightning.vision.images import read_image

    for path in images:
        read_image(path)
    column: dict[str, Any] = {"image": images[0]} if len(images) == 1 else {"images": images}
    blocks = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
    said = [[{"role": "assistant", "content": text}] for text in completions]
    return [{"role": "user", "content": blocks}], said, column


def token_ids(completions: list[str], tokenizer: str | None) -> list[list[int]]:
    """Token ids by the tokenizer where it is on this disk; else one id a word, which is said."""
    if tokenizer is not None:
        from transformers import AutoTokenizer

        try:
            loaded = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True, trust_remote_code=False)
            return [loaded(text, add_special_tokens=False)["input_ids"] for text in completions]
        except (OSError, ValueError):
            print(f"The tokenizer of {tokenizer} is not on this disk.", file=sys.stderr)
    print("Tokens are counted as words. Give --tokenizer where length matters.", file=sys.stderr)
    return [list(range(len(text.split()))) for text in completions]


def show_table(table: RewardTable, completions: list[str], totals: list[float]) -> None:
    """Prints, for each completion, each reward, the total, and what rewards logged beside."""
    for row, text in enumerate(completions):
        shown = text if len(text) <= 200 else f"{text[:120]} ... {text[-60:]} ({len(text)} characters)"
        print(f"completion {row}: {shown!r}")
        for r, name in enumerate(table.names):
            weight = f"   weight {float(table.weights[r]):g}" if float(table.weights[r]) != 1 else ""
            print(f"  {name:<24}{_number(float(table.values[row, r]))}{weight}")
        print(f"  {'total':<24}{_number(totals[row])}")
        for column, entries in table.extra.items():
            if entries[row] is not None:
                print(f"    {column}: {entries[row]!r:.500}")
    times = ", ".join(f"{name} {table.metrics[f'time/rewards/{name}/max']:.3f} s" for name in table.names)
    print(f"longest call: {times}")


def _number(value: float) -> str:
    return "    None" if value != value else f"{value:8.4f}"
