"""Toy vision-language models as files: weights, processor, tokenizer, chat template; what ``model_name_or_path`` names.

Their processors are transformers' own. Those of the Qwen-VL families and SmolVLM need torchvision: see ``cpu_torchvision.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.toy_models import build_tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}PLACE{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHOWN = {
    **dict.fromkeys(("llava", "idefics3", "smolvlm"), "<image>"),
    **dict.fromkeys(("qwen2_5_vl", "qwen3_vl", "qwen3_5"), "<|vision_start|><|image_pad|><|vision_end|>"),
    "gemma3": "<start_of_image>",
}
"""What the template writes for an image."""
TILES = ["<fake_token_around_image>", "<end_of_utterance>", "<global-img>"]
TILES += [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
VISION = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
GEMMA = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
TEXT = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 32},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512, "initializer_range": 0.05},
}
TOWER = {
    **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"image_size": 16, "patch_size": 4, "initializer_range": 0.2},
}
QWEN_TOWER = {
    **{"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "initializer_range": 0.2},
    **{"hidden_size": 64, "intermediate_size": 80, "out_hidden_size": 64},
}
MROPE = {"rope_type": "default", "mrope_section": [8, 4, 4], "rope_theta": 10000.0}
DELTA: dict[str, Any] = {
    **{"layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4, "linear_num_key_heads": 2},
    **{"linear_key_head_dim": 128, "linear_value_head_dim": 128},
}
PIXELS = {"shortest_edge": 64, "longest_edge": 2**12}


def save_toy_llava(path: Path) -> Path:
    """Writes the checkpoint, and returns its directory."""
    return save_toy_checkpoint("llava", path)


def save_toy_checkpoint(family: str, path: Path) -> Path:
    """Writes a checkpoint of a family of ``SHOWN``, and returns its directory."""
    tokenizer = _tokenizer(family, path)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = AutoConfig.for_model(family, **_config(family, tokenizer, TEXT | {"vocab_size": len(tokenizer), **ends}))
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    if family == "gemma3":  # made of zeros, which would hide the images
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(path)
    if family in ("llava", "gemma3"):
        _name_as_published(path / "model.safetensors")
    _processor(family, tokenizer).save_pretrained(path)
    return path


def _tokenizer(family: str, path: Path) -> Any:
    tokenizer = build_tokenizer()
    own = {"llava": ["<image>"], "idefics3": ["<image>", *TILES], "smolvlm": ["<image>", *TILES]}
    own["gemma3"] = ["\n" * count for count in (1, 2, 3, 4)]  # vLLM looks them up
    tokens = ["<|im_start|>", *own.get(family, VISION)]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    if family == "gemma3":  # whose processor asks the tokenizer for them by name
        tokenizer.save_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path, extra_special_tokens=GEMMA)
    tokenizer.chat_template = CHAT_TEMPLATE.replace("PLACE", SHOWN[family])
    return tokenizer


def _config(family: str, tokenizer: Any, text: dict[str, Any]) -> dict[str, Any]:
    id_of = tokenizer.convert_tokens_to_ids
    ends = {name: text[name] for name in ("eos_token_id", "pad_token_id", "bos_token_id")}
    common = {"tie_word_embeddings": False, **ends}
    if family.startswith("qwen"):
        tokens = {"image_token_id": id_of(VISION[2]), "video_token_id": id_of(VISION[3])}
        tokens |= {"vision_start_token_id": id_of(VISION[0]), "vision_end_token_id": id_of(VISION[1])}
        if family == "qwen2_5_vl":
            rope, tower = MROPE, {"window_size": 16, "fullatt_block_indexes": [1]}
        else:
            rope, tower = MROPE | {"mrope_interleaved": True}, {"num_position_embeddings": 16}
            tower |= {"deepstack_visual_indexes": [0, 1]} if family == "qwen3_vl" else {}
        text = text | {"rope_parameters": rope} | (DELTA if family == "qwen3_5" else {})
        return {"tie_word_embeddings": False, **tokens, "text_config": text, "vision_config": QWEN_TOWER | tower}
    if family == "gemma3":
        tokens = {"image_token_id": id_of(GEMMA["image_token"]), "mm_tokens_per_image": 4}
        tokens |= {"boi_token_index": id_of(GEMMA["boi_token"]), "eoi_token_index": id_of(GEMMA["eoi_token"])}
        text = text | {"sliding_window": 64, "query_pre_attn_scalar": 32}
        return {**tokens, "text_config": text, "vision_config": TOWER | {"vision_use_head": False}}
    text, token = text | {"model_type": "llama"}, id_of("<image>")
    if family == "llava":
        tower = TOWER | {"model_type": "clip_vision_model", "projection_dim": 32}
        return {"image_token_id": token, "text_config": text, "vision_config": tower, **common}
    return {"image_token_id": token, "scale_factor": 2, "text_config": text, "vision_config": TOWER, **common}


def _processor(family: str, tokenizer: Any) -> Any:
    template = {"chat_template": tokenizer.chat_template}
    if family == "llava":
        images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
        options = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
        return transformers.LlavaProcessor(images, tokenizer, image_token="<image>", **template, **options)
    if family == "gemma3":
        images = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
        return transformers.Gemma3Processor(images, tokenizer, image_seq_length=4, **template)
    tiles = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}
    if family == "idefics3":
        return transformers.Idefics3Processor(
            Idefics3ImageProcessorPil(**tiles), tokenizer, image_seq_len=4, **template
        )
    if family == "smolvlm":
        images, videos = transformers.SmolVLMImageProcessor(**tiles), transformers.SmolVLMVideoProcessor()
        return transformers.SmolVLMProcessor(images, tokenizer, videos, image_seq_len=4, **template)
    patches = {"patch_size": 4, "merge_size": 2, "size": PIXELS}
    images = Qwen2VLImageProcessorPil(**patches)
    if family == "qwen2_5_vl":
        videos = transformers.Qwen2VLVideoProcessor(**patches)
        return transformers.Qwen2_5_VLProcessor(images, tokenizer, videos, **template)
    return transformers.Qwen3VLProcessor(images, tokenizer, transformers.Qwen3VLVideoProcessor(**patches), **template)


def _name_as_published(file: Path) -> None:
    """Published checkpoints call a tower's weights ``vision_model``; transformers writes a model that it has not read otherwise."""
    names = {name: name.replace("vision_tower.", "vision_tower.vision_model.") for name in load_file(file)}
    save_file({names[name]: weight for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
