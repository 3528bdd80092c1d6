"""A merged export is a plain model directory to vLLM too: trained logprobs, new special tokens included."""

from __future__ import annotations

import json
import os
import sys

import pytest
import torch
from runs import fit
from vllm_cases import needs_vllm
from vllm_program_forks import VLLMFork

from grpo_lightning.callbacks.export import export
from grpo_lightning.generation import TransformersGenerator

pytestmark = needs_vllm

PROGRAM = """
import json, sys
from vllm import LLM, SamplingParams
llm = LLM(model=sys.argv[1], dtype="float32", max_model_len=128, enforce_eager=True, seed=0,
          kv_cache_memory_bytes=2**26)
(output,) = llm.generate("1<back>2", SamplingParams(n=4, max_tokens=12, logprobs=0, ignore_eos=True, seed=1))
rows = [[list(c.token_ids), [p[t].logprob for p, t in zip(c.logprobs, c.token_ids)]] for c in output.outputs]
json.dump([list(output.prompt_token_ids), rows], open(sys.argv[2], "w"))
llm.llm_engine.engine_core.shutdown()
"""


@pytest.mark.parametrize("finetuning_type", ["lora", "qlora"])
def test_vllm_gives_a_merged_export_the_trained_logprobs(tiny_model_dir, tmp_path, finetuning_type):
    base = {"bnb_4bit_compute_dtype": "float32"} if finetuning_type == "qlora" else {}
    settings = {"init_special_tokens": True, "new_special_tokens_config": {"<back>": "answer"}}
    module = fit(
        tiny_model_dir,
        tmp_path,
        max_steps=2,
        finetuning_type=finetuning_type,
        generator=TransformersGenerator(),
        **(base | settings),
    )
    export(module, tmp_path / "export", forms=["merged"])
    off = {"TORCH_COMPILE_DISABLE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    program, log = tmp_path / "program.py", tmp_path / "log.txt"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(tmp_path / "export"), str(tmp_path / "out.json")]
    with log.open("wb") as output:
        assert VLLMFork(command, env=os.environ | off, stdout=output).wait() == 0, log.read_text()[-3000:]

    prompt, rows = json.loads((tmp_path / "out.json").read_text())
    assert len(module.policy.tokenizer) - 1 in prompt  # the new token, in one piece
    policy = module.policy.model.eval()
    for ids, logprobs in rows:
        with torch.no_grad():
            logits = policy(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(logprobs), expected, rtol=0, atol=1e-4)
