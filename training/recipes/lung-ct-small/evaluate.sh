#!/usr/bin/env bash
# Every table and figure of the evaluation, for the shipped checkpoint and the small baselines; run again after an interruption, it goes on.
#     bash training/recipes/lung-ct-small/evaluate.sh OUTPUT_DIR
# $output/data is that of train.sh; the baselines, left out where they are not there, are those of train_baselines.sh. Results: $output/evaluation.
# A rehearsal of every script: REHEARSE=1 bash training/recipes/lung-ct-small/evaluate.sh OUTPUT_DIR
set -euo pipefail
output=$1
source "$(dirname "$0")/phase.sh"
results=$output/evaluation${REHEARSE:+-rehearsal}
data=(--dataset_name "$output/data")
features=(--feature_extractor efficientnet)

baselines=()
for baseline in LDM=ldm SPADE=spade-gan; do
  path=$output/${baseline#*=}/pipeline
  if [ -f "$path/model_index.json" ]; then baselines+=("${baseline%%=*}=$path"); else echo "== no $path: ${baseline%%=*} is left out"; fi
done
shuffled=()
[ -f "$output/shuffled_classifier/config.json" ] && shuffled=(--shuffled_classifier "$output/shuffled_classifier") ||
  echo "== no $output/shuffled_classifier: the arm of shuffled labels is left out"
ddpm=(--ddpm_1000) # its thousand steps are left out of a rehearsal
[ -n "${REHEARSE:-}" ] && ddpm=()
lsdm=$(python -c "from lsdm_diffusers import small_checkpoint; print(small_checkpoint())")

run() { # SCRIPT FLAG...; what follows -- is for the rehearsal alone
  local script=$1 flags=()
  shift
  while [ $# -gt 0 ] && [ "$1" != -- ]; do flags+=("$1") && shift; done
  [ $# -gt 0 ] && shift
  echo "== $script"
  python "$training/$script" "${data[@]}" "${flags[@]}" ${REHEARSE:+"$@"}
}

# bfloat16 is faster where whole slices are sampled, float32 for windows and crops
run evaluate.py --pretrained_model_name_or_path "LSDM=$lsdm" "${baselines[@]}" --arms none malignancy --seeds 0 1 "${features[@]}" \
  --blank_background --mixed_precision "$half" --output_dir "$results/tables" -- --max_samples 2 --num_inference_steps 2 --seeds 0
run evaluate_control.py "${shuffled[@]}" --full --num_inference_steps 15 --output_dir "$results/control" -- --max_nodules 2 --num_inference_steps 2
run evaluate_steps.py "${features[@]}" --max_samples 5 --blank_background --mixed_precision "$half" "${ddpm[@]}" \
  --output_dir "$results/steps" -- --max_samples 2 --num_inference_steps 2 --reference_steps 4
run evaluate_diversity.py "${features[@]}" --perceptual efficientnet --max_samples 48 --num_inference_steps 15 \
  --output_dir "$results/diversity" -- --max_samples 4 --num_inference_steps 2
run evaluate_usefulness.py --output_dir "$results/usefulness" -- --num_synthetic 8 --num_inference_steps 2 --max_train_steps 4
run figures.py --baselines "${baselines[@]}" --output_dir "$results/figures" -- --num_maps 1 --num_inference_steps 2
echo "== results: $results"
