"""A DICOM series made from another one of which some pixels were drawn anew, with what makes it known as such.

Every slice gets a new SOPInstanceUID and SeriesInstanceUID; study, patient, frame of reference and geometry stay.
Slices without a change keep their pixel data, byte for byte.
"""

import datetime
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UID

from ...ct_limits import MAX_STORED_HU
from ...hounsfield import HU_MIN
from ...version import __version__
from ..atomic_write import part_file
from .header import rescale_of, text_of
from .series import CtSeries

SERIES_DESCRIPTION = "SYNTHETIC EDIT - NOT FOR CLINICAL USE"
SERIES_NUMBER_STEP = 1000  # added to the number of the source series
SYNTHESIZING_EQUIPMENT = Code("109100", "DCM", "Synthesizing Equipment")
SOURCE_OF_PROCESSING = Code("121322", "DCM", "Source image for image processing operation")
NEEDED = (  # of a slice, though they may be empty (type 2); anonymisers leave some of them out
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName", "Manufacturer", "AcquisitionNumber", "KVP"),
    *("PositionReferenceIndicator", "ContentDate", "ContentTime"),
)
DERIVATION_CHARACTERS = 1024  # of a text of type ST (DICOM PS3.5, section 6.2)


def derived_uid(*parts: str) -> str:
    """A UID that the same parts give again: 2.25 and a UUID, which needs no registered root."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, chr(0).join(parts)).int}"


def _code(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def stored_values(series: CtSeries, index: int) -> np.ndarray:
    """The pixels of a slice as its file stores them, before rescaling and not turned, (h, w)."""
    return np.array(pydicom.dcmread(series.files[index].path).pixel_array)


def stored_edit(dataset: Dataset, stored: np.ndarray, hu: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Stored values in which the masked pixels have new HU.

    Args:
        dataset: the slice, with its rescale and what its pixels can hold.
        stored: its values, (h, w).
        hu: new HU, (h, w), as the file's pixels lie.
        mask: what changes, boolean (h, w).

    Returns:
        Values of the dtype of `stored`, limited to what the file's bits hold.
    """
    slope, intercept = rescale_of(dataset)
    bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    values = np.rint((np.clip(hu[mask].astype(np.float64), HU_MIN, MAX_STORED_HU) - intercept) / slope)
    changed = stored.copy()
    changed[mask] = np.clip(values, low, high).astype(stored.dtype)
    return changed


def write_derived_series(
    series: CtSeries,
    hu: np.ndarray,
    mask: np.ndarray,
    folder: Path,
    description: str,
    identity: str,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[Path]:
    """Write a series of which the masked pixels are new.

    Args:
        series: the source, whose files are read again.
        hu: (Z, H, W), in Hounsfield units.
        mask: the pixels that changed, boolean (Z, H, W).
        folder: where the files are written, `slice-0000.dcm` and so on, from the feet to the head.
        description: what was done, in words.
        identity: what the new UIDs depend on besides those of the source; the same one gives the same UIDs.
        progress: wraps the loop over the slices.

    Returns:
        The files, in the order of the slices.
    """
    series_uid = derived_uid(series.series_instance_uid, identity)
    frame_of_reference = derived_uid(series.series_instance_uid, "frame of reference")
    now = datetime.datetime.now()
    paths = []
    for index in progress(range(len(series.files))):
        dataset = pydicom.dcmread(series.files[index].path)
        changed = series.orientation.turn_back(mask[index])
        if changed.any():
            new = stored_edit(dataset, dataset.pixel_array, series.orientation.turn_back(hu[index]), changed)
            photometric, bits = dataset.PhotometricInterpretation, int(dataset.BitsStored)
            dataset.set_pixel_data(new, photometric, bits, generate_instance_uid=False)
            for keyword in ("SmallestImagePixelValue", "LargestImagePixelValue"):
                if keyword in dataset:
                    del dataset[keyword]
        _describe(dataset, bool(changed.any()), description, series_uid, frame_of_reference, now)
        path = folder / f"slice-{index:04d}.dcm"
        with part_file(path) as part:
            dataset.save_as(part, enforce_file_format=True)
        paths.append(path)
    return paths


def _describe(
    dataset: Dataset,
    is_changed: bool,
    description: str,
    series_uid: str,
    frame_of_reference: str,
    now: datetime.datetime,
) -> None:
    """Make a slice one of the derived series; `is_changed` says whether its pixels were."""
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    source.PurposeOfReferenceCodeSequence = [_code(SOURCE_OF_PROCESSING)]
    dataset.SourceImageSequence = [source]
    uid = derived_uid(series_uid, str(dataset.SOPInstanceUID), text_of(dataset, "ImagePositionPatient"))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(uid)
    dataset.SeriesInstanceUID = series_uid
    if not text_of(dataset, "FrameOfReferenceUID"):
        dataset.FrameOfReferenceUID = frame_of_reference
    dataset.SeriesNumber = SERIES_NUMBER_STEP + int(dataset.get("SeriesNumber") or 0)
    dataset.SeriesDescription = SERIES_DESCRIPTION
    kind = list(dataset.get("ImageType") or ["ORIGINAL", "PRIMARY", "AXIAL"])
    dataset.ImageType = ["DERIVED", "SECONDARY", *(kind[2:] or ["AXIAL"])]
    if not text_of(dataset, "StudyInstanceUID"):
        dataset.StudyInstanceUID = derived_uid(series_uid, "study")
    for keyword in NEEDED:
        if keyword not in dataset:
            setattr(dataset, keyword, None)
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    dataset.SyntheticData = "YES" if is_changed else "NO"
    dataset.ContentQualification = "RESEARCH"
    what = description if is_changed else "No pixel of this slice was changed; others of its series were."
    dataset.DerivationDescription = what[:DERIVATION_CHARACTERS]
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [_code(SYNTHESIZING_EQUIPMENT)]
    equipment.Manufacturer = equipment.ManufacturerModelName = "lsdm_diffusers"
    equipment.SoftwareVersions = __version__
    equipment.ContributionDateTime = now.strftime("%Y%m%d%H%M%S")
    equipment.ContributionDescription = "Pixels drawn by a latent semantic diffusion model" if is_changed else "Copied"
    earlier = list(dataset.get("ContributingEquipmentSequence") or [])
    dataset.ContributingEquipmentSequence = [*earlier, equipment]


def write_segmentation(
    paths: Sequence[Path], nodules: np.ndarray, series: CtSeries, names: Mapping[int, str], path: Path
) -> None:
    """Write nodules as a binary DICOM segmentation, each a segment, that refers to slices of a series.

    Args:
        paths: the slices, in the order of `series`.
        nodules: their numbers, 0 elsewhere, (Z, H, W), in the orientation of `series`.
        series: the source of the slices, which says how their pixels lie.
        names: what each number is called.
        path: of the file.
    """
    import highdicom
    from pydicom.sr.codedict import codes

    numbers = sorted(set(np.unique(nodules).tolist()) - {0})
    slices = np.flatnonzero(nodules.any((1, 2))).tolist()
    sources = [pydicom.dcmread(paths[index]) for index in slices]
    masks = np.stack([series.orientation.turn_back(nodules[index]) for index in slices])
    arrays = np.stack([masks == number for number in numbers], axis=-1)
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="lsdm_diffusers", family=codes.DCM.ArtificialIntelligence, version=__version__
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=place,
            segment_label=names[number][:64],
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Nodule,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=derived_uid(str(sources[0].SeriesInstanceUID), str(number)),
            tracking_id=names[number][:64],
        )
        for place, number in enumerate(numbers, start=1)
    ]
    series_uid = derived_uid(str(sources[0].SeriesInstanceUID), "segmentation")
    with warnings.catch_warnings():  # names of patients are written as the source has them
        warnings.filterwarnings("ignore", "The string .* is unlikely to represent the intended person name")
        segmentation = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=arrays.astype(np.uint8),
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=series_uid,
            series_number=int(sources[0].SeriesNumber) + 1,
            sop_instance_uid=derived_uid(series_uid, "instance"),
            instance_number=1,
            manufacturer="lsdm_diffusers",
            manufacturer_model_name="lsdm_diffusers",
            software_versions=__version__,
            device_serial_number="1",
            series_description=SERIES_DESCRIPTION,
            omit_empty_frames=True,
        )
    segmentation.LossyImageCompression = sources[0].get("LossyImageCompression") or "00"
    segmentation.SyntheticData = "YES"
    segmentation.ContentQualification = "RESEARCH"
    with part_file(path) as part:
        segmentation.save_as(part)


def header_warnings(series: CtSeries) -> list[str]:
    """What a user should know of the headers of a series before it is passed on."""
    dataset: Any = pydicom.dcmread(series.files[0].path, stop_before_pixels=True)
    notes = []
    if text_of(dataset, "PatientIdentityRemoved").upper() != "YES":
        notes.append(
            "the headers do not say that the patient's identity was removed (PatientIdentityRemoved); the new series "
            "keeps every name and number of the source"
        )
    if not text_of(dataset, "FrameOfReferenceUID"):
        notes.append("the source has no FrameOfReferenceUID, so the new series gets one of its own")
    return notes
