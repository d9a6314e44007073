"""A whole series of axial CT: every slice in its place, or a refusal that names what is wrong."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .files import SliceFile, index_dicom
from .header import DicomError, numbers, open_header
from .orientation import Orientation
from .slices import read_slice

MIN_SLICES = 2
STRAIGHT = 0.999  # cosine of 2.6 degrees: rows and columns run along the patient's axes
MAX_SPACING_ERROR = 0.1  # share of the distance of slices by which one of them may be off its place
MAX_SHIFT_MM = 0.5  # by which a slice may lie beside its neighbour; a tilted gantry shifts them by more
SAME_PLACE_MM = 0.01


class CtSeries(NamedTuple):
    """A series of axial slices, from the feet to the head.

    Args:
        hu: (Z, H, W), int16, in Hounsfield units; rows run to the patient's left, columns to the back. Values below
            -1024 and padding are -1024.
        files: where each slice comes from.
        origin_mm: x, y and z of the centre of the first pixel, in the patient's coordinates of DICOM.
        pixel_spacing_mm: edge of a pixel.
        slice_spacing_mm: distance of neighbouring slices.
        orientation: how the stored pixels were turned.
        left_out: files of the folder that are not of the series, and why.
    """

    hu: np.ndarray
    files: tuple[SliceFile, ...]
    origin_mm: tuple[float, float, float]
    pixel_spacing_mm: float
    slice_spacing_mm: float
    orientation: Orientation
    left_out: tuple[str, ...]

    @property
    def series_instance_uid(self) -> str:
        """That of the files."""
        return self.files[0].series_instance_uid

    def index_of(self, zyx_mm: Sequence[float]) -> tuple[float, float, float]:
        """Slice, row and column of a place in the patient's coordinates (z, y, x), in mm; they may be fractions."""
        z, y, x = zyx_mm
        x0, y0, z0 = self.origin_mm
        spacing = self.pixel_spacing_mm
        return (z - z0) / self.slice_spacing_mm, (y - y0) / spacing, (x - x0) / spacing

    def place_of(self, index: Sequence[float]) -> tuple[float, float, float]:
        """The patient's coordinates (z, y, x), in mm, of a slice, row and column."""
        k, row, column = index
        x0, y0, z0 = self.origin_mm
        spacing = self.pixel_spacing_mm
        return z0 + k * self.slice_spacing_mm, y0 + row * spacing, x0 + column * spacing

    @property
    def nifti_affine(self) -> np.ndarray:
        """Of volumes (W, H, Z) of the series: from column, row, slice to mm to the right, front and head, (4, 4)."""
        affine = np.diag([-self.pixel_spacing_mm, -self.pixel_spacing_mm, self.slice_spacing_mm, 1.0])
        x0, y0, z0 = self.origin_mm
        affine[:3, 3] = -x0, -y0, z0
        return affine


def read_series(folder: str | Path, series_instance_uid: str | None = None) -> CtSeries:
    """Read the CT series of a folder and its sub-folders.

    Files that are no axial CT slice (localizers, reports, segmentations) are left out, and whole copies of a file
    count once.

    Args:
        folder: where the files lie.
        series_instance_uid: which series is read; None if the folder holds one.

    Raises:
        DicomError: for no series, several of them, an enhanced CT, slices that cannot be read, lie at the same place,
            are missing, tilted, or of different size, spacing or orientation.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DicomError(f"{folder} is no folder")
    by_uid, faults = index_dicom(folder)
    left_out = [f"{Path(fault.path).name}: {fault.reason}" for fault in faults]
    good: dict[str, list[SliceFile]] = {}
    for uid, files in by_uid.items():
        left_out += [f"{Path(file.path).name}: {file.fault}" for file in files if file.fault is not None]
        if sound := _without_copies(file for file in files if file.fault is None):
            good[uid] = sound
    files = _chosen(good, series_instance_uid, folder)
    if any(file.frame is not None for file in files):
        raise DicomError(
            f"series {files[0].series_instance_uid} is an enhanced CT, which holds all slices in one file; "
            "write its frames as single files first"
        )
    return _read(files, left_out)


def _without_copies(files: Iterable[SliceFile]) -> list[SliceFile]:
    return list({file.key: file for file in sorted(files, key=lambda file: file.rank, reverse=True)}.values())


def _chosen(good: dict[str, list[SliceFile]], uid: str | None, folder: Path) -> list[SliceFile]:
    found = "; ".join(f"{name} ({len(files)} slices)" for name, files in sorted(good.items())) or "none"
    if uid is not None:
        if uid not in good:
            raise DicomError(f"no series {uid} of axial CT in {folder}; found: {found}")
        files = good[uid]
    else:
        whole = {name: files for name, files in good.items() if len(files) >= MIN_SLICES}
        if len(whole) != 1:
            raise DicomError(f"{len(whole)} series of axial CT in {folder}, and one is needed; found: {found}")
        (files,) = whole.values()
    if len(files) < MIN_SLICES:
        raise DicomError(f"series {files[0].series_instance_uid} has {len(files)} slice, and at least {MIN_SLICES}")
    return files


def _corner_mm(file: SliceFile, shape: tuple[int, int]) -> np.ndarray:
    """x, y and z of the pixel that comes first when the slice is turned to the standard orientation."""
    header = open_header(file.path).dataset
    position = np.array(numbers(header, "ImagePositionPatient", 3))
    cosines = np.array(numbers(header, "ImageOrientationPatient", 6)).reshape(2, 3)
    straight = np.sort(np.abs(cosines), axis=1)[:, -1]
    if straight.min() < STRAIGHT:
        raise DicomError(f"{Path(file.path).name} is tilted: orientation {cosines.ravel().round(4).tolist()}")
    row_spacing, column_spacing = numbers(header, "PixelSpacing", 2)
    along_row = cosines[0] * column_spacing * (shape[1] - 1)
    along_column = cosines[1] * row_spacing * (shape[0] - 1)
    corners = [position, position + along_row, position + along_column, position + along_row + along_column]
    # rows run to the left (x grows), columns to the back (y grows)
    return np.asarray(min(corners, key=lambda corner: corner[0] + corner[1]))


def _read(files: list[SliceFile], left_out: list[str]) -> CtSeries:
    """Read the slices, check how they lie, and put them in order."""
    missing = [Path(file.path).name for file in files if file.z_mm is None]
    if missing:
        raise DicomError(f"{missing[0]} has no position (ImagePositionPatient)")
    files = sorted(files, key=lambda file: (file.z_mm or 0.0, file.path))
    slices = []
    for file in files:
        try:
            slices.append(read_slice(file.path))
        except DicomError as error:
            raise DicomError(f"{Path(file.path).name}: {error}") from error
    for name, values in (
        ("sizes", ["x".join(map(str, one.hu.shape)) for one in slices]),
        ("pixel spacings", [f"{one.pixel_spacing_mm:g} mm" for one in slices]),
        ("orientations", [str(one.orientation) for one in slices]),
    ):
        if len(set(values)) > 1:
            raise DicomError(f"the slices have different {name}: {', '.join(sorted(set(values)))}")
    orientation = slices[0].orientation
    stored_shape = orientation.stored_shape(slices[0].hu.shape)
    corners = np.array([_corner_mm(file, stored_shape) for file in files])
    spacing = _slice_spacing(corners, files)
    return CtSeries(
        np.stack([one.hu for one in slices]),
        tuple(files),
        (float(corners[0, 0]), float(corners[0, 1]), float(corners[0, 2])),
        slices[0].pixel_spacing_mm,
        spacing,
        orientation,
        tuple(left_out),
    )


def _slice_spacing(corners: np.ndarray, files: Sequence[SliceFile]) -> float:
    """Distance of neighbouring slices in mm; DicomError for doubles, gaps and a tilted gantry."""
    steps = np.diff(corners[:, 2])
    spacing = float(np.median(steps))
    for number, step in enumerate(steps):
        pair = f"{Path(files[number].path).name} and {Path(files[number + 1].path).name}"
        if step < SAME_PLACE_MM:
            raise DicomError(f"{pair} lie at the same place, z = {corners[number, 2]:g} mm")
        if abs(step - spacing) > MAX_SPACING_ERROR * spacing:
            raise DicomError(
                f"{pair} are {step:g} mm apart, the other slices {spacing:g} mm: slices are missing, or too many"
            )
    shift = np.abs(np.diff(corners[:, :2], axis=0)).max()
    if shift > MAX_SHIFT_MM:
        raise DicomError(f"neighbouring slices are shifted by {shift:.2f} mm: a tilted gantry, which is not read")
    return spacing
