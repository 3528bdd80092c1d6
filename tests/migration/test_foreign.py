"""Configs of other trainers are recognised and answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_lightning.commands.migrate import main
from grpo_lightning.migration import read_source

VERL = """
data: {train_files: gsm8k.parquet, train_batch_size: 1024, max_response_length: 1024}
actor_rollout_ref:
  model: {path: Qwen/Qwen2.5-7B}
  actor: {kl_loss_coef: 0.001, optim: {lr: 1e-6}}
  rollout: {n: 5}
algorithm: {adv_estimator: grpo}
trainer: {total_epochs: 15}
"""
SWIFT = "rlhf_type: grpo\nmodel: Qwen/Qwen2.5-7B\nnum_generations: 8\nreward_funcs: [accuracy, format]\n"
NEMO_RL = "grpo: {num_prompts_per_step: 32, num_generations_per_prompt: 16}\npolicy: {model_name: Qwen/Qwen3-8B}\n"
EASY_R1 = "algorithm: {kl_coef: 1.0e-2}\nworker: {rollout: {n: 5}}\ntrainer: {total_epochs: 15}\n"
AREAL = "gconfig: {n_samples: 4}\nactor: {path: Qwen/Qwen3-8B, eps_clip: 0.4}\nmodel: {}\n"
PRIME_RL = "max_steps: 20\nmodel: {name: Qwen/Qwen3-0.6B}\ntrainer: {}\norchestrator: {rollouts_per_example: 16}\n"
OUMI = "model: {model_name: Qwen/Qwen3-8B}\ntraining: {trainer_type: TRL_GRPO, grpo: {num_generations: 4}}\ndata: {}\n"
TORCHTUNE = "model: {_component_: torchtune.models.llama3_2.llama3_2_3b}\ngrpo_samples: 16\n"
OPENRLHF = "advantage_estimator: group_norm\npretrain: Qwen/Qwen2.5-7B\nn_samples_per_prompt: 8\n"


@pytest.mark.parametrize(
    ("text", "trainer", "taken"),
    [
        (
            VERL,
            "verl",
            [
                "actor_rollout_ref.rollout.n: 5 -> model.num_generations",
                "trainer.total_epochs: 15 -> trainer.max_epochs",
            ],
        ),
        (SWIFT, "ms-swift", ["num_generations: 8 -> model.num_generations", "are other functions than ours"]),
        (OPENRLHF, "OpenRLHF", ["n_samples_per_prompt: 8 -> model.num_generations"]),
        (NEMO_RL, "NeMo-RL", ["grpo.num_generations_per_prompt: 16 -> model.num_generations"]),
        (EASY_R1, "EasyR1", ["worker.rollout.n: 5 -> model.num_generations"]),
        (AREAL, "AReaL", ["gconfig.n_samples: 4 -> model.num_generations", "actor.eps_clip: 0.4 -> model.epsilon"]),
        (PRIME_RL, "prime-rl", ["orchestrator.rollouts_per_example: 16 -> model.num_generations"]),
        (OUMI, "oumi", ["training.grpo.num_generations: 4 -> model.num_generations"]),
        (TORCHTUNE, "torchtune", ["grpo_samples: 16 -> model.num_generations"]),
    ],
)
def test_another_trainers_file_is_recognised_and_what_can_be_taken_is_said(
    text, trainer, taken, tmp_path: Path, capsys
):
    path = tmp_path / "old.yaml"
    path.write_text(text)
    assert main([str(path)]) == 1
    said = capsys.readouterr().err
    assert f"is for {trainer}, whose settings migrate does not translate" in said
    assert all(line in said for line in taken)


@pytest.mark.parametrize(
    ("command", "trainer", "taken"),
    [
        (
            "python3 -m verl.trainer.main_ppo algorithm.adv_estimator=grpo actor_rollout_ref.rollout.n=5",
            "verl",
            "actor_rollout_ref.rollout.n: 5 -> model.num_generations",
        ),
        (
            "deepspeed --module openrlhf.cli.train_ppo_ray --n_samples_per_prompt 8 --init_kl_coef 1e-3",
            "OpenRLHF",
            "init_kl_coef: 1e-3 -> model.beta",
        ),
        (
            "swift rlhf --rlhf_type grpo --model Qwen/Qwen3-8B",
            "ms-swift",
            "model: Qwen/Qwen3-8B -> model.model_name_or_path",
        ),
    ],
)
def test_another_trainers_command_is_recognised_too(command, trainer, taken):
    with pytest.raises(ValueError, match=f"is for {trainer}") as caught:
        read_source(None, [command])
    assert taken in str(caught.value)
