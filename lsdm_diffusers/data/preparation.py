"""Scans to a dataset, in parallel and safe to kill: the next run goes on and ends with the same bytes."""

import csv
import io
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from ..io.atomic_write import write_atomically
from ..io.dicom import describe_error
from .dataset import SPLITS
from .scan import MakeRow, ScanJob, ScanRecord, StageClock, is_finished, prepare_scan, read_record
from .selection import check_slice_fraction, check_split_fractions


class Omission(NamedTuple):
    """A row of `skipped.csv`: a scan, slice or file that is left out. What does not apply is empty."""

    patient_id: str
    scan: str
    slice_index: str
    file: str
    reason: str


@dataclass(frozen=True)
class PreparedDataset:
    """What a run made, and what the folder holds."""

    output_dir: Path
    records: list[ScanRecord]  # of each scan in the folder, in the order of their names
    num_left_out: int  # rows of skipped.csv
    rows_written: int  # by this run
    seconds: float
    seconds_by_stage: StageClock  # of all workers together

    def __str__(self) -> str:
        lines = []
        for split in SPLITS:
            records = [record for record in self.records if record["split"] == split]
            patients = len({record["patient_id"] for record in records if record["rows"]})
            rows = sum(record["rows"] for record in records)
            with_nodules = sum(record["rows_with_nodules"] for record in records)
            lines.append(f"{split}: {patients} patients, {rows} slices, {with_nodules} of them with nodules")
        turned = sum(len(indices) for record in self.records for indices in record.get("turned", {}).values())
        if turned:
            lines.append(
                f"{turned} slices turned to the standard orientation by their headers, see `turned` in "
                f"{self.output_dir / 'scans'}"
            )
        skipped = self.output_dir / "skipped.csv"
        lines.append(f"{self.num_left_out} scans, slices and files left out, see {skipped}")
        if self.rows_written:
            rates = ", ".join(
                f"{stage} {self.rows_written / seconds:.1f}"
                for stage, seconds in self.seconds_by_stage.items()
                if seconds
            )
            lines.append(
                f"{self.rows_written} slices in {self.seconds:.1f} s; slices per second and core by stage: {rates}"
            )
        return "\n".join(lines)


class PreparationError(RuntimeError):
    """Scans failed, or the dataset has no rows.

    Attributes:
        prepared: what was made all the same.
    """

    def __init__(self, message: str, prepared: PreparedDataset):
        super().__init__(message)
        self.prepared = prepared


def check_preparation(slice_fraction: float, validation_fraction: float, test_fraction: float, num_proc: int) -> None:
    """Check what every script takes that prepares a dataset.

    Args:
        slice_fraction: share of the slices of each scan, above 0 and up to 1.
        validation_fraction: share of the patients.
        test_fraction: share of the patients; both shares are at least 0, their sum is below 1.
        num_proc: number of workers, 1 or more.

    Raises:
        ValueError: for a value outside these.
    """
    check_slice_fraction(slice_fraction)
    check_split_fractions(validation_fraction, test_fraction)
    if num_proc < 1:
        raise ValueError(f"`num_proc` is {num_proc}, but 1 or more are needed.")


def _end_with_parent() -> None:
    """End this worker when its parent is killed: otherwise it would wait for work forever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def worker_pool(num_proc: int) -> ProcessPoolExecutor:
    """A pool of `num_proc` spawned workers.

    They are not forked: pylidc's database connection and the threads of libraries do not survive a fork.
    """
    return ProcessPoolExecutor(num_proc, multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def begin_dataset(output_dir: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or go on in it if it was begun with the same settings; others would mix two datasets.

    Args:
        output_dir: folder of the dataset.
        settings: by the name of the argument, what rows depend on.

    Raises:
        ValueError: if the folder was begun with other settings.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / "settings.json"
    if path.exists():
        before = json.loads(path.read_text())
        changed = [
            f"`{name}` was {before.get(name)} and is {value}"
            for name, value in settings.items()
            if before.get(name) != value
        ]
        if changed:
            raise ValueError(
                f"`output_dir` {output_dir} was begun with other settings: {', '.join(changed)}. "
                "Choose another folder."
            )
    else:
        write_atomically(path, (json.dumps(settings, indent=1) + "\n").encode())
    for part in output_dir.rglob(".*.part"):  # of a run that was killed while it wrote
        part.unlink(missing_ok=True)


Prepared = Future[tuple[ScanRecord, StageClock]]


def _in_parallel(
    jobs: list[ScanJob], make_row: MakeRow, output_dir: Path, executor: ProcessPoolExecutor
) -> Iterator[tuple[ScanJob, Prepared]]:
    """Each job with its ended future. If a worker dies, the jobs left go on one by one, each in a new process."""
    waiting: dict[Prepared, ScanJob] = {executor.submit(prepare_scan, job, make_row, output_dir): job for job in jobs}
    try:
        for future in as_completed(list(waiting)):
            if isinstance(future.exception(), BrokenProcessPool):
                break
            yield waiting.pop(future), future
        for job in waiting.values():
            with worker_pool(1) as single:
                future = single.submit(prepare_scan, job, make_row, output_dir)
                wait([future])
            yield job, future
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def prepare_scans(
    jobs: list[ScanJob],
    make_row: MakeRow,
    output_dir: Path,
    executor: ProcessPoolExecutor,
    left_out: Iterable[Omission],
) -> PreparedDataset:
    """Prepare the scans that no earlier run finished, then write `splits.json` and `skipped.csv`.

    Args:
        jobs: one for each scan.
        make_row: see `prepare_scan`; it is pickled for the workers.
        output_dir: folder of the dataset.
        executor: from `worker_pool`; shut down at the end.
        left_out: rows of `skipped.csv` that are known before.

    Returns:
        What was made. Records of earlier runs on other folders of DICOM are among its records.

    Raises:
        PreparationError: at the end, if a scan failed in a way that another run may mend, or the dataset has no rows.
    """
    unfinished = [job for job in jobs if not is_finished(job, output_dir)]
    clock, rows_written, failed = StageClock(), 0, []
    start = time.perf_counter()
    with tqdm(total=len(jobs), initial=len(jobs) - len(unfinished), desc="scans", unit="scan") as progress:
        for job, future in _in_parallel(unfinished, make_row, output_dir, executor):
            error = future.exception()
            if error is None:
                record, job_clock = future.result()
                clock.update(job_clock)
                rows_written += record["rows"]
            else:  # one scan must not end the run; without a record the next run tries it again
                if isinstance(error, BrokenProcessPool):
                    reason = "its worker was killed, perhaps for lack of memory"
                else:
                    reason = describe_error(error)
                failed.append(Omission(job.patient_id, job.scan, "", "", f"failed ({reason})"))
            progress.update()
    seconds = time.perf_counter() - start

    records = _read_records(output_dir)
    num_left_out = _write_lists(output_dir, records, [*left_out, *failed])
    prepared = PreparedDataset(output_dir, records, num_left_out, rows_written, seconds, clock)
    if failed:
        raise PreparationError(
            f"{len(failed)} scans failed, see skipped.csv. "
            "Run the command again: it retries these scans and redoes nothing else.",
            prepared,
        )
    if not any(record["rows"] for record in records):
        raise PreparationError(
            f"{output_dir} has no slices: the DICOM files gave none. skipped.csv says why.", prepared
        )
    return prepared


def _read_records(output_dir: Path) -> list[ScanRecord]:
    """The records of all finished scans in the folder, by name; shards without a record are removed."""
    records, shards = [], set()
    for path in sorted((output_dir / "scans").glob("*.json")):
        record = read_record(path, output_dir)
        if record is not None:
            records.append(record)
            if record["rows"]:
                shards.add(f"{record['split']}-{path.stem}.parquet")
    for shard in (output_dir / "data").glob("*.parquet"):
        if shard.name not in shards:
            shard.unlink()
    return records


def _write_lists(output_dir: Path, records: list[ScanRecord], left_out: list[Omission]) -> int:
    """Write `skipped.csv` and `splits.json`; returns the number of rows of the first."""
    omissions = list(left_out)
    for record in records:
        for index, reason in record["left_out"]:
            omissions.append(Omission(record["patient_id"], record["scan"], str(index), "", reason))
    omissions.sort(key=lambda row: (row.patient_id, row.scan.zfill(4), row.slice_index.zfill(5), row.file, row.reason))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(Omission._fields)
    writer.writerows(omissions)
    # names of files need not be text
    write_atomically(output_dir / "skipped.csv", table.getvalue().encode("utf-8", "backslashreplace"))

    splits = {}
    for split in SPLITS:
        splits[split] = sorted(
            {record["patient_id"] for record in records if record["split"] == split and record["rows"]}
        )
    write_atomically(output_dir / "splits.json", (json.dumps(splits, indent=1) + "\n").encode())
    return len(omissions)
