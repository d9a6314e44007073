"""What an evaluation costs, through its script: python tests/benchmarks/bench_evaluate.py

Images a second that each group of metrics takes, peak memory, and slices of 512x512 pixels that two processes make in the time one makes one
(yardstick: one process with all threads). Making images is the first run of the command less its second, which finds them all there.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from datasets import Dataset
from PIL import Image

from lsdm_diffusers import find_nodules, small_checkpoint
from lsdm_diffusers.checkpoint import example_map

SCRIPT = Path(__file__).parents[2] / "training" / "evaluate.py"


def run_seconds(folder, num_processes, args, threads):
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
        "--pretrained_model_name_or_path",
        small_checkpoint(),
        "--feature_extractor",
        "efficientnet",
    ]
    command += [
        "--num_inference_steps",
        args.num_inference_steps,
        "--output_dir",
        folder / f"evaluated-{num_processes}",
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(max(1, threads // num_processes)),
        "ACCELERATE_USE_CPU": "true",
    }
    environment |= {"HF_DATASETS_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(errors)
    return time.perf_counter() - start, usage.ru_maxrss / 2**20


def speeds(folder):
    return json.loads((folder / "evaluated-1" / "results.json").read_text())["images_a_second"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_slices", type=int, default=8)
    parser.add_argument("--num_inference_steps", type=int, default=10)
    args = parser.parse_args()
    labels = np.asarray(Image.open(example_map()))
    nodules = [{"centroid_yx": list(nodule.centroid_yx), "malignancy": 4.0} for nodule in find_nodules(labels)]
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = [
            Image.fromarray(generator.integers(0, 1800, labels.shape).astype(np.uint16))
            for _ in range(args.num_slices)
        ]
        common = {
            "semantic_map": Image.fromarray(labels),
            "nodules": nodules,
            "patient_id": "p",
            "pixel_spacing_mm": 0.7,
        }
        rows = Dataset.from_list([{"image": image, **common} for image in images])
        (folder / "dataset" / "data").mkdir(parents=True)
        for split in ("train", "validation"):
            rows.to_parquet(folder / "dataset" / "data" / f"{split}-00000-of-00001.parquet")
        threads = len(os.sched_getaffinity(0))
        rates, speed = {}, {}
        for number in (1, 2):
            first, memory = run_seconds(folder, number, args, threads)
            speed = speeds(folder) | speed
            again, _ = run_seconds(folder, number, args, threads)
            speed = speeds(folder) | speed  # features come from their cache now
            rates[number] = args.num_slices / (first - again)
            print(
                f"{number} process(es): {rates[number]:.3f} slices a second of {args.num_inference_steps} steps, peak memory {memory:.2f} GiB each"
            )
    print("metrics, images a second: " + ", ".join(f"{name} {rate:.1f}" for name, rate in speed.items()))
    print(f"two processes / one {rates[2] / rates[1]:.2f}")


if __name__ == "__main__":
    main()
