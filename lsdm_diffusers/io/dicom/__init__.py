"""Axial CT slices from DICOM files: an index of the files of a folder, and one slice in Hounsfield units (HU).

The files may be broken, of another kind, or made to do harm. Each file that gives no slice is refused with a reason.
An enhanced CT, which holds a series in one file, gives its frames as the slices.
"""

from .files import FileFault, SliceFile, find_files, index_dicom, read_headers
from .header import DicomError, describe_error
from .orientation import STANDARD, Orientation
from .series import CtSeries, read_series
from .slices import CtSlice, read_slice, slice_fault

__all__ = [
    "STANDARD",
    "CtSeries",
    "CtSlice",
    "DicomError",
    "FileFault",
    "Orientation",
    "SliceFile",
    "describe_error",
    "find_files",
    "index_dicom",
    "read_headers",
    "read_series",
    "read_slice",
    "slice_fault",
]
