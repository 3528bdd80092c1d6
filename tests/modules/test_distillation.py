"""A teacher beside the rewards or in their place: the step's gradient, its passes, what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import fit, make_data, make_module, make_trainer, weights
from toy_models import build_tokenizer, save_toy_model
from transformers import AutoModelForCausalLM

from grpo_lightning.errors import RefusedRowError
from grpo_lightning.numerics import logprob_formulas
from grpo_lightning.training.distillation import Distillation, TeacherRefusedError
from grpo_lightning.training.distillation.lessons import filled, lessons_of
from grpo_lightning.types import PromptBatch, Rollouts


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


def test_a_teacher_on_a_named_device_in_a_named_dtype_teaches_from_there(tiny_model_dir, teacher_dir, tmp_path):
    by_default = fit(tiny_model_dir, tmp_path, **instead_of_rewards(teacher_dir))
    named = fit(tiny_model_dir, tmp_path, **instead_of_rewards(teacher_dir, device="cpu", dtype="bfloat16"))
    (teacher,) = named.teachers.teachers
    assert {(p.device.type, p.dtype) for p in teacher.scorer.model.parameters()} == {("cpu", torch.bfloat16)}
    torch.testing.assert_close(weights(named), weights(by_default), rtol=0, atol=5e-3)  # of a teacher that is rounded


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
        (teacher,) = module.teachers.teachers
        start = teacher.start

        def started():
            start()
            decoder = teacher.scorer.model.get_decoder()
            decoder.register_forward_pre_hook(
                lambda _, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
            )
            teacher.scorer.check()
            seen.clear()  # what the check has computed

        teacher.start = started

    module = fit(tiny_model_dir, tmp_path, on_module=watch, **instead_of_rewards(teacher_dir))
    rollouts = module.last_step.rollouts
    assert seen == [int(rollouts.prompt_lengths.sum() + rollouts.completion_lengths.sum())]


@pytest.mark.parametrize(("reward_weights", "passes"), [([0.0], 0), ([1.0], 1)])
def test_logprobs_that_nothing_trains_have_no_backward_pass(
    tiny_model_dir, teacher_dir, tmp_path, monkeypatch, reward_weights, passes
):
    seen, gradient = [], logprob_formulas.logit_gradient_
    monkeypatch.setattr(logprob_formulas, "logit_gradient_", lambda *args: seen.append(1) or gradient(*args))
    taught = Distillation(str(teacher_dir), weight=0.5)
    module = fit(tiny_model_dir, tmp_path, distillation=taught, reward_weights=reward_weights)
    assert len(seen) == passes  # the tokens of the step are one chunk
    assert module.step_metrics["entropy"] > 0  # still told


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


def expected_of(model_dir, rollouts, taught) -> tuple[float, dict]:
    """Divergence and weights after one step, where ``taught`` gives the teacher and its prompt for each group."""
    student = AutoModelForCausalLM.from_pretrained(model_dir)
    rows = []
    for completion, group in zip(rollouts.completions(), rollouts.group.tolist(), strict=True):
        teacher, told = taught(group)
        logprobs = []
        for model, prompt in ((student, rollouts.prompts()[group]), (teacher, told)):
            ids = torch.cat([prompt, completion])[None]
            logprobs.append(model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1))
        p, q = logprobs[0], logprobs[1].detach()
        rows.append((p.exp() * (p - q)).sum(-1))
    divergence = torch.cat(rows).mean()
    divergence.backward()
    return divergence.item(), {name: (p - 0.1 * p.grad).detach() for name, p in student.named_parameters()}


WORKED = "{prompt} Hint: {ground_truth}. Answer: "


@pytest.mark.parametrize("teacher", ["self", "reference"])
@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_a_policy_that_is_told_more_teaches_itself(tiny_model_dir, tmp_path, teacher, layout):
    settings = {"distillation": Distillation(teacher, teacher_prompt=WORKED), "reward_weights": [0.0]}
    module = fit(tiny_model_dir, tmp_path, microbatch_layout=layout, **settings)
    record, tokenizer = module.last_step, module.policy.tokenizer
    same = AutoModelForCausalLM.from_pretrained(tiny_model_dir)

    def taught(group):
        truth = record.batch.columns["ground_truth"][group]
        text = f"{record.batch.prompts[group]} Hint: {truth}. Answer: "
        return same, torch.tensor(tokenizer(text).input_ids)

    divergence, expected = expected_of(tiny_model_dir, record.rollouts, taught)
    assert divergence > 0.01
    assert module.step_metrics["distillation/divergence"] == pytest.approx(divergence, rel=1e-3)
    torch.testing.assert_close(weights(module), expected, rtol=1e-4, atol=2e-6)


def test_in_mixed_precision_teaching_itself_trains_every_weight(tiny_model_dir, tmp_path):
    """Weights that autocast has cast for the teacher's passes, without gradient, must not serve the policy's."""
    settings = {"distillation": Distillation("self", teacher_prompt=WORKED), "reward_weights": [0.0]}
    moved = []
    for precision in ("32-true", "bf16-mixed"):
        module = fit(tiny_model_dir, tmp_path, trainer={"precision": precision}, **settings)
        start = dict(AutoModelForCausalLM.from_pretrained(tiny_model_dir).named_parameters())
        moved.append({name: float((value - start[name].detach()).norm()) for name, value in weights(module).items()})
    ratios = [moved[1][name] / moved[0][name] for name in moved[0]]  # other tokens are sampled, but as many
    assert min(ratios) > 0.3 and max(ratios) < 3.0


def test_under_lora_the_reference_that_teaches_is_the_adapter_off(tiny_model_dir, tmp_path):
    taught = {"distillation": Distillation("reference", teacher_prompt=WORKED), "reward_weights": [0.0]}
    optimizer = {"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2)}
    module = fit(tiny_model_dir, tmp_path, 4, finetuning_type="lora", lora_dropout=0.1, **taught, **optimizer)
    assert module.reference_passes.reference.model is module.policy.model
    record, tokenizer, model = module.last_step, module.policy.tokenizer, module.policy.model.eval()
    told = [
        torch.tensor(tokenizer(f"{prompt} Hint: {truth}. Answer: ").input_ids)
        for prompt, truth in zip(record.batch.prompts, record.batch.columns["ground_truth"], strict=True)
    ]
    rows, experience = torch.arange(record.rollouts.num_completions), module.experience(record.rollouts)
    lessons = module.teachers.taught(experience, record.batch, record.rewards).lessons
    (teacher,) = module.teachers.teachers
    side = teacher.side(lessons, rows)
    found = side.logits(slice(None), 1.0, side.head.vocab_size).log_softmax(-1)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        expected = []
        for completion, group in zip(record.rollouts.completions(), record.rollouts.group.tolist(), strict=True):
            ids, start = torch.cat([told[group], completion])[None], len(told[group]) - 1
            expected.append(base(input_ids=ids).logits[0, start:-1].log_softmax(-1))
            assert not torch.allclose(expected[-1], model(input_ids=ids).logits[0, start:-1].log_softmax(-1), atol=1e-3)
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-3, atol=1e-4)


def test_a_column_chooses_the_teacher_of_each_prompt(tiny_model_dir, teacher_dir, tmp_path):
    other_dir = save_toy_model(tmp_path / "other", seed=9)
    rows = [{"prompt": f"{i}+{i}=", "ground_truth": str(2 * i), "subject": "ab"[i % 2]} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    distillation = Distillation({"a": str(teacher_dir), "b": str(other_dir)}, teacher_column="subject")
    data = {"dataset": str(tmp_path / "rows.jsonl")}
    module = fit(tiny_model_dir, tmp_path, distillation=distillation, reward_weights=[0.0], data=data)
    record = module.last_step
    models = {name: AutoModelForCausalLM.from_pretrained(path) for name, path in (("a", teacher_dir), ("b", other_dir))}
    subjects, prompts = record.batch.columns["subject"], record.rollouts.prompts()
    assert set(subjects) == {"a", "b"}
    divergence, expected = expected_of(
        tiny_model_dir, record.rollouts, lambda group: (models[subjects[group]], prompts[group])
    )
    assert module.step_metrics["distillation/divergence"] == pytest.approx(divergence, rel=1e-4)
    torch.testing.assert_close(weights(module), expected, rtol=1e-4, atol=2e-6)


def test_a_row_without_what_the_teacher_is_told_keeps_its_prompt():
    batch = PromptBatch(["1+1=", "2+2="], [[5, 6], [7, 8]], [0, 1], {"hint": ["small {x}", None]})
    rollouts = Rollouts.from_lists([[5, 6], [7, 8]], [[9], [10]], [[0.0], [0.0]], [False] * 2, [0, 1])
    tokenizer = build_tokenizer()
    settings = Distillation("self", teacher_prompt="{prompt} \\boxed{} {hint}")
    lessons = lessons_of(settings, batch, rollouts, tokenizer, {})
    first, second = lessons.rollouts.prompts()
    assert tokenizer.decode(first) == "1+1= \\boxed{} small {x}" and second.tolist() == [7, 8]
    assert lessons.rollouts.completion_ids.tolist() == [9, 10]


def test_a_message_of_parts_is_read_as_its_text():
    asked = [{"role": "user", "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "2="}]}]
    assert filled("{prompt} ({worked})", asked, {"worked": "1+1=2"})[0]["content"] == "2+2= (1+1=2)"


def test_a_teacher_that_would_read_nothing_is_refused_with_its_row():
    batch = PromptBatch(["1+1="], [[5, 6]], [7], {"hint": [""]})
    rollouts = Rollouts.from_lists([[5, 6]], [[9]], [[0.0]], [False], [0])
    with pytest.raises(RefusedRowError, match=r"teacher_prompt='\{hint\}' leaves row 7 without a token"):
        lessons_of(Distillation("self", teacher_prompt="{hint}"), batch, rollouts, build_tokenizer(), {})


def test_a_row_that_reaches_beyond_the_positions_of_its_teacher_is_refused(tiny_model_dir, tmp_path):
    told = Distillation("self", teacher_prompt="{prompt} {ground_truth} " + "so " * 400)
    with pytest.raises(
        RefusedRowError, match=r"row \d+ has \d+ tokens for its teacher, 'self'.*beyond the \d+ positions"
    ):
        fit(tiny_model_dir, tmp_path, distillation=told)


def test_a_teacher_with_fewer_positions_than_the_policy_is_refused_at_the_first_row_beyond(tiny_model_dir, tmp_path):
    small = save_toy_model(tmp_path / "small", max_position_embeddings=6)
    with pytest.raises(RefusedRowError, match=r"small', which with a completion .* beyond the 6 positions"):
        fit(tiny_model_dir, tmp_path, distillation=Distillation(str(small)))


def test_a_teacher_that_answers_with_nan_is_named_before_the_first_step(tiny_model_dir, teacher_dir, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(teacher_dir)
    model.model.norm.weight.data[0] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    build_tokenizer().save_pretrained(tmp_path / "broken")
    with pytest.raises(TeacherRefusedError, match=r"teacher='.*broken' answers with NaN or infinity, held in float32"):
        fit(tiny_model_dir, tmp_path, **instead_of_rewards(tmp_path / "broken"))


SYNCED = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.3, "reward_weights": [0.0]}
LORA = {"finetuning_type": "lora", "lora_dropout": 0.1}


@pytest.mark.parametrize("kind", ["loaded", "reference", "qlora"])
def test_a_distilled_run_resumes_bit_for_bit(tiny_model_dir, teacher_dir, tmp_path, kind):
    checkpoint = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=2)
    own = {"distillation": Distillation("reference", teacher_prompt=WORKED)} | SYNCED
    shown = Distillation("self", teacher_prompt="{prompt}{successful_attempt}", success_reward_threshold=0.05)
    settings = {
        "loaded": instead_of_rewards(teacher_dir),
        "reference": own | LORA,  # which follows the policy
        "qlora": LORA | {"finetuning_type": "qlora", "distillation": shown},
    }[kind] | {"optimizer": lambda p: torch.optim.AdamW(p, lr=3e-3)}
    kept = {"trainer": {"callbacks": [checkpoint], "enable_checkpointing": True}}
    whole = fit(tiny_model_dir, tmp_path, 4, **settings, **kept)
    resumed = make_module(tiny_model_dir, **settings)
    trainer = make_trainer(tmp_path, 4)
    trainer.fit(resumed, datamodule=make_data(tmp_path), ckpt_path=str(tmp_path / "step=2.ckpt"), weights_only=False)
    assert resumed.steps_done == 4
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)
    assert resumed.step_metrics["distillation/divergence"] == whole.step_metrics["distillation/divergence"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": "self", "teacher_prompt": "{prompt} {solution}"}, "names the column 'solution'.*ground_truth"),
        ({"teacher": {"a": "self"}, "teacher_column": "kind", "teacher_prompt": WORKED}, "names the column 'kind'"),
        (
            {"teacher": {"a": "self"}, "teacher_column": "ground_truth", "teacher_prompt": WORKED},
            "in the column ground_truth, and model.distillation.teacher has no such name. There are a",
        ),
    ],
)
def test_data_without_what_teachers_need_is_refused(tiny_model_dir, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        fit(tiny_model_dir, tmp_path, distillation=Distillation(**settings))


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
        ({"teacher": "self"}, "'self' knows nothing that the policy does not"),
        ({"teacher": "self", "teacher_prompt": "Be good. {prompt}"}, "names no column"),
        ({"teacher": {"a": "x"}}, "does not say which teaches what"),
        ({"teacher_column": "kind"}, "of one teacher there is no choice"),
        (
            {"teacher": "http://host:80", "divergence": "forward_kl"},
            "top_k=null: a server tells its likeliest .* forward_kl",
        ),
        ({"teacher": "https://host:80", "top_k": 5}, "is no address of a vLLM server. Write http://host:port"),
        ({"teacher": "http://host", "top_k": 5}, "is no address of a vLLM server"),
        ({"teacher": "http://host:80", "top_k": 5, "dtype": "float32"}, "are of teachers that this run loads"),
        ({"device": "meta"}, "device='meta' holds shapes without numbers"),
        ({"device": "gpu0"}, "device='gpu0' is no device. Write cuda:1"),
        ({"device": "cuda:99"}, r"device='cuda:99' is not there: this process sees \d+ CUDA devices"),
        ({"timeout": 5.0}, "are of teachers on servers"),
        (
            {"teacher": "reference", "teacher_prompt": "{hint}", "device": "cpu"},
            "are of teachers that this run loads",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Distillation(**({"teacher": "teacher"} | settings))


def test_a_server_at_another_temperature_than_its_logprobs_have_is_refused(tiny_model_dir):
    with pytest.raises(ValueError, match=r"model.temperature=0.7 .* a server tells logprobs at temperature 1"):
        make_module(tiny_model_dir, temperature=0.7, distillation=Distillation("http://127.0.0.1:1", top_k=5))


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
