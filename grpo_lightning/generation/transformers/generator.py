"""Generation with any causal language model of transformers, in this process, from the live policy."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby

import torch
from peft import PeftModel
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from grpo_lightning.generation.base import Generator, OnCompleted, SamplingSettings
from grpo_lightning.generation.parts import OnEnded, Part, PartEnd, PartRequest
from grpo_lightning.generation.room import check_room
from grpo_lightning.generation.stopping import StopRule
from grpo_lightning.generation.transformers.collecting import check_finite, collect_rollouts
from grpo_lightning.generation.transformers.decode_attention import fast_decode_attention
from grpo_lightning.generation.transformers.decode_probe import decoding_obstacle
from grpo_lightning.generation.transformers.decoding import Transcript, decode
from grpo_lightning.generation.transformers.kv_cache import ragged_cache
from grpo_lightning.generation.transformers.sampling import prompt_uniforms
from grpo_lightning.numerics.evaluation_mode import evaluating
from grpo_lightning.numerics.output_head import base_model
from grpo_lightning.numerics.routers import RouterForm, recorded_routes, router_form
from grpo_lightning.policy.end_of_sequence import end_of_sequence_ids
from grpo_lightning.scoring.fast_kernels import uncompiled_layers
from grpo_lightning.types import PromptImages, Rollouts
from grpo_lightning.vision.processing import ImageProcessing

FORWARD_ARGUMENTS = ("input_ids", "attention_mask", "position_ids", "past_key_values", "logits_to_keep")


class TransformersGenerator(Generator):
    """Samples from the policy itself, with transformers: no second copy of the weights, no engine, CPU or GPU.

    The generator for machines without vLLM. Each prompt is computed once for its G completions, and completions leave
    the batch as they end, so its time follows the tokens that are sampled and not the longest completion.

    A completion depends on its prompt, its seed and the weights; the batch around it matters only through rounding.
    The ``sampling_logprobs`` are those of the distribution that tokens were drawn from: log softmax(logits /
    temperature), renormalised over the tokens that top_p, top_k and min_p leave; temperature 1 for greedy decoding.

    Args:
        max_batch_size: Completions decoded at once, at least num_generations; less needs less memory for the cache of
            keys and values. None decodes all completions of a step together.
        max_model_length: Tokens of a prompt with its completion; None for all positions of the model. Models with
            LongRoPE or dynamic RoPE scaling take their frequencies from it, in sampling and in training.
    """

    def __init__(self, max_batch_size: int | None = None, max_model_length: int | None = None) -> None:
        if max_batch_size is not None and max_batch_size < 1:
            raise ValueError(f"max_batch_size={max_batch_size} decodes nothing. Give at least model.num_generations.")
        if max_model_length is not None and max_model_length < 2:
            raise ValueError(f"max_model_length={max_model_length} has no room for a prompt and its completion.")
        self.max_batch_size = max_batch_size
        self.max_model_length = max_model_length
        self._policy: PreTrainedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._router_form: RouterForm | None = None

    def record_routed_experts(self, config: PretrainedConfig) -> None:
        """See ``Generator.record_routed_experts``."""
        self._router_form = router_form(config)

    def start(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model_name_or_path: str) -> None:
        """Remembers the policy, after checking that it can be decoded here.

        Raises:
            ValueError: If the model's forward or cache differs from that of a causal transformer, or its weights are
                spread over ranks, or a few tokens decoded as completions are have other probabilities than in a plain
                forward pass.
        """
        model = policy.get_base_model() if isinstance(policy, PeftModel) else policy
        missing = [name for name in FORWARD_ARGUMENTS if name not in inspect.signature(model.forward).parameters]
        if missing:
            raise ValueError(
                f"model.model_name_or_path={model_name_or_path!r} is a {type(model).__name__}, whose forward does not "
                f"take {', '.join(missing)}: TransformersGenerator cannot decode it. "
                "Use VLLMColocate as model.generator."
            )
        ragged_cache(policy.config)
        _refuse_sharded(policy)
        _check_decoding(policy)
        self._policy, self._tokenizer = policy, tokenizer

    def see_images(self, processing: ImageProcessing, config: PretrainedConfig) -> None:
        """Nothing to get ready: the policy itself is sampled from."""

    def check_images(self, prompts: Sequence[tuple[list[int], PromptImages]]) -> None:
        """See ``SamplesWithImages``."""
        _check_decoding(self._started()[0], prompts)

    def update_weights(self, policy: PreTrainedModel) -> dict[str, float]:
        """Nothing to transfer: the next ``generate`` reads the live weights."""
        self._policy = policy
        return {}

    def stop(self) -> None:
        """Lets go of the policy."""
        self._policy = self._tokenizer = None

    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: SamplingSettings,
        seeds: Sequence[int],
        on_completed: OnCompleted | None = None,
        images: Sequence[PromptImages] = (),
    ) -> Rollouts:
        """G completions for each of B prompts; see ``Generator.generate``.

        Raises:
            ValueError: If the settings ask for what this generator or the policy cannot do.
            FloatingPointError: If the policy's logits are not finite.
        """
        policy, tokenizer = self._started()
        self.check_sampling(sampling)
        if len(seeds) != len(prompt_ids):
            raise ValueError(f"{len(prompt_ids)} prompts came with {len(seeds)} seeds; each prompt needs one.")
        self._check_room(policy, prompt_ids, [sampling.max_completion_length] * len(prompt_ids))
        stop_rule = StopRule(end_of_sequence_ids(policy, tokenizer), sampling.stop or (), tokenizer)
        size = sampling.num_generations
        decoded: list[tuple[list[int], Transcript]] = []
        form = self._router_form
        recording = nullcontext() if form is None else recorded_routes(policy, form)
        with _sampling_mode(policy), recording as recorder:
            for chunk in self._chunks(prompt_ids, size):
                uniforms = [prompt_uniforms(seeds[n], size, sampling.max_completion_length) for n in chunk]
                rows = [n * size + g for n in chunk for g in range(size)]

                def completed(row: int, ids: list[int], rows: list[int] = rows) -> None:
                    if on_completed is not None:
                        on_completed(rows[row], ids)

                prompts = [prompt_ids[n] for n in chunk]
                shown = [images[n] for n in chunk] if images else []
                drawn = torch.cat(uniforms)
                output = decode(policy, prompts, sampling, drawn, stop_rule, completed, images=shown, recorder=recorder)
                decoded.append((rows, output))
        return collect_rollouts(prompt_ids, size, decoded)

    def sample_parts(
        self, requests: Sequence[PartRequest], sampling: SamplingSettings, on_ended: OnEnded
    ) -> list[Part]:
        """See ``CutsCompletions``; all are decoded together.

        Raises:
            ValueError: If a request does not fit the policy.
            FloatingPointError: If the policy's logits are not finite.
        """
        policy, tokenizer = self._started()
        self.check_sampling(sampling)
        prompt_ids, limits = [request.prompt_ids for request in requests], [request.limit for request in requests]
        self._check_room(policy, prompt_ids, limits)
        if not requests:
            return []
        groups = [list(group) for _, group in groupby(requests, lambda request: request.prompt_ids)]
        prompts, counts = [group[0].prompt_ids for group in groups], [len(group) for group in groups]
        uniforms = torch.cat([prompt_uniforms(request.seed, 1, max(limits)) for request in requests])
        stop_rule = StopRule(end_of_sequence_ids(policy, tokenizer), sampling.stop or (), tokenizer)
        with _sampling_mode(policy):
            output = decode(
                policy, prompts, sampling, uniforms, stop_rule, lambda row, ids: on_ended(row), counts, limits
            )
        rows = zip(output.completion_ids, output.logprobs.cpu(), output.done, output.truncated, strict=True)
        parts = [(ids, logprobs[: len(ids)], done, truncated) for ids, logprobs, done, truncated in rows]
        check_finite(torch.cat([logprobs for _, logprobs, _, _ in parts]))
        ends: dict[tuple[bool, bool], PartEnd] = {(True, False): "stop", (True, True): "limit", (False, False): "cut"}
        return [Part(ids, logprobs.tolist(), ends[done, truncated]) for ids, logprobs, done, truncated in parts]

    def _started(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if self._policy is None or self._tokenizer is None:
            raise RuntimeError("TransformersGenerator was asked for completions before start.")
        return self._policy, self._tokenizer

    def _chunks(self, prompt_ids: Sequence[Sequence[int]], num_generations: int) -> list[list[int]]:
        """Prompts that are decoded together: neighbours in length, so that little of a chunk is padding."""
        by_length = sorted(range(len(prompt_ids)), key=lambda n: len(prompt_ids[n]))
        size = len(by_length) if self.max_batch_size is None else self.max_batch_size // num_generations
        return [by_length[start : start + size] for start in range(0, len(by_length), max(size, 1))]

    def check_sampling(self, sampling: SamplingSettings) -> None:
        """Refuses structured outputs, and groups that ``max_batch_size`` does not hold.

        Raises:
            ValueError: With a way out.
        """
        if sampling.structured_outputs:
            raise ValueError(
                f"model.structured_outputs={sampling.structured_outputs!r}, but TransformersGenerator has none. "
                "Use VLLMColocate as model.generator, or leave structured_outputs out."
            )
        if self.max_batch_size is not None and self.max_batch_size < sampling.num_generations:
            raise ValueError(
                f"model.generator.init_args.max_batch_size={self.max_batch_size} does not hold one prompt's "
                f"model.num_generations={sampling.num_generations} completions. Raise it to at least that."
            )

    def _check_room(self, policy: PreTrainedModel, prompt_ids: Sequence[Sequence[int]], lengths: Sequence[int]) -> None:
        setting = "max_position_embeddings"
        limit = getattr(policy.config.get_text_config(), setting, None)
        if self.max_model_length is not None:
            limit, setting = self.max_model_length, "model.generator.init_args.max_model_length"
        way_out = "Lower model.max_completion_length, or leave out long prompts with data.max_prompt_length."
        check_room(prompt_ids, lengths, limit, f"the model has {limit} positions ({setting}). {way_out}")


@torch.no_grad()
def _check_decoding(policy: PreTrainedModel, shown: Sequence[tuple[list[int], PromptImages]] = ()) -> None:
    """Raises ValueError if a few tokens decoded as completions are have other probabilities than in a plain pass."""
    with _sampling_mode(policy):
        try:
            reason = decoding_obstacle(policy, shown)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model that was not made for this may raise; the reason is shown
            reason = f"{type(error).__name__}: {error}"
    if reason is None:
        return
    kind = type(base_model(policy)).__name__
    if shown:
        raise ValueError(
            f"TransformersGenerator cannot sample prompts with images from {policy.config.name_or_path!r}, a {kind}: {reason}. "
            "Leave model.vision_tower out to train its language part."
        )
    raise ValueError(
        f"TransformersGenerator cannot sample from {policy.config.name_or_path!r}, a {kind}: {reason}. "
        "Use VLLMColocate as model.generator."
    )


def _refuse_sharded(policy: PreTrainedModel) -> None:
    """Ranks gather sharded weights together at every forward; as they sample different numbers of tokens, they hang."""
    if any(isinstance(weight, DTensor) and weight.device_mesh.size() > 1 for weight in policy.parameters()):
        raise ValueError(
            "trainer.strategy spreads the policy's weights over ranks, and TransformersGenerator needs them whole on "
            "every rank. Use trainer.strategy=ddp, or VLLMColocate as model.generator."
        )


@contextmanager
def _sampling_mode(policy: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradient; afterwards every submodule is in the mode it was in.

    Evaluation mode also turns gradient checkpointing off, which would drop the cache. Compiled layers run as they are: their
    cache is another one in each layer, and its length at each token, so that torch would compile until its limit ends all of it.
    """
    torch.clear_autocast_cache()  # autocast keeps the weights it has cast until its region ends: they may have changed
    with evaluating(policy), uncompiled_layers(policy), fast_decode_attention(policy):
        yield
