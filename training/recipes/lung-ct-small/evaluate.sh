#!/usr/bin/env bash
# Make every table and figure of the evaluation, for the shipped checkpoint and the small baselines.
#     bash training/recipes/lung-ct-small/evaluate.sh OUTPUT_DIR
# An interrupted run continues where it stopped. OUTPUT_DIR/data is the dataset of train.sh. The baselines of
# train_baselines.sh are left out where they do not exist. The results are in OUTPUT_DIR/evaluation.
# Rehearse every script with tiny settings:
#     REHEARSE=1 bash training/recipes/lung-ct-small/evaluate.sh OUTPUT_DIR
set -euo pipefail
output=$1
source "$(dirname "$0")/phase.sh"
results=$output/evaluation${REHEARSE:+-rehearsal}
data=(--dataset_name "$output/data")
features=(--feature_extractor efficientnet)

baselines=()
for baseline in LDM=ldm SPADE=spade-gan; do
  name=${baseline%%=*}
  path=$output/${baseline#*=}/pipeline
  if [ -f "$path/model_index.json" ]; then
    baselines+=("$name=$path")
  else
    echo "== no $path: $name is left out"
  fi
done

shuffled=()
if [ -f "$output/shuffled_classifier/config.json" ]; then
  shuffled=(--shuffled_classifier "$output/shuffled_classifier")
else
  echo "== no $output/shuffled_classifier: the arm of shuffled labels is left out"
fi

ddpm=(--ddpm_1000)
if [ -n "${REHEARSE:-}" ]; then ddpm=(); fi # a thousand steps are too many for a rehearsal
lsdm=$(python -c "from lsdm_diffusers import small_checkpoint; print(small_checkpoint())")

run() { # SCRIPT FLAG... [-- FLAG...]; the flags after -- are added in a rehearsal only
  local script=$1 flags=()
  shift
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    flags+=("$1")
    shift
  done
  if [ $# -gt 0 ]; then shift; fi
  echo "== $script"
  python "$training/$script" "${data[@]}" "${flags[@]}" ${REHEARSE:+"$@"}
}

# bfloat16 is faster where whole slices are sampled, float32 where windows and crops are
run evaluate.py --pretrained_model_name_or_path "LSDM=$lsdm" "${baselines[@]}" \
  --arms none malignancy --seeds 0 1 "${features[@]}" --blank_background --mixed_precision "$half" \
  --output_dir "$results/tables" -- --max_samples 2 --num_inference_steps 2 --seeds 0
run evaluate_control.py "${shuffled[@]}" --full --num_inference_steps 15 \
  --output_dir "$results/control" -- --max_nodules 2 --num_inference_steps 2
run evaluate_steps.py "${features[@]}" --max_samples 5 --blank_background --mixed_precision "$half" "${ddpm[@]}" \
  --output_dir "$results/steps" -- --max_samples 2 --num_inference_steps 2 --reference_steps 4
run evaluate_diversity.py "${features[@]}" --perceptual efficientnet --max_samples 48 --num_inference_steps 15 \
  --output_dir "$results/diversity" -- --max_samples 4 --num_inference_steps 2
run evaluate_usefulness.py \
  --output_dir "$results/usefulness" -- --num_synthetic 8 --num_inference_steps 2 --max_train_steps 4
run figures.py --baselines "${baselines[@]}" \
  --output_dir "$results/figures" -- --num_maps 1 --num_inference_steps 2
echo "== results: $results"
