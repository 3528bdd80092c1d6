#!/usr/bin/env bash
# What users run, on one GPU, in parts of at most ten minutes that leave what they came to when cut off:
#
#   benchmarks/on_one_gpu.sh rates OUT            # DDP's setting with one process, supervised training plain and compiled
#   benchmarks/on_one_gpu.sh real OUT MODEL DATA  # SmolLM2 (benchmarks/smollm2.py MODEL) on GSM8K's train.jsonl: sft, then GRPO
#   benchmarks/on_one_gpu.sh partial OUT          # partial rollouts at two sizes, against steps that wait
#   benchmarks/on_one_gpu.sh peer OUT NAME        # verl or unsloth, in the environment that is active (benchmarks/peers/README.md)
#   benchmarks/on_one_gpu.sh tests OUT            # every test marked gpu that one GPU is enough for
#
# OUT gets results alone, as they come; models and runs lie in a folder of their own, or in SCRATCH.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
usage() { sed -n '2,10s/^# \{0,1\}//p' benchmarks/on_one_gpu.sh && exit 2; }
case "${1:-} $#" in
"rates 2" | "real 4" | "partial 2" | "peer 3" | "tests 2") ;;
*) usage ;;
esac
part=$1 out=$(mkdir -p "$2" && cd "$2" && pwd) scratch=${SCRATCH:-$(mktemp -d)}
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
mkdir -p "$scratch"

within() { timeout -k 15 "$@"; }  # SECONDS COMMAND ...: a program that does not heed SIGTERM is killed

rates() {
  within 200 python3 benchmarks/sft.py --device cuda --shape 0.5b --steps 6 --variants default compiled --profile 1 \
    --out "$out/sft_0.5b_cuda.json"
  within 150 python3 benchmarks/multi_gpu.py --gpus 1 --shape 0.5b --steps 4 --folder "$scratch/ranks" --out "$out/one_gpu_0.5b.json"
}

real() {  # MODEL DATA
  python3 - "$2" "$scratch/pairs.jsonl" <<'PAIRS'
import json, sys
with open(sys.argv[1]) as rows, open(sys.argv[2], "w") as pairs:
    for row in map(json.loads, rows):
        turn = lambda role, text: [{"role": role, "content": text}]
        pairs.write(json.dumps({"prompt": turn("user", row["question"]), "completion": turn("assistant", row["answer"])}) + "\n")
PAIRS
  local same=(--model.model_name_or_path "$1" --trainer.accelerator gpu --trainer.devices 1 --trainer.precision bf16-mixed
    --trainer.enable_progress_bar false --trainer.log_every_n_steps 1 --data.batch_size 64 --checkpoint.save_top_k 0)
  within 120 python3 -m grpo_lightning sft "${same[@]}" --data.dataset "$scratch/pairs.jsonl" --trainer.max_steps 20 \
    --trainer.default_root_dir "$scratch/sft"
  cp "$scratch"/sft/logs/version_*/metrics.csv "$out/smollm2_gsm8k_sft.csv"
  within 200 python3 -m grpo_lightning fit "${same[@]}" --data.dataset "$2" --data.converter gsm8k \
    --data.converter_args '{conversational: true}' --model.rewards '[{class_path: AccuracyReward, init_args: {mode: numeric}}]' \
    --model.generator '{class_path: VLLMColocate, init_args: {max_model_length: 1024}}' --model.num_generations 8 \
    --model.max_completion_length 256 --trainer.max_steps 8 --trainer.default_root_dir "$scratch/grpo"
  cp "$scratch"/grpo/logs/version_*/metrics.csv "$out/smollm2_gsm8k_grpo.csv"
}

partial() {
  within 550 python3 benchmarks/partial_rollouts.py --device cuda --shape 0.5b --steps 6 --warmup-steps 6 --carry-over 1.0 2.0 \
    --folder "$scratch/partial" --out "$out/partial_rollouts_0.5b_cuda.json"
}

peer() {  # NAME; its records are whole after each of its steps
  local folder=$scratch/$1-$$ file
  take() { for file in "$folder"/*/*.json "$folder"/*/*.log; do cp "$file" "$out/.part" && mv "$out/.part" "$out/${file##*/}"; done 2>/dev/null; }
  (while sleep 5; do take; done) &
  trap "kill $!" EXIT
  within 540 python3 benchmarks/vs_peers.py --device cuda --shape 0.5b --dtype mixed --warmup-steps 1 --steps 3 \
    --max-tokens-per-microbatch 13312 --only "$1" --folder "$folder" --seconds-per-side 500
  take
}

tests() {
  export CUDA_VISIBLE_DEVICES=0
  within 400 python3 -m pytest -q -m gpu -n 5 --dist load tests --ignore tests/memory --durations 15 2>&1 | tee "$out/tests.txt" | tail -40
  within 170 python3 -m pytest -q -m gpu tests/memory 2>&1 | tee "$out/tests_memory.txt" | tail -10  # alone: they measure what is free
}

"$part" "${@:3}"
