"""Teachers on servers beside others, over real sockets: a column chooses, a lost server is asked again or ends the run."""

from __future__ import annotations

import json

import pytest
import torch
from fake_vllm_server import HANG_UP, FakeVLLM, fake_vllm
from lightning.pytorch import Callback
from runs import fit, weights
from taught_by_server import answers_of
from toy_models import save_toy_model

from grpo_lightning.generation.vllm.serving.client import ServerNotReadyError
from grpo_lightning.training.distillation import Distillation, TeacherRefusedError

TOP_K = 5


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory):
    return save_toy_model(tmp_path_factory.mktemp("teacher"), seed=5)


@pytest.fixture
def server(teacher_dir):
    with fake_vllm() as server:
        server.answer_to = answers_of(teacher_dir)
        yield server


def taught(teacher, server: FakeVLLM | None = None, **settings) -> dict:
    if server is not None:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        named = isinstance(teacher, dict)
        teacher = {name: address if kind == "server" else kind for name, kind in teacher.items()} if named else address
        settings = {"timeout": 60.0, "request_timeout": 60.0} | settings
    told = {} if settings.get("divergence") == "sampled_token" else {"top_k": TOP_K}
    return {"distillation": Distillation(teacher, **told, **settings), "reward_weights": [0.0]}


@pytest.mark.parametrize("divergence", ["reverse_kl", "sampled_token"])
def test_a_column_chooses_between_a_server_a_loaded_teacher_and_the_policy(
    tiny_model_dir, teacher_dir, server, tmp_path, divergence
):
    other = str(save_toy_model(tmp_path / "other", seed=9))
    rows = [{"prompt": f"{i}+{i}=", "ground_truth": str(2 * i), "subject": "abc"[i % 3]} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset": str(tmp_path / "rows.jsonl"), "batch_size": 6}
    chosen = {"teacher_column": "subject", "teacher_prompt": "{prompt} Hint: {ground_truth}. Answer: "}
    runs = []
    for at_a, kept in (("server", server), (str(teacher_dir), None)):
        settings = taught({"a": at_a, "b": other, "c": "self"}, kept, divergence=divergence, **chosen)
        runs.append(fit(tiny_model_dir, tmp_path, 2, data=data, max_tokens_per_microbatch=200, **settings))
    assert (
        server.calls.count("/v1/completions") == 2 * 8 + 1
    )  # two of six prompts, of 4 completions; one when it started
    torch.testing.assert_close(weights(runs[0]), weights(runs[1]), rtol=1e-4, atol=2e-6)
    metrics = [run.step_metrics["distillation/divergence"] for run in runs]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-3, abs=1e-5) and abs(metrics[1]) > 1e-3


def test_a_server_that_is_lost_in_a_step_changes_nothing(tiny_model_dir, server, tmp_path, pauses):
    whole = fit(tiny_model_dir, tmp_path, 2, **taught("server", server))
    asked = server.calls.count("/v1/completions")
    server.answer("/v1/completions", 200, 200, HANG_UP, HANG_UP, 503)
    lost = fit(tiny_model_dir, tmp_path, 2, **taught("server", server))
    assert server.calls.count("/v1/completions") == 2 * asked + 3
    torch.testing.assert_close(weights(lost), weights(whole), rtol=0, atol=0)


def test_a_server_that_stays_away_ends_the_run_with_the_policy_of_the_step_before(
    tiny_model_dir, server, tmp_path, pauses
):
    one = fit(tiny_model_dir, tmp_path, 1, **taught("server", server))

    class TakeAway(Callback):
        def on_train_batch_end(self, trainer, module, *args):
            server.answer("/v1/completions", always=HANG_UP)
            server.answer("/health", always=503)
            module.teachers.teachers[0].server.timeout = 0.2

    modules, trainer = [], {"callbacks": [TakeAway()]}
    with pytest.raises(ServerNotReadyError, match=r"model.distillation.timeout.*grpo_lightning serve --model TEACHER"):
        fit(tiny_model_dir, tmp_path, 2, trainer=trainer, on_module=modules.append, **taught("server", server))
    assert modules[0].steps_done == 1
    torch.testing.assert_close(weights(modules[0]), weights(one), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("divergence", "told", "message"),
    [
        (
            "reverse_kl",
            400,
            r"(?s)^model\.distillation\.top_k=5 is more than http.* tells, .*\nLower top_k, or start .* 5\.",
        ),
        (
            "sampled_token",
            400,
            r"(?s)^model\.distillation\.divergence=sampled_token needs .*\nStart the server with .* 1\.",
        ),
        ("reverse_kl", {}, r"answers model\.distillation\.top_k=5 with 0 tokens\."),
        ("reverse_kl", {"3": -0.1}, r"answers model\.distillation\.top_k=5 with 1 tokens\. Use as many"),
        (
            "reverse_kl",
            {str(n): 2.5 - n for n in range(5)},
            r"logprob 2\.500, which is none\. Start it with --logprobs-mode",
        ),
        ("sampled_token", {"3": 2.5}, r"logprob 2\.500, which is none\. Start it with --logprobs-mode raw_logprobs"),
    ],
)
def test_what_a_server_does_not_tell_is_said_in_the_words_of_the_divergence(
    tiny_model_dir, server, tmp_path, divergence, told, message
):
    """A server with --max-logprobs 0, of a model with few tokens, and with --logprobs-mode raw_logits."""
    model = server.answer_to
    place = {token: {"logprob": value} for token, value in told.items()} if isinstance(told, dict) else {}
    server.answer_to = lambda path, body: (
        {"choices": [{"prompt_logprobs": [None, place]}]} if "prompt_logprobs" in body else model(path, body)
    )
    if told == 400:
        server.answer("/v1/completions", always=400)
    with pytest.raises(TeacherRefusedError, match=message):
        fit(tiny_model_dir, tmp_path, **taught("server", server, divergence=divergence))
