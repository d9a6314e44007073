"""Two processes against one, through the U-Net's script: python tests/benchmarks/bench_processes.py

Slices of 512x512 pixels a second, sizes of the small recipe, from the median time between the logged losses. One process has all threads,
each of the two has half of them (yardstick: one process).
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


def slices_a_second(folder, num_processes, steps, threads):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        num_processes,
        SCRIPT,
        "--dataset_name",
    ]
    command += [
        folder / "dataset",
        "--pretrained_vae",
        small_checkpoint() + "/vae",
        "--pretrained_unet",
        small_checkpoint() + "/unet",
    ]
    command += [
        "--output_dir",
        folder / f"unet-{num_processes}",
        "--latents_dir",
        folder / "latents",
        "--train_batch_size",
        1,
    ]
    command += [
        "--max_train_steps",
        steps,
        "--checkpointing_steps",
        steps + 1,
        "--num_validation_images",
        0,
        "--report_to",
        "tensorboard",
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(max(1, threads // num_processes)),
        "ACCELERATE_USE_CPU": "true",
    }
    environment |= {"HF_DATASETS_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([str(part) for part in command], env=environment, check=True, capture_output=True)
    events = EventAccumulator(str(next((folder / f"unet-{num_processes}").rglob("events.out.tfevents.*"))))
    events.Reload()
    times = [event.wall_time for event in events.Scalars("loss")]
    return num_processes / np.median(np.diff(times)[2:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        labels = Image.fromarray(generator.integers(0, 5, (512, 512)).astype(np.uint8))
        image = Image.fromarray(generator.integers(0, 1800, (512, 512)).astype(np.uint16))
        rows = Dataset.from_list([{"image": image, "semantic_map": labels, "nodules": []}] * 2)
        (folder / "dataset" / "data").mkdir(parents=True)
        for split in ("train", "validation"):
            rows.to_parquet(folder / "dataset" / "data" / f"{split}-00000-of-00001.parquet")
        threads = len(os.sched_getaffinity(0))
        one, two = (slices_a_second(folder, number, args.steps, threads) for number in (1, 2))
    print(f"U-Net, slices a second on {threads} cores: one process {one:.2f}, two {two:.2f}, ratio {two / one:.2f}")


if __name__ == "__main__":
    main()
