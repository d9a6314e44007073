# Sourced by the recipe's scripts: `phase` trains one phase of a run in $output, unless it is done.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)} # accelerate would take one thread on a CPU
export ACCELERATE_MIXED_PRECISION=no
half=$(grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo && echo bf16 || echo no) # two thirds of the time where the CPU has it
training=$(dirname "${BASH_SOURCE[0]}")/../..
flags=(--dataset_name "$output/data" --resume_from_checkpoint latest ${FLAGS:-})

phase() { # SCRIPT FOLDER STEPS FLAG...
  local script=$1 folder=$2 steps=$3
  shift 3
  [ -f "$folder/done" ] && return
  echo "== $folder: $script, ${STEPS:-$steps} steps"
  accelerate launch "$training/$script" "${flags[@]}" --output_dir "$folder" --max_train_steps "${STEPS:-$steps}" "$@"
  touch "$folder/done"
}
