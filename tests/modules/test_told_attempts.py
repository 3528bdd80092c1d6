"""A policy that is told what its group has solved, or what a reward said, is the teacher of its own completions (SDPO)."""

from __future__ import annotations

import pytest
import torch
from runs import fit, make_module, share_of_digits, weights
from toy_models import build_tokenizer
from transformers import AutoModelForCausalLM
from trl.experimental.sdpo.loss_utils import compute_full_logit_self_distillation_loss

from grpo_lightning.algorithm.lessons import NOBODY
from grpo_lightning.training.distillation import Distillation
from grpo_lightning.training.distillation.attempts import first_success_of_another
from grpo_lightning.training.distillation.lessons import lessons_of
from grpo_lightning.types import PromptBatch, Rollouts

SHOWN = "{prompt} Solved: {successful_attempt} Again: "
SOLVED = 0.1
"""Share of digits; about half of the toy's completions of 8 tokens have it."""


def complains(completions, log_extra, **columns):
    """0 to 1, with a word on what lacks digits."""
    values = share_of_digits(completions)
    log_extra("verdict", [None if value >= SOLVED else f"only {value:.2f}" for value in values])
    return values


def told_texts(module, kind: str) -> list[str | None]:
    """What each completion's teacher is told, found one completion at a time."""
    record, tokenizer = module.last_step, module.policy.tokenizer
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in record.rollouts.completions()]
    values, group = share_of_digits(texts), record.rollouts.group.tolist()
    if kind == "feedback":
        return [None if value >= SOLVED else f"only {value:.2f}" for value in values]
    solved = [n for n, value in enumerate(values) if value >= SOLVED]
    return [next((texts[m] for m in solved if m != n and group[m] == group[n]), None) for n in range(len(texts))]


def expected_of(model_dir, module, prompts: list[str | None]) -> tuple[float, float, dict]:
    """Mean over taught tokens, over all tokens, and the weights after a step down the second; ``prompts`` by completion."""
    student, teacher = (AutoModelForCausalLM.from_pretrained(model_dir) for _ in range(2))
    rollouts, tokenizer = module.last_step.rollouts, module.policy.tokenizer
    rows = []
    for n, (completion, group) in enumerate(zip(rollouts.completions(), rollouts.group.tolist(), strict=True)):
        if (told := prompts[n]) is None:
            continue
        logits = []
        for model, prompt in ((student, rollouts.prompts()[group]), (teacher, torch.tensor(tokenizer(told).input_ids))):
            ids = torch.cat([prompt, completion])[None]
            logits.append(model(input_ids=ids).logits[0, len(prompt) - 1 : -1])
        rows.append(compute_full_logit_self_distillation_loss(logits[0], logits[1].detach(), distillation_alpha=1.0))
    divergence = torch.cat(rows)
    over_all = divergence.sum() / rollouts.completion_ids.numel()
    over_all.backward()
    moved = {name: (p - 0.1 * p.grad).detach() for name, p in student.named_parameters()}
    return divergence.mean().item(), over_all.item(), moved


@pytest.mark.parametrize("kind", ["successful_attempt", "feedback"])
@pytest.mark.parametrize("teacher", ["self", "reference"])
@pytest.mark.parametrize("layout", [{}, {"microbatch_layout": "padded", "max_tokens_per_microbatch": 60}])
def test_completions_learn_from_the_policy_that_is_told_of_their_step(tiny_model_dir, tmp_path, kind, teacher, layout):
    template = SHOWN.replace("successful_attempt", kind)
    own = {"success_reward_threshold": SOLVED} if kind == "successful_attempt" else {"feedback_column": "verdict"}
    settings = {"distillation": Distillation(teacher, teacher_prompt=template, **own), "reward_weights": [0.0]}
    module = fit(tiny_model_dir, tmp_path, rewards=[complains], **settings, **layout)
    record, told = module.last_step, told_texts(module, kind)
    prompts = [record.batch.prompts[group] for group in record.rollouts.group.tolist()]
    read = [
        None if text is None else f"{prompt} Solved: {text} Again: " for prompt, text in zip(prompts, told, strict=True)
    ]
    assert 2 <= sum(text is not None for text in told) < len(told)
    taught, loss, moved = expected_of(tiny_model_dir, module, read)
    assert taught > 0.01
    assert module.step_metrics["distillation/divergence"] == pytest.approx(taught, rel=1e-3)
    assert module.step_metrics["distillation/loss"] == pytest.approx(loss, rel=1e-3)
    assert module.step_metrics["distillation/taught"] == pytest.approx(sum(t is not None for t in told) / len(told))
    torch.testing.assert_close(weights(module), moved, rtol=1e-4, atol=2e-6)


def test_a_step_in_which_nothing_succeeds_changes_nothing(tiny_model_dir, tmp_path):
    taught = Distillation("self", teacher_prompt=SHOWN, success_reward_threshold=2.0)
    module = fit(tiny_model_dir, tmp_path, distillation=taught, reward_weights=[0.0])
    start = dict(AutoModelForCausalLM.from_pretrained(tiny_model_dir).named_parameters())
    torch.testing.assert_close(weights(module), {name: p.detach() for name, p in start.items()}, rtol=0, atol=0)
    assert module.step_metrics["distillation/taught"] == 0.0
    assert "distillation/divergence" not in module.step_metrics


def test_a_completion_that_would_be_too_long_to_read_has_no_teacher(tiny_model_dir, tmp_path):
    taught = Distillation("self", teacher_prompt=SHOWN + "so " * 400, success_reward_threshold=0.0)
    module = fit(tiny_model_dir, tmp_path, distillation=taught, reward_weights=[0.0])
    assert module.step_metrics["distillation/taught"] == 0.0


def test_a_completion_is_shown_the_first_other_success_of_its_group():
    group = torch.tensor([0, 0, 0, 1, 1, 2])
    reached = torch.tensor([False, True, True, True, False, True])
    assert first_success_of_another(group, reached).tolist() == [1, 2, 1, -1, 3, -1]
    assert first_success_of_another(group[:0], reached[:0]).tolist() == []


def test_what_is_told_of_the_step_and_of_the_data_go_together():
    tokenizer = build_tokenizer()
    batch = PromptBatch(["1+1=", "2+2="], [[5, 6], [7, 8]], [0, 1], {"hint": ["small", None]})
    rollouts = Rollouts.from_lists([[5, 6], [7, 8]], [[9]] * 4, [[0.0]] * 4, [False] * 4, [0, 0, 0, 1])
    settings = Distillation("self", teacher_prompt="{hint}: {prompt}{successful_attempt}")
    attempts = {"successful_attempt": ["2", None, "2", "4"]}
    lessons = lessons_of(settings, batch, rollouts, tokenizer, {}, attempts)
    prompts = [tokenizer.decode(ids) for ids in lessons.rollouts.prompts()]
    assert [prompts[g] for g in lessons.rollouts.group[[0, 2]].tolist()] == ["small: 1+1=2"] * 2
    assert lessons.teacher_of(torch.arange(4)).tolist() == [0, NOBODY, 0, NOBODY]
    assert len(prompts) == 3  # completions that are told the same share what is read


def test_a_feedback_that_no_reward_gives_is_said(tiny_model_dir, tmp_path, caplog):
    taught = Distillation("self", teacher_prompt="{prompt} {feedback}", feedback_column="verdit")
    module = fit(tiny_model_dir, tmp_path, rewards=[complains], distillation=taught)
    assert "feedback_column='verdit' was logged by no reward" in caplog.text and "verdict" in caplog.text
    assert module.step_metrics["distillation/taught"] == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_prompt": "{prompt} {hint}", "success_reward_threshold": 0.5}, "threshold=0.5 has no effect"),
        ({"teacher_prompt": SHOWN, "feedback_column": "verdict"}, "feedback_column='verdict' has no effect"),
        ({"success_reward_threshold": 0.5}, "threshold=0.5 has no effect"),
    ],
)
def test_settings_without_their_place_in_the_prompt_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Distillation(**({"teacher": "teacher"} | settings))


def test_success_is_what_a_reward_of_the_step_finds(tiny_model_dir):
    settings = {"eval_rewards": "accuracy", "success_reward": "accuracy"}
    with pytest.raises(ValueError, match=r"success_reward='accuracy'.*scores held-out prompts alone.*share_of_digits"):
        make_module(tiny_model_dir, distillation=Distillation("self", teacher_prompt=SHOWN), **settings)


def test_a_column_of_the_data_named_as_what_the_step_tells_is_refused(tiny_model_dir, tmp_path):
    rows = '{"prompt": "1+1=", "ground_truth": "2", "successful_attempt": "2"}\n' * 6
    (tmp_path / "rows.jsonl").write_text(rows)
    taught = {"distillation": Distillation("self", teacher_prompt=SHOWN)}
    with pytest.raises(ValueError, match="the data has a column of that name"):
        fit(tiny_model_dir, tmp_path, data={"dataset": str(tmp_path / "rows.jsonl")}, **taught)
