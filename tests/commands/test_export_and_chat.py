from __future__ import annotations

import io
import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
import yaml
from runs import fit, make_data, make_module, make_trainer, train_stage, weights
from toy_models import save_toy_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_lightning import RewardModelModule
from grpo_lightning.callbacks.export import export as export_policy
from grpo_lightning.callbacks.try_it import transformers_lines
from grpo_lightning.commands import chat, export, report
from grpo_lightning.commands.saved_policy import find_checkpoint, find_config, load_checkpoint


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


@pytest.mark.parametrize("name", ["part-adapter", "part"])
def test_export_of_an_adapter_is_merged_or_alone(name, tiny_model_dir, tmp_path, capsys):
    make_run(tmp_path / "run", tiny_model_dir, finetuning_type="lora", lora_rank=2)
    assert export.main([str(tmp_path / "run"), str(tmp_path / "whole")]) == 0
    assert export.main([str(tmp_path / "run"), str(tmp_path / name), "--form", "adapter"]) == 0
    assert capsys.readouterr().out.split()[-1] == str(tmp_path / name)
    assert (tmp_path / name / "adapter_config.json").exists()
    assert {path.name for path in tmp_path.glob("part*")} == {name}
    assert not (tmp_path / "whole" / "adapter_config.json").exists()
    ids = torch.tensor([[5, 6, 7, 8]])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    adapted, _, _ = chat.load_for_chat(tmp_path / name, None)
    torch.testing.assert_close(merged(ids).logits, adapted.eval()(ids).logits)


@pytest.mark.parametrize(
    ("precision", "dtype"), [(32, torch.float32), ("bf16", torch.float32), ("bf16-true", torch.bfloat16)]
)
def test_a_config_may_call_the_trainers_precision_as_lightning_does(precision, dtype, tiny_model_dir, tmp_path):
    make_run(tmp_path / "run", tiny_model_dir)
    assert make_trainer(tmp_path, 1, precision=precision).precision in ("32-true", "bf16-mixed", "bf16-true")
    config = {"model": {"model_name_or_path": str(tiny_model_dir)}, "trainer": {"precision": precision}}
    checkpoint = find_checkpoint(tmp_path / "run")
    assert load_checkpoint(checkpoint, config).policy.model.dtype == dtype
    with pytest.raises(ValueError, match=r"^trainer\.precision=64 is not supported\. Use 32-true, bf16-mixed"):
        load_checkpoint(checkpoint, config | {"trainer": {"precision": 64}})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "out", "--form", "adapter"], "its run had model.finetuning_type=full"),
        (["elsewhere", "out"], "no such checkpoint"),
        (["run", "notes"], "notes is a file, and an export writes a directory"),
        (["run", "notes", "--form", "adapter"], "notes is a file"),
        (["run", "mine"], "mine is a directory that no export has written (it has no grpo_lightning_export.json)"),
        (["run/checkpoints/last.ckpt", "out", "--config", "other.yaml"], "checkpoint"),
    ],
)
def test_export_says_what_is_wrong(arguments, message, tiny_model_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", tiny_model_dir)
    other = {"model": {"model_name_or_path": str(tiny_model_dir), "finetuning_type": "lora"}}
    Path("other.yaml").write_text(yaml.safe_dump(other))
    Path("notes").write_text("mine")
    Path("mine").mkdir()
    Path("mine", "config.json").write_text("{}")
    assert export.main(arguments) == 1
    assert message in capsys.readouterr().err
    assert Path("notes").read_text() == "mine"


@pytest.mark.parametrize("place", [".", "checkpoints/last.ckpt", "hpc_ckpt_1.ckpt"])
def test_a_sharded_checkpoint_is_pointed_to_the_command_that_joins_it(place, tmp_path):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / place / ".metadata").touch()
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path / place))} is a sharded .*consolidate_checkpoint"):
        find_checkpoint(tmp_path)


def test_what_slurm_asked_for_is_the_run_s_newest_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    last, requeued = tmp_path / "checkpoints" / "last.ckpt", tmp_path / "hpc_ckpt_1.ckpt"
    for number, path in enumerate((last, requeued)):
        path.touch()
        os.utime(path, (number, number))
    assert find_checkpoint(tmp_path) == requeued
    os.utime(last, (5, 5))
    assert find_checkpoint(tmp_path) == last


@pytest.mark.parametrize("folder", ["checkpoints", "lightning_logs/version_0/checkpoints"])
@pytest.mark.parametrize("old", ["hpc_ckpt_1.ckpt", "checkpoints/last.ckpt"])
def test_a_newer_checkpoint_of_any_name_is_the_run_s_newest(old, folder, tmp_path):
    places = [tmp_path / old, tmp_path / folder / "epoch=0-step=9.ckpt"]
    for number, path in enumerate(places):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (number, number))
    assert find_checkpoint(tmp_path) == places[1]
    os.utime(places[0], (1, 1))  # saved together: last.ckpt is what a run goes on from
    assert find_checkpoint(tmp_path) == places[0]


def test_the_config_of_the_last_launch_counts(tiny_model_dir, tmp_path):
    make_run(tmp_path / "run", tiny_model_dir)
    checkpoint = find_checkpoint(tmp_path / "run")
    assert find_config(checkpoint) == tmp_path / "run" / "logs" / "version_1" / "config.yaml"


def test_an_evaluation_with_other_settings_leaves_the_run_its_config(tmp_path):
    """``validate`` of the base in the run's folder, and ``predict``, which logs no metrics, were taken for the run's last launch."""
    logged = {0: "step,reward\n0,0.5\n", 1: "step,val/accuracy\n0,0.5\n", 2: None}
    for version, lines in logged.items():
        folder = tmp_path / "logs" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
        if lines is not None:
            (folder / "metrics.csv").write_text(lines)
    assert find_config(tmp_path / "checkpoints" / "last.ckpt") == tmp_path / "logs" / "version_0" / "config.yaml"


def test_a_launch_too_short_to_log_has_its_config_all_the_same(tiny_model_dir, tmp_path):
    run = tmp_path / "run"
    make_run(run, tiny_model_dir)
    for version in (0, 1):
        (run / "logs" / f"version_{version}" / "metrics.csv").unlink()
    assert find_config(find_checkpoint(run)) == run / "logs" / "version_1" / "config.yaml"
    assert export.main([str(run), str(tmp_path / "hf")]) == 0


def test_a_run_from_python_has_its_settings_in_its_checkpoint(tiny_model_dir, tmp_path, capsys):
    module = make_module(tiny_model_dir)
    trainer = make_trainer(tmp_path, 1)
    trainer.fit(module, datamodule=make_data(tmp_path))
    path = (
        tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "epoch=0-step=1.ckpt"
    )  # as ModelCheckpoint calls it
    trainer.save_checkpoint(path)
    for number, source in enumerate((path, tmp_path)):
        assert export.main([str(source), str(tmp_path / f"model{number}")]) == 0
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / f"model{number}", dtype=torch.float32)
        expected = weights(module)
        assert all(torch.equal(parameter, expected[name]) for name, parameter in exported.named_parameters())


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-true", torch.bfloat16)])
def test_a_run_from_python_is_exported_in_the_dtype_that_it_trained(precision, dtype, tiny_model_dir, tmp_path):
    module = make_module(tiny_model_dir)
    trainer = make_trainer(tmp_path, 1, precision=precision)
    trainer.fit(module, datamodule=make_data(tmp_path))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert export.main([str(tmp_path / "a.ckpt"), str(tmp_path / "model")]) == 0
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert {parameter.dtype for parameter in exported.parameters()} == {dtype}
    assert all(torch.equal(parameter, weights(module)[name]) for name, parameter in exported.named_parameters())


def test_an_adapter_of_a_run_from_python_wants_its_config_since_objects_are_not_in_a_checkpoint(
    tiny_model_dir, tmp_path, capsys
):
    module = make_module(tiny_model_dir, finetuning_type="lora")
    trainer = make_trainer(tmp_path, 1)
    trainer.fit(module, datamodule=make_data(tmp_path))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert export.main([str(tmp_path / "a.ckpt"), str(tmp_path / "model")]) == 1
    assert "Name the run's config with --config" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("prompt", "flags", "forgets"),
    [
        ('[{"role": "user", "content": "1+2="}]', [], True),
        ("1+2=", [], True),
        ('[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]', [], False),
        ('[{"role": "user", "content": "1+2="}]', ["--conversation"], False),
        (None, [], False),
    ],
)
def test_typed_prompts_start_anew_where_training_prompts_had_one_turn(
    prompt, flags, forgets, tiny_model_dir, tmp_path, capsys, monkeypatch
):
    exported = shutil.copytree(tiny_model_dir, tmp_path / "run" / "hf" / "last")
    if prompt is not None:
        (tmp_path / "run" / "completions").mkdir()
        table = pa.table({"prompt": [prompt]})
        pq.write_table(table, tmp_path / "run" / "completions" / "step-00000000.rank0.parquet")
    typed = iter(["1+2=", "1+2=", "/quit"])
    monkeypatch.setattr("builtins.input", lambda shown: next(typed))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    answer, remembered = chat.Chat.answer, []

    def noted(self, text):
        completion = answer(self, text)
        remembered.append([message["role"] for message in self.messages])
        return completion

    monkeypatch.setattr(chat.Chat, "answer", noted)
    assert chat.main([str(exported), *flags, "--max_completion_length", "2"]) == 0
    one = ["user", "assistant"]
    assert remembered == ([one, one] if forgets else [one, one + one])
    assert ("starts anew" in capsys.readouterr().out) == forgets


def test_chat_tries_a_checkpoint_with_the_system_prompt_of_its_run(tiny_model_dir, tmp_path, capsys, monkeypatch):
    make_run(tmp_path / "run", tiny_model_dir)
    monkeypatch.setattr("sys.stdin", io.StringIO("1+2=\n"))
    assert chat.main([str(tmp_path / "run"), "--max_completion_length", "3", "--temperature", "1"]) == 0
    assert capsys.readouterr().out.endswith("\n")
    config = {"data": {"converter": {"class_path": "x", "init_args": {"system_prompt": "Think."}}}}
    assert chat.system_prompt(config) == "Think."
    assert chat.system_prompt({"data": {"converter": "grpo", "converter_args": {"system_prompt": "So."}}}) == "So."
    assert chat.system_prompt({}) is None


def test_chat_and_export_show_no_loading_bar(tiny_model_dir, tmp_path, capsys, monkeypatch):
    make_run(tmp_path / "run", tiny_model_dir)
    bars = transformers.utils.logging
    was_enabled = bars.is_progress_bar_enabled()
    try:
        for command, arguments in ((export, [str(tmp_path / "hf")]), (chat, ["--max_completion_length", "2"])):
            bars.enable_progress_bar()  # as in a new process
            monkeypatch.setattr("sys.stdin", io.StringIO("1+1=\n"))
            capsys.readouterr()
            assert command.main([str(tmp_path / "run"), *arguments]) == 0
            shown = capsys.readouterr()
            assert "Loading" not in shown.out + shown.err and "%|" not in shown.err
    finally:
        (bars.enable_progress_bar if was_enabled else bars.disable_progress_bar)()


def test_chat_refuses_a_source_that_holds_no_model(tmp_path, capsys):
    assert chat.main([str(tmp_path)]) == 1
    assert "no checkpoints" in capsys.readouterr().err


def test_fit_exports_what_the_command_exports_and_shows_how_to_use_it(tiny_model_dir, tmp_path, capsys):
    from grpo_lightning.callbacks import HuggingFaceExport

    module = fit(tiny_model_dir, tmp_path, trainer={"callbacks": [HuggingFaceExport()]})
    exported = tmp_path / "hf" / "last"
    assert (exported / "config.json").exists()
    lines = capsys.readouterr().out.partition("In Python:\n")[2]
    exec(lines, {})
    prompt = module.last_step.batch.prompts[0]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    expected = tokenizer.decode(
        model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :], skip_special_tokens=True
    )
    assert capsys.readouterr().out == expected + "\n"


def test_the_lines_for_a_conversation_go_through_the_chat_template(tiny_model_dir, capsys):
    lines = transformers_lines(tiny_model_dir, [{"role": "user", "content": "1+2="}], 6)
    assert len(lines.splitlines()) == 5
    exec(lines, {})
    assert capsys.readouterr().out == greedy(tiny_model_dir, "1+2=", 6) + "\n"


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
    told = rf"^source='.*hf-adapter' was trained on .*, not on base_model_name_or_path of adapter_config.json='{base}'"
    with pytest.raises(ValueError, match=told):
        chat.load_for_chat(tmp_path / "hf-adapter", None)
    shutil.rmtree(base)
    with pytest.raises(
        ValueError, match=r"^base_model_name_or_path of adapter_config.json='.*' cannot be read. No such"
    ):
        chat.load_for_chat(tmp_path / "hf-adapter", None)


@pytest.mark.parametrize("damage", ["weights", "config", "generation", "tokenizer", "classifier"])
def test_what_is_wrong_with_a_directory_is_said_of_the_one_on_the_command_line(tmp_path, capsys, damage):
    """No config was read, so no setting of one can be corrected."""
    source = save_toy_model(tmp_path / "model")
    config = json.loads((source / "config.json").read_text())
    if damage == "weights":
        (source / "model.safetensors").write_bytes(b"cut")
    elif damage == "config":
        (source / "config.json").write_text("{")
    elif damage == "generation":
        (source / "generation_config.json").write_text("{")
    elif damage == "tokenizer":
        (source / "tokenizer.json").unlink()
    else:
        (source / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen2ForSequenceClassification"]}))
    assert chat.main([str(source)]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"source={str(source)!r}") and "model.model_name_or_path" not in shown


def test_a_run_that_trained_a_reward_model_is_nothing_to_talk_to(tiny_model_dir, tmp_path, capsys):
    """It was loaded, and ended in a traceback at the first prompt."""
    rows = [{"prompt": f"{i}+{i}=", "chosen": f"{2 * i}", "rejected": f"{i}"} for i in range(3)]
    module = train_stage(RewardModelModule, "dpo", rows, tiny_model_dir, tmp_path)
    module.trainer.save_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"model": {"model_name_or_path": str(tiny_model_dir)}}))
    assert chat.main([str(tmp_path), "--config", str(config)]) == 1
    shown = capsys.readouterr().err
    assert f"source={str(tmp_path)!r} is a reward model, which scores texts and writes none." in shown


def test_commands_that_a_run_ends_with_can_be_typed_where_folders_have_spaces(tiny_model_dir, tmp_path):
    folder = tmp_path / "my runs"
    module = make_module(tiny_model_dir)
    assert f"grpo_lightning chat '{folder}'`" in module.use_of_export(folder)
    line = transformers_lines(tmp_path / 'a "b"', "1+1=", 8).splitlines()[1]
    assert line == f'ask = pipeline("text-generation", "{tmp_path}/a \\"b\\"")'


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
    path_alone, inside = "from_elsewhere.Config", {"loftq_config": "from_elsewhere.Config"}
    for named in (path_alone, {"class_path": "peft.LoraConfig", "init_args": inside}):
        config["model"]["peft_config"] = named
        path.write_text(yaml.safe_dump(config))
        assert command.main(arguments[command]) == (0 if command is report else 1)
        assert not mark.exists()
        if command is not report:
            assert "names the class from_elsewhere.Config" in capsys.readouterr().err
