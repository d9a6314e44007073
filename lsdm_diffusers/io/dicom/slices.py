"""One axial CT slice of a DICOM file."""

from typing import NamedTuple

import numpy as np

from .frames import check_frame_type, frame_count, frame_header
from .header import MAX_EDGE, DicomError, describe_error, number_or_none, open_header, pixel_spacing_of, slice_shape
from .orientation import STANDARD, Orientation, orientation_of
from .pixels import hounsfield_units


class CtSlice(NamedTuple):
    """One axial slice."""

    hu: np.ndarray  # (H, W) int16, in the standard orientation; padding outside the scan circle is -1024
    pixel_spacing_mm: float
    slice_thickness_mm: float | None
    contrast_used: bool
    patient_id: str
    sop_instance_uid: str
    orientation: Orientation = STANDARD  # how the stored pixels were turned


def read_slice(path: str, max_pixels: int = MAX_EDGE**2, whole_hu: bool = True, frame: int | None = None) -> CtSlice:
    """Read one axial CT slice in Hounsfield units, turned to the standard orientation by its header.

    Rescale slope and intercept are applied. These pixels become -1024: those of the stated padding value that are
    joined to the border or above 3071 HU, values above 30710 HU, and all values below -1024.

    Args:
        path: of the DICOM file.
        max_pixels: a slice of more pixels is refused before its pixels are decoded.
        whole_hu: round to whole HU. False keeps the fractions of a slope that is not whole, and gives float32.
        frame: number of the frame, from 1, of an enhanced CT, which holds several slices in one file.

    Raises:
        DicomError: with the reason, if the file is unreadable, not CT, not axial, has several frames and `frame` names
            none of them, no rescale, pixels that are not square or cannot be decoded, or values that are not those of
            a chest slice.
    """
    header = open_header(path)
    dataset = header.dataset
    try:
        frames = frame_count(dataset)
        if frame is None and frames != 1 and "PerFrameFunctionalGroupsSequence" in dataset:
            raise DicomError(f"{frames} frames in one file, but `frame` does not say which of them is read")
        number = 1 if frame is None else frame
        if not 1 <= number <= frames:
            raise DicomError(f"`frame` is {frame}, but 1..{frames} are in the file")
        of_frame = frame_header(dataset, number)
        shape = slice_shape(of_frame, max_pixels)
        check_frame_type(of_frame)
        pixel_spacing = pixel_spacing_of(of_frame)
        orientation = orientation_of(of_frame)
        hu = orientation.turn(hounsfield_units(path, header, of_frame, number, shape))
        hu = np.rint(hu).astype(np.int16) if whole_hu else hu.astype(np.float32)
        thickness = number_or_none(of_frame, "SliceThickness")
        agent = str(dataset.get("ContrastBolusAgent") or "").strip() or dataset.get("ContrastBolusAgentSequence")
        return CtSlice(
            hu,
            pixel_spacing,
            thickness if thickness is not None and thickness > 0 else None,
            bool(agent),
            str(dataset.get("PatientID", "")),
            str(dataset.get("SOPInstanceUID", "")),
            orientation,
        )
    except DicomError:
        raise
    except Exception as error:
        raise DicomError(f"unreadable ({describe_error(error)})") from error


def slice_fault(path: str, frame: int | None = None) -> str | None:
    """Why a file, or a frame of it, gives no slice; None if it gives one."""
    try:
        read_slice(path, frame=frame)
    except DicomError as error:
        return str(error)
    return None
