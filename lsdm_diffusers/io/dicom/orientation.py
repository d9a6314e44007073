"""How the pixels of a slice are turned to the standard orientation, and what its header says of that."""

from typing import NamedTuple

import numpy as np
import pydicom

from .header import DicomError, numbers

MIN_AXIAL_COSINE = 0.9  # of the angle between an axis of the image and one of the patient; allows 25 degrees of tilt


class Orientation(NamedTuple):
    """How stored pixels are turned to the standard orientation: rows run to the patient's left, columns to the back.

    Rows and columns are exchanged first, then their order is reversed. The default is the standard orientation.
    """

    exchanged: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False

    def turn(self, stored: np.ndarray) -> np.ndarray:
        """An image or mask (H, W) of the stored pixels in the standard orientation."""
        image = stored.T if self.exchanged else stored
        row_step = -1 if self.rows_reversed else 1
        column_step = -1 if self.columns_reversed else 1
        return np.ascontiguousarray(image[::row_step, ::column_step])

    def turn_back(self, image: np.ndarray) -> np.ndarray:
        """An image or mask (H, W) of the standard orientation as the pixels are stored."""
        row_step = -1 if self.rows_reversed else 1
        column_step = -1 if self.columns_reversed else 1
        unreversed = image[::row_step, ::column_step]
        return np.ascontiguousarray(unreversed.T if self.exchanged else unreversed)

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of the stored pixels of a turned slice of this shape."""
        height, width = shape
        return (width, height) if self.exchanged else (height, width)

    @property
    def is_standard(self) -> bool:
        """Whether the pixels stay as they are."""
        return not any(self)

    def __str__(self) -> str:
        if self == Orientation(rows_reversed=True, columns_reversed=True):
            return "turned by 180 degrees"
        steps = {
            "rows and columns exchanged": self.exchanged,
            "order of rows reversed": self.rows_reversed,
            "order of columns reversed": self.columns_reversed,
        }
        return ", ".join(step for step, done in steps.items() if done) or "standard"


STANDARD = Orientation()


def orientation_of(dataset: pydicom.Dataset) -> Orientation:
    """How the pixels are turned to the standard orientation; other planes than the axial one are refused."""
    cosines = numbers(dataset, "ImageOrientationPatient", 6)
    along_row, along_column = np.array(cosines[:3]), np.array(cosines[3:])
    exchanged = abs(along_row[1]) > abs(along_row[0])
    to_left, to_back = (along_column[0], along_row[1]) if exchanged else (along_row[0], along_column[1])
    axis = 1 if exchanged else 0
    along_axis = abs(along_row[axis]) > MIN_AXIAL_COSINE
    axial = abs(np.cross(along_row, along_column)[2]) > MIN_AXIAL_COSINE
    if not (along_axis and axial):
        raise DicomError(f"orientation {cosines} is not that of an axial slice")
    return Orientation(bool(exchanged), bool(to_back < 0), bool(to_left < 0))
