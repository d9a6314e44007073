"""Splits, rows of splits and streams, and where training crops are cut."""

import numpy as np
import pytest
from datasets import Dataset, load_dataset

from lsdm_diffusers.data.dataset import row_kinds
from lsdm_diffusers.training.data import (
    StreamedRows,
    crop_corner,
    open_splits,
    spread_rows,
    validation_slices,
    whole_slices,
)


@pytest.fixture
def splits(monkeypatch, tmp_path, dataset):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return open_splits(str(dataset))


def test_max_train_samples_are_drawn_by_the_seed(splits, dataset):
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 12, "validation": 12}
    kinds = [list(row_kinds(open_splits(str(dataset), False, 5, seed)["train"])) for seed in (0, 0, 1)]
    assert len(kinds[0]) == 5 and kinds[0] == kinds[1]
    assert len(list(open_splits(str(dataset), True, 5)["train"])) == 5


def test_splits_that_are_missing_are_named(splits, dataset, tmp_path):
    with pytest.raises(ValueError, match="--max_train_samples is 0, but at least 1 is needed"):
        open_splits(str(dataset), max_train_samples=0)
    with pytest.raises(ValueError, match=r"--split is test, but one of \['train', 'validation'\] is needed"):
        open_splits(str(dataset), split="test")
    splits["train"].to_parquet(tmp_path / "data" / "train.parquet")
    with pytest.raises(ValueError, match=r"has the splits \['train'\], but train and validation are needed"):
        open_splits(str(tmp_path / "data"))


def test_whole_slices_leave_out_crops_around_nodules(splits):
    assert list(row_kinds(whole_slices(splits["train"]))) == ["slice", "slice_with_nodules"]
    without_kind = splits["train"].remove_columns("kind")
    assert len(whole_slices(without_kind)) == 12


def test_rows_are_spread_over_the_split():
    numbered = Dataset.from_dict({"number": list(range(12))})
    assert [row["number"] for row in spread_rows(numbered, 3)] == [0, 5, 11]
    assert len(spread_rows(numbered, 20)) == 12


def test_validation_slices_list_nodules_if_any_does(splits):
    slices = whole_slices(splits["validation"])
    emptied = slices.map(lambda row, index: {"nodules": row["nodules"] if index else []}, with_indices=True)
    assert [len(row["nodules"]) for row in validation_slices(emptied, 2)] == [1]
    without_nodules = slices.map(lambda row: {"nodules": []})
    assert len(validation_slices(without_nodules, 2)) == 2


@pytest.fixture
def only_test(tmp_path, dataset):
    load_dataset(str(dataset), split="train").to_parquet(tmp_path / "test-00000-of-00001.parquet")
    return str(tmp_path)


def test_only_the_needed_splits_must_be_there(dataset, only_test):
    assert open_splits(only_test, split="test", needed=[]).keys() == {"test"}
    with pytest.raises(ValueError, match=r"has the splits \['test'\], but train and validation are needed"):
        open_splits(only_test)
    with pytest.raises(ValueError, match=r"has the splits \['test'\], but train is needed"):
        open_splits(only_test, split="test", needed=["train"])
    with pytest.raises(ValueError, match=r"--split is holdout, but one of \['test'\] is needed"):
        open_splits(only_test, split="holdout", needed=[])
    with pytest.raises(ValueError, match="--max_train_samples is 2, but the dataset .* has no split train"):
        open_splits(only_test, max_train_samples=2, needed=[])
    assert len(open_splits(str(dataset), max_train_samples=2)["train"]) == 2


def test_half_of_the_crops_have_a_nodule_inside():
    labels = np.full((96, 128), 4, np.uint8)
    labels[90, 5] = 7  # near a corner, which few random crops have
    generator = np.random.default_rng(0)
    corners = np.array([crop_corner(labels, 32, generator) for _ in range(2000)])
    assert (corners >= 0).all() and (corners <= (64, 96)).all()
    inside = [labels[y : y + 32, x : x + 32].max() == 7 for y, x in corners]
    chance = np.mean([64 >= y > 90 - 32 for y in range(65)]) * np.mean([x <= 5 for x in range(97)])
    assert np.mean(inside) == pytest.approx(0.5 + 0.5 * chance, abs=0.04)
    labels[90, 5] = 4
    assert np.ptp([crop_corner(labels, 32, generator) for _ in range(500)], axis=0).min() > 60
    assert crop_corner(labels, 96, generator)[0] == 0


def test_rows_of_a_stream_have_their_number(dataset, no_pause):
    stream = load_dataset(str(dataset), split="train", streaming=True)
    first, second = StreamedRows(stream, seed=0), StreamedRows(stream, seed=0)
    images = [np.asarray(first[number]["image"]) for number in range(36)]  # three epochs of twelve rows
    for number in (1, 17, 35):
        np.testing.assert_array_equal(np.asarray(second[number]["image"]), images[number])
    epochs = [[image.tobytes() for image in images[start : start + 12]] for start in (0, 12, 24)]
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2]) and epochs[0] != epochs[1] != epochs[2]
    with pytest.raises(IndexError, match="`number` is 5, but row 35"):
        second[5]
