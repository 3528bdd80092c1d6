"""Losses against their owners' formulas, written out once more for padded tensors: loss and gradient in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo_lightning.algorithm.averaging import StepTotals
from grpo_lightning.algorithm.losses import LOSSES, LossInputs, make_loss
from grpo_lightning.algorithm.losses.covariance import token_covariance
from grpo_lightning.algorithm.losses.gmpo import GMPOLoss
from grpo_lightning.algorithm.objective import Objective
from grpo_lightning.algorithm.token_batch import TokenBatch

NAN = math.nan
MASK = torch.arange(6) < torch.tensor([[6], [1], [4], [3]])
ADVANTAGES = torch.tensor([1.3, -0.7, -1.1, 0.4], dtype=torch.float64)
Owner = Callable[[Tensor, Tensor, Tensor], Tensor]


def padded(seed: int, spread: float = 0.6) -> tuple[Tensor, Tensor]:
    """Current logprobs, a leaf, and old ones, (N, C), with absurd values in the padding."""
    generator = torch.Generator().manual_seed(seed)
    logprobs = -torch.rand(MASK.shape, generator=generator, dtype=torch.float64) * 2 - 0.05
    old = (logprobs + spread * torch.randn(MASK.shape, generator=generator, dtype=torch.float64)).clamp(max=-0.01)
    return logprobs.masked_fill(~MASK, 9.0).requires_grad_(), old.masked_fill(~MASK, -9.0)


def ours(loss_type: Any, logprobs: Tensor, old: Tensor, marked: Tensor | None = None, **settings: Any) -> Tensor:
    settings = {"importance_sampling_correction": False, **settings}
    sampling = settings.pop("sampling", None)
    tokens = TokenBatch(
        rows=MASK.nonzero()[:, 0],
        mask=MASK[MASK],
        lengths=MASK.sum(1),
        advantages=ADVANTAGES,
        old_logprobs=old[MASK],
        sampling_logprobs=None if sampling is None else sampling[MASK],
        is_marked=marked,
    )
    totals = StepTotals(completions=4, tokens=int(MASK.sum()))
    return Objective(loss_type, **settings).loss(tokens, logprobs[MASK], None, totals)[0]


def agree(mine: Tensor, theirs: Tensor, logprobs: Tensor) -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(mine, logprobs)
    (wanted,) = torch.autograd.grad(theirs, logprobs)
    torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-12)
    assert wanted.abs().max() > 1e-3


def mean_of_tokens(values: Tensor) -> Tensor:
    return (values * MASK).sum() / MASK.sum()


@pytest.mark.parametrize("epsilon", [0.4, 0.1])
def test_gmpo_is_the_geometric_mean_of_ratios_clipped_on_the_side_of_the_advantages_sign(epsilon: float):
    for seed in range(5):
        logprobs, old = padded(seed)
        values = []
        for row, advantage in enumerate(ADVANTAGES.tolist()):
            sign = math.copysign(1.0, advantage)
            signed = [sign * (logprobs[row, t] - old[row, t]) for t in range(6) if MASK[row, t]]
            smaller = torch.stack([torch.minimum(one, one.clamp(-epsilon, epsilon)) for one in signed])
            values.append(-advantage * (sign * smaller).mean().exp())
        loss_type = {"class_path": "gmpo", "init_args": {"epsilon": epsilon}}
        agree(ours(loss_type, logprobs, old), torch.stack(values).mean(), logprobs)


def test_gmpo_equals_trls_own_trainer_with_one_log_bound_on_either_side():
    trl = pytest.importorskip("trl.experimental.gmpo")
    from tests.algorithm.test_trl_parity import make_batch, our_loss, stand_in

    torch.set_default_dtype(torch.float64)
    try:
        batch = make_batch(seed=4)
        batch.advantages[4] = 0.0  # a completion masked as a whole: TRL adds -A to the loss, without any gradient
        objective = Objective("gmpo", epsilon=0.1, epsilon_high=0.25, importance_sampling_correction=False)
        trainer = stand_in(objective, batch)
        trainer.pad_token_id, mask = 0, batch.mask.long()
        inputs = {"prompt_ids": mask[:, :1], "prompt_mask": mask[:, :1], "completion_ids": mask}
        inputs |= {"completion_mask": mask, "advantages": batch.advantages, "old_per_token_logps": batch.old}
        theirs = trl.GMPOTrainer._compute_loss(trainer, None, inputs)
        mine, _ = our_loss(objective, batch, on_policy=False)
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
        pair = [torch.autograd.grad(loss, batch.logprobs)[0] for loss in (mine, theirs)]
        torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-12)
    finally:
        torch.set_default_dtype(torch.float32)


def dppo_mask(prob: float, behaviour: float, advantage: float, kind: str, low: float, high: float) -> bool:
    """Whether a token trains, as the authors' list of cases has it."""
    distance = abs(prob - behaviour)
    if kind == "kl":
        rest = (1 - behaviour + 1e-8) / (1 - prob + 1e-8)
        distance = behaviour * math.log(behaviour / prob) + (1 - behaviour) * math.log(rest)
    if advantage > 0:
        return not (prob > behaviour and distance > high)
    return not (prob < behaviour and distance > low)


@pytest.mark.parametrize("kind", ["tv", "kl"])
@pytest.mark.parametrize("anchor", ["sampler", "old"])
def test_dppo_drops_tokens_whose_probability_left_the_trust_region_and_caps_the_weight(kind: str, anchor: str):
    bounds = {"epsilon": 0.05, "epsilon_high": 0.08, "max_weight": 1.4}
    dropped = 0
    for seed in range(5):
        logprobs, old = padded(seed)
        behaviour = padded(seed, 0.5)[1] if anchor == "sampler" else old
        values = torch.zeros(MASK.shape, dtype=torch.float64)
        for row, column in MASK.nonzero().tolist():
            one, then, advantage = logprobs[row, column], float(behaviour[row, column]), float(ADVANTAGES[row])
            if dppo_mask(math.exp(one.item()), math.exp(then), advantage, kind, 0.05, 0.08):
                values[row, column] = -min(math.exp(one.item() - then), 1.4) * advantage * one
            else:
                dropped += 1
        settings = {"importance_sampling_correction": True, "sampling": behaviour} if anchor == "sampler" else {}
        loss_type = {"class_path": "dppo", "init_args": {"divergence": kind, **bounds}}
        agree(ours(loss_type, logprobs, old, **settings), mean_of_tokens(values), logprobs)
    assert 5 < dropped < 5 * int(MASK.sum()) - 5


def test_dppo_takes_the_old_policy_where_the_sampler_gave_no_logprob():
    logprobs, old = padded(1)
    unknown = torch.full_like(old, NAN)
    mine = ours("dppo", logprobs, old, importance_sampling_correction=True, sampling=unknown)
    torch.testing.assert_close(mine, ours("dppo", logprobs, old))


def test_covariance_is_the_product_of_distances_to_the_means_of_the_step():
    covariance = token_covariance(torch.tensor([1.0, -1.0, 3.0]), torch.tensor([-1.0, -2.0, -3.0]))
    assert covariance.tolist() == [0.0, 0.0, -2.0]


def test_kl_cov_holds_the_tokens_of_highest_covariance_by_the_absolute_log_ratio():
    for seed in range(5):
        logprobs, old = padded(seed)
        loss = make_loss({"class_path": "kl_cov", "init_args": {"kl_cov_ratio": 0.3, "kl_cov_coef": 0.7}}, {}, 6)
        advantages = ADVANTAGES.unsqueeze(1).expand(MASK.shape)[MASK]
        marked = loss.mark(advantages, old[MASK], torch.Generator())
        product = (advantages - advantages.mean()) * (old[MASK] - old[MASK].mean())
        assert marked.sum() == int(0.3 * 14)
        assert product[marked].min() >= product[~marked].max()
        held = torch.zeros(MASK.shape, dtype=torch.bool).masked_scatter(MASK, marked)
        drift = logprobs - old
        values = -ADVANTAGES.unsqueeze(1) * drift.exp() + 0.7 * drift.abs() * held
        agree(ours(loss, logprobs, old, marked), mean_of_tokens(values.masked_fill(~MASK, 0.0)), logprobs)


def test_clip_cov_leaves_out_a_random_share_of_the_tokens_between_its_bounds():
    settings = {"clip_cov_ratio": 0.15, "clip_cov_min": 0.02, "clip_cov_max": 0.8, "epsilon": 0.1}
    loss = make_loss({"class_path": "clip_cov", "init_args": settings}, {}, 6)
    chosen = set()
    for seed in range(8):
        logprobs, old = padded(3)
        advantages = ADVANTAGES.unsqueeze(1).expand(MASK.shape)[MASK]
        marked = loss.mark(advantages, old[MASK], torch.Generator().manual_seed(seed))
        again = loss.mark(advantages, old[MASK], torch.Generator().manual_seed(seed))
        product = (advantages - advantages.mean()) * (old[MASK] - old[MASK].mean())
        assert torch.equal(marked, again) and marked.sum() == int(0.15 * 14) == 2
        assert ((product[marked] > 0.02) & (product[marked] < 0.8)).all()
        chosen.add(tuple(marked.nonzero()[:, 0].tolist()))
        left = torch.zeros(MASK.shape, dtype=torch.bool).masked_scatter(MASK, marked)
        ratio = (logprobs - old).exp()
        surrogate = -ADVANTAGES.unsqueeze(1) * torch.stack([ratio, ratio.clamp(0.9, 1.1)])
        values = torch.maximum(surrogate[0], surrogate[1]) * ~left
        agree(ours(loss, logprobs, old, marked), mean_of_tokens(values.masked_fill(~MASK, 0.0)), logprobs)
    assert len(chosen) > 1


def test_covariance_losses_mark_nothing_out_of_range_and_one_token_at_least():
    flat = torch.zeros(5)
    assert make_loss("clip_cov", {}, 6).mark(flat, flat, torch.Generator()).sum() == 0
    assert make_loss("kl_cov", {}, 6).mark(flat, torch.arange(5.0), torch.Generator()).sum() == 1


def test_kl_cov_with_a_single_update_is_refused_because_nothing_has_moved():
    with pytest.raises(ValueError, match=r"model.loss_type='kl_cov' has no effect with one optimizer step"):
        make_loss("kl_cov", {}, 6).check_updates(1)
    make_loss("kl_cov", {}, 6).check_updates(2)


def reinforce(inputs: LossInputs) -> Tensor:
    return -inputs.advantages * inputs.logprobs


def averaged(inputs: LossInputs) -> Tensor:
    return reinforce(inputs).mean()


def nothing(inputs: LossInputs) -> None:
    """A loss whose author forgot to return it."""


def test_a_function_at_an_import_path_is_a_loss_averaged_over_tokens():
    logprobs, old = padded(0)
    wanted = mean_of_tokens((-ADVANTAGES.unsqueeze(1) * logprobs).masked_fill(~MASK, 0.0))
    agree(ours(f"{__name__}.reinforce", logprobs, old), wanted, logprobs)


@pytest.mark.parametrize("given", [reinforce, lambda inputs: reinforce(inputs), GMPOLoss])
def test_from_python_a_loss_is_the_function_or_the_class_itself(given: Any):
    logprobs, old = padded(0)
    named = "gmpo" if given is GMPOLoss else f"{__name__}.reinforce"
    assert torch.equal(ours(given, logprobs, old), ours(named, logprobs, old))


def test_a_loss_that_averages_by_itself_is_told_so():
    with pytest.raises(ValueError, match=r"model.loss_type='averaged' gave a loss of shape \(\) for 14 tokens"):
        ours(f"{__name__}.averaged", *padded(0))
    with pytest.raises(ValueError, match=r"model.loss_type='nothing' gave a loss that is a NoneType for 14 tokens"):
        ours(nothing, *padded(0))
    with pytest.raises(
        ValueError, match=r"model.loss_type=0.5 is no name, no import path and nothing that can be called"
    ):
        ours(0.5, *padded(0))


def test_a_loss_that_depends_on_no_logprob_is_refused_where_there_is_a_gradient_to_compute():
    with pytest.raises(ValueError, match=r"'constant' gave a loss without a gradient.*Compute it from inputs.logprobs"):
        ours(constant, *padded(0))


def constant(inputs: LossInputs) -> torch.Tensor:
    return -inputs.advantages


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_known_by_its_name_and_zero_without_advantages_where_it_says_so(name: str):
    loss = make_loss(name, {"epsilon_high": 5.0} if name == "cispo" else {}, 6)
    assert loss.name == name
    logprobs, old = padded(2)
    inputs = LossInputs(
        *(TokenBatch(MASK.nonzero()[:, 0], MASK[MASK], MASK.sum(1), ADVANTAGES).segments, logprobs[MASK], old[MASK]),
        *((logprobs - old)[MASK].exp(), "token", torch.zeros(14).double(), torch.zeros(4).double()),
        is_marked=torch.ones(14, dtype=torch.bool),
    )
    values = loss.per_token(inputs)
    (gradient,) = torch.autograd.grad(values.sum(), logprobs)
    assert bool((gradient == 0).all()) == loss.needs_advantage


@pytest.mark.parametrize(
    ("spec", "given", "message"),
    [
        ("ppo", {}, "model.loss_type='ppo' is unknown. Choose one of grpo, bnpo"),
        (
            "no.such.Loss",
            {},
            "model.loss_type='no.such.Loss' cannot be imported: No module named 'no'. Its file is looked for",
        ),
        (3, {}, "model.loss_type=3 is no name, no import path and nothing that can be called"),
        ({"class": "dapo"}, {}, "model.loss_type={'class': 'dapo'} has other keys than class_path and init_args"),
        ({"class_path": "dapo", "init_args": {"tau": 1}}, {}, "model.loss_type: dapo cannot be made with init_args="),
        ({"class_path": "dapo", "init_args": {"delta": 4.0}}, {"delta": 3.0}, "model.delta is also in model.loss_type"),
        ("math.pi", {}, "model.loss_type='math.pi' is neither a subclass"),
        ("dppo", {"delta": 4.0}, "model.delta=4.0 has no effect with model.loss_type='dppo'. Remove it, or use one of"),
        ({"class_path": "dppo", "init_args": {"divergence": "js"}}, {}, "model.divergence='js' is unknown"),
        ({"class_path": "clip_cov", "init_args": {"clip_cov_min": 6.0}}, {}, "model.clip_cov_min=6.0 has to be below"),
        ({"class_path": "kl_cov", "init_args": {"kl_cov_ratio": 0.0}}, {}, "model.kl_cov_ratio=0.0 has to be above 0"),
    ],
)
def test_a_loss_that_cannot_be_made_is_refused_in_the_words_of_the_config(spec: Any, given: Any, message: str):
    with pytest.raises(ValueError) as error:
        make_loss(spec, given, 6)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"loss_type": "gmpo", "importance_sampling_level": "sequence"},
            "model.importance_sampling_level='sequence' has",
        ),
        (
            {"loss_type": "gmpo", "top_entropy_quantile": 0.5},
            "model.top_entropy_quantile=0.5 treats tokens differently",
        ),
        (
            {"loss_type": "gmpo", "importance_sampling_mode": "token_mask"},
            "model.importance_sampling_mode='token_mask'",
        ),
        (
            {"loss_type": "dppo", "importance_sampling_max": 2.0},
            "model.importance_sampling_max=2.0 has no effect with mod",
        ),
        ({"kl_estimator": "k2"}, "model.kl_estimator='k2' has no effect with model.beta=0"),
        ({"kl_estimator": "k4", "beta": 0.1}, "model.kl_estimator='k4' is unknown. Choose one of k1, k2, k3, or"),
        (
            {"kl_estimator": "k1", "beta": 0.1, "use_bias_correction_kl": False},
            "model.kl_estimator='k1' has a gradient of",
        ),
    ],
)
def test_settings_that_a_loss_cannot_use_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError) as error:
        Objective(**settings)
    assert str(error.value).startswith(message)
