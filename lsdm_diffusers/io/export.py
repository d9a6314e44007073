"""Save a generated CT slice for viewers and programs: PNG, NumPy, NIfTI, DICOM, and the JSON of its parameters.

Each file is written whole or not at all.
"""

import datetime
import gzip
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
from PIL.PngImagePlugin import PngInfo

from ..ct_limits import DEFAULT_PIXEL_SPACING, MAX_STORED_HU, check_pixel_spacing
from ..hounsfield import HU_MIN, apply_window, window_limits
from ..version import __version__
from .atomic_write import part_file, write_atomically

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

NOTICE = "SYNTHETIC image made by lsdm_diffusers, not of a patient. Not for clinical use."
SUFFIXES = {"png": ".png", "npy": ".npy", "nifti": ".nii.gz", "dicom": ".dcm", "json": ".json"}
SLICE_THICKNESS_MM = (0.1, 20.0)  # lowest and highest
DEFAULT_SLICE_THICKNESS = 2.5  # mm; the thickest slices of the thesis' data (section 4.1)
NIFTI_DESCRIPTION_BYTES = 79  # the header has 80, the last of them is zero


def _check_slice(hu: Any) -> np.ndarray:
    hu = np.asarray(hu)
    if hu.ndim != 2 or 0 in hu.shape:
        raise ValueError(f"`hu` has shape {hu.shape}, but one slice (H, W) is needed.")
    if not np.issubdtype(hu.dtype, np.integer):
        raise ValueError(
            f"`hu` has dtype {hu.dtype}, but whole Hounsfield units are needed, "
            'as the pipeline\'s `output_type="hu"` gives.'
        )
    if hu.min() < HU_MIN or hu.max() > MAX_STORED_HU:
        raise ValueError(f"`hu` has values {hu.min()}..{hu.max()}, but those of CT are {HU_MIN}..{MAX_STORED_HU}.")
    return hu.astype(np.int16)


def _check_sizes(pixel_spacing: float, slice_thickness: float) -> None:
    check_pixel_spacing(pixel_spacing)
    low, high = SLICE_THICKNESS_MM
    if not low <= slice_thickness <= high:
        raise ValueError(f"`slice_thickness` is {slice_thickness}, but slices of {low:g}..{high:g} mm can be saved.")


def save_png(hu: Any, path: str | Path, window: str | tuple[float, float] = "lung") -> None:
    """Save an 8-bit grey picture of the slice, for looking at: it does not hold the HU.

    Args:
        hu: Hounsfield units, (H, W).
        path: of the file.
        window: "lung", "mediastinal", "bone", or a pair (centre, width) in HU.

    Raises:
        ValueError: for another window.
    """
    text = PngInfo()
    text.add_text("Description", NOTICE)
    image = PIL.Image.fromarray(apply_window(hu, window))
    with part_file(Path(path)) as part:
        image.save(part, format="png", pnginfo=text)


def save_npy(hu: Any, path: str | Path) -> None:
    """Save Hounsfield units as an int16 NumPy file, rows from anterior to posterior.

    Args:
        hu: integer Hounsfield units, (H, W), -1024..3071.
        path: of the file.

    Raises:
        ValueError: for another `hu`.
    """
    hu = _check_slice(hu)
    with part_file(Path(path)) as part, open(part, "wb") as file:  # np.save would append .npy to another suffix
        np.save(file, hu, allow_pickle=False)


def save_nifti(
    hu: Any,
    path: str | Path,
    pixel_spacing: float = DEFAULT_PIXEL_SPACING,
    slice_thickness: float = DEFAULT_SLICE_THICKNESS,
) -> None:
    """Save Hounsfield units as a NIfTI volume (W, H, 1) of int16 with the affine of an axial slice.

    The centre of the slice is the origin. The axes run to the patient's left, posterior and superior, as in
    `save_dicom`: first the columns of the slice, then its rows.

    Args:
        hu: integer Hounsfield units, (H, W), -1024..3071.
        path: of the file, with the suffix ".nii" or, compressed, ".nii.gz".
        pixel_spacing: edge of a pixel in mm, 0.1..5.
        slice_thickness: in mm, 0.1..20.

    Raises:
        ValueError: for a value outside these ranges, or another suffix.
    """
    import nibabel

    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"`path` is {path}, but a name that ends in .nii or .nii.gz is needed.")
    hu = _check_slice(hu)
    _check_sizes(pixel_spacing, slice_thickness)
    height, width = hu.shape
    affine = np.diag([-pixel_spacing, -pixel_spacing, slice_thickness, 1.0])  # NIfTI counts to the right and anterior
    affine[:2, 3] = (width - 1) / 2 * pixel_spacing, (height - 1) / 2 * pixel_spacing
    image = nibabel.Nifti1Image(hu.T[:, :, None], affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = NOTICE.encode()[:NIFTI_DESCRIPTION_BYTES]
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    content = image.to_bytes()
    write_atomically(path, gzip.compress(content) if path.suffix == ".gz" else content)


def save_dicom(
    hu: Any,
    path: str | Path,
    pixel_spacing: float = DEFAULT_PIXEL_SPACING,
    slice_thickness: float = DEFAULT_SLICE_THICKNESS,
    window: str | tuple[float, float] = "lung",
) -> None:
    """Save the slice as a DICOM file of class CT Image Storage, supine, head first, marked as synthetic and derived.

    It has the Type 1 and 2 attributes of the CT Image IOD (DICOM PS3.3, A.3), and a new study, series and instance.

    Args:
        hu: integer Hounsfield units, (H, W), -1024..3071.
        path: of the file.
        pixel_spacing: edge of a pixel in mm, 0.1..5.
        slice_thickness: in mm, 0.1..20.
        window: what a viewer opens with: "lung", "mediastinal", "bone", or a pair (centre, width) in HU.

    Raises:
        ValueError: for a value outside these.
    """
    hu = _check_slice(hu)
    _check_sizes(pixel_spacing, slice_thickness)
    dicom = dicom_dataset(hu, pixel_spacing, slice_thickness, window_limits(window))
    with part_file(Path(path)) as part:
        dicom.save_as(part, enforce_file_format=True)


def dicom_dataset(
    hu: np.ndarray, pixel_spacing: float, slice_thickness: float, window: tuple[float, float] | None = None
) -> "Dataset":
    """The DICOM file of a slice, of a study, series and frame of reference of its own.

    Args:
        hu: checked Hounsfield units, (H, W), int16.
        pixel_spacing: edge of a pixel in mm.
        slice_thickness: in mm.
        window: centre and width that a viewer opens with; None takes that of the lung.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
    from pydicom.valuerep import DSfloat

    def decimal(value: float) -> DSfloat:
        return DSfloat(value, auto_format=True)  # a decimal string has at most 16 characters

    height, width = hu.shape
    centre, window_width = window or window_limits("lung")
    now = datetime.datetime.now()
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    instance = generate_uid(prefix=None)  # 2.25 and a random UUID, which needs no registered root

    dicom = Dataset()
    dicom.file_meta = FileMetaDataset()
    dicom.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dicom.file_meta.MediaStorageSOPInstanceUID = instance
    dicom.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian

    # patient and study
    dicom.PatientName = "SYNTHETIC^NOT A PATIENT"
    dicom.PatientID = "SYNTHETIC"
    dicom.PatientBirthDate = dicom.PatientSex = ""
    dicom.StudyInstanceUID = generate_uid(prefix=None)
    dicom.StudyDate, dicom.StudyTime = date, time
    dicom.StudyDescription = "SYNTHETIC CT"
    dicom.StudyID = "SYNTHETIC"
    dicom.AccessionNumber = dicom.ReferringPhysicianName = ""
    # series, frame of reference, equipment
    dicom.Modality = "CT"
    dicom.SeriesInstanceUID = generate_uid(prefix=None)
    dicom.SeriesNumber = 1
    dicom.SeriesDescription = "SYNTHETIC - NOT FOR CLINICAL USE"
    dicom.BodyPartExamined = "CHEST"
    dicom.PatientPosition = "HFS"
    dicom.FrameOfReferenceUID = generate_uid(prefix=None)
    dicom.PositionReferenceIndicator = ""
    dicom.Manufacturer = dicom.ManufacturerModelName = "lsdm_diffusers"
    dicom.SoftwareVersions = __version__
    # image
    dicom.SOPClassUID = CTImageStorage
    dicom.SOPInstanceUID = instance
    dicom.InstanceCreationDate, dicom.InstanceCreationTime = date, time
    dicom.ContentDate, dicom.ContentTime = date, time
    dicom.ContentQualification = "RESEARCH"
    dicom.SyntheticData = "YES"
    dicom.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    dicom.DerivationDescription = (
        "Sampled from a semantic map by a latent semantic diffusion model; no patient was imaged."
    )
    dicom.ImageComments = NOTICE
    dicom.BurnedInAnnotation = "NO"
    dicom.InstanceNumber = 1
    dicom.AcquisitionNumber = dicom.KVP = None
    # plane: rows run to the patient's left, columns to the back
    dicom.PixelSpacing = [decimal(pixel_spacing)] * 2
    dicom.SliceThickness = decimal(slice_thickness)
    dicom.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dicom.ImagePositionPatient = [decimal(-(size - 1) / 2 * pixel_spacing) for size in (width, height)] + [0]
    # pixels
    dicom.SamplesPerPixel = 1
    dicom.PhotometricInterpretation = "MONOCHROME2"
    dicom.Rows, dicom.Columns = height, width
    dicom.BitsAllocated = dicom.BitsStored = 16
    dicom.HighBit = 15
    dicom.PixelRepresentation = 1
    dicom.RescaleIntercept, dicom.RescaleSlope, dicom.RescaleType = 0, 1, "HU"
    dicom.WindowCenter, dicom.WindowWidth = decimal(centre), decimal(window_width)
    dicom.PixelData = hu.astype("<i2").tobytes()
    return dicom


def export_ct(
    hu: Any,
    folder: str | Path,
    name: str,
    formats: Sequence[str] = ("png", "npy", "nifti", "dicom", "json"),
    pixel_spacing: float = DEFAULT_PIXEL_SPACING,
    slice_thickness: float = DEFAULT_SLICE_THICKNESS,
    window: str | tuple[float, float] = "lung",
    parameters: Mapping[str, Any] | None = None,
) -> dict[str, Path]:
    """Save one slice in several formats. All but "png" and "json" hold whole HU. All arguments are checked first.

    Args:
        hu: integer Hounsfield units, (H, W), -1024..3071, rows from anterior to posterior, columns from the patient's
            right to the left.
        folder: where to write; it is made if absent.
        name: the files' name without suffix: letters, digits, spaces, ".", "_" and "-".
        formats: of "png" (8 bit, in the window), "npy", "nifti" (.nii.gz), "dicom" (.dcm) and "json".
        pixel_spacing: edge of a pixel in mm, 0.1..5.
        slice_thickness: in mm, 0.1..20.
        window: of the PNG, and what a DICOM viewer opens with: "lung", "mediastinal", "bone", or a pair (centre,
            width) in HU.
        parameters: what made the image, for the JSON.

    Returns:
        The path of each format.

    Raises:
        ValueError: for an argument outside these.
    """
    hu = _check_slice(hu)
    _check_sizes(pixel_spacing, slice_thickness)
    centre, width = window_limits(window)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}", name):
        raise ValueError(
            f'`name` is {name!r}, but up to 100 letters, digits, spaces, ".", "_" and "-" are needed, '
            "a letter or digit first."
        )
    unknown = [format for format in formats if format not in SUFFIXES]
    if unknown or isinstance(formats, str):
        raise ValueError(f"`formats` is {formats!r}, but a list of {', '.join(map(repr, SUFFIXES))} is needed.")
    description = {
        **(parameters or {}),
        "notice": NOTICE,
        "shape": list(hu.shape),
        "pixel_spacing_mm": pixel_spacing,
        "slice_thickness_mm": slice_thickness,
        "window": {"centre": centre, "width": width},
    }
    try:
        text = json.dumps(description, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"`parameters` cannot be written as JSON: {error}.") from error

    paths = {format: Path(folder) / (name + SUFFIXES[format]) for format in formats}
    for format, path in paths.items():
        if format == "png":
            save_png(hu, path, window)
        elif format == "npy":
            save_npy(hu, path)
        elif format == "nifti":
            save_nifti(hu, path, pixel_spacing, slice_thickness)
        elif format == "dicom":
            save_dicom(hu, path, pixel_spacing, slice_thickness, window)
        else:
            write_atomically(path, text.encode())
    return paths
