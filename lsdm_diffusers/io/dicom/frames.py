"""The frames of an enhanced CT, which holds a series in one file (DICOM PS3.3, sections A.38 and C.7.6.16).

Such a file states in functional groups what the header of a slice states: those of each frame, and shared ones.
"""

import pydicom

from .header import DicomError

# The sequences of a functional group that say what the header of a slice says.
MACROS = (
    "PixelMeasuresSequence",  # PixelSpacing, SliceThickness
    "PlaneOrientationSequence",  # ImageOrientationPatient
    "PlanePositionSequence",  # ImagePositionPatient
    "PixelValueTransformationSequence",  # RescaleSlope, RescaleIntercept, RescaleType
    "CTImageFrameTypeSequence",  # FrameType
)
# Fourth value of FrameType (section C.8.16.1.4): derived from several slices or energies, and still in HU of tissue.
TISSUE_CONTRASTS = ("", "NONE", "FILTERED", "RESAMPLED", "MEAN", "ENERGY_PROP_WT")


def frame_count(dataset: pydicom.Dataset) -> int:
    """Number of frames; 1 for the file of one slice."""
    return int(dataset.get("NumberOfFrames") or 1)


def frame_header(dataset: pydicom.Dataset, frame: int) -> pydicom.Dataset:
    """The header of one frame as if it were the file of a slice; without functional groups the header itself.

    What the groups of the frame state takes the place of the shared groups, and these that of the file.

    Args:
        dataset: the header of the file.
        frame: number of the frame, from 1 as DICOM counts.

    Raises:
        DicomError: for several frames without functional groups, or other groups than frames.
    """
    frames = frame_count(dataset)
    of_frames = dataset.get("PerFrameFunctionalGroupsSequence")
    if of_frames is None:
        if frames != 1:
            raise DicomError(f"{frames} frames in one file without functional groups, which say where each one lies")
        return dataset
    if len(of_frames) != frames:
        raise DicomError(f"{frames} frames in one file, but functional groups of {len(of_frames)}")
    header = pydicom.Dataset()
    header.update(dataset)
    header.file_meta = dataset.file_meta
    for group in (*(dataset.get("SharedFunctionalGroupsSequence") or ()), of_frames[frame - 1]):
        for macro in MACROS:
            for item in group.get(macro) or ():
                header.update(item)
    return header


def check_frame_type(header: pydicom.Dataset) -> None:
    """Raise DicomError for a frame that is no slice of tissue in HU: a localizer, a maximum, a subtraction."""
    frame_type = header.get("FrameType") or ()
    values = [str(value).strip().upper() for value in ([frame_type] if isinstance(frame_type, str) else frame_type)]
    _, _, flavour, contrast = [*values, "", "", "", ""][:4]
    if flavour == "LOCALIZER" or contrast not in TISSUE_CONTRASTS:
        shown = "\\".join(values)[:64].encode("ascii", "replace").decode()
        raise DicomError(f"frame type '{shown}' is not that of a slice of tissue")
