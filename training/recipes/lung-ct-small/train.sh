#!/usr/bin/env bash
# The shipped checkpoint from the public CT, start to end; run again after an interruption, it goes on.
#     bash training/recipes/lung-ct-small/train.sh DATA_DIR OUTPUT_DIR
set -euo pipefail
data_dir=$1 output=$2
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)} # accelerate would take one thread on a CPU
here=$(dirname "$0") training=$(dirname "$0")/../..

[ -f "$output/data/splits.json" ] || python "$here/prepare_dataset.py" --data_dir "$data_dir" --output_dir "$output/data"

# crops, more of them, then large ones for the decoder alone: group norms see a whole slice otherwise than a crop
vae=(--dataset_name "$output/data" --perceptual none --difference_weight 1 --resume_from_checkpoint latest)
[ -f "$output/vae-first/validation.json" ] || accelerate launch "$training/train_autoencoder.py" "${vae[@]}" --output_dir "$output/vae-first" \
  --block_out_channels 24 48 96 --norm_num_groups 12 --max_train_steps 1800 --checkpointing_steps 300 --validation_steps 600
[ -f "$output/vae-crops/validation.json" ] || accelerate launch "$training/train_autoencoder.py" "${vae[@]}" --output_dir "$output/vae-crops" \
  --pretrained_vae "$output/vae-first" --max_train_steps 2500 --learning_rate 5e-4 --validation_steps 500
[ -f "$output/vae/validation.json" ] || accelerate launch "$training/train_autoencoder.py" "${vae[@]}" --output_dir "$output/vae" \
  --pretrained_vae "$output/vae-crops" --freeze_encoder --crop_size 320 --train_batch_size 1 --max_train_steps 400 --learning_rate 3e-4 \
  --checkpointing_steps 50 --validation_steps 100

unet=(--dataset_name "$output/data" --pretrained_vae "$output/vae" --latents_dir "$output/latents" --random_flip --blank_background
  --block_out_channels 32 64 128 192 --attention_levels 0 0 0 1 --layers_per_block 1 --norm_num_groups 16 --attention_head_dim 16
  --spade_hidden_channels 24 --prediction_type v_prediction --nodule_weight 4 --ema_max_decay 0.999 --resume_from_checkpoint latest)
# crops first, then whole slices, whose view makes the two lungs agree
[ -f "$output/unet-crops/done" ] || {
  accelerate launch "$training/train_unet.py" "${unet[@]}" --output_dir "$output/unet-crops" --crop_size 256 --train_batch_size 2 \
    --max_train_steps "${CROP_STEPS:-3000}" --learning_rate 6e-4 --nodule_probability 0.15 --validation_steps 1500
  touch "$output/unet-crops/done"; }
slices=(--crop_size 512 --train_batch_size 1 --lr_scheduler cosine --lr_warmup_steps 30 --nodule_probability 0.1)
[ -f "$output/unet-slices/done" ] || {
  accelerate launch "$training/train_unet.py" "${unet[@]}" "${slices[@]}" --output_dir "$output/unet-slices" \
    --pretrained_unet "$output/unet-crops/pipeline/unet" --max_train_steps "${SLICE_STEPS:-1500}" --learning_rate 4e-4 --validation_steps 750
  touch "$output/unet-slices/done"; }
accelerate launch "$training/train_unet.py" "${unet[@]}" "${slices[@]}" --output_dir "$output/unet" \
  --pretrained_unet "$output/unet-slices/pipeline/unet" --max_train_steps "${MORE_SLICE_STEPS:-2800}" --learning_rate 3e-4 --validation_steps 700

# the group norms of a classifier forget densities; ground glass and solid differ in nothing else
for feature in malignancy texture spiculation lobulation; do
  thresholds=$([ $feature != texture ] || echo --hu_thresholds -700 -500 -300 -100 100)
  [ -f "$output/${feature}_classifier/validation.json" ] || accelerate launch "$training/train_classifier.py" --dataset_name "$output/data" \
    --pretrained_vae "$output/vae" --feature "$feature" --output_dir "$output/${feature}_classifier" --block_out_channels 12 24 48 96 \
    --max_train_steps "${CLASSIFIER_STEPS:-600}" --train_batch_size 32 --learning_rate 1e-3 --ema_max_decay 0.995 --label_balance 0.5 \
    --timestep_power 2 --augmentation_views 4 $thresholds --checkpointing_steps 50 --validation_steps 300 --resume_from_checkpoint latest
done

python "$here/assemble.py" --training_dir "$output" --output_dir "$output/lung-ct-small"
