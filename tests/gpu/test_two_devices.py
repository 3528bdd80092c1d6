"""What users run on two GPUs, each by the command line: it trains, samples from its own weights, and goes on elsewhere.

pytest -m gpu -n 3 --dist load tests/gpu                                   # on a machine with two GPUs, three at a time
GRPO_LIGHTNING_TWO_DEVICES_ON_CPU=1 pytest tests/gpu                       # two processes without one, for the scripts
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from toy_models import save_toy_model
from two_devices import LIMIT, ON_CPU, assert_trained, fit, note, place

from grpo_lightning.generation.vllm.compat import why_unusable

pytestmark = [
    pytest.mark.skipif(place() is None, reason=f"needs two CUDA devices ({ON_CPU}=1: two processes without one)"),
    pytest.mark.skipif(why_unusable() is not None, reason="needs vLLM"),
    *([pytest.mark.gpu] if place() != "cpu" else []),
]
SPLIT = {
    "class_path": "grpo_lightning.distributed.strategies.FSDP2Strategy",
    "init_args": {"tensor_parallel_size": 2},
}
ADAPTER: dict[str, Any] = {"model__finetuning_type": "lora", "model__lora_rank": 4, "model__lora_dropout": 0.0}
WAYS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp2": {"trainer__strategy": "fsdp2"},
    "tensor parallel": {"trainer__strategy": SPLIT},
    "one engine over both": {"model__generator__init_args__tensor_parallel_size": 2},
    "lora, ddp": ADAPTER,
    "lora, fsdp2": ADAPTER | {"trainer__strategy": "fsdp2"},
}


@pytest.mark.parametrize("way", WAYS)
def test_two_devices_train(way: str, tmp_path):
    model = save_toy_model(tmp_path / "model", num_key_value_heads=2)  # which two devices can split
    ran = fit(tmp_path / "run", model, **WAYS[way])
    note(way, ran)
    assert_trained(ran, 3)


def test_a_server_on_the_second_device_samples_ahead(tiny_model_dir, tmp_path):
    on_gpu = place() == "cuda"
    server: dict[str, Any] = {"launch": True, "max_model_length": LIMIT, "port": 8017}
    server |= {"launch_gpus": "1", "weight_transfer": "nccl"} if on_gpu else {"weight_transfer": "files"}
    server["launch_arguments"] = ["--enforce-eager", "--kv-cache-memory-bytes", str(2**27)]
    generator = {"class_path": "grpo_lightning.generation.VLLMServer", "init_args": server}
    alone = {"trainer__devices": 1, "trainer__strategy": "auto", "model__async_rollouts": 1}
    alone["model__optimizer__init_args__lr"] = 1.0e-4  # one step off-policy, the canary's limit is near for a toy
    ran = fit(tmp_path / "run", tiny_model_dir, model__generator=generator, **alone)
    note("server, async_rollouts 1", ran)
    assert_trained(ran, 3)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_devices(before, after, tiny_model_dir, tmp_path):
    """Four prompts a step on either side; the optimizer's moments and the place in the data come along."""
    folder = tmp_path / "run"

    def part(devices: int, steps: int, *options: str) -> Any:
        sizes = {"trainer__devices": devices, "data__batch_size": 4 // devices}
        more = {"trainer__strategy": "fsdp2", "trainer__max_steps": steps}  # its checkpoints fit any number of devices
        return fit(folder, tiny_model_dir, *options, **sizes, **more)

    part(before, 2)
    ran = part(after, 4, "--ckpt_path", "last")
    note(f"resume on {after} after {before}", ran)
    assert_trained(replace(ran, steps=ran.steps[-2:]), 2)
    assert "Restoring states from the checkpoint path" in ran.output
