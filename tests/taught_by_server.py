"""What a vLLM server of a toy model says to a run that it teaches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from fake_vllm_server import answer_to
from toy_models import build_tokenizer
from transformers import AutoModelForCausalLM


def answers_of(model_dir: Path) -> Callable[[str, dict], dict]:
    """The text of tokens, and the likeliest at each token of a prompt, with the token itself."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_dir), build_tokenizer()

    def answer(path: str, body: dict) -> dict:
        if path == "/detokenize":
            return {"prompt": tokenizer.decode(body["tokens"])}
        if "prompt_logprobs" not in body:
            return answer_to(path, body)
        with torch.no_grad():
            logprobs = model(torch.tensor([body["prompt"]])).logits[0, :-1].log_softmax(-1)
        likeliest = logprobs.topk(body["prompt_logprobs"])
        places = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        told = [{t: {"logprob": p} for t, p in zip(*place, strict=True)} for place in places]
        for place, token, of_all in zip(told, body["prompt"][1:], logprobs, strict=True):
            place[token] = {"logprob": float(of_all[token])}  # what stands there comes always
        return {"choices": [{"prompt_logprobs": [None, *told]}]}

    return answer
