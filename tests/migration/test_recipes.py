"""Keys of the recipes that people copy: each has a place or an answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from parsed_config import BASE, ENDLESS, parse, written

from grpo_lightning.migration import migrate, read_source

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")

KEYS = {
    "open-r1": """model_revision torch_dtype attn_implementation chat_template dataset_name dataset_config dataset_configs
        dataset_prompt_column system_prompt dataset_mixture callbacks benchmarks do_eval hub_model_id hub_model_revision
        hub_strategy overwrite_hub_revision push_to_hub_revision log_level logging_first_step overwrite_output_dir num_processes
        vllm_device vllm_gpu_memory_utilization vllm_max_model_len wandb_project wandb_entity wandb_run_group warmup_ratio
        code_language code_eval_test_batch_size code_eval_scoring_mode code_provider e2b_router_url morph_router_url
        ioi_provider parallel_code_exec_per_proc cosine_min_value_wrong cosine_max_value_wrong cosine_min_value_correct
        cosine_max_value_correct cosine_max_len repetition_n_grams repetition_max_penalty max_completion_len
        soft_punish_cache wandb_log_unique_prompts num_completions_to_print""",
    "older TRL and transformers": """evaluation_strategy vllm_dtype vllm_enable_prefix_caching vllm_guided_decoding_regex
        use_liger_loss max_prompt_length logging_dir save_safetensors no_cuda use_mps_device group_by_length
        fp16_opt_level half_precision_backend push_to_hub_token include_tokens_per_second jit_mode_eval tpu_num_cores
        per_gpu_train_batch_size adafactor split_batches dispatch_batches ray_scope past_index""",
    "Unsloth": """model_name max_seq_length load_in_4bit fast_inference max_lora_rank gpu_memory_utilization r target_modules
        lora_alpha use_gradient_checkpointing random_state vllm_sampling_params unsloth_num_chunks use_rslora loftq_config
        full_finetuning""",
    "launchers": """num_processes num_machines machine_rank main_process_port main_process_ip mixed_precision gpu_ids multi_gpu
        use_deepspeed dynamo_backend nproc_per_node nnodes master_addr master_port standalone accelerate_config""",
    "TRL": "datasets streaming test_split_size vllm_server_base_url deepspeed fsdp fsdp_config",
}

SHAPED = {
    "dataset_mixture": {"datasets": [{"id": "a/b"}]},
    "datasets": [{"path": "a/b"}],
    "target_modules": ["q_proj"],
    "callbacks": ["x"],
}
"""Values of keys that hold more than one thing."""


@pytest.mark.parametrize("recipe", KEYS)
def test_every_key_has_a_place_or_an_answer(recipe):
    for key in KEYS[recipe].split():
        result = migrate(ENDLESS | {key: SHAPED.get(key, 1)})
        assert key in result.mapped or key in result.refused, key
        assert "Unknown" not in result.refused.get(key, ""), key


def test_open_r1s_prompts_are_made_as_its_script_makes_them(tmp_path):
    settings = {
        "dataset_name": "open-r1/OpenR1-Math-220k",
        "dataset_prompt_column": "problem",
        "system_prompt": "Think.",
    }
    config = written(BASE | settings, tmp_path)
    assert config.data.converter_args == {"prompt_key": "problem", "conversational": True, "system_prompt": "Think."}


@pytest.mark.parametrize(
    ("theirs", "target", "value"),
    [
        ({"torch_dtype": "float32"}, "model.dtype", "float32"),
        ({"chat_template": "{{ x }}"}, "model.chat_template_kwargs", {"chat_template": "{{ x }}"}),
        ({"num_processes": 4}, "trainer.devices", 4),
        ({"evaluation_strategy": "epoch"}, "trainer.check_val_every_n_epoch", 1),
        (
            {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_len": 900},
            "model.generator.init_args.max_model_length",
            900,
        ),
        ({"vllm_guided_decoding_regex": "a+"}, "model.structured_outputs", {"regex": "a+"}),
        ({"mixed_precision": "bf16", "bf16": False}, "trainer.precision", "32-true"),
        ({"use_deepspeed": True, "use_vllm": True}, "trainer.strategy", "fsdp2"),
    ],
)
def test_an_older_or_another_name_arrives_where_the_current_one_does(theirs, target, value):
    result = migrate(BASE | theirs)
    assert result.config[target] == value
    assert theirs.keys() <= result.mapped.keys()


def test_a_run_of_wandb_keeps_project_entity_and_group(tmp_path):
    names = {"report_to": "wandb", "wandb_project": "p", "wandb_entity": "e", "wandb_run_group": "g"}
    logger = migrate(BASE | names).config["trainer.logger"][0]
    assert logger["init_args"]["project"] == "p" and logger["dict_kwargs"] == {"entity": "e", "group": "g"}
    parsed = written(BASE | names, tmp_path).trainer.logger[0]
    # Where wandb is installed, its arguments are known by name; elsewhere they are handed on as they are.
    assert {**vars(parsed.init_args), **parsed.get("dict_kwargs", {})}["entity"] == "e"


def test_weights_in_half_precision_run_as_there_and_what_is_lost_is_said():
    result = migrate(BASE | {"torch_dtype": "bfloat16", "learning_rate": 2e-6})
    assert result.config["model.allow_rounded_steps"] is True
    assert "Steps of 2e-06 mostly round away" in result.refused["torch_dtype"]


def test_several_datasets_are_weighed_by_their_rows(tmp_path):
    listed = [{"path": "a/maths"}, {"path": "b/maths", "name": "hard"}, {"path": "json", "data_files": "words.jsonl"}]
    result = migrate(BASE | {"datasets": listed})
    assert result.config["data.datasets"] == {
        "maths": {"hf_hub_url": "a/maths", "split": "train", "weight": "rows"},
        "maths-2": {"hf_hub_url": "b/maths", "subset": "hard", "split": "train", "weight": "rows"},
        "words": {"file_name": "words.jsonl", "split": "train", "weight": "rows"},
    }
    assert "data.dataset" not in result.config
    assert written(BASE | {"datasets": listed}, tmp_path).data.datasets["maths"]["weight"] == "rows"
    one = migrate(BASE | {"dataset_mixture": {"datasets": [{"id": "a/b", "config": "c"}]}}).config
    assert one["data.dataset"] == {"hf_hub_url": "a/b", "subset": "c", "split": "train"}


@pytest.mark.parametrize("name", ["streaming", "dataset_streaming"])
def test_a_stream_stays_one_where_its_run_has_an_end_and_one_dataset(name, tmp_path):
    stream = BASE | {"dataset_name": "a/b", name: True}
    assert written(stream, tmp_path).data.streaming is True
    endless = migrate({**stream, "max_steps": -1})
    assert "data.streaming" not in endless.config and "Without max_steps" in endless.refused[name]
    several = migrate(BASE | {"datasets": [{"path": "a/b"}, {"path": "c/d"}], name: True})
    assert "data.streaming" not in several.config and "Several datasets" in several.refused[name]


def test_unsloths_notebooks_train_adapters_without_being_told():
    settings = {
        "model_name": "some/model",
        "fast_inference": True,
        "r": 32,
        "target_modules": ["q_proj"],
        "random_state": 7,
    }
    config = migrate(settings | {"use_gradient_checkpointing": "unsloth", "max_seq_length": 1024}).config
    assert (config["model.finetuning_type"], config["model.lora_rank"], config["model.lora_target"]) == (
        "lora",
        32,
        ["q_proj"],
    )
    assert (config["seed_everything"], config["model.gradient_checkpointing"]) == (7, True)


AXOLOTL = """
base_model: some/model
rl: grpo
trl: {beta: 0.001, num_generations: 4, max_completion_length: 64, reward_funcs: [rewards.mine], use_vllm: true, vllm_mode: colocate}
vllm: {gpu_memory_utilization: 0.5}
datasets: [{path: openai/gsm8k, name: main, type: rewards.transform}]
adapter: lora
lora_r: 16
lora_target_linear: true
micro_batch_size: 8
gradient_accumulation_steps: 2
num_epochs: 2
optimizer: adamw_torch_fused
lr_scheduler: cosine
learning_rate: 1e-5
bf16: auto
sample_packing: false
val_set_size: 0.0
output_dir: out
"""


def test_an_axolotl_file_is_read_as_the_trl_run_that_it_starts(tmp_path: Path):
    path = tmp_path / "axolotl.yaml"
    path.write_text(AXOLOTL)
    result = migrate(read_source(path))
    config = result.config
    assert (config["model.beta"], config["data.batch_size"], config["trainer.max_epochs"]) == (0.001, 4, 2)
    assert (config["model.finetuning_type"], config["model.lora_target"]) == ("lora", "all")
    assert config["data.dataset"] == {"hf_hub_url": "openai/gsm8k", "subset": "main", "split": "train"}
    assert not any("Unknown" in reason for reason in result.refused.values())
    path.write_text(AXOLOTL.replace("rl: grpo", "rl: dpo"))
    with pytest.raises(ValueError, match="has rl: dpo"):
        read_source(path)


def test_what_axolotl_makes_prompts_with_is_listed(tmp_path: Path):
    """The rows were read without it, and all settings said to have a place."""
    path = tmp_path / "axolotl.yaml"
    entry = "datasets: [{path: openai/gsm8k, name: main, type: my_rewards.transform}]\n"
    path.write_text(f"base_model: some/model\nrl: grpo\nsequence_len: 512\nmax_steps: 1\n{entry}")
    refused = migrate(read_source(path)).refused
    assert "data.converter" in refused["type"] and "data.max_prompt_length" in refused["sequence_len"]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "set -x\npython3 -m verl.trainer.main_ppo \\\n  data.train_files=$HOME/a.parquet \\\n  actor_rollout_ref.rollout.n=5 $@\n",
            "is for verl, .*actor_rollout_ref.rollout.n: 5 -> model.num_generations",
        ),
        (
            "python3 -m openrlhf.cli.train_ppo_ray \\\n   --n_samples_per_prompt 8\n",
            "is for OpenRLHF, .*8 -> model.num_generations",
        ),
        ("# it's\naccelerate launch grpo.py --beta 0.1\n", "is a script. Give the command"),
    ],
)
def test_a_script_is_answered_with_what_can_be_taken_from_it(tmp_path: Path, script: str, said: str):
    (tmp_path / "run.sh").write_text(script)
    with pytest.raises(ValueError, match=f"(?s)run.sh {said}"):
        read_source(tmp_path / "run.sh")


@pytest.mark.parametrize("name", ["train.py", "train.ipynb"])
def test_a_program_is_answered_with_how_it_writes_its_settings(tmp_path: Path, name: str):
    (tmp_path / name).write_text("from trl import GRPOConfig\n")
    with pytest.raises(ValueError, match=rf"{name} is a program, .*yaml.safe_dump\(args.to_dict\(\)"):
        read_source(tmp_path / name)


def test_settings_of_a_loss_that_is_not_chosen_are_left_out_of_a_whole_config(tmp_path: Path):
    """GRPOConfig.to_dict() has them all, and fit refuses those that have no effect."""
    path = tmp_path / "whole.yaml"
    path.write_text("loss_type: dapo\nsapo_temperature_pos: 1.0\nvespo_k_neg: 3.0\nmodel_name_or_path: m\n")
    result = migrate(read_source(path))
    assert not {"model.sapo_temperature_pos", "model.vespo_k_neg"} & set(result.config)
    assert result.refused["vespo_k_neg"] == "loss_type is dapo, so it has no effect in TRL either."


def test_axolotl_names_a_chat_template_and_its_server_and_wandb_by_what_is_there(tmp_path: Path):
    path = tmp_path / "axolotl.yaml"
    path.write_text(
        AXOLOTL.replace(", vllm_mode: colocate", "").replace("vllm: {", "vllm: {host: 10.0.0.1, port: 8001, ")
        + "chat_template: qwen3\nwandb_project: p\nwandb_name:\ngc_steps: 1\n"
    )
    result = migrate(read_source(path))
    assert "model.chat_template_kwargs" not in result.config  # or every prompt were the word qwen3
    assert "names a template of its own" in result.refused["chat_template_name"]
    assert result.config["model.generator.class_path"].endswith("VLLMServer")
    assert result.config["model.generator.init_args.port"] == 8001
    assert result.config["trainer.logger"][0]["init_args"]["project"] == "p"
    assert not any("Unknown" in reason for reason in result.refused.values())
    path.write_text(AXOLOTL + "chat_template: jinja\nchat_template_jinja: '{{ messages }}'\n")
    config = migrate(read_source(path)).config
    assert config["model.chat_template_kwargs"] == {"chat_template": "{{ messages }}"}
    assert config["model.generator.class_path"].endswith("VLLMColocate")


def test_less_than_an_epoch_is_a_share_of_one():
    config = migrate(ENDLESS | {"num_train_epochs": 0.25, "eval_strategy": "steps", "eval_steps": 0.5}).config
    assert (config["trainer.max_epochs"], config["trainer.limit_train_batches"]) == (1, 0.25)
    assert config["trainer.val_check_interval"] == 0.5  # of the quarter
    more = migrate(ENDLESS | {"num_train_epochs": 2.5})
    assert more.config["trainer.max_epochs"] == 3 and "2.5: epochs are whole" in more.refused["num_train_epochs"]


def test_a_recipe_in_the_manner_of_open_r1_becomes_a_config_that_parses(tmp_path: Path):
    recipe = {
        "model_name_or_path": "some/model",
        "torch_dtype": "bfloat16",
        "dataset_name": "open-r1/OpenR1-Math-220k",
        "dataset_prompt_column": "problem",
        "system_prompt": "You first think.\n<think>\n...\n</think>",
        "use_vllm": True,
        "vllm_device": "auto",
        "do_eval": False,
        "gradient_accumulation_steps": 4,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "num_generations": 16,
        "num_train_epochs": 1,
        "max_steps": -1,
        "overwrite_output_dir": True,
        "per_device_train_batch_size": 16,
        "reward_funcs": ["accuracy", "format", "tag_count"],
        "reward_weights": [1.0, 1.0, 1.0],
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "warmup_ratio": 0.1,
    }
    result = migrate(recipe)
    new = tmp_path / "new.yaml"
    new.write_text(result.to_yaml("recipe.yaml"))
    config = parse(new)
    schedule = config.model.lr_scheduler.init_args
    assert (schedule.name, schedule.warmup_steps, schedule.total_steps) == ("cosine_with_min_lr", 0.1, None)
    assert config.data.batch_size == 4 and len(config.model.rewards) == 2
    assert recipe.keys() <= result.mapped.keys() | result.refused.keys()
