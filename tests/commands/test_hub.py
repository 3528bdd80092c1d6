from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from huggingface_hub import constants
from local_server import serving_in_a_thread

from grpo_lightning.commands import export as command
from grpo_lightning.commands.export import push, write_card
from grpo_lightning.report.metrics import Series
from grpo_lightning.report.model_card import model_card, svg_curve
from grpo_lightning.report.run import Run

RUN = Run(
    "arithmetic",
    {"reward": Series(list(range(20)), [i / 20 for i in range(20)])},
    launches=1,
    age=0.0,
    settings={
        "model.beta": "0.0",
        "data.dataset": "/data/mine/train.jsonl",
        "trainer.default_root_dir": "/data/mine",
    },
    system={"packages": {"grpo-lightning": "0.1.0"}},
    summary={"strict_before": 0.34, "strict_after": 0.94, "steps": 20},
)


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of the hub to upload small files in one commit."""

    received: dict[str, Any]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.received.setdefault("token", self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            self.received["created"] = json.loads(body)
            self._answer({"url": f"http://{self.headers['Host']}/me/model", "name": "me/model"})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            self.received["commit"] = [json.loads(line) for line in body.splitlines()]
            self._answer(
                {
                    "success": True,
                    "commitOid": "0" * 40,
                    "commitUrl": f"http://{self.headers['Host']}/me/model/commit/0",
                }
            )
        else:
            self._answer({})

    def do_GET(self) -> None:
        self._answer({"id": "me/model", "sha": "0" * 40, "siblings": []})

    def _answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A stand-in for the hub on this machine; what it was sent."""
    received: dict[str, Any] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), {"received": received}))
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)  # as HF_ENDPOINT sets it, which is read once
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "not-a-token")
    with serving_in_a_thread(server):
        yield received


def test_an_export_and_its_card_are_uploaded_in_one_commit(hub, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("---\nlibrary_name: transformers\n---\n# card\n")
    address = push(tmp_path, "me/model", private=True)
    assert address.endswith("/me/model")
    assert (
        hub["created"]["name"] == "model"
        and hub["created"]["organization"] == "me"
        and hub["created"].get("visibility", hub["created"].get("private")) in ("private", True)
    )
    header, *files = hub["commit"]
    assert header["value"]["summary"] == "Model trained with grpo_lightning"
    sent = {file["value"]["path"]: base64.b64decode(file["value"]["content"]).decode() for file in files}
    assert sent == {name: (tmp_path / name).read_text() for name in ("config.json", "README.md")}
    assert hub["token"] == "Bearer not-a-token"


def test_the_card_says_what_was_trained_and_what_came_of_it():
    card = model_card(RUN, "org/base", "0123456789ab")
    front, text = card.split("---\n")[1:]
    assert 'base_model: "org/base"' in front and "tags: [grpo, grpo_lightning]" in front
    assert "org/base, trained with GRPO" in text and "grpo_lightning 0.1.0, commit 0123456789ab, 20 steps." in text
    assert "Held-out accuracy rose from 34% to 94% in 20 steps." in text
    assert "| 34% | 94% |" in text
    assert "| reward | 0.025 | 0.925 |" in text  # means of steps 0 and 1, and of 18 and 19
    assert "model.beta: 0.0" in text and "data.dataset: train.jsonl" in text
    assert "/data" not in card and "default_root_dir" not in card


def test_the_card_of_a_run_that_was_first_evaluated_on_its_way_names_the_steps():
    evaluated = {**RUN.metrics, "val/accuracy": Series([5, 20], [0.34, 0.94])}
    card = model_card(replace(RUN, metrics=evaluated, summary={}), "org/base")
    assert "Held-out accuracy rose from 34% to 94% between steps 5 and 20." in card
    assert "| step 5 | step 20 |" in card and "before training" not in card


def test_a_local_base_model_is_no_name_on_the_hub():
    card = model_card(RUN, "assets/quickstart/model")
    assert "base_model" not in card and "commit" not in card


def test_the_drawing_goes_from_the_first_step_to_the_last():
    drawn = svg_curve("<reward>", Series([0, 1, 2], [0.0, 1.0, 0.5]), width=640, height=240)
    assert 'points="60.0,210.0 340.0,30.0 620.0,120.0"' in drawn
    assert "&lt;reward&gt;" in drawn and "step 2" in drawn


def test_a_folder_without_a_run_gets_no_card(tmp_path):
    write_card(tmp_path, tmp_path, "org/base")
    assert list(tmp_path.iterdir()) == []


def test_what_could_not_be_uploaded_is_said_with_the_way_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert command._pushed(tmp_path, "me/model", private=False) == 1
    assert "was written and not uploaded to me/model" in capsys.readouterr().err


def test_private_alone_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["run", "out", "--private"])
    assert "--private has no effect without --push-to-hub" in capsys.readouterr().err
