"""A teacher that this run loads: a frozen model of the policy's tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_lightning.algorithm.lessons import Lessons
from grpo_lightning.numerics.divergence import Side
from grpo_lightning.numerics.dtypes import DTYPES
from grpo_lightning.numerics.output_head import output_head
from grpo_lightning.policy.loading import load_causal_lm, load_tokenizer
from grpo_lightning.policy.model_config import load_config
from grpo_lightning.policy.positions import positions_of
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.training.distillation.settings import Distillation, TeacherRefusedError
from grpo_lightning.training.passes import Passes

TEACHER = "model.distillation.teacher"


class LoadedTeacher:
    """A frozen model that is scored beside the policy, in the same layout; its prompts once per group too.

    Its tokenizer is read on construction, its weights in ``start``.

    Args:
        name: Directory or hub name.
        settings: Where it is held, and in what.
        passes: Over the policy, whose tokens it has to understand.

    Raises:
        ValueError: If the two tokenizers differ.
    """

    def __init__(self, name: str, settings: Distillation, passes: Passes) -> None:
        policy = passes.policy
        self.name, self.settings, self.passes = name, settings, passes
        config = load_config(name, TEACHER)
        self.positions = positions_of(config)
        _check_same_tokens(load_tokenizer(name, TEACHER), policy.tokenizer, name)
        _check_rows(config.get_text_config().vocab_size, policy.tokenizer, name)
        self.scorer: Scorer | None = None

    def start(self) -> None:
        """See ``Teacher``.

        Raises:
            TeacherRefusedError: If its weights cannot be read, or it answers with no numbers.
        """
        if self.scorer is not None:
            return
        place = self.passes.device if self.settings.device is None else torch.device(self.settings.device)
        dtype = DTYPES[self.settings.dtype or ("float32" if place.type == "cpu" else "bfloat16")]
        try:
            model = load_causal_lm(self.name, dtype, setting=TEACHER)
        except ValueError as error:
            raise TeacherRefusedError(str(error)) from error
        model.requires_grad_(False).eval().to(place)
        _check_numbers(model, self.passes.policy.tokenizer.eos_token_id or 0, self.name)
        self.scorer = Scorer(model, self.passes.temperature, self.passes.layout)

    def side(self, lessons: Lessons, rows: Tensor) -> Side:
        """See ``Teacher``."""
        assert self.scorer is not None
        with torch.no_grad():
            hidden = self.scorer.hidden(lessons.rollouts, rows)
        return Side(hidden, output_head(self.scorer.model)[1])


def _check_numbers(model: PreTrainedModel, token: int, name: str) -> None:
    """Here, where the teacher is known: a gradient with NaN could be anything's."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[token]], device=model.device)).logits
    if bool(logits.isnan().any() | logits.isposinf().any()):
        raise TeacherRefusedError(
            f"{TEACHER}={name!r} answers with NaN or infinity, held in {str(model.dtype).removeprefix('torch.')}. "
            "Check that its weights are whole (chat with it), or set model.distillation.dtype to one with a wider range, such as "
            "bfloat16 or float32."
        )


def _check_rows(vocab_size: int, student: PreTrainedTokenizerBase, name: str) -> None:
    last = max(student.get_vocab().values())
    if last >= vocab_size:
        raise ValueError(
            f"{TEACHER}={name!r} has {vocab_size} embeddings (vocab_size), and the policy's tokenizer token {last}, "
            f"{student.convert_ids_to_tokens(last)!r}. Use a teacher that was trained with this tokenizer."
        )


def _check_same_tokens(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, name: str) -> None:
    theirs, ours = teacher.get_vocab(), student.get_vocab()
    differing = sorted(token for token in ours if theirs.get(token) != ours[token])
    if differing:
        raise ValueError(
            f"{TEACHER}={name!r} has another tokenizer than the policy: {len(differing)} of the policy's "
            f"tokens mean something else to it, {differing[0]!r} for one. Use a teacher of the same family."
        )
