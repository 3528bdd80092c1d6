"""Several ranks, of which one hears that the vLLM server cannot load the weights: all end, soon. No vLLM needed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ending_ranks import SECONDS, end_of_ranks
from fake_vllm_server import HANG_UP, fake_vllm
from runs import make_data, make_module, make_trainer

from grpo_lightning.generation import VLLMServer


def fit_with_server(folder: Path, model_dir: Path, port: int) -> None:
    """Three steps on the ranks that there are."""
    module = make_module(model_dir, generator=VLLMServer(port=port, timeout=30))
    trainer = make_trainer(folder, 3, devices=int(os.environ["WORLD_SIZE"]), strategy="ddp")
    trainer.fit(module, datamodule=make_data(folder, batch_size=2))


@pytest.mark.parametrize("lost_before", [False, True])  # while it is sent, or by a rank that sends it again
def test_weights_that_the_server_cannot_load_end_all_ranks_with_its_own_words(tiny_model_dir, tmp_path, lost_before):
    with fake_vllm() as server:
        if lost_before:
            server.answer("/v1/completions", HANG_UP)
            server.answer("/collective_rpc", 200, always=500)
        else:
            server.answer("/collective_rpc", always=500)
        ranks = end_of_ranks(2, fit_with_server, tmp_path, tiny_model_dir, server.server_address[1])
    assert [(rank.code, rank.seconds < SECONDS) for rank in ranks] == [(1, True)] * 2
    together = "".join(rank.output for rank in ranks)
    assert "was answered with 500" in together and "no module named lm_head" in together
    assert "failed in step 1, phase generate: ServerRefused" in together  # of the rank that was not asked
