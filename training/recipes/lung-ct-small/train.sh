#!/usr/bin/env bash
# The shipped checkpoint from the public CT, start to end; run again after an interruption, it goes on.
#     bash training/recipes/lung-ct-small/train.sh DATA_DIR OUTPUT_DIR
# A rehearsal of every phase: STEPS=2 FLAGS="--max_train_samples 40" bash training/recipes/lung-ct-small/train.sh DATA_DIR OUTPUT_DIR
set -euo pipefail
data_dir=$1 output=$2
here=$(dirname "$0")
source "$here/phase.sh"

[ -f "$output/data/splits.json" ] || python "$here/prepare_dataset.py" --data_dir "$data_dir" --output_dir "$output/data"

# crops, more of them, then large ones for the decoder alone: group norms see a whole slice otherwise than a crop
vae=(--perceptual none --difference_weight 1)
phase train_autoencoder.py "$output/vae-first" 1800 "${vae[@]}" --block_out_channels 24 48 96 --norm_num_groups 12 --checkpointing_steps 300 \
  --validation_steps 600
phase train_autoencoder.py "$output/vae-crops" 2500 "${vae[@]}" --pretrained_vae "$output/vae-first" --learning_rate 5e-4
phase train_autoencoder.py "$output/vae" 400 "${vae[@]}" --pretrained_vae "$output/vae-crops" --freeze_encoder --crop_size 320 \
  --train_batch_size 1 --learning_rate 3e-4 --checkpointing_steps 50 --validation_steps 100

# crops first, then whole slices, whose view makes the two lungs agree
unet=(--pretrained_vae "$output/vae" --latents_dir "$output/latents" --random_flip --blank_background --prediction_type v_prediction
  --nodule_weight 4 --ema_max_decay 0.999 --mixed_precision "$half")
slices=(--crop_size 512 --train_batch_size 1 --lr_scheduler cosine --lr_warmup_steps 30 --nodule_probability 0.1)
phase train_unet.py "$output/unet-crops" 3000 "${unet[@]}" --crop_size 256 --train_batch_size 2 --learning_rate 6e-4 --nodule_probability 0.15 \
  --block_out_channels 32 64 128 192 --attention_levels 0 0 0 1 --layers_per_block 1 --norm_num_groups 16 --attention_head_dim 16 \
  --spade_hidden_channels 24 --validation_steps 1500
phase train_unet.py "$output/unet-slices" 1500 "${unet[@]}" "${slices[@]}" --pretrained_unet "$output/unet-crops/pipeline/unet" \
  --learning_rate 4e-4 --validation_steps 750
phase train_unet.py "$output/unet-more" 2800 "${unet[@]}" "${slices[@]}" --pretrained_unet "$output/unet-slices/pipeline/unet" \
  --learning_rate 3e-4 --validation_steps 700
phase train_unet.py "$output/unet" 2000 "${unet[@]}" "${slices[@]}" --pretrained_unet "$output/unet-more/pipeline/unet" \
  --learning_rate 4e-4 --validation_steps 500

classifier malignancy-first malignancy 1500
first=(--pretrained_classifier "$output/malignancy-first_classifier")
for feature in spiculation texture lobulation; do # what tells malignancy tells much of them
  classifier "$feature" "$feature" "$([ $feature = texture ] && echo 800 || echo 600)" "${first[@]}"
done
# then by size and shape: small dense nodules are benign, and by density guidance would make benign ones grow
classifier malignancy malignancy 300 "${first[@]}" --augmentation_views 16 --contrast_jitter 0.5 1.5 --sharpness_jitter 1 --label_smoothing 0.1

python "$here/assemble.py" --training_dir "$output" --output_dir "$output/lung-ct-small"
