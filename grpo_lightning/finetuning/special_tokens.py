"""New special tokens: added to the tokenizer, their embeddings started from a description in words."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import AddedToken, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SPECIAL_TOKEN_MAPPING: dict[str, dict[str, str]] = {
    "llama3": {"<|reserved_special_token_0|>": "delete the previous token of the response"},
    "qwen3": {"<|BACKTRACK|>": "delete the previous token of the response"},
}
"""``model.template`` -> token -> description, used where ``model.new_special_tokens_config`` is not set."""

STARTED_KEY = "initialized_special_tokens"
"""In config.json of an export: tokens whose embeddings have been started and trained, not to be started again."""


@dataclass(frozen=True)
class NewToken:
    """A token whose embeddings start at the mean of its description's."""

    token: str
    id: int
    description_ids: tuple[int, ...]
    is_started: bool = False
    """Whether an earlier run has started and trained its row, which is then kept; it is trained further all the same."""


def special_token_descriptions(
    init_special_tokens: bool, new_special_tokens_config: Mapping[str, str] | None, template: str | None
) -> dict[str, str]:
    """Token -> description from the settings; empty where special tokens are not asked for.

    Raises:
        ValueError: If the settings contradict each other or name no token.
    """
    if not init_special_tokens:
        for name, value in (("new_special_tokens_config", new_special_tokens_config), ("template", template)):
            if value is not None:
                raise ValueError(f"model.{name} has no effect without model.init_special_tokens=true. Set it.")
        return {}
    if new_special_tokens_config is not None:
        return dict(new_special_tokens_config)
    if template is None:
        raise ValueError(
            "model.init_special_tokens=true says of no token. Set model.new_special_tokens_config "
            "(token: description), or model.template."
        )
    if template not in SPECIAL_TOKEN_MAPPING:
        raise ValueError(
            f"model.template={template!r} has no special tokens ({', '.join(SPECIAL_TOKEN_MAPPING)} have). "
            "Set model.new_special_tokens_config (token: description)."
        )
    return dict(SPECIAL_TOKEN_MAPPING[template])


def add_special_tokens(
    tokenizer: PreTrainedTokenizerBase, descriptions: Mapping[str, str], config: PretrainedConfig | None = None
) -> list[NewToken]:
    """Makes each token one id of the tokenizer; a token that it has already (a reserved one) keeps its id.

    The tokens are added as whole words that decoding keeps: rewards read completions decoded without special tokens,
    and a tag that they look for must not vanish.

    Args:
        tokenizer: Changed in place.
        descriptions: Token -> description.
        config: Of the model; tokens that an earlier run has started (``STARTED_KEY``) are left as they are.

    Returns:
        All of them, in the order of the descriptions.

    Raises:
        ValueError: If a token or a description is empty.
    """
    started = set(getattr(config, STARTED_KEY, None) or ())
    ids_of: dict[str, tuple[int, ...]] = {}
    for token, description in descriptions.items():
        ids_of[token] = tuple(tokenizer(description, add_special_tokens=False).input_ids) if token.strip() else ()
        if not ids_of[token]:
            raise ValueError(
                f"model.new_special_tokens_config has {token!r}: {description!r}. A token needs a name, and a "
                "description of at least one token, whose embeddings it starts at."
            )
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in ids_of])
    again = sorted(started & ids_of.keys())
    if again:
        logger.info("Special tokens %s come trained with the model; their embeddings are kept.", ", ".join(again))
    known = tokenizer.get_vocab()
    return [NewToken(token, known[token], ids, token in started) for token, ids in ids_of.items()]


def embedding_rows(policy: PreTrainedModel) -> int:
    """How many tokens the model has input embeddings for; a few more than the tokenizer has, in some models."""
    return cast(Tensor, policy.get_input_embeddings().weight).shape[0]


@torch.no_grad()
def start_embeddings(policy: PreTrainedModel, tokens: Sequence[NewToken], num_tokens: int) -> None:
    """Enlarges the vocabulary where needed and sets the rows of the new tokens, input and output, tied or not.

    A row is the mean of the rows of its description's tokens, taken in float32.

    Args:
        policy: Changed in place; without adapters yet.
        tokens: From ``add_special_tokens``.
        num_tokens: Of the tokenizer.

    Raises:
        ValueError: If the tokenizer has tokens without a row that nothing would set.
    """
    tokens, rows = [token for token in tokens if not token.is_started], embedding_rows(policy)
    if num_tokens > rows:
        unset = sorted(set(range(rows, num_tokens)) - {token.id for token in tokens})
        if unset:
            raise ValueError(
                f"The tokenizer has {num_tokens} tokens, the model {rows} embeddings; nothing would set those of ids "
                f"{unset[:5]}. Use the model's own tokenizer (model.tokenizer_name_or_path), or describe the tokens "
                "in model.new_special_tokens_config."
            )
        policy.resize_token_embeddings(num_tokens, mean_resizing=False)
    if not tokens:
        return
    modules = (policy.get_input_embeddings(), policy.get_output_embeddings())
    weights = [cast(Tensor, module.weight) for module in modules if module is not None]
    for weight in {id(weight): weight for weight in weights}.values():  # one where they are tied
        means = [weight[list(token.description_ids)].float().mean(0) for token in tokens]
        for token, mean in zip(tokens, means, strict=True):
            weight[token.id] = mean.to(weight.dtype)
    started = set(getattr(policy.config, STARTED_KEY, None) or ())
    setattr(policy.config, STARTED_KEY, sorted(started | {token.token for token in tokens}))
