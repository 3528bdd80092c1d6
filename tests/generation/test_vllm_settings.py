"""Settings of vLLM generators, the stream of weights, and the default: all that needs no engine."""

from __future__ import annotations

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from toy_models import build_model, build_tokenizer

from grpo_lightning.generation import SamplingSettings, TransformersGenerator, VLLMColocate, default_generator
from grpo_lightning.generation.random_state import preserved_random_state
from grpo_lightning.generation.vllm import colocate as vllm_colocate
from grpo_lightning.generation.vllm import compat as vllm_compat
from grpo_lightning.generation.vllm.engine.settings import check_engine_kwargs, note_of_failed_start
from grpo_lightning.generation.vllm.requests.completions import Completions
from grpo_lightning.generation.vllm.requests.prompts import common_sampling_parameters, engine_requests, seed_of_prompt
from grpo_lightning.generation.vllm.skeleton import engine_dtype, kept_skeleton, lora_arguments, save_skeleton
from grpo_lightning.generation.vllm.weights.adapter_route import AdapterRoute
from grpo_lightning.generation.vllm.weights.stream import (
    WeightStream,
    base_state_dict,
    check_same_weights,
    trained_names,
    weight_shapes,
)

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
ADAPTED = {f"model.layers.{layer}.self_attn.{name}.weight" for layer in (0, 1) for name in ("q_proj", "v_proj")}


@pytest.fixture
def usable(monkeypatch):
    """As on a machine on which vLLM can run; no engine is made here."""
    monkeypatch.setattr(vllm_colocate, "why_unusable", lambda: None)


# ---- whether vLLM is there


def test_without_vllm_the_default_is_the_fallback_and_says_what_to_install(monkeypatch, caplog):
    monkeypatch.setattr(vllm_compat, "installed_version", lambda: None)
    with caplog.at_level(logging.INFO):
        assert isinstance(default_generator(), TransformersGenerator)
    assert "vLLM is not installed" in caplog.text
    assert "grpo-lightning[vllm]" in caplog.text and "model.generator=TransformersGenerator" in caplog.text
    with pytest.raises(ValueError, match=r"model.generator=VLLMColocate: vLLM is not installed\. Install it"):
        VLLMColocate()


@pytest.mark.parametrize(
    ("version", "is_cpu_build", "reason"),
    [
        ("0.25.1", True, None),
        ("0.33.0", True, None),
        ("0.24.0", True, "knows 0.25 to 0.33"),
        ("0.34.1", True, "0.34.1"),
    ],
)
def test_versions_outside_the_range_are_refused(monkeypatch, version, is_cpu_build, reason):
    monkeypatch.setattr(vllm_compat, "installed_version", lambda: (version, is_cpu_build))
    found = vllm_compat.why_unusable()
    assert found is None if reason is None else reason in found


def test_a_cuda_build_without_a_cuda_device_is_not_usable(monkeypatch):
    monkeypatch.setattr(vllm_compat, "installed_version", lambda: ("0.32.0", False))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device is visible" in vllm_compat.why_unusable()


@pytest.mark.parametrize(
    ("version", "counters"),
    [
        ("0.25.1", ("async_tokens_to_discard", None)),
        ("0.26.0", ("async_tokens_to_discard", "num_in_flight_tokens")),
        ("0.27.1", ("num_stale_output_tokens", "num_in_flight_tokens")),
        ("0.32.0+cpu", ("num_stale_output_tokens", "num_in_flight_tokens")),
        ("0.33.0", None),
    ],
)
def test_the_counters_of_a_request_are_those_of_its_version_and_unknown_schedulers_are_left_alone(
    monkeypatch, version, counters
):
    monkeypatch.setattr(vllm_compat, "installed_version", lambda: (version, False))
    assert vllm_compat.request_counters() == counters


# ---- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpu_memory_utilization": 0.0}, r"gpu_memory_utilization=0\.0 is not a share"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size=0"),
        (
            {"engine_kwargs": {"dtype": "float16"}},
            "engine_kwargs has dtype='float16', which has a setting of its own: dtype",
        ),
        ({"engine_kwargs": {"logprobs_mode": "raw_logprobs"}}, "set for correct logprobs"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_an_engine_is_made(usable, settings, message):
    with pytest.raises(ValueError, match=message):
        VLLMColocate(**settings)


def test_a_tensor_parallel_size_that_does_not_divide_the_ranks_is_refused(usable):
    generator = VLLMColocate(tensor_parallel_size=2)
    with pytest.raises(ValueError, match=r"tensor_parallel_size=2 does not divide the 1 ranks"):
        generator.start(build_model(), build_tokenizer(), "toy")


def test_engine_arguments_without_a_setting_are_passed_on():
    check_engine_kwargs({"max_num_seqs": 512, "max_num_batched_tokens": 8192})


def test_the_engine_computes_in_what_the_policy_computes_in():
    policy = build_model()
    assert engine_dtype("auto", policy) == "float32"
    assert engine_dtype("float16", policy) == "float16"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert engine_dtype("auto", policy) == "bfloat16"
    assert engine_dtype("auto", policy.bfloat16()) == "bfloat16"


def test_adapters_are_hot_where_vllm_can_load_them_and_merged_elsewhere():
    plain = get_peft_model(build_model(), LoraConfig(**LORA))
    headed = get_peft_model(build_model(), LoraConfig(**LORA, modules_to_save=["lm_head"]))

    def is_hot(setting, policy):
        route = AdapterRoute(setting)
        route.start(policy)
        assert route.engine_adds_adapters == route.is_hot
        return route.is_hot

    assert is_hot(None, plain) and is_hot("hot", plain) and is_hot("auto", plain)
    assert not is_hot("merge", plain) and not is_hot(None, headed) and not is_hot("auto", headed)
    assert not is_hot(None, build_model())
    with pytest.raises(ValueError, match=r"lora_sync=hot, but the policy has no adapter"):
        is_hot("hot", build_model())
    assert lora_arguments(plain)["max_lora_rank"] == 8  # the smallest that vLLM takes and the rank fits


def test_the_engine_is_built_from_the_policys_own_configuration_and_tokenizer(tmp_path):
    from transformers import AutoConfig, AutoTokenizer

    policy, tokenizer = build_model(), build_tokenizer()
    tokenizer.add_tokens(["<new>"])
    policy.resize_token_embeddings(333)
    save_skeleton(get_peft_model(policy, LoraConfig(**LORA)), tokenizer, tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).vocab_size == 333
    assert AutoConfig.from_pretrained(tmp_path).architectures == ["Qwen2ForCausalLM"]
    assert "<new>" in AutoTokenizer.from_pretrained(tmp_path).get_vocab()


def test_the_place_of_what_an_engine_is_built_from_depends_on_its_contents_alone(tmp_path, monkeypatch):
    pytest.importorskip("vllm")
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    tokenizer = build_tokenizer()
    first, second = (kept_skeleton(build_model(), tokenizer) for _ in range(2))
    other = kept_skeleton(build_model(num_hidden_layers=1), tokenizer)
    assert first == second != other
    assert sorted(path.name for path in first.parent.iterdir()) == sorted([first.name, other.name])
    assert (first / "config.json").exists() and not list(first.glob("*.safetensors"))


# ---- requests


def test_a_prompt_is_one_request_and_greedy_ones_are_single():
    sampling = SamplingSettings(num_generations=4, max_completion_length=9, temperature=0.7, stop=("x",))
    requests = engine_requests([[1, 2], [3]], sampling, [5, 6], {8, 7}, seed_per_prompt=True)
    assert [(r.first, list(r.prompt_ids), r.parameters["n"], r.parameters["seed"]) for r in requests] == [
        (0, [1, 2], 4, 5),
        (4, [3], 4, 6),
    ]
    parameters = requests[0].parameters
    assert (parameters["stop_token_ids"], parameters["ignore_eos"], parameters["logprobs"]) == ([7, 8], True, 0)
    assert (parameters["stop"], parameters["include_stop_str_in_output"]) == (["x"], True)
    greedy = engine_requests([[1], [3]], SamplingSettings(2, temperature=0), [5, 6], {8}, seed_per_prompt=True)
    assert [(r.first, r.parameters["n"], "seed" in r.parameters) for r in greedy] == [(n, 1, False) for n in range(4)]
    assert "seed" not in engine_requests([[1]], sampling, [5], {8}, seed_per_prompt=False)[0].parameters


def test_every_bit_of_a_seed_counts_and_31_bits_are_left():
    seeds = [5, 5 + 2**31, 5 + 2**40, 2**63 - 1]
    folded = [seed_of_prompt(seed) for seed in seeds]
    assert len(set(folded)) == 4 and max(folded) < 2**31 and folded[0] == 5


@pytest.mark.parametrize("structure", [{"regex": "a", "choice": ["b"]}, {"regexp": "a"}])
def test_structured_outputs_are_one_of_vllms_kinds(structure):
    with pytest.raises(ValueError, match=r"model\.structured_outputs=.*is not one of regex, json, grammar, choice"):
        common_sampling_parameters(SamplingSettings(structured_outputs=structure), [1])


def test_completions_come_in_pieces_and_any_order():
    ended = []
    completions = Completions(2, 2, lambda n, ids: ended.append((n, list(ids))))
    completions.extend(3, [9], [-0.5], "stop")
    completions.extend(0, [5], [-0.1], None)
    completions.extend(1, [6], [-0.2], "length")
    completions.extend(0, [7, 8], [-0.3, -0.4], "stop")
    completions.extend(2, [4], [-0.6], "stop")
    assert ended == [(3, [9]), (1, [6]), (0, [5, 7, 8]), (2, [4])]
    rollouts = completions.rollouts([[1], [2, 3]])
    assert rollouts.completion_ids.tolist() == [5, 7, 8, 6, 4, 9]
    assert rollouts.truncated.tolist() == [False, True, False, False]
    assert completions.rollouts([[1], [2, 3]], range(1, 2)).completion_ids.tolist() == [4, 9]
    with pytest.raises(RuntimeError, match="finish_reason='abort'"):
        completions.extend(0, [], [], "abort")


# ---- weights


@pytest.mark.parametrize("tied", [False, True])
def test_the_stream_of_a_full_policy_is_its_state_dict_without_copies(tied):
    policy = build_model(tie_word_embeddings=tied)
    stream = WeightStream(policy)
    found, state = dict(stream), policy.state_dict()
    assert found.keys() == state.keys()  # lm_head too where it is tied
    assert all(tensor.data_ptr() == state[name].data_ptr() for name, tensor in found.items())
    assert stream.bytes == sum(tensor.numel() * 4 for tensor in state.values())
    assert [name for name, _, _ in stream.layout()] == list(found)
    assert trained_names(policy) == set(state)


def test_a_merged_stream_is_base_plus_adapter_and_the_base_stream_is_the_base():
    base = build_model()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    policy = get_peft_model(base, LoraConfig(**LORA))
    merged = {name: tensor.clone() for name, tensor in WeightStream(policy)}
    for name, tensor in merged.items():
        expected = before[name]
        if name in ADAPTED:
            layer = policy.get_submodule(f"base_model.model.{name.removesuffix('.weight')}")
            expected = expected + 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        torch.testing.assert_close(tensor, expected)
    torch.testing.assert_close(dict(base_state_dict(policy)), before)
    assert trained_names(policy) == ADAPTED
    assert dict(WeightStream(policy, names=trained_names(policy))).keys() == ADAPTED


def test_frozen_weights_of_a_full_policy_need_not_be_sent_again():
    policy = build_model()
    policy.model.embed_tokens.requires_grad_(False)
    assert trained_names(policy) == policy.state_dict().keys() - {"model.embed_tokens.weight"}


def test_weights_under_other_names_are_refused():
    policy, other = build_model(), build_model(num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"missing \['model.layers.1.input_layernorm.weight'"):
        check_same_weights(other, weight_shapes(policy))
    check_same_weights(build_model(seed=1), weight_shapes(policy))


def test_generators_of_random_numbers_are_as_before_after_the_block():
    before = torch.get_rng_state()
    with preserved_random_state(torch.device("cpu"), seed=3):
        first = torch.rand(2)
    with preserved_random_state(torch.device("cpu"), seed=3):
        assert torch.equal(torch.rand(2), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_start_that_fails_because_another_run_was_still_ending_says_so():
    of_vllm = (  # as an H200 printed it, where a run had been ended 30 seconds before
        "Error in memory profiling. Initial free memory 57.05 GiB, current free memory 108.45 GiB. This happens when "
        "other processes sharing the same container release GPU memory while vLLM is profiling during initialization."
    )
    note = note_of_failed_start(AssertionError(of_vllm), {"gpu_memory_utilization": 0.3})
    assert "a run that was ended a moment ago" in note and "kv_cache_memory_gb" in note
    other = note_of_failed_start(RuntimeError("out of memory"), {"gpu_memory_utilization": 0.3})
    assert "with {'gpu_memory_utilization': 0.3}; see model.generator.init_args." in other
    assert other.endswith("set model.generator=TransformersGenerator.")
