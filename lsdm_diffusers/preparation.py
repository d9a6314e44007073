"""Scans to parquet shards, in parallel, so that a run killed at any moment goes on where it was and ends with the same bytes.

A scan is finished when its record `scans/<name>.json` is there; the record is written after the shard `data/<split>-<name>.parquet`, and
both appear whole or not at all. What is made of a scan depends on that scan and the settings alone.
"""

import csv
import io
import json
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from .ct_dataset import write_atomically, write_shard
from .ct_dicom import DicomError, SliceFile
from .lidc.annotations import RATINGS
from .lidc.selection import SPLITS

LEFT_OUT_COLUMNS = ("patient_id", "scan", "slice_index", "file", "reason")


@dataclass(frozen=True)
class ScanJob:
    """What is to be made of one scan."""

    name: str  # of its files in the dataset
    scan: str  # its identifier in skipped.csv
    patient_id: str
    split: str
    columns: dict  # of the dataset, the same for each of its slices
    files: dict[int, SliceFile]  # of each chosen slice
    left_out: tuple[tuple[int, str], ...]  # (slice index, reason) of chosen slices without a file
    num_files: int  # of the series: with more files than last time, the scan is made again

    def shard(self, output_dir: Path) -> Path:
        return output_dir / "data" / f"{self.split}-{self.name}.parquet"

    def record(self, output_dir: Path) -> Path:
        return output_dir / "scans" / f"{self.name}.json"


class StageClock(Counter):
    """Seconds by stage."""

    @contextmanager
    def __call__(self, stage: str):
        start = time.perf_counter()
        try:
            yield
        finally:
            self[stage] += time.perf_counter() - start


def finished_record(job: ScanJob, output_dir: Path) -> dict | None:
    """The record of a scan that an earlier run finished, if its shard is there in full and no files came since."""
    path, shard = job.record(output_dir), job.shard(output_dir)
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    whole = shard.stat().st_size == record["bytes"] if shard.is_file() else record["rows"] == 0
    return record if whole and record["files"] == job.num_files else None


def prepare_scan(job: ScanJob, make_row: Callable[[ScanJob, int, StageClock], dict], output_dir: Path) -> tuple[dict, StageClock]:
    """Write the shard of a scan, then its record.

    Args:
        job: which slices are wanted.
        make_row: from (job, slice index, clock) to a row of the dataset; raises DicomError for a slice that is to be left out.
        output_dir: folder of the dataset.

    Returns:
        The record: counts, and (slice index, reason) of each chosen slice that is left out; and the seconds of each stage.
    """
    clock, rows, left_out = StageClock(), [], list(job.left_out)
    for index in sorted(job.files):
        try:
            rows.append(make_row(job, index, clock))
        except DicomError as error:
            left_out.append((index, str(error)))
    shard, sha256 = job.shard(output_dir), None
    if rows:
        with clock("encode"):
            sha256 = write_shard(shard, rows)
    nodules = {entry["nodule_id"]: entry for row in rows for entry in row["nodules"]}
    rated = [entry for entry in nodules.values() if entry["malignancy"] is not None]
    record = {
        "patient_id": job.patient_id,
        "scan": job.scan,
        "split": job.split,
        "files": job.num_files,
        "rows": len(rows),
        "rows_with_nodules": sum(bool(row["nodules"]) for row in rows),
        "nodules": len(nodules),
        "ratings": {name: dict(sorted(Counter(str(int(entry[name])) for entry in rated).items())) for name in RATINGS},
        "left_out": sorted(left_out),
        "bytes": shard.stat().st_size if rows else 0,
        "sha256": sha256,
    }
    write_atomically(job.record(output_dir), (json.dumps(record, indent=1) + "\n").encode())
    return record, clock


def _end_with_parent():
    """A worker whose parent was killed would wait for work forever."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def worker_pool(num_proc: int) -> ProcessPoolExecutor:
    """Spawned, not forked: pylidc's database connection and the libraries' threads do not survive a fork."""
    return ProcessPoolExecutor(num_proc, multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def begin_dataset(output_dir: Path, settings: dict) -> None:
    """Make the folder, or go on in it if it was begun with the same settings: going on with others would mix two datasets."""
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / "settings.json"
    if path.exists():
        before = json.loads(path.read_text())
        changed = [f"--{name} was {before.get(name)} and is {value}" for name, value in settings.items() if before.get(name) != value]
        if changed:
            raise SystemExit(f"--output_dir {output_dir} was begun with other choices: {', '.join(changed)}. Choose another folder.")
    else:
        write_atomically(path, (json.dumps(settings, indent=1) + "\n").encode())
    for part in output_dir.rglob(".*.part"):  # of a run that was killed while it wrote
        part.unlink()


def prepare_scans(jobs: list[ScanJob], make_row: Callable, output_dir: Path, executor: ProcessPoolExecutor, left_out: Iterable[tuple]) -> list[dict]:
    """Prepare the scans that no earlier run finished, then write `splits.json` and `skipped.csv`, and print what was made.

    Args:
        jobs: one for each scan.
        make_row: see `prepare_scan`; it travels to the workers.
        output_dir: folder of the dataset.
        executor: from `worker_pool`.
        left_out: rows of `skipped.csv`, see LEFT_OUT_COLUMNS, known before.

    Returns:
        The record of each scan that is finished, in the order of `jobs`.
    """
    records = {job.name: finished_record(job, output_dir) for job in jobs}
    done = sum(record is not None for record in records.values())
    left_out, clock, written = list(left_out), StageClock(), 0
    start = time.perf_counter()
    waiting = {executor.submit(prepare_scan, job, make_row, output_dir): job for job in jobs if records[job.name] is None}
    with tqdm(total=len(jobs), initial=done, desc="scans", unit="scan") as progress:
        for future in as_completed(waiting):
            job = waiting[future]
            try:
                records[job.name], of_stages = future.result()
                clock.update(of_stages)
                written += records[job.name]["rows"]
            except BrokenProcessPool:
                raise SystemExit("A worker process was killed, perhaps for lack of memory; start again with a smaller --num_proc to go on.") from None
            except Exception as error:  # one scan must not end the run; without a record it is tried again next time
                left_out.append((job.patient_id, job.scan, "", "", f"failed ({type(error).__name__}: {str(error)[:200]})"))
            progress.update()
    elapsed = time.perf_counter() - start

    finished = [records[job.name] for job in jobs if records[job.name] is not None]
    for record in finished:
        left_out += [(record["patient_id"], record["scan"], str(index), "", reason) for index, reason in record["left_out"]]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(LEFT_OUT_COLUMNS)
    writer.writerows(sorted(left_out, key=lambda entry: (entry[0], entry[1].zfill(4), entry[2].zfill(5), *entry[3:])))
    write_atomically(output_dir / "skipped.csv", table.getvalue().encode())
    splits = {split: sorted({record["patient_id"] for record in finished if record["split"] == split and record["rows"]}) for split in SPLITS}
    write_atomically(output_dir / "splits.json", (json.dumps(splits, indent=1) + "\n").encode())

    for split in SPLITS:
        of_split = [record for record in finished if record["split"] == split]
        rows, with_nodules = sum(record["rows"] for record in of_split), sum(record["rows_with_nodules"] for record in of_split)
        print(f"{split}: {len(splits[split])} patients, {rows} slices, {with_nodules} of them with nodules")
    print(f"{len(left_out)} scans, slices and files left out, see {output_dir / 'skipped.csv'}")
    if written:
        rates = ", ".join(f"{stage} {written / spent:.1f}" for stage, spent in clock.items() if spent)
        print(f"{written} slices in {elapsed:.1f} s; slices per second and core by stage: {rates}")
    return finished
