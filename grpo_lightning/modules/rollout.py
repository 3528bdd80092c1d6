"""RolloutModule: a policy that samples completions and has them scored."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from lightning.pytorch import Callback

from grpo_lightning.callbacks.release import ReleaseOnError
from grpo_lightning.generation import Generator, SamplingSettings, default_generator
from grpo_lightning.generation.base import OnCompleted
from grpo_lightning.generation.strategy_check import check_generator
from grpo_lightning.modules.optimizer import OptimizerModule
from grpo_lightning.modules.run_state import LogHistory, state_of_run
from grpo_lightning.numerics.float32_defaults import with_float32_defaults
from grpo_lightning.rewards import (
    RewardComposition,
    RewardRunner,
    RewardRuntime,
    RewardSpec,
    RewardState,
    RewardTable,
    resolve_rewards,
)
from grpo_lightning.seeds import derive_seed
from grpo_lightning.types import Message, Prompt, PromptBatch, Rollouts

DEFAULT_RUNTIME = RewardRuntime()
DEFAULT_COMPOSITION = RewardComposition()


class RolloutModule(OptimizerModule):
    """Samples completions from the policy and has them scored.

    Args:
        rewards: What a completion is scored by: names of registered rewards ("accuracy,format"), import paths, or
            class_path / init_args; one or a list.
        reward_weights: Overrides the rewards' own weights; one number per reward.
        reward_runtime: How rewards are run: workers, time limits, how many failures stop the run.
        reward_composition: How rewards become a total: gates, and sum, product or minimum.
        generator: Samples completions; by default VLLMColocate where vLLM is installed, else TransformersGenerator.
        num_generations: G, completions per prompt; advantages compare them with each other, so at least 2 in training.
        max_completion_length: Tokens after which a completion is cut off.
        temperature: Divides the logits when sampling and when scoring, so that the first ratio is 1.
        top_p: Sample from the smallest set of tokens that holds this probability; 1 for all.
        top_k: Sample from the k most likely tokens; 0 for all.
        min_p: Never sample tokens less likely than min_p times the most likely one; 0 for all.
        repetition_penalty: Above 1, tokens already used become less likely.
        stop: Strings that end a completion; they stay part of it.
        structured_outputs: One of regex, json, grammar or choice for the generator, in vLLM's form.
        chat_template_kwargs: Further arguments of the chat template (such as enable_thinking).
        **policy: Arguments of OptimizerModule.
    """

    def __init__(
        self,
        rewards: RewardSpec,
        reward_weights: str | list[float] | None = None,
        reward_runtime: RewardRuntime = DEFAULT_RUNTIME,
        reward_composition: RewardComposition = DEFAULT_COMPOSITION,
        generator: Generator | None = None,
        num_generations: int = 8,
        max_completion_length: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: list[str] | None = None,
        structured_outputs: dict[str, Any] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        **policy: Any,
    ) -> None:
        super().__init__(**policy)
        self.sampling = SamplingSettings(
            num_generations=num_generations,
            max_completion_length=max_completion_length,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=tuple(stop or ()),
            structured_outputs=structured_outputs or {},
        )
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.generator = generator or default_generator()
        self._generator_started = False
        self._generator_is_current = False
        self.generator_metrics: dict[str, float] = {}
        """What is logged of the generator: time and size of the last transfer of weights to it, on this rank."""

        self.reward_runner = RewardRunner(resolve_rewards(rewards, reward_weights), **asdict(reward_runtime))
        self.compose_rewards = reward_composition
        self.compose_rewards.check(self.reward_runner.names, [reward.weight for reward in self.reward_runner.rewards])
        self.log_history = LogHistory()
        self.steps_done = 0
        """GRPO steps finished; saved in checkpoints, and with the seed the source of all randomness."""

    def prepare_generator(self) -> None:
        """Starts the generator and gives it the current weights, where it is not up to date; on all ranks together."""
        # As inside a step: training starts outside of one, and an engine would be built for what no pass computes in.
        with self.trainer.strategy.precision_plugin.forward_context():
            self._bring_up_to_date()

    @with_float32_defaults
    def _bring_up_to_date(self) -> None:
        assert self.policy is not None
        if not self._generator_started:
            self.generator.start(self.policy, self.tokenizer, self.model_name_or_path)
            self._generator_started = True
            self.start_times.mark("generator", self.generator.start_note())
        if not self._generator_is_current:
            self.generator_metrics = self.generator.update_weights(self.policy)
            self._generator_is_current = True
            self.start_times.mark("first sync")

    @torch.no_grad()
    def sample_rollouts(
        self,
        batch: PromptBatch,
        sampling: SamplingSettings | None = None,
        on_completed: OnCompleted | None = None,
        stage: str | None = None,
    ) -> Rollouts:
        """Completions from the policy as it is now; the same for the same seed, stage, step and prompt."""
        self.prepare_generator()
        seeds = self.prompt_seeds(batch, stage or ("train" if sampling is None else "eval"), self.steps_done)
        return self.generator.generate(batch.prompt_ids, sampling or self.sampling, seeds, on_completed)

    def prompt_seeds(self, batch: PromptBatch, stage: str, step: int) -> list[int]:
        """B seeds, of the completions of each prompt after ``step`` GRPO steps."""
        return [derive_seed(self.seed, stage, step, uid) for uid in batch.uids]

    def sample_nothing(self, *settings: SamplingSettings | None) -> None:
        """The part of a rank without a prompt: sharded weights and shared engines need every rank, once per setting."""
        self.prepare_generator()
        for sampling in settings:
            if sampling is not None and self.generator.tensor_parallel_size > 1:
                self.generator.generate([], sampling, [])

    def step_optimizer(self) -> torch.Tensor:
        """One optimizer step; from here on the generator's weights are out of date."""
        self._generator_is_current = False
        return super().step_optimizer()

    def configure_callbacks(self) -> list[Callback]:
        """Adds the one that calls ``teardown`` after an error; refuses generators that the strategy leaves no weights."""
        check_generator(self.trainer.strategy, self.generator)
        return [*super().configure_callbacks(), ReleaseOnError()]

    def teardown(self, stage: str) -> None:
        """Releases the engine and the reward workers, also after an error."""
        if self._generator_started:
            self.generator.stop()
        self._generator_started = self._generator_is_current = False
        self.reward_runner.close()

    def completion_texts(self, batch: PromptBatch, rollouts: Rollouts) -> list[str] | list[list[Message]]:
        """N completions as rewards see them: text for text prompts, one assistant message for conversations."""
        ids = [completion.tolist() for completion in rollouts.completions()]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        if batch.prompts and isinstance(batch.prompts[0], list):
            return [[{"role": "assistant", "content": text}] for text in texts]
        return texts

    def sample_and_score(self, batch: PromptBatch, stage: str = "train") -> tuple[Rollouts, Callable[[], RewardTable]]:
        """Completions, and a function that waits for their (N, R) rewards, which run from the first completion on."""
        completed, rewards_of = self.begin_scoring(batch, self.reward_state())
        rollouts = self.sample_rollouts(batch, on_completed=completed, stage=stage)
        return rollouts, rewards_of(rollouts)

    def begin_scoring(
        self, batch: PromptBatch, state: RewardState
    ) -> tuple[OnCompleted, Callable[[Rollouts], Callable[[], RewardTable]]]:
        """Takes completions one by one as they end, then all rollouts, which gives the function that waits for rewards.

        Args:
            batch: B prompts, with G completions each to come.
            state: Where training stands at the step that they belong to.
        """
        of_prompt = [b for b in range(len(batch)) for _ in range(self.sampling.num_generations)]
        prompts, columns = self._per_completion(batch, of_prompt)
        job = self.reward_runner.start(prompts, of_prompt, columns, state)

        def completed(n: int, ids: list[int]) -> None:
            text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
            is_chat = isinstance(prompts[n], list)
            job.add(n, [{"role": "assistant", "content": text}] if is_chat else text, ids)

        def rewards_of(rollouts: Rollouts) -> Callable[[], RewardTable]:
            completions = rollouts.completions()
            for n in job.missing():  # of a generator that does not report completions
                completed(n, completions[n].tolist())
            job.add_logprobs(rollouts.logprob_lists())
            return lambda: self.reward_runner.finish(job)

        return completed, rewards_of

    def score(self, batch: PromptBatch, rollouts: Rollouts, runner: RewardRunner | None = None) -> RewardTable:
        """(N, R) scores of the completions; NaN where a reward gave none."""
        of_prompt = rollouts.group.tolist()
        prompts, columns = self._per_completion(batch, of_prompt)
        return (runner or self.reward_runner).score(
            prompts=prompts,
            completions=self.completion_texts(batch, rollouts),
            completions_ids=[completion.tolist() for completion in rollouts.completions()],
            columns=columns,
            trainer_state=self.reward_state(),
            group=of_prompt,
            logprobs=rollouts.logprob_lists(),
        )

    def _per_completion(self, batch: PromptBatch, of_prompt: list[int]) -> tuple[list[Prompt], dict[str, list[Any]]]:
        """The prompt and the columns of each completion, given the prompt that it belongs to."""
        columns = {name: [values[b] for b in of_prompt] for name, values in batch.columns.items()}
        return [batch.prompts[b] for b in of_prompt], columns

    def reward_state(self) -> RewardState:
        """Where the run stands, for rewards with a curriculum."""
        limit, name = self.sampling.max_completion_length, self.model_name_or_path
        if self._trainer is None:
            return RewardState(max_completion_length=limit, model_name_or_path=name)
        self.log_history.note(self._trainer)
        return replace(
            state_of_run(self._trainer, getattr(self, "num_updates", 1)),
            max_completion_length=limit,
            model_name_or_path=name,
            log_history=list(self.log_history.entries),
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the generator's state, and the step counter, from which every random number of the next steps follows."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["steps_done"] = self.steps_done
        self.log_history.note(self.trainer)
        checkpoint["log_history"] = list(self.log_history.entries)
        checkpoint["generator"] = self.generator.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores both; the generator must fetch the restored weights."""
        super().on_load_checkpoint(checkpoint)
        self.steps_done = checkpoint["steps_done"]
        self.log_history.entries = list(checkpoint.get("log_history", []))
        self.generator.load_state_dict(checkpoint["generator"])
        self._generator_is_current = False
