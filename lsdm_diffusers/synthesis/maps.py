"""The maps that a set is made from: a folder of map files, or a dataset with a column `semantic_map`."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..ct_limits import DEFAULT_PIXEL_SPACING
from ..io.map_upload import png_pixel_spacing
from ..labels import SemanticLabel
from ..semantic_map import read_semantic_map
from .recipe import TRAIN, VALIDATION

SUFFIXES = (".png", ".npy", ".nii", ".nii.gz")
MIN_EDGE = 256  # pixels; smaller maps are crops around nodules, which have no lungs to draw into


@dataclass(frozen=True)
class MapSource:
    """Maps by number.

    Args:
        name: as the user gave it.
        files: paths, or () for a dataset.
        rows: a dataset, or None for files.
        indices: the rows of the dataset that are whole slices.
        pixel_spacing: of files that state none, in mm.
    """

    name: str
    files: tuple[Path, ...] = ()
    rows: Any = None
    indices: tuple[int, ...] = ()
    pixel_spacing: float = DEFAULT_PIXEL_SPACING

    def __len__(self) -> int:
        return len(self.files) or len(self.indices)

    def __getitem__(self, number: int) -> "SourceMap":
        if self.files:
            path = self.files[number]
            spacing = png_pixel_spacing(str(path)) if path.suffix.lower() == ".png" else None
            return SourceMap(read_semantic_map(path), spacing or self.pixel_spacing, path.stem, path.name)
        row = self.rows[self.indices[number]]
        spacing = float(row.get("pixel_spacing_mm") or self.pixel_spacing)
        name = str(row.get("sop_instance_uid") or self.indices[number])
        return SourceMap(read_semantic_map(row["semantic_map"]), spacing, self.patients[number], name)

    @cached_property
    def patients(self) -> list[str]:
        """The patient of each map."""
        if self.files:
            return [path.stem for path in self.files]
        if "patient_id" not in self.rows.column_names:
            return [str(index) for index in self.indices]
        column = self.rows["patient_id"]
        return [str(column[index]) for index in self.indices]

    def split_pools(self, validation: float, seed: int) -> dict[str, list[int]]:
        """The maps of each split: those of a share of the patients, drawn by a hash, are held out for validation.

        Raises:
            ValueError: for a share above 0 of fewer than two patients.
        """
        patients = self.patients
        if validation == 0:
            return {TRAIN: list(range(len(self)))}
        names = sorted(set(patients), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
        if len(names) < 2:
            raise ValueError(f"`validation` is {validation:g}, but the maps are of one patient; two are needed.")
        held_out = set(names[: min(max(1, round(validation * len(names))), len(names) - 1)])
        pools: dict[str, list[int]] = {TRAIN: [], VALIDATION: []}
        for number, patient in enumerate(patients):
            pools[VALIDATION if patient in held_out else TRAIN].append(number)
        return pools

    def digest(self) -> str:
        """What the maps are, as a name."""
        total = hashlib.sha256()
        for number in range(len(self)):
            if self.files:
                total.update(hashlib.sha256(self.files[number].read_bytes()).digest())
            else:
                total.update(hashlib.sha256(self[number].labels.tobytes()).digest())
        return total.hexdigest()[:16]


@dataclass(frozen=True)
class SourceMap:
    """One map.

    Args:
        labels: 0..7, (H, W), uint8.
        pixel_spacing: edge of a pixel in mm.
        patient_id: of the dataset; the file's name without suffix otherwise.
        name: of the map.
    """

    labels: np.ndarray
    pixel_spacing: float
    patient_id: str
    name: str


def open_maps(source: str | None, split: str, pixel_spacing: float = DEFAULT_PIXEL_SPACING) -> MapSource:
    """Open a folder of maps, or a dataset; None takes the maps that ship with the package.

    Args:
        source: folder of PNG, .npy or NIfTI maps; folder or Hub id of a dataset; or None.
        split: of a dataset.
        pixel_spacing: of map files that state none, in mm.

    Raises:
        ValueError: for a folder without maps, a dataset that cannot be opened, or one without whole slices.
    """
    if source is None:
        folder = Path(__file__).parent.parent / "demo" / "examples"
        return MapSource("the shipped maps", tuple(sorted(folder.glob("*.png"))), pixel_spacing=pixel_spacing)
    path = Path(source)
    if path.is_dir() and (files := _map_files(path)):
        return MapSource(source, files, pixel_spacing=pixel_spacing)
    from ..training.data import open_splits

    try:
        rows = open_splits(source, split=split, needed=[])[split]
    except Exception as error:  # datasets raises many kinds
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"`--maps` is {source}, which is no folder of maps and no dataset: {reason}") from None
    if "semantic_map" not in rows.column_names:
        raise ValueError(f"`--maps` is {source}, but that dataset has no column `semantic_map`.")
    indices = _whole_slices(rows)
    if not indices:
        raise ValueError(f"`--maps` is {source}, but its split {split} has no whole slice.")
    return MapSource(source, rows=rows, indices=indices, pixel_spacing=pixel_spacing)


def _map_files(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(path for path in folder.iterdir() if path.name.lower().endswith(SUFFIXES)))


def _whole_slices(rows: Any) -> tuple[int, ...]:
    kinds = rows["kind"] if "kind" in rows.column_names else None
    sizes: Sequence[int] = [min(image.size) for image in rows["semantic_map"]]
    return tuple(
        index for index, size in enumerate(sizes) if size >= MIN_EDGE and (kinds is None or kinds[index] == "slice")
    )


def without_nodules(labels: np.ndarray) -> np.ndarray:
    """The map with lung in the place of nodules."""
    return np.where(labels >= SemanticLabel.NODULE_BENIGN, SemanticLabel.LUNG, labels).astype(np.uint8)
