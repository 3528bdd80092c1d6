"""Where training passes by CUDA graphs are refused, and in which words."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from runs import train_stage
from stage_cases import STAGES

from grpo_lightning.generation.vllm.colocate import VLLMColocate
from grpo_lightning.modules.checks.settings import check_graphs
from grpo_lightning.modules.checks.trainer import check_policy
from grpo_lightning.modules.grpo_settings import GRPOSettings
from grpo_lightning.policy.policy import Policy
from grpo_lightning.policy.settings import PolicySettings


def test_passes_that_recompute_activations_are_refused():
    with pytest.raises(ValueError, match=r"model\.gradient_checkpointing"):
        PolicySettings(model_name_or_path="any", cuda_graphs=True, gradient_checkpointing=0.5)


def test_a_run_on_a_cpu_is_refused(tiny_model_dir, tmp_path):
    with pytest.raises(ValueError, match=r"model\.cuda_graphs=true: CUDA graphs run on a GPU"):
        train_stage(*STAGES["sft"], tiny_model_dir, tmp_path, 1, cuda_graphs=True)


def test_several_ranks_are_refused(tiny_model_dir):
    policy = Policy(PolicySettings(model_name_or_path=str(tiny_model_dir), cuda_graphs=True))
    gpus = [torch.device("cuda", index) for index in range(2)]
    strategy = DDPStrategy(parallel_devices=gpus, cluster_environment=LightningEnvironment())
    with pytest.raises(ValueError, match="DDPStrategy exchanges gradients"):
        check_policy(policy, strategy)


@pytest.mark.parametrize("sleeps", [True, False])
def test_an_engine_that_takes_the_memory_of_passes_back_is_refused(sleeps):
    settings = GRPOSettings(
        model_name_or_path="any", cuda_graphs=True, rewards=lambda completions: [0.0 for _ in completions]
    )
    generator = VLLMColocate(enable_sleep_mode=sleeps)
    if not sleeps:
        assert check_graphs(settings, generator) is None
        return
    with pytest.raises(ValueError, match="enable_sleep_mode"):
        check_graphs(settings, generator)
