"""Slices a second of `lsdm-synthesize`: one process, one of Ray's workers, two of them.

    python tests/benchmarks/bench_synthesize.py --num_slices 16

The yardstick is a bare loop that calls the pipeline on the same maps and writes nothing. Start-up is left out: each
way makes one shard before its clock starts. Prints the ratios.
"""

import argparse
import tempfile
import time

from lsdm_diffusers import small_checkpoint
from lsdm_diffusers.synthesis.job import Job, ShardWorker, run_on_ray
from lsdm_diffusers.synthesis.rows import make_row


def job_in(folder: str, num_slices: int, steps: int) -> Job:
    recipe = {"num_slices": num_slices + 2, "rows_per_shard": 1, "num_inference_steps": steps}
    return Job(folder, recipe, None, "train", 0.7, str(small_checkpoint()), "cpu", 1, False)


def seconds_on_ray(workers: int, num_slices: int, steps: int) -> float:
    """From the first finished shard of each worker to the last one."""
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        shards = list(range(num_slices + workers))
        run_on_ray(
            job_in(folder, num_slices, steps), shards, workers, 0, None, lambda _: times.append(time.perf_counter())
        )
    return times[-1] - times[workers - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_slices", type=int, default=16, help="of each way (default 16)")
    parser.add_argument("--num_inference_steps", type=int, default=25, help="denoising steps (default 25)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        worker = ShardWorker(job_in(folder, args.num_slices, args.num_inference_steps))
        worker.write(0)
        shards = range(1, args.num_slices + 1)
        bare = written = 0.0
        for shard in shards:  # one after the other, so that a machine that slows down slows both
            start = time.perf_counter()
            make_row(worker.pipe, worker.recipe, worker.maps, shard)
            middle = time.perf_counter()
            worker.write(shard)
            bare, written = bare + middle - start, written + time.perf_counter() - middle
    print(f"bare loop: {args.num_slices / bare:.3f} slices/s")
    print(f"one process: {args.num_slices / written:.3f} slices/s, {bare / written:.2f} of the bare loop")
    for workers in (1, 2):
        seconds = seconds_on_ray(workers, args.num_slices, args.num_inference_steps)
        rate = args.num_slices / seconds
        print(f"Ray, {workers} worker(s): {rate:.3f} slices/s, {bare / seconds:.2f} of the bare loop")


if __name__ == "__main__":
    main()
