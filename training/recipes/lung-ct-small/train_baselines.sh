#!/usr/bin/env bash
# The baselines that stand beside the shipped checkpoint, on its data, after train.sh; run again after an interruption, it goes on.
#     bash training/recipes/lung-ct-small/train_baselines.sh OUTPUT_DIR [ldm | spade_gan | shuffled_classifier]
# $output/data and $output/vae are those of train.sh; the results are $output/ldm/pipeline, $output/spade-gan/pipeline
# and $output/shuffled_classifier, the control of training/evaluate_control.py.
set -euo pipefail
output=$1
source "$(dirname "$0")/phase.sh"

ldm() { # LDM: the same U-Net without SPADE, told the map by E(m) alone; as many crops and slices
  local unet=(--pretrained_vae "$output/vae" --latents_dir "$output/latents" --random_flip --blank_background --prediction_type v_prediction
    --nodule_weight 4 --ema_max_decay 0.999 --mixed_precision "$half")
  phase train_unet.py "$output/ldm-crops" 3000 "${unet[@]}" --spade_blocks none --crop_size 256 --train_batch_size 2 --learning_rate 6e-4 \
    --nodule_probability 0.15 --block_out_channels 32 64 128 192 --attention_levels 0 0 0 1 --layers_per_block 1 --norm_num_groups 16 \
    --attention_head_dim 16 --validation_steps 1500
  local slices=(--crop_size 512 --train_batch_size 1 --lr_scheduler cosine --lr_warmup_steps 30 --nodule_probability 0.1)
  phase train_unet.py "$output/ldm-slices" 3150 "${unet[@]}" "${slices[@]}" --pretrained_unet "$output/ldm-crops/pipeline/unet" \
    --learning_rate 4e-4 --validation_steps 900
  phase train_unet.py "$output/ldm" 3150 "${unet[@]}" "${slices[@]}" --pretrained_unet "$output/ldm-slices/pipeline/unet" \
    --learning_rate 3e-4 --validation_steps 900
}

spade_gan() { # a step of the GAN costs several of the U-Net's: it sees fewer slices in the same time
  local gan=(--block_out_channels 16 32 64 96 128 128 --norm_num_groups 16 --spade_hidden_channels 24 --disc_channels 32 --perceptual efficientnet
    --perceptual_weight 1 --random_flip --blank_background --nodule_probability 0.15 --mixed_precision "$half" --checkpointing_steps 100)
  phase train_spade_gan.py "$output/spade-gan-crops" 1800 "${gan[@]}" --crop_size 256 --train_batch_size 2 --validation_steps 600
  # group norms see a whole slice otherwise than a crop: the last steps are on whole slices
  [ -d "$output/spade-gan" ] || { mkdir "$output/spade-gan" && cp -r "$output"/spade-gan-crops/checkpoint-* "$output/spade-gan/"; }
  phase train_spade_gan.py "$output/spade-gan" 2100 "${gan[@]}" --crop_size 512 --train_batch_size 1 --validation_steps 150
}

shuffled_classifier() { # malignancy's, told nothing
  classifier shuffled malignancy 600 --shuffle_labels
}

for baseline in ${2:-ldm spade_gan shuffled_classifier}; do "$baseline"; done
