from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
import yaml
from runs import fit, make_data, make_module, make_trainer, weights
from toy_models import save_toy_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_lightning.callbacks.export import export as export_policy
from grpo_lightning.commands import chat, export, report
from grpo_lightning.commands.saved_policy import find_checkpoint, find_config


def make_run(run: Path, model_dir: Path, **settings):
    """A run directory as the command line leaves it: checkpoint, and the config of two launches."""
    run.mkdir()
    module = make_module(model_dir, **settings)
    trainer = make_trainer(run, 1)
    trainer.fit(module, datamodule=make_data(run))
    trainer.save_checkpoint(run / "checkpoints" / "last.ckpt")
    for version, model in ((0, "not/this/one"), (1, str(model_dir))):
        launch = run / "logs" / f"version_{version}"
        launch.mkdir(parents=True)
        (launch / "metrics.csv").write_text("step,reward\n")
        config = {"model": {"model_name_or_path": model, "rewards": ["no.such.reward"], "beta": 0.1, **settings}}
        (launch / "config.yaml").write_text(yaml.safe_dump(config))
    return module


def test_export_writes_the_trained_weights_of_a_checkpoint_without_its_rewards(tiny_model_dir, tmp_path, capsys):
    trained = make_run(tmp_path / "run", tiny_model_dir)
    assert export.main([str(tmp_path / "run"), str(tmp_path / "hf")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "hf")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    expected = {name.removeprefix("policy.model."): tensor for name, tensor in weights(trained).items()}
    for name, parameter in exported.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=0)
    assert any(not torch.equal(p, q) for p, q in zip(exported.parameters(), base.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").eos_token == trained.policy.tokenizer.eos_token


def test_export_of_an_adapter_is_merged_or_alone(tiny_model_dir, tmp_path):
    make_run(tmp_path / "run", tiny_model_dir, finetuning_type="lora", lora_rank=2)
    assert export.main([str(tmp_path / "run"), str(tmp_path / "whole")]) == 0
    assert export.main([str(tmp_path / "run"), str(tmp_path / "part-adapter"), "--form", "adapter"]) == 0
    assert (tmp_path / "part-adapter" / "adapter_config.json").exists()
    assert not (tmp_path / "whole" / "adapter_config.json").exists()
    ids = torch.tensor([[5, 6, 7, 8]])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    adapted, _, _ = chat.load_for_chat(tmp_path / "part-adapter", None)
    torch.testing.assert_close(merged(ids).logits, adapted.eval()(ids).logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "out", "--form", "adapter"], "its run had model.finetuning_type=full"),
        (["elsewhere", "out"], "no such checkpoint"),
        (["run/checkpoints/last.ckpt", "out", "--config", "other.yaml"], "checkpoint"),
    ],
)
def test_export_says_what_is_wrong(arguments, message, tiny_model_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", tiny_model_dir)
    other = {"model": {"model_name_or_path": str(tiny_model_dir), "finetuning_type": "lora"}}
    Path("other.yaml").write_text(yaml.safe_dump(other))
    assert export.main(arguments) == 1
    assert message in capsys.readouterr().err


def test_a_sharded_checkpoint_is_pointed_to_the_command_that_joins_it(tmp_path):
    (tmp_path / ".metadata").touch()
    with pytest.raises(ValueError, match="consolidate_checkpoint"):
        find_checkpoint(tmp_path)


def test_the_config_of_the_last_launch_counts(tiny_model_dir, tmp_path):
    make_run(tmp_path / "run", tiny_model_dir)
    checkpoint = find_checkpoint(tmp_path / "run")
    assert find_config(checkpoint) == tmp_path / "run" / "logs" / "version_1" / "config.yaml"


def greedy(model_dir: Path, prompt: str, tokens: int) -> str:
    """What transformers answers to a chat of one message."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    output = model.generate(ids, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def test_piped_prompts_are_answered_one_by_one(tiny_model_dir, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("1+2=\n\n3+4=\n"))
    assert chat.main([str(tiny_model_dir), "--max_completion_length", "6"]) == 0
    expected = [greedy(tiny_model_dir, prompt, 6) for prompt in ("1+2=", "3+4=")]
    assert capsys.readouterr().out == "".join(text + "\n" for text in expected)


def test_a_conversation_remembers_until_it_is_reset(tiny_model_dir):
    policy, tokenizer, _ = chat.load_for_chat(tiny_model_dir, None)
    talk = chat.Chat(policy, tokenizer, system="Be brief.", max_completion_length=4)
    first = talk.answer("1+2=")
    talk.answer("3+4=")
    assert [m["role"] for m in talk.messages] == ["system", "user", "assistant", "user", "assistant"]
    talk.reset()
    assert talk.answer("1+2=") == first


def test_chat_tries_a_checkpoint_with_the_system_prompt_of_its_run(tiny_model_dir, tmp_path, capsys, monkeypatch):
    make_run(tmp_path / "run", tiny_model_dir)
    monkeypatch.setattr("sys.stdin", io.StringIO("1+2=\n"))
    assert chat.main([str(tmp_path / "run"), "--max_completion_length", "3", "--temperature", "1"]) == 0
    assert capsys.readouterr().out.endswith("\n")
    config = {"data": {"converter": {"class_path": "x", "init_args": {"system_prompt": "Think."}}}}
    assert chat.system_prompt(config) == "Think."
    assert chat.system_prompt({"data": {"converter": "grpo", "converter_args": {"system_prompt": "So."}}}) == "So."
    assert chat.system_prompt({}) is None


def test_chat_refuses_a_source_that_holds_no_model(tmp_path, capsys):
    assert chat.main([str(tmp_path)]) == 1
    assert "no checkpoints" in capsys.readouterr().err


def test_fit_exports_what_the_command_exports(tiny_model_dir, tmp_path):
    from grpo_lightning.callbacks import HuggingFaceExport

    fit(tiny_model_dir, tmp_path, trainer={"callbacks": [HuggingFaceExport()]})
    assert (tmp_path / "hf" / "last" / "config.json").exists()


def test_chat_takes_an_adapter_with_new_tokens_and_only_on_its_own_base(tmp_path):
    base = save_toy_model(tmp_path / "base")
    tokens = {"init_special_tokens": True, "new_special_tokens_config": {f"<new{n}>": "answer" for n in range(3)}}
    module = fit(base, tmp_path, finetuning_type="lora", **tokens)
    export_policy(module, tmp_path / "hf", forms=["adapter"])
    policy, tokenizer, _ = chat.load_for_chat(tmp_path / "hf-adapter", None)
    ids = torch.tensor([[5, 6, tokenizer.convert_tokens_to_ids("<new2>"), 7]])
    with torch.no_grad():
        torch.testing.assert_close(policy.eval()(ids).logits, module.policy.model.eval()(ids).logits)
    save_toy_model(base, seed=1)
    with pytest.raises(ValueError, match="was trained on"):
        chat.load_for_chat(tmp_path / "hf-adapter", None)


@pytest.mark.parametrize("command", [export, chat, report])
def test_no_class_that_a_runs_config_names_is_imported(command, tiny_model_dir, tmp_path, monkeypatch, capsys):
    run, mark = tmp_path / "run", tmp_path / "imported"
    make_run(run, tiny_model_dir)
    (tmp_path / "from_elsewhere.py").write_text(f"open({str(mark)!r}, 'w')\nclass Config: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = run / "logs" / "version_1" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["model"]["rewards"] = [{"class_path": "from_elsewhere.Config"}]
    config["data"] = {"converter": "from_elsewhere.Config"}
    path.write_text(yaml.safe_dump(config))
    arguments = {
        export: [str(run), str(tmp_path / "hf")],
        chat: [str(run), "--max_completion_length", "2"],
        report: [str(run)],
    }
    monkeypatch.setattr("sys.stdin", io.StringIO("1 + 1\n"))
    assert command.main(arguments[command]) == 0
    config["model"] |= {"finetuning_type": "lora", "peft_config": {"class_path": "from_elsewhere.Config"}}
    path.write_text(yaml.safe_dump(config))
    assert command.main(arguments[command]) == (0 if command is report else 1)
    assert not mark.exists()
    if command is not report:
        assert "names the class from_elsewhere.Config" in capsys.readouterr().err
