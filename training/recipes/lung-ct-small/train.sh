#!/usr/bin/env bash
# Train the shipped checkpoint from the public CT, from start to end:
#
#     bash training/recipes/lung-ct-small/train.sh DATA_DIR OUTPUT_DIR
#
# A run that was interrupted continues when the command is given again. To rehearse every phase in a few minutes:
#
#     STEPS=2 FLAGS="--max_train_samples 40" bash training/recipes/lung-ct-small/train.sh DATA_DIR OUTPUT_DIR
set -euo pipefail
data_dir=$1 output=$2
here=$(dirname "$0")
source "$here/phase.sh"

if [ ! -f "$output/data/splits.json" ]; then
  python "$here/prepare_dataset.py" --data_dir "$data_dir" --output_dir "$output/data"
fi

# The autoencoder: on crops, on more crops, and then the decoder alone on large crops, because statistics of group
# normalisation differ between a small crop and a whole slice.
vae=(--perceptual none --difference_weight 1)
phase train_autoencoder.py "$output/vae-first" 1800 "${vae[@]}" --block_out_channels 24 48 96 --norm_num_groups 12 \
  --checkpointing_steps 300 --validation_steps 600
phase train_autoencoder.py "$output/vae-crops" 2500 "${vae[@]}" --pretrained_vae "$output/vae-first" \
  --learning_rate 5e-4
phase train_autoencoder.py "$output/vae" 400 "${vae[@]}" --pretrained_vae "$output/vae-crops" --freeze_encoder \
  --crop_size 320 --train_batch_size 1 --learning_rate 3e-4 --checkpointing_steps 50 --validation_steps 100

if [ ! -f "$output/ct_noise.json" ]; then
  python "$training/measure_ct_noise.py" --dataset_name "$output/data" --pretrained_vae "$output/vae" \
    --output_file "$output/ct_noise.json"
fi

# The U-Net: on crops, then on whole slices, from which it learns that the two lungs belong together.
# Encoding the views takes about as long as a thousand steps; all phases share them.
unet=(--pretrained_vae "$output/vae" --latents_dir "$output/latents" --augmentation_views 4 --blank_background
  --nodule_ratings --prediction_type v_prediction --nodule_weight 4 --ema_max_decay 0.999 --mixed_precision "$half")
slices=(--crop_size 512 --train_batch_size 1 --lr_scheduler cosine --lr_warmup_steps 30 --nodule_probability 0.1
  --window_probability 0.25)
phase train_unet.py "$output/unet-crops" 3000 "${unet[@]}" --crop_size 256 --train_batch_size 2 \
  --learning_rate 6e-4 --nodule_probability 0.15 --block_out_channels 32 64 128 192 --attention_levels 0 0 0 1 \
  --layers_per_block 1 --norm_num_groups 16 --attention_head_dim 16 --spade_hidden_channels 24 --validation_steps 1500
phase train_unet.py "$output/unet-slices" 1500 "${unet[@]}" "${slices[@]}" \
  --pretrained_unet "$output/unet-crops/pipeline/unet" --learning_rate 4e-4 --validation_steps 750
phase train_unet.py "$output/unet-more" 2800 "${unet[@]}" "${slices[@]}" \
  --pretrained_unet "$output/unet-slices/pipeline/unet" --learning_rate 3e-4 --validation_steps 700
phase train_unet.py "$output/unet-most" 2000 "${unet[@]}" "${slices[@]}" \
  --pretrained_unet "$output/unet-more/pipeline/unet" --learning_rate 4e-4 --validation_steps 500
# At one rate for long, and then down to 0.
phase train_unet.py "$output/unet-ratings" 7250 "${unet[@]}" "${slices[@]}" --lr_scheduler constant \
  --pretrained_unet "$output/unet-most/pipeline/unet" --learning_rate 3e-4 --validation_steps 500
phase train_unet.py "$output/unet" 1300 "${unet[@]}" "${slices[@]}" \
  --pretrained_unet "$output/unet-ratings/pipeline/unet" --learning_rate 2e-4 --validation_steps 650

# The classifiers: the one of malignancy first, whose weights are a good beginning for the other features.
classifier malignancy-first malignancy 1500
first=(--pretrained_classifier "$output/malignancy-first_classifier")
for feature in spiculation texture lobulation; do
  steps=600
  [ "$feature" = texture ] && steps=800
  classifier "$feature" "$feature" "$steps" "${first[@]}"
done
# Malignancy once more, with jitter of contrast and sharpness, so that it judges by size and shape: small dense nodules
# are benign, and a classifier that judges by density makes benign nodules grow.
classifier malignancy malignancy 300 "${first[@]}" --augmentation_views 16 --contrast_jitter 0.5 1.5 \
  --sharpness_jitter 1 --label_smoothing 0.1

python "$here/assemble.py" --training_dir "$output" --output_dir "$output/lung-ct-small"
