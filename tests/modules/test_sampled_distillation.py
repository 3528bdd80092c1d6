"""A teacher that judges the sampled tokens alone, and weights for tokens that have become likelier (SDPO)."""

from __future__ import annotations

import pytest
import torch
from runs import fit, make_module, weights
from test_distillation import instead_of_rewards
from toy_models import save_toy_model
from transformers import AutoModelForCausalLM
from trl.experimental.sdpo.loss_utils import (
    apply_importance_sampling_clipping,
    compute_full_logit_self_distillation_loss,
    compute_sampled_token_self_distillation_loss,
)

from grpo_lightning.training.distillation import Distillation

KINDS = {
    "sampled_token": lambda p, q, ids: compute_sampled_token_self_distillation_loss(p, q, ids, distillation_alpha=1.0),
    "forward_kl": lambda p, q, ids: compute_full_logit_self_distillation_loss(p, q, distillation_alpha=0.0),
}


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory):
    return save_toy_model(tmp_path_factory.mktemp("teacher"), seed=5)


def logits_of(model, prompt, completion):
    ids = torch.cat([prompt, completion])[None]
    return model(input_ids=ids).logits[:, len(prompt) - 1 : -1]


def trained(model_dir, teacher_dir, rollouts, kind: str, clip: float | None, updates: int) -> tuple[list[float], dict]:
    """Means over the tokens, and the weights after steps down them; from full logits, a completion at a time."""
    student, teacher = (AutoModelForCausalLM.from_pretrained(path) for path in (model_dir, teacher_dir))
    texts = [(rollouts.prompts()[g], c) for g, c in zip(rollouts.group.tolist(), rollouts.completions(), strict=True)]
    old, means = {}, []
    for _ in range(updates):
        rows = []
        for n, (prompt, completion) in enumerate(texts):
            p, q = (logits_of(model, prompt, completion) for model in (student, teacher))
            logps = p.log_softmax(-1).gather(-1, completion[None, :, None])[..., 0]
            per_token = KINDS[kind](p, q.detach(), completion[None])
            if clip is not None:
                per_token = apply_importance_sampling_clipping(
                    per_token, logps, old.setdefault(n, logps.detach()), clip
                )
            rows.append(per_token[0])
        loss = torch.cat(rows).mean()
        student.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in student.parameters():
                p -= 0.1 * p.grad
        means.append(loss.item())
    return means, {name: p.detach() for name, p in student.named_parameters()}


@pytest.mark.parametrize("layout", [{}, {"microbatch_layout": "padded", "max_tokens_per_microbatch": 60}])
def test_a_step_descends_trls_loss_of_the_sampled_tokens(tiny_model_dir, teacher_dir, tmp_path, layout):
    taught = instead_of_rewards(teacher_dir, divergence="sampled_token")
    module = fit(tiny_model_dir, tmp_path, **taught, **layout)
    (mean,), expected = trained(tiny_model_dir, teacher_dir, module.last_step.rollouts, "sampled_token", None, 1)
    torch.testing.assert_close(weights(module), expected, rtol=1e-4, atol=2e-6)
    assert module.step_metrics["distillation/loss"] == pytest.approx(mean, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip", [1.01, 100.0])
def test_a_second_step_weighs_tokens_by_how_much_likelier_they_have_become(
    tiny_model_dir, teacher_dir, tmp_path, kind, clip
):
    taught = instead_of_rewards(teacher_dir, divergence=kind, is_clip=clip)
    module = fit(tiny_model_dir, tmp_path, num_iterations=2, **taught)
    rollouts = module.last_step.rollouts
    _, expected = trained(tiny_model_dir, teacher_dir, rollouts, kind, clip, 2)
    torch.testing.assert_close(weights(module), expected, rtol=1e-4, atol=5e-6)  # two steps in float32
    _, without = trained(tiny_model_dir, teacher_dir, rollouts, kind, None, 2)
    assert max(float((without[name] - expected[name]).abs().max()) for name in expected) > 1e-5


def test_beside_a_completion_that_nobody_teaches_others_learn_from_their_tokens(tiny_model_dir, tmp_path):
    told = "{prompt} Solved: {successful_attempt} Again: "
    taught = Distillation("self", divergence="sampled_token", teacher_prompt=told, success_reward_threshold=0.1)
    module = fit(tiny_model_dir, tmp_path, distillation=taught, reward_weights=[0.0])
    assert 0 < module.step_metrics["distillation/taught"] < 1
    assert abs(module.step_metrics["distillation/divergence"]) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"divergence": "sampled_token", "top_k": 5}, "top_k=5 has no effect on divergence=sampled_token"),
        ({"is_clip": 0.0}, "is_clip=0.0 leaves no loss"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Distillation(**{"teacher": "some/teacher", **settings})


def test_weights_of_older_tokens_are_refused_where_there_are_none(tiny_model_dir, teacher_dir, tmp_path):
    with pytest.raises(ValueError, match=r"is_clip=2.0 has no effect: with one optimizer step"):
        fit(tiny_model_dir, tmp_path, **instead_of_rewards(teacher_dir, is_clip=2.0))
    make_module(tiny_model_dir, num_minibatches=2, **instead_of_rewards(teacher_dir, is_clip=2.0))
