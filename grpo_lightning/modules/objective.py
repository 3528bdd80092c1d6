"""ObjectiveModule: the loss of completions under the policy, and the logprobs that it compares."""

from dataclasses import fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from grpo_lightning.algorithm.entropy import entropy_threshold, high_entropy_mask
from grpo_lightning.algorithm.experience import Experience, MicroBatch
from grpo_lightning.algorithm.objective import Objective
from grpo_lightning.distributed.gather import gather_objects
from grpo_lightning.distributed.sharding import is_sharded
from grpo_lightning.memory.budget import LARGEST_BUDGET, check_budget
from grpo_lightning.metrics.step_report import StepReport
from grpo_lightning.modules.evaluation import EvaluationModule
from grpo_lightning.numerics.device_copy import to_device
from grpo_lightning.policy.dropout import has_dropout
from grpo_lightning.policy.dtypes import DTYPES
from grpo_lightning.policy.reference import FrozenReference, Reference, make_reference
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.types import Rollouts


class ObjectiveModule(EvaluationModule):
    """Which loss the policy is trained on; names and defaults as in TRL, formulas in grpo_lightning/algorithm/losses.py.

    Args:
        loss_type: grpo, bnpo, dr_grpo, dapo, luspo (clipped surrogate, different averages), cispo, sapo or vespo.
        beta: Weight of the KL term to the reference; 0 means that there is no reference.
        epsilon: How far the ratio may fall below 1 before a bad token's gradient stops.
        epsilon_high: The same above 1, for good tokens; None means epsilon. With cispo: the largest weight itself,
            about 5.0.
        delta: Largest ratio in the unclipped term (two-sided clipping); None for no cap.
        importance_sampling_level: token; sequence (GSPO); or sequence_token (GSPO's value with each token's own
            gradient).
        use_bias_correction_kl: Multiplies the KL term by the importance ratio, so that its gradient is unbiased off-
            policy.
        off_policy_mask_threshold: Drops completions with negative advantage whose mean drift from the sampler exceeds
            this, in nats per token.
        top_entropy_quantile: Share of tokens, by entropy at the weights that start the step, that the policy term
            trains; 1 for all.
        entropy_coef: Weight of the entropy bonus (mean entropy per token); where an adaptive coefficient starts.
        use_adaptive_entropy: Raises the coefficient while entropy is at or below entropy_target, lowers it above.
        entropy_coef_min: Lower bound of the adaptive coefficient.
        entropy_coef_max: Upper bound of the adaptive coefficient.
        entropy_coef_delta: Change of the adaptive coefficient per GRPO step.
        entropy_target: Nats per token.
        sapo_temperature_pos: Sharpness of SAPO's gate for tokens with positive advantage.
        sapo_temperature_neg: Sharpness of SAPO's gate for the others.
        vespo_k_pos: VESPO, advantage of 0 or more: how strongly completions that became less likely are faded.
        vespo_lambda_pos: VESPO, advantage of 0 or more: how strongly completions that became more likely are faded.
        vespo_k_neg: VESPO, negative advantage: as vespo_k_pos.
        vespo_lambda_neg: VESPO, negative advantage: as vespo_lambda_pos.
        importance_sampling_correction: Corrects for the sampler's probabilities differing from the trainer's (TRL:
            vllm_importance_sampling_*).
        importance_sampling_mode: Level (token, sequence, geometric) and what happens outside the bounds (truncate,
            mask): token_truncate, ...
        importance_sampling_min: Lower bound of the correction; None for none.
        importance_sampling_max: Upper bound of the correction; None for none.
        mask_truncated_completions: Leave completions that hit max_completion_length out of the loss (DAPO).
        sync_ref_model: Move the reference towards the policy every ref_model_sync_steps steps.
        ref_model_mixup_alpha: Share of the policy in that move.
        ref_model_sync_steps: GRPO steps between moves.
        ref_model_device: Where the copy lives that full training compares with (cpu, cuda:1); None for the policy's
            device. Adapters need no copy.
        ref_model_dtype: float32, bfloat16 or float16: what that copy is held in; None for the policy's.
        max_tokens_per_microbatch: Tokens in one forward and backward pass: the memory knob. It does not change the
            gradient. auto: on a GPU what its free memory allows, up to 16384 (65536 for small models), measured before the first step; 16384
            elsewhere. A resumed run keeps what was chosen.
        microbatch_layout: packed (no padding, prompts computed once per group), padded (any architecture), or auto.
        **evaluation: Arguments of EvaluationModule.
    """

    def __init__(
        self,
        loss_type: str = "dapo",
        beta: float = 0.0,
        epsilon: float = 0.2,
        epsilon_high: float | None = None,
        delta: float | None = None,
        importance_sampling_level: str = "token",
        use_bias_correction_kl: bool = True,
        off_policy_mask_threshold: float | None = None,
        top_entropy_quantile: float = 1.0,
        entropy_coef: float = 0.0,
        use_adaptive_entropy: bool = False,
        entropy_coef_min: float = 0.0,
        entropy_coef_max: float = 1.0,
        entropy_coef_delta: float = 0.005,
        entropy_target: float = 0.2,
        sapo_temperature_pos: float = 1.0,
        sapo_temperature_neg: float = 1.05,
        vespo_k_pos: float = 2.0,
        vespo_lambda_pos: float = 3.0,
        vespo_k_neg: float = 3.0,
        vespo_lambda_neg: float = 2.0,
        importance_sampling_correction: bool = True,
        importance_sampling_mode: str = "sequence_mask",
        importance_sampling_min: float | None = None,
        importance_sampling_max: float | None = 3.0,
        mask_truncated_completions: bool = False,
        sync_ref_model: bool = False,
        ref_model_mixup_alpha: float = 0.6,
        ref_model_sync_steps: int = 512,
        ref_model_device: str | None = None,
        ref_model_dtype: str | None = None,
        max_tokens_per_microbatch: int | Literal["auto"] = "auto",
        microbatch_layout: Literal["auto", "packed", "padded"] = "auto",
        **evaluation: Any,
    ) -> None:
        names = {field.name for field in fields(Objective)}
        settings = {name: value for name, value in locals().items() if name in names}
        super().__init__(**evaluation)
        self.objective = Objective(**settings, max_completion_length=self.sampling.max_completion_length)
        self.entropy_controller = self.objective.entropy_controller()
        if sync_ref_model and not self.objective.needs_reference:
            raise ValueError("model.sync_ref_model needs a reference: with model.beta=0 there is none. Set model.beta.")
        self.has_token_budget = max_tokens_per_microbatch != "auto"
        """Whether the config says how large a micro-batch is; otherwise the start of training, or a checkpoint does."""
        check_budget(max_tokens_per_microbatch)
        self.mask_truncated_completions = mask_truncated_completions
        self.sync_ref_model = sync_ref_model
        self.ref_model_mixup_alpha = ref_model_mixup_alpha
        self.ref_model_sync_steps = ref_model_sync_steps
        self.max_tokens_per_microbatch = (
            LARGEST_BUDGET if max_tokens_per_microbatch == "auto" else max_tokens_per_microbatch
        )
        self.saved_token_budget: int | None = None
        """Of the run that this one goes on from, where auto keeps it."""
        self.microbatch_layout = microbatch_layout
        self.ref_model_device, self.ref_model_dtype = self._reference_placement(ref_model_device, ref_model_dtype)
        self.reference: Reference | None = None
        self.has_dropout = False

    def _reference_placement(
        self, device: str | None, dtype: str | None
    ) -> tuple[torch.device | None, torch.dtype | None]:
        for name, value in (("ref_model_device", device), ("ref_model_dtype", dtype)):
            if value is not None and (self.finetuning.has_adapters or not self.objective.needs_reference):
                reason = (
                    "adapters need no copy of the model" if self.finetuning.has_adapters else "model.beta=0 needs none"
                )
                raise ValueError(f"model.{name}={value!r} has no effect: {reason}. Leave it out.")
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"model.ref_model_dtype={dtype!r} is unknown. Choose {', '.join(DTYPES)}.")
        try:
            return None if device is None else torch.device(device), None if dtype is None else DTYPES[dtype]
        except RuntimeError as error:
            raise ValueError(f"model.ref_model_device={device!r} is no device: {error}") from error

    def on_fit_start(self) -> None:
        """Copies the reference and makes the scorers, once the weights are what training starts from."""
        super().on_fit_start()
        assert self.policy is not None
        self.scorer = self._make_scorer(self.policy)
        self.has_dropout = has_dropout(self.policy)
        if self.objective.needs_reference and self.reference is None:
            self.reference = self._make_reference()
        if self.reference is not None:
            self.reference.to(self.device)
            shared = self.reference.model is self.policy
            self.reference_scorer = self.scorer if shared else self._make_scorer(self.reference.model)

    def _make_reference(self) -> Reference:
        assert self.policy is not None
        if self.is_sharded and not self.finetuning.has_adapters:  # shards cannot be copied as a module
            return FrozenReference(self.load_policy(), self.ref_model_device, self.ref_model_dtype, is_own=True)
        is_continued = self.finetuning.adapter_name_or_path is not None
        return make_reference(
            self.policy, self.sync_ref_model, is_continued, self.ref_model_device, self.ref_model_dtype
        )

    def _make_scorer(self, model: nn.Module) -> Scorer:
        return Scorer(model, self.sampling.temperature, self.microbatch_layout, float32_head=self.float32_head)

    def experience(self, rollouts: Rollouts, num_updates: int = 1) -> Experience:
        """Moves the step to the device; adds old and reference logprobs where needed. Advantages are 0 until scored."""
        mask = rollouts.completion_mask
        if self.mask_truncated_completions:
            mask = mask & ~rollouts.truncated[rollouts.token_rows()]
        needs_threshold = self.objective.needs_entropy_threshold
        old_logprobs = ref_logprobs = is_uncertain = None
        # With dropout the current logprobs are noisy, and what the sampler is compared with must not be.
        needs_old = self.has_dropout or self.objective.needs_old_logprobs_pass(num_updates)
        if needs_old or needs_threshold:
            old_logprobs, entropy = self.score_tokens(self.scorer, rollouts, with_entropy=needs_threshold)
            if needs_threshold:
                entropies = torch.cat(self.replica.of_all(entropy[mask.to(self.device)].cpu())).to(self.device)
                threshold = entropy_threshold(entropies, self.objective.top_entropy_quantile)
                is_uncertain = high_entropy_mask(entropy, threshold, mask.to(self.device))
        if self.objective.needs_reference:
            assert self.reference is not None
            with self.reference.active():
                ref_logprobs, _ = self.score_tokens(self.reference_scorer, rollouts)
        return Experience(
            rollouts=rollouts,
            advantages=torch.zeros(rollouts.num_completions),
            mask=mask,
            sampling_logprobs=to_device(rollouts.sampling_logprobs, self.device),
            old_logprobs=old_logprobs if needs_old else None,
            ref_logprobs=ref_logprobs,
            is_uncertain=is_uncertain,
        )

    @torch.no_grad()
    def score_tokens(self, scorer: Scorer, rollouts: Rollouts, with_entropy: bool = False) -> tuple[Tensor, Tensor]:
        """(T,) logprobs and (T,) entropies, or an empty tensor, of all completion tokens; dropout off."""
        logprobs = torch.empty(rollouts.completion_ids.numel(), device=self.device)
        entropy = torch.empty_like(logprobs) if with_entropy else logprobs[:0]
        device = next(scorer.model.parameters()).device  # of a reference it may be another
        was_training = scorer.model.training
        scorer.model.eval()
        plan = scorer.plan(rollouts, torch.arange(rollouts.num_completions), self.max_tokens_per_microbatch)
        if is_sharded(scorer.model):  # ranks gather the weights of every pass together
            for _ in range(max(gather_objects(len(plan))) - len(plan)):
                scorer.idle(device)
        for rows in plan:
            index = to_device(rollouts.tokens_of(rows), self.device)
            scores = scorer.score(rollouts, rows, device, with_entropy)
            logprobs[index] = scores.logprobs.to(self.device)
            if scores.entropy is not None:
                entropy[index] = scores.entropy.to(self.device)
        scorer.model.train(was_training)
        return logprobs, entropy

    def policy_loss(self, experience: Experience, micro_batch: MicroBatch, report: StepReport) -> Tensor:
        """This micro-batch's share of the loss, times the number of replicas, over which strategies take the mean."""
        if not len(micro_batch.rows):  # a pass that other ranks' collectives wait for
            return self.scorer.idle(self.device)
        logprobs, entropy = self.scorer.score(
            experience.rollouts,
            micro_batch.rows,
            self.device,
            with_entropy=True,
            entropy_grad=self.objective.entropy_has_gradient,
        )
        loss, metrics = self.objective.loss(
            experience.train_tokens(micro_batch.rows),
            logprobs,
            entropy,
            micro_batch.totals,
            self.entropy_controller.applied if self.entropy_controller else None,
        )
        if self.replica.leads:  # the others have the same numbers
            report.add(metrics)
            tokens = self.scorer.count_tokens(experience.rollouts, micro_batch.rows)
            report.add_mean("packing/fill", torch.tensor([tokens / self.max_tokens_per_microbatch]))
        return loss * self.replica.count

    def move_reference(self) -> None:
        """Every ref_model_sync_steps GRPO steps, mixes the policy into the reference."""
        if self.sync_ref_model and self.steps_done % self.ref_model_sync_steps == 0:
            assert self.reference is not None and self.policy is not None
            self.reference.sync(self.policy, self.ref_model_mixup_alpha)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds a reference that has moved, an entropy coefficient that has changed, and the size of micro-batches."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["max_tokens_per_microbatch"] = self.max_tokens_per_microbatch
        checkpoint["reference"] = self.reference.state_dict() if self.reference else {}
        checkpoint["entropy_controller"] = self.entropy_controller.state_dict() if self.entropy_controller else {}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores them; the reference of an unfinished run must not be the restored policy."""
        super().on_load_checkpoint(checkpoint)
        if not self.has_token_budget:  # another split into micro-batches would round otherwise
            self.saved_token_budget = checkpoint.get("max_tokens_per_microbatch")
            self.max_tokens_per_microbatch = self.saved_token_budget or self.max_tokens_per_microbatch
        if self.entropy_controller:
            self.entropy_controller.load_state_dict(checkpoint["entropy_controller"])
        if self.objective.needs_reference:
            if not self.is_sharded:  # shards are restored after on_fit_start, which has made it
                self.reference = self._make_reference()  # weights that training started from: not restored yet
            assert self.reference is not None
            self.reference.load_state_dict(checkpoint["reference"])
