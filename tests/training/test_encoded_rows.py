"""Rows as latents: what they hold, where they are kept, and when a file of them is refused."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from lsdm_diffusers.data.dataset import scaled_pixels
from lsdm_diffusers.labels import SemanticLabel
from lsdm_diffusers.latents import encode_map, encode_pixels
from lsdm_diffusers.training.encoded_rows import (
    RATING_UNIT,
    CachedRows,
    RowEncoder,
    cached_pools,
    encode_rows,
    live_pools,
)

from ..conftest import tiny_vae


@pytest.fixture(scope="module")
def vae():
    return tiny_vae()


def make_split(sizes, kinds=None):
    generator, rows = np.random.default_rng(0), []
    for index, size in enumerate(sizes):
        labels = np.full((size, size), SemanticLabel.LUNG, np.uint8)
        labels[:8] = SemanticLabel.BACKGROUND
        labels[20, 21] = SemanticLabel.NODULE_MALIGNANT
        image = generator.integers(100, 900, (size, size)).astype(np.uint16)
        row = {"image": PILImage.fromarray(image), "semantic_map": PILImage.fromarray(labels)}
        rows.append(row | ({"kind": kinds[index]} if kinds else {}))
    features = {"image": Image(), "semantic_map": Image()} | ({"kind": Value("string")} if kinds else {})
    return Dataset.from_list(rows, features=Features(features))


def test_a_row_is_encoded_as_the_pipeline_encodes_it(vae):
    row = make_split([32])[0]
    encoded = RowEncoder(vae).encode(row, 0)
    labels = torch.from_numpy(np.array(row["semantic_map"]))
    with torch.no_grad():
        latents = encode_pixels(vae, torch.from_numpy(scaled_pixels(row["image"]))[None, None])[0]
        map_latents = encode_map(vae, labels[None])[0]
    torch.testing.assert_close(encoded["latents"].float(), latents, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(encoded["map_latents"].float(), map_latents, atol=2e-3, rtol=2e-3)
    assert encoded["labels"].shape == (8, 8) and encoded["labels"][5, 5] == SemanticLabel.NODULE_MALIGNANT


def test_the_first_view_is_the_row_and_the_others_are_augmented_each_in_its_own_way(vae):
    row = make_split([32])[0]
    plain, viewing = RowEncoder(vae).encode(row, 0), RowEncoder(vae, views=3)
    views = [viewing.encode(row, 0, view) for view in range(3)]
    assert torch.equal(views[0]["latents"], plain["latents"])
    assert not torch.equal(views[1]["latents"], views[2]["latents"])
    assert torch.equal(views[1]["latents"], viewing.encode(row, 0, 1)["latents"])
    assert not torch.equal(views[1]["latents"], RowEncoder(vae, seed=1, views=3).encode(row, 0, 1)["latents"])


def rated_row(ratings, centroid_yx=(20.0, 21.0)):
    """A row of one nodule, with the ratings listed for it."""
    return make_split([32])[0] | {"nodules": [{"centroid_yx": list(centroid_yx), **ratings}]}


def test_the_listed_ratings_lie_where_the_map_shows_the_nodule(vae):
    encoded = RowEncoder(vae).encode(rated_row({"malignancy": 5.0, "texture": 2.5, "lobulation": None}), 0)
    expected = torch.zeros(4, 8, 8)
    expected[0, 5, 5], expected[3, 5, 5] = 5, 2.5
    torch.testing.assert_close(encoded["ratings"] / RATING_UNIT, expected)


def test_a_nodule_that_is_listed_elsewhere_has_no_ratings(vae):
    assert not RowEncoder(vae).encode(rated_row({"malignancy": 5.0}, (10.0, 10.0)), 0)["ratings"].any()
    assert not RowEncoder(vae).encode(make_split([32])[0], 0)["ratings"].any()


def test_the_neutral_map_hides_malignancy_alone(vae):
    row = rated_row({"malignancy": 5.0})
    encoded = RowEncoder(vae, neutral_maps=True).encode(row, 0)
    labels = torch.from_numpy(np.array(row["semantic_map"])).clone()
    labels[labels == SemanticLabel.NODULE_MALIGNANT] = SemanticLabel.NODULE_INDETERMINATE
    with torch.no_grad():
        expected = encode_map(vae, labels[None])[0]
    torch.testing.assert_close(encoded["neutral_map_latents"].float(), expected, atol=2e-3, rtol=2e-3)
    assert "neutral_map_latents" not in RowEncoder(vae).encode(row, 0)


def test_rows_are_grouped_by_patient(vae):
    split = make_split([32] * 4, ["slice"] * 4).add_column("patient_id", ["a", "b", "a", "b"])
    pool = CachedRows(encode_rows(split, RowEncoder(vae, views=2))["slices"])
    assert sorted(group.tolist() for group in pool.patients) == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert sorted(map(len, pool.nodule_patients)) == [4, 4]


def test_live_and_cached_pools_are_the_same(vae, tmp_path):
    split, encoder = (
        make_split([64, 32, 64], ["slice", "nodule", "slice_with_nodules"]),
        RowEncoder(vae, 3, 2, True, True),
    )
    live, cached = live_pools(split, encoder), cached_pools(tmp_path / "rows.safetensors", split, encoder, len(split))
    assert live.keys() == cached.keys() == {"slices", "nodules"}
    for name, pool in live.items():
        assert len(pool) == len(cached[name]) == {"slices": 4, "nodules": 2}[name]
        for attribute in ("patients", "nodule_patients"):
            both = zip(getattr(pool, attribute), getattr(cached[name], attribute), strict=True)
            assert all(np.array_equal(*pair) for pair in both)
        assert pool.shape == cached[name].shape == {"slices": (16, 16), "nodules": (8, 8)}[name]
        for index in range(len(pool)):
            for part, tensor in pool[index].items():
                assert torch.equal(tensor, cached[name][index][part])


def test_a_file_is_read_again_only_for_the_same_autoencoder_data_and_settings(vae, tmp_path):
    split, file = make_split([32, 32]), tmp_path / "latents" / "rows.safetensors"
    cached_pools(file, split, RowEncoder(vae), len(split))
    written = file.stat().st_mtime_ns
    cached_pools(file, split, RowEncoder(vae), len(split))
    assert file.stat().st_mtime_ns == written and [path.name for path in file.parent.iterdir()] == [file.name]
    other_vae = tiny_vae()
    other_vae.decoder.conv_out.bias.data += 1
    others = [(split, RowEncoder(other_vae)), (split, RowEncoder(vae, seed=1)), (make_split([32]), RowEncoder(vae))]
    for other_split, encoder in others:
        with pytest.raises(
            ValueError, match="was encoded by another autoencoder, from other data or with other flags"
        ):
            cached_pools(file, other_split, encoder, len(other_split))


def test_a_file_with_neutral_maps_serves_runs_without_ratings_but_not_the_other_way_round(vae, tmp_path):
    split, rated = make_split([32, 32]), RowEncoder(vae, neutral_maps=True)
    cached_pools(tmp_path / "rated", split, rated, len(split))
    assert "neutral_map_latents" not in cached_pools(tmp_path / "rated", split, RowEncoder(vae), 2)["slices"][0]
    cached_pools(tmp_path / "plain", split, RowEncoder(vae), len(split))
    with pytest.raises(ValueError, match="with other flags; remove it"):
        cached_pools(tmp_path / "plain", split, rated, len(split))


def test_a_limit_holds_for_each_pool(vae):
    split = make_split([32] * 6, ["slice", "nodule", "slice", "nodule", "slice", "nodule"])
    pools = encode_rows(split, RowEncoder(vae), limit=2)
    assert {name: len(parts["labels"]) for name, parts in pools.items()} == {"slices": 2, "nodules": 2}
    assert len(encode_rows(make_split([32] * 3), RowEncoder(vae), limit=2)["slices"]["labels"]) == 2


def test_slices_of_several_sizes_are_refused(vae):
    message = r"has slices of \(8, 8\) and of \(16, 16\) latents, but training needs one size"
    with pytest.raises(ValueError, match=message):
        encode_rows(make_split([32, 64]), RowEncoder(vae))
    with pytest.raises(ValueError, match=message):
        live_pools(make_split([32, 64]), RowEncoder(vae))["slices"][1]
