"""Mistakes that people make in a config or on the command line, each with what the one line of answer says.

Those of ``FIRST`` are answered before torch is imported, those of ``LATER`` before weights load.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from runs import write_prompts


@dataclass(frozen=True)
class Mistake:
    """What is changed in a config that works, and a part of the answer.

    Args:
        answer: Words of the line.
        change: Dotted name -> value.
        arguments: Beside ``fit --config run.yaml``; ``{folder}`` is that of the files.
    """

    answer: str
    change: dict[str, Any] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join([*(f"{name}={value}" for name, value in self.change.items()), *self.arguments])


def setting(name: str, value: Any, answer: str) -> Mistake:
    return Mistake(answer, {name: value})


def typed(*words: str) -> Mistake:
    return Mistake(words[-1], arguments=words[:-1])


def of(path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": init_args}


def lora(answer: str, **settings: Any) -> Mistake:
    return Mistake(answer, {f"model.{name}": value for name, value in {"finetuning_type": "lora", **settings}.items()})


NAMES = [
    setting("model.betaa", 0.1, "model.betaa is no setting. Did you mean model.beta?"),
    setting("model.max_prompt_length", 64, "Did you mean data.max_prompt_length?"),
    setting("model.learning_rate", 1e-5, "TRL's learning_rate is here: model.optimizer.init_args.lr."),
    setting("model.lr", 1e-5, "Did you mean model.optimizer.lr?"),
    setting("model.num_generation", 4, "Did you mean model.num_generations?"),
    setting("model.max_completion_lenght", 9, "Did you mean model.max_completion_length?"),
    setting("model.reward_funcs", "accuracy", "TRL's reward_funcs is here: model.rewards."),
    setting("model.reward", "accuracy", "Did you mean model.rewards?"),
    setting("model.batch_size", 2, "Did you mean data.batch_size?"),
    setting("model.dynamic_sampling.mod", "drop", "Did you mean model.dynamic_sampling.mode?"),
    setting("model.lora_target_modules", ["q"], "model.lora_target;"),
    setting("model.vllm_gpu_memory_utilization", 0.3, "model.generator.init_args.gpu_memory_utilization."),
    setting("data.datset", "x", "Did you mean data.dataset?"),
    setting("data.train_file", "x", "Did you mean data.dataset?"),
    setting("data.batchsize", 3, "Did you mean data.batch_size?"),
    setting("data.per_device_train_batch_size", 3, "data.batch_size counts prompts"),
    setting("data.max_completion_length", 3, "Did you mean model.max_completion_length?"),
    setting("trainer.max_step", 1, "Did you mean trainer.max_steps?"),
    setting("trainer.epochs", 1, "Did you mean trainer.max_epochs?"),
    setting("trainer.gpus", 1, "Did you mean trainer.devices?"),
    setting("trainer.num_train_epochs", 1, "trainer.max_epochs, where max_steps is not set."),
    setting("trainer.batch_size", 2, "Did you mean data.batch_size?"),
    setting("trainer.learning_rate", 1e-4, "model.optimizer.init_args.lr."),
    setting("checkpoint.save_topk", 1, "Did you mean checkpoint.save_top_k?"),
    setting("alarms.patience", 1, "alarms.patience is no setting"),
    setting("export.foo", 1, "export.foo is no setting"),
    setting("modle.beta", 1, "modle is no setting. Did you mean model?"),
    setting("lr", 1, "Did you mean model.optimizer.lr?"),
    setting("seed", 1, "Did you mean seed_everything?"),
    setting("max_steps", 3, "Did you mean trainer.max_steps?"),
]
TYPES = [
    setting("model.num_generations", "eight", "='eight' cannot be used: it takes a whole number."),
    setting("model.num_generations", 8.5, "it takes a whole number. By default it is 8."),
    setting("model.beta", "high", "it takes a number."),
    setting("model.epsilon", [0.2], "it takes a number or null."),
    setting("model.temperature", "warm", "it takes a number. By default it is 1.0."),
    setting("model.stop", 3, "it takes a list or null."),
    setting("model.rewards", None, "model.rewards is null, and a run needs it."),
    setting("model.model_name_or_path", None, "model.model_name_or_path is null"),
    setting("model.dynamic_sampling", "refill", "it holds settings, such as model.dynamic_sampling.mode."),
    setting("model.reward_runtime.time_limit", "long", "it takes a number. By default it is 120.0."),
    setting("model.reward_composition.how", "max", "it takes sum, product or minimum."),
    setting("model.max_tokens_per_microbatch", "lots", "it takes a whole number or auto."),
    setting("model.microbatch_layout", "dense", "it takes auto, packed or padded."),
    setting("model.lora_rank", True, "model.lora_rank=True cannot be used: it takes a whole number."),
    setting("trainer.max_steps", "ten", "it takes a whole number. By default it is -1."),
    setting("trainer.devices", 2.5, "it takes a whole number, a text or a list."),
    setting("trainer.precision", 17, "trainer.precision=17 cannot be used"),
    setting("data.batch_size", "big", "it takes a whole number. By default it is 8."),
    setting("data.shuffle", "maybe", "it takes true or false. By default it is true."),
    setting("data.dataset", 5, "data.dataset=5 cannot be used: it takes a text, a list, a mapping or null."),
    setting("data.overlong_prompts", "cut", "it takes drop or refuse. By default it is drop."),
    setting("checkpoint.save_last", "sometimes", "it takes true or false, link or null."),
    setting("seed_everything", "abc", "it takes a whole number or true or false."),
]
SECTIONS = [
    setting(name, value, f"{name}={'null' if value is None else repr(value)} cannot be used: it holds settings")
    for name in (
        *("trainer", "model", "data", "checkpoint", "alarms", "export", "completions", "samples"),
        *("model.dynamic_sampling", "model.reward_composition", "model.reward_runtime", "model.turns"),
    )
    for value in (None, ["a"], "text", 5, True)
]
CLASSES = [
    setting("model.generator", "VLLMColocat", "is no known class. Did you mean VLLMColocate?"),
    setting("model.generator", of("TransformersGenerator", foo=1), "has no argument foo. It has:"),
    setting("model.generator", of("VLLMColocate", gpu_memory=1), "Did you mean gpu_memory_utilization?"),
    setting("model.generator", of("VLLMServer", prt=1), "VLLMServer has no argument prt. Did you"),
    setting("model.generator", {"class_path": "VLLMServer", "port": 1}, "Arguments of a class stand under init_args."),
    setting("trainer.callbacks", [of("EarlyStoping")], "Did you mean EarlyStopping?"),
    setting("trainer.callbacks", [of("EarlyStopping", monitr="x")], "Did you mean monitor?"),
    setting("trainer.callbacks", [of("EarlyStopping")], "EarlyStopping needs monitor"),
    setting("trainer.callbacks", [of("BeforeAfterSummary", foo=1)], "BeforeAfterSummary has no argument foo"),
    setting(
        "trainer.logger", of("NeptuneLogger", project="a"), "trainer.logger=NeptuneLogger cannot be used: the service"
    ),
    setting("trainer.logger", of("WandbLoggr"), "Did you mean WandbLogger?"),
    setting("model.lr_scheduler", of("torch.optim.lr_scheduler.CosineAnnealingLR"), "needs T_max"),
    setting("model.lr_scheduler", of("torch.optim.lr_scheduler.StepLR", step=3), "Did you mean step_size?"),
    setting("model.lr_scheduler", of("WarmupSchedule", warmup=3), "Did you mean warmup_steps?"),
    setting("model.lr_scheduler", of("WarmupSchedule", shape="cosin"), "it takes constant, linear or cosine."),
    setting("model.optimizer", of("torch.optim.AdamW", learning_rate=1), "AdamW has no argument learning_rate"),
    setting("model.optimizer", of("torch.optim.AdamW", lr="fast"), "AdamW cannot have lr='fast'"),
    setting(
        "model.generator", "vllm", "Choose one of TransformersGenerator, VLLMColocate, VLLMServer, or a class path."
    ),
    setting("trainer.logger", "wandb", "or a class path."),
    setting("model.optimizer", "adam", "model.optimizer=adam is no known class. Did you mean Adam?"),
    setting("model.optimizer", "adamW", "Did you mean AdamW?"),
    setting("model.optimizer", "adamw", "is a name of transformers and no class. Write torch.optim.AdamW."),
    setting("model.optimizer", "adamw_8bit", "Write bitsandbytes.optim.AdamW8bit."),
    setting("model.lr_scheduler", "cosine", "Write class_path: TransformersSchedule with init_args: {name: cosine}"),
    setting("model.lr_scheduler", of("linear"), "as options --model.lr_scheduler TransformersSchedule --model.lr"),
    setting(
        "model.lr_scheduler", {"name": "cosine"}, "has name and names no class. Give it class_path, one of Chained"
    ),
    setting("model.distillation", "Qwen/Qwen3-1.7B", "holds settings. Write model.distillation: {teacher: DIRECTORY}"),
    setting("data.curriculum", True, "Write data.curriculum: {hard_share: 0.1}"),
    setting("model.peft_config", "dora", "Write class_path: peft.LoraConfig with init_args: {use_dora: true}"),
]
RANGES = [
    setting(
        "model.rewards",
        "syntax_reward.py",
        "model.rewards=syntax_reward.py is a file, and a reward is a function in one.",
    ),
    setting("seed_everything", -3, "is no seed. Choose a whole number from 0 to 4294967295."),
    setting("trainer.max_steps", -5, "is no number of steps. Choose 1 or more, or -1 for no limit."),
    setting("trainer.max_epochs", -7, "is no number of epochs"),
    setting("trainer.devices", 0, "leaves nothing to train on. Choose 1 or more, -1 for all, or auto."),
    setting("trainer.devices", "0,,1", "leaves nothing to train on"),
    setting("trainer.val_check_interval", 0, "is no interval. Choose a number of steps from 1"),
    setting("trainer.devices", -5, "leaves nothing to train on"),
    setting("trainer.devices", "two", "leaves nothing to train on"),
    setting("trainer.strategy", "fspd2", "trainer.strategy=fspd2 is no strategy. Choose one of auto, ddp and fsdp2"),
    setting(
        "trainer.log_every_n_steps", 0, "trainer.log_every_n_steps=0 writes no metrics, and report has none to draw."
    ),
    setting("trainer.log_every_n_steps", -1, "writes no metrics"),
    setting("trainer.barebones", True, "trainer.barebones=True leaves out checkpoints, logs and the progress bar"),
    typed("--trainer.barebones", "true", "metrics.csv has the time of each phase of a step"),
    setting(
        "trainer.enable_checkpointing", False, "checkpoint.save_top_k=0 with checkpoint.save_last=false writes none"
    ),
    setting("trainer.num_nodes", 0, "is no number of machines"),
    setting("trainer.limit_train_batches", 0, "trains nothing. Choose a number of steps from 1"),
    setting("trainer.accelerator", "tpu", "Choose one of auto, cpu, gpu, cuda, mps."),
    setting("trainer.max_time", "soon", "Write days:hours:minutes:seconds, as in 00:08:00:00."),
    setting("checkpoint.every_n_train_steps", -1, "Choose 1 or more, or 0 for never."),
    setting("checkpoint.save_top_k", 3, "checkpoint.monitor does not say by which metric"),
    setting("checkpoint.mode", "maxx", "Choose min or max."),
    Mistake("without held-out prompts", {"data.eval_dataset": None, "trainer.val_check_interval": 2}),
]
TYPED = [
    typed(
        "--model.lr_scheduler", "{name: cosine}", "has name and names no class (command line). Give it class_path, one"
    ),
    typed("--model.distillation", "runs/quickstart/hf/last", "as an option --model.distillation.teacher DIRECTORY."),
    typed("--data.curriculum", "0.5", "as an option --data.curriculum.hard_share 0.1."),
    typed("--model.betaa", "1", "model.betaa is no setting (command line). Did you mean model.beta?"),
    typed("--modle.beta", "1", "Did you mean model.beta?"),
    typed("--max_steps", "3", "Did you mean trainer.max_steps?"),
    typed("--lr=3", "Did you mean model.optimizer.lr?"),
    typed("--model.beta", "--model.beta stands without a value."),
    typed("--model.rewards", "--model.rewards stands without a value."),
    typed("stray", "stray is no option. Every setting is given as --NAME VALUE"),
    typed("--model.generator.gpu_memory", "1", "TransformersGenerator has no argument gpu_memory (command line)."),
    typed("--model.generator.init_args.foo", "1", "TransformersGenerator has no argument foo"),
    typed("--model.optimizer.lrr", "1", "AdamW has no argument lrr (command line). Did you mean lr?"),
    typed("--model.optimizer.lr", "abc", "AdamW cannot have lr='abc' (command line): it takes a number."),
    typed("--trainer.callbacks", "EarlyStoping", "Did you mean EarlyStopping?"),
    typed("--config", "none.yaml", "--config none.yaml cannot be read: No such file or directory."),
    typed("--config", "--config stands without a file."),
    typed("--config", "twice.yaml", "model.beta stands twice in twice.yaml, in lines 2 and 3, and only one can count."),
    typed("--config", "tab.yaml", "tab.yaml is no valid YAML: line 2, column 1:"),
    typed("--config", "open.yaml", "open.yaml is no valid YAML: line 2, column 1: expected ',' or ']'"),
    typed("--config", "list.yaml", "list.yaml holds a list, and a config holds sections"),
    typed("--config", "words.yaml", "words.yaml holds a single value"),
]
FIRST = NAMES + TYPES + SECTIONS + CLASSES + RANGES + TYPED

VALUES = [
    setting("model.rewards", [], "model.rewards is empty"),
    setting("model.num_generations", 1, "model.num_generations=1: advantages compare the completions of a prompt"),
    setting("model.num_generations", 0, "model.num_generations=0 cannot be sampled with: choose at least 1"),
    setting("model.max_completion_length", 0, "model.max_completion_length=0 cannot be sampled with"),
    setting("model.max_completion_length", 600, "reaches beyond the 512 positions of the model"),
    setting(
        "model.max_completion_length", 508, "after the longest prompt of 8 tokens reaches beyond the 512 positions"
    ),
    setting("model.temperature", -1, "model.temperature=-1.0 cannot be sampled with: choose a number of 0"),
    setting("model.temperature", float("inf"), "model.temperature=inf cannot be sampled with"),
    setting("model.temperature", float("nan"), "model.temperature=nan cannot be sampled with"),
    setting("model.temperature", 0.0, "model.temperature=0 gives one completion many times over"),
    setting("model.top_p", 1.5, "model.top_p=1.5 cannot be sampled with"),
    setting("model.top_k", -1, "model.top_k=-1 cannot be sampled with"),
    setting("model.min_p", 2, "model.min_p=2.0 cannot be sampled with"),
    setting("model.repetition_penalty", 0, "model.repetition_penalty=0.0 cannot be sampled with"),
    setting("model.num_generations_eval", -1, "model.num_generations_eval=-1 cannot be sampled with"),
    setting("model.temperature_eval", float("inf"), "model.temperature_eval=inf cannot be sampled with"),
    setting(
        "model.temperature_eval", 0.7, "model.temperature_eval=0.7 has no effect with model.num_generations_eval=0"
    ),
    setting("model.top_p_eval", 0.9, "model.top_p_eval=0.9 has no effect with model.num_generations_eval=0"),
    setting("model.structured_outputs", {"regex": "a"}, "but TransformersGenerator has none"),
    setting("model.beta", -0.1, "model.beta=-0.1 is negative"),
    setting("model.epsilon", float("nan"), "model.epsilon=nan is not a finite number"),
    setting("model.epsilon_high", -1, "model.epsilon_high=-1.0 is negative"),
    setting("model.loss_type", "ppo", "model.loss_type='ppo' is unknown. Choose one of grpo,"),
    setting("model.loss_type", of("dppo", divergens="kl"), "dppo cannot be made with init_args"),
    setting("model.advantages", "gae", "model.advantages='gae' is unknown"),
    setting("model.scale_rewards", "std", "model.scale_rewards='std' is unknown"),
    setting("model.importance_sampling_mode", "clip", "model.importance_sampling_mode='clip' is unknown"),
    setting("model.top_entropy_quantile", 2, "model.top_entropy_quantile=2.0 is a share"),
    setting("model.num_iterations", 0, "model.num_iterations=0 trains on nothing"),
    setting("model.num_minibatches", 100, "data.batch_size=3 prompts cannot be dealt out to model.num_minibatches=100"),
    setting("model.max_tokens_per_microbatch", 0, "model.max_tokens_per_microbatch=0 holds no token"),
    setting("model.max_grad_norm", -1, "model.max_grad_norm=-1.0 is no norm of a gradient. Use 0 for no clipping"),
    setting("model.reward_weights", [1.0], "Number of reward_weights (1) must match"),
    setting("model.reward_weights", [float("nan"), 1.0], "The weight of the reward accuracy is nan"),
    setting("model.reward_weights", [1.0, float("inf")], "The weight of the reward format is inf"),
    setting("model.reward_weights", "a,b", "model.reward_weights='a,b' is not a list of numbers"),
    setting("model.reward_weights", [0.0, 0.0], "so no reward is trained on"),
    setting("model.reward_composition.gates", {"a": "b"}, "names 'a', which is not among the rewards"),
    setting("model.reward_runtime.max_workers", 0, "model.reward_runtime.max_workers=0 cannot work"),
    setting("model.success_reward", "akkuracy", "model.success_reward='akkuracy' is not among the rewards"),
    setting("model.dtype", "float8", "model.dtype='float8' is unknown"),
    setting("model.gradient_checkpointing", 2, "model.gradient_checkpointing=2.0 is neither"),
    setting("model.finetuning_type", "lor", "model.finetuning_type='lor' is none of full, lora, qlora"),
    setting("model.lora_rank", -1, "model.lora_rank has no effect with model.finetuning_type=full"),
    setting("model.async_rollouts", 1, "Use model.generator=VLLMServer, or async_rollouts=0"),
    setting("model.max_sampler_mismatch", 0, "model.max_sampler_mismatch=0.0 would stop every run"),
    setting("model.optimizer", of("torch.optim.AdamW", lr=-1), "model.optimizer cannot be made with these init_args"),
    setting(
        "model.lr_scheduler",
        of("lightning.pytorch.cli.ReduceLROnPlateau", monitor="reward"),
        "waits for a validation metric",
    ),
    setting("model.lr_scheduler", of("TransformersSchedule", name="cosin"), "model.lr_scheduler cannot be made"),
]
FILES = [
    setting("model.model_name_or_path", "/no/such", "model.model_name_or_path='/no/such' cannot be read"),
    setting("model.model_name_or_path", "{folder}", "The directory exists: check that its files are complete."),
    setting("model.rewards", "speling", "Reward function 'speling' not found"),
    setting("model.rewards", "syntax_reward.r", "syntax_reward.py, line 1: expected ':'. Correct that line."),
    setting("model.rewards", "import_reward.r", "imports 'nosuchlib', which is not installed"),
    setting("model.rewards", "no_such_module.r", "there is no module 'no_such_module'"),
    setting(
        "model.rewards",
        "column_reward.nothing",
        "module 'column_reward' has no attribute 'nothing'. Did you mean nothing_made? It has: r",
    ),
    setting("model.rewards", "column_reward.Plain", "which is not a BaseRewardFunction"),
    setting("model.rewards", "column_reward.nothing_made", "takes neither prompts nor completions"),
    setting("model.rewards", "column_reward.NUMBER", "neither a reward class nor a function"),
    setting(
        "model.rewards", "column_reward.r", "Reward 'r' needs the column difficulty, but the data has ground_truth."
    ),
    setting("model.rewards", [of("AccuracyReward", mod="exact")], "AccuracyReward cannot be made with init_args"),
    setting("model.eval_rewards", "nope", "Reward function 'nope' not found"),
    setting("data.dataset", None, "data.dataset is not set"),
    setting("model.rewards", "acuracy", "Did you mean accuracy? Available reward functions:"),
    setting("data.dataset", "trian.jsonl", "trian.jsonl. Did you mean train.jsonl?"),
    setting("data.dataset", "train", "Did you mean train.jsonl?"),
    setting("data.dataset", "/no/file.jsonl", "there is no file or directory /no/file.jsonl"),
    setting("data.dataset", "{folder}/empty.jsonl", "empty.jsonl has no rows"),
    setting("data.dataset", "{folder}/broken.jsonl", "line 1 is not JSON"),
    setting("data.dataset", "{folder}/no_answers.jsonl", "Reward 'accuracy' finds no reference"),
    setting("data.eval_dataset", "/no/eval.jsonl", "there is no file or directory /no/eval.jsonl"),
    setting(
        "data.eval_dataset", "{folder}/no_answers.jsonl", "data.eval_dataset: Reward 'accuracy' finds no reference"
    ),
    setting(
        "model.rewards", [of("CodeExecutionReward", unsafe=True)], "Reward 'code_execution' finds no tests: looked for"
    ),
    setting("model.rewards", "reasoning_gym", "scores the tasks of {reasoning_gym: ...}, and the data has the columns"),
    setting("trainer.val_check_interval", 99, "trainer.val_check_interval=99 steps is never reached: an epoch has"),
    setting("data.converter", "gsm9k", "Dataset converter 'gsm9k' not found"),
    setting("data.converter", "gsm8k", "question_key='question' is not a column"),
    setting("data.converter_args", {"foo": 1}, "Dataset converter 'grpo' takes no foo"),
    setting("data.split", "trian", "has no split 'trian', only train"),
    setting("data.batch_size", 0, "data.batch_size=0 is not possible"),
    setting("data.batch_size", 100, "Set data.batch_size to at most 12"),
    setting("data.max_prompt_length", 1, "Raise data.max_prompt_length"),
    setting("trainer.default_root_dir", "{folder}/empty.jsonl", "is a file, and a run writes a folder"),
    typed("--ckpt_path", "none.ckpt", "--ckpt_path none.ckpt: there is no such file. There is none in"),
    typed("--ckpt_path", "{folder}/text.ckpt", "the file is cut off, or not a checkpoint"),
    typed("--ckpt_path", "{folder}/foreign.ckpt", "foreign.ckpt is not a checkpoint of grpo_lightning"),
    typed("--ckpt_path", "{folder}/run", "is a folder that is no checkpoint"),
    typed("--ckpt_path", "best", "checkpoint.monitor is not set"),
    typed(
        "--model", "no.Such", "model_class=no.Such cannot be imported: No module named 'no'. Its file is looked for in"
    ),
    typed("--model", "collections.OrderedDit", "Did you mean collections.OrderedDict?"),
    setting(
        "data.curriculum",
        {"hard_shre": 0.1},
        "data.curriculum: Option 'hard_shre' is not accepted. Did you mean hard_share?",
    ),
    setting("model.advantages", of("grpo", gama=0.9), "grpo cannot be made with init_args={'gama': 0.9}"),
    typed("--model", "collections.OrderedDict", "is no subclass of GRPOModule"),
]
DECAY = of("WarmupSchedule", shape="cosine")
TARGETS = "model.lora_target (target_modules of model.peft_config) names"
LAYERS = [
    setting(
        "model.attn_implementation",
        "flash_attn_2",
        "transformers has none of this name. Did you mean flash_attention_2?",
    ),
    setting(
        "model.attn_implementation",
        "fast",
        "model.attn_implementation=fast cannot be used with qwen2: transformers has",
    ),
    setting("model.attn_implementation", "flash_attention_2", "Leave the setting out, or use one of eager, "),
    lora(
        f"{TARGETS} q_porj, and no layer of Qwen2ForCausalLM is called so. Did you mean q_proj?",
        lora_target="q_porj,v_proj",
    ),
    lora(f"{TARGETS} c_attn, and no layer", lora_target=["c_attn"]),
    lora("model.lora_target='.*q_porj' fits no layer of Qwen2ForCausalLM. A regular", lora_target=".*q_porj"),
    lora(f"{TARGETS} self_attn, and no layer", lora_target="self_attn"),
    lora(f"{TARGETS} wq, and", peft_config=of("peft.LoraConfig", target_modules=["wq", "q_proj"])),
    lora(
        "modules_to_save of model.peft_config names lm_haed, and",
        peft_config=of("peft.LoraConfig", modules_to_save=["lm_haed"]),
    ),
]
TRAINER = [
    Mistake(
        "model.lr_scheduler depends on the length of the run, which only the clock ends. Set its total_steps, or",
        {"model.lr_scheduler": DECAY, "trainer.max_steps": -1, "trainer.max_time": "00:00:10:00"},
    ),
    Mistake(
        "depends on the length of the run, which only the clock ends",
        {
            "model.lr_scheduler": of("TransformersSchedule", name="cosine"),
            "trainer.max_steps": -1,
            "trainer.max_time": "00:00:10:00",
        },
    ),
    setting(
        "model.lr_scheduler",
        of("WarmupSchedule", shape="cosine", warmup_steps=3),
        "a cosine schedule needs total_steps above warmup_steps=3, got total_steps=1.",
    ),
    setting("trainer.accelerator", "gpu", "trainer.accelerator=gpu, but torch sees no GPU here"),
    setting("trainer.max_steps", 0, "trainer.max_steps=0 trains nothing"),
    setting("trainer.strategy", "deepspeed", "deepspeed is not supported. Use trainer.strategy=fsdp2"),
    setting("trainer.strategy", "dpd", "trainer.strategy=dpd is no strategy. Choose one of auto, ddp and fsdp2"),
    setting(
        "trainer.strategy",
        "zero3",
        "trainer.strategy=zero3 is no strategy. Choose one of auto, ddp and fsdp2, or a class",
    ),
    setting("trainer.gradient_clip_val", 1.0, "Set model.max_grad_norm instead"),
    setting("trainer.accumulate_grad_batches", 2, "model.max_tokens_per_microbatch bounds the memory"),
    setting("checkpoint.monitor", "val/acuracy", "checkpoint.monitor=val/acuracy is no metric of this run"),
    setting("trainer.callbacks", [of("EarlyStopping", monitor="val/acuracy")], "Did you mean val/accuracy"),
    Mistake("data.eval_dataset is not set", {"checkpoint.monitor": "val/accuracy", "data.eval_dataset": None}),
]
LATER = VALUES + FILES + LAYERS + TRAINER


def write_files(folder: Path) -> None:
    """What the mistakes name."""
    write_prompts(folder / "train.jsonl")
    write_prompts(folder / "eval.jsonl", 5)
    texts = {
        "empty.jsonl": "",
        "broken.jsonl": '{"prompt": "a"\n',
        "no_answers.jsonl": (json.dumps({"prompt": "a"}) + "\n") * 8,
        "text.ckpt": "hello",
        "syntax_reward.py": "def r(completions, **k)\n    return [1.0]\n",
        "import_reward.py": "import nosuchlib\n",
        "column_reward.py": "def r(completions, difficulty):\n    return [1.0]\nclass Plain: pass\nNUMBER = 3\ndef nothing_made():\n    return []\n",
        "twice.yaml": "model:\n  beta: 1\n  beta: 2\n",
        "tab.yaml": "model:\n\tbeta: 1\n",
        "open.yaml": "model: [1\n",
        "list.yaml": "- a\n",
        "words.yaml": "hello\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    torch.save({"state_dict": {}}, folder / "foreign.ckpt")
    (folder / "run").mkdir()
