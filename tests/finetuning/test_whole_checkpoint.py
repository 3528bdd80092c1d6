"""A checkpoint with a vision tower: its language model is trained, and the export is the whole again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from toy_models import build_model, build_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3_5Config, Qwen3_5ForConditionalGeneration

from grpo_lightning.callbacks.export import export
from grpo_lightning.finetuning.whole_checkpoint import complete_checkpoint

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}


@pytest.mark.parametrize("has_adapter", [False, True])
@pytest.mark.parametrize("is_tied", [False, True])
def test_the_export_has_the_trained_language_model_and_the_vision_tower_as_it_was(tmp_path, is_tied, has_adapter):
    tokenizer = build_tokenizer()
    text = TEXT | {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": is_tied}
    config = Qwen3_5Config(text_config=text, vision_config=VISION, tie_word_embeddings=is_tied)
    torch.manual_seed(0)
    whole = Qwen3_5ForConditionalGeneration(config).eval()
    source, target = tmp_path / "source", tmp_path / "export"
    whole.save_pretrained(source)
    (source / "preprocessor_config.json").write_text('{"patch_size": 16}')

    policy = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    if has_adapter:
        policy = get_peft_model(policy, LoraConfig(r=2, target_modules=["q_proj", "in_proj_qkv"]))
    with torch.no_grad():
        for weight in (each for each in policy.parameters() if each.requires_grad):
            weight.add_(0.1)
    if not has_adapter:
        policy.tie_weights()
    trained = SimpleNamespace(model=policy, tokenizer=tokenizer, name_or_path=str(source), image_processing=None)
    export(SimpleNamespace(policy=trained), target)

    assert AutoConfig.from_pretrained(target).architectures == ["Qwen3_5ForConditionalGeneration"]
    assert (target / "preprocessor_config.json").read_text() == '{"patch_size": 16}'
    again, info = Qwen3_5ForConditionalGeneration.from_pretrained(target, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, weight in whole.model.visual.state_dict().items():
        assert torch.equal(again.model.visual.state_dict()[name], weight)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(input_ids=ids).logits, policy.eval()(input_ids=ids).logits)
    head = policy.get_output_embeddings().weight
    assert torch.equal(AutoModelForCausalLM.from_pretrained(target).lm_head.weight, head)


def test_a_language_model_of_its_own_is_left_as_it_is(tmp_path):
    build_model().save_pretrained(tmp_path / "source")
    build_model(seed=1).save_pretrained(tmp_path / "export")
    before = sorted(file.name for file in (tmp_path / "export").iterdir())
    assert not complete_checkpoint(tmp_path / "export", str(tmp_path / "source"))
    assert sorted(file.name for file in (tmp_path / "export").iterdir()) == before
