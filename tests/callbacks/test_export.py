"""The export is the trained policy, in Hugging Face format, and never half of it."""

from __future__ import annotations

import pytest
import torch
from runs import fit, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_lightning.callbacks import HuggingFaceExport
from grpo_lightning.callbacks.export import export


def test_an_export_loads_with_the_trained_logprobs(tiny_model_dir, tmp_path, capsys):
    module = fit(tiny_model_dir, tmp_path, max_steps=2, trainer={"callbacks": [HuggingFaceExport(every_n_steps=1)]})
    assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == ["last", "step-1", "step-2"]
    assert f"`python -m grpo_lightning chat {tmp_path / 'hf/last'}`" in capsys.readouterr().out
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf/last", dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(tmp_path / "hf/last")("12+13=25", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = module.policy.model.eval()(input_ids=ids).logits.log_softmax(-1)
        torch.testing.assert_close(loaded(input_ids=ids).logits.log_softmax(-1), expected, rtol=0, atol=1e-6)
    start = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    assert any(not torch.equal(w, dict(start.named_parameters())[n]) for n, w in weights(module).items())


def test_what_a_run_that_was_killed_left_is_in_nobodys_way(tiny_model_dir, tmp_path):
    module = fit(tiny_model_dir, tmp_path, max_steps=1)
    for name in ("model", "model.old", "model.part"):  # killed between two renames
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    export(module, tmp_path / "model")
    assert (tmp_path / "model/model.safetensors").exists()
    assert not list(tmp_path.glob("model.*"))


def test_an_export_that_is_interrupted_leaves_no_part(tiny_model_dir, tmp_path):
    module = fit(tiny_model_dir, tmp_path, max_steps=1)

    class Interrupted:
        def save_pretrained(self, path):
            raise KeyboardInterrupt

    module.policy.tokenizer = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        export(module, tmp_path / "model")
    assert not list(tmp_path.glob("model*"))


def test_an_export_that_fails_leaves_the_previous_one(tiny_model_dir, tmp_path):
    module = fit(tiny_model_dir, tmp_path, max_steps=1)
    export(module, tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    class FullDisk:
        def save_pretrained(self, path):
            raise OSError(28, "No space left on device")

    module.policy.tokenizer = FullDisk()
    with pytest.raises(OSError, match="No space left"):
        export(module, tmp_path / "model")
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
