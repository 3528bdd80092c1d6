"""SmolLM2-135M-Instruct with a calculator: the model directory and the products that configs/smollm2_tools.yaml trains on.

python benchmarks/smollm2.py runs/smollm2                                 # once: the model
python benchmarks/smollm2_tools.py runs/smollm2 runs/smollm2_tools        # model, train.jsonl, held_out.jsonl
python benchmarks/quickstart_seeds.py --config configs/smollm2_tools.yaml --seeds 0     # trains on a GPU, records before and after

Worked turns show how the calculator is called, and the model follows them in about half of what it samples; what it
multiplies without the tool is hardly ever right. Its published chat template knows no tools, so the directory has one that does.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

CHAT_TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}{% for call in message['tool_calls'] or [] %}<tool_call>
{"name": "{{ call['function']['name'] }}", "arguments": {{ call['function']['arguments'] | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""SmolLM2's turns, with calls as Hermes writes them. Schemas are left out: the worked turns say more to a small model."""
WORKED = ((63, 11), (48, 57), (34, 44))
HELD_OUT_SHARE = 0.1


def conversation(a: int, b: int) -> list[dict[str, Any]]:
    """The worked turns, then the question."""
    turns: list[dict[str, Any]] = []
    for x, y in WORKED:
        call = {"type": "function", "function": {"name": "multiply", "arguments": {"a": x, "b": y}}}
        turns += [
            {"role": "user", "content": f"What is {x} times {y}?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": "multiply", "content": str(x * y)},
            {"role": "assistant", "content": f"{x} times {y} is {x * y}."},
        ]
    return [*turns, {"role": "user", "content": f"What is {a} times {b}?"}]


def product_rows() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows to train on and held-out ones, each in a fixed random order; no product is in both, in either order of factors."""
    worked = {frozenset(pair) for pair in WORKED}
    pairs = [(a, b) for a in range(10, 100) for b in range(a, 100) if frozenset((a, b)) not in worked]
    draw = random.Random(0)
    draw.shuffle(pairs)
    cut = int(len(pairs) * HELD_OUT_SHARE)
    parts = []
    for part in (pairs[cut:], pairs[:cut]):
        ordered = sorted({pair for a, b in part for pair in ((a, b), (b, a))})
        draw.shuffle(ordered)
        parts.append([{"prompt": conversation(a, b), "ground_truth": str(a * b)} for a, b in ordered])
    return parts[0], parts[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="as benchmarks/smollm2.py makes it")
    parser.add_argument("out", type=Path, help="directory to write")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("train", "held_out"), product_rows(), strict=True):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        options.out.joinpath(f"{name}.jsonl").write_text(text, encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(options.out / "model")
    AutoModelForCausalLM.from_pretrained(options.model, dtype="auto").save_pretrained(options.out / "model")


if __name__ == "__main__":
    main()
