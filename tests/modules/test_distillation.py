"""A teacher beside the rewards or in their place: the step's gradient, its passes, what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from lightning.pytorch import Callback
from runs import fit, make_module, weights
from toy_models import build_tokenizer, save_toy_model
from transformers import AutoModelForCausalLM

from grpo_lightning.training.distillation import Distillation


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory):
    return save_toy_model(tmp_path_factory.mktemp("teacher"), seed=5)


def instead_of_rewards(teacher_dir, **settings) -> dict:
    return {"distillation": Distillation(str(teacher_dir), **settings), "reward_weights": [0.0]}


def reverse_kl(student, teacher, rollouts) -> torch.Tensor:
    """(T,) from full logits, one unpadded sequence at a time."""
    rows = []
    for completion, group in zip(rollouts.completions(), rollouts.group.tolist(), strict=True):
        prompt = rollouts.prompts()[group]
        ids, start = torch.cat([prompt, completion])[None], len(prompt) - 1
        p, q = (model(input_ids=ids).logits[0, start:-1].log_softmax(-1) for model in (student, teacher))
        rows.append((p.exp() * (p - q)).sum(-1))
    return torch.cat(rows)


@pytest.mark.parametrize("settings", [{}, {"max_tokens_per_microbatch": 30}, {"microbatch_layout": "padded"}])
def test_a_step_descends_the_mean_divergence_of_the_sampled_tokens(tiny_model_dir, teacher_dir, tmp_path, settings):
    taught = instead_of_rewards(teacher_dir, weight=0.7)
    module = fit(tiny_model_dir, tmp_path, **taught, **settings)
    student, teacher = (AutoModelForCausalLM.from_pretrained(path) for path in (tiny_model_dir, teacher_dir))
    divergence = reverse_kl(student, teacher.requires_grad_(False), module.last_step.rollouts).mean()
    (0.7 * divergence).backward()
    expected = {name: (p - 0.1 * p.grad).detach() for name, p in student.named_parameters()}
    torch.testing.assert_close(weights(module), expected, rtol=1e-4, atol=2e-6)
    assert module.step_metrics["distillation/divergence"] == pytest.approx(divergence.item(), rel=1e-4)
    assert module.step_metrics["loss"] == pytest.approx(0.7 * divergence.item(), rel=1e-3)


def test_beside_rewards_the_gradients_add_up(tiny_model_dir, teacher_dir, tmp_path):
    changes = []
    for settings in (
        {},
        instead_of_rewards(teacher_dir, weight=0.5, divergence="jsd"),
        {"distillation": Distillation(str(teacher_dir), weight=0.5, divergence="jsd")},
    ):
        module = fit(tiny_model_dir, tmp_path, **settings)
        start = dict(AutoModelForCausalLM.from_pretrained(tiny_model_dir).named_parameters())
        changes.append({name: value - start[name].detach() for name, value in weights(module).items()})
    rewarded, taught, both = changes
    total = {name: rewarded[name] + taught[name] for name in both}
    torch.testing.assert_close(both, total, rtol=1e-3, atol=2e-6)


def test_the_teacher_computes_each_prompt_once_per_group_and_no_other_passes(tiny_model_dir, teacher_dir, tmp_path):
    seen = []

    def watch(module):
        start = module.teacher.start

        def started(device):
            start(device)
            decoder = module.teacher.scorer.model.get_decoder()
            decoder.register_forward_pre_hook(
                lambda _, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
            )
            module.teacher.scorer.check(device)
            seen.clear()  # what the check has computed

        module.teacher.start = started

    module = fit(tiny_model_dir, tmp_path, on_module=watch, **instead_of_rewards(teacher_dir))
    rollouts = module.last_step.rollouts
    assert seen == [int(rollouts.prompt_lengths.sum() + rollouts.completion_lengths.sum())]


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl"])
def test_the_policy_becomes_the_teacher(tiny_model_dir, teacher_dir, tmp_path, kind):
    settings = instead_of_rewards(teacher_dir, divergence=kind, top_k=20 if kind == "forward_kl" else None)
    numbers = []

    class Note(Callback):
        def on_train_batch_end(self, trainer, module, *args):
            numbers.append(module.step_metrics["distillation/divergence"])

    fit(
        tiny_model_dir,
        tmp_path,
        12,
        optimizer=lambda p: torch.optim.AdamW(p, lr=5e-3),
        trainer={"callbacks": [Note()]},
        **settings,
    )
    assert numbers[-1] < 0.7 * numbers[0]


def test_a_teacher_with_another_tokenizer_is_refused(tiny_model_dir, tmp_path):
    other = save_toy_model(tmp_path / "other")
    build_tokenizer(300).save_pretrained(other)
    with pytest.raises(ValueError, match="has another tokenizer than the policy"):
        make_module(tiny_model_dir, distillation=Distillation(str(other)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 0.0}, "weight=0.0 teaches nothing"),
        ({"divergence": "kl"}, "divergence='kl' is unknown"),
        ({"top_k": 0}, "top_k=0 tells no token apart"),
        ({"dtype": "int8"}, "dtype='int8' is unknown"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Distillation("teacher", **settings)


def test_a_config_names_the_teacher(tiny_model_dir, teacher_dir, tmp_path):
    from parsed_config import parse
    from runs import write_prompts

    (tmp_path / "run.yaml").write_text(
        json.dumps(
            {
                "model": {
                    "model_name_or_path": str(tiny_model_dir),
                    "rewards": "length",
                    "distillation": {"teacher": str(teacher_dir), "divergence": "jsd"},
                },
                "data": {"dataset": str(write_prompts(tmp_path / "rows.jsonl"))},
            }
        )
    )
    config = parse(tmp_path / "run.yaml")
    assert config.model.distillation.divergence == "jsd" and config.model.distillation.weight == 1.0
