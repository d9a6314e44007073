"""The data of the training scripts: the flags that name a dataset, its splits, rows of splits and streams, crops."""

import argparse
from collections.abc import Callable, Collection, Iterator
from itertools import count, islice
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset, load_dataset

from ..data.dataset import row_kinds
from ..labels import SemanticLabel

SHUFFLE_BUFFER = 256  # rows of a stream that are shuffled with each other
NODULE_CROP_SHARE = 0.5  # of the crops of a map with nodules that are placed on a nodule


def add_data_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add `--dataset_name` or `--train_data_dir`, `--streaming` and `--max_train_samples`.

    Returns:
        The group "data", for further flags.
    """
    data = parser.add_argument_group("data")
    source = data.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--dataset_name", help="Dataset: a folder or Hub id, as prepare_lidc.py or prepare_ct.py write it."
    )
    source.add_argument("--train_data_dir", help="Folder of such a dataset; the same as --dataset_name.")
    data.add_argument(
        "--streaming", action="store_true", help="Read the rows as a stream, for a dataset larger than the disk."
    )
    data.add_argument(
        "--max_train_samples",
        type=int,
        default=None,
        help="Use this many training rows, drawn by --seed; with --streaming, the first ones. Default: all.",
    )
    return data


def open_splits(
    source: str,
    streaming: bool = False,
    max_train_samples: int | None = None,
    seed: int = 0,
    split: str | None = None,
    needed: Collection[str] = ("train", "validation"),
) -> dict[str, Any]:
    """Open all splits of a dataset.

    Args:
        source: folder or Hub id.
        streaming: whether to read the rows as a stream.
        max_train_samples: number of rows that are kept of "train"; None keeps all.
        seed: which rows are kept of "train". A stream keeps the first ones.
        split: what `--split` names; it must be present, too.
        needed: names of the other splits that the script cannot do without.

    Returns:
        {split: `Dataset`}, or `IterableDataset` with `streaming`.

    Raises:
        ValueError: for a dataset that lacks one of the splits, or `max_train_samples` below 1.
    """
    if max_train_samples is not None and max_train_samples < 1:
        raise ValueError(f"--max_train_samples is {max_train_samples}, but at least 1 is needed.")
    splits = load_dataset(source, streaming=streaming)
    if not set(needed) <= splits.keys():
        verb = "is" if len(needed) == 1 else "are"
        raise ValueError(
            f"The dataset {source} has the splits {sorted(splits)}, but {' and '.join(needed)} {verb} needed."
        )
    if split is not None and split not in splits:
        raise ValueError(f"--split is {split}, but one of {sorted(splits)} is needed.")
    if max_train_samples is None:
        return dict(splits)
    if "train" not in splits:
        raise ValueError(f"--max_train_samples is {max_train_samples}, but the dataset {source} has no split train.")
    train = splits["train"]
    if streaming:
        train = train.take(max_train_samples)
    else:
        drawn = np.random.default_rng(seed).permutation(len(train))[:max_train_samples]
        train = train.select(np.sort(drawn))
    return {**splits, "train": train}


def rows_of_kind(split: Dataset | IterableDataset, accepts: Callable[[str], bool]) -> Dataset | IterableDataset:
    """The rows whose column `kind` is accepted; a dataset without that column has rows of kind "slice" only."""
    if isinstance(split, Dataset):
        return split.select(np.flatnonzero([accepts(kind) for kind in row_kinds(split)]))
    return split.filter(accepts, input_columns="kind") if "kind" in split.features else split


def whole_slices(split: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """The rows that are whole slices, not crops around a nodule."""
    return rows_of_kind(split, lambda kind: kind != "nodule")


def spread_over_patients(split: Dataset, number: int) -> Dataset:
    """At most `number` whole slices of each patient, evenly spread over them, and all crops around nodules.

    Args:
        split: with the column `patient_id`.
        number: of slices.
    """
    is_slice = row_kinds(split) != "nodule"
    patients = np.array(split["patient_id"])
    kept = [np.flatnonzero(~is_slice)]
    for patient in np.unique(patients[is_slice]):
        rows = np.flatnonzero(is_slice & (patients == patient))
        kept.append(rows[np.linspace(0, len(rows) - 1, min(number, len(rows))).astype(int)])
    return split.select(np.sort(np.concatenate(kept)))


def spread_rows(split: Dataset | IterableDataset, number: int) -> list[dict[str, Any]]:
    """At most `number` rows, evenly spread over a split; of a stream, drawn from its first `SHUFFLE_BUFFER` rows."""
    if isinstance(split, Dataset):
        indices = np.linspace(0, len(split) - 1, min(number, len(split))).astype(int)
        return [split[int(index)] for index in indices]
    return list(islice(split.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER), number))


def validation_slices(split: Dataset | IterableDataset, number: int) -> list[dict[str, Any]]:
    """At most `number` whole slices that list nodules, spread over a split; any whole slices if none lists nodules."""
    slices = whole_slices(split)
    return spread_rows(slices.filter(bool, input_columns="nodules"), number) or spread_rows(slices, number)


def crop_corner(
    semantic_map: np.ndarray, edge: int, generator: np.random.Generator, nodule_share: float = NODULE_CROP_SHARE
) -> tuple[int, int]:
    """Draw the top left corner of a square crop.

    A share of the crops of a map with nodules are placed so that they contain a nodule pixel, at least a quarter of
    the edge away from the border of the crop where the frame permits.

    Args:
        semantic_map: labels (H, W).
        edge: edge of the crop, at most H and W.
        generator: the random generator.
        nodule_share: that share, 0..1.

    Returns:
        Row and column of the corner.
    """
    height, width = semantic_map.shape
    y, x = generator.integers(height - edge + 1), generator.integers(width - edge + 1)
    nodule_pixels = np.argwhere(semantic_map >= SemanticLabel.NODULE_BENIGN)
    if len(nodule_pixels) and edge < height and generator.random() < nodule_share:
        pixel = nodule_pixels[generator.integers(len(nodule_pixels))]
        corner = pixel - generator.integers(edge // 4, edge - edge // 4, size=2)
        y, x = np.clip(corner, 0, (height - edge, width - edge))
    return int(y), int(x)


class StreamedRows:
    """Rows of a stream, shuffled anew in each epoch, addressed by their number in this endless order.

    Numbers must be asked for in rising order. Rows between them are read but not decoded. A resumed run asks for later
    numbers only, and each process of a distributed run for its own, so all of them see the rows of a single
    uninterrupted run.

    Args:
        stream: the streamed split.
        seed: seed of the first epoch's order.
    """

    def __init__(self, stream: IterableDataset, seed: int):
        self.stream, self.seed, self.features = stream.decode(False), seed, stream.features
        self._numbered = self._number_rows()

    def _number_rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        for epoch in count():
            first = number
            for row in self.stream.shuffle(seed=self.seed + epoch, buffer_size=SHUFFLE_BUFFER):
                yield number, row
                number += 1
            if number == first:
                raise ValueError("`stream` has no rows, but at least one is needed.")

    def __getitem__(self, number: int) -> dict[str, Any]:
        """The decoded row of a number.

        Raises:
            IndexError: for a number that is not above the last one.
        """
        for current, row in self._numbered:
            if current == number:
                return self.features.decode_example(row)
            if current > number:
                break
        raise IndexError(
            f"`number` is {number}, but row {current - 1} of the stream was read already: numbers must rise."
        )
