"""The settings of preference training: those of its parts, and which loss and reference they mean."""

from __future__ import annotations

from dataclasses import dataclass

from grpo_lightning.algorithm.preferences import PreferenceLoss, PreferenceLossSpec, make_preference_loss
from grpo_lightning.datamodules.written.demonstrations import WrittenSettings
from grpo_lightning.policy.settings import PolicySettings
from grpo_lightning.training.load_balance import LoadBalanceSettings
from grpo_lightning.training.optimization import OptimizationSettings
from grpo_lightning.training.passes import PassSettings
from grpo_lightning.training.reference_passes import ReferenceSettings


@dataclass(frozen=True, kw_only=True)
class DPOSettings(
    WrittenSettings, PassSettings, LoadBalanceSettings, OptimizationSettings, ReferenceSettings, PolicySettings
):
    """All of ``model.*`` for preferences.

    Args:
        loss_type: Of pairs: sigmoid (DPO), hinge, ipo, robust, sigmoid_norm (log ratios per token), simpo (the same without
            a reference). Of single completions with labels, or of the two of a pair one by one: kto,
            apo_zero_unpaired. Or the import path of a subclass of PreferenceLoss, or class_path and init_args.
        beta: How strongly the policy is held to the reference; for simpo the scale of the rewards. By default the loss's:
            0.1, and 2 for simpo.
        label_smoothing: For robust: the share of pairs in [0, 0.5) believed to be labelled the wrong way round.
        simpo_gamma: For simpo: the margin that is asked for, 0.5 by default.
        desirable_weight: For kto: factor of the loss of good completions, 1 by default.
        undesirable_weight: For kto: factor of that of bad ones.
        reference_free: Compare with nothing: as if the reference gave every completion the same.
        precompute_ref_log_probs: Score all completions under the reference before the first step, and keep the numbers
            instead of the reference: full training then needs no copy of the model.
        seed: With the step, decides every dropout mask of the run.
    """

    loss_type: PreferenceLossSpec = "sigmoid"
    beta: float | None = None
    label_smoothing: float | None = None
    simpo_gamma: float | None = None
    desirable_weight: float | None = None
    undesirable_weight: float | None = None
    reference_free: bool = False
    precompute_ref_log_probs: bool = False
    seed: int = 0

    def loss(self) -> PreferenceLoss:
        """The loss that these describe."""
        names = ("beta", "label_smoothing", "simpo_gamma", "desirable_weight", "undesirable_weight")
        return make_preference_loss(self.loss_type, {name: getattr(self, name) for name in names})

    def without_reference(self, loss: PreferenceLoss) -> str | None:
        """The setting for which no reference is held in memory; None where one is."""
        if not loss.needs_reference:
            for name in ("reference_free", "precompute_ref_log_probs"):
                if getattr(self, name):
                    raise ValueError(
                        f"model.{name}=true has no effect with model.loss_type={self.loss_type!r}, which has no reference. "
                        "Leave it out."
                    )
            return f"model.loss_type={self.loss_type!r}"
        if self.reference_free and self.precompute_ref_log_probs:
            raise ValueError(
                "model.precompute_ref_log_probs=true has no effect with model.reference_free=true. Use one."
            )
        if self.precompute_ref_log_probs and loss.needs_kl:
            raise ValueError(
                f"model.precompute_ref_log_probs=true: model.loss_type={self.loss_type!r} compares with completions of "
                "other prompts, which are others in every epoch. Leave it out, or use apo_zero_unpaired."
            )
        for name in ("reference_free", "precompute_ref_log_probs"):
            if getattr(self, name):
                return f"model.{name}=true"
        return None
