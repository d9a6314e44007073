"""Rows of a dataset as latents: encoded once and kept in a file, or encoded each time that they are drawn."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, IterableDataset
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from ..data.dataset import row_kinds, slice_pixels
from ..io.atomic_write import part_file
from ..latents import encode_pixels, map_pixels

POOLS = ("slices", "nodules")  # whole slices, and crops around nodules, which a recipe's dataset has as rows
PARTS = ("latents", "map_latents", "labels")

EncodedRow = dict[str, torch.Tensor]  # latents and map_latents (c, h, w), float16; labels (h, w), uint8


class RowPool(Protocol):
    """Encoded rows of one size."""

    shape: tuple[int, int]  # (h, w) of the latents

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> EncodedRow: ...


@dataclass(frozen=True)
class RowEncoder:
    """Encodes rows of a dataset: image, semantic map, and the map's labels at the resolution of the latents.

    Args:
        vae: the trained autoencoder.
        seed: which rows are mirrored.
        random_flip: mirror half of the rows, left to right.
        blank_background: set what lies outside the body of whole slices to -1024 HU.
    """

    vae: AutoencoderKL
    seed: int = 0
    random_flip: bool = False
    blank_background: bool = False

    @property
    def factor(self) -> int:
        """Edge of an image over that of its latents."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @torch.no_grad()
    def encode(self, row: dict[str, Any], index: int) -> EncodedRow:
        """Encode a row; `index`, its number in its pool, and the seed decide whether it is mirrored."""
        labels = np.asarray(row["semantic_map"])
        is_crop = row.get("kind") == "nodule"
        pixels = slice_pixels(row["image"], labels, self.blank_background and not is_crop)
        if self.random_flip and np.random.default_rng((self.seed, index)).integers(2):
            pixels, labels = pixels[:, ::-1], labels[:, ::-1]
        image = torch.from_numpy(pixels.copy())[None, None]
        semantic_map = torch.from_numpy(labels.copy())[None]
        both = torch.cat([image, map_pixels(semantic_map)]).to(self.vae.device)
        latents, map_latents = encode_pixels(self.vae, both).half().cpu()
        small_map = F.max_pool2d(semantic_map[None].float(), self.factor)[0, 0]
        return {"latents": latents, "map_latents": map_latents, "labels": small_map.to(torch.uint8)}

    def fingerprint(self, split: Dataset | IterableDataset, size: Any) -> str:
        """A hash of what the encoded rows depend on: the autoencoder, the settings, and size and samples of the data.

        Args:
            split: the rows.
            size: number of rows; for a stream, which has no length, the flags that decide it.
        """
        weights = b"".join(tensor.cpu().numpy().tobytes() for tensor in self.vae.state_dict().values())
        digest = hashlib.sha256(weights)
        settings = [self.seed, self.random_flip, self.blank_background, self.vae.config.scaling_factor, size]
        digest.update(repr(settings).encode())
        if isinstance(split, Dataset):
            samples = split.select(sorted({0, len(split) // 2, len(split) - 1}))
        else:
            samples = split.take(3)
        for row in samples.select_columns(["image", "semantic_map"]):
            digest.update(row["image"].tobytes() + row["semantic_map"].tobytes())
        return digest.hexdigest()


def check_shape(row: EncodedRow, shape: tuple[int, int]) -> EncodedRow:
    """Return an encoded row if it has the expected size, and raise ValueError otherwise."""
    found = tuple(row["labels"].shape)
    if found != tuple(shape):
        raise ValueError(
            f"`--dataset_name` has slices of {tuple(shape)} and of {found} latents, but training needs one size."
        )
    return row


class LiveRows:
    """Rows of one size that are encoded each time that one is drawn."""

    def __init__(self, split: Dataset, encoder: RowEncoder):
        self.split, self.encoder = split, encoder
        width, height = split[0]["semantic_map"].size
        self.shape = (height // encoder.factor, width // encoder.factor)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> EncodedRow:
        return check_shape(self.encoder.encode(self.split[index], index), self.shape)


class CachedRows:
    """Encoded rows of one size in memory, each part stacked to one tensor."""

    def __init__(self, parts: dict[str, torch.Tensor]):
        self.parts = parts
        height, width = parts["labels"].shape[1:]
        self.shape = (height, width)

    def __len__(self) -> int:
        return len(self.parts["labels"])

    def __getitem__(self, index: int) -> EncodedRow:
        return {name: tensor[index] for name, tensor in self.parts.items()}


def live_pools(split: Dataset, encoder: RowEncoder) -> dict[str, RowPool]:
    """The pools of a split that are not empty, by name, encoded as they are drawn."""
    is_crop = row_kinds(split) == "nodule"
    indices = {"slices": np.flatnonzero(~is_crop), "nodules": np.flatnonzero(is_crop)}
    return {name: LiveRows(split.select(found), encoder) for name, found in indices.items() if len(found)}


def encode_rows(
    split: Iterable[dict[str, Any]], encoder: RowEncoder, limit: int | None = None
) -> dict[str, dict[str, torch.Tensor]]:
    """Encode the rows of a split into pools.

    Args:
        split: the rows.
        encoder: what encodes them.
        limit: encode at most this many rows for each pool; None encodes all.

    Returns:
        {pool: {part: stacked tensors}}, without empty pools.

    Raises:
        ValueError: for slices of several sizes.
    """
    pools: dict[str, list[EncodedRow]] = {name: [] for name in POOLS}
    for row in tqdm(split, desc="encode", mininterval=5):
        pool = pools["nodules" if row.get("kind") == "nodule" else "slices"]
        if limit is None or len(pool) < limit:
            encoded = encoder.encode(row, len(pool))
            height, width = (pool[0] if pool else encoded)["labels"].shape
            pool.append(check_shape(encoded, (height, width)))
        elif "kind" not in row or all(len(pool) == limit for pool in pools.values()):
            break
    stacked = {}
    for name, rows in pools.items():
        if rows:
            stacked[name] = {part: torch.stack([row[part] for row in rows]) for part in PARTS}
    return stacked


def cached_pools(
    file: Path, split: Dataset | IterableDataset, encoder: RowEncoder, size: Any, limit: int | None = None
) -> dict[str, RowPool]:
    """Read the pools of a split from a file, after encoding them into it if it does not exist yet.

    Args:
        file: a .safetensors file.
        split: the rows.
        encoder: what encodes them.
        size: number of rows, or what stands for it, for the fingerprint that the file holds.
        limit: encode at most this many rows for each pool; None encodes all.

    Raises:
        ValueError: if the file was encoded by another autoencoder, from other data or with other flags.
    """
    fingerprint = encoder.fingerprint(split, size)
    if not file.exists():
        pools = encode_rows(split, encoder, limit)
        tensors = {f"{name}.{part}": tensor for name, parts in pools.items() for part, tensor in parts.items()}
        with part_file(file) as part_path:
            save_file(tensors, part_path, {"source": fingerprint})
    with safe_open(file, "pt") as saved:
        if (saved.metadata() or {}).get("source") != fingerprint:
            raise ValueError(
                f"{file} was encoded by another autoencoder, from other data or with other flags; remove it."
            )
        present = [name for name in POOLS if f"{name}.labels" in saved.keys()]
        return {name: CachedRows({part: saved.get_tensor(f"{name}.{part}") for part in PARTS}) for name in present}
