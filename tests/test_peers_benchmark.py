"""Sides of benchmarks/vs_peers.py: settings, the lines that verl logs, and records beside each other."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "scripts" / "docs")]

import vs_peers  # noqa: E402
from peers import verl_run  # noqa: E402
from peers.verl_log import metrics_of, step_of  # noqa: E402
from peers.verl_reward import compute_score  # noqa: E402
from peers_picture import picture  # noqa: E402
from peers_table import limit, peer_lines  # noqa: E402
from sides.compare import summarize  # noqa: E402
from sides.workload import NANO, WORKLOADS  # noqa: E402

LINE = (  # as ray prints what verl's own concat_dict_to_str makes of numpy's and Python's numbers
    "\x1b[36m(TaskRunnerV1 pid=4711)\x1b[0m step:2 - actor/pg_loss:np.float64(-1.5e-05) - timing_s/gen:5.25 - "
    "timing_s/update_actor:np.float64(2.5) - timing_s/update_weights:0.25 - timing_s/step:9.0 - "
    "actor/perf/max_memory_allocated_gb:11.5 - prompt_length/mean:np.float32(70.5) - response_length/mean:200.0 - "
    "response_length/max:1024.0 - actor/grad_norm:nan"
)


def test_a_logged_step_has_seconds_by_phase_and_tokens_of_all_completions():
    metrics = metrics_of(LINE)
    assert metrics is not None and metrics["actor/pg_loss"] == -1.5e-05
    step = step_of(metrics, completions=8, device_bytes=7)
    assert step["wall_s"] == {
        "generate": 5.25,
        "old_and_reference": 0.0,
        "training": 2.5,
        "weight_sync": 0.25,
        "other": 1.0,
    }
    assert step["counts"] == {
        "completions": 8,
        "prompt_tokens": 564,
        "completion_tokens": 1600,
        "trained_tokens": 2164,
        "longest_completion": 1024,
    }
    assert metrics_of("(TaskRunnerV1 pid=4711) Training Progress: 1/3") is None


def test_a_side_without_processor_seconds_has_its_rates_by_wall_time():
    step = step_of(metrics_of(LINE), completions=8, device_bytes=7)
    known = {"program": "verl", "bytes_before_training": 0, "reserved_bytes": 7, "parameters": 10, "device": "x"}
    found = summarize(known | {"versions": {"verl": "0.9.1"}}, [step, step])
    assert (found["step_s"], found["generation_s"], found["training_s"]) == (9.0, 5.5, 2.5)
    assert found["completion_tokens_per_s"] == pytest.approx(1600 / 9, abs=0.01)
    assert "step_cpu_s" not in found and "completion_tokens_per_cpu_s" not in found
    lines = peer_lines({"device": "a CPU", "sides": {"verl": found | {"peak_bytes": 12_340_000_000}}})
    assert lines[-1] == "| verl 0.9.1 | 9.00 | 5.50 | 2.50 | 178 | 0.9 | 200 | 12.3 |"


def test_the_limit_of_a_card_is_its_memory_for_sampling_and_its_arithmetic_for_training():
    tokens = {"longest_completion": 1000, "trained_tokens": 200_000, "steps": 2}
    ours = {
        "parameters": 1_000_000_000,
        "tokens": tokens,
        "versions": {},
        "step_s": 5.0,
        "generation_s": 3.0,
        "training_s": 1.5,
    }
    found = {"device": "NVIDIA H200", "sides": {"grpo_lightning": ours}}
    least = limit(found)
    # 2 GB a token at 4.8 TB/s, and 6e9 operations for each of 100,000 tokens at 989 TFLOP/s
    assert least == pytest.approx({"generation": 2 / 4.8, "training": 600 / 989})
    assert limit(found | {"device": "another card"}) is None
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="26"', picture(found))]
    assert widths == pytest.approx([336.0, 168.0, 56.0, 2 / 4.8 * 112, 600 / 989 * 112], abs=0.06)  # 560 pixels are 5 s


def test_records_are_put_beside_those_of_another_result_with_the_same_workload(tmp_path):
    workload = replace(NANO, warmup_steps=1)
    step = step_of(metrics_of(LINE), completions=8, device_bytes=7)
    record = {"program": "verl", "bytes_before_training": 0, "reserved_bytes": 7, "parameters": 10, "device": "x"}
    (tmp_path / "verl.json").write_text(json.dumps(record | {"versions": {}, "steps": [step, step]}))
    workload.save(tmp_path / "verl.workload.json")
    assert vs_peers.summaries_of(tmp_path)["verl"]["tokens"]["steps"] == 1

    result = {"options": workload.options() | {"steps": 7}, "grpo_lightning": {"step_s": 3.0}}
    assert vs_peers.beside(result, workload)["grpo_lightning"]["step_s"] == 3.0
    with pytest.raises(SystemExit, match="temperature"):
        vs_peers.beside(result | {"options": workload.options() | {"temperature": 0.5}}, workload)


def test_verl_names_every_id_of_the_model(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}}))
    (model / "config.json").write_text(json.dumps({"vocab_size": 4}))
    verl_run.with_whole_vocabulary(model, tmp_path / "out")
    tokenizer = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert tokenizer["model"]["vocab"] == {"a": 0, "b": 1, "<2>": 2, "<3>": 3}
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"vocab_size": 4}


def test_settings_that_a_peers_configuration_does_not_have_are_named(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("data: {train_files: null}\ntrainer: {nnodes: 1}\n")
    names = ["data.train_files", "data.nothing", "trainer.nnodes.x", "+data.more", "+nowhere.more"]
    assert verl_run.unknown_names(names, config) == ["data.nothing", "trainer.nnodes.x", "+nowhere.more"]


def test_verl_is_given_the_sizes_of_the_workload_and_what_the_command_line_adds():
    workload = replace(WORKLOADS["0.5b"], engine_options={"data.shuffle": True})
    given = verl_run.overrides(workload, Path("model"), Path("prompts.parquet"), Path("folder"))
    assert given["data.train_batch_size"] == 64 and given["actor_rollout_ref.rollout.n"] == 8
    assert given["actor_rollout_ref.rollout.max_num_seqs"] == 512
    assert given["data.max_response_length"] == 1024
    assert given["trainer.total_training_steps"] == 5
    assert given["data.shuffle"] is True


def test_rays_node_has_the_address_of_the_loop():
    pytest.importorskip("ray", reason="needs verl's environment")
    ask = "import ray._private.services as services; print(services.get_node_ip_address())"
    environment = os.environ | verl_run.ENVIRONMENT
    found = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "127.0.0.1"
    assert not any("_node_ip_address" in name for name in verl_run.SWITCHES), (
        "Ray makes the outward address of 127.0.0.1"
    )


def test_packed_sequences_begin_where_positions_do():
    attention = pytest.importorskip(
        "peers.verl_attention", reason="needs a torch with varlen_attn", exc_type=ImportError
    )
    starts, longest = attention.bounds(torch.tensor([[0, 1, 2, 0, 0, 1]]))
    assert (starts.tolist(), longest) == ([0, 3, 4, 6], 3)


def test_verls_reward_is_a_share():
    assert compute_score("workload", "abcd", "") == 0.5  # b and d have the codes 98 and 100
    assert compute_score("workload", "", "") == 0.0
