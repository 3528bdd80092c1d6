"""use_vllm and vllm_* -> a generator by class path."""

from __future__ import annotations

from urllib.parse import urlparse

from grpo_lightning.migration.migration import Migration

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
