"""Rows as latents: what they hold, where they are kept, and when a file of them is refused."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from lsdm_diffusers.data.dataset import scaled_pixels
from lsdm_diffusers.labels import SemanticLabel
from lsdm_diffusers.latents import encode_map, encode_pixels
from lsdm_diffusers.training.encoded_rows import RowEncoder, cached_pools, encode_rows, live_pools

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


def test_half_of_the_rows_are_mirrored(vae):
    row = make_split([32])[0]
    plain, flipping = RowEncoder(vae), RowEncoder(vae, random_flip=True)
    mirrored = []
    for index in range(40):
        labels = flipping.encode(row, index)["labels"]
        mirrored.append(not torch.equal(labels, plain.encode(row, index)["labels"]))
        assert torch.equal(labels.flip(1) if mirrored[-1] else labels, plain.encode(row, index)["labels"])
    assert 10 < sum(mirrored) < 30


def test_live_and_cached_pools_are_the_same(vae, tmp_path):
    split, encoder = (
        make_split([64, 32, 64], ["slice", "nodule", "slice_with_nodules"]),
        RowEncoder(vae, 3, True, True),
    )
    live, cached = live_pools(split, encoder), cached_pools(tmp_path / "rows.safetensors", split, encoder, len(split))
    assert live.keys() == cached.keys() == {"slices", "nodules"}
    for name, pool in live.items():
        assert len(pool) == len(cached[name]) == {"slices": 2, "nodules": 1}[name]
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
