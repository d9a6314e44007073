"""Preparing a LIDC-IDRI scan against reading its pixels with pydicom alone, and two workers against one.

    python tests/benchmarks/bench_prepare.py --dicom_dir LIDC-IDRI --scan_id 12

All slices of the scan are prepared. The two ways alternate in one process; medians of ratios are printed. The
projection is for 20% of the slices of the 897 scans of the thesis.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pydicom

from lsdm_diffusers.data.lidc import plan_scans
from lsdm_diffusers.data.lidc.prepare import cached_scan_nodules, lidc_job, lidc_row
from lsdm_diffusers.data.preparation import worker_pool
from lsdm_diffusers.data.scan import MakeRow, ScanJob, StageClock, prepare_scan
from lsdm_diffusers.io.dicom import index_dicom

ARCHIVE_FILES = 244_000  # DICOM files of LIDC-IDRI: each has its header read
CORES = 16  # of the projection
PARTS = 8  # of the scan, so that there is work for two workers


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare_with_pydicom(job: ScanJob, make_row: MakeRow, repeats: int, folder: Path) -> float:
    """Print the time of preparing against that of reading alone; returns the seconds of preparing one slice."""
    paths = [file.path for file in job.files.values()]
    clock, alone, whole = StageClock(), [], []

    def prepare() -> None:
        cached_scan_nodules.cache_clear()
        clock.update(prepare_scan(job, make_row, folder)[1])

    prepare()
    clock.clear()
    for _ in range(repeats):
        alone.append(seconds(lambda: [pydicom.dcmread(path).pixel_array for path in paths]))
        whole.append(seconds(prepare))
    count = len(paths)
    ratio = np.median(np.array(whole) / np.array(alone))
    print(
        f"{count} slices: pydicom alone {np.median(alone):.2f} s, prepared {np.median(whole):.2f} s; "
        f"prepared / pydicom alone {ratio:.1f}"
    )
    rates = ", ".join(f"{stage} {repeats * count / spent:.0f}" for stage, spent in clock.items())
    print(f"slices per second and core: {rates}")
    return float(np.median(whole)) / count


def compare_workers(job: ScanJob, make_row: MakeRow, repeats: int, folder: Path) -> float:
    """The time of two workers over that of one, median."""
    indices = sorted(job.files)
    parts = []
    for part in range(PARTS):
        files = {index: job.files[index] for index in indices[part::PARTS]}
        parts.append(replace(job, name=f"{job.name}-{part}", files=files))
    prepare = partial(prepare_scan, make_row=make_row, output_dir=folder)

    def run(pool: ProcessPoolExecutor) -> list[object]:
        return list(pool.map(prepare, parts))

    with worker_pool(1) as one, worker_pool(2) as two:
        for pool in (one, two):
            list(pool.map(time.sleep, [1.0] * 4))  # start all workers
            run(pool)  # and warm them
        ratios = [seconds(lambda: run(two)) / seconds(lambda: run(one)) for _ in range(repeats)]
    return float(np.median(ratios))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dicom_dir", type=Path, required=True, help="folder of the DICOM files of the scan")
    parser.add_argument("--scan_id", type=int, default=12, help="pylidc's id (default 12: LIDC-IDRI-0001)")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement (default 3)")
    args = parser.parse_args()
    plan = next(plan for plan in plan_scans(slice_fraction=1.0)[0] if plan.scan_id == args.scan_id)
    job = lidc_job(plan, index_dicom(args.dicom_dir)[0][plan.series_instance_uid])
    make_row = partial(lidc_row, consensus=0.5, bit_depth=16)
    with tempfile.TemporaryDirectory() as folder:
        slice_seconds = compare_with_pydicom(job, make_row, args.repeats, Path(folder))
        chosen = sum(len(plan.chosen_slices) for plan in plan_scans()[0])
        header_seconds = seconds(lambda: index_dicom(args.dicom_dir)) / len(job.files)
        hours = (chosen * slice_seconds + ARCHIVE_FILES * header_seconds) / CORES / 3600
        print(
            f"projection for {chosen} slices and {ARCHIVE_FILES:,} headers on {CORES} cores, "
            f"without waiting for the disk: {hours:.2f} hours"
        )
        ratio = compare_workers(job, make_row, args.repeats, Path(folder))
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        print(f"two workers / one worker: {ratio:.2f} of the time; a worker's peak memory {memory:.2f} GiB")


if __name__ == "__main__":
    main()
