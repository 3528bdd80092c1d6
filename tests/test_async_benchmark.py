"""The arithmetic of benchmarks/async_rollouts.py by hand."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from async_rollouts import compared, config_of, devices_of, figures  # noqa: E402

OPTIONS = Namespace(
    shape="0.5b",
    device="cuda",
    trainer_gpus=1,
    server_gpus="1",
    colocate_gpus=None,
    steps=6,
    warmup_steps=2,
    precision="bf16-mixed",
    max_tokens_per_microbatch=16384,
    colocate_options="{}",
    server_options='{"timeout": 9}',
)


def rows(seconds: float, tokens: int) -> list[dict[str, str]]:
    common = {"time/generate": "0.5", "time/train": "1.5", "weight_sync/seconds": "0.1", "time/unseen": ""}
    return [
        common
        | {"step_time": str(scale * seconds), "tokens_per_second": str(100 / scale), "num_tokens": f"{n * tokens}.0"}
        for n, scale in enumerate((1.0, 4.0, 2.0), start=1)
    ]


def test_figures_are_medians_and_ratios_are_above_one_where_sampling_ahead_is_faster():
    found = figures(rows(1.5, 7))
    assert found == {
        "step_seconds": 3.0,
        "tokens_per_second": 50.0,
        "phases": {"generate": 0.5, "train": 1.5},
        "weight_sync_seconds": 0.1,
        "num_tokens": [7, 14, 21],
    }
    runs = {"ahead": found, "synchronous": figures(rows(3.0, 7)), "colocate": found | {"tokens_per_second": 40.0}}
    assert compared(runs) == {"step_ratio": 2.0, "same_tokens": True, "tokens_per_second_ratio_to_colocate": 1.25}
    assert not compared(runs | {"synchronous": figures(rows(3.0, 8))})["same_tokens"]


def test_colocated_engines_train_on_the_servers_gpus_too_with_the_same_prompts_a_step():
    configs = {
        kind: config_of(OPTIONS, kind, Path("run"), Path("model"), Path("prompts"))
        for kind in ("synchronous", "ahead", "colocate")
    }
    assert [devices_of(OPTIONS, kind) for kind in configs] == [1, 1, 2]
    assert [config["model"]["async_rollouts"] for config in configs.values()] == [0, 1, 0]
    assert {c["trainer"]["devices"][-1]: c["data"]["batch_size"] for c in configs.values()} == {0: 64, 1: 32}
    server = configs["ahead"]["model"]["generator"]["init_args"]
    assert (server["launch_gpus"], server["timeout"], server["max_model_length"]) == ("1", 9, 2048)
