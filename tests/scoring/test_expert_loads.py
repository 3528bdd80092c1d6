"""The load-balancing loss of packed and padded micro-batches against transformers' own on padded sequences."""

from __future__ import annotations

import pytest
import torch
from architectures import build
from peft import LoraConfig, get_peft_model
from test_scorer import assert_relatively_close, some_rollouts
from torch import Tensor, nn

from grpo_lightning.numerics.load_balance import load_balance_loss, sum_of_loads
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.types import Rollouts

ROWS = torch.arange(7)


def own_loss(model: nn.Module, rollouts: Rollouts) -> Tensor:
    """The model's own loss of all sequences in one right-padded batch with its mask."""
    prompts, completions = rollouts.prompts(), rollouts.completions()
    sequences = [torch.cat([prompts[int(rollouts.group[row])], completions[row]]) for row in ROWS.tolist()]
    ids = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([[len(ids)] for ids in sequences])
    return model(input_ids=ids, attention_mask=mask.long(), output_router_logits=True, use_cache=False).aux_loss


def gradient(model: nn.Module) -> Tensor:
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return flat


def assert_same_loss(model: nn.Module, layout: str) -> None:
    rollouts, scorer = some_rollouts(), Scorer(model, 0.7, layout)
    expected = own_loss(model, rollouts)
    expected.backward()
    expected_gradient = gradient(model)
    assert expected_gradient.norm() > 1e-3
    for budget in (10_000, 25):
        plan = scorer.plan(rollouts, ROWS, budget)
        assert (len(plan) == 1) == (budget == 10_000)
        with torch.no_grad():
            of_step = sum_of_loads([scorer.expert_loads(rollouts, rows) for rows in plan])
        total = torch.zeros(())
        for rows in plan:
            scores = scorer.score(rollouts, rows, with_loads=True)
            share = load_balance_loss(scores.loads, of_step)
            share.backward()
            total += share.detach()
        torch.testing.assert_close(total, expected.detach())
        assert_relatively_close(gradient(model), expected_gradient, 1e-4)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "gpt_oss", "granitemoe"])
def test_the_loss_is_transformers_own_in_both_layouts_and_any_split(name, layout):
    assert_same_loss(build(name), layout)


@pytest.mark.parametrize("name", ["qwen3_next", "granitemoehybrid"])
def test_the_loss_is_transformers_own_for_hybrids(name):
    assert_same_loss(build(name), "padded")


def test_the_loss_trains_adapters_on_experts_and_survives_recomputed_activations():
    torch.manual_seed(0)
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=names, init_lora_weights=False)
    model = get_peft_model(build("qwen3_moe"), config)
    scorer, rollouts = Scorer(model, 0.7), some_rollouts()

    def of_adapters() -> dict[str, Tensor]:
        scores = scorer.score(rollouts, ROWS, with_loads=True)
        load_balance_loss(scores.loads, scores.loads).backward()
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return found

    plain = of_adapters()
    # The experts of the first layer move what the router of the second sees.
    assert any("layers.0.mlp.experts" in name and bool(grad.any()) for name, grad in plain.items())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    recomputed = of_adapters()
    assert plain.keys() == recomputed.keys()
    for name, grad in plain.items():
        torch.testing.assert_close(recomputed[name], grad)
