"""Settings without a counterpart: why, and what to do instead."""

from __future__ import annotations

from grpo_lightning.migration.recipes import HUB, RECIPES

_LOADER = "Prompts are converted and tokenised once before training, so there is no loader with workers to set up."
_DDP = "Give trainer.strategy a class_path with init_args (lightning.pytorch.strategies.DDPStrategy)."
_LOGGING = "Lightning's loggers decide: trainer.logger."
_PADDING = "Micro-batches are packed under model.max_tokens_per_microbatch; nothing is padded."
_COMPLETIONS = (
    "Completions of every step are written as Parquet in any case; `python -m grpo_lightning report` shows them."
)
_CONTINUOUS = "TransformersGenerator decodes ragged batches in its own way; the fast engine is VLLMColocate."
_METRICS = "Evaluation logs mean rewards, accuracy and pass@k; it has no compute_metrics."
_COMPILE = "model.torch_compile uses torch's defaults."

REFUSED: dict[str, str] = {
    "optim_args": "Write them into model.optimizer.init_args.",
    "optim_target_modules": "Name an optimizer by class path in model.optimizer.",
    "average_tokens_across_devices": "Every average here is over all devices.",
    "label_smoothing_factor": "GRPO has no labels.",
    "bf16_full_eval": "Evaluation runs in trainer.precision.",
    "fp16_full_eval": "Evaluation runs in trainer.precision.",
    "tf32": "A process-wide torch switch: call torch.set_float32_matmul_precision in your own code.",
    "gradient_checkpointing_kwargs": "model.gradient_checkpointing is always non-reentrant.",
    "torch_compile_backend": _COMPILE,
    "torch_compile_mode": _COMPILE,
    "liger_kernel_config": "model.use_liger_kernel replaces norms and gated activations; the loss has chunks of its own.",
    "use_cache": "Generation always uses a cache, training never.",
    "neftune_noise_alpha": "Noise on the embeddings would make old and new logprobs disagree.",
    "torch_empty_cache_steps": "Lower model.max_tokens_per_microbatch instead: it bounds the memory of a pass.",
    "auto_find_batch_size": "model.max_tokens_per_microbatch bounds memory without changing the batch.",
    "logging_first_step": "Step 0 is logged in any case.",
    "log_on_each_node": _LOGGING,
    "logging_nan_inf_filter": "Updates with NaN or infinity are skipped, counted (skipped_updates) and raise an alarm.",
    "include_num_input_tokens_seen": "num_tokens is always logged.",
    "log_level": "Python's logging decides.",
    "log_level_replica": "Python's logging decides.",
    "disable_tqdm": "Set trainer.enable_progress_bar.",
    "trackio_static_space_id": "A static Space is made from what was logged: trackio.sync, once the run has ended.",
    "eval_delay": "Start evaluation later with a callback, or set trainer.val_check_interval.",
    "prediction_loss_only": _METRICS,
    "eval_on_start": "Add the callback grpo_lightning.callbacks.BeforeAfterSummary: it evaluates before and after training.",
    "eval_do_concat_batches": _METRICS,
    "eval_use_gather_object": _METRICS,
    "eval_accumulation_steps": _METRICS,
    "include_for_metrics": _METRICS,
    "batch_eval_metrics": _METRICS,
    "save_on_each_node": "Put trainer.default_root_dir on a file system that all nodes see.",
    "enable_jit_checkpoint": "On SIGTERM a run saves last.ckpt after the step that it is in, and ends.",
    "push_to_hub": HUB,
    "hub_token": HUB,
    "hub_private_repo": HUB,
    "hub_model_id": HUB,
    "hub_strategy": HUB,
    "hub_always_push": HUB,
    "hub_revision": HUB,
    "load_best_model_at_end": "Set checkpoint.monitor and checkpoint.mode, and use the checkpoint that is kept.",
    "metric_for_best_model": "Set checkpoint.monitor, for example val/accuracy.",
    "greater_is_better": "Set checkpoint.mode.",
    "ignore_data_skip": "A resumed run always goes on where it stopped.",
    "restore_callback_states_from_checkpoint": "A resumed run always restores callbacks.",
    "data_seed": "One seed decides everything: seed_everything.",
    "accelerator_config": "There is no Accelerate underneath: trainer.strategy, trainer.precision.",
    "parallelism_config": "trainer.strategy decides how a model is spread.",
    "dataloader_drop_last": "Steps are always full: rows at the end of an epoch that fill none are left out of it.",
    "dataloader_num_workers": _LOADER,
    "dataloader_pin_memory": _LOADER,
    "dataloader_persistent_workers": _LOADER,
    "dataloader_prefetch_factor": _LOADER,
    "dataloader_multiprocessing_context": _LOADER,
    "dataloader_in_order": _LOADER,
    "remove_unused_columns": "All columns always reach the rewards.",
    "label_names": "GRPO has no labels.",
    "train_sampling_strategy": "data.shuffle: prompts in a new order each epoch, or in the dataset's.",
    "length_column_name": "See train_sampling_strategy.",
    "ddp_bucket_cap_mb": _DDP,
    "ddp_broadcast_buffers": _DDP,
    "ddp_static_graph": _DDP,
    "ddp_backend": _DDP,
    "ddp_timeout": _DDP,
    "fsdp_config": "Give trainer.strategy a class_path with init_args (grpo_lightning.distributed.strategies.FSDP2Strategy).",
    "debug": "trainer.profiler and trainer.detect_anomaly.",
    "skip_memory_metrics": "trainer.profiler measures memory.",
    "do_train": "The command says it: python -m grpo_lightning fit.",
    "do_eval": "The command says it: python -m grpo_lightning validate.",
    "do_predict": "The command says it: python -m grpo_lightning predict.",
    "local_rank": "Launchers and Lightning find ranks themselves: trainer.devices, trainer.num_nodes.",
    "trust_remote_code": "Code from a model's directory is never run. Install the model's package instead.",
    "disable_dropout": "Set the dropout of the model's config.json to 0; logprobs without gradient never have dropout.",
    "cast_lm_head_to_fp32": "Softmax, logprobs and entropy are float32 in any case.",
    "ds3_gather_for_generation": "There is no DeepSpeed ZeRO-3 path for generation.",
    "pad_to_multiple_of": _PADDING,
    "cache_implementation": _CONTINUOUS,
    "use_transformers_continuous_batching": _CONTINUOUS,
    "transformers_continuous_batching_config": _CONTINUOUS,
    "use_transformers_paged": _CONTINUOUS,
    "vllm_group_port": "A free port is found when weights are first sent.",
    "log_completions": _COMPLETIONS,
    "log_multimodal": "Prompts and completions are text.",
    "num_completions_to_print": _COMPLETIONS,
    "log_unique_prompts": _COMPLETIONS,
    "log_completions_hub_repo": HUB,
    # TRL's script and model settings
    "ignore_bias_buffers": "DDP needs no such fix here.",
    "model_revision": "Download that revision and give its directory as model.model_name_or_path.",
    "lora_target_parameters": "Give model.peft_config a class_path with init_args (peft.LoraConfig).",
    "lora_modules_to_save": "Give model.peft_config a class_path with init_args (peft.LoraConfig).",
    "lora_task_type": "Policies are causal language models.",
    "use_rslora": "Give model.peft_config a class_path with init_args (peft.LoraConfig).",
    "use_dora": "Give model.peft_config a class_path with init_args (peft.LoraConfig).",
    "load_in_8bit": "4 bits or none: model.load_in_4bit.",
    "bnb_4bit_quant_storage": "It follows model.bnb_4bit_compute_dtype.",
    # settings of GRPOArguments
    "tags": "Loggers have tags: trainer.logger.",
    "config_path": "config.yaml is always saved beside metrics.csv.",
    **RECIPES,
}
"""Key -> why there is no counterpart, and what to do instead."""

HARMLESS: dict[str, object] = {
    "model_revision": "main",
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "logging_first_step": True,
    "log_completions": True,
    "lora_task_type": "CAUSAL_LM",
    "bias": "none",
}
"""Values of such keys that are what happens here anyway."""
