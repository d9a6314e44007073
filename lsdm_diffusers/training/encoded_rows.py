"""Rows of a dataset as latents: encoded once and kept in a file, or encoded each time that they are drawn."""

import hashlib
import zlib
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
from ..labels import SemanticLabel
from ..latents import encode_pixels, map_pixels
from ..nodule_features import NODULE_FEATURES
from ..nodule_ratings import rating_maps
from ..semantic_map import Nodule, find_nodules
from .augmentation import AUGMENTATION, augment

POOLS = ("slices", "nodules")  # whole slices, and crops around nodules, which a recipe's dataset has as rows
PARTS = ("latents", "map_latents", "labels", "ratings", "patient")
NEUTRAL_PART = "neutral_map_latents"
RATING_UNIT = 50  # ratings are kept as whole numbers of 1/50
MIN_MATCH_PIXELS = 3.0  # a listed centroid this near to a nodule's is its own, however small the nodule is

# latents and map_latents (c, h, w), float16; labels (h, w), uint8; ratings (4, h, w), uint8, in 1/50;
# patient: 0-dim int64, equal for rows of one patient; with `neutral_maps`, neutral_map_latents as map_latents
EncodedRow = dict[str, torch.Tensor]


class RowPool(Protocol):
    """Encoded rows of one size."""

    shape: tuple[int, int]  # (h, w) of the latents
    patients: list[np.ndarray]  # the indices of each patient's rows
    nodule_patients: list[np.ndarray]  # and of those rows whose map has a nodule

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> EncodedRow: ...


def listed_ratings(nodules: list[Nodule], entries: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The ratings that a row lists for each nodule of its map; empty for a nodule that it does not list.

    Args:
        nodules: of the map.
        entries: the row's column `nodules`.
    """
    ratings: list[dict[str, float]] = []
    for nodule in nodules:
        distances = [float(np.hypot(*np.subtract(entry["centroid_yx"], nodule.centroid_yx))) for entry in entries]
        radius = float(np.sqrt(nodule.area / np.pi))
        if not distances or min(distances) > max(MIN_MATCH_PIXELS, radius):
            ratings.append({})
            continue
        entry = entries[int(np.argmin(distances))]
        rated = {feature: entry.get(feature) for feature in NODULE_FEATURES}
        ratings.append({name: float(value) for name, value in rated.items() if value is not None and value == value})
    return ratings


@dataclass(frozen=True)
class RowEncoder:
    """Encodes rows of a dataset: image, semantic map, and the map's labels and ratings at the size of the latents.

    Args:
        vae: the trained autoencoder.
        seed: how views are augmented.
        views: times that each row is encoded: as it is, and then augmented.
        blank_background: set what lies outside the body of whole slices to -1024 HU.
        neutral_maps: encode also the map whose nodules all have the label of malignancy 3, which does not tell it.
    """

    vae: AutoencoderKL
    seed: int = 0
    views: int = 1
    blank_background: bool = False
    neutral_maps: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the tensors of an encoded row."""
        return (*PARTS, NEUTRAL_PART) if self.neutral_maps else PARTS

    @property
    def factor(self) -> int:
        """Edge of an image over that of its latents."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @torch.no_grad()
    def encode(self, row: dict[str, Any], index: int, view: int = 0) -> EncodedRow:
        """Encode a row; its number `index` in its pool, the view and the seed decide how it is augmented."""
        labels = np.asarray(row["semantic_map"])
        is_crop = row.get("kind") == "nodule"
        pixels = slice_pixels(row["image"], labels, self.blank_background and not is_crop)
        nodules = find_nodules(labels)
        ratings = rating_maps(nodules, listed_ratings(nodules, row.get("nodules") or []), labels.shape)
        if view > 0:
            generator = np.random.default_rng((self.seed, index, view))
            pixels, labels, ratings = augment(pixels, labels, ratings, generator, fill_with_air=not is_crop)
        image = torch.from_numpy(pixels)[None, None]
        semantic_map = torch.from_numpy(labels.copy())[None]
        pictures = [image, map_pixels(semantic_map)]
        is_nodule = semantic_map >= SemanticLabel.NODULE_BENIGN
        if self.neutral_maps and is_nodule.any():
            pictures.append(map_pixels(semantic_map.masked_fill(is_nodule, SemanticLabel.NODULE_INDETERMINATE)))
        encoded = encode_pixels(self.vae, torch.cat(pictures).to(self.vae.device)).half().cpu()
        small_map = F.max_pool2d(semantic_map[None].float(), self.factor)[0, 0]
        small_ratings = F.max_pool2d(torch.from_numpy(ratings)[None], self.factor)[0]
        parts = {
            "latents": encoded[0],
            "map_latents": encoded[1],
            "labels": small_map.to(torch.uint8),
            "ratings": (small_ratings * RATING_UNIT).round().to(torch.uint8),
            "patient": torch.tensor(patient_number(row.get("patient_id"))),
            NEUTRAL_PART: encoded[-1],  # without nodules, that of the map itself
        }
        return {part: parts[part] for part in self.parts}

    def fingerprint(self, split: Dataset | IterableDataset, size: Any) -> str:
        """A hash of what the encoded rows depend on: the autoencoder, the settings, and size and samples of the data.

        Args:
            split: the rows.
            size: number of rows; for a stream, which has no length, the flags that decide it.
        """
        weights = b"".join(tensor.cpu().numpy().tobytes() for tensor in self.vae.state_dict().values())
        digest = hashlib.sha256(weights)
        settings = [self.seed, self.views, self.blank_background, self.vae.config.scaling_factor, size]
        if self.views > 1:
            settings.append(AUGMENTATION)
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


def patient_number(patient_id: str | None) -> int:
    """A number that stands for a patient."""
    return zlib.crc32(str(patient_id).encode())


def rows_of_patients(patients: np.ndarray, chosen: np.ndarray | None = None) -> list[np.ndarray]:
    """The indices of each patient's rows.

    Args:
        patients: what names the patient of each row, (N,).
        chosen: boolean, (N,): only these rows; None takes all.
    """
    indices = np.arange(len(patients)) if chosen is None else np.flatnonzero(chosen)
    names = patients[indices]
    return [indices[names == name] for name in np.unique(names)]


class LiveRows:
    """Views of rows of one size that are encoded each time that one is drawn."""

    def __init__(self, split: Dataset, encoder: RowEncoder):
        self.split, self.encoder = split, encoder
        width, height = split[0]["semantic_map"].size
        self.shape = (height // encoder.factor, width // encoder.factor)
        names = split["patient_id"] if "patient_id" in split.column_names else [None] * len(split)
        patients = np.repeat([patient_number(name) for name in names], encoder.views)
        highest_labels = np.repeat([np.asarray(image).max() for image in split["semantic_map"]], encoder.views)
        has_nodule = highest_labels >= SemanticLabel.NODULE_BENIGN
        self.patients, self.nodule_patients = rows_of_patients(patients), rows_of_patients(patients, has_nodule)

    def __len__(self) -> int:
        return len(self.split) * self.encoder.views

    def __getitem__(self, index: int) -> EncodedRow:
        row, view = divmod(index, self.encoder.views)
        return check_shape(self.encoder.encode(self.split[row], row, view), self.shape)


class CachedRows:
    """Encoded rows of one size in memory, each part stacked to one tensor."""

    def __init__(self, parts: dict[str, torch.Tensor]):
        self.parts = parts
        height, width = parts["labels"].shape[1:]
        self.shape = (height, width)
        has_nodule = (parts["labels"].flatten(1).amax(1) >= SemanticLabel.NODULE_BENIGN).numpy()
        patients = parts["patient"].numpy()
        self.patients, self.nodule_patients = rows_of_patients(patients), rows_of_patients(patients, has_nodule)

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
        {pool: {part: stacked tensors}}, without empty pools; the views of a row follow each other.

    Raises:
        ValueError: for slices of several sizes.
    """
    pools: dict[str, list[EncodedRow]] = {name: [] for name in POOLS}
    views = encoder.views
    for row in tqdm(split, desc="encode", mininterval=5):
        pool = pools["nodules" if row.get("kind") == "nodule" else "slices"]
        index = len(pool) // views
        if limit is None or index < limit:
            for view in range(views):
                encoded = encoder.encode(row, index, view)
                height, width = (pool[0] if pool else encoded)["labels"].shape
                pool.append(check_shape(encoded, (height, width)))
        elif "kind" not in row or all(len(pool) == limit * views for pool in pools.values()):
            break
    stacked = {}
    for name, rows in pools.items():
        if rows:
            stacked[name] = {part: torch.stack([row[part] for row in rows]) for part in encoder.parts}
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
        present = [name for name in POOLS if f"{name}.labels" in saved.keys()]
        needed = {f"{name}.{part}" for name in present for part in encoder.parts}
        if (saved.metadata() or {}).get("source") != fingerprint or not needed <= set(saved.keys()):
            raise ValueError(
                f"{file} was encoded by another autoencoder, from other data or with other flags; remove it."
            )
        return {
            name: CachedRows({part: saved.get_tensor(f"{name}.{part}") for part in encoder.parts}) for name in present
        }
