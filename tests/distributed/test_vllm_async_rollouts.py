"""Async rollouts with a real vLLM server: the right weights, a death while the next batch is sampled, several ranks."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from ports import free_port
from ranks import run_ranks
from runs import make_data, make_module, make_trainer, weights
from transformers import AutoModelForCausalLM
from vllm_cases import SMALL_SERVER, even_tokens, mismatch, needs_vllm
from vllm_program_forks import VLLMFork

from grpo_lightning.generation import VLLMServer
from grpo_lightning.generation.vllm.serving.client import ServerUnavailable
from grpo_lightning.generation.vllm.serving.endpoints import TOKENS
from grpo_lightning.generation.vllm.serving.file_transfer import FileTransfer, write_weights
from grpo_lightning.generation.vllm.weights.stream import WeightStream
from grpo_lightning.modules import GRPOModule
from grpo_lightning.types import Rollouts

pytestmark = [*needs_vllm, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
STEPS, PROMPTS = 5, 4  # an epoch has 3 steps


class Recorder(L.Callback):
    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.rollouts: list[Rollouts] = []
        self.losses: list[float] = []
        self.staleness: list[float] = []

    def on_train_start(self, trainer, pl_module) -> None:
        self.weights.append(weights(pl_module))

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        self.weights.append(weights(pl_module))
        self.rollouts.append(pl_module.last_step.rollouts)
        self.losses.append(pl_module.step_metrics["loss"])
        self.staleness.append(pl_module.step_metrics["sampling/staleness_steps"])


@pytest.fixture(scope="module")
def server(tiny_model_dir, tmp_path_factory):
    """Port and process of `python -m grpo_lightning serve`."""
    port = free_port()
    command = [sys.executable, "-m", "grpo_lightning", "serve", "--model", str(tiny_model_dir), "--port", str(port)]
    variables = {"TORCH_COMPILE_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    log = (tmp_path_factory.mktemp("logs") / "serve.log").open("wb")
    process = VLLMFork(
        [*command, "--max_model_length", "64", "--", *SMALL_SERVER],
        cwd=ROOT,
        stdout=log,
        env=os.environ | variables,
    )
    yield port, process
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def train(model_dir: Path, folder: Path, port: int, recorder: Recorder, **options: Any) -> GRPOModule:
    callbacks, ranks = options.pop("callbacks", []), options.pop("ranks", 1)
    on_module: Callable[[GRPOModule], None] = options.pop("on_module", lambda module: None)
    ckpt_path = options.pop("ckpt_path", None)
    module = make_module(
        model_dir,
        async_rollouts=1,
        generator=VLLMServer(port=port, timeout=200),
        rewards=[even_tokens],
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=2.0),
        importance_sampling_mode="token_truncate",
        max_sampler_mismatch=None,
        **options,
    )
    on_module(module)
    strategy = "ddp" if ranks > 1 else "auto"
    callbacks = [recorder, *callbacks]
    trainer = make_trainer(
        folder, STEPS, devices=ranks, strategy=strategy, callbacks=callbacks, enable_checkpointing=True
    )
    trainer.fit(
        module, datamodule=make_data(folder, batch_size=PROMPTS // ranks), ckpt_path=ckpt_path, weights_only=False
    )
    return module


@pytest.fixture(scope="module")
def undisturbed(server, tiny_model_dir, tmp_path_factory) -> tuple[Path, Recorder]:
    """A run with a checkpoint after every step."""
    folder, recorder = tmp_path_factory.mktemp("undisturbed"), Recorder()
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    module = train(tiny_model_dir, folder, server[0], recorder, callbacks=[saving])
    assert module.steps_done == STEPS
    return folder, recorder


def assert_same_tokens(found: list[Rollouts], expected: list[Rollouts]) -> None:
    assert [r.completion_ids.tolist() for r in found] == [r.completion_ids.tolist() for r in expected]


def test_logprobs_of_the_tokens_are_those_of_the_policy_one_step_before(undisturbed, tiny_model_dir):
    _, recorder = undisturbed
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    for step, rollouts in enumerate(recorder.rollouts):
        model.load_state_dict(recorder.weights[max(0, step - 1)], strict=False)
        assert mismatch(model, rollouts, temperature=1.0) < 1e-4
        if step:
            model.load_state_dict(recorder.weights[step], strict=False)
            assert mismatch(model, rollouts, temperature=1.0) > 1e-3


def test_a_resumed_run_goes_on_with_the_next_batch(undisturbed, server, tiny_model_dir):
    folder, whole = undisturbed
    resumed = Recorder()
    train(tiny_model_dir, folder, server[0], resumed, ckpt_path=folder / "step=2.ckpt")
    assert_same_tokens(resumed.rollouts, whole.rollouts[2:])
    assert resumed.losses == pytest.approx(whole.losses[2:], rel=1e-4, abs=1e-6)


def of_two_ranks(model_dir: Path, folder: Path, port: int) -> dict[str, Any]:
    recorder = Recorder()
    module = train(model_dir, folder, port, recorder, ranks=2)
    return {"rollouts": recorder.rollouts, "weights": weights(module)}


def test_two_ranks_have_a_next_batch_each(undisturbed, server, tiny_model_dir, tmp_path):
    _, alone = undisturbed
    first, second = run_ranks(2, of_two_ranks, tiny_model_dir, tmp_path, server[0])
    for ours, theirs, together in zip(first["rollouts"], second["rollouts"], alone.rollouts, strict=True):
        assert ours.completion_ids.tolist() + theirs.completion_ids.tolist() == together.completion_ids.tolist()
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)


class AsOverNCCL(FileTransfer):
    """Sends through files; what it sent cannot be sent again without the policy."""

    def send(self, stream: WeightStream) -> None:
        before, self.version = self.current, self.version + 1
        write_weights(stream, self.current)
        FileTransfer.send_again(self)
        shutil.rmtree(before, ignore_errors=True)

    def send_again(self) -> bool:
        return False


def test_a_batch_whose_weights_are_gone_is_never_finished_with_others(server, tiny_model_dir, tmp_path, caplog):
    calls = itertools.count()

    def lose_the_first_prompt_of_the_third_step(module: GRPOModule) -> None:
        send, start = module.source.generator.client.send, module.source.generator.start

        def started(*args: Any) -> None:
            start(*args)
            weights = module.source.generator._weights
            weights.transfer = AsOverNCCL(weights.client, is_sender=True)

        async def sent(method: str, path: str, *args: Any, **options: Any) -> Any:
            if path == TOKENS.path and len(args[0]["token_ids"]) > 1 and next(calls) == 2 * PROMPTS:
                raise ServerUnavailable("the server was away for a moment")
            return await send(method, path, *args, **options)

        module.source.generator.client.send, module.source.generator.start = sent, started

    recorder = Recorder()
    train(tiny_model_dir, tmp_path, server[0], recorder, on_module=lose_the_first_prompt_of_the_third_step)
    assert recorder.staleness == [0.0, 1.0, 0.0, 1.0, 1.0]
    assert "sampled again as a whole, from the policy as it is now" in caplog.text
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    model.load_state_dict(recorder.weights[2], strict=False)
    assert mismatch(model, recorder.rollouts[2], temperature=1.0) < 1e-4


def test_a_server_that_dies_while_the_next_batch_is_sampled_gets_the_weights_of_that_batch_again(
    undisturbed, server, tiny_model_dir, tmp_path
):
    calls, killed = itertools.count(), []

    def kill_at_the_fourth_batch(module: GRPOModule) -> None:
        """And go on when the third step is over: what the server had is no longer what the trainer has."""
        send, end_step = module.source.generator.client.send, module.end_step
        trained = threading.Event()

        def end(report: Any) -> None:
            end_step(report)
            if module.steps_done == 3:
                trained.set()

        async def sent(method: str, path: str, *args: Any, **options: Any) -> Any:
            if path == TOKENS.path and len(args[0]["token_ids"]) > 1 and next(calls) == 3 * PROMPTS:
                (vllm,) = Path(f"/proc/{server[1].pid}/task/{server[1].pid}/children").read_text().split()
                killed.append(int(vllm))
                os.killpg(int(vllm), signal.SIGKILL)
                assert await asyncio.to_thread(trained.wait, 60)
            return await send(method, path, *args, **options)

        module.source.generator.client.send, module.end_step = sent, end

    recorder = Recorder()
    train(tiny_model_dir, tmp_path, server[0], recorder, on_module=kill_at_the_fourth_batch)
    assert len(killed) == 1
    assert_same_tokens(recorder.rollouts, undisturbed[1].rollouts)
    torch.testing.assert_close(recorder.weights[-1], undisturbed[1].weights[-1], rtol=1e-4, atol=1e-6)
