"""A whole GRPO step makes no tensor of tokens times vocabulary: chunks of logits, in every pass, forward and backward."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from largest_tensor import LargestTensor
from runs import fit
from torch import nn
from toy_models import save_toy_model

from grpo_lightning.numerics import logprobs
from grpo_lightning.scoring.scorer import Scorer

VOCAB, HIDDEN = 3000, 32
CHUNK = 8
"""Tokens whose logits exist at the same time."""


@pytest.fixture(scope="module")
def wide_model_dir(tmp_path_factory):
    """A vocabulary so large that logits of more tokens than ``HIDDEN`` outgrow the output matrix and its gradient."""
    return save_toy_model(tmp_path_factory.mktemp("wide_model"), vocab_size=VOCAB, hidden_size=HIDDEN)


@pytest.fixture
def passes(monkeypatch) -> list[tuple[nn.Module, bool, int]]:
    """Of each scored micro-batch: the model, whether with gradient, and the completion tokens."""
    seen, original = [], Scorer.score

    def score(self, rollouts, rows, *args, **kwargs):
        tokens = int(rollouts.completion_lengths[rows].sum())
        seen.append((self.model, torch.is_grad_enabled(), tokens))
        return original(self, rollouts, rows, *args, **kwargs)

    monkeypatch.setattr(Scorer, "score", score)
    return seen


def watch(largest: dict[str, int]):
    """Equips a module to record the largest tensor of each phase of a step but generation."""

    def equip(module):
        begin_step = module.begin_step

        def begin_watched_step():
            report = begin_step()
            phase = report.phase

            @contextmanager
            def watched(name):
                with phase(name):
                    if name == "generate":
                        yield
                        return
                    with LargestTensor() as tensor:
                        yield
                    largest[name] = max(largest.get(name, 0), tensor.numel)

            report.phase = watched
            return report

        module.begin_step = begin_watched_step

    return equip


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"microbatch_layout": "padded"},
        {"entropy_coef": 0.01, "top_entropy_quantile": 0.5},
        {"finetuning_type": "lora", "lora_target": "q_proj,lm_head"},
    ],
    ids=["packed", "padded", "entropy", "adapter on the head"],
)
def test_a_step_holds_one_chunk_of_logits_at_a_time(wide_model_dir, tmp_path, monkeypatch, passes, settings):
    monkeypatch.setattr(logprobs, "MIN_CHUNK_TOKENS", CHUNK)
    monkeypatch.setitem(logprobs.CHUNK_BYTES, "cpu", CHUNK * VOCAB * 4)
    largest: dict[str, int] = {}
    module = fit(
        wide_model_dir,
        tmp_path,
        max_steps=2,
        on_module=watch(largest),
        beta=0.1,
        num_iterations=2,
        num_generations=8,
        max_completion_length=16,
        **settings,
    )
    assert module.steps_done == 1
    tokens = module.last_step.rollouts.completion_ids.numel()
    assert tokens > 5 * HIDDEN
    old, reference, first, second = passes
    assert old == (module.policy.model, False, tokens)
    assert reference == (module.reference_passes.reference.model, False, tokens)
    assert first == second == (module.policy.model, True, tokens)
    assert largest.keys() == {"old_and_reference", "rewards", "train"}
    # The output matrix, whose gradient is as large, and not the logits of `tokens`.
    assert max(largest.values()) <= VOCAB * HIDDEN
