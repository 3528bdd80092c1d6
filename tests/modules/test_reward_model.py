"""Reward models from pairs: TRL's loss and gradient, LoRA, resuming, and use as a reward."""

from __future__ import annotations

import copy
from collections import defaultdict
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import train_stage, weights, write_rows
from toy_models import save_toy_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from grpo_lightning import RewardModelModule, get_reward_function
from grpo_lightning.algorithm.preferences.pairs import bradley_terry_loss
from grpo_lightning.callbacks.export import export
from grpo_lightning.datamodules.written.compared_texts import compared_texts
from grpo_lightning.ordinary_text import OrdinaryText
from grpo_lightning.types import PromptBatch

CHATS = [
    {
        "prompt": [{"role": "user", "content": f"{i} + {i}?"}],
        "chosen": [{"role": "assistant", "content": "so " * (i % 3) + f"{2 * i}"}],
        "rejected": [{"role": "assistant", "content": f"the answer: {i}!"}],
        "margin": 0.1 * i,
    }
    for i in range(6)
]
TEXTS = [{"prompt": f"{i}+{i}=", "chosen": f"{2 * i}", "rejected": f"{2 * i}{i}0"} for i in range(6)]

train = partial(train_stage, RewardModelModule, "dpo", CHATS)


def chat_ids(tokenizer, row: dict, kind: str) -> list[int]:
    return tokenizer.apply_chat_template(row["prompt"] + row[kind], return_dict=True)["input_ids"]


def right_padded(rows: list[list[int]], pad: int) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [pad] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
    }


class OneProcess:
    def gather(self, values: Any) -> Any:
        return values

    gather_for_metrics = gather


@pytest.mark.parametrize("centering", [None, 0.01, 0.5])
@pytest.mark.parametrize("with_margins", [False, True])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_loss_and_gradient_of_every_weight_are_those_of_trl(
    tmp_path, tmp_path_factory, centering, with_margins, layout
):
    reward_trainer = pytest.importorskip("trl.trainer.reward_trainer")
    no_dropout = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    path = save_toy_model(tmp_path / "gpt2", "gpt2", **no_dropout)  # whose norms are float64 in float64
    module = RewardModelModule(
        model_name_or_path=str(path), center_rewards_coefficient=centering, microbatch_layout=layout
    )
    module.configure_model()
    model = module.policy.model.double()
    rows = [row if with_margins else {k: v for k, v in row.items() if k != "margin"} for row in CHATS]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    prompts = [row["prompt"] for row in rows]
    pairs, margins = module.pairs(PromptBatch(prompts, [[0]] * 6, list(range(6)), columns))
    every = torch.arange(12)
    mine = module.losses(module.rewards(pairs, every), margins, every).mean()

    trainer = object.__new__(reward_trainer.RewardTrainer)
    trainer.model, trainer.accelerator = model, OneProcess()
    trainer.args = SimpleNamespace(center_rewards_coefficient=centering)
    trainer._metrics, trainer._total_train_tokens, trainer._tp_size = {"train": defaultdict(list)}, 0, 1
    tokenizer = module.policy.tokenizer
    texts = [chat_ids(tokenizer, row, kind) for kind in ("chosen", "rejected") for row in rows]
    inputs = right_padded(texts, tokenizer.pad_token_id)
    if with_margins:
        inputs["margin"] = margins.double()
        trainer_model = model
        model_call = lambda margin=None, **given: trainer_model(**given)  # noqa: E731 - transformers ignores the margin
    else:
        model_call = model
    theirs = trainer.compute_loss(model_call, inputs)
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (mine, theirs)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-6, atol=1e-10)
    assert sum(float(grad.abs().sum()) for grad in grads[1] if grad is not None) > 0.1


def test_the_loss_of_a_pair_by_hand():
    rewards = torch.tensor([2.0, 1.0, 0.0, 3.0], requires_grad=True)
    loss = bradley_terry_loss(rewards, torch.tensor([1.0, 0.0]), centering=0.1)
    # -log sigmoid(2 - 1 - 1) = log 2 and 0.1 * 9; -log sigmoid(-3) and 0.1 * 9
    torch.testing.assert_close(loss.detach(), torch.tensor([0.693147 + 0.9, 3.048587 + 0.9]))
    loss[0].backward()
    torch.testing.assert_close(rewards.grad, torch.tensor([-0.5 + 0.6, 0.5 + 0.6, 0.0, 0.0]))


@pytest.mark.parametrize("rows", [CHATS, TEXTS])
def test_texts_of_a_pair_share_what_they_begin_with_and_are_those_that_the_reward_reads(tiny_model_dir, tmp_path, rows):
    AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    columns = {name: [row[name] for row in rows] for name in ("chosen", "rejected")}
    batch = PromptBatch([row["prompt"] for row in rows], [[0]] * 6, list(range(6)), columns)
    read = compared_texts(batch, tokenizer, None).rollouts
    reward = get_reward_function("reward_model", model=str(tmp_path), tokenizer=str(tiny_model_dir))
    texts = [row[kind] for row in rows for kind in ("chosen", "rejected")]
    prompts = read.prompts()
    for n, (completion, text) in enumerate(zip(read.completions(), texts, strict=True)):
        expected = reward._tokens(rows[n // 2]["prompt"], text, OrdinaryText(reward.processing_class))["input_ids"]
        assert [*prompts[int(read.group[n])].tolist(), *completion[:-1].tolist()] == expected
    assert read.num_prompts == 6 and int(read.prompt_lengths.min()) >= 3


def test_a_text_that_loses_its_beginning_is_still_a_text(tiny_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    row = {"prompt": "1+1=", "chosen": "22", "rejected": "345"}
    batch = PromptBatch([row["prompt"]], [[0]], [0], {"chosen": [row["chosen"]], "rejected": [row["rejected"]]})
    read = compared_texts(batch, tokenizer, 3).rollouts  # the last token of each answer and what ends a message
    assert [ids.numel() for ids in read.prompts()] == [1, 1] and read.group.tolist() == [0, 1]
    assert tokenizer.decode(read.prompts()[0]) == "2" and tokenizer.decode(read.prompts()[1]) == "5"
    assert read.completion_lengths.tolist() == [3, 3]


@pytest.mark.parametrize("finetuning", [{}, {"finetuning_type": "lora", "lora_dropout": 0.1}])
def test_a_run_learns_to_tell_pairs_apart_and_resumes_bit_for_bit(tiny_model_dir, tmp_path, finetuning):
    checkpoint = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=6)
    settings = finetuning | {"optimizer": lambda p: torch.optim.AdamW(p, lr=3e-3)}
    kept = {"trainer": {"callbacks": [checkpoint], "enable_checkpointing": True}}
    whole = train(tiny_model_dir, tmp_path, 12, **settings, **kept)
    assert whole.step_metrics["accuracy"] == 1.0 and whole.step_metrics["loss"] < 0.4
    assert whole.step_metrics["min_reward"] <= whole.step_metrics["mean_reward"] <= whole.step_metrics["max_reward"]
    again = {"trainer": {"callbacks": [copy.copy(checkpoint)], "enable_checkpointing": True}}
    resumed = train(tiny_model_dir, tmp_path, 12, resume_from=str(tmp_path / "step=6.ckpt"), **settings, **again)
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


@pytest.mark.parametrize("finetuning", ["full", "lora", "qlora"])
def test_the_export_is_the_reward_model_that_the_held_out_accuracy_tells_of(tiny_model_dir, tmp_path, finetuning):
    held_out = write_rows(tmp_path / "held_out.jsonl", CHATS[3:])
    trainer = {"val_check_interval": 4, "check_val_every_n_epoch": None}
    data = {"eval_dataset": held_out, "batch_size": 2}
    settings = {"optimizer": lambda p: torch.optim.AdamW(p, lr=3e-3), "finetuning_type": finetuning}
    module = train(tiny_model_dir, tmp_path, 4, data=data, trainer=trainer, **settings)
    logged = {name: float(value) for name, value in module.trainer.callback_metrics.items()}
    export(module, tmp_path / "reward", forms=["merged"])
    reward = get_reward_function("reward_model", model=str(tmp_path / "reward"), device="cpu")
    prompts = [row["prompt"] for row in CHATS[3:]]
    chosen, rejected = (torch.tensor(reward(prompts, [row[k] for row in CHATS[3:]])) for k in ("chosen", "rejected"))
    assert logged["val/accuracy"] == pytest.approx((chosen > rejected).float().mean().item())
    rounding = 0.02 if finetuning == "qlora" else 1e-3  # hidden states of the 4-bit base are bfloat16
    assert logged["val/margin"] == pytest.approx((chosen - rejected).mean().item(), rel=rounding, abs=1e-5)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", dtype=torch.float32)
    assert loaded.config.num_labels == 1
    continued = RewardModelModule(model_name_or_path=str(tmp_path / "reward"))
    continued.configure_model()
    torch.testing.assert_close(continued.policy.model.score.weight.detach(), loaded.score.weight.detach())


@pytest.mark.parametrize(
    ("settings", "rows", "data", "message"),
    [
        (
            {},
            [{"prompt": "a", "answer": "b"}] * 3,
            {"converter": "grpo"},
            "needs the columns chosen and rejected, and has answer",
        ),
        ({}, [{**row, "margin": "much"} for row in TEXTS], {}, "column margin holds"),
        ({}, [{**row, "margin": float("nan")} for row in TEXTS], {}, "column margin holds .* not a finite number"),
        ({}, [*TEXTS[:5], {**TEXTS[5], "margin": True}], {}, "column margin holds None, and not a finite number"),
        ({}, [{**row, "margin": True} for row in TEXTS], {}, "column margin holds True, and not a finite number"),
        ({}, [{**row, "margin": [0.5]} for row in TEXTS], {}, r"column margin holds \[0.5\], and not a finite number"),
        ({"center_rewards_coefficient": -1.0}, TEXTS, {}, "would drive rewards apart"),
        ({"float32_head": True}, TEXTS, {}, "no effect on a reward model"),
        ({"max_length": 1}, TEXTS, {}, "leaves nothing to compare"),
    ],
)
def test_settings_and_rows_that_cannot_work_are_refused_before_weights_load(
    tiny_model_dir, tmp_path, monkeypatch, settings, rows, data, message
):
    monkeypatch.setattr(RewardModelModule, "configure_model", lambda self: pytest.fail("weights have loaded"))
    with pytest.raises(ValueError, match=message):
        train(tiny_model_dir, tmp_path, rows=rows, data=data, **settings)


def test_the_command_line_trains_and_exports(tiny_model_dir, tmp_path, capsys):
    from grpo_lightning.commands.export import main as export_checkpoint
    from grpo_lightning.commands.stage_cli import main

    config = {
        "trainer": {"default_root_dir": str(tmp_path / "run"), "accelerator": "cpu", "devices": 1, "max_steps": 2},
        "model": {"model_name_or_path": str(tiny_model_dir), "optimizer": {"class_path": "torch.optim.AdamW"}},
        "data": {"dataset": write_rows(tmp_path / "rows.jsonl", TEXTS), "batch_size": 3},
    }
    (tmp_path / "rm.yaml").write_text(yaml.safe_dump(config))
    assert main("rm", ["--config", str(tmp_path / "rm.yaml"), "--trainer.enable_progress_bar=false"]) == 0
    assert (tmp_path / "run/hf/last/model.safetensors").is_file()
    assert "reward_model" in capsys.readouterr().out
    assert export_checkpoint([str(tmp_path / "run"), str(tmp_path / "again")]) == 0
    heads = [
        AutoModelForSequenceClassification.from_pretrained(p).score.weight
        for p in (tmp_path / "run/hf/last", tmp_path / "again")
    ]
    torch.testing.assert_close(heads[0], heads[1])
