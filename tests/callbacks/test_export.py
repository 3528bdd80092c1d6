"""The export is the trained policy, in Hugging Face format, and never half of it."""

from __future__ import annotations

import pytest
import torch
from runs import fit, make_data, make_module, make_trainer, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_lightning.callbacks import HuggingFaceExport
from grpo_lightning.callbacks.export import ExportNotWrittenError, export
from grpo_lightning.errors import ExplainedError


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
        (tmp_path / "hf" / name).mkdir(parents=True)
        (tmp_path / "hf" / name / "config.json").write_text("{}")  # of a version that left no marker
    export(module, tmp_path / "hf/model")
    assert (tmp_path / "hf/model/model.safetensors").exists()
    assert not list(tmp_path.glob("hf/model.*"))


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


@pytest.mark.parametrize(("name", "every"), [("last", 0), ("last-adapter", 0), ("step-2", 1), ("step-2-adapter", 1)])
def test_a_file_in_the_place_of_an_export_is_refused_before_weights_load(name, every, tiny_model_dir, tmp_path):
    (tmp_path / name).write_text("my notes")
    (tmp_path / "step-1.txt").touch()  # in nobody's place
    module = make_module(tiny_model_dir)
    trainer = make_trainer(tmp_path, callbacks=[HuggingFaceExport(str(tmp_path), every)])
    with pytest.raises(FileExistsError, match=rf"{tmp_path / name} is a file"):
        trainer.fit(module, datamodule=make_data(tmp_path))
    assert not module.policy.is_loaded and (tmp_path / name).read_text() == "my notes"


def test_a_file_that_came_while_a_run_trained_is_not_overwritten(tiny_model_dir, tmp_path):
    module = fit(tiny_model_dir, tmp_path, max_steps=1)
    (tmp_path / "notes").write_text("my notes")
    with pytest.raises(ExportNotWrittenError, match="notes is a file"):
        export(module, tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "my notes" and not (tmp_path / "notes.part").exists()


@pytest.mark.parametrize(("place", "name"), [("own", "config.json"), ("hf", "notes.txt")])
def test_a_directory_of_the_users_own_is_not_replaced(place, name, tiny_model_dir, tmp_path):
    """It was removed, a model that somebody else had put there as well."""
    mine = tmp_path / place / "last"
    mine.mkdir(parents=True)
    (mine / name).write_text("{}")
    module = make_module(tiny_model_dir)
    trainer = make_trainer(tmp_path, callbacks=[HuggingFaceExport(str(mine.parent))])
    with pytest.raises(ExplainedError, match=f"{mine} is a directory that no export has written.*Name another place"):
        trainer.fit(module, datamodule=make_data(tmp_path))
    assert module.steps_done == 0 and (mine / name).read_text() == "{}"
    with pytest.raises(ExportNotWrittenError, match="no export has written"):
        export(module, mine)
    assert [path.name for path in mine.iterdir()] == [name]


def test_an_export_replaces_what_another_one_has_written_and_what_is_empty(tiny_model_dir, tmp_path):
    place = tmp_path / "own/last"
    place.mkdir(parents=True)
    callbacks = [HuggingFaceExport(str(place.parent))]
    fit(tiny_model_dir, tmp_path, max_steps=1, trainer={"callbacks": callbacks})
    first = (place / "model.safetensors").read_bytes()
    fit(tiny_model_dir, tmp_path, max_steps=2, trainer={"callbacks": callbacks})
    assert (place / "model.safetensors").read_bytes() != first
