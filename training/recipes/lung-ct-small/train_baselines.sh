#!/usr/bin/env bash
# Train the baselines that the shipped checkpoint is compared with, after train.sh and on its data:
#
#     bash training/recipes/lung-ct-small/train_baselines.sh OUTPUT_DIR [ldm | spade_gan | shuffled_classifier]
#
# OUTPUT_DIR is that of train.sh, with data/ and vae/. The results are OUTPUT_DIR/ldm/pipeline,
# OUTPUT_DIR/spade-gan/pipeline and OUTPUT_DIR/shuffled_classifier, the control of training/evaluate_control.py.
# A run that was interrupted continues when the command is given again.
set -euo pipefail
output=$1
source "$(dirname "$0")/phase.sh"

# LDM: the same U-Net without SPADE, which sees the map by E(m) alone, trained on as many crops and slices.
ldm() {
  local unet=(--pretrained_vae "$output/vae" --latents_dir "$output/latents" --augmentation_views 4
    --blank_background --prediction_type v_prediction --nodule_weight 4 --ema_max_decay 0.999 --mixed_precision "$half")
  local slices=(--crop_size 512 --train_batch_size 1 --lr_scheduler cosine --lr_warmup_steps 30
    --nodule_probability 0.1)
  phase train_unet.py "$output/ldm-crops" 3000 "${unet[@]}" --spade_blocks none --crop_size 256 --train_batch_size 2 \
    --learning_rate 6e-4 --nodule_probability 0.15 --block_out_channels 32 64 128 192 --attention_levels 0 0 0 1 \
    --layers_per_block 1 --norm_num_groups 16 --attention_head_dim 16 --validation_steps 1500
  phase train_unet.py "$output/ldm-slices" 3150 "${unet[@]}" "${slices[@]}" \
    --pretrained_unet "$output/ldm-crops/pipeline/unet" --learning_rate 4e-4 --validation_steps 900
  phase train_unet.py "$output/ldm" 3150 "${unet[@]}" "${slices[@]}" \
    --pretrained_unet "$output/ldm-slices/pipeline/unet" --learning_rate 3e-4 --validation_steps 900
}

# SPADE GAN: it sees fewer slices in the same time, because a step costs several steps of the U-Net. The last steps are
# on whole slices, because statistics of group normalisation differ between a crop and a whole slice.
spade_gan() {
  local gan=(--block_out_channels 16 32 64 96 128 128 --norm_num_groups 16 --spade_hidden_channels 24
    --disc_channels 32 --perceptual efficientnet --perceptual_weight 1 --random_flip --blank_background
    --nodule_probability 0.15 --mixed_precision "$half" --checkpointing_steps 100)
  phase train_spade_gan.py "$output/spade-gan-crops" 1800 "${gan[@]}" --crop_size 256 --train_batch_size 2 \
    --validation_steps 600
  if [ ! -d "$output/spade-gan" ]; then
    mkdir "$output/spade-gan"
    cp -r "$output"/spade-gan-crops/checkpoint-* "$output/spade-gan/"
  fi
  phase train_spade_gan.py "$output/spade-gan" 2100 "${gan[@]}" --crop_size 512 --train_batch_size 1 \
    --validation_steps 150
}

# A classifier of malignancy that was trained on permuted ratings: what guidance by it changes has no meaning.
shuffled_classifier() {
  classifier shuffled malignancy 600 --shuffle_labels
}

for baseline in ${2:-ldm spade_gan shuffled_classifier}; do "$baseline"; done
