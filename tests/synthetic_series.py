"""A synthetic series of chest CT as DICOM files."""

from pathlib import Path

import numpy as np

from lsdm_diffusers.io.dicom import Orientation

from .synthetic_dicom import thorax_hu, write_slice

SPACING = 2.8  # mm, of every fourth pixel
SLICE_SPACING = 2.5  # mm
CORNERS = {  # of the stored orientation: how it is turned, and which corner of the straight slice comes first
    (1, 0, 0, 0, 1, 0): (Orientation(), (0, 0)),
    (-1, 0, 0, 0, -1, 0): (Orientation(False, True, True), (127, 127)),
    (0, 1, 0, 1, 0, 0): (Orientation(True), (0, 0)),
    (1, 0, 0, 0, -1, 0): (Orientation(False, True, False), (127, 0)),
}


def series_hu(count: int = 6) -> np.ndarray:
    """(Z, 128, 128), int16: a thorax with noise."""
    noise = np.random.default_rng(0).normal(0, 15, (count, 128, 128))
    return (thorax_hu()[::4, ::4] + noise).round().astype(np.int16)


def write_series(folder: Path, count: int = 6, order=None, cosines=(1, 0, 0, 0, 1, 0), **tags) -> Path:
    """Write a series, slice k from the feet as `k.dcm`; `order` gives the instance numbers."""
    folder.mkdir(parents=True)
    orientation, (row, column) = CORNERS[tuple(cosines)]
    for index, hu in enumerate(series_hu(count)):
        elements = {
            "SOPInstanceUID": f"1.2.{index + 1}",
            "SeriesInstanceUID": "1.2",
            "StudyInstanceUID": "1.1",
            "FrameOfReferenceUID": "1.4",
            "SeriesNumber": 2,
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "PatientIdentityRemoved": "YES",
            "InstanceNumber": (order[index] if order else index) + 1,
            "ImagePositionPatient": [-180 + column * SPACING, -170 + row * SPACING, -10 + SLICE_SPACING * index],
            "ImageOrientationPatient": list(cosines),
            "PixelSpacing": [SPACING, SPACING],
            "SliceThickness": SLICE_SPACING,
            **tags,
        }
        write_slice(folder / f"{index}.dcm", orientation.turn_back(np.clip(hu, -1024, 3071)), **elements)
    return folder
