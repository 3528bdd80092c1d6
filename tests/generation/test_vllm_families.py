"""Families whose models vLLM has in another form than transformers: the same numbers on either side, or a refusal."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from vllm_cases import PROMPTS, SEEDS, SETTINGS, ending_model, mismatch, needs_vllm, running, shift_weights

from grpo_lightning.generation import VLLMColocate, VLLMServer
from grpo_lightning.generation.vllm.compat import import_vllm, installed_version
from grpo_lightning.generation.vllm.models import ALWAYS_TIED
from grpo_lightning.generation.vllm.weights import stream as weight_stream
from grpo_lightning.generation.vllm.weights.stream import WeightStream

pytestmark = needs_vllm

FAMILIES = {
    "apertus": "its activation has weights",
    "cohere2": "prompts that are longer than its window",
    "cohere2_moe": "the same with experts",
    "ernie4_5_moe": "a bias chooses its experts",
    "lfm2_moe": "its experts are one tensor in the policy",
}
"""By ``model_type``, with what vLLM has in another form."""
WITH_BIASES = ("ernie4_5_moe", "lfm2_moe")
"""Those whose routers have biases, which choose experts beside the scores."""


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_family_is_sampled_from_as_it_is_trained_after_every_update(architecture):
    policy = ending_model(architecture)
    biases = biases_of_routers(policy)
    assert bool(biases) == (architecture in WITH_BIASES)
    for bias in biases:  # 0 in a new model
        torch.nn.init.normal_(bias, std=0.3)
    with running(policy) as generator:
        for _ in range(2):
            generator.update_weights(policy)
            assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < 1e-4
            shift_weights(policy)


def biases_of_routers(policy: PreTrainedModel) -> list[torch.Tensor]:
    """Not trained by gradients: buffers of LFM2-MoE, and parameters of ERNIE that are frozen."""
    named = chain(policy.named_buffers(), policy.named_parameters())
    return [tensor for name, tensor in named if name.endswith(("expert_bias", "e_score_correction_bias"))]


EXPERTS = {f"model.layers.1.feed_forward.experts.{n}.w{m}.weight" for n in range(4) for m in (1, 2, 3)}
"""As published checkpoints of LFM2-MoE call them, and its toy."""


def assert_sends_experts_one_by_one(policy: PreTrainedModel, gates_and_ups: torch.Tensor) -> None:
    sent = dict(WeightStream(policy))
    assert {name for name in sent if ".experts." in name} == EXPERTS
    assert torch.equal(sent["model.layers.1.feed_forward.experts.3.w3.weight"], gates_and_ups[3, 64:])


@pytest.mark.parametrize("is_published", [True, False])
def test_experts_are_sent_one_by_one_out_of_either_form_of_file(is_published, tmp_path):
    """Transformers converts nothing of a file that has them in one tensor, and notes so."""
    made = ending_model("lfm2_moe")
    made.save_pretrained(tmp_path, save_original_format=is_published)
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_sends_experts_one_by_one(read, made.model.layers[1].feed_forward.experts.gate_up_proj)


def test_experts_are_sent_one_by_one_by_ranks_that_were_sent_their_part(tmp_path):
    """Such a rank has loaded no file, and a class of fully_shard's."""
    policy = ending_model("lfm2_moe")
    experts = policy.model.layers[1].feed_forward.experts.gate_up_proj.detach().clone()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        fully_shard(policy, mesh=init_device_mesh("cpu", (1,)))
        assert_sends_experts_one_by_one(policy, experts)
    finally:
        dist.destroy_process_group()


def asked_classes(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """Filled with the classes of which transformers is asked how to convert their weights."""
    asked: list[type] = []

    def ask(model: PreTrainedModel, **options: bool) -> list[object]:
        asked.append(type(model))
        return get_model_conversion_mapping(model, **options)

    monkeypatch.setattr(weight_stream, "get_model_conversion_mapping", ask)
    return asked


@pytest.mark.parametrize("family", ["lfm2_moe", "gpt_oss"])
def test_a_class_is_asked_once_for_its_conversions_also_where_it_has_none(family, tmp_path, monkeypatch):
    ending_model(family).save_pretrained(tmp_path, save_original_format=False)
    policy, asked = AutoModelForCausalLM.from_pretrained(tmp_path), asked_classes(monkeypatch)
    for _ in range(3):
        assert len(list(WeightStream(policy))) == len(WeightStream(policy).layout())
    assert asked == [type(policy)]


def names_in(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("made", ["from a published file", "from one with experts in one tensor", "without a file"])
def test_exports_are_the_same_before_and_after_weights_were_sent(made, tmp_path):
    policy = ending_model("lfm2_moe")
    if made != "without a file":
        policy.save_pretrained(tmp_path / "file", save_original_format=made == "from a published file")
        policy = AutoModelForCausalLM.from_pretrained(tmp_path / "file")
    policy.save_pretrained(tmp_path / "before")
    WeightStream(policy).layout()
    assert dict(WeightStream(policy)).keys() >= EXPERTS
    policy.save_pretrained(tmp_path / "after")
    assert names_in(tmp_path / "after") == names_in(tmp_path / "before")


def test_what_transformers_has_noted_survives_a_conversion_that_fails():
    policy = ending_model("lfm2_moe")
    policy._weight_conversions = noted = get_model_conversion_mapping(policy, add_legacy=False)
    flat = ("model.layers.1.feed_forward.experts.gate_up_proj", torch.zeros(4))
    with pytest.raises(IndexError):
        list(weight_stream.as_published(policy, iter([flat])))
    assert policy._weight_conversions is noted


@pytest.mark.parametrize("generator", [VLLMColocate, VLLMServer])
@pytest.mark.parametrize("family", ALWAYS_TIED)
def test_a_head_of_its_own_is_refused_where_vllm_ties_it(generator, family):
    config = AutoConfig.for_model(family, tie_word_embeddings=False)
    with pytest.raises(
        ValueError, match=rf"{generator.__name__}: .* {family} with the embedding\. Use .*TransformersGen"
    ):
        generator().check_model(config)
    generator().check_model(AutoConfig.for_model(family, tie_word_embeddings=True))
    generator().check_model(AutoConfig.for_model("qwen2", tie_word_embeddings=False))


@pytest.mark.skipif((installed_version() or ("",))[0].startswith("0.25."), reason="0.25 asserts that the head is tied")
def test_the_families_with_a_tied_head_are_those_of_the_installed_vllm():
    import_vllm()
    from vllm import ModelRegistry

    found = set()
    for family, architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        entry = ModelRegistry.models.get(architecture)
        if entry is not None and ties_always(getattr(entry, "module_name", None) or entry.model_cls.__module__):
            found.add(family)
    assert found == set(ALWAYS_TIED)


def ties_always(module: str) -> bool:
    """Whether its code computes logits with the embedding, and does not ask for the setting."""
    code = Path(find_spec(module).origin).read_text()
    ties = "logits_processor(self.model.embed_tokens" in code or ".tie_weights(" in code
    return ties and "tie_word_embeddings" not in code
