from __future__ import annotations

import pytest
import yaml
from parsed_config import parse

from grpo_lightning.commands.migrate import main
from grpo_lightning.migration import read_source

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")

FLAT = """
stage: grpo
model_name_or_path: "Qwen/Qwen2-0.5B-Instruct"
dataset: "gsm8k_train"
eval_dataset: "gsm8k_test"
converter: "grpo"
output_dir: "outputs/grpo"
per_device_train_batch_size: 4
gradient_accumulation_steps: 4
num_train_epochs: 3
learning_rate: 1e-6
bf16: true
num_generations: 8
temperature: 1.0
beta: 0.001
loss_type: "dapo"
reward_funcs: "accuracy,format"
reward_weights: "1.0,0.5"
use_vllm: true
vllm_mode: "colocate"
vllm_gpu_memory_utilization: 0.3
finetuning_type: "lora"
lora_rank: 8
lora_alpha: 16
report_to: "wandb"
logging_steps: 10
save_strategy: "steps"
save_steps: 500
tags: []
"""


def test_a_flat_config_of_grpo_arguments_becomes_ours(tmp_path, capsys):
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(FLAT)
    assert main([str(old), "--output", str(new), "--total_steps", "90"]) == 0
    config = parse(new)
    assert config.model.rewards == ["accuracy", "format"] and config.model.reward_weights == [1.0, 0.5]
    assert config.model.max_completion_length == 256  # GRPOArguments' default; TRL's is 512
    assert (config.model.finetuning_type, config.model.lora_rank, config.model.lora_alpha) == ("lora", 8, 16)
    assert config.model.generator.class_path == "grpo_lightning.generation.VLLMColocate"
    assert (config.data.dataset, config.data.eval_dataset, config.data.converter) == (
        "gsm8k_train",
        "gsm8k_test",
        "grpo",
    )
    assert config.data.batch_size == 2 and config.model.optimizer.init_args.lr == 1e-6
    schedule = config.model.lr_scheduler.init_args
    assert (schedule.name, schedule.total_steps) == ("linear", 90)
    assert config.checkpoint.every_n_train_steps == 500
    assert "Without a counterpart, and off: tags." in capsys.readouterr().err


def test_trls_command_line_is_understood_and_wins_over_the_file(tmp_path, capsys):
    old = tmp_path / "old.yaml"
    old.write_text("beta: 0.1\nlearning_rate: 1e-5\n")
    args = ["--beta", "0.04", "--use_vllm", "--reward_funcs", "accuracy", "my.reward", "--bf16=false", "--no_use_peft"]
    settings = read_source(old, args)
    assert settings == {
        "beta": 0.04,
        "learning_rate": 1e-5,
        "use_vllm": True,
        "reward_funcs": ["accuracy", "my.reward"],
        "bf16": False,
        "use_peft": False,
    }
    assert main(["--model_name_or_path", "m", "--beta", "0.04"]) == 0
    printed = capsys.readouterr()
    assert yaml.safe_load(printed.out)["model"]["beta"] == 0.04
    assert "Still to be set, since the config does not say: model.rewards, data.dataset." in printed.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "not `key: value` lines"),
        ("", "is empty"),
        ("per_device_train_batch_size: eight\n", "per_device_train_batch_size='eight' is no number."),
        ("gradient_accumulation_steps: auto\n", "is no number. Give one, or leave it out for TRL's default."),
        ("model: {beta: 1}\n", "config of this package already"),
        (
            "compute_environment: LOCAL_MACHINE\ndistributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 3}\n",
            "is a config of `accelerate launch` (compute_environment, distributed_type, deepspeed_config)",
        ),
    ],
)
def test_a_file_that_is_no_flat_config_is_refused(text, message, tmp_path, capsys):
    (tmp_path / "old.yaml").write_text(text)
    assert main([str(tmp_path / "old.yaml")]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("count", ["gpu", "auto"])
def test_processes_that_torchrun_counts_are_asked_for(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"torchrun --nproc_per_node={count} grpo.py --num_generations 4 --generation_batch_size 64"
    for trainer in ("grpo", "dpo"):
        assert main([command, "--trainer", trainer]) == 1
        assert f"nproc_per_node='{count}' is no number" in (printed := capsys.readouterr().err)
        assert "--devices N" in printed
    assert main([command, "--devices", "8"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (
        config["trainer"]["devices"] == 8 and config["data"]["batch_size"] == 2
    )  # 64 completions / 8 devices / 4 of each


def test_what_deepspeed_takes_from_the_script_is_the_script_s(capsys: pytest.CaptureFixture[str]) -> None:
    told = "accelerate launch --use_deepspeed --num_processes 2 {} grpo.py --gradient_accumulation_steps 4"
    configs = []
    for option in ("", "--gradient_accumulation_steps auto --gradient_clipping auto"):
        assert main([told.format(option)]) == 0
        configs.append(yaml.safe_load(capsys.readouterr().out))
    assert configs[0] == configs[1]
    assert (
        main([told.format("--gradient_accumulation_steps auto").removesuffix(" --gradient_accumulation_steps 4")]) == 0
    )


def test_a_quoted_command_longer_than_a_file_name_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    command = f"accelerate launch grpo.py --learning_rate 1e-5 --num_generations 4 --output_dir {'x' * 300}"
    assert main([command]) == 0
    assert "num_generations: 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "trainers"),
    [
        ("packing: true\nmax_length: 64\n", "sft"),
        ("f_divergence_type: reverse_kl\nmax_length: 64\n", "dpo"),
        ("max_length: 64\n", "sft or dpo or kto or reward"),
    ],
)
def test_a_config_of_another_trainer_is_answered_with_its_name(text, trainers, tmp_path, capsys):
    (tmp_path / "old.yaml").write_text(f"learning_rate: 1.0e-5\n{text}")
    assert main([str(tmp_path / "old.yaml")]) == 0
    assert f"For another trainer's give --trainer {trainers}." in capsys.readouterr().err
    (tmp_path / "old.yaml").write_text("learning_rate: 1.0e-5\nnum_generation: 4\n")  # misspelt alone
    assert main([str(tmp_path / "old.yaml")]) == 0
    assert "--trainer" not in capsys.readouterr().err
