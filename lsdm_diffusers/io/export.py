"""Save a generated CT slice for viewers and programs: PNG, NumPy, NIfTI, DICOM, and the JSON of its parameters."""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from PIL.PngImagePlugin import PngInfo

from ..hounsfield import apply_window, window_limits

NOTICE = "SYNTHETIC image made by lsdm_diffusers, not of a patient. Not for clinical use."


def _check(hu, pixel_spacing: float, slice_thickness: float) -> np.ndarray:
    """The slice as int16, if the arguments that all formats share are right."""
    hu = np.asarray(hu)
    if hu.ndim != 2 or 0 in hu.shape:
        raise ValueError(f"`hu` has shape {hu.shape}, but one slice (H, W) is needed.")
    if not np.issubdtype(hu.dtype, np.integer):
        raise ValueError(
            f'`hu` has dtype {hu.dtype}, but whole Hounsfield units are needed, as the pipeline\'s `output_type="hu"` gives.'
        )
    if hu.min() < -1024 or hu.max() > 3071:
        raise ValueError(f"`hu` has values {hu.min()}..{hu.max()}, but those of CT are -1024..3071.")
    if not 0.1 <= pixel_spacing <= 5:
        raise ValueError(f"`pixel_spacing` is {pixel_spacing}, but the edge of a pixel of chest CT is 0.1..5 mm.")
    if not 0.1 <= slice_thickness <= 20:
        raise ValueError(f"`slice_thickness` is {slice_thickness}, but slices of 0.1..20 mm can be saved.")
    return hu.astype(np.int16)


def save_png(hu, path, window: str | tuple[float, float] = "lung") -> None:
    """8-bit grey picture of the slice (H, W) in a window; for looking at, as it does not hold the HU."""
    text = PngInfo()
    text.add_text("Description", NOTICE)
    PIL.Image.fromarray(apply_window(hu, window)).save(path, format="png", pnginfo=text)


def save_npy(hu, path) -> None:
    """Hounsfield units (H, W) as an int16 NumPy file, rows from anterior to posterior."""
    with open(path, "wb") as file:  # np.save would append .npy to another suffix
        np.save(file, _check(hu, 1, 1), allow_pickle=False)


def save_nifti(hu, path, pixel_spacing: float = 0.7, slice_thickness: float = 2.5) -> None:
    """Hounsfield units (H, W) as a NIfTI volume (W, H, 1) of int16 with the affine of an axial slice, its centre at the origin.

    Axes run to the patient's left, posterior and superior, those of `save_dicom`: columns of the slice first, then rows.
    """
    import nibabel

    hu = _check(hu, pixel_spacing, slice_thickness)
    height, width = hu.shape
    affine = np.diag([-pixel_spacing, -pixel_spacing, slice_thickness, 1.0])  # NIfTI counts to the right and anterior
    affine[:2, 3] = (width - 1) / 2 * pixel_spacing, (height - 1) / 2 * pixel_spacing
    image = nibabel.Nifti1Image(hu.T[:, :, None], affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = NOTICE.encode()[:79]
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    nibabel.save(image, path)


def save_dicom(
    hu, path, pixel_spacing: float = 0.7, slice_thickness: float = 2.5, window: str | tuple[float, float] = "lung"
) -> None:
    """The slice (H, W) as a DICOM file of class CT Image Storage, supine, head first, marked as synthetic and derived.

    It has the Type 1 and 2 attributes of the CT Image IOD (DICOM PS3.3, A.3) and a study, series and instance of its own.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
    from pydicom.valuerep import DSfloat

    from ..version import __version__

    hu = _check(hu, pixel_spacing, slice_thickness)
    height, width = hu.shape
    centre, breadth = window_limits(window)
    now = datetime.datetime.now()
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")

    def decimal(value: float) -> DSfloat:
        return DSfloat(value, auto_format=True)  # a decimal string has at most 16 characters

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
    dicom.WindowCenter, dicom.WindowWidth = decimal(centre), decimal(breadth)
    dicom.PixelData = hu.astype("<i2").tobytes()
    dicom.save_as(path, enforce_file_format=True)


def export_ct(
    hu,
    folder,
    name: str,
    formats: Sequence[str] = ("png", "npy", "nifti", "dicom", "json"),
    pixel_spacing: float = 0.7,
    slice_thickness: float = 2.5,
    window: str | tuple[float, float] = "lung",
    parameters: Mapping | None = None,
) -> dict[str, Path]:
    """Save one slice in several formats, after all arguments are found right. HU are whole in each but "png" and "json".

    Args:
        hu: integer Hounsfield units, (H, W), -1024..3071, rows from anterior to posterior, columns from the patient's right to the left.
        folder: where to write; it is made if absent.
        name: the files' name without suffix: letters, digits, spaces, ".", "_" and "-".
        formats: of "png" (8 bit, in the window), "npy", "nifti" (.nii.gz), "dicom" (.dcm) and "json".
        pixel_spacing: edge of a pixel in mm.
        slice_thickness: in mm.
        window: of the PNG, and the one a DICOM viewer opens with: "lung", "mediastinal", "bone", or a pair (centre, width) in HU.
        parameters: what made the image, for the JSON.

    Returns:
        The path of each format.

    Raises:
        ValueError: for an argument outside these.
    """
    hu = _check(hu, pixel_spacing, slice_thickness)
    centre, width = window_limits(window)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}", name):
        raise ValueError(
            f'`name` is {name!r}, but up to 100 letters, digits, spaces, ".", "_" and "-" are needed, a letter or digit first.'
        )
    suffixes = {"png": ".png", "npy": ".npy", "nifti": ".nii.gz", "dicom": ".dcm", "json": ".json"}
    unknown = [format for format in formats if format not in suffixes]
    if unknown or isinstance(formats, str):
        raise ValueError(f"`formats` is {formats!r}, but a list of {', '.join(map(repr, suffixes))} is needed.")
    described = {
        **(parameters or {}),
        "notice": NOTICE,
        "shape": list(hu.shape),
        "pixel_spacing_mm": pixel_spacing,
        "slice_thickness_mm": slice_thickness,
        "window": {"centre": centre, "width": width},
    }
    try:
        text = json.dumps(described, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"`parameters` cannot be written as JSON: {error}.") from error

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {format: folder / (name + suffixes[format]) for format in formats}
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
            path.write_text(text)
    return paths
