"""verl's side: ``python -m peers.verl_run WORKLOAD.json RECORD.json``, by the switches that its configuration offers for speed.

verl runs unchanged, by its command line; its console logger's lines become the record, which is whole
after every step. ``README.md`` says what each switch does. ``python -m peers.verl_run --check`` compares the names of all
settings with the generated configuration of the verl that is installed.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sides import child
from sides.record import versions
from sides.whole_file import write_whole
from sides.workload import NANO, Workload

from peers.device_memory import DevicePeak, device_name
from peers.verl_log import metrics_of, step_of

MAX_PROMPT_LENGTH = 512
CONFIG = "_generated_ppo_trainer.yaml"
ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the address of the loop; Ray takes "127.0.0.1" for the outward one
    "RAY_worker_register_timeout_seconds": "300",  # on busy processors Ray ends what starts slowly, and begins anew
    "RAY_memory_monitor_refresh_ms": "0",  # a machine whose memory grows as it is used looks full to it
    "RAY_DEDUP_LOGS": "0",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # compiled by nvcc at a first start, and not called without top-p and top-k
    "VLLM_LOGGING_LEVEL": "INFO",  # verl's is WARN, with which minutes pass without a line
    "VLLM_DISABLE_COMPILE_CACHE": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "NCCL_SOCKET_IFNAME": "lo",
    "GLOO_SOCKET_IFNAME": "lo",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}

SWITCHES: dict[str, Any] = {
    "algorithm.adv_estimator": "grpo",
    "algorithm.rollout_correction.bypass_mode": True,
    "data.shuffle": False,
    "data.dataloader_num_workers": 0,
    "actor_rollout_ref.model.external_lib": "peers.verl_attention",
    "+actor_rollout_ref.model.override_config.attn_implementation": "torch_varlen",
    "actor_rollout_ref.model.use_remove_padding": True,
    "actor_rollout_ref.model.use_fused_kernels": True,
    "actor_rollout_ref.model.fused_kernel_options.impl_backend": "triton",
    "actor_rollout_ref.rollout.agent.num_workers": 4,
    "actor_rollout_ref.rollout.free_cache_engine": False,
    "actor_rollout_ref.rollout.tensor_model_parallel_size": 1,
    "actor_rollout_ref.rollout.name": "vllm",
    "actor_rollout_ref.actor.use_kl_loss": False,
    "actor_rollout_ref.actor.use_dynamic_bsz": True,
    "reward.num_workers": 2,
    "transfer_queue.backend.SimpleStorage.num_data_storage_units": 2,
    "trainer.n_gpus_per_node": 1,
    "trainer.nnodes": 1,
    "trainer.logger": "[console]",
    "trainer.val_before_train": False,
    "trainer.resume_mode": "disable",
    "ray_kwargs.ray_init.num_cpus": 16,  # places for actors, three of which hold one each: not processors
    "+ray_kwargs.ray_init.num_gpus": 1,
    "+ray_kwargs.ray_init.include_dashboard": False,
    "+ray_kwargs.ray_init.object_store_memory": 4 * 10**9,
}
"""What does not depend on the workload."""


def overrides(workload: Workload, model: Path, prompts: Path, folder: Path) -> dict[str, Any]:
    """What verl's command line is given, by dotted name; ``engine_options`` of the workload come last.

    Args:
        workload: Sizes; one GPU.
        model: Directory in Hugging Face format.
        prompts: Parquet.
        folder: For what verl writes.
    """
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    longest = MAX_PROMPT_LENGTH + workload.max_completion_length
    return {
        **SWITCHES,
        "data.train_files": prompts,
        "data.val_files": prompts,
        "data.train_batch_size": workload.prompts_per_step,
        "data.max_prompt_length": MAX_PROMPT_LENGTH,
        "data.max_response_length": workload.max_completion_length,
        "actor_rollout_ref.model.path": model,
        "actor_rollout_ref.model.enable_gradient_checkpointing": workload.gradient_checkpointing,
        f"{actor}.ppo_max_token_len_per_gpu": max(workload.max_tokens_per_microbatch, longest),
        f"{actor}.ppo_mini_batch_size": workload.prompts_per_step,
        f"{actor}.optim.lr": workload.learning_rate,
        f"{actor}.grad_clip": workload.max_grad_norm,
        f"{rollout}.n": workload.num_generations,
        f"{rollout}.temperature": workload.temperature,
        f"{rollout}.seed": workload.seed,
        f"{rollout}.gpu_memory_utilization": workload.gpu_memory_utilization,
        f"{rollout}.max_model_len": longest,
        f"{rollout}.max_num_seqs": workload.prompts_per_step * workload.num_generations,
        "reward.custom_reward_function.path": Path(__file__).with_name("verl_reward.py").resolve(),
        "trainer.default_local_dir": folder / "checkpoints",
        "trainer.total_training_steps": workload.warmup_steps + workload.steps,
        **workload.engine_options,
    }


def write_prompts(source: Path, path: Path) -> None:
    """Prompts of the workload (JSONL) in the columns that verl reads (Parquet)."""
    from datasets import Dataset

    with source.open(encoding="utf-8") as lines:
        prompts = [json.loads(line)["prompt"] for line in lines]
    same = {"data_source": "workload", "reward_model": {"style": "rule", "ground_truth": ""}}
    rows = [{"prompt": prompt, **same, "extra_info": {"index": i}} for i, prompt in enumerate(prompts)]
    Dataset.from_list(rows).to_parquet(str(path))


def with_whole_vocabulary(model: Path, out: Path) -> None:
    """The model directory with a tokenizer that names every id of the model.

    verl never samples an id that the tokenizer does not have, and these include all but one that end a completion.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for file in model.iterdir():
        if file.name != "tokenizer.json":
            (out / file.name).symlink_to(file.resolve())
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    known, size = set(vocabulary.values()), json.loads((model / "config.json").read_text())["vocab_size"]
    vocabulary |= {f"<{number}>": number for number in range(size) if number not in known}
    (out / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


def unknown_names(names: list[str], config: Path) -> list[str]:
    """Names that verl's generated configuration does not have; those that begin with + are added to a part of it."""
    import yaml

    tree, unknown = yaml.safe_load(config.read_text()), []
    for name in names:
        parts = name.removeprefix("+").split(".")
        place = tree
        for part in parts[:-1] if name.startswith("+") else parts:
            place = place.get(part, KeyError) if isinstance(place, dict) else KeyError
        if place is KeyError:
            unknown.append(name)
    return unknown


def command_of(given: dict[str, Any], folder: Path) -> list[str]:
    """The command of verl."""
    settings = given | {"hydra.run.dir": folder / "hydra"}
    return [sys.executable, "-m", "verl.trainer.main_ppo", *(f"{name}={value}" for name, value in settings.items())]


def parameters_of(model: Path) -> int:
    """Of a model directory whose embeddings are tied."""
    from safetensors import safe_open

    total = 0
    for file in model.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            total += sum(tensors.get_tensor(name).numel() for name in tensors.keys())  # noqa: SIM118
    return total


def follow(lines: Any, log: Path, workload: Workload, record: Path, known: dict[str, Any]) -> None:
    """Copies verl's output to a file, and writes the record after each of its steps.

    Args:
        lines: Of the output.
        log: The file.
        workload: Of the run.
        record: Path.
        known: What a record has beside its steps.
    """
    steps: list[dict[str, Any]] = []
    with log.open("w", encoding="utf-8") as file, DevicePeak() as peak:
        for line in lines:
            file.write(line)
            file.flush()
            metrics = metrics_of(line)
            if metrics is not None and "timing_s/step" in metrics:
                steps.append(step_of(metrics, workload.prompts_per_step * workload.num_generations, peak.bytes))
                write_whole(record, json.dumps(known | {"steps": steps, "reserved_bytes": peak.bytes}) + "\n")


def main(workload: Workload, record: Path) -> None:
    folder = record.parent / "verl"
    model, prompts, log = folder / "model", folder / "prompts.parquet", record.with_name("verl_output.log")
    with_whole_vocabulary(Path(workload.model), model)
    write_prompts(Path(workload.prompts), prompts)
    known = {
        "program": "verl",
        "versions": versions() | {name: version(name) for name in ("verl", "ray")},
        "device": device_name(),
        "parameters": parameters_of(model),
        "bytes_before_training": 0,
    }
    command = command_of(overrides(workload, model, prompts, folder), folder)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(command, env=child.environment(**ENVIRONMENT), **pipes) as process:
        follow(process.stdout, log, workload, record, known)
    if process.returncode:
        raise SystemExit(f"verl failed:\n{log.read_text(encoding='utf-8')[-8000:]}")


def check() -> None:
    """Ends with the names that the installed verl does not know."""
    found = importlib.util.find_spec("verl")
    assert found is not None and found.origin is not None, "verl is not installed"
    names = list(overrides(NANO, Path("model"), Path("prompts"), Path("folder")))
    unknown = unknown_names(names, Path(found.origin).parent / "trainer" / "config" / CONFIG)
    raise SystemExit(f"verl does not know {', '.join(unknown)}" if unknown else 0)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        check()
    workload_file, record_file = sys.argv[1:]
    main(Workload.load(workload_file), Path(record_file))
