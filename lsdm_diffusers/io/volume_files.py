"""Volumes of slices as files: maps from NIfTI or a folder of pictures, slices to NIfTI and a DICOM series."""

import gzip
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..ct_limits import check_pixel_spacing
from ..map_file import check_not_one_hot
from ..semantic_map import read_semantic_map
from .atomic_write import part_file, write_atomically
from .export import NIFTI_DESCRIPTION_BYTES, NOTICE, dicom_dataset

MAP_SUFFIXES = (".png", ".npy")
STRAIGHT = 0.999  # cosine of 2.6 degrees: the axes of the file run along those of the patient


class MapVolume(NamedTuple):
    """Maps of neighbouring slices.

    Args:
        labels: 0..7, (Z, H, W), uint8, from the feet; rows run to the patient's left, columns to the back.
        pixel_spacing: edge of a pixel in mm.
        slice_spacing: distance of neighbouring slices in mm.
        affine: of NIfTI volumes (W, H, Z): from column, row and slice to mm to the right, front and head, (4, 4).
    """

    labels: np.ndarray
    pixel_spacing: float
    slice_spacing: float
    affine: np.ndarray


def _check_spacing(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` is {value}, but a finite number of mm above 0 is needed.")


def centred_affine(shape: Sequence[int], pixel_spacing: float, slice_spacing: float) -> np.ndarray:
    """The affine of a volume (Z, H, W) whose centre is the origin."""
    depth, height, width = shape
    affine = np.diag([-pixel_spacing, -pixel_spacing, slice_spacing, 1.0])
    affine[:3, 3] = (
        (width - 1) / 2 * pixel_spacing,
        (height - 1) / 2 * pixel_spacing,
        -(depth - 1) / 2 * slice_spacing,
    )
    return affine


def read_map_volume(path: str | Path, pixel_spacing: float | None, slice_spacing: float | None) -> MapVolume:
    """Read the maps of a volume from a NIfTI file, or from the pictures of a folder in the order of their names.

    Args:
        path: of the file or the folder.
        pixel_spacing: edge of a pixel in mm; needed for a folder, and not taken for a NIfTI file, which states it.
        slice_spacing: distance of neighbouring slices in mm; likewise.

    Raises:
        ValueError: for another file, oblique axes, pixels that are not square, maps of different sizes, labels outside
            0..7, or a spacing that is missing or given twice.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, pixel_spacing, slice_spacing)
    if pixel_spacing is not None or slice_spacing is not None:
        raise ValueError(f"`semantic_map` is {path.name}, which states its spacings; leave them out.")
    import nibabel

    try:
        image: Any = nibabel.as_closest_canonical(nibabel.load(path))  # axes to the patient's right, front and head
        values = np.asarray(image.dataobj)
        oriented = bool(image.header["sform_code"] or image.header["qform_code"])
    except Exception as error:  # a broken file can raise nearly anything
        raise ValueError(f"`semantic_map` is {path.name}, which is no NIfTI file, or a damaged one.") from error
    if not oriented:
        raise ValueError(
            f"`semantic_map` is {path.name}, a NIfTI file without orientation (sform_code and qform_code)."
        )
    if values.ndim != 3:
        raise ValueError(
            f"`semantic_map` is {path.name} of shape {values.shape}, but (columns, rows, slices) is needed."
        )
    steps = image.affine[:3, :3]
    lengths = np.linalg.norm(steps, axis=0)
    if (np.abs(np.diag(steps)) / lengths).min() < STRAIGHT:
        raise ValueError(f"`semantic_map` is {path.name}, whose axes do not run along those of the patient.")
    if abs(lengths[0] - lengths[1]) > 0.01 * lengths[0]:
        raise ValueError(
            f"`semantic_map` is {path.name} with pixels of {lengths[0]:g} x {lengths[1]:g} mm, but square "
            "pixels are needed."
        )
    check_pixel_spacing(float(lengths[0]))
    width, height, _ = values.shape
    flip = np.array([[-1, 0, 0, width - 1], [0, -1, 0, height - 1], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=np.float64)
    stack = values[::-1, ::-1].transpose(2, 1, 0)
    whole = stack.astype(np.int64) if (stack == np.rint(stack)).all() else stack
    return MapVolume(read_semantic_map(whole), float(lengths[0]), float(lengths[2]), image.affine @ flip)


def _read_folder(folder: Path, pixel_spacing: float | None, slice_spacing: float | None) -> MapVolume:
    if pixel_spacing is None or slice_spacing is None:
        missing = "pixel_spacing" if pixel_spacing is None else "slice_spacing_mm"
        raise ValueError(f"`semantic_map` is the folder {folder}, so `{missing}` is needed.")
    check_pixel_spacing(pixel_spacing)
    _check_spacing("slice_spacing_mm", slice_spacing)
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in MAP_SUFFIXES)
    if not paths:
        raise ValueError(f"`semantic_map` is the folder {folder}, but it has no PNG and no .npy file.")
    maps = []
    for path in paths:
        try:
            maps.append(read_semantic_map(path))
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from error
        check_not_one_hot(maps[-1])
        if maps[-1].shape != maps[0].shape or maps[-1].ndim != 2:
            raise ValueError(f"{path.name} has shape {maps[-1].shape}, but {paths[0].name} {maps[0].shape}.")
    labels = np.stack(maps)
    return MapVolume(labels, pixel_spacing, slice_spacing, centred_affine(labels.shape, pixel_spacing, slice_spacing))


def save_nifti_volume(values: np.ndarray, path: Path, affine: np.ndarray) -> None:
    """Save a volume (Z, H, W) of int16 or uint8 as a NIfTI file, compressed.

    Args:
        values: HU or labels.
        path: of the file, `.nii.gz`.
        affine: as `MapVolume` has it.
    """
    import nibabel

    image = nibabel.Nifti1Image(values.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = NOTICE.encode()[:NIFTI_DESCRIPTION_BYTES]
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    write_atomically(path, gzip.compress(image.to_bytes()))


def save_dicom_series(
    hu: np.ndarray, folder: Path, affine: np.ndarray, pixel_spacing: float, slice_spacing: float
) -> list[Path]:
    """Save a volume as a DICOM series, marked as synthetic: `slice-0000.dcm` and so on, from the feet to the head.

    Args:
        hu: (Z, H, W), int16, in Hounsfield units, -1024..3071.
        folder: of the files.
        affine: as `MapVolume` has it.
        pixel_spacing: edge of a pixel in mm.
        slice_spacing: distance of neighbouring slices in mm; also their thickness.
    """
    from pydicom.uid import generate_uid

    shared = {
        name: generate_uid(prefix=None) for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    }
    paths = []
    for index, values in enumerate(hu):
        dataset = dicom_dataset(values, pixel_spacing, slice_spacing)
        for name, uid in shared.items():
            setattr(dataset, name, uid)
        dataset.InstanceNumber = index + 1
        right, front, head = (affine @ np.array([0, 0, index, 1.0]))[:3]
        dataset.ImagePositionPatient = [round(float(value), 4) for value in (-right, -front, head)]
        paths.append(folder / f"slice-{index:04d}.dcm")
        with part_file(paths[-1]) as part:
            dataset.save_as(part, enforce_file_format=True)
    return paths
