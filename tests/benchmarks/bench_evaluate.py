"""What an evaluation costs, measured through its script.

    python tests/benchmarks/bench_evaluate.py

Prints images a second of each group of metrics, peak memory, and how many slices of 512x512 pixels two processes make
in the time in which one process makes one; the yardstick is one process with all threads. The time of making images is
that of the command's first run minus that of its second run, which finds all images.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from PIL import Image

from lsdm_diffusers import find_nodules, small_checkpoint
from lsdm_diffusers.checkpoint import example_map
from lsdm_diffusers.hounsfield import HU_RANGE

SCRIPT = Path(__file__).parents[2] / "training" / "evaluate.py"
KIB_PER_GIB = 2**20


class Cost(NamedTuple):
    """Wall time of a run, and the largest resident memory of one of its processes."""

    seconds: float
    peak_gib: float


def write_dataset(folder: Path, num_slices: int) -> None:
    """Slices of noise, each with the map and the nodules of the shipped example."""
    labels = np.asarray(Image.open(example_map()))
    nodules = [{"centroid_yx": list(nodule.centroid_yx), "malignancy": 4.0} for nodule in find_nodules(labels)]
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(num_slices):
        noise = generator.integers(0, HU_RANGE, labels.shape).astype(np.uint16)
        rows.append(
            {
                "image": Image.fromarray(noise),
                "semantic_map": Image.fromarray(labels),
                "nodules": nodules,
                "patient_id": "p",
                "pixel_spacing_mm": 0.7,
            }
        )
    (folder / "data").mkdir(parents=True)
    for split in ("train", "validation"):
        Dataset.from_list(rows).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


def run_evaluation(folder: Path, num_processes: int, num_inference_steps: int, num_threads: int) -> Cost:
    """Run the script on the folder's dataset; each process gets its share of the threads."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", num_processes]
    flags = {
        "--dataset_name": folder / "dataset",
        "--pretrained_model_name_or_path": small_checkpoint(),
        "--feature_extractor": "efficientnet",
        "--num_inference_steps": num_inference_steps,
        "--output_dir": output_folder(folder, num_processes),
    }
    command = [*launcher, SCRIPT]
    for flag, value in flags.items():
        command += [flag, value]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(max(1, num_threads // num_processes)),
        "ACCELERATE_USE_CPU": "true",
        "HF_DATASETS_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(errors)
    return Cost(time.perf_counter() - start, usage.ru_maxrss / KIB_PER_GIB)


def output_folder(folder: Path, num_processes: int) -> Path:
    return folder / f"evaluated-{num_processes}"


def metric_speeds(folder: Path) -> dict[str, float]:
    """Images a second of each group of metrics, as the run of one process wrote them."""
    return json.loads((output_folder(folder, 1) / "results.json").read_text())["images_a_second"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_slices", type=int, default=8, help="number of slices of the dataset")
    parser.add_argument("--num_inference_steps", type=int, default=10, help="number of denoising steps")
    args = parser.parse_args()
    num_threads = len(os.sched_getaffinity(0))
    slices_a_second, speeds = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder / "dataset", args.num_slices)
        for num_processes in (1, 2):
            first = run_evaluation(folder, num_processes, args.num_inference_steps, num_threads)
            speeds = metric_speeds(folder) | speeds
            second = run_evaluation(folder, num_processes, args.num_inference_steps, num_threads)
            speeds = metric_speeds(folder) | speeds  # the second run reads the features from their cache
            slices_a_second[num_processes] = args.num_slices / (first.seconds - second.seconds)
            print(
                f"{num_processes} process(es): {slices_a_second[num_processes]:.3f} slices a second of "
                f"{args.num_inference_steps} steps, peak memory {first.peak_gib:.2f} GiB each"
            )
    print("metrics, images a second: " + ", ".join(f"{step} {speed:.1f}" for step, speed in speeds.items()))
    print(f"two processes / one {slices_a_second[2] / slices_a_second[1]:.2f}")


if __name__ == "__main__":
    main()
