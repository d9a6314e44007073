"""One scan to a parquet shard and its record.

A scan is finished when its record `scans/<name>.json` exists. The record is written after the shard
`data/<split>-<name>.parquet`, and both are written whole or not at all. What is made of a scan depends on that scan
and the settings alone.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from ..io.atomic_write import write_atomically
from ..io.dicom import DicomError, SliceFile, describe_error
from ..nodule_features import NODULE_FEATURES
from .dataset import write_shard
from .file_choice import OmittedFile


class OmittedSlice(NamedTuple):
    """A chosen slice that is left out."""

    slice_index: int
    reason: str


@dataclass(frozen=True)
class ScanJob:
    """What to make of one scan."""

    name: str  # of its files in the dataset
    scan: str  # its identifier in skipped.csv
    patient_id: str
    split: str
    columns: dict[str, Any]  # of the dataset, the same for each of its slices
    files: dict[int, SliceFile]  # by slice index, of each chosen slice
    left_out: tuple[OmittedSlice, ...]  # chosen slices without a file
    signature: str  # of its files: the scan is made again when it has changed
    passed_over: tuple[OmittedFile, ...] = ()  # files that give no slice where another one does

    def shard(self, output_dir: Path) -> Path:
        return output_dir / "data" / f"{self.split}-{self.name}.parquet"

    def record(self, output_dir: Path) -> Path:
        return output_dir / "scans" / f"{self.name}.json"


class ScanRecord(TypedDict):
    """What was made of one scan: the content of `scans/<name>.json`."""

    patient_id: str
    scan: str
    split: str
    signature: str
    rows: int
    rows_with_nodules: int
    nodules: int
    ratings: dict[str, dict[str, int]]  # feature -> rating "1".."5" -> number of nodules
    left_out: list[OmittedSlice]
    turned: dict[str, list[int]]  # how slices were turned to the standard orientation -> their indices
    bytes: int  # of the shard
    sha256: str | None  # of the shard; None without rows


class StageClock(Counter[str]):
    """Seconds by stage."""

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self[stage] += time.perf_counter() - start  # type: ignore[assignment]  # a Counter also adds seconds


MakeRow = Callable[[ScanJob, int, StageClock], dict[str, Any]]


def scan_signature(files: Iterable[SliceFile], *more: bytes) -> str:
    """A hash that changes when a file of a scan is added, replaced or mended, and not when the folder moves.

    Args:
        files: of the scan.
        more: contents of further files that its rows depend on.
    """
    stamps: set[tuple[str | int, ...]] = set()  # a copied series has each file twice
    for file in files:
        turned = () if file.orientation.is_standard else (str(file.orientation),)
        frame = () if file.frame is None else (file.frame,)
        stamps.add((Path(file.path).name, file.sop_instance_uid, file.size, *turned, *frame))
    digest = hashlib.sha256(repr(sorted(stamps, key=repr)).encode("utf-8", "backslashreplace"))
    for content in more:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def read_record(path: Path, output_dir: Path) -> ScanRecord | None:
    """Read a record; None if its shard is not there in full."""
    record: ScanRecord = json.loads(path.read_text())
    shard = output_dir / "data" / f"{record['split']}-{path.stem}.parquet"
    complete = shard.stat().st_size == record["bytes"] if shard.is_file() else record["rows"] == 0
    return record if complete else None


def is_finished(job: ScanJob, output_dir: Path) -> bool:
    """Whether an earlier run finished the scan from the same files; slices that could not be read are tried again."""
    path = job.record(output_dir)
    record = read_record(path, output_dir) if path.is_file() else None
    if record is None or record["signature"] != job.signature:
        return False
    return not any(reason.startswith(("unreadable", "failed")) for _, reason in record["left_out"])


def prepare_scan(job: ScanJob, make_row: MakeRow, output_dir: Path) -> tuple[ScanRecord, StageClock]:
    """Write the shard of a scan, then its record.

    Args:
        job: which slices to take.
        make_row: from (job, slice index, clock) to a row of the dataset; raises DicomError for a slice to leave out.
        output_dir: folder of the dataset.

    Returns:
        The record, and the seconds of each stage.
    """
    clock, left_out = StageClock(), list(job.left_out)
    nodules_by_row: list[list[dict[str, Any]]] = []
    turned: dict[str, list[int]] = {}

    def rows() -> Iterator[dict[str, Any]]:
        for index in sorted(job.files):
            try:
                row = make_row(job, index, clock)
            except DicomError as error:
                left_out.append(OmittedSlice(index, str(error)))
            except Exception as error:  # one slice must not cost the others
                left_out.append(OmittedSlice(index, f"failed ({describe_error(error)})"))
            else:
                nodules_by_row.append(row["nodules"])
                if not job.files[index].orientation.is_standard:
                    turned.setdefault(str(job.files[index].orientation), []).append(index)
                yield row

    shard = job.shard(output_dir)
    sha256 = write_shard(shard, rows())
    for other in shard.parent.glob(f"*-{job.name}.parquet"):
        if other != shard:  # the patient was in another split before
            other.unlink()
    nodules = {}
    for entries in nodules_by_row:
        nodules.update({entry["nodule_id"]: entry for entry in entries})
    record: ScanRecord = {
        "patient_id": job.patient_id,
        "scan": job.scan,
        "split": job.split,
        "signature": job.signature,
        "rows": len(nodules_by_row),
        "rows_with_nodules": sum(map(bool, nodules_by_row)),
        "nodules": len(nodules),
        "ratings": _count_ratings(nodules.values()),
        "left_out": sorted(left_out),
        "turned": turned,
        "bytes": shard.stat().st_size if nodules_by_row else 0,
        "sha256": sha256,
    }
    write_atomically(job.record(output_dir), (json.dumps(record, indent=1) + "\n").encode())
    return record, clock


def _count_ratings(nodules: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Number of rated nodules by feature and rating."""
    rated = [nodule for nodule in nodules if nodule["malignancy"] is not None]
    counts = {}
    for name in NODULE_FEATURES:
        counts[name] = dict(sorted(Counter(str(int(nodule[name])) for nodule in rated).items()))
    return counts
