"""Preferences from rows to a step: which tokens, which reference, what a checkpoint keeps."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import train_stage, weights, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_lightning import DPOModule, GRPODataModule
from grpo_lightning.policy.reference import BaseReference, FrozenReference
from grpo_lightning.training.precomputed_logps import NoLogpError, PrecomputedLogps, UnknownCompletionError
from grpo_lightning.training.preference_passes import OtherReferenceError, plan_examples

ROWS = [
    {"prompt": "0" * (i % 3) + f"{i}+{i}=", "chosen": f"{2 * i}" * (1 + i % 2), "rejected": f"<answer>{i}</answer>"}
    for i in range(6)
]
LABELLED = [
    {"prompt": row["prompt"], "completion": row[kind], "label": kind == "chosen"}
    for row in ROWS
    for kind in ("chosen", "rejected")
]

train = partial(train_stage, DPOModule, "dpo", ROWS)


def sums_of_logprobs(model, tokenizer, rows: list[dict], kind: str) -> torch.Tensor:
    """Of each completion and its end-of-sequence token, one sequence at a time."""
    sums = []
    for row in rows:
        prompt, completion = tokenizer(row["prompt"]).input_ids, tokenizer(row[kind]).input_ids
        completion = [*completion, tokenizer.eos_token_id]
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        sums.append(logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None]).sum())
    return torch.stack(sums)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_tokens_per_microbatch": 40},
        {"microbatch_layout": "padded", "max_tokens_per_microbatch": 80},
        {"reference_free": True},
    ],
)
def test_a_step_descends_the_mean_loss_of_its_pairs(tiny_model_dir, tmp_path, settings):
    module = train(tiny_model_dir, tmp_path, 1, beta=0.3, **settings)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_model_dir),
        AutoTokenizer.from_pretrained(tiny_model_dir),
    )
    chosen, rejected = (sums_of_logprobs(model, tokenizer, ROWS[:3], kind) for kind in ("chosen", "rejected"))
    reference = 0.0 if settings.get("reference_free") else (chosen - rejected).detach()
    loss = -torch.nn.functional.logsigmoid(0.3 * (chosen - rejected - reference)).mean()
    loss.backward()
    expected = {name: (p - 0.1 * p.grad).detach() for name, p in model.named_parameters()}
    torch.testing.assert_close(weights(module), expected, rtol=1e-4, atol=2e-6)
    metrics = module.step_metrics
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert metrics["logps/chosen"] == pytest.approx(chosen.mean().item(), rel=1e-4)
    assert metrics["logps/rejected"] == pytest.approx(rejected.mean().item(), rel=1e-4)
    assert metrics["rewards/margins"] == pytest.approx(0.3 * (chosen - rejected - reference).mean().item(), abs=1e-3)


def test_the_prompt_of_a_pair_is_computed_once(tiny_model_dir, tmp_path):
    module = DPOModule(model_name_or_path=str(tiny_model_dir))
    module.configure_model()
    data = GRPODataModule(dataset=write_rows(tmp_path / "rows.jsonl", ROWS), converter="dpo", batch_size=3)
    data.tokenizer = module.policy.tokenizer
    data.setup("fit")
    read = module.preferences(data.train_prompts.batch([0, 1, 2]))
    module.passes.max_tokens = 40
    passes = plan_examples(module.passes, read)
    assert len(passes) > 1
    prompts, completions = read.rollouts.prompt_lengths, read.rollouts.completion_lengths
    for rows in passes:
        assert rows.view(-1, 2)[:, 0].remainder(2).eq(0).all() and rows.view(-1, 2).diff().eq(1).all()
        pairs = rows[0::2] // 2
        expected = int(prompts[pairs].sum() + completions[rows].sum())
        assert module.passes.scorer.count_tokens(read.rollouts, rows) == expected


def test_the_reference_is_a_frozen_copy_or_the_adapter_off_or_nothing(tiny_model_dir, tmp_path):
    full = train(tiny_model_dir, tmp_path).preference_passes.reference_passes.reference
    assert isinstance(full, FrozenReference)
    lora = train(tiny_model_dir, tmp_path, finetuning_type="lora").preference_passes.reference_passes
    assert isinstance(lora.reference, BaseReference) and lora.scorer is lora.passes.scorer
    assert train(tiny_model_dir, tmp_path, loss_type="simpo").preference_passes.reference_passes is None


@pytest.mark.parametrize("finetuning", ["full", "lora", "qlora"])
def test_precomputed_numbers_train_as_the_reference_does(tiny_model_dir, tmp_path, finetuning):
    settings = {"finetuning_type": finetuning, "beta": 0.5}
    if (
        finetuning == "qlora"
    ):  # in bfloat16, where some processors compute a row otherwise beside others: all in one pass
        settings["data"] = {"batch_size": len(ROWS)}
    with_model = train(tiny_model_dir, tmp_path, 4, **settings)
    with_numbers = train(tiny_model_dir, tmp_path, 4, precompute_ref_log_probs=True, **settings)
    assert with_numbers.preference_passes.reference_passes is None
    assert len(with_numbers.preference_passes.precomputed.table) == 12
    torch.testing.assert_close(weights(with_numbers), weights(with_model), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"finetuning_type": "lora", "lora_dropout": 0.1},
        {"precompute_ref_log_probs": True, "finetuning_type": "qlora"},
        {"sync_ref_model": True, "ref_model_sync_steps": 2},
        {"loss_type": "kto"},
    ],
)
def test_a_run_learns_and_resumes_bit_for_bit(tiny_model_dir, tmp_path, settings):
    checkpoint = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=3)
    settings = settings | {"optimizer": lambda p: torch.optim.AdamW(p, lr=3e-3)}
    kept = {"trainer": {"callbacks": [checkpoint], "enable_checkpointing": True}}
    whole = train(tiny_model_dir, tmp_path, 6, **settings, **kept)
    assert whole.step_metrics["rewards/margins"] > 0.1
    again = {"trainer": {"callbacks": [copy.copy(checkpoint)], "enable_checkpointing": True}}
    resumed = train(tiny_model_dir, tmp_path, 6, resume_from=str(tmp_path / "step=3.ckpt"), **settings, **again)
    assert resumed.steps_done == 6
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)
    names = ("loss", "rewards/chosen", "logps/rejected")
    assert [resumed.step_metrics[name] for name in names] == [whole.step_metrics[name] for name in names]


def test_a_resumed_run_with_other_rows_says_that_their_reference_is_gone(tiny_model_dir, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    kept = {"trainer": {"callbacks": [checkpoint], "enable_checkpointing": True}, "precompute_ref_log_probs": True}
    train(tiny_model_dir, tmp_path, 1, **kept)
    others = [{**row, "chosen": row["chosen"] + "0"} for row in ROWS]
    with pytest.raises(
        UnknownCompletionError, match=r"precompute_ref_log_probs=true: a completion of the data was not"
    ):
        train(tiny_model_dir, tmp_path, 2, others, resume_from=str(tmp_path / "step=1.ckpt"), **kept)


@pytest.mark.parametrize(
    ("before", "after", "missing"),
    [
        ({}, {"precompute_ref_log_probs": True}, "precomputed_logps"),
        ({"precompute_ref_log_probs": True}, {}, "reference"),
        ({"loss_type": "simpo"}, {}, "reference"),
    ],
)
def test_a_checkpoint_of_a_run_with_another_reference_is_refused(tiny_model_dir, tmp_path, before, after, missing):
    checkpoint = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    train(tiny_model_dir, tmp_path, 1, trainer={"callbacks": [checkpoint], "enable_checkpointing": True}, **before)
    with pytest.raises(OtherReferenceError, match=f"is of a run without {missing}: its settings of the reference"):
        train(tiny_model_dir, tmp_path, 2, resume_from=str(tmp_path / "step=1.ckpt"), **after)


def test_numbers_that_are_none_are_refused_when_they_are_computed_and_when_they_are_restored(tiny_model_dir, tmp_path):
    broken = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    broken.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    for each in (broken, AutoTokenizer.from_pretrained(tiny_model_dir)):
        each.save_pretrained(tmp_path / "broken")
    with pytest.raises(
        NoLogpError, match=r"12 of 12 completions have no finite logprob under the reference, the first w"
    ):
        train(tmp_path / "broken", tmp_path, 1, precompute_ref_log_probs=True)
    with pytest.raises(NoLogpError, match="precomputed_logps hold NaN or infinity"):
        PrecomputedLogps().load_state_dict({"keys": torch.tensor([1]), "logps": torch.tensor([float("nan")])})


def test_held_out_pairs_are_compared_under_policy_and_reference(tiny_model_dir, tmp_path):
    held_out = write_rows(tmp_path / "held_out.jsonl", ROWS[3:])
    settings = {
        "optimizer": lambda p: torch.optim.AdamW(p, lr=3e-3),
        "data": {"eval_dataset": held_out, "batch_size": 2},
    }
    logged: dict[str, float] = {}
    trainer = {"val_check_interval": 3, "check_val_every_n_epoch": None}
    module = train(tiny_model_dir, tmp_path, 3, trainer=trainer, **settings)
    logged = {name: float(value) for name, value in module.trainer.callback_metrics.items()}
    tokenizer = module.policy.tokenizer
    with torch.no_grad():
        start, end = AutoModelForCausalLM.from_pretrained(tiny_model_dir), module.policy.model.eval()
        ratios = {
            kind: sums_of_logprobs(end, tokenizer, ROWS[3:], kind) - sums_of_logprobs(start, tokenizer, ROWS[3:], kind)
            for kind in ("chosen", "rejected")
        }
    margins = 0.1 * (ratios["chosen"] - ratios["rejected"])
    assert logged["val/rewards/margins"] == pytest.approx(margins.mean().item(), rel=1e-3, abs=1e-4)
    assert logged["val/rewards/accuracies"] == pytest.approx((margins > 0).float().mean().item())
    assert logged["val/loss"] == pytest.approx(-torch.nn.functional.logsigmoid(margins).mean().item(), rel=1e-4)


def test_kto_takes_labelled_completions_and_pairs_alike(tiny_model_dir, tmp_path):
    settings = {"loss_type": "apo_zero_unpaired", "beta": 0.5}
    of_pairs = train(tiny_model_dir, tmp_path, 1, ROWS, **settings)
    of_labels = train(tiny_model_dir, tmp_path, 1, LABELLED, {"converter": "kto", "batch_size": 6}, **settings)
    torch.testing.assert_close(weights(of_labels), weights(of_pairs), rtol=1e-4, atol=1e-6)
    assert of_labels.step_metrics["loss"] == pytest.approx(of_pairs.step_metrics["loss"])


def test_the_completion_that_kto_compares_with_answers_another_prompt(tiny_model_dir, tmp_path):
    module = DPOModule(model_name_or_path=str(tiny_model_dir), loss_type="kto")
    module.configure_model()  # whose generation config says what ends a completion
    for rows, converter, shift in ((ROWS, "dpo", 2), (LABELLED, "kto", 1)):
        data = GRPODataModule(dataset=write_rows(tmp_path / "rows.jsonl", rows), converter=converter, batch_size=4)
        data.tokenizer = module.policy.tokenizer
        data.setup("fit")
        read = module.preferences(data.train_prompts.batch(list(range(4))))
        given, shifted = read.rollouts.completions(), read.mismatched(read.last_completions()).completions()
        assert [one.tolist() for one in shifted] == [given[n - shift].tolist() for n in range(len(given))]
        assert torch.equal(read.mismatched(read.last_completions()).group, read.rollouts.group)


@pytest.mark.parametrize(
    ("settings", "data", "message"),
    [
        ({}, {"converter": "kto"}, r"label_key='label' is not a column"),
        (
            {},
            {"converter": "grpo", "converter_args": {"pass_through": ["chosen"]}},
            "needs the columns chosen and rejected",
        ),
        ({"loss_type": "kto"}, {"batch_size": 1}, "data.batch_size=1: model.loss_type='kto' compares each prompt"),
        ({"loss_type": "simpo", "sync_ref_model": True}, {}, "with model.loss_type='simpo' there is none"),
        ({"loss_type": "simpo", "reference_free": True}, {}, "model.reference_free=true has no effect"),
        ({"precompute_ref_log_probs": True, "loss_type": "kto"}, {}, "others in every epoch"),
        (
            {"precompute_ref_log_probs": True, "ref_model_dtype": "bfloat16"},
            {},
            "precompute_ref_log_probs=true needs none",
        ),
        ({"loss_type": "ipo", "label_smoothing": 0.1}, {}, "no effect with model.loss_type='ipo'.*robust"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, {}, "no share of flipped labels"),
        ({"loss_type": "dpo"}, {}, "model.loss_type='dpo' is unknown. Choose one of sigmoid"),
        ({"beta": 0.0}, {}, r"model.beta=0.0 has to be above 0"),
    ],
)
def test_settings_and_rows_that_cannot_work_are_refused(tiny_model_dir, tmp_path, settings, data, message):
    with pytest.raises(ValueError, match=message):
        train(tiny_model_dir, tmp_path, data=data, **settings)


@pytest.mark.parametrize("role", ["dataset", "eval_dataset"])
def test_rows_without_completions_are_refused_before_weights_load(tiny_model_dir, tmp_path, monkeypatch, role):
    monkeypatch.setattr(DPOModule, "configure_model", lambda self: pytest.fail("weights have loaded"))
    other = write_rows(tmp_path / "other.jsonl", [{"prompt": "1+1=", "answer": "2"}] * 3)
    data = {"converter": dict, role: other}
    with pytest.raises(ValueError, match="needs the columns chosen and rejected, and has answer"):
        train(tiny_model_dir, tmp_path, data=data)


def test_a_pair_that_reaches_beyond_the_positions_of_the_model_is_refused(tiny_model_dir, tmp_path):
    rows = [ROWS[0], {**ROWS[1], "rejected": "1" * 520}, ROWS[2]]
    with pytest.raises(
        ValueError, match=r"row 1 has 52\d tokens, prompt and completion.*the 512 positions of the model"
    ):
        train(tiny_model_dir, tmp_path, 1, rows)
    train(tiny_model_dir, tmp_path, 1, rows, max_completion_length=500)


def test_the_command_line_trains_and_exports(tiny_model_dir, tmp_path):
    from grpo_lightning.commands.stage_cli import main

    config = {
        "trainer": {"default_root_dir": str(tmp_path / "run"), "accelerator": "cpu", "devices": 1, "max_steps": 2},
        "model": {
            "model_name_or_path": str(tiny_model_dir),
            "loss_type": "ipo",
            "optimizer": {"class_path": "torch.optim.AdamW"},
        },
        "data": {"dataset": write_rows(tmp_path / "rows.jsonl", ROWS), "batch_size": 3},
    }
    (tmp_path / "dpo.yaml").write_text(yaml.safe_dump(config))
    assert main("dpo", ["--config", str(tmp_path / "dpo.yaml"), "--trainer.enable_progress_bar=false"]) == 0
    assert (tmp_path / "run/hf/last/model.safetensors").is_file()
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()
