"""How completions are sampled, the correction for an engine's arithmetic, and use_vllm and vllm_* -> a generator
by class path.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlparse

from grpo_lightning.migration.migration import Migration

GENERATION_KWARGS = {
    "top_p": "model.top_p",
    "top_k": "model.top_k",
    "min_p": "model.min_p",
    "temperature": "model.temperature",
    "repetition_penalty": "model.repetition_penalty",
    "stop": "model.stop",
    "stop_strings": "model.stop",
    "max_new_tokens": "model.max_completion_length",
    "max_tokens": "model.max_completion_length",
}
CORRECTION = {
    "vllm_importance_sampling_mode": "model.importance_sampling_mode",
    "vllm_importance_sampling_clip_max": "model.importance_sampling_max",
    "vllm_importance_sampling_clip_min": "model.importance_sampling_min",
    "vllm_importance_sampling_cap": "model.importance_sampling_max",
}


def compose_sampling(m: Migration) -> None:
    """Limits on what is drawn from, generation_kwargs, chat template and structured outputs."""
    m.put("model.min_p", float(m.get("min_p") or 0.0), "min_p")
    if m.get("top_k") is not None or m.has("top_k"):
        m.put("model.top_k", max(0, int(m.get("top_k") or 0)), "top_k")  # -1 is vLLM's word for no limit
    for key, value in (m.get("generation_kwargs") or {}).items():
        if key in GENERATION_KWARGS:
            is_text = key.startswith("stop") and isinstance(value, str)
            m.put(GENERATION_KWARGS[key], [value] if is_text else value, "generation_kwargs")
        else:
            m.refuse("generation_kwargs", f"{key}: sampling settings are those of `fit --help`, under model.")
    if not m.get("generation_kwargs"):
        m.needs_nothing("generation_kwargs")
    if m.get("vllm_structured_outputs_regex"):
        regex = m.get("vllm_structured_outputs_regex")
        m.put("model.structured_outputs", {"regex": regex}, "vllm_structured_outputs_regex")
    m.needs_nothing("vllm_structured_outputs_regex")
    _template(m)


def _template(m: Migration) -> None:
    arguments: dict[str, Any] = dict(m.get("chat_template_kwargs") or {})
    if m.get("chat_template"):
        arguments["chat_template"] = m.get("chat_template")
    if arguments:
        m.put("model.chat_template_kwargs", arguments, "chat_template_kwargs", "chat_template")
    m.needs_nothing("chat_template_kwargs", "chat_template")


def compose_correction(m: Migration) -> None:
    """vllm_importance_sampling_*."""
    is_on = m.get("vllm_importance_sampling_correction")
    if m.get("loss_type") == "vespo" and not m.get("use_vllm"):
        is_on = False  # TRL corrects what vLLM samples; vespo takes no weight of a whole completion, the default here
    if is_on is not None:
        m.put("model.importance_sampling_correction", bool(is_on), "vllm_importance_sampling_correction")
    for key, target in CORRECTION.items():
        if is_on is False:
            m.refuse(key, "vllm_importance_sampling_correction: false leaves it without effect.")
        elif m.get(key) is not None or (m.has(key) and not key.endswith("_cap")):
            m.put(target, m.get(key), key)
    m.needs_nothing("vllm_importance_sampling_cap")


ENGINE = {
    "vllm_gpu_memory_utilization": "gpu_memory_utilization",
    "vllm_max_model_length": "max_model_length",
    "vllm_tensor_parallel_size": "tensor_parallel_size",
    "vllm_enable_sleep_mode": "enable_sleep_mode",
}
SERVER = {"vllm_server_host": "host", "vllm_server_port": "port", "vllm_server_timeout": "timeout"}
URL = "vllm_server_base_url"
ARGUMENTS = "model.generator.init_args"


def compose_generator(m: Migration) -> None:
    """The engine in this process, a server's client, or transformers' own decoding."""
    if not m.get("use_vllm"):
        m.put("model.generator.class_path", "grpo_lightning.generation.TransformersGenerator", "use_vllm")
        for key in ("vllm_mode", *ENGINE, *SERVER, URL, "vllm_model_impl"):
            m.refuse(key, "use_vllm is off, so it has no effect in TRL either.")
        return
    serves = m.get("vllm_mode") == "server"
    name = "VLLMServer" if serves else "VLLMColocate"
    m.put("model.generator.class_path", f"grpo_lightning.generation.{name}", "use_vllm", "vllm_mode")
    used, unused = (SERVER, ENGINE) if serves else (ENGINE, SERVER)
    for key, argument in used.items():
        if m.get(key) is not None:
            value = "127.0.0.1" if m.get(key) == "0.0.0.0" else m.get(key)  # an address to connect to, not to listen on
            m.put(f"{ARGUMENTS}.{argument}", value, key)
    for key in unused:
        m.refuse(key, f"vllm_mode: {m.get('vllm_mode', 'colocate')} does not use it.")
    if m.get("vllm_model_impl") and serves:
        m.refuse("vllm_model_impl", "It is an option of the server that you start.")
    elif m.get("vllm_model_impl"):
        m.put(f"{ARGUMENTS}.engine_kwargs.model_impl", m.get("vllm_model_impl"), "vllm_model_impl")
    _server_url(m, serves)
    m.needs_nothing(*used)


def _server_url(m: Migration, serves: bool) -> None:
    if not m.get(URL):
        m.needs_nothing(URL)
        return
    found = urlparse(str(m.get(URL)))
    if not serves:
        m.refuse(URL, f"vllm_mode: {m.get('vllm_mode', 'colocate')} does not use it.")
    elif found.scheme != "http" or not found.hostname:
        m.refuse(URL, "The server is reached as http://host:port: give model.generator.init_args.host and .port.")
    else:
        m.put(f"{ARGUMENTS}.host", found.hostname, URL)
        m.put(f"{ARGUMENTS}.port", found.port or 80, URL)
