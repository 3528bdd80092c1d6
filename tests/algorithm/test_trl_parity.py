"""Loss, gradient and advantages against TRL 1.16.0's own code, in float64.

TRL's `_compute_loss` runs as it is, on a stand-in that returns prepared logprobs, with one process and one micro-batch.
The sampler correction and the advantages are blocks inside a long TRL method; they are cut out of its source by their
statements and executed unchanged. Known differences, which no test here hides:

- bnpo: TRL divides by the tokens of the micro-batch. Ours is that with one micro-batch, as run here.
- dapo before TRL #6024 and luspo with KL before TRL #6654 were wrong; 1.16.0 has both fixes.
- vespo: TRL adds the log correction of padding too. It differs from ours only when the bounds exclude 1.
- frac_reward_zero_std: TRL does not count groups with a single scored completion (its std is NaN); ours does.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import math
import random
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo_lightning.algorithm.advantages import AdvantageEstimator
from grpo_lightning.algorithm.averaging import StepTotals
from grpo_lightning.algorithm.entropy import entropy_threshold
from grpo_lightning.algorithm.losses import LOSSES
from grpo_lightning.algorithm.losses.clipped import ClippedLoss
from grpo_lightning.algorithm.metric_sums import MetricSums
from grpo_lightning.algorithm.objective import Objective
from grpo_lightning.algorithm.token_batch import TokenBatch
from grpo_lightning.rewards.sandbox.python_source import parsed

trl = pytest.importorskip("trl")
if trl.__version__ != "1.16.0":
    pytest.skip(f"parity is defined against TRL 1.16.0, found {trl.__version__}", allow_module_level=True)

from trl.trainer import grpo_trainer  # noqa: E402

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")
"""Those that TRL's GRPOTrainer has."""
CLIPPED = tuple(name for name in LOSS_TYPES if issubclass(LOSSES[name], ClippedLoss))
SETTINGS_OF_A_LOSS = {
    field.name: field.default for name in LOSS_TYPES for field in fields(LOSSES[name]) if field.name != "epsilon_high"
}
"""With the defaults of the losses that have them: TRL has all of them for every loss."""
MAX_COMPLETION_LENGTH = 11
NAN = math.nan


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    # TRL makes its SAPO and VESPO settings tensors of the default dtype: in float32 they would limit the comparison.
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@dataclass
class Batch:
    """Padded (N, C) tensors with absurd values in the padding, as TRL takes them."""

    mask: Tensor
    advantages: Tensor
    logprobs: Tensor
    entropy: Tensor
    old: Tensor
    ref: Tensor
    sampling: Tensor

    @property
    def present(self) -> Tensor:
        """(N, C) bool: tokens that a ragged batch has; TRL's padding is left out, some unmasked tokens are not."""
        last = self.mask.long().cumsum(1).argmax(1)
        return torch.arange(self.mask.shape[1]) <= last.clamp(min=1).unsqueeze(1)


def make_batch(seed: int) -> Batch:
    """Ragged completions: one with a tool's tokens inside, one masked as a whole, one of a single token."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([7, 1, 4, 9, 5, 3])
    mask = torch.arange(9) < lengths.unsqueeze(1)
    mask[3, 2:5] = False
    mask[4] = False

    def noise(scale: float) -> Tensor:
        return torch.randn(mask.shape, generator=generator) * scale

    logprobs = -torch.rand(mask.shape, generator=generator) * 3 - 0.05
    old, ref = logprobs + noise(0.3), logprobs + noise(0.5)
    sampling = old + noise(0.25)
    entropy = (torch.rand(mask.shape, generator=generator) * 4).float().double()
    advantages = torch.tensor([1.3, -0.7, -1.1, 0.4, 2.0, 0.0])
    for values in (logprobs, old, ref, sampling, entropy):
        values[~mask] = 7.0
    sampling[0, 1] = NAN  # an engine may give no value for a token
    return Batch(mask, advantages, logprobs.requires_grad_(), entropy.requires_grad_(), old, ref, sampling)


class OneProcess:
    """Accelerate's calls for a world of one."""

    num_processes = 1
    sync_gradients = True

    def gather(self, values: Any) -> Any:
        return values

    gather_for_metrics = gather

    def reduce(self, values: Tensor, reduction: str) -> Tensor:
        return values

    def pad_across_processes(self, values: Tensor, dim: int, pad_index: float) -> Tensor:
        return values


TRAINER_ATTRIBUTES = [
    "loss_type",
    "beta",
    "importance_sampling_level",
    "top_entropy_quantile",
    "off_policy_mask_threshold",
    "entropy_coef",
    "use_adaptive_entropy",
    "max_completion_length",
]
TRAINER_ARGUMENTS = [
    "delta",
    "use_bias_correction_kl",
    "sapo_temperature_pos",
    "sapo_temperature_neg",
    "vespo_k_pos",
    "vespo_lambda_pos",
    "vespo_k_neg",
    "vespo_lambda_neg",
    "entropy_target",
    "entropy_coef_delta",
    "entropy_coef_min",
    "entropy_coef_max",
]


def stand_in(objective: Objective, batch: Batch) -> Any:
    """A GRPOTrainer without a model, with the settings of ``objective``, whose forward returns the batch's tensors."""
    trainer: Any = object.__new__(grpo_trainer.GRPOTrainer)
    for name in TRAINER_ATTRIBUTES:
        setattr(trainer, name, getattr(objective, name))
    loss = objective.policy_loss

    def setting(name: str) -> Any:
        return getattr(loss, name, SETTINGS_OF_A_LOSS.get(name, getattr(objective, name, None)))

    arguments = {name: setting(name) for name in TRAINER_ARGUMENTS}
    trainer.args = SimpleNamespace(steps_per_generation=1, **arguments)
    trainer.epsilon_low = setting("epsilon")
    upper = getattr(loss, "epsilon_high", None)
    trainer.epsilon_high = trainer.epsilon_low if upper is None else upper
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = objective.importance_sampling_correction
    trainer.vllm_importance_sampling_mode = objective.importance_sampling_mode
    trainer.vllm_importance_sampling_clip_min = objective.importance_sampling_min
    trainer.vllm_importance_sampling_clip_max = objective.importance_sampling_max
    trainer.aux_loss_enabled, trainer.current_gradient_accumulation_steps = False, 1
    trainer._entropy_bonus_enabled = objective.entropy_coef != 0 or objective.use_adaptive_entropy
    trainer._last_world_entropy, trainer._entropy_window_stats = math.inf, None
    trainer._metrics = {"train": defaultdict(list)}
    trainer.model, trainer.accelerator = SimpleNamespace(training=True), OneProcess()
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (batch.logprobs, batch.entropy, None)
    return trainer


def trl_block(first: str, last: str) -> Any:
    """Compiled statements of TRL's `_generate_and_score_completions`, from one that starts with ``first`` to ``last``."""
    method = inspect.unwrap(grpo_trainer.GRPOTrainer._generate_and_score_completions)
    tree = parsed(textwrap.dedent(inspect.getsource(method)))
    bodies = [node.body for node in ast.walk(tree) if isinstance(getattr(node, "body", None), list)]
    for body in bodies:
        sources = [ast.unparse(statement) for statement in body]
        starts = [index for index, source in enumerate(sources) if source.startswith(first)]
        ends = [index for index, source in enumerate(sources) if source.startswith(last)]
        if starts and ends:
            block = ast.Module(body[starts[0] : ends[-1] + 1], type_ignores=[])
            return compile(ast.fix_missing_locations(block), grpo_trainer.__file__, "exec")
    raise AssertionError(f"TRL 1.16.0 has no statements from {first!r} to {last!r}")


CORRECTION_BLOCK = trl_block(
    "mask = completion_mask if tool_mask is None", "if self.vllm_importance_sampling_mode in ['sequence_truncate'"
)
ADVANTAGE_BLOCK = trl_block("unscorable_mask =", "advantages = torch.nan_to_num")


def run_trl_block(block: Any, **names: Any) -> dict[str, Any]:
    scope = {**vars(grpo_trainer), **names}
    exec(block, scope)
    return scope


def trl_loss(objective: Objective, batch: Batch, on_policy: bool) -> tuple[Tensor, dict[str, list[float]]]:
    trainer = stand_in(objective, batch)
    rows, columns = batch.mask.shape
    mask = batch.mask.long()
    inputs = {
        "prompt_ids": torch.zeros(rows, 1, dtype=torch.long),
        "prompt_mask": torch.ones(rows, 1, dtype=torch.long),
        "completion_ids": torch.zeros(rows, columns, dtype=torch.long),
        "completion_mask": batch.present.long() * mask.any(1, keepdim=True),
        "tool_mask": mask,
        "advantages": batch.advantages,
        "num_items_in_batch": batch.mask.sum(),
        "ref_per_token_logps": batch.ref,
    }
    old = batch.logprobs.detach() if on_policy else batch.old
    if not on_policy:
        inputs["old_per_token_logps"] = old
    if objective.importance_sampling_correction:
        scope = run_trl_block(
            CORRECTION_BLOCK,
            self=trainer,
            completion_mask=inputs["completion_mask"],
            tool_mask=inputs["tool_mask"],
            old_per_token_logps=old,
            sampling_per_token_logps=batch.sampling,
        )
        inputs["importance_sampling_ratio"] = scope["vllm_importance_sampling_ratio"]
        inputs["sampling_per_token_logps"] = batch.sampling
    return trainer._compute_loss(None, inputs), trainer._metrics["train"]


def our_loss(
    objective: Objective, batch: Batch, on_policy: bool, pieces: list[list[int]] | None = None
) -> tuple[Tensor, MetricSums]:
    """Loss of the ragged batch; ``pieces`` are the completions of each micro-batch, in any order."""
    every = batch.mask
    threshold = entropy_threshold(batch.entropy.detach()[every], objective.top_entropy_quantile)
    totals = StepTotals(completions=batch.mask.shape[0], tokens=int(every.sum()))
    if objective.needs_entropy_threshold:
        chosen = (batch.entropy.detach().float() >= threshold) & every
        totals = StepTotals(totals.completions, totals.tokens, high_entropy_tokens=chosen.sum())
    loss, metrics = torch.zeros(()), MetricSums()
    for piece in pieces or [list(range(batch.mask.shape[0]))]:
        present = batch.present[piece]

        def flat(values: Tensor, piece: list[int] = piece, present: Tensor = present) -> Tensor:
            return values[piece][present]

        mask = flat(batch.mask)
        tokens = TokenBatch(
            rows=torch.arange(len(piece)).unsqueeze(1).expand(present.shape)[present],
            mask=mask,
            lengths=batch.mask[piece].sum(1),
            advantages=batch.advantages[piece],
            old_logprobs=None if on_policy else flat(batch.old),
            ref_logprobs=flat(batch.ref) if objective.needs_reference else None,
            sampling_logprobs=flat(batch.sampling) if objective.importance_sampling_correction else None,
            is_uncertain=flat(batch.entropy.detach().float() >= threshold)
            if objective.needs_entropy_threshold
            else None,
        )
        assert torch.equal(tokens.segments.of(tokens.rows, mask, len(piece)).lengths, tokens.lengths)
        part, sums = objective.loss(tokens, flat(batch.logprobs), flat(batch.entropy), totals)
        loss, metrics = loss + part, metrics + sums
    return loss, metrics


def gradients(loss: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    found = torch.autograd.grad(loss, (batch.logprobs, batch.entropy), allow_unused=True)
    zeros = torch.zeros_like(batch.logprobs)
    return tuple(zeros if gradient is None else gradient for gradient in found)  # type: ignore[return-value]


def settings_grid() -> list[dict[str, Any]]:
    """Every combination that makes sense, as the arguments that differ from the defaults."""
    kl = [{}, {"beta": 0.3}, {"beta": 0.3, "use_bias_correction_kl": False}]
    corrections: list[dict[str, Any]] = [{"importance_sampling_correction": False}]
    for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"):
        corrections.append({"importance_sampling_mode": mode, "importance_sampling_max": 1.2})
        bounds = {"importance_sampling_min": 0.8, "importance_sampling_max": None}
        corrections.append({"importance_sampling_mode": mode, **bounds})
    grid = []
    for loss_type in LOSS_TYPES:
        clipping: list[dict[str, Any]] = [{}]
        if loss_type in CLIPPED:
            clipping = [{}, {"epsilon": 0.1, "epsilon_high": 0.3}, {"delta": 1.35}]
        elif loss_type == "cispo":
            clipping = [{"epsilon_high": 1.2}, {"epsilon_high": 5.0}]
        elif loss_type == "sapo":
            clipping = [{}, {"sapo_temperature_pos": 2.1, "sapo_temperature_neg": 3.3}]
        elif loss_type == "vespo":
            shape = {"vespo_k_pos": 1.1, "vespo_lambda_pos": 0.7, "vespo_k_neg": 2.3, "vespo_lambda_neg": 1.9}
            clipping = [{}, shape]
        axes = [
            clipping,
            [{}, {"importance_sampling_level": "sequence"}],
            kl,
            [{}, {"top_entropy_quantile": 0.35}],
            [{}, {"off_policy_mask_threshold": 0.05}],
            corrections,
            [{}, {"entropy_coef": 0.2}],
        ]
        for parts in itertools.product(*axes):
            settings = {"loss_type": loss_type, **{name: value for part in parts for name, value in part.items()}}
            if loss_type != "vespo" or not settings.get("importance_sampling_mode", "").startswith("sequence"):
                grid.append(settings)
    return grid


def sample_of_grid(loss_type: str, size: int) -> list[dict[str, Any]]:
    candidates = [settings for settings in settings_grid() if settings["loss_type"] == loss_type]
    return random.Random(0).sample(candidates, size)


def quiet_objective(**settings: Any) -> Objective:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sequence ratios with token averages: warned about, by TRL as by us
        return Objective(max_completion_length=MAX_COMPLETION_LENGTH, **settings)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradient_equal_those_of_trl(loss_type: str):
    informative = 0
    for index, settings in enumerate(sample_of_grid(loss_type, size=150)):
        objective, batch = quiet_objective(**settings), make_batch(seed=index)
        for on_policy in (False, True):
            context = f"{settings}, on_policy={on_policy}"
            theirs, _ = trl_loss(objective, batch, on_policy)
            ours, _ = our_loss(objective, batch, on_policy)
            assert torch.isfinite(theirs), context
            torch.testing.assert_close(
                ours, theirs, rtol=1e-12, atol=1e-12, msg=lambda text, at=context: f"{at}: {text}"
            )
            their_gradients = gradients(theirs, batch)
            for mine, wanted in zip(gradients(ours, batch), their_gradients, strict=True):
                torch.testing.assert_close(
                    mine, wanted, rtol=1e-12, atol=1e-12, msg=lambda text, at=context: f"gradient, {at}: {text}"
                )
                assert mine[~batch.mask].eq(0).all(), context
            informative += int(their_gradients[0].abs().max() > 1e-3)
    assert informative > 0.75 * 2 * 150  # masks that drop everything would make all of this agree on nothing


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_any_split_and_any_order_of_completions_gives_the_same_loss_gradient_and_metrics(loss_type: str):
    chance = random.Random(1)
    for index, settings in enumerate(sample_of_grid(loss_type, size=25)):
        objective, batch = quiet_objective(**settings), make_batch(seed=index)
        whole, whole_metrics = our_loss(objective, batch, on_policy=False)
        wanted = gradients(whole, batch)
        order = chance.sample(range(6), 6)
        cuts = sorted(chance.sample(range(1, 6), 3))
        pieces = [order[start:stop] for start, stop in itertools.pairwise([0, *cuts, 6])]
        split, split_metrics = our_loss(objective, batch, False, [*pieces, []])  # a rank may have nothing left to do
        torch.testing.assert_close(split, whole, rtol=1e-12, atol=1e-12)
        for mine, theirs in zip(gradients(split, batch), wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
        found, expected = objective.summarize(split_metrics), objective.summarize(whole_metrics)
        assert found == pytest.approx(expected, rel=1e-11, abs=1e-11), settings


def test_metrics_equal_those_of_trl_where_they_mean_the_same():
    compared = set()
    for index, settings in enumerate(random.Random(2).sample(settings_grid(), 400)):
        if settings.get("importance_sampling_level") == "sequence":
            continue  # TRL's mean over completions counts those that are masked as a whole; ours does not
        objective, batch = quiet_objective(**settings), make_batch(seed=index)
        _, theirs = trl_loss(objective, batch, on_policy=False)
        _, sums = our_loss(objective, batch, on_policy=False)
        ours = objective.summarize(sums)
        for name in ours.keys() & theirs.keys() - {"vespo/phi_seq_mean"}:
            assert ours[name] == pytest.approx(theirs[name][0], rel=1e-6), (name, settings)  # TRL: flags in float32
            compared.add(name)
    clip_names = {f"clip_ratio/{name}" for name in ("low_mean", "high_mean", "region_mean", "low_min", "high_max")}
    assert compared == clip_names | {"kl", "entropy", "cispo_clip_ratio", "policy_loss"}


def test_the_adaptive_entropy_coefficient_moves_and_applies_as_in_trl():
    batch = make_batch(seed=3)
    objective = Objective(
        use_adaptive_entropy=True, entropy_coef=0.1, entropy_target=2.0, importance_sampling_correction=False
    )
    trainer, controller = stand_in(objective, batch), objective.entropy_controller()
    assert controller is not None
    for scale in (1.0, 0.2, 0.4, 1.3, 0.1, 0.1):
        scaled = Batch(**{**vars(batch), "entropy": batch.entropy.detach() * scale})
        trainer._get_per_token_logps_and_entropies = lambda *args, at=scaled, **kwargs: (at.logprobs, at.entropy, None)
        mask = batch.mask.long()
        prompt = torch.zeros(mask.shape[0], 1, dtype=torch.long)
        theirs = trainer._compute_loss(
            None,
            {
                "prompt_ids": prompt,
                "prompt_mask": prompt,
                "completion_ids": mask,
                "completion_mask": mask,
                "advantages": batch.advantages,
                "num_items_in_batch": mask.sum(),
            },
        )
        every = batch.mask
        tokens = TokenBatch(every.nonzero()[:, 0], every[every], every.sum(1), batch.advantages)
        totals = StepTotals(mask.shape[0], int(mask.sum()))
        ours, sums = objective.loss(tokens, batch.logprobs[every], scaled.entropy[every], totals, controller.applied)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        controller.update(objective.summarize(sums)["entropy_of_trained_tokens"])
        assert controller.coefficient == pytest.approx(trainer.entropy_coef)


def reward_tables() -> dict[str, Tensor]:
    """(12, 2) rewards of three groups of four; NaN is None."""
    full = torch.rand(12, 2, generator=torch.Generator().manual_seed(5)).round(decimals=2)
    tables = {name: full.clone() for name in ("full", "column_missing", "row_unscorable", "one_scorable_in_group")}
    tables["column_missing"][:, 1] = NAN
    tables["row_unscorable"][5] = NAN
    tables["one_scorable_in_group"][4:7] = NAN
    tables["partly_none"] = full.clone()
    tables["partly_none"][[0, 5, 6], [1, 0, 1]] = NAN
    tables["none_scorable_in_group"] = full.clone()
    tables["none_scorable_in_group"][8:] = NAN
    tables["unanimous_group"] = full.clone()
    tables["unanimous_group"][0:4] = 0.5
    return tables


@pytest.mark.parametrize("table", reward_tables())
@pytest.mark.parametrize(
    ("aggregation", "scale"),
    [
        ("sum_then_normalize", "group"),
        ("sum_then_normalize", "batch"),
        ("sum_then_normalize", "none"),
        ("normalize_then_sum", "group"),  # TRL ignores scale_rewards here; ours refuses another
    ],
)
def test_advantages_equal_those_of_trl_for_any_order_of_the_rows(table: str, aggregation: str, scale: str):
    values, weights = reward_tables()[table], torch.tensor([1.0, -0.4])
    trainer = SimpleNamespace(
        multi_objective_aggregation=aggregation,
        scale_rewards=scale,
        reward_weights=weights,
        reward_funcs=[None, None],
    )
    scope = run_trl_block(
        ADVANTAGE_BLOCK, self=trainer, rewards_per_func=values.clone(), device="cpu", num_generations=4
    )
    order = torch.randperm(12, generator=torch.Generator().manual_seed(9))
    groups = torch.arange(3).repeat_interleave(4)
    result = AdvantageEstimator(scale, aggregation)(values[order], groups[order] * 17 + 3, weights)
    torch.testing.assert_close(result.advantages, scope["advantages"][order], rtol=1e-9, atol=1e-9)
    assert result.advantages.abs().max() > 0.1
