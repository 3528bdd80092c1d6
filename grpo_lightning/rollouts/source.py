"""The source that samples and scores: prompts in; completions, and a way to wait for their rewards, out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from grpo_lightning.generation import Generator, chosen_generator
from grpo_lightning.generation.base import SamplingSettings
from grpo_lightning.generation.images import check_sees_images, sample_batch
from grpo_lightning.numerics.dtypes import with_float32_defaults
from grpo_lightning.policy.policy import Policy
from grpo_lightning.rewards import (
    RewardComposition,
    RewardRunner,
    RewardRuntime,
    RewardSpec,
    RewardState,
    RewardTable,
    resolve_rewards,
)
from grpo_lightning.rollouts.base import Moment, Sampled, Source
from grpo_lightning.rollouts.texts import RolloutTexts
from grpo_lightning.seeds import derive_seed
from grpo_lightning.types import Conversation, PromptBatch, Rollouts


class OnRolloutCompleted(Protocol):
    """As ``OnCompleted`` of a generator, for a rollout of one turn or of several: prompt-major, n // G is its prompt."""

    def __call__(self, n: int, ids: list[int], conversation: Conversation | None = None, /) -> None:
        """Takes its token ids and, of several turns, what happened."""


DEFAULT_RUNTIME = RewardRuntime()
DEFAULT_COMPOSITION = RewardComposition()


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """What samples completions, and what scores them.

    Args:
        rewards: What a completion is scored by: names of registered rewards ("accuracy,format"), import paths, or
            class_path / init_args; one or a list.
        reward_weights: In place of weight in the rewards' own settings: one number per reward.
        reward_runtime: How rewards are run: workers, time limits, how many failures stop the run.
        reward_composition: How rewards become a total: gates, and sum, product or minimum.
        generator: Samples completions; by default VLLMColocate where vLLM is installed, else TransformersGenerator.
        chat_template_kwargs: Further arguments of the chat template (such as enable_thinking).
    """

    rewards: RewardSpec
    reward_weights: str | list[float] | None = None
    reward_runtime: RewardRuntime = DEFAULT_RUNTIME
    reward_composition: RewardComposition = DEFAULT_COMPOSITION
    generator: Generator | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class RolloutSource(Source):
    """Samples completions from a policy, and has each scored as soon as it ends.

    Another loop (several turns, tools, an environment) overrides ``generate``, which every completion of a run comes
    through: of steps, ahead of them or not, of refills and of evaluation.

    Args:
        settings: Generator and rewards.
        sampling: How completions are drawn in training.
        policy: What they are drawn from; its weights may load later.
        seed: Of the run.
    """

    key = "rollouts"

    def __init__(self, settings: RolloutSettings, sampling: SamplingSettings, policy: Policy, seed: int = 0) -> None:
        self.sampling, self.policy, self.seed = sampling, policy, seed
        self.generator = chosen_generator(settings.generator)
        self.reward_runner = RewardRunner(
            resolve_rewards(settings.rewards, settings.reward_weights), **asdict(settings.reward_runtime)
        )
        self.generator.check_sampling(sampling)
        self.compose_rewards = settings.reward_composition
        weights = [reward.weight for reward in self.reward_runner.rewards]
        self.compose_rewards.check(self.reward_runner.names, weights)
        self.texts = RolloutTexts(policy.tokenizer)
        self.sent_version: int | None = None
        """Version of the policy that the generator has; None before its first one."""
        self.transfer: dict[str, float] = {}
        """What is logged of the last transfer of weights to the generator: its time and size, on this rank."""
        self.before_transfer: list[Callable[[], None]] = []
        """Called before other weights are sent."""
        self._precision: Callable[[], AbstractContextManager[None]] = nullcontext
        self._on_started: Callable[[str, str], None] = lambda part, note: None
        self._is_started = False

    @property
    def longest_wait(self) -> float:
        """Seconds that a step may wait for a server and for rewards: so long it may come after those of other ranks."""
        return self.generator.longest_wait + self.reward_runner.longest_wait

    def expect(
        self, precision: Callable[[], AbstractContextManager[None]], on_started: Callable[[str, str], None]
    ) -> None:
        """Is told of the run that is about to begin.

        Args:
            precision: Of the Trainer, around a step.
            on_started: Called with each part of the generator's start that is over, and a remark.
        """
        self._precision, self._on_started = precision, on_started
        self.generator.expect()

    def prepare(self) -> None:
        """Starts the generator and gives it the policy's weights, where it has others; on all ranks together."""
        # As inside a step: training starts outside of one, and an engine would be built for what no pass computes in.
        with self._precision():
            self._bring_up_to_date()

    @with_float32_defaults
    def _bring_up_to_date(self) -> None:
        is_first = not self._is_started
        if is_first:
            self.generator.start(self.policy.model, self.policy.tokenizer, self.policy.name_or_path)
            self._is_started = True
            self._on_started("generator", self.generator.start_note())
        if self.sent_version != self.policy.version:
            for act in self.before_transfer:
                act()
            self.transfer = self.generator.update_weights(self.policy.model)
            self.sent_version = self.policy.version
            self._on_started("first sync", "")
        if is_first:  # a server answers no run that has not sent it weights
            check_sees_images(self.generator, self.policy.image_processing)

    @torch.no_grad()
    def generate(
        self,
        batch: PromptBatch,
        sampling: SamplingSettings,
        seeds: list[int],
        on_completed: OnRolloutCompleted | None = None,
    ) -> Rollouts:
        """G completions of each prompt from the weights that the generator has; perhaps in a thread, ahead of a step.

        Args:
            batch: B prompts, or none, where only other ranks have some.
            sampling: How to draw.
            seeds: B seeds; the same seed and prompt give the same completions.
            on_completed: To be called with the number and the token ids of each completion that has ended.
        """
        return sample_batch(self.generator, batch, sampling, seeds, on_completed)

    def sample(self, batch: PromptBatch, moment: Moment, stage: str = "train") -> Sampled:
        """See ``Source.sample``; rewards run from the first completion that ends."""
        if stage == "train":
            self.reward_runner.kept_state.begin_step(moment.step)
        completed, rewards_of = self.begin_scoring(batch, self.reward_state(moment))
        self.prepare()
        rollouts = self.generate(batch, self.sampling, self.prompt_seeds(batch, stage, moment.step), completed)
        return Sampled(batch, rollouts, rewards_of(rollouts))

    def sample_as(self, batch: PromptBatch, sampling: SamplingSettings, stage: str, step: int) -> Rollouts:
        """Completions drawn in another way, as evaluation does; not scored."""
        self.prepare()
        return self.generate(batch, sampling, self.prompt_seeds(batch, stage, step))

    def prompt_seeds(self, batch: PromptBatch, stage: str, step: int) -> list[int]:
        """B seeds, of the completions of each prompt after ``step`` GRPO steps."""
        return [derive_seed(self.seed, stage, step, uid) for uid in batch.uids]

    def sample_nothing(self, *settings: SamplingSettings | None) -> None:
        """The part of a rank without a prompt: sharded weights and shared engines need every rank, once per setting."""
        self.prepare()
        for sampling in settings:
            if sampling is not None and self.generator.tensor_parallel_size > 1:
                self.generate(PromptBatch([], [], []), sampling, [])

    def begin_scoring(
        self, batch: PromptBatch, state: RewardState
    ) -> tuple[OnRolloutCompleted, Callable[[Rollouts], Callable[[], RewardTable]]]:
        """Takes completions one by one as they end, then all rollouts, which gives the function that waits for rewards.

        Args:
            batch: B prompts, with G completions each to come.
            state: Where training stands at the step that they belong to.
        """
        of_prompt = [b for b in range(len(batch)) for _ in range(self.sampling.num_generations)]
        prompts, columns = self.texts.per_completion(batch, of_prompt)
        scoring = self.reward_runner.start(prompts, of_prompt, columns, state)

        def completed(n: int, ids: list[int], conversation: Conversation | None = None) -> None:
            scoring.add(n, self.texts.completion(prompts[n], ids, conversation), ids, conversation)

        def rewards_of(rollouts: Rollouts) -> Callable[[], RewardTable]:
            completions = rollouts.completions()
            for n in scoring.missing():  # of a generator that does not report completions
                completed(n, completions[n].tolist(), rollouts.conversations[n] if rollouts.conversations else None)
            scoring.add_logprobs(rollouts.logprob_lists())
            return lambda: self.reward_runner.finish(scoring)

        return completed, rewards_of

    def score(
        self, batch: PromptBatch, rollouts: Rollouts, moment: Moment, runner: RewardRunner | None = None
    ) -> RewardTable:
        """(N, R) scores of the completions; NaN where a reward gave none."""
        of_prompt = rollouts.group.tolist()
        prompts, columns = self.texts.per_completion(batch, of_prompt)
        return (runner or self.reward_runner).score(
            prompts=prompts,
            completions=self.texts.completions(batch, rollouts),
            completions_ids=[completion.tolist() for completion in rollouts.completions()],
            columns=columns,
            trainer_state=self.reward_state(moment),
            group=of_prompt,
            logprobs=rollouts.logprob_lists(),
            conversations=rollouts.conversations,
        )

    def reward_state(self, moment: Moment, global_step: int | None = None) -> RewardState:
        """Where the run stands, for rewards with a curriculum.

        Args:
            moment: Now.
            global_step: Optimizer steps at the step that is scored, where it is not the one of now.
        """
        return replace(
            moment.run,
            global_step=moment.updates if global_step is None else global_step,
            max_steps=moment.max_updates,
            epoch=moment.epoch,
            max_completion_length=self.sampling.max_completion_length,
            model_name_or_path=self.policy.name_or_path,
        )

    def composed(self, rewards: RewardTable) -> tuple[Tensor, Tensor]:
        """Values and weights of rewards after gates and composition; their weighted sum is a completion's total."""
        return self.compose_rewards(rewards.values, rewards.names, rewards.weights)

    def state_dict(self, step: int) -> dict[str, Any]:
        """The generator's, and what the rewards of all ranks remember; called on every rank."""
        remembered = self.reward_runner.kept_state.of_all_ranks(step)
        return self.generator.state_dict() | ({"rewards": remembered} if remembered else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores it; the generator must fetch the restored weights."""
        self.reward_runner.kept_state.restore(state.get("rewards", ()))
        self.generator.load_state_dict({name: value for name, value in state.items() if name != "rewards"})
        self.sent_version = None

    def close(self, step: int) -> None:
        """Releases the engine and the reward workers, also after an error."""
        if self._is_started:
            self.generator.stop()
        self._is_started, self.sent_version = False, None
        self.reward_runner.close()
