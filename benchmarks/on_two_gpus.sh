#!/usr/bin/env bash
# The benchmarks of the README on two GPUs, in parts of at most ten minutes that leave what they came to when cut off:
#
#   benchmarks/on_two_gpus.sh rivals OUT        # TRL on one GPU, ours on the other, 1.5B and 0.5B; supervised training
#   benchmarks/on_two_gpus.sh stages OUT        # DPO and distillation: TRL on one GPU, most of ours on the other
#   benchmarks/on_two_gpus.sh vision OUT        # prompts with images: TRL on one GPU, ours on the other, then partial rollouts
#   benchmarks/on_two_gpus.sh tools OUT MODEL   # a slow tool: TRL on one GPU, ours on the other, then SmolLM2's tool task (MODEL as below)
#   benchmarks/on_two_gpus.sh ranks OUT         # DDP on one and two GPUs, FSDP2 of 7B
#   benchmarks/on_two_gpus.sh learning OUT MODEL  # three seeds of ours on SmolLM2 (benchmarks/smollm2.py MODEL)
#   benchmarks/on_two_gpus.sh tail OUT          # where a step of the engine goes, by kernels and by functions of the host
#   benchmarks/on_two_gpus.sh tests OUT         # tests/gpu, eight at a time, then tests/memory alone
#
# OUT has everything, records and models too, so that a part goes on from what another left. On a machine of which only
# small files come back, give a folder that stays, and copy OUT/*.json.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
usage() { sed -n '2,14s/^# \{0,1\}//p' benchmarks/on_two_gpus.sh && exit 2; }
[ $# -ge 2 ] || usage
part=$1 out=$(mkdir -p "$2" && cd "$2" && pwd) model=${3:-}
export NCCL_NVLS_ENABLE=0 HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

on() { CUDA_VISIBLE_DEVICES=$1 timeout "$2" python3 "${@:3}"; }  # on GPU SECONDS SCRIPT ...

rivals() {
  local same=(--device cuda --dtype mixed --warmup-steps 1 --steps 2 --max-tokens-per-microbatch 13312 --folder "$out/vs")
  (for shape in 1.5b 0.5b; do on 1 310 benchmarks/vs_trl.py "${same[@]}" --shape $shape --only trl --seconds-per-side 240; done) \
    > "$out/trl.txt" 2>&1 &
  (for shape in 1.5b 0.5b; do on 0 260 benchmarks/vs_trl.py "${same[@]}" --shape $shape --only grpo_lightning; done
   on 0 90 benchmarks/sft.py --device cuda --shape 0.5b --steps 6 --variants default --out "$out/sft_0.5b_cuda.json") \
    > "$out/ours.txt" 2>&1 &
  wait
  for shape in 1.5b 0.5b; do
    on 0 60 benchmarks/vs_trl.py "${same[@]}" --shape $shape --reuse --seconds-per-side 1 --out "$out/vs_trl_${shape}_mixed_cuda.json"
  done
}

stages() {  # sides that matter most come first; one that finds no time left has no record, and is left out
  local script=(benchmarks/stages_vs_trl.py --device cuda --dtype mixed --folder "$out/stages")
  local distillation=(--stage distillation --shape 0.5b --teacher-shape 1.5b --prompts-per-step 64
    --warmup-steps 1 --steps 2)
  side() {  # GPU SECONDS OPTIONS; of DPO one took 40 to 75 s; of distillation ours 90, TRL 110 to its first step (H200)
    local left=$((560 - SECONDS)) && local seconds=$(($2 < left ? $2 : left))
    if ((seconds > 20)); then on "$1" $seconds "${script[@]}" "${@:3}" --seconds-per-side $((seconds - 5)); fi
  }
  (side 0 90 --shape 1.5b --only & side 1 90 --shape 0.5b --only & wait) > "$out/models.txt" 2>&1
  (side 1 480 "${distillation[@]}" --only trl) > "$out/distillation_trl.txt" 2>&1 &
  (side 0 180 "${distillation[@]}" --only ours
   for way in ours trl trl_no_checkpointing ours_checkpointing; do
     for shape in 1.5b 0.5b; do side 0 110 --shape $shape --only $way; done
   done) > "$out/dpo.txt" 2>&1 &
  wait
  for shape in 1.5b 0.5b; do python3 "${script[@]}" --shape $shape --recorded --out "$out/dpo_${shape}_cuda.json"; done
  python3 "${script[@]}" "${distillation[@]}" --recorded --out "$out/distillation_0.5b_cuda.json"
}

vision() {  # TRL's third step was over after 210 s; ours had not begun after 125, the machine just started
  local script=(benchmarks/vision_vs_trl.py --device cuda --shape 3b --dtype mixed --prompts-per-step 16 --warmup-steps 1 --steps 2
    --folder "$out/vision")
  on 1 550 "${script[@]}" --only trl --seconds-per-side 540 > "$out/vision_trl.txt" 2>&1 &
  (on 0 220 "${script[@]}" --only grpo_lightning --seconds-per-side 210
   partial 0) > "$out/vision_ours.txt" 2>&1 &
  wait
  on 0 30 "${script[@]}" --reuse --seconds-per-side 1 --out "$out/vision_vs_trl_3b_cuda.json"
}

partial() {  # on GPU; about two minutes a share
  on "$1" 360 benchmarks/partial_rollouts.py --device cuda --shape 0.5b --steps 5 --folder "$out/partial" \
    --out "$out/partial_rollouts_0.5b_cuda.json"
}

tools() {
  local script=(benchmarks/tools_vs_trl.py --device cuda --shape 0.5b --dtype mixed --folder "$out/tools")
  on 1 250 "${script[@]}" --only trl --seconds-per-side 240 > "$out/tools_trl.txt" 2>&1 &
  (on 0 170 "${script[@]}" --only grpo_lightning --seconds-per-side 160
   python3 benchmarks/smollm2_tools.py "$model" runs/smollm2_tools
   on 0 390 benchmarks/quickstart_seeds.py --config configs/smollm2_tools.yaml --seeds 0 \
     --out "$out/smollm2_tools_seeds.json") > "$out/tools_ours.txt" 2>&1 &
  wait
  on 0 30 "${script[@]}" --reuse --seconds-per-side 1 --out "$out/tools_vs_trl_0.5b_cuda.json"
}

ranks() {
  on 0,1 330 benchmarks/multi_gpu.py --gpus 1 2 --shape 0.5b --steps 4 --folder "$out/ranks" --out "$out/multi_gpu_ddp_0.5b.json"
  on 0,1 260 benchmarks/multi_gpu.py --gpus 2 --shape 7b --strategy fsdp2 --steps 2 --warmup-steps 1 --folder "$out/ranks" \
    --out "$out/multi_gpu_fsdp2_7b.json"
}

learning() {
  on 0 580 benchmarks/learning.py --model "$model" --side ours --steps 32 --eval-every 8 --folder "$out/learning" \
    --out "$out/learning_ours_cuda.json" > "$out/learning.txt" 2>&1
}

tail_of_generation() {
  for engine in default not_ahead; do
    on $([ $engine = default ] && echo 0 || echo 1) 300 benchmarks/generation_tail.py --device cuda --shape 0.5b --engines $engine \
      --folder "$out/generation" --out "$out/generation_tail_${engine}_0.5b_cuda.json" > "$out/tail_$engine.txt" 2>&1 &
  done
  wait
}

tests() {
  export GRPO_LIGHTNING_TWO_DEVICES_OUT="$out/two_devices.jsonl"
  timeout 400 python3 -m pytest -q -m gpu -n 8 --dist load tests/gpu | tee "$out/tests.txt" | tail -5
  CUDA_VISIBLE_DEVICES=0 timeout 190 python3 -m pytest -q -m gpu tests/memory | tee "$out/tests_memory.txt" | tail -5
}

case $part in
tail) tail_of_generation ;;
rivals | stages | vision | tools | ranks | learning | tests) "$part" ;;
*) usage ;;
esac
