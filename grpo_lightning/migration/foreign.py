"""Configs of other GRPO trainers: recognised, and answered with what can be taken from them by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

_DEVICES = "over all devices; data.batch_size is per device"
VERL = {
    "actor_rollout_ref.model.path": "model.model_name_or_path",
    "actor_rollout_ref.actor.optim.lr": "model.optimizer.init_args.lr",
    "actor_rollout_ref.actor.clip_ratio": "model.epsilon",
    "actor_rollout_ref.actor.clip_ratio_low": "model.epsilon",
    "actor_rollout_ref.actor.clip_ratio_high": "model.epsilon_high",
    "actor_rollout_ref.actor.kl_loss_coef": "model.beta",
    "actor_rollout_ref.actor.entropy_coeff": "model.entropy_coef",
    "actor_rollout_ref.actor.ppo_epochs": "model.num_iterations",
    "actor_rollout_ref.actor.grad_clip": "model.max_grad_norm",
    "actor_rollout_ref.rollout.n": "model.num_generations",
    "actor_rollout_ref.rollout.temperature": "model.temperature",
    "actor_rollout_ref.rollout.top_p": "model.top_p",
    "actor_rollout_ref.rollout.gpu_memory_utilization": "model.generator.init_args.gpu_memory_utilization",
    "actor_rollout_ref.rollout.tensor_model_parallel_size": "model.generator.init_args.tensor_parallel_size",
    "data.train_files": "data.dataset",
    "data.val_files": "data.eval_dataset",
    "data.train_batch_size": f"data.batch_size: prompts {_DEVICES}",
    "data.max_prompt_length": "data.max_prompt_length",
    "data.max_response_length": "model.max_completion_length",
    "data.prompt_key": "data.converter_args.prompt_key",
    "trainer.total_epochs": "trainer.max_epochs",
    "trainer.n_gpus_per_node": "trainer.devices",
    "trainer.nnodes": "trainer.num_nodes",
    "trainer.save_freq": "checkpoint.every_n_train_steps",
    "trainer.test_freq": "trainer.val_check_interval",
    "custom_reward_function.path": "model.rewards, by import path",
}
OPENRLHF = {
    "pretrain": "model.model_name_or_path",
    "actor_learning_rate": "model.optimizer.init_args.lr",
    "n_samples_per_prompt": "model.num_generations",
    "rollout_batch_size": f"data.batch_size: prompts {_DEVICES}",
    "init_kl_coef": "model.beta",
    "eps_clip": "model.epsilon",
    "eps_clip_low_high": "model.epsilon and model.epsilon_high",
    "temperature": "model.temperature",
    "top_p": "model.top_p",
    "generate_max_len": "model.max_completion_length",
    "prompt_max_len": "data.max_prompt_length",
    "max_epochs": "model.num_iterations",
    "num_episodes": "trainer.max_epochs",
    "prompt_data": "data.dataset",
    "input_key": "data.converter_args.prompt_key",
    "label_key": "data.converter_args.ground_truth_key",
    "apply_chat_template": "data.converter_args.conversational: true",
    "remote_rm_url": "model.rewards: remote_reward_model, or your function by import path",
    "save_path": "trainer.default_root_dir",
    "lora_rank": "model.lora_rank",
}
SWIFT = {
    "model": "model.model_name_or_path",
    "dataset": "data.dataset",
    "learning_rate": "model.optimizer.init_args.lr",
    "num_generations": "model.num_generations",
    "max_completion_length": "model.max_completion_length",
    "max_length": "data.max_prompt_length",
    "temperature": "model.temperature",
    "beta": "model.beta",
    "epsilon": "model.epsilon",
    "epsilon_high": "model.epsilon_high",
    "loss_type": "model.loss_type",
    "num_iterations": "model.num_iterations",
    "num_train_epochs": "trainer.max_epochs",
    "per_device_train_batch_size": "data.batch_size: here completions, there prompts (docs/from-trl.md)",
    "train_type": "model.finetuning_type",
    "tuner_type": "model.finetuning_type",
    "lora_rank": "model.lora_rank",
    "lora_alpha": "model.lora_alpha",
    "reward_funcs": "model.rewards; its accuracy and format are other functions than ours",
    "reward_weights": "model.reward_weights",
    "system": "data.converter_args.system_prompt",
    "external_plugins": "model.rewards, by import path",
    "output_dir": "trainer.default_root_dir",
}
NEMO_RL = {
    "policy.model_name": "model.model_name_or_path",
    "grpo.num_prompts_per_step": f"data.batch_size: prompts {_DEVICES}",
    "grpo.num_generations_per_prompt": "model.num_generations",
    "grpo.max_num_steps": "trainer.max_steps",
    "loss_fn.reference_policy_kl_penalty": "model.beta",
    "loss_fn.ratio_clip_min": "model.epsilon",
    "loss_fn.ratio_clip_max": "model.epsilon_high",
    "policy.generation.temperature": "model.temperature",
    "policy.optimizer.kwargs.lr": "model.optimizer.init_args.lr",
    "data.dataset_name": "data.dataset",
}
EASY_R1 = {
    "worker.actor.model.model_path": "model.model_name_or_path",
    "worker.actor.optim.lr": "model.optimizer.init_args.lr",
    "worker.actor.max_grad_norm": "model.max_grad_norm",
    "worker.rollout.n": "model.num_generations",
    "worker.rollout.temperature": "model.temperature",
    "algorithm.kl_coef": "model.beta",
    "data.train_files": "data.dataset",
    "data.prompt_key": "data.converter_args.prompt_key",
    "data.answer_key": "data.converter_args.ground_truth_key",
    "data.max_prompt_length": "data.max_prompt_length",
    "data.max_response_length": "model.max_completion_length",
    "data.rollout_batch_size": f"data.batch_size: prompts {_DEVICES}",
    "trainer.total_epochs": "trainer.max_epochs",
}
AREAL = {
    "actor.path": "model.model_name_or_path",
    "actor.optimizer.lr": "model.optimizer.init_args.lr",
    "actor.eps_clip": "model.epsilon",
    "actor.kl_ctl": "model.beta",
    "gconfig.n_samples": "model.num_generations",
    "gconfig.max_new_tokens": "model.max_completion_length",
    "gconfig.temperature": "model.temperature",
    "train_dataset.path": "data.dataset",
    "train_dataset.batch_size": f"data.batch_size: prompts {_DEVICES}",
    "total_train_epochs": "trainer.max_epochs",
}
PRIME_RL = {
    "model.name": "model.model_name_or_path",
    "trainer.optim.lr": "model.optimizer.init_args.lr",
    "orchestrator.rollouts_per_example": "model.num_generations",
    "orchestrator.sampling.max_tokens": "model.max_completion_length",
    "orchestrator.sampling.temperature": "model.temperature",
    "max_steps": "trainer.max_steps",
}
OUMI = {
    "model.model_name": "model.model_name_or_path",
    "training.learning_rate": "model.optimizer.init_args.lr",
    "training.grpo.num_generations": "model.num_generations",
    "training.per_device_train_batch_size": "data.batch_size: here completions, there prompts (docs/from-trl.md)",
    "training.max_steps": "trainer.max_steps",
    "training.output_dir": "trainer.default_root_dir",
}
TORCHTUNE = {
    "grpo_samples": "model.num_generations",
    "optimizer.lr": "model.optimizer.init_args.lr",
    "loss.kl_coeff": "model.beta",
    "loss.epsilon": "model.epsilon",
    "batch_size": "data.batch_size",
    "max_generated_tokens": "model.max_completion_length",
    "temperature": "model.temperature",
}
TABLES = {
    "verl": VERL,
    "OpenRLHF": OPENRLHF,
    "ms-swift": SWIFT,
    "NeMo-RL": NEMO_RL,
    "EasyR1": EASY_R1,
    "AReaL": AREAL,
    "prime-rl": PRIME_RL,
    "oumi": OUMI,
    "torchtune": TORCHTUNE,
}
SECTIONS = {
    "NeMo-RL": {"grpo", "policy"},
    "EasyR1": {"worker", "algorithm"},
    "AReaL": {"gconfig", "actor"},
    "prime-rl": {"orchestrator", "trainer"},
    "oumi": {"training", "model"},
}
"""Sections, mappings all of them, that a trainer's files have and nobody else's."""


def refuse_foreign_file(path: str, content: Mapping[str, Any]) -> None:
    """Raises ValueError if a file is another trainer's."""
    keys = {str(key) for key in content}
    sections = {str(key) for key, value in content.items() if isinstance(value, Mapping)}
    for trainer, own in SECTIONS.items():
        if own <= sections:
            _refuse(path, trainer, _flat(content))
    if {"actor_rollout_ref", "algorithm"} & keys:
        _refuse(path, "verl", _flat(content))
    elif "rlhf_type" in keys or {"train_type", "tuner_type"} & keys:
        _refuse(path, "ms-swift", content)
    elif {"n_samples_per_prompt", "advantage_estimator", "actor_learning_rate"} & keys:
        _refuse(path, "OpenRLHF", content)
    if any(isinstance(value, Mapping) and "_component_" in value for value in content.values()):
        _refuse(path, "torchtune", _flat(content))


def refuse_foreign_command(words: Sequence[str], what: str = "This command") -> None:
    """Raises ValueError if a command, or a script that holds one, starts another trainer."""
    text = " ".join(words)
    pairs = dict(word.lstrip("+").split("=", 1) for word in words if "=" in word and not word.startswith("-"))
    options: dict[str, Any] = {}
    for index, word in enumerate(words):
        following = words[index + 1] if index + 1 < len(words) else "--"
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            options[name] = value or (True if following.startswith("--") else following)
    if "verl.trainer" in text or any(name.startswith("actor_rollout_ref.") for name in pairs):
        _refuse(what, "verl", pairs)
    elif "openrlhf" in text.lower() or {"n_samples_per_prompt", "advantage_estimator"} & options.keys():
        _refuse(what, "OpenRLHF", options)
    elif "rlhf_type" in options or list(words[:2]) == ["swift", "rlhf"]:
        _refuse(what, "ms-swift", options)


def _refuse(what: str, trainer: str, settings: Mapping[str, Any]) -> NoReturn:
    table = TABLES[trainer]
    taken = [f"  {key}: {settings[key]} -> {ours}" for key, ours in table.items() if key in settings]
    lines = [
        f"{what} is for {trainer}, whose settings migrate does not translate: it reads TRL's. Start from a file in configs/.",
        "What can be taken from it by hand:" if taken else "Nothing in it has a direct counterpart.",
        *taken,
    ]
    raise ValueError("\n".join(lines))


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
