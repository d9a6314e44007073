# Sourced by the scripts of the recipe, after they have set $output:
# `phase` trains one phase of a run, unless it is finished already; `classifier` is a phase that trains a classifier.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)} # accelerate would take one thread on a CPU
export ACCELERATE_MIXED_PRECISION=no
# Keep freed memory: glibc would give large tensors back at once, and the kernel would clear their pages each time.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=$((16 << 30)) MALLOC_TOP_PAD_=$((256 << 20))
# bfloat16 takes two thirds of the time where the CPU has instructions for it, and far more time where it has none
half=$(grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo && echo bf16 || echo no)
training=$(dirname "${BASH_SOURCE[0]}")/../..
flags=(--dataset_name "$output/data" --resume_from_checkpoint latest ${FLAGS:-})

phase() { # SCRIPT FOLDER STEPS FLAG...
  local script=$1 folder=$2 steps=${STEPS:-$3}
  shift 3
  [ -f "$folder/done" ] && return
  echo "== $folder: $script, $steps steps"
  accelerate launch "$training/$script" "${flags[@]}" --output_dir "$folder" --max_train_steps "$steps" "$@"
  touch "$folder/done"
}

# Group normalisation removes absolute density, by which ground glass differs from solid and calcified from soft
# nodules. --hu_thresholds gives it back.
classifier() { # NAME FEATURE STEPS FLAG...
  local name=$1 feature=$2 steps=$3
  shift 3
  phase train_classifier.py "$output/${name}_classifier" "$steps" --pretrained_vae "$output/vae" \
    --feature "$feature" --block_out_channels 12 24 48 96 --hu_thresholds -700 -400 -100 100 300 \
    --train_batch_size 32 --learning_rate 1e-3 --ema_max_decay 0.995 --label_balance 0.5 --timestep_power 2 \
    --checkpointing_steps 100 --validation_steps 300 --mixed_precision "$half" "$@"
}
