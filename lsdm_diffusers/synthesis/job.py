"""The work on a set: shards that appear whole or not at all, on one process or on Ray's workers.

A shard is the unit of work and of progress. It depends on its number, the recipe, the maps and the weights alone, so
the same set comes out of any number of workers and interruptions.
"""

import csv
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..command_line import load_pipeline
from ..data.dataset import write_shard
from ..io.atomic_write import write_atomically
from .maps import MapSource, open_maps
from .recipe import Recipe, make_recipe
from .rows import SET_FEATURES, RowFailed, make_row

JOB_FILE = "_job.json"
MAX_TRIES = 5  # of a shard whose worker was lost


class ShardResult(NamedTuple):
    """What was made of a shard."""

    shard: int
    rows: int
    missed: int  # rows with a nodule that is not seen
    failed: tuple[tuple[int, str], ...]  # rows that were left out, and why


class Job(NamedTuple):
    """Everything that a worker needs to make a shard; plain values, so that it can be sent.

    Args:
        output_dir: of the set.
        recipe: values of the recipe.
        maps, split, pixel_spacing: of `open_maps`.
        checkpoint: folder or Hub id of the pipeline.
        device: of the pipeline.
        threads: of torch in a worker; their number changes the last bits of a slice.
        strict: leave out slices that do not show a nodule of their map.
    """

    output_dir: str
    recipe: dict[str, Any]
    maps: str | None
    split: str
    pixel_spacing: float
    checkpoint: str
    device: str
    threads: int
    strict: bool

    @property
    def checked_recipe(self) -> Recipe:
        return make_recipe(self.recipe)

    def shard_path(self, shard: int) -> Path:
        recipe = self.checked_recipe
        name = f"{recipe.split_of(shard)}-{shard:05d}-of-{recipe.num_shards:05d}.parquet"
        return Path(self.output_dir) / "data" / name

    def record_path(self, shard: int) -> Path:
        return Path(self.output_dir) / "_parts" / f"{shard:05d}.json"


class ShardWorker:
    """Holds a loaded pipeline and writes shards."""

    def __init__(self, job: Job):
        torch.set_num_threads(job.threads)
        self.job, self.recipe = job, job.checked_recipe
        self.maps: MapSource = open_maps(job.maps, job.split, job.pixel_spacing)
        self.pipe: Any = load_pipeline(job.checkpoint, None, job.device)
        self.pipe.set_progress_bar_config(disable=True)

    def write(self, shard: int) -> ShardResult:
        """Write a shard, then the record that says it is done."""
        failed: list[tuple[int, str]] = []
        counts = {"rows": 0, "missed": 0}

        def rows() -> Iterator[dict[str, Any]]:
            for row in self.recipe.rows_of(shard):
                try:
                    made = make_row(self.pipe, self.recipe, self.maps, row, self.job.strict)
                except RowFailed as error:
                    failed.append((row, str(error)))
                except Exception as error:  # one row must not cost the others
                    reason = " ".join(str(error).split())[:200]
                    failed.append((row, f"{type(error).__name__}: {reason}"))
                else:
                    counts["rows"] += 1
                    counts["missed"] += int(made["missed_nodules"] > 0)
                    yield made

        write_shard(self.job.shard_path(shard), rows(), SET_FEATURES)
        result = ShardResult(shard, counts["rows"], counts["missed"], tuple(failed))
        write_atomically(self.job.record_path(shard), (json.dumps(result._asdict()) + "\n").encode())
        return result


def read_result(job: Job, shard: int) -> ShardResult | None:
    """What was made of a shard; None if it is not finished."""
    path = job.record_path(shard)
    if not path.is_file():
        return None
    saved = json.loads(path.read_text())
    result = ShardResult(**{**saved, "failed": tuple((row, why) for row, why in saved["failed"])})
    return result if result.rows == 0 or job.shard_path(shard).is_file() else None


def pin_job(job: Job, maps: MapSource, identity: dict[str, Any]) -> None:
    """Write what the set depends on into its folder, or compare with what an earlier run wrote.

    Raises:
        ValueError: for a folder of another set, or one with other files.
    """
    folder = Path(job.output_dir)
    maps.split_pools(job.checked_recipe.validation, job.checked_recipe.seed)  # refuses what cannot be split
    fixed = {
        "recipe": json.loads(json.dumps(job.checked_recipe.as_dict())),
        "maps": {"name": maps.name, "split": job.split, "digest": maps.digest(), "pixel_spacing": job.pixel_spacing},
        "threads": job.threads,
        "strict": job.strict,
        **identity,
    }
    path = folder / JOB_FILE
    if path.is_file():
        earlier = json.loads(path.read_text())
        differing = [name for name in fixed if earlier.get(name) != fixed[name]]
        if differing:
            raise ValueError(
                f"`--output_dir` is {folder}, which holds a set of another {', '.join(differing)}; "
                "take another folder, or the same arguments to go on."
            )
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"`--output_dir` is {folder}, but that folder is not empty.")
    write_atomically(path, (json.dumps(fixed, indent=1) + "\n").encode())


def run_locally(job: Job, shards: list[int], note: Callable[[ShardResult], None]) -> None:
    """Write shards one after the other in this process."""
    worker = ShardWorker(job) if shards else None
    for shard in shards:
        assert worker is not None
        note(worker.write(shard))


def run_on_ray(
    job: Job,
    shards: list[int],
    workers: int,
    gpus_per_worker: float,
    address: str | None,
    note: Callable[[ShardResult], None],
) -> None:
    """Write shards on Ray's workers; a lost worker is replaced, and its shard is made again.

    Args:
        job: what to make.
        shards: their numbers.
        workers: at most so many at once.
        gpus_per_worker: share of a GPU that each takes; 0 takes `job.threads` CPU cores.
        address: of a Ray cluster; None starts Ray here, for this run.
        note: is told of each finished shard.

    Raises:
        RuntimeError: for a shard that was lost five times.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if address:
        ray.init(address=address, log_to_driver=False)
    else:  # results never pass through the object store
        ray.init(address="local", log_to_driver=False, include_dashboard=False, object_store_memory=80 * 2**20)
    options: dict[str, Any] = {"num_gpus": gpus_per_worker, "num_cpus": 0 if gpus_per_worker else job.threads}
    actor_class: Any = ray.remote(ShardWorker)
    waiting, tries = list(reversed(shards)), dict.fromkeys(shards, 0)
    busy: dict[Any, tuple[Any, int]] = {}

    def start(actor: Any) -> None:
        shard = waiting.pop()
        busy[actor.write.remote(shard)] = (actor, shard)

    def new_actor() -> Any:
        return actor_class.options(max_restarts=0, scheduling_strategy="SPREAD", **options).remote(job)

    try:
        for _ in range(min(workers, len(waiting))):
            start(new_actor())
        while busy:
            ready, _ = ray.wait(list(busy), num_returns=1, timeout=5)
            for reference in ready:
                actor, shard = busy.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayActorError as error:
                    tries[shard] += 1
                    if tries[shard] >= MAX_TRIES:
                        raise RuntimeError(f"shard {shard} was lost {MAX_TRIES} times: {error}") from error
                    waiting.append(shard)
                    time.sleep(1)
                    actor = new_actor()
                else:
                    note(ShardResult(*result))
                if waiting:
                    start(actor)
                else:
                    ray.kill(actor)
    finally:
        ray.shutdown()


def write_failures(job: Job, results: list[ShardResult]) -> int:
    """Write `failed.csv` of all rows that were left out; returns their number."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["row", "reason"])
    failures = sorted(failure for result in results for failure in result.failed)
    writer.writerows(failures)
    write_atomically(Path(job.output_dir) / "failed.csv", text.getvalue().encode())
    return len(failures)
