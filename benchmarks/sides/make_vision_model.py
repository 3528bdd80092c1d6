"""A random Qwen2.5-VL model directory with tokenizer and processors, as ``make_model.py`` makes language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from sides.made_model import is_made, made_of
from sides.make_model import (
    SHAPES,
    TOKENIZER_SIZE,
    arguments_of,
    drawing_weights,
    ends_of,
    save_whole,
    special_ids,
    train_tokenizer,
)

VISION_SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "nano": {
        "text": SHAPES["nano"]
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 4, 4]}},
        "tower": {
            "depth": 2,
            "hidden_size": 64,
            "num_heads": 2,
            "intermediate_size": 80,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        },
    },
    "3b": {
        "text": {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "num_hidden_layers": 36,
            "intermediate_size": 11008,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        "tower": {
            "depth": 32,
            "hidden_size": 1280,
            "num_heads": 16,
            "intermediate_size": 3420,
            "out_hidden_size": 2048,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    },
}
"""The last one is the shape of Qwen2.5-VL-3B: 3.1 billion parameters in the language part, 0.7 in the tower."""
IMAGE, VIDEO, IMAGE_START, IMAGE_END = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
POSITIONS = 4096
"""As many as an engine holds of a sequence: it makes room for a video that fills them, unless told otherwise."""
PIXELS = {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 1280}
"""Of an image or a video: from 4 to 1,280 tokens, since an engine makes room for the largest when it starts."""


def make_vision_model(shape: str, prompts: Path, out: Path, mean_length: int, seed: int = 0) -> None:
    """Writes the directory, unless it already holds what these arguments make.

    Args:
        shape: A key of VISION_SHAPES; the large one is stored in bfloat16, the other in float32.
        prompts: JSONL of conversations, on whose text the tokenizer is trained.
        out: The directory.
        mean_length: Tokens of a completion; 0 for one end-of-sequence id only.
        seed: Of the weights.
    """
    arguments = {"vision": True, **made_of(shape, prompts, mean_length, seed)}
    if is_made(out, arguments):
        return
    vocab_size = VISION_SHAPES[shape]["text"]["vocab_size"]
    tokenizer = train_tokenizer(prompts, min(vocab_size, TOKENIZER_SIZE), (IMAGE, VIDEO, IMAGE_START, IMAGE_END))
    tokenizer.chat_template = CHAT_TEMPLATE
    with drawing_weights(vocab_size, seed) as dtype:
        model = Qwen2_5_VLForConditionalGeneration._from_config(_config(shape, tokenizer), dtype=dtype)
    never_sample(model, tokenizer.convert_tokens_to_ids([IMAGE, VIDEO]))
    model.generation_config = ends_of(tokenizer, vocab_size, mean_length)
    save_whole(out, arguments, model, _processor(tokenizer))


def _config(shape: str, tokenizer: PreTrainedTokenizerBase) -> Qwen2_5_VLConfig:
    names = {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": IMAGE_START,
        "vision_end_token_id": IMAGE_END,
    }
    ids = special_ids(tokenizer)
    text = VISION_SHAPES[shape]["text"] | ids | {"max_position_embeddings": POSITIONS, "tie_word_embeddings": True}
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=VISION_SHAPES[shape]["tower"],
        tie_word_embeddings=True,
        **ids,
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()},
    )


def _processor(tokenizer: PreTrainedTokenizerBase) -> Qwen2_5_VLProcessor:
    images, videos = Qwen2VLImageProcessor(size=PIXELS), Qwen2VLVideoProcessor(size=PIXELS)
    return Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=CHAT_TEMPLATE)


@torch.no_grad()
def never_sample(model: PreTrainedModel, ids: list[int]) -> None:
    """Lets the policy all but never draw these tokens, without a word to any sampler.

    A trainer that takes a sampled placeholder for an image stops there; random weights draw each token of the vocabulary.
    So the last layer's attention adds a constant to all hidden states (its bias of values), which is taken away from the
    logits of these tokens. Their embeddings are read nowhere else: features of images take their place.

    Args:
        model: With one matrix for embeddings and output head.
        ids: Of the tokens.
    """
    attention = model.get_decoder().layers[-1].self_attn
    bias = attention.v_proj.bias.fill_(0.5)
    per_head = bias.view(-1, attention.head_dim).repeat_interleave(attention.num_key_value_groups, 0)
    constant = attention.o_proj.weight @ per_head.flatten()
    model.get_input_embeddings().weight[ids] = -50 * constant / constant.norm()


def main() -> None:
    arguments = arguments_of(__doc__, VISION_SHAPES).parse_args()
    make_vision_model(arguments.shape, arguments.prompts, arguments.out, arguments.mean_length, arguments.seed)


if __name__ == "__main__":
    main()
