"""Compare two training processes with one, through the U-Net's script, at the sizes of the shipped checkpoint.

    python tests/benchmarks/bench_processes.py

Prints slices of 512x512 pixels a second, from the median time between the logged losses. One process has all threads,
each of two processes has half of them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from datasets import Dataset
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lsdm_diffusers import small_checkpoint

SCRIPT = Path(__file__).parents[2] / "training" / "train_unet.py"
SLICE_SIZE = 512
NUM_WARMUP_STEPS = 2  # the first steps are slower


def write_dataset(folder: Path) -> None:
    """Write a dataset of two slices of noise in each split."""
    generator = np.random.default_rng(0)
    labels = Image.fromarray(generator.integers(0, 5, (SLICE_SIZE, SLICE_SIZE)).astype(np.uint8))
    image = Image.fromarray(generator.integers(0, 1800, (SLICE_SIZE, SLICE_SIZE)).astype(np.uint16))
    rows = Dataset.from_list([{"image": image, "semantic_map": labels, "nodules": []}] * 2)
    (folder / "data").mkdir(parents=True)
    for split in ("train", "validation"):
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


def slices_per_second(folder: Path, num_processes: int, steps: int, threads: int) -> float:
    """Train for some steps and read the times of the losses from the tensorboard log."""
    output_dir, checkpoint = folder / f"unet-{num_processes}", Path(small_checkpoint())
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", num_processes]
    flags = ["--dataset_name", folder / "dataset", "--latents_dir", folder / "latents", "--output_dir", output_dir]
    flags += ["--pretrained_vae", checkpoint / "vae", "--pretrained_unet", checkpoint / "unet"]
    flags += ["--train_batch_size", 1, "--max_train_steps", steps, "--checkpointing_steps", steps + 1]
    flags += ["--num_validation_images", 0, "--report_to", "tensorboard"]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "HF_DATASETS_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(max(1, threads // num_processes)),
    }
    command = [str(part) for part in (sys.executable, *launcher, SCRIPT, *flags)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    events = EventAccumulator(str(next(output_dir.rglob("events.out.tfevents.*"))))
    events.Reload()
    times = [event.wall_time for event in events.Scalars("loss")]
    return float(num_processes / np.median(np.diff(times)[NUM_WARMUP_STEPS:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="optimiser steps of each run, at least 5")
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder / "dataset")
        one, two = (slices_per_second(folder, number, args.steps, threads) for number in (1, 2))
    print(f"U-Net, slices a second on {threads} cores: one process {one:.2f}, two {two:.2f}, ratio {two / one:.2f}")


if __name__ == "__main__":
    main()
