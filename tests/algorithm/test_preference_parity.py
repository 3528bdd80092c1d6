"""Loss, gradient of every weight and metrics of preferences against TRL 1.16.0's own trainers, in float64.

TRL's `_compute_loss` runs as it is on padded batches of a toy model; ours scores the same tokens packed, prompts shared.
Only the tokens are given: TRL encodes prompt and completion of plain text together, we encode them one after the other, as
they are generated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_models import save_toy_model

from grpo_lightning.algorithm.preferences import make_preference_loss
from grpo_lightning.algorithm.preferences.metrics import logged, mean_entries, with_margin
from grpo_lightning.datamodules.written.preferences import Preferences
from grpo_lightning.modules.dpo import DPOModule
from grpo_lightning.types import Rollouts

trl = pytest.importorskip("trl")
if trl.__version__ != "1.16.0":
    pytest.skip(f"parity is defined against TRL 1.16.0, found {trl.__version__}", allow_module_level=True)

from trl.experimental.cpo import cpo_trainer  # noqa: E402
from trl.trainer import dpo_trainer, kto_trainer  # noqa: E402

CPU = torch.device("cpu")
PROMPTS = [[11, 12, 13, 14], [21, 22], [31, 32, 33, 34, 35, 36]]
COMPLETIONS = [[40, 41, 42], [43, 44, 45, 46, 47], [50], [51, 52, 53, 54], [60, 61, 62, 63, 64, 65], [66, 67]]
"""Chosen and rejected of each prompt in turn."""


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_preferences(in_pairs: bool) -> Preferences:
    logprobs = [[0.0] * len(ids) for ids in COMPLETIONS]
    rollouts = Rollouts.from_lists(PROMPTS, COMPLETIONS, logprobs, [False] * 6, [0, 0, 1, 1, 2, 2])
    is_chosen = torch.tensor([True, False] * 3)
    if in_pairs:
        return Preferences(rollouts, is_chosen, True)
    prompts = [PROMPTS[n // 2] for n in range(6)]
    each = Rollouts.from_lists(prompts, COMPLETIONS, logprobs, [False] * 6, list(range(6)))
    return Preferences(each, is_chosen, False)


@pytest.fixture(scope="module")
def module(tmp_path_factory) -> DPOModule:
    """In float64 (GPT-2: the norms of most others are float32 always), moved away from its reference."""
    no_dropout = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    path = save_toy_model(tmp_path_factory.mktemp("gpt2"), "gpt2", **no_dropout)
    module = DPOModule(model_name_or_path=str(path), microbatch_layout="packed")
    module.configure_model()
    module.policy.model.double()
    module.preference_passes.reference_passes.start()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.policy.model.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


class FusedHead(nn.Module):
    """A model that answers as TRL's patched forward does: numbers per token, 0 where nothing is to be predicted."""

    is_gradient_checkpointing = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **options: Any) -> Any:
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1]
        targets, counted = labels[:, 1:].clamp(min=0), labels[:, 1:] != -100
        log_p = logits.log_softmax(-1)
        chosen = log_p.gather(-1, targets[..., None])[..., 0].masked_fill(~counted, 0.0)
        nothing = torch.zeros_like(chosen)
        return SimpleNamespace(
            log_probs=chosen, entropy=nothing, mean_logits=nothing, is_top1=torch.zeros_like(counted)
        )


class OneProcess:
    """Accelerate's calls for a world of one."""

    device = CPU

    def gather(self, values: Any) -> Any:
        return values

    gather_for_metrics = gather


def padded(rows: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
    longest = max(len(prompt + completion) for prompt, completion in rows)

    def fill(row: list[int]) -> list[int]:
        return row + [0] * (longest - len(row))

    return {
        "input_ids": torch.tensor([fill(prompt + completion) for prompt, completion in rows]),
        "attention_mask": torch.tensor([fill([1] * len(prompt + completion)) for prompt, completion in rows]),
        "completion_mask": torch.tensor([fill([0] * len(prompt) + [1] * len(done)) for prompt, done in rows]),
    }


def stand_in(kind: type, module: DPOModule, **settings: Any) -> Any:
    trainer = object.__new__(kind)
    trainer.model = FusedHead(module.policy.model.train())
    trainer.ref_model = FusedHead(module.preference_passes.reference_passes.reference.model)
    trainer.accelerator, trainer.args = OneProcess(), SimpleNamespace(gradient_checkpointing_kwargs=None)
    trainer._metrics = {"train": defaultdict(list)}
    trainer.aux_loss_enabled = trainer.precompute_ref_logps = False
    trainer._total_train_tokens, trainer._tp_size = 0, 1
    for name, value in settings.items():
        setattr(trainer, name, value)
    return trainer


def gradients(module: DPOModule, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(module.policy.model.parameters()), retain_graph=True))


def ours(module: DPOModule, in_pairs: bool, name: str, **settings: Any) -> tuple[Tensor, dict[str, float]]:
    loss, preferences = make_preference_loss(name, settings), make_preferences(in_pairs)
    parts = module.preference_passes
    parts.loss, rows = loss, torch.arange(6)
    scores, _ = parts.scores(preferences, rows, parts.reference_logps(preferences), parts.kl(preferences))
    values = loss.per_example(scores)
    return values.mean(), with_margin(mean_entries(logged(loss, scores, values)).result())


def check(module: DPOModule, mine: tuple[Tensor, dict[str, float]], theirs: Tensor, metrics: dict[str, list]) -> None:
    torch.testing.assert_close(mine[0], theirs, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradients(module, mine[0]), gradients(module, theirs), rtol=1e-6, atol=1e-10)
    assert any(float(gradient.abs().max()) > 1e-5 for gradient in gradients(module, theirs))
    for name, value in mine[1].items():
        if name != "loss":
            assert value == pytest.approx(metrics[name][0], rel=1e-9), name


GRID = [
    *((name, {"beta": beta}) for name in ("sigmoid", "hinge", "ipo", "sigmoid_norm") for beta in (0.05, 0.1, 2.0)),
    *(("robust", {"beta": beta, "label_smoothing": share}) for beta in (0.1, 0.5) for share in (0.0, 0.2, 0.45)),
]


@pytest.mark.parametrize(("name", "settings"), GRID)
def test_losses_of_pairs_are_those_of_trl(module, name, settings):
    trainer = stand_in(
        dpo_trainer.DPOTrainer,
        module,
        **{"label_smoothing": 0.0, **settings},
        loss_types=[name],
        loss_weights=[1.0],
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        use_weighting=False,
    )
    pairs = [(PROMPTS[p], COMPLETIONS[2 * p + which]) for which in (0, 1) for p in range(3)]
    theirs = trainer._compute_loss(trainer.model, padded(pairs), return_outputs=False)
    check(module, ours(module, True, name, **settings), theirs, trainer._metrics["train"])


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize(("good", "bad"), [(1.0, 1.0), (1.3, 0.7)])
def test_losses_of_single_completions_are_those_of_trl(module, name, beta, good, bad):
    settings = {"beta": beta, "desirable_weight": good, "undesirable_weight": bad}
    trainer = stand_in(kto_trainer.KTOTrainer, module, **settings, loss_type=name, calculate_KL=name == "kto")
    rows = [(PROMPTS[n // 2], COMPLETIONS[n]) for n in range(6)]
    others = padded([(PROMPTS[n // 2], COMPLETIONS[n - 1]) for n in range(6)])
    batch = padded(rows) | {f"KL_{key}": value for key, value in others.items()}
    batch["label"] = torch.tensor([True, False] * 3)
    theirs = trainer._compute_loss(trainer.model, batch, return_outputs=False)
    check(module, ours(module, False, name, **settings), theirs, trainer._metrics["train"])
    if name == "kto":
        found = module.preference_passes.kl(make_preferences(False)).item()
        assert found == pytest.approx(trainer._metrics["train"]["kl"][0], rel=1e-9)


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 0.5), (2.5, 1.4), (10.0, 0.0)])
def test_simpo_is_that_of_trls_cpo_trainer(module, beta, gamma):
    trainer = stand_in(
        cpo_trainer.CPOTrainer,
        module,
        loss_type="simpo",
        beta=beta,
        simpo_gamma=gamma,
        alpha=0.0,
        label_smoothing=0.0,
    )
    mask = padded([(PROMPTS[n // 2], COMPLETIONS[n]) for n in range(6)])
    labels = mask["input_ids"].masked_fill(mask["completion_mask"] == 0, -100)
    logits = module.policy.model(input_ids=mask["input_ids"], attention_mask=mask["attention_mask"]).logits
    means = trainer.get_batch_logps(logits, labels, average_log_prob=True)
    losses, chosen, rejected = trainer.cpo_loss(means[0::2], means[1::2])
    mine, numbers = ours(module, True, "simpo", beta=beta, simpo_gamma=gamma)
    torch.testing.assert_close(mine, losses.mean(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradients(module, mine), gradients(module, losses.mean()), rtol=1e-6, atol=1e-10)
    assert numbers["rewards/chosen"] == pytest.approx(chosen.mean().item())
    assert numbers["rewards/rejected"] == pytest.approx(rejected.mean().item())
