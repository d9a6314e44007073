"""What the training scripts share: the flags that name a dataset, its splits, rows of splits and streams, and where to crop."""

import argparse
from collections.abc import Callable, Iterator
from itertools import count, islice

import numpy as np
from datasets import Dataset, IterableDataset, load_dataset

from ..data.dataset import row_kinds
from ..labels import SemanticLabel

SHUFFLE_BUFFER = 256  # rows of a stream that are mixed with each other


def add_data_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add `--dataset_name` or `--train_data_dir`, `--streaming` and `--max_train_samples`; returns their group, for further flags."""
    data = parser.add_argument_group("data")
    where = data.add_mutually_exclusive_group(required=True)
    where.add_argument("--dataset_name", help="dataset folder or Hub id, as prepare_lidc.py or prepare_ct.py make it")
    where.add_argument("--train_data_dir", help="folder of such a dataset, if it is not given by --dataset_name")
    data.add_argument(
        "--streaming", action="store_true", help="read the rows as they come, for a dataset larger than the disk"
    )
    data.add_argument(
        "--max_train_samples",
        type=int,
        default=None,
        help="train on this many rows, drawn by --seed (with --streaming, the first ones), not on all",
    )
    return data


def open_splits(args: argparse.Namespace) -> dict[str, Dataset | IterableDataset]:
    """The splits of the dataset that the flags name, of "train" a part with `--max_train_samples`; `--split`, where a script has it, is one of them.

    Raises:
        SystemExit: for a dataset without the splits "train" and "validation", another `--split`, or `--max_train_samples` below 1.
    """
    source = args.dataset_name or args.train_data_dir
    if args.max_train_samples is not None and args.max_train_samples < 1:
        raise SystemExit(f"--max_train_samples is {args.max_train_samples}, but at least 1 is needed.")
    splits = load_dataset(source, streaming=args.streaming)
    if not {"train", "validation"} <= splits.keys():
        raise SystemExit(f"The dataset {source} has the splits {sorted(splits)}, but train and validation are needed.")
    if getattr(args, "split", "train") not in splits:
        raise SystemExit(f"--split is {args.split}, but one of {sorted(splits)} is needed.")
    train = splits["train"]
    if args.max_train_samples is not None:
        if args.streaming:
            train = train.take(args.max_train_samples)
        else:
            drawn = np.random.default_rng(args.seed).permutation(len(train))[: args.max_train_samples]
            train = train.select(np.sort(drawn))
    return {**splits, "train": train}


def rows_of_kind(split: Dataset | IterableDataset, wanted: Callable[[str], bool]) -> Dataset | IterableDataset:
    """The rows whose column `kind` is wanted; a dataset without that column has rows of kind "slice" only."""
    if isinstance(split, Dataset):
        return split.select(np.flatnonzero([wanted(kind) for kind in row_kinds(split)]))
    return split.filter(wanted, input_columns="kind") if "kind" in split.features else split


def spread_rows(split: Dataset | IterableDataset, number: int) -> list[dict]:
    """At most `number` rows from all over a split; of a stream, from all over its first `SHUFFLE_BUFFER` rows."""
    if isinstance(split, Dataset):
        return [split[int(index)] for index in np.linspace(0, len(split) - 1, min(number, len(split))).astype(int)]
    return list(islice(split.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER), number))


def crop_corner(semantic_map: np.ndarray, edge: int, generator: np.random.Generator) -> tuple[int, int]:
    """Top and left of a random square crop of a map (H, W); half of the crops of a map with nodules are drawn to have one inside."""
    height, width = semantic_map.shape
    y, x = generator.integers(height - edge + 1), generator.integers(width - edge + 1)
    inside = np.argwhere(semantic_map >= SemanticLabel.NODULE_BENIGN)
    if len(inside) and edge < height and generator.random() < 0.5:
        corner = inside[generator.integers(len(inside))] - generator.integers(edge // 4, edge - edge // 4, size=2)
        y, x = np.clip(corner, 0, (height - edge, width - edge))
    return int(y), int(x)


class StreamedRows:
    """Rows of a stream, shuffled anew in each epoch, by their number in that endless order.

    Numbers are asked for in rising order; what lies between is read and passed over undecoded. So a resumed run, which asks for later
    numbers, and the processes of a distributed one, each of which asks for its own, see the rows of a single uninterrupted run.
    """

    def __init__(self, stream: IterableDataset, seed: int):
        self.stream, self.seed, self.features = stream.decode(False), seed, stream.features
        self._numbered = self._number_rows()

    def _number_rows(self) -> Iterator[tuple[int, dict]]:
        number = 0
        for epoch in count():
            first = number
            for row in self.stream.shuffle(seed=self.seed + epoch, buffer_size=SHUFFLE_BUFFER):
                yield number, row
                number += 1
            if number == first:
                raise ValueError("`stream` has no rows, but at least one is needed.")

    def __getitem__(self, number: int) -> dict:
        for at, row in self._numbered:
            if at == number:
                return self.features.decode_example(row)
            if at > number:
                break
        raise IndexError(
            f"`number` is {number}, but row {at - 1} of the stream was read already, and a stream does not go back."
        )
