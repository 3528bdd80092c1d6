"""One GRPO step against the formulas, written out here without any code of the package."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from runs import fit, make_data, make_module, make_trainer, share_of_digits, token_logprobs, weights
from torch import Tensor
from toy_models import save_toy_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_lightning import GRPOModule
from grpo_lightning.callbacks import Alarms, CompletionWriter
from grpo_lightning.commands.cli import TRAINER_DEFAULTS
from grpo_lightning.rewards import RewardComposition
from grpo_lightning.training import step_rewards
from grpo_lightning.types import PromptBatch, Rollouts

LEARNING_RATE = 0.1


def record(module):
    """Keeps what the module samples."""
    seen = []
    original = module.source.generate

    def generate(batch, *args, **kwargs):
        rollouts = original(batch, *args, **kwargs)
        seen.append((batch, rollouts))
        return rollouts

    module.source.generate = generate
    return seen


def hand_advantages(rollouts: Rollouts, tokenizer) -> Tensor:
    rewards = share_of_digits([tokenizer.decode(ids, skip_special_tokens=True) for ids in rollouts.completions()])
    groups = torch.tensor(rewards, dtype=torch.float64).view(rollouts.num_prompts, -1)
    centred = groups - groups.mean(dim=1, keepdim=True)
    return (centred / (groups.std(dim=1, keepdim=True) + 1e-4)).flatten()


def descend(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= LEARNING_RATE * parameter.grad
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_a_step_moves_the_weights_along_the_gradient_of_the_paper(tiny_model_dir, tmp_path, loss_type):
    seen: list[tuple[PromptBatch, Rollouts]] = []
    module = fit(tiny_model_dir, tmp_path, on_module=lambda m: seen.append(record(m)), loss_type=loss_type)
    ((_, rollouts),) = seen[0]

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    advantages = hand_advantages(rollouts, AutoTokenizer.from_pretrained(tiny_model_dir))
    assert advantages.abs().max() > 0.5
    rows = token_logprobs(model, rollouts)
    # At the first update the ratio is 1 and its gradient that of the logprob.
    terms = [-a * (lp - lp.detach()).exp() for a, lp in zip(advantages, rows, strict=True)]
    if loss_type == "dapo":
        loss = sum(term.sum() for term in terms) / sum(len(lp) for lp in rows)
    elif loss_type == "grpo":
        loss = sum(term.mean() for term in terms) / len(rows)
    else:
        loss = sum(term.sum() for term in terms) / (len(rows) * 8)
    expected = descend(model, loss)
    torch.testing.assert_close(weights(module), expected, rtol=1e-4, atol=1e-6)


def test_a_second_iteration_uses_the_ratio_to_the_weights_that_sampled(tiny_model_dir, tmp_path):
    seen = []
    module = fit(
        tiny_model_dir,
        tmp_path,
        max_steps=2,
        on_module=lambda m: seen.append(record(m)),
        num_iterations=2,
        epsilon=0.01,
    )
    ((_, rollouts),) = seen[0]
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    advantages = hand_advantages(rollouts, AutoTokenizer.from_pretrained(tiny_model_dir)).float()
    old = [lp.detach() for lp in token_logprobs(model, rollouts)]
    tokens = sum(len(lp) for lp in old)
    expected, clipped = {}, 0
    for _ in range(2):
        loss = torch.zeros(())
        for a, new, before in zip(advantages, token_logprobs(model, rollouts), old, strict=True):
            ratio = (new - before).exp()
            clipped += int((ratio > 1.01).sum() + (ratio < 0.99).sum())
            loss = loss - torch.minimum(ratio * a, ratio.clamp(0.99, 1.01) * a).sum() / tokens
        expected = descend(model, loss)
    assert clipped > 0  # otherwise the clip was not put to the test
    torch.testing.assert_close(weights(module), expected, rtol=1e-4, atol=1e-6)


def test_kl_pulls_towards_the_first_weights_by_the_k3_estimator(tiny_model_dir, tmp_path):
    seen = []
    module = fit(
        tiny_model_dir,
        tmp_path,
        max_steps=2,
        on_module=lambda m: seen.append(record(m)),
        beta=0.5,
        use_bias_correction_kl=False,
    )
    rollouts_of_steps = [rollouts for _, rollouts in seen[0]]
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    expected = {}
    for rollouts in rollouts_of_steps:
        advantages = hand_advantages(rollouts, tokenizer).float()
        new = token_logprobs(model, rollouts)
        with torch.no_grad():
            ref = token_logprobs(reference, rollouts)
        tokens = sum(len(lp) for lp in new)
        loss = torch.zeros(())
        for a, lp, ref_lp in zip(advantages, new, ref, strict=True):
            kl = (ref_lp - lp).exp() - (ref_lp - lp) - 1
            loss = loss + (-(lp - lp.detach()).exp() * a + 0.5 * kl).sum() / tokens
        expected = descend(model, loss)
    torch.testing.assert_close(weights(module), expected, rtol=1e-4, atol=1e-6)
    assert module.step_metrics["kl"] > 0


@pytest.mark.parametrize("setting", [{"max_tokens_per_microbatch": 24}, {"microbatch_layout": "padded"}])
def test_neither_micro_batches_nor_layout_change_a_step(tiny_model_dir, tmp_path, setting):
    whole = fit(tiny_model_dir, tmp_path, max_steps=2)
    split = fit(tiny_model_dir, tmp_path, max_steps=2, **setting)
    torch.testing.assert_close(weights(split), weights(whole), rtol=1e-4, atol=1e-6)
    ignored = {"tokens_per_second", "generation/tokens_per_second", "step_time", "packing/fill"}
    numbers = {k: v for k, v in whole.step_metrics.items() if not k.startswith("time/") and k not in ignored}
    assert numbers.keys() >= {"loss", "reward", "entropy", "grad_norm", "clip_ratio/low_mean"}
    for name, value in numbers.items():
        assert split.step_metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_the_fill_of_micro_batches_is_logged(tiny_model_dir, tmp_path):
    module = fit(tiny_model_dir, tmp_path, beta=0.1, max_tokens_per_microbatch=1000)  # so that every group is trained
    rollouts = module.last_step.rollouts
    tokens = int(rollouts.prompt_lengths.sum() + rollouts.completion_lengths.sum())  # a prompt once for its group
    assert module.step_metrics["packing/fill"] == pytest.approx(tokens / 1000)


def test_a_float32_head_computes_logits_in_float32_over_bfloat16_layers(tiny_model_dir, tmp_path):
    differences = {}
    for float32_head in (True, False):
        settings = {"float32_head": float32_head, "microbatch_layout": "padded", "num_generations": 2}
        module = fit(tiny_model_dir, tmp_path, trainer={"precision": "bf16-true"}, **settings)
        rollouts = Rollouts.from_lists([[5, 6, 7]], [[8, 9, 10, 11]], [[0.0] * 4], [False], [0])
        scores = module.passes.scorer.score(rollouts, torch.tensor([0])).logprobs
        with torch.no_grad():
            hidden = module.policy.model.model(torch.tensor([[5, 6, 7, 8, 9, 10]])).last_hidden_state[0, 2:]
            logits = hidden.float() @ module.policy.model.lm_head.weight.float().T
        expected = logits.log_softmax(-1)[torch.arange(4), torch.tensor([8, 9, 10, 11])]
        differences[float32_head] = (scores - expected).abs().max().item()
    assert differences[True] < 1e-5 < 1e-4 < differences[False]
    with pytest.raises(ValueError, match=r"model.float32_head=true needs an output head of one matrix"):
        fit(tiny_model_dir, tmp_path, float32_head=True, finetuning_type="lora", lora_target="q_proj,lm_head")


def test_a_float32_head_trains_under_mixed_precision(tiny_model_dir, tmp_path):
    moved = []
    for float32_head in (True, False):
        settings = {"float32_head": float32_head, "optimizer": lambda p: torch.optim.SGD(p, lr=1e-2)}
        start, after = (
            weights(fit(tiny_model_dir, tmp_path, steps, {"precision": "bf16-mixed"}, **settings)) for steps in (0, 1)
        )
        moved.append(torch.cat([(after[name] - start[name]).flatten() for name in start]))
    assert 0 < (moved[0] - moved[1]).norm() < 0.05 * moved[1].norm()


def test_a_soft_cap_on_attention_scores_is_kept_in_every_layout(tmp_path):
    model_dir = save_toy_model(tmp_path / "model", "gemma2", attn_logit_softcapping=1.0)
    packed, padded = (fit(model_dir, tmp_path, microbatch_layout=layout) for layout in ("packed", "padded"))
    assert padded.step_metrics["grad_norm"] == pytest.approx(packed.step_metrics["grad_norm"], rel=1e-4)
    assert padded.step_metrics["entropy"] == pytest.approx(packed.step_metrics["entropy"], rel=1e-5)
    with pytest.raises(ValueError, match=r"model.attn_implementation=sdpa leaves out the soft cap"):
        fit(model_dir, tmp_path, attn_implementation="sdpa")


def test_minibatches_take_one_optimizer_step_each_and_cover_every_group_once(tiny_model_dir, tmp_path):
    module = make_module(tiny_model_dir, num_minibatches=2, num_iterations=2)
    steps = []
    module.optimization.step, original = lambda: steps.append(1) or original(), module.optimization.step
    make_trainer(tmp_path, max_steps=4).fit(module, datamodule=make_data(tmp_path))
    assert len(steps) == 4
    assert module.steps_done == 1
    rollouts = Rollouts.from_lists([[1], [2], [3]], [[4]] * 6, [[0.0]] * 6, [False] * 6, [0, 0, 1, 1, 2, 2])
    parts = module.updates.minibatches(rollouts, step=1, iteration=0)
    assert sorted(torch.cat(parts).tolist()) == list(range(6))
    assert all(rollouts.group[part].bincount().max() == 2 for part in parts)


def test_minibatches_need_as_many_prompts(tiny_model_dir, tmp_path):
    with pytest.raises(ValueError, match=r"data.batch_size=3 prompts cannot be dealt out to model.num_minibatches=4"):
        fit(tiny_model_dir, tmp_path, max_steps=4, num_minibatches=4)


def test_weights_stay_bit_equal_when_every_completion_is_truncated_and_masked(tiny_model_dir, tmp_path):
    before = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    module = fit(tiny_model_dir, tmp_path, max_completion_length=1, mask_truncated_completions=True)
    assert module.step_metrics["completions/clipped_ratio"] == 1.0
    assert module.step_metrics["loss"] == 0.0
    assert module.step_metrics["grad_norm"] == 0.0
    for name, parameter in before.named_parameters():
        assert torch.equal(weights(module)[name], parameter), name


def test_equal_rewards_leave_the_weights_alone_but_momentum_goes_on(tiny_model_dir, tmp_path):
    calls = []

    def rewarded_once(completions, **columns):
        calls.append(1)
        return share_of_digits(completions) if len(calls) == 1 else [1.0] * len(completions)

    after = []
    module = make_module(
        tiny_model_dir, rewards=[rewarded_once], optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5)
    )
    module.end_step, original = lambda report: (after.append(weights(module)), original(report)), module.end_step
    make_trainer(tmp_path, max_steps=2).fit(module, datamodule=make_data(tmp_path))
    start = dict(AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).named_parameters())
    for name, first in after[0].items():
        torch.testing.assert_close(after[1][name] - first, 0.5 * (first - start[name]), rtol=1e-3, atol=1e-7)
    assert module.step_metrics["frac_reward_zero_std"] == 1.0


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(tiny_model_dir, tmp_path):
    module = make_module(tiny_model_dir)
    start = dict(AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).named_parameters())
    original = module.policy_loss
    module.policy_loss = lambda *args: original(*args) * float("nan")
    trainer = make_trainer(tmp_path, max_steps=-1, max_epochs=1, limit_train_batches=1)
    trainer.fit(module, datamodule=make_data(tmp_path))
    assert module.step_metrics["skipped_updates"] == 1.0
    for name, parameter in start.items():
        assert torch.equal(weights(module)[name], parameter), name


def test_the_reference_stays_until_it_is_synced(tiny_model_dir, tmp_path):
    start = dict(AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).named_parameters())
    kept = fit(tiny_model_dir, tmp_path, max_steps=2, beta=0.1)
    for name, parameter in kept.reference_passes.reference.model.named_parameters():
        assert torch.equal(parameter, start[name]), name
    moved = fit(
        tiny_model_dir,
        tmp_path,
        max_steps=2,
        beta=0.1,
        sync_ref_model=True,
        ref_model_sync_steps=2,
        ref_model_mixup_alpha=0.25,
    )
    mixed = {name: 0.25 * value + 0.75 * start[name] for name, value in weights(moved).items()}
    torch.testing.assert_close(dict(moved.reference_passes.reference.model.named_parameters()), mixed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 1}, "model.num_generations=1"),
        ({"temperature": 0.0}, "model.temperature=0"),
        ({"sync_ref_model": True}, "model.sync_ref_model needs a reference"),
        ({"num_iterations": 0}, "model.num_iterations=0"),
        ({"max_grad_norm": -1.0}, "model.max_grad_norm=-1.0"),
        ({"max_grad_norm": math.nan}, "model.max_grad_norm=nan"),
        ({"max_sampler_mismatch": math.nan}, "model.max_sampler_mismatch=nan"),
        ({"importance_sampling_max": -1.0}, "model.importance_sampling_max=-1.0"),
        ({"importance_sampling_min": -1.0}, "model.importance_sampling_min=-1.0"),
        ({"ref_model_mixup_alpha": math.nan}, "model.ref_model_mixup_alpha=nan"),
        ({"ref_model_sync_steps": 0}, "model.ref_model_sync_steps=0"),
        ({"reward_weights": "1e308"}, r"weight of the reward share_of_digits is 1e\+308"),
        ({"dtype": "int8"}, "model.dtype='int8'"),
        ({"model_name_or_path": "/nowhere"}, "model.model_name_or_path='/nowhere' cannot be read"),
        (
            {"rewards": "accuracy,nothing"},
            "Reward function 'nothing' not found. Available reward functions: .*accuracy",
        ),
        ({"reward_weights": "1,2"}, "reward_weights"),
        ({"success_reward": "fluency"}, "model.success_reward='fluency' is not among the rewards"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(tiny_model_dir, settings, message):
    with pytest.raises(ValueError, match=message):
        make_module(tiny_model_dir, **settings)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"gradient_clip_val": 1.0}, "model.max_grad_norm"),
        ({"accumulate_grad_batches": 2}, "max_tokens_per_microbatch"),
        ({"precision": "64-true"}, "precision=64-true is not supported. Use 32-true, bf16-mixed"),  # trained in float32
    ],
)
def test_trainer_settings_without_effect_are_refused_with_ours(tiny_model_dir, tmp_path, trainer, message):
    with pytest.raises(Exception, match=message):
        fit(tiny_model_dir, tmp_path, trainer=trainer)


def test_an_entropy_bonus_on_the_uncertain_tokens_only_raises_their_entropy(tiny_model_dir, tmp_path):
    def nothing(completions, **columns):
        return [0.0] * len(completions)

    settings = {"entropy_coef": 1.0, "top_entropy_quantile": 0.5, "rewards": [nothing]}
    module = fit(tiny_model_dir, tmp_path, max_steps=1, **settings)
    assert module.step_metrics["grad_norm"] > 0
    assert module.step_metrics["policy_loss"] == 0.0
    assert module.step_metrics["loss"] == pytest.approx(-module.step_metrics["entropy_of_trained_tokens"], rel=1e-5)


def test_an_adaptive_entropy_coefficient_rises_while_entropy_is_low_and_survives_in_the_checkpoint(
    tiny_model_dir, tmp_path
):
    settings = {"use_adaptive_entropy": True, "entropy_target": 100.0, "entropy_coef_delta": 0.25}
    module = fit(tiny_model_dir, tmp_path, max_steps=3, **settings)
    assert module.loss.entropy_controller.coefficient == pytest.approx(0.75)
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    other = fit(tiny_model_dir, tmp_path, max_steps=1, **settings)
    other.on_load_checkpoint(checkpoint)
    assert other.loss.entropy_controller.coefficient == pytest.approx(0.75)
    assert (other.steps_done, other.numbers.num_tokens) == (3, module.numbers.num_tokens)


def test_under_autocast_a_second_update_sees_the_weights_of_the_first(tiny_model_dir, tmp_path):
    """Torch keeps cast weights for a whole autocast region, and Lightning's spans the training step."""

    def freeze_embeddings(module):  # the output head is cast anew in any case
        load = module.configure_model

        def load_and_freeze():
            load()
            module.policy.model.get_input_embeddings().requires_grad_(False)
            module.policy.model.get_output_embeddings().requires_grad_(False)

        module.configure_model = load_and_freeze

    settings = {"num_iterations": 2, "optimizer": lambda params: torch.optim.SGD(params, lr=50.0)}
    precision = {"precision": "bf16-mixed"}
    module = fit(tiny_model_dir, tmp_path, max_steps=2, trainer=precision, on_module=freeze_embeddings, **settings)
    assert module.step_metrics["clip_ratio/region_mean"] > 0.1


def test_sampling_keeps_its_fast_attention_after_the_first_training_pass(tiny_model_dir, tmp_path):
    from grpo_lightning.generation.transformers.decode_attention import NAME, fast_decode_attention

    module = fit(tiny_model_dir, tmp_path)
    assert module.policy.model.config._attn_implementation == "packed_sdpa"
    with fast_decode_attention(module.policy.model):
        assert module.policy.model.config._attn_implementation == NAME
    assert module.policy.model.config._attn_implementation == "packed_sdpa"


def test_bfloat16_weights_leave_rewards_counts_and_logprobs_in_full_precision(tiny_model_dir, tmp_path):
    """Under bf16-true Lightning makes bfloat16 the default dtype of a step, and refuses frozen dataclasses as batches."""

    def many_digits(completions, **columns):
        return [257.0 + i for i in range(len(completions))]  # 257 rounds to 256 in bfloat16

    dtypes = []

    def watch(module):
        original = module.policy_loss

        def policy_loss(experience, micro_batch, report):
            tokens = experience.token_batch(micro_batch.rows)
            dtypes.extend([tokens.advantages.dtype, tokens.lengths.dtype, tokens.sampling_logprobs.dtype])
            return original(experience, micro_batch, report)

        module.policy_loss = policy_loss

    module = fit(
        tiny_model_dir, tmp_path, trainer={"precision": "bf16-true"}, rewards=[many_digits], on_module=watch, beta=0.1
    )
    assert module.policy.model.dtype == torch.bfloat16
    assert set(dtypes) == {torch.float32}
    assert module.step_metrics["reward"] == 257.0 + 5.5
    assert module.step_metrics["grad_norm"] > 0


def test_rewards_are_gathered_and_composed_once_a_step_and_another_table_has_advantages_of_its_own(
    tiny_model_dir, tmp_path, monkeypatch
):
    gathered, composed, found = [], [], {}
    gather = step_rewards.gather_objects
    monkeypatch.setattr(step_rewards, "gather_objects", lambda value: gathered.append(1) or gather(value))

    class Reversed(GRPOModule):
        def advantages(self, rollouts: Rollouts, rewards, report) -> Tensor:
            usual = super().advantages(rollouts, rewards, report)
            assert (sum(gathered), sum(composed)) == (1, 1)
            other = self.step_advantages.together(rollouts, replace(rewards.own, values=-rewards.values))
            found.update(usual=usual, other=self.step_advantages(other))
            return usual

    module = Reversed(**make_module(tiny_model_dir, rewards=[share_of_digits]).given_settings)
    compose = module.step_advantages.composition
    module.step_advantages.composition = lambda *given: composed.append(1) or compose(*given)
    make_trainer(tmp_path, max_steps=1).fit(module, datamodule=make_data(tmp_path))
    assert found["usual"].any()
    torch.testing.assert_close(found["other"], -found["usual"])


def test_in_advantages_the_rewards_are_as_they_were_given_whatever_the_composition_makes_of_them(
    tiny_model_dir, tmp_path
):
    seen = []

    class Weighted(GRPOModule):
        def advantages(self, rollouts: Rollouts, rewards, report) -> Tensor:
            seen.append(rewards)
            totals = (rewards.values * rewards.weights).sum(dim=1)
            return (totals - totals.mean()).float()

    def second(completions, log_metric, log_extra, **columns):
        log_metric("told", 2.5)
        log_extra("length", [len(completion) for completion in completions])
        return [1.0 for _ in completions]

    settings = {"reward_weights": [1.0, 0.0], "reward_composition": RewardComposition(how="product")}
    module = make_module(tiny_model_dir, rewards=[share_of_digits, second], **settings)
    module = Weighted(**module.given_settings)
    make_trainer(tmp_path, max_steps=1).fit(module, datamodule=make_data(tmp_path))
    (rewards,) = seen
    assert rewards.weights.tolist() == [1.0, 0.0] and rewards.composed_weights.tolist() == [1.0]
    assert rewards.metrics["told"] == 2.5 and rewards.lists == {} and len(rewards.extra["length"]) == 12
    expected = rewards.given[:, 0]
    torch.testing.assert_close(module.last_step.advantages, (expected - expected.mean()).float())


def test_a_subclass_may_replace_the_advantages_altogether(tiny_model_dir, tmp_path):
    class AllAlike(GRPOModule):
        def advantages(self, rollouts: Rollouts, rewards, report) -> Tensor:
            return torch.ones(rollouts.num_completions)

    def logs_its_own(completions, log_metric, **columns):
        log_metric("told", 2.5)
        return share_of_digits(completions)

    module = AllAlike(**make_module(tiny_model_dir, rewards=[logs_its_own]).given_settings)
    callbacks = [Alarms(), CompletionWriter(), *TRAINER_DEFAULTS["callbacks"]]  # of the command line
    make_trainer(tmp_path, max_steps=2, callbacks=callbacks).fit(module, datamodule=make_data(tmp_path))
    assert module.last_step.advantages.tolist() == [1.0] * 12
    numbers, rollouts = module.step_metrics, module.last_step.rollouts
    rewards = torch.tensor(share_of_digits(module.policy.tokenizer.batch_decode(rollouts.completions()))).double()
    assert numbers["completions/mean_length"] == pytest.approx(rollouts.completion_lengths.float().mean().item())
    assert numbers["reward"] == numbers["rewards/logs_its_own/mean"] == pytest.approx(rewards.mean().item())
    assert numbers["reward_std"] == numbers["rewards/logs_its_own/std"] == pytest.approx(rewards.std().item())
    assert numbers["reward_group_std"] == pytest.approx(rewards.view(3, 4).std(dim=1).mean().item())
    assert numbers["frac_reward_none"] == 0 and numbers["told"] == 2.5
    assert "time/rewards/logs_its_own" in numbers
