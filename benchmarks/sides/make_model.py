"""A random Qwen2 model directory with a tokenizer of its own: no download, and the same from the same arguments.

Large shapes draw their weights on a GPU where there is one: seconds instead of minutes.

A random model hardly ever samples one particular token, so all its completions would run into the limit. Therefore
about one token in ``mean_length`` is listed as an end-of-sequence id in generation_config.json: tokens are drawn almost
uniformly, so lengths are close to geometric with that mean, as ragged as those of real rollouts.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from sides.made_model import MADE_WITH, is_made, made_of

SHAPES: dict[str, dict[str, Any]] = {
    "nano": {
        "vocab_size": 1024,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 176,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    "tiny": {
        "vocab_size": 4096,
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "intermediate_size": 688,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "0.5b": {
        "vocab_size": 151936,
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "1.5b": {
        "vocab_size": 151936,
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
    "7b": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
}
"""The last three are the shapes of Qwen2.5-0.5B, 1.5B and 7B."""
TOKENIZER_SIZE = 8192
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def texts(prompts: Path) -> Iterator[str]:
    """Contents of all messages of a JSONL file of conversations."""
    with prompts.open(encoding="utf-8") as lines:
        for line in lines:
            yield from (message["content"] for message in json.loads(line)["prompt"])


def train_tokenizer(prompts: Path, vocab_size: int, special: Sequence[str] = ()) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer with a chat template; smaller than asked where the text gives no more merges.

    Args:
        prompts: JSONL of conversations, on whose text it is trained.
        vocab_size: Its size at most.
        special: Further tokens that no text is split into; their ids are among the lowest.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START, END, *special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts(prompts), trainer)
    learnt = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learnt["vocab"],
        merges=[tuple(merge) for merge in learnt["merges"]],
        unk_token=None,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START, *special],
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(shape: str, prompts: Path, out: Path, mean_length: int, seed: int = 0) -> None:
    """Writes the directory, unless it already holds what these arguments make.

    Args:
        shape: A key of SHAPES; large shapes are stored in bfloat16, the others in float32.
        prompts: JSONL of conversations, on whose text the tokenizer is trained.
        out: The directory.
        mean_length: Tokens; 0 for one end-of-sequence id only.
        seed: Of the weights.
    """
    arguments = made_of(shape, prompts, mean_length, seed)
    if is_made(out, arguments):
        return
    vocab_size = SHAPES[shape]["vocab_size"]
    tokenizer = train_tokenizer(prompts, min(vocab_size, TOKENIZER_SIZE))
    config = Qwen2Config(
        **SHAPES[shape], **special_ids(tokenizer), max_position_embeddings=32768, tie_word_embeddings=True
    )
    with drawing_weights(vocab_size, seed) as dtype:
        model = Qwen2ForCausalLM._from_config(config, dtype=dtype)
    model.generation_config = ends_of(tokenizer, vocab_size, mean_length)
    save_whole(out, arguments, model, tokenizer)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    """Fields of a language model's configuration."""
    return {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}


def ends_of(tokenizer: PreTrainedTokenizerBase, vocab_size: int, mean_length: int) -> GenerationConfig:
    """Ends a completion with one token in ``mean_length``: the last ids, which no text has; 0 for the tokenizer's own end only."""
    ends = round(vocab_size / mean_length) if mean_length else 1
    eos_ids = [tokenizer.eos_token_id, *range(vocab_size - ends + 1, vocab_size)]
    return GenerationConfig(eos_token_id=eos_ids, pad_token_id=tokenizer.pad_token_id, do_sample=True)


@contextmanager
def drawing_weights(vocab_size: int, seed: int) -> Iterator[torch.dtype]:
    """Where a model of this vocabulary gets its weights: the dtype to draw them in, on a GPU where it is large."""
    torch.manual_seed(seed)
    is_large = vocab_size > 100_000
    with torch.device("cuda" if is_large and torch.cuda.is_available() else "cpu"):
        yield torch.bfloat16 if is_large else torch.float32


def save_whole(out: Path, arguments: dict[str, Any], *parts: Any) -> None:
    """Writes a directory at once: the other side may make it too, or read it.

    Args:
        out: The directory.
        arguments: What it is made with, for ``is_made``.
        parts: Whose ``save_pretrained`` are called: model, tokenizer, processor.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        written = Path(scratch, "model")
        for part in parts:
            part.save_pretrained(written)
        (written / MADE_WITH).write_text(json.dumps(arguments) + "\n")
        if not is_made(out, arguments):
            shutil.rmtree(out, ignore_errors=True)
            written.rename(out)


def arguments_of(description: str | None, shapes: Iterable[str]) -> argparse.ArgumentParser:
    """The command line of what makes a model of a shape."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(shapes), required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL of conversations")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mean-length", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    arguments = arguments_of(__doc__, SHAPES).parse_args()
    make_model(arguments.shape, arguments.prompts, arguments.out, arguments.mean_length, arguments.seed)


if __name__ == "__main__":
    main()
