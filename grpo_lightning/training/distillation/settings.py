"""On-policy distillation: who teaches, by which divergence, and what of the data a teacher is told beside the prompt."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import urlsplit

import torch

from grpo_lightning.errors import ExplainedError
from grpo_lightning.numerics.dtypes import DTYPES

Lesson = Literal["reverse_kl", "forward_kl", "jsd", "sampled_token"]
KINDS: tuple[str, ...] = get_args(Lesson)
SAMPLED = "sampled_token"
"""The one that is no divergence of distributions."""
SELF, REFERENCE = "self", "reference"
"""Teachers that are no model of their own: the policy as it is, and the run's reference."""
SCHEMES = ("http://", "https://")
"""What an address begins with, and no directory or hub name."""
PLACE = re.compile(r"\{(\w+)\}")
"""What teacher_prompt names: the prompt itself, or a column."""
SUCCESS, FEEDBACK = "successful_attempt", "feedback"
"""What it may name of the step: another completion of the group, and what a reward said of this one."""


class TeacherRefusedError(ExplainedError, ValueError):
    """A teacher that cannot teach this policy, or not this row."""


@dataclass(frozen=True)
class Distillation:
    """A teacher for the sampled completions (GKD, arXiv:2306.13649; MiniLLM, arXiv:2306.08543).

    ``weight`` times the mean divergence per completion token is added to the loss. A policy that reads more than its prompt
    can teach itself (SDFT, arXiv:2601.19897; SDPO, arXiv:2601.20802).

    Args:
        teacher: Directory or hub name of a causal language model with the policy's tokenizer; http://host:port of a vLLM server
            that has it; self for the policy as it is, or reference for the run's reference, both with a teacher_prompt; or
            several of these by name, of which teacher_column chooses one for each prompt.
        weight: Factor of the divergence. The policy loss has advantages of about 1, the divergence nats per token.
        divergence: reverse_kl (keep to what the teacher would do), forward_kl (cover all that it would), jsd (between), or
            sampled_token (reverse_kl by the sampled tokens alone, whose log ratio to the teacher is their advantage).
        top_k: Tell only the teacher's so many likeliest tokens apart, and take the others together; null for all, which a
            server does not tell; of sampled_token there is none.
        is_clip: Factor of each token's divergence: how much likelier it has become since it was sampled, and this at most
            (SDPO: 2.0); null for 1. Of runs with several optimizer steps on the same completions.
        device: Where a teacher that this run loads is (cuda:1, cpu); null for the policy's device.
        dtype: What it is held in; bfloat16 where the policy is trained on a GPU, float32 on a CPU, unless said.
        teacher_column: Column of the data with the name of each prompt's teacher.
        teacher_prompt: What the teacher reads in place of the prompt, or of the last message of a conversation:
            {prompt} is its text, and the name of a column in braces that column's. Where one of them is null, the row's
            prompt stays as it is. {successful_attempt} is another completion of the group, one that model.success_reward
            finds correct, and {feedback} what a reward has logged about the completion (SDPO); where there is none, the
            completion has no teacher.
        success_reward_threshold: What a {successful_attempt} earns at least; 1.0 unless said.
        feedback_column: The column that a reward logs with log_extra, of which {feedback} is made.
        timeout: Seconds to wait for a teacher's server to become healthy, at the start and whenever it is lost; 240 unless said.
        request_timeout: Seconds that a server may take for one completion; 1800 unless said.

    Raises:
        ValueError: For values that mean nothing.
    """

    teacher: str | dict[str, str]
    weight: float = 1.0
    divergence: Lesson = "reverse_kl"
    top_k: int | None = None
    is_clip: float | None = None
    device: str | None = None
    dtype: str | None = None
    teacher_column: str | None = None
    teacher_prompt: str | None = None
    success_reward_threshold: float | None = None
    feedback_column: str | None = None
    timeout: float | None = None
    request_timeout: float | None = None

    def __post_init__(self) -> None:
        if self.divergence not in KINDS:
            raise ValueError(
                f"model.distillation.divergence={self.divergence!r} is unknown. Choose one of {', '.join(KINDS)}."
            )
        if not self.weight > 0:
            raise ValueError(f"model.distillation.weight={self.weight} teaches nothing. Use a number above 0.")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"model.distillation.top_k={self.top_k} tells no token apart. Use 1 or more, or null.")
        if self.is_clip is not None and not self.is_clip > 0:
            raise ValueError(
                f"model.distillation.is_clip={self.is_clip} leaves no loss. Use a number above 0, or null."
            )
        if self.divergence == SAMPLED and self.top_k is not None:
            raise ValueError(
                f"model.distillation.top_k={self.top_k} has no effect on divergence={SAMPLED}, which is of one token. Leave it out."
            )
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"model.distillation.dtype={self.dtype!r} is unknown. Choose {', '.join(DTYPES)}.")
        self._check_device()
        self._check_teachers()
        self._check_servers()
        self._check_attempts()
        if self.teacher_prompt is not None and not self.places:
            raise ValueError(
                f"model.distillation.teacher_prompt={self.teacher_prompt!r} names no column, so every row's teacher reads the "
                "same beside the prompt. Name one in braces."
            )

    def _check_device(self) -> None:
        if self.device is None:
            return
        try:
            place = torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(
                f"model.distillation.device={self.device!r} is no device. Write cuda:1, cpu, or null for the policy's."
            ) from error
        if place.type == "meta":
            raise ValueError(
                "model.distillation.device='meta' holds shapes without numbers, which teach nothing. Use cpu, cuda:1, or null for "
                "the policy's."
            )
        if place.type == "cuda" and (place.index or 0) >= (count := torch.cuda.device_count()):
            raise ValueError(
                f"model.distillation.device={self.device!r} is not there: this process sees {count} CUDA devices. Use one of "
                "those (CUDA_VISIBLE_DEVICES may hide others), cpu, or null for the policy's."
            )

    def _check_teachers(self) -> None:
        several = isinstance(self.teacher, dict)
        if several and not self.teacher:
            raise ValueError("model.distillation.teacher={} names no teacher. Name one at least.")
        if several != (self.teacher_column is not None):
            missing = (
                "and teacher_column does not say which teaches what" if several else "of one teacher there is no choice"
            )
            raise ValueError(
                f"model.distillation.teacher={self.teacher!r} with teacher_column={self.teacher_column!r}: {missing}. Give "
                "several teachers by name together with a column, or one without."
            )
        own = {SELF, REFERENCE} & set(self.by_name.values())
        if own and self.teacher_prompt is None:
            raise ValueError(
                f"model.distillation.teacher={min(own)!r} knows nothing that the policy does not. Give teacher_prompt, with a "
                "column that the policy does not read."
            )
        if not self._loaded and (self.device or self.dtype):
            raise ValueError(
                "model.distillation.device and dtype are of teachers that this run loads, and there is none. Leave them out."
            )

    def _check_servers(self) -> None:
        for address in self.addresses:
            parts = urlsplit(address)
            if parts.scheme != "http" or parts.hostname is None or parts.port is None or parts.path.strip("/"):
                raise ValueError(
                    f"model.distillation.teacher={address!r} is no address of a vLLM server. Write http://host:port, without a "
                    "path; encryption is for a tunnel in front of it."
                )
            if self.top_k is None and self.divergence != SAMPLED:
                raise ValueError(
                    f"model.distillation.teacher={address!r} with top_k=null: a server tells its likeliest tokens, not the "
                    f"whole distribution that {self.divergence} is made of. Give top_k, 20 at most unless the server was started "
                    f"with --max-logprobs, or use divergence={SAMPLED}."
                )
        if not self.addresses and (self.timeout is not None or self.request_timeout is not None):
            raise ValueError(
                "model.distillation.timeout and request_timeout are of teachers on servers, and there is none. Leave them out."
            )

    def _check_attempts(self) -> None:
        if self.success_reward_threshold is not None and SUCCESS not in self.places:
            raise ValueError(
                f"model.distillation.success_reward_threshold={self.success_reward_threshold} has no effect: teacher_prompt shows "
                f"no {{{SUCCESS}}}. Put it there, or leave the threshold out."
            )
        if self.feedback_column is not None and FEEDBACK not in self.places:
            raise ValueError(
                f"model.distillation.feedback_column={self.feedback_column!r} has no effect: teacher_prompt shows no "
                f"{{{FEEDBACK}}}. Put it there, or leave the column out."
            )

    @property
    def places(self) -> set[str]:
        """What teacher_prompt names beside the prompt."""
        return set(PLACE.findall(self.teacher_prompt or "")) - {"prompt"}

    @property
    def told_of_step(self) -> set[str]:
        """Those of them that a step finds out, for each completion."""
        return self.places & ({SUCCESS, FEEDBACK} if self.feedback_column is not None else {SUCCESS})

    @property
    def success_threshold(self) -> float:
        """What a completion earns at least to be shown."""
        return 1.0 if self.success_reward_threshold is None else self.success_reward_threshold

    @property
    def by_name(self) -> dict[str, str]:
        """Teachers by what teacher_column calls them; a single one has no name."""
        return self.teacher if isinstance(self.teacher, dict) else {"": self.teacher}

    @property
    def longest_wait(self) -> float:
        """Seconds that a step may wait for teachers on servers, which are asked one after the other."""
        return len(self.addresses) * (self.wait_for_server + self.wait_for_answer)

    @property
    def wait_for_server(self) -> float:
        """Seconds for one to become healthy."""
        return 240.0 if self.timeout is None else self.timeout

    @property
    def wait_for_answer(self) -> float:
        """Seconds for a completion."""
        return 1800.0 if self.request_timeout is None else self.request_timeout

    @property
    def addresses(self) -> list[str]:
        """Of teachers on servers."""
        return [name for name in self.by_name.values() if name.startswith(SCHEMES)]

    @property
    def _loaded(self) -> set[str]:
        return set(self.by_name.values()) - {SELF, REFERENCE, *self.addresses}

    @property
    def told_tokens(self) -> int:
        """Of how many tokens a server tells the logprobs, in each place."""
        return 1 if self.divergence == SAMPLED else self.top_k or 0

    @property
    def needs_reference(self) -> bool:
        """Whether the run's reference teaches."""
        return REFERENCE in self.by_name.values()

    @property
    def told_columns(self) -> list[str]:
        """Columns of the data that teacher_prompt names."""
        return sorted(self.places - self.told_of_step)

    @property
    def needed_columns(self) -> list[str]:
        """Columns that the data must have."""
        return [*self.told_columns, *([self.teacher_column] if self.teacher_column else [])]
