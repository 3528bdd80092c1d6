"""The commands that people start runs of TRL with."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from grpo_lightning.commands.migrate import main
from grpo_lightning.migration import read_source


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("beta: 0.1\nlearning_rate: 1e-5\nuse_vllm: true\n")
    return path


@pytest.mark.parametrize(
    "command",
    [
        "--config {} --learning-rate 2e-6",
        "trl grpo --config {} --learning_rate 2e-6",
        "accelerate launch src/open_r1/grpo.py --config {} --learning_rate=2e-6",
        "CUDA_VISIBLE_DEVICES=0,1 ACCELERATE_LOG_LEVEL=info accelerate launch grpo.py --config {} --learning_rate 2e-6",
        "python -m trl.scripts.grpo --config {} --learning_rate 2e-6",
        "uv run python train.py --config {} --learning_rate 2e-6",
        "accelerate launch \\\n    grpo.py \\\n    --config {} \\\n    --learning_rate 2e-6",
        "nohup python3 grpo.py --config {} --learning_rate 2e-6",
    ],
)
def test_each_form_of_a_command_says_the_same(command, config):
    expected = {"beta": 0.1, "learning_rate": 2e-6, "use_vllm": True}
    assert read_source(None, [command.format(config)]) == expected  # as one quoted text
    words = command.replace("\\\n", " ").format(config).split()
    assert read_source(None, words) == expected


def test_the_launcher_says_on_how_many_devices(config):
    command = f"accelerate launch --num-processes 4 --multi_gpu --main_process_port 29500 grpo.py --config {config}"
    settings = read_source(None, [command])
    assert settings["num_processes"] == 4
    from grpo_lightning.migration import migrate

    result = migrate(settings | {"per_device_train_batch_size": 2, "num_generations": 8, "generation_batch_size": 64})
    # 64 completions are 8 prompts, 2 on each of 4 devices, and 8 optimizer steps of 8 completions in TRL
    assert (result.config["trainer.devices"], result.config["data.batch_size"]) == (4, 2)
    assert result.mapped["num_processes"] == ["trainer.devices"]
    assert {"main_process_port", "multi_gpu"} <= result.refused.keys()


def test_torchrun_counts_processes_per_node(config):
    settings = read_source(None, [f"torchrun --nproc_per_node=8 --nnodes 2 --standalone grpo.py --config {config}"])
    from grpo_lightning.migration import migrate

    found = migrate(settings).config
    assert (found["trainer.devices"], found["trainer.num_nodes"]) == (8, 2)


def test_the_launchers_file_gives_its_processes_and_sharding(config, tmp_path):
    zero3 = tmp_path / "zero3.yaml"
    zero3.write_text(
        "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 3}\nnum_processes: 8\nmixed_precision: bf16\n"
    )
    settings = read_source(
        None, [f"accelerate launch --config_file {zero3} --num_processes 7 grpo.py --config {config}"]
    )
    assert (settings["num_processes"], settings["use_deepspeed"], settings["mixed_precision"]) == (7, True, "bf16")


def test_a_file_of_processes_that_trls_own_command_names_counts_too(config, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("distributed_type: FSDP\nnum_processes: 4\n")
    settings = read_source(None, [f"trl grpo --config {config} --accelerate_config {own}"])
    assert (settings["num_processes"], settings["use_fsdp"]) == (4, True) and "accelerate_config" not in settings
    elsewhere = read_source(None, [f"trl grpo --config {config} --accelerate_config elsewhere.yaml"])
    assert elsewhere["accelerate_config"] == "elsewhere.yaml"


@pytest.mark.parametrize("name", ["single_gpu", "multi_gpu", "zero1", "zero2", "zero3", "fsdp1", "fsdp2"])
def test_a_file_of_processes_that_trl_brings_counts_by_its_name(name, config):
    folder = Path(pytest.importorskip("trl").__file__).parent / "accelerate_configs"
    by_name = read_source(None, [f"trl grpo --config {config} --accelerate_config {name}"])
    by_file = read_source(None, [f"trl grpo --config {config} --accelerate_config {folder / name}.yaml"])
    assert by_name | {"num_machines": 1} == by_file and by_name["num_processes"] == (1 if name == "single_gpu" else 8)


def test_values_are_read_as_they_are_meant():
    words = [
        "--lora_target_modules",
        "q_proj, v_proj",
        "--model_init_kwargs",
        '{"dtype": "bfloat16"}',
        "--max_steps",
        "-1",
    ]
    words += ["--system_prompt", "Answer: yes or no", "--no_shuffle_dataset", "--run_name", "2024-01-02", "--bf16=true"]
    assert read_source(None, words) == {
        "lora_target_modules": "q_proj, v_proj",
        "model_init_kwargs": {"dtype": "bfloat16"},
        "max_steps": -1,
        "system_prompt": "Answer: yes or no",
        "shuffle_dataset": False,
        "run_name": "2024-01-02",
        "bf16": True,
    }


def test_a_quoted_list_with_commas_is_a_list():
    from grpo_lightning.migration import migrate

    settings = read_source(None, ["--use_peft", "--lora_target_modules", "q_proj, v_proj", "--reward_funcs", "a.b,c.d"])
    found = migrate(settings).config
    assert found["model.lora_target"] == ["q_proj", "v_proj"] and found["model.rewards"] == ["a.b", "c.d"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trl", "dpo", "--beta", "0.1"], "`trl dpo` is another trainer"),
        (["accelerate", "launch", "--num_processes", "2"], "names no script"),
        (["old", "--beta", "0.1"], "comes before any --name"),
    ],
)
def test_a_command_that_starts_no_grpo_run_is_answered(words, message, capsys):
    assert main(words) == 1
    assert message in capsys.readouterr().err


def test_the_command_writes_a_config(config, tmp_path, capsys):
    new = tmp_path / "new.yaml"
    assert (
        main(["accelerate", "launch", "grpo.py", "--config", str(config), "--beta", "0.2", "--output", str(new)]) == 0
    )
    assert yaml.safe_load(new.read_text())["model"]["beta"] == 0.2
    assert "--config" not in capsys.readouterr().err


def test_quoted_numbers_and_truth_values_of_a_file_are_what_trl_reads_them_as(tmp_path: Path) -> None:
    config = tmp_path / "old.yaml"
    config.write_text('num_generations: "8"\nbf16: "true"\nbeta: "0.04"\nrun_name: "8"\neval_strategy: "no"\n')
    read = read_source(config)
    assert read == {"num_generations": 8, "bf16": True, "beta": 0.04, "run_name": "8", "eval_strategy": "no"}
