"""What this package changes in vLLM, and in torch for its sake: a list for readers, and for a test that holds it to be true."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Patch:
    """One change."""

    changes: str
    """What is another function, or is called in its place."""
    by: str
    """File of this folder and function."""
    why: str
    versions: str
    """Of vLLM that it is meant for; docs/vllm.md says which of them our tests were run on."""
    test: str
    """File of ``tests/generation`` and function, which runs through it."""


PATCHES = (
    Patch(
        "vllm.v1.core.sched.scheduler.Scheduler.update_from_output",
        "short_bookkeeping.shorten_bookkeeping",
        "twenty Python calls a token and request; only the end of a completion is read",
        "0.25 to 0.32",
        "test_short_bookkeeping.py::test_completions_are_those_of_vllms_own_bookkeeping",
    ),
    Patch(
        "vllm.v1.core.sched.scheduler.Scheduler.schedule",
        "short_bookkeeping.shorten_bookkeeping",
        "a loop over what may happen to each request, which takes two fifths of the host's time, for which the GPU waits",
        "0.25 to 0.32",
        "test_short_bookkeeping.py::test_scheduled_ahead_every_step_leaves_the_state_that_vllm_would_leave",
    ),
    Patch(
        "vllm.v1.core.kv_cache_manager.KVCacheManager.allocate_slots",
        "short_bookkeeping.shorten_bookkeeping",
        "the same: nothing to allocate while the last block has room",
        "0.25 to 0.32",
        "test_short_bookkeeping.py::test_requests_that_had_to_wait_for_memory_in_mid_completion_lose_no_token",
    ),
    Patch(
        "vllm.lora.lora_model.LoRAModel.from_local_checkpoint",
        "lora.reading_adapters_from",
        "adapters are handed over in memory instead of through a file",
        "0.25 to 0.33",
        "test_vllm_adapters.py::test_an_adapter_is_loaded_hot_or_merged_and_the_base_is_never_written_to",
    ),
    Patch(
        "vllm.lora.model_manager.LoRAModelManager.__init__",
        "lora.load_past_lora_layers",
        "names of a checkpoint do not lead through a LoRA layer to the layer that it is around",
        "0.25 only",
        "test_vllm_server.py::test_training_with_a_launched_server_and_a_hot_adapter",
    ),
    Patch(
        "vllm.model_executor.models.utils.AutoWeightsLoader.load_weights",
        "reloading.load_own_layers_only",
        "a tied head is refused by name where the engine computes logits with the embedding",
        "0.32 to 0.33",
        "test_vllm_server.py::test_tied_weights_reach_the_output_head_of_a_launched_server",
    ),
    Patch(
        "vllm.v1.worker.gpu_worker.Worker.reload_weights",
        "reloading.reload_whole_models",
        "a tied head is left out of a reload, and on a CPU it computes with a copy",
        "0.25 only",
        "test_vllm_server.py::test_tied_weights_reach_the_output_head_of_a_launched_server",
    ),
    Patch(
        "vllm.ModelRegistry",
        "process.know_model",
        "a second interpreter is started to ask what a class can do, for up to 20 seconds",
        "0.25 to 0.33",
        "test_vllm_colocate.py::test_the_engine_knows_the_policys_class_without_a_second_interpreter",
    ),
    Patch(
        "torch.set_num_threads",
        "process.keeping_threads",
        "the CPU platform replaces it by a function that does nothing, for the whole process",
        "0.25 to 0.33",
        "test_vllm_colocate.py::test_the_number_of_threads_can_be_set_beside_an_engine",
    ),
    Patch(
        "vllm.v1.executor.uniproc_executor.ExecutorWithExternalLauncher._distributed_args",
        "process.naming_shared_memory",
        "engines of several ranks on a CPU share memory under one name, which two runs at once, or one after a crash, cannot",
        "0.25 to 0.33",
        "test_vllm_training.py::test_an_engine_between_ranks_starts_beside_others_and_leaves_no_shared_memory",
    ),
    Patch(
        "torch.distributed.destroy_process_group",
        "process.keeping_process_group",
        "an engine that ends destroys the default group, also one that Lightning made and still needs",
        "0.25 to 0.33",
        "test_vllm_training.py::test_two_ranks_train_alike_with_an_engine_each_or_one_between_them",
    ),
    Patch(
        "vllm.model_executor.model_loader.dummy_loader.DummyModelLoader.load_weights",
        "process.keeping_buffers",
        "buffers that a model computes, and no checkpoint has, are made random too: the means of pixels of Qwen-VL",
        "0.25 to 0.33",
        "test_vllm_images.py::test_sampled_tokens_of_other_families_have_the_probabilities_of_training",
    ),
    Patch(
        "vllm.model_executor.models.gpt_oss.GptOssForCausalLM.load_weights",
        "reloading.copying_after_reload",
        "experts and sinks are copied past their loaders, and a reload takes what loaders were given",
        "0.25 to 0.33",
        "test_vllm_experts.py::test_experts_are_those_of_the_policy_after_every_update",
    ),
    Patch(
        "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method.UnquantizedFusedMoEMethod"
        ".process_weights_after_loading",
        "reloading.packing_experts",
        "a reload leaves experts unpacked for the kernel of a CPU, which reads them as packed",
        "0.32 only",
        "test_vllm_experts.py::test_experts_are_those_of_the_policy_after_every_update",
    ),
    Patch(
        "vllm.compilation.decorators._support_torch_compile",
        "process.keeping_classes",
        "a class of transformers that the engine computes with is changed for the policy too, whose passes then fail",
        "0.25 to 0.33",
        "test_vllm_colocate.py::test_an_engine_of_transformers_own_class_leaves_the_class_to_the_policy",
    ),
    Patch(
        "vllm.model_executor.layers.rotary_embedding.base.RotaryEmbedding.forward_cpu",
        "models.rotate_heads_in_an_axis",
        "a kernel for CPUs turns queries and keys with an axis of heads, which LFM2 gives it, by the positions of others",
        "0.25 to 0.33",
        "test_vllm_colocate.py::test_convolutions_beside_attention_are_sampled_as_they_are_trained",
    ),
    Patch(
        "vllm.model_executor.layers.fused_moe.router.cpu_router.CPURouter.__init__",
        "models.route_by_biases",
        "experts without groups are chosen without their correction biases on a CPU (ERNIE 4.5 MoE); before 0.30 by a function, also changed",
        "0.30 to 0.33",
        "test_vllm_families.py::test_a_family_is_sampled_from_as_it_is_trained_after_every_update",
    ),
    Patch(
        "vllm.model_executor.layers.attention.Attention.__init__",
        "models.keep_windows",
        "windows of Cohere 2 are one token wider than in training",
        "0.29 to 0.33",
        "test_vllm_families.py::test_a_family_is_sampled_from_as_it_is_trained_after_every_update",
    ),
    Patch(
        "vllm.model_executor.layers.activation.XIELU.__init__",
        "models.keep_precision_of_activations",
        "the activation of Apertus has weights, which are bfloat16 in a float32 engine too",
        "0.25 to 0.33",
        "test_vllm_families.py::test_a_family_is_sampled_from_as_it_is_trained_after_every_update",
    ),
)
