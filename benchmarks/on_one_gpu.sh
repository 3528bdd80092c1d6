#!/usr/bin/env bash
# What users run, on one GPU, in parts of at most ten minutes that leave what they came to when cut off:
#
#   benchmarks/on_one_gpu.sh rates OUT            # DDP's setting with one process, supervised training plain and compiled
#   benchmarks/on_one_gpu.sh real OUT MODEL DATA  # SmolLM2 (benchmarks/smollm2.py MODEL) on GSM8K's train.jsonl: sft, then GRPO
#   benchmarks/on_one_gpu.sh partial OUT          # partial rollouts at two shares, against steps that wait
#   benchmarks/on_one_gpu.sh tests OUT            # every test marked gpu that one GPU is enough for
#
# OUT has everything, as in on_two_gpus.sh.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
part=$1 out=$(mkdir -p "$2" && cd "$2" && pwd) model=${3:-} data=${4:-}
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

rates() {
  timeout 200 python3 benchmarks/sft.py --device cuda --shape 0.5b --steps 6 --variants default compiled --profile 1 \
    --trace "$out/trace.json.gz" --out "$out/sft_0.5b_cuda.json"
  timeout 150 python3 benchmarks/multi_gpu.py --gpus 1 --shape 0.5b --steps 4 --folder "$out/ranks" --out "$out/one_gpu_0.5b.json"
}

real() {
  python3 - "$data" "$out/pairs.jsonl" <<'PAIRS'
import json, sys
with open(sys.argv[1]) as rows, open(sys.argv[2], "w") as pairs:
    for row in map(json.loads, rows):
        turn = lambda role, text: [{"role": role, "content": text}]
        pairs.write(json.dumps({"prompt": turn("user", row["question"]), "completion": turn("assistant", row["answer"])}) + "\n")
PAIRS
  local same=(--model.model_name_or_path "$model" --trainer.accelerator gpu --trainer.devices 1 --trainer.precision bf16-mixed
    --trainer.enable_progress_bar false --trainer.log_every_n_steps 1 --data.batch_size 64 --checkpoint.save_top_k 0)
  timeout 120 python3 -m grpo_lightning sft "${same[@]}" --data.dataset "$out/pairs.jsonl" --trainer.max_steps 20 \
    --trainer.default_root_dir "$out/sft"
  timeout 200 python3 -m grpo_lightning fit "${same[@]}" --data.dataset "$data" --data.converter gsm8k \
    --data.converter_args '{conversational: true}' --model.rewards '[{class_path: AccuracyReward, init_args: {mode: numeric}}]' \
    --model.generator '{class_path: VLLMColocate, init_args: {max_model_length: 1024}}' --model.num_generations 8 \
    --model.max_completion_length 256 --trainer.max_steps 8 --trainer.default_root_dir "$out/grpo"
  for run in sft grpo; do cp "$out/$run"/logs/version_*/metrics.csv "$out/smollm2_gsm8k_$run.csv"; done
}

partial() {
  timeout 580 python3 benchmarks/partial_rollouts.py --device cuda --shape 0.5b --steps 6 --warmup-steps 4 --carry-over 1.0 0.5 \
    --folder "$out/partial" --out "$out/partial_rollouts_0.5b_cuda.json"
}

tests() {
  export CUDA_VISIBLE_DEVICES=0
  timeout 400 python3 -m pytest -q -m gpu -n 5 --dist load tests --ignore tests/memory --durations 15 | tee "$out/tests.txt" | tail -40
  timeout 170 python3 -m pytest -q -m gpu tests/memory | tee "$out/tests_memory.txt" | tail -10  # alone: they measure what is free
}

case $part in
rates | real | partial | tests) "$part" ;;
*) sed -n '2,9s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
