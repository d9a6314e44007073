"""Images, rows and shards of the dataset."""

import io

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from lsdm_diffusers.data.dataset import (
    FEATURES,
    decode_image,
    encode_image,
    encode_row,
    nodule_crops,
    row_kinds,
    rows_with_nodules,
    write_shard,
)
from lsdm_diffusers.outside_body import blanked, outside_body


@pytest.mark.parametrize(("bit_depth", "error"), [(16, 0), (8, 4)])
def test_an_image_comes_back_from_its_png(bit_depth, error):
    hu = np.random.default_rng(0).integers(-1500, 1500, (32, 32))
    back = decode_image(Image.open(io.BytesIO(encode_image(hu, bit_depth))))
    assert np.abs(back - np.clip(hu, -1024, 800)).max() <= error


def test_another_bit_depth_is_refused():
    with pytest.raises(ValueError, match="`bit_depth` is 12, but 8 or 16"):
        encode_image(np.zeros((8, 8)), 12)


def test_table_and_clothes_lie_outside_the_body():
    semantic_map = np.zeros((40, 40), np.uint8)
    semantic_map[10:30, 10:30] = 1
    semantic_map[18:22, 18:22] = 0  # a bronchus
    outside = outside_body(semantic_map)
    assert outside[0, 0] and outside[6, 20] and not outside[7, 20]  # three pixels at the skin stay
    assert not outside[20, 20]
    hu = np.full((40, 40), -300)
    np.testing.assert_array_equal(blanked(hu, semantic_map), np.where(outside, -1024, -300))


def make_row(size, nodules, **columns):
    """A row whose pixel value is its own row and column."""
    hu = np.add.outer(np.arange(size), np.arange(size))
    empty = {name: None for name in FEATURES if name not in ("image", "semantic_map")}
    return encode_row(hu, np.full((size, size), 4, np.uint8), **{**empty, "nodules": nodules, **columns})


def make_nodule(y, x):
    empty = {name: None for name in FEATURES["nodules"].feature}
    return {**empty, "centroid_yx": [y, x], "malignancy": 4.0}


def test_crops_are_cut_around_the_nodules_of_slices_and_moved_inside_the_frame():
    rows = [make_row(96, []), make_row(96, [make_nodule(50, 40), make_nodule(2, 94)])]
    split = Dataset.from_list(rows, features=FEATURES)
    assert list(row_kinds(split)) == ["slice", "slice"]
    assert len(rows_with_nodules(split)) == 1
    crops = [crop for crop, _ in nodule_crops(split)]
    corners = [round((crop[0, 0] + 1) * 912 - 1024) for crop in crops]
    assert [crop.shape for crop in crops] == [(64, 64)] * 2
    assert corners == [(50 - 31) + (40 - 31), 0 + 32]
    with pytest.raises(ValueError, match="slice of 48x48 pixels, but crops of 64x64"):
        list(nodule_crops(Dataset.from_list([make_row(48, [make_nodule(20, 20)])], features=FEATURES)))


def test_a_shard_has_the_same_bytes_each_time(tmp_path):
    rows = [make_row(16, [make_nodule(1, 2)], slice_index=index) for index in range(150)]
    digest = write_shard(tmp_path / "a.parquet", rows)
    assert digest == write_shard(tmp_path / "b.parquet", iter(rows))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    back = Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "cache"))
    assert back.features == FEATURES and back["slice_index"][:] == list(range(150))


def test_a_shard_without_rows_is_removed(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"of an earlier run")
    assert write_shard(tmp_path / "a.parquet", []) is None
    assert not list(tmp_path.iterdir())
