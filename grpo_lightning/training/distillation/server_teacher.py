"""A teacher on a vLLM server: asked once a step for its likeliest tokens, or the sampled one, at every token."""

from __future__ import annotations

import math
from urllib.parse import urlsplit

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpo_lightning.algorithm.lessons import Lessons
from grpo_lightning.generation.vllm.serving.client import ServerRefused, VLLMClient
from grpo_lightning.generation.vllm.serving.prompt_logprobs import PromptLogprobs, TokenRow
from grpo_lightning.generation.vllm.serving.token import known_token
from grpo_lightning.numerics.divergence import Likeliest
from grpo_lightning.policy.policy import Policy
from grpo_lightning.training.distillation.settings import SAMPLED, Distillation, TeacherRefusedError
from grpo_lightning.types import Rollouts

TOKENS_AT_ONCE = 1000
"""Of the vocabulary, in one question about what they mean."""


class ServerTeacher:
    """A model that a vLLM server has; it shows its ``top_k`` likeliest tokens, of which ``to_likeliest`` makes the divergence.

    For ``sampled_token`` it tells the sampled tokens' logprobs alone.

    Args:
        address: ``http://host:port``.
        settings: How many tokens, and how long to wait.
        policy: Whose tokens it has to understand.
        temperature: That the policy samples at.

    Raises:
        ValueError: If tokens are sampled at another temperature than the server's logprobs have.
    """

    def __init__(self, address: str, settings: Distillation, policy: Policy, temperature: float) -> None:
        if temperature != 1.0:
            raise ValueError(
                f"model.temperature={temperature} with model.distillation.teacher={address!r}: a server tells logprobs at "
                "temperature 1, and those of a few tokens alone cannot be brought to another. Use 1.0, or a teacher "
                "that is loaded."
            )
        parts = urlsplit(address)
        assert parts.hostname is not None and parts.port is not None
        self.address, self.top_k, self.policy = address, settings.top_k, policy
        client = VLLMClient(parts.hostname, parts.port, settings.wait_for_answer)
        client.token = lambda: known_token(client.host, client.port)
        self.server = PromptLogprobs(client, settings.wait_for_server)
        self._is_checked = False

    def start(self) -> None:
        """Waits for the server, and checks that it knows the policy's tokens and tells as many as are asked for.

        Raises:
            TimeoutError: If there is no healthy server in time.
            TeacherRefusedError: If it cannot teach this policy.
        """
        self.server.start()
        if self._is_checked:
            return
        check_same_tokens(self.server, self.policy.tokenizer, self.address)
        self._check_logprobs()
        self._is_checked = True

    def _check_logprobs(self) -> None:
        # By the likeliest tokens also where the sampled ones are asked for: an end of text may have a logit below 0, too.
        ends, count = [self.policy.tokenizer.eos_token_id or 0] * 2, self.top_k or 1
        try:
            ((token_ids, logprobs),) = self.server.likeliest([TokenRow(ends, 1)], count)
        except ServerRefused as error:
            refused, lower = f"divergence={SAMPLED} needs prompt logprobs, and {self.address} tells none", "Start"
            if self.top_k is not None:
                refused = f"top_k={count} is more than {self.address} tells, or it tells no prompt logprobs"
                lower = "Lower top_k, or start"
            raise TeacherRefusedError(
                f"model.distillation.{refused}: {error}\n{lower} the server with --max-logprobs {count}."
            ) from error
        if len(token_ids[0]) != count:
            raise TeacherRefusedError(
                f"{self.address} answers model.distillation.top_k={count} with {len(token_ids[0])} tokens. Use as many as the "
                "model has at most."
            )
        if not sum(map(math.exp, logprobs[0])) <= 1.001:  # NaN is neither
            raise TeacherRefusedError(
                f"{self.address} gives its likeliest token the logprob {logprobs[0][0]:.3f}, which is none. Start it with "
                "--logprobs-mode raw_logprobs or processed_logprobs."
            )

    @property
    def positions(self) -> int | None:
        """Tokens of a prompt with its completion; None where the server does not say."""
        return None if self.server.max_length is None else self.server.max_length - 1

    def told(self, rollouts: Rollouts, rows: Tensor) -> Likeliest:
        """What the server says at the tokens of the completions ``rows``; it computes each with its prompt, row by row.

        Without ``top_k``, of the tokens themselves.

        Raises:
            TeacherRefusedError: If a row is too long for it, or it knows a token that the policy does not.
            ServerRefused, ServerUnavailable, TimeoutError: See ``PromptLogprobs.likeliest``.
        """
        prompts, completions = rollouts.prompts(), rollouts.completions()
        asked = []
        for row in rows.tolist():
            prompt = prompts[int(rollouts.group[row])]
            asked.append(TokenRow([*prompt.tolist(), *completions[row].tolist()], len(prompt)))
        longest, limit = max((len(row.token_ids) for row in asked), default=0), self.positions
        if limit is not None and longest > limit:
            raise TeacherRefusedError(
                f"a prompt with its completion has {longest} tokens, and {self.address} holds {limit} (its "
                "--max-model-len, less one). Start it with more, or lower model.max_completion_length."
            )
        if self.top_k is None:
            logprobs = [value for of_row in self.server.of_tokens(asked) for value in of_row]
            tokens = rollouts.completion_ids[rollouts.tokens_of(rows)]
            return Likeliest(tokens[:, None], torch.tensor(logprobs).view(-1, 1))
        answers = self.server.likeliest(asked, self.top_k)
        likeliest = Likeliest(
            torch.tensor([ids for found, _ in answers for ids in found]).view(-1, self.top_k),
            torch.tensor([values for _, found in answers for values in found]).view(-1, self.top_k),
        )
        vocab_size = self.policy.config.get_text_config().vocab_size
        if likeliest.token_ids.numel() and int(likeliest.token_ids.max()) >= vocab_size:
            raise TeacherRefusedError(
                f"{self.address} finds token {int(likeliest.token_ids.max())} likely, and the policy has {vocab_size}. Use a "
                "teacher of the same family."
            )
        return likeliest

    def side(self, lessons: Lessons, rows: Tensor) -> Likeliest:
        """See ``Teacher``."""
        assert lessons.likeliest is not None
        return lessons.likeliest.rows(lessons.rollouts.tokens_of(rows))


def check_same_tokens(server: PromptLogprobs, tokenizer: PreTrainedTokenizerBase, address: str) -> None:
    """Refuses a server to which the policy's tokens mean something else.

    Raises:
        TeacherRefusedError: Naming the first of them.
        ServerRefused: If the server does not say what tokens mean.
    """
    ids = sorted(tokenizer.get_vocab().values())
    server.text_of([])  # an answer to what cannot be wrong
    for start in range(0, len(ids), TOKENS_AT_ONCE):
        differing = first_difference(server, tokenizer, ids[start : start + TOKENS_AT_ONCE])
        if differing is not None:
            raise TeacherRefusedError(
                f"model.distillation.teacher={address!r} has another tokenizer than the policy: token {differing} is "
                f"{tokenizer.decode([differing])!r} here and something else there. Use a teacher of the same family."
            )


def first_difference(server: PromptLogprobs, tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> int | None:
    """The first token that has another text there, found by halves; None where none has.

    White space is left out of the comparison: tokenizers are told to tidy it or not, with the same tokens.
    """
    try:
        theirs = server.text_of(ids)
    except ServerRefused:  # one of them is no token there
        theirs = None
    if theirs is not None and "".join(theirs.split()) == "".join(str(tokenizer.decode(ids)).split()):
        return None
    if len(ids) == 1:
        return ids[0]
    half = len(ids) // 2
    first = first_difference(server, tokenizer, ids[:half])
    return first if first is not None else first_difference(server, tokenizer, ids[half:])
