"""Synthetic CT slices as DICOM files, whole or with any element changed."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.pixels import pack_bits
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, SegmentationStorage
from skimage.draw import ellipse


def thorax_hu(variant: int = 0) -> np.ndarray:
    """512x512 HU: a body with two lungs; `variant` shifts one of them, so that slices can be told apart."""
    hu = np.full((512, 512), -1000, dtype=np.int16)
    hu[ellipse(256, 256, 190, 240)] = 40
    hu[ellipse(256, 140, 120, 80)] = -850
    hu[ellipse(256 + variant, 372, 120, 80)] = -850
    hu[ellipse(380, 256, 20, 20)] = 400
    return hu


def write_slice(path: Path, hu: np.ndarray, **tags) -> Path:
    """Write a CT slice as DICOM.

    `tags` replace elements, or remove them if None; `stored` and `syntax` set pixel data and transfer syntax directly.
    """
    stored, syntax = tags.pop("stored", None), tags.pop("syntax", ExplicitVRLittleEndian)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = tags.get("SOPClassUID", CTImageStorage), syntax
    meta.MediaStorageSOPInstanceUID = tags.get("SOPInstanceUID", "1.2.3")
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    if stored is None:
        stored = (hu.astype(np.int32) + 1024).astype(np.uint16).tobytes()
    defaults = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2",
        "PatientID": "LIDC-IDRI-0000",
        "Modality": "CT",
        "ImagePositionPatient": [-180, -180, 0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "InstanceNumber": 1,
        "SliceThickness": 2.5,
        "PixelSpacing": [0.7, 0.7],
        "Rows": hu.shape[0],
        "Columns": hu.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelData": stored,
    }
    for name, value in {**defaults, **tags}.items():
        if value is not None:
            setattr(file, name, value)
    if syntax.is_encapsulated:
        file["PixelData"].VR, file["PixelData"].is_undefined_length = "OB", True
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)
    return path


def write_segmentation(path: Path, frames: dict[tuple[float, ...], np.ndarray], frame_of_reference: str) -> Path:
    """Write a binary DICOM segmentation of one segment; `frames` gives the mask (H, W) at each position in mm."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = SegmentationStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = "1.2.9"
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID, file.Modality = SegmentationStorage, "1.2.9", "SEG"
    file.FrameOfReferenceUID, file.SegmentationType, file.NumberOfFrames = frame_of_reference, "BINARY", len(frames)
    masks = np.stack(list(frames.values()))
    _, file.Rows, file.Columns = masks.shape
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PixelRepresentation = 1, "MONOCHROME2", 0
    file.BitsAllocated, file.BitsStored, file.HighBit = 1, 1, 0
    groups = []
    for position in frames:
        plane, group = Dataset(), Dataset()
        plane.ImagePositionPatient = list(position)
        group.PlanePositionSequence = Sequence([plane])
        groups.append(group)
    file.PerFrameFunctionalGroupsSequence = Sequence(groups)
    file.PixelData = pack_bits(masks.astype(np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)
    return path


def write_enhanced_ct(path: Path, frames: dict[float, np.ndarray], **tags) -> Path:
    """Write an enhanced CT: HU by z in mm, in the order of the frames; spacing, orientation and rescale are shared.

    `tags` replace elements of the file; `stored` replaces the pixels.
    """

    def sequence(**elements) -> Sequence:
        item = Dataset()
        for name, value in elements.items():
            setattr(item, name, value)
        return Sequence([item])

    shared = sequence(
        PixelMeasuresSequence=sequence(PixelSpacing=[0.7, 0.7], SliceThickness=2.5),
        PlaneOrientationSequence=sequence(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        PixelValueTransformationSequence=sequence(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU"),
    )
    groups = []
    for z in frames:
        groups += sequence(
            PlanePositionSequence=sequence(ImagePositionPatient=[-180, -180, z]),
            CTImageFrameTypeSequence=sequence(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]),
        )
    stored = b"".join((hu.astype(np.int32) + 1024).astype(np.uint16).tobytes() for hu in frames.values())
    of_slice = ("PixelSpacing", "SliceThickness", "ImageOrientationPatient", "ImagePositionPatient")
    changes = {
        **dict.fromkeys((*of_slice, "RescaleSlope", "RescaleIntercept")),
        "SOPClassUID": EnhancedCTImageStorage,
        "NumberOfFrames": len(frames),
        "SharedFunctionalGroupsSequence": shared,
        "PerFrameFunctionalGroupsSequence": Sequence(groups),
        "stored": stored,
    }
    return write_slice(path, next(iter(frames.values())), **{**changes, **tags})
