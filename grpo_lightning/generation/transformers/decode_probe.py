"""Whether a model decoded as completions are gives the probabilities of plain forward passes: asked of the model itself.

Prompts are padded on the left, a prompt's cache is repeated for its completions, and rows leave it. A model that lets
padding into a state, or takes positions from the length of its cache, would be sampled wrongly without an error.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from grpo_lightning.generation.transformers.decoding import Slots
from grpo_lightning.scoring.images.embedding import own_inputs
from grpo_lightning.scoring.probe import computes_in_float32, disagreement
from grpo_lightning.types import PromptImages

PROMPT_LENGTHS = (7, 2)
STEPS = 5


def decoding_obstacle(policy: PreTrainedModel, shown: Sequence[tuple[list[int], PromptImages]] = ()) -> str | None:
    """What is wrong with decoding this model, if anything: two prompts, two completions each, one of which ends early.

    Args:
        policy: In evaluation mode; call without gradient.
        shown: Two prompts with images to do it with, in place of random tokens.
    """
    generator = torch.Generator().manual_seed(0)
    size = policy.config.get_text_config().vocab_size
    prompts = [torch.randint(size, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]
    tokens = torch.randint(size, (4, STEPS), generator=generator).to(policy.device)
    images = [images for _, images in shown]
    prompts = [ids for ids, _ in shown] or prompts
    slots = Slots(policy, prompts, 2, images)
    found: list[list[Tensor]] = [[] for _ in range(4)]
    for step in range(STEPS):
        for slot, row in enumerate(slots.rows.tolist()):
            found[row].append(_logprob(slots.logits[slot], tokens[row, step]))
        if step == 1:
            slots.keep([1, 2, 3])
        slots.feed(tokens[slots.rows, step])
    expected = []
    for row, decoded in enumerate(found):
        prompt = torch.tensor(prompts[row // 2], device=policy.device)
        ids = torch.cat([prompt, tokens[row, : len(decoded)]])
        own = own_inputs(images[row // 2], ids[None]) if images else {}
        logits = policy(input_ids=ids[None], use_cache=False, **own).logits[0, len(prompt) - 1 : -1]
        expected += [_logprob(line, token) for line, token in zip(logits, tokens[row], strict=False)]
    if not torch.stack(expected).isfinite().all():
        return None  # diverged weights, which ``generate`` reports
    flat = torch.stack([logprob for decoded in found for logprob in decoded])
    return disagreement("decoded", flat, torch.stack(expected), computes_in_float32(policy, policy.device))


def _logprob(logits: Tensor, token: Tensor) -> Tensor:
    return logits.float().log_softmax(-1)[token]
