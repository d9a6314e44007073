"""A folder of public collections of The Cancer Imaging Archive (TCIA), which the small checkpoint was trained on.

The folder holds one sub-folder for each collection: axial slices (DICOM, also inside .tar.xz archives), beside them
segmentations of tumours (DICOM, modality SEG), and in `lidc-nodule-patches/` patches of 71x71 pixels around rated
nodules of LIDC-IDRI (`patches_hu.npz`, `index.csv`).
"""

import csv
import hashlib
import logging
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from tqdm.auto import tqdm

from ..hounsfield import HU_MAX, HU_MIN
from ..io.dicom import STANDARD, DicomError, Orientation, read_slice
from ..nodule_features import NODULE_FEATURES
from ..segmentation import contour_mask

logger = logging.getLogger(__name__)

HEADER = ["Modality", "FrameOfReferenceUID", "ImagePositionPatient"]


class Collection(NamedTuple):
    """A collection of TCIA: what must be named wherever its images, or what derives from them, go."""

    name: str
    licence: str
    reference: str


COLLECTIONS = {  # by the name of their folder
    "acrin-flt-breast-001": Collection("ACRIN-FLT-Breast", "CC BY 3.0", "doi:10.7937/K9/TCIA.2017.OL20ZMXG"),
    "cmb-crc-msb-01068": Collection("CMB-CRC", "CC BY 4.0", "doi:10.7937/DJG7-GZ87"),
    "cptac-pda-c3l-00189": Collection("CPTAC-PDA", "CC BY 4.0", "TCIA"),
    "lidc-idri-0001": Collection("LIDC-IDRI", "CC BY 3.0", "doi:10.7937/K9/TCIA.2015.LO9QL9SX"),
    "lidc-nodule-patches": Collection("LIDC-IDRI", "CC BY 3.0", "doi:10.7937/K9/TCIA.2015.LO9QL9SX"),
    "lung-pet-ct-dx": Collection("Lung-PET-CT-Dx", "CC BY 4.0", "TCIA"),
    "lungfcp-01-0001": Collection("Lung-Fused-CT-Pathology", "CC BY", "TCIA"),
    "qin-lung-ct": Collection("QIN LUNG CT", "CC BY 3.0", "doi:10.7937/K9/TCIA.2015.NPGZYZBZ"),
    "rider-pilot-0117": Collection("RIDER Pilot", "CC BY 4.0", "TCIA"),
    "tcga-luad-slices": Collection("TCGA-LUAD", "CC BY 3.0", "doi:10.7937/K9/TCIA.2016.JGNIHEP5"),
    "tcga-lusc-slices": Collection("TCGA-LUSC", "CC BY 3.0", "doi:10.7937/K9/TCIA.2016.TYGKKFMQ"),
}


@dataclass(frozen=True)
class CollectionSlice:
    """One axial slice of a collection."""

    collection: str  # the name of its folder
    patient_id: str
    sop_instance_uid: str
    hu: np.ndarray  # (H, W) float32, clipped to [-1024, 800]
    pixel_spacing_mm: float
    orientation: Orientation = STANDARD  # how the stored pixels were turned
    tumour: np.ndarray | None = None  # (H, W) boolean: the pixels that a segmentation marks; None without one


@dataclass(frozen=True)
class NodulePatch:
    """The surroundings of one rated nodule, in the slice of its largest outline."""

    hu: np.ndarray  # (71, 71) float32, clipped to [-1024, 800]
    mask: np.ndarray  # (71, 71) boolean: the pixels of the nodule
    corner_yx: tuple[int, int]  # row and column of the top left of the patch in the slice
    patient_id: str
    sop_instance_uid: str  # of the slice
    pixel_spacing_mm: float
    ratings: dict[str, float]  # by feature, 1..5

    def slice_mask(self, shape: tuple[int, ...]) -> np.ndarray:
        """The pixels of the nodule in the whole slice, boolean of `shape` (H, W)."""
        return self.mask_at(self.corner_yx, shape)

    def mask_at(self, corner_yx: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
        """The pixels of the nodule in a slice of `shape` (H, W) that holds the patch at another place.

        Args:
            corner_yx: row and column of the top left of the patch.
            shape: of the slice, (H, W).
        """
        whole = np.zeros(shape, dtype=bool)
        y, x = corner_yx
        whole[y : y + self.mask.shape[0], x : x + self.mask.shape[1]] = self.mask
        return whole


def in_validation(patient_id: str, percent: int) -> bool:
    """Whether a patient belongs to the validation split of the small checkpoint.

    The patient id alone decides, so other patients in the folder do not change it.

    Args:
        patient_id: of the collection.
        percent: share of the patients, on average, 0..100.
    """
    return int(hashlib.sha256(patient_id.encode()).hexdigest(), 16) % 100 < percent


def read_collection_slices(data_dir: Path) -> Iterator[CollectionSlice]:
    """Read every axial CT slice of the folder and its archives, with the tumours that segmentations mark in it.

    Other DICOM files are passed over with a warning.

    Args:
        data_dir: folder of the collections.

    Raises:
        ValueError: for a folder without DICOM files and archives.
    """
    if not any(data_dir.glob("*/*.tar.xz")) and not any(data_dir.rglob("*.dcm")):
        raise ValueError(
            f"`data_dir` is {data_dir}, but it holds no DICOM files (*.dcm) and no .tar.xz archives of them."
        )
    return _read_slices(data_dir)


Plane = tuple[str, tuple[float, ...]]  # frame of reference, and position of the first pixel in 1/10 mm


def _plane(frame_of_reference: str, position_mm: Sequence[float]) -> Plane:
    return frame_of_reference, tuple(round(10 * float(value)) for value in position_mm)


def _read_tumours(path: Path) -> dict[Plane, np.ndarray]:
    """The frames of a DICOM segmentation that mark anything, by their plane; they lie as the CT's stored pixels do.

    Raises:
        DicomError: for a file that lacks frames, their planes or the frame of reference.
    """
    segmentation = pydicom.dcmread(path)
    for keyword in ("PerFrameFunctionalGroupsSequence", "FrameOfReferenceUID"):
        if keyword not in segmentation:
            raise DicomError(f"a segmentation without {keyword}")
    frames = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns) > 0
    tumours: dict[Plane, np.ndarray] = {}
    for frame, groups in zip(frames, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        if frame.any():
            position = groups.PlanePositionSequence[0].ImagePositionPatient
            plane = _plane(str(segmentation.FrameOfReferenceUID), position)
            tumours[plane] = tumours.get(plane, False) | frame
    return tumours


def _read_slices(data_dir: Path) -> Iterator[CollectionSlice]:
    with tempfile.TemporaryDirectory() as unpacked:
        for archive in sorted(data_dir.glob("*/*.tar.xz")):
            with tarfile.open(archive) as tar:
                tar.extractall(Path(unpacked) / archive.parent.name, filter="data")
        paths = sorted(path for root in (data_dir, Path(unpacked)) for path in root.rglob("*.dcm"))
        headers = {path: pydicom.dcmread(path, stop_before_pixels=True, specific_tags=HEADER) for path in paths}
        tumours: dict[Plane, np.ndarray] = {}

        def name(path: Path) -> Path:
            return path.relative_to(unpacked if path.is_relative_to(unpacked) else data_dir)

        def warn(path: Path, error: DicomError) -> None:
            logger.warning("%s is left out: %s", name(path), error)

        segmentations = [path for path, header in headers.items() if header.get("Modality") == "SEG"]
        for path in segmentations:
            try:
                tumours |= _read_tumours(path)
            except DicomError as error:
                warn(path, error)
        for path in tqdm([path for path in paths if path not in segmentations], desc="slices"):
            header = headers[path]
            try:
                ct = read_slice(str(path), whole_hu=False)
            except DicomError as error:
                warn(path, error)
                continue
            tumour = None
            if tumours and "ImagePositionPatient" in header:
                plane = _plane(str(header.get("FrameOfReferenceUID")), header.ImagePositionPatient)
                tumour = tumours.get(plane)
            yield CollectionSlice(
                name(path).parts[0],
                ct.patient_id,
                ct.sop_instance_uid,
                np.clip(ct.hu, HU_MIN, HU_MAX),
                ct.pixel_spacing_mm,
                ct.orientation,
                None if tumour is None else ct.orientation.turn(tumour),
            )


def read_nodule_patches(folder: Path) -> list[NodulePatch]:
    """Read the rated nodules of `lidc-nodule-patches`.

    Args:
        folder: that of `patches_hu.npz` and `index.csv`.

    Returns:
        The patches in the order of the index.
    """
    hu = np.load(folder / "patches_hu.npz")["hu"]
    patches = []
    with open(folder / "index.csv", newline="") as file:
        for patch, row in zip(hu, csv.DictReader(file), strict=True):
            corner_yx = (int(row["row0"]), int(row["col0"]))
            patches.append(
                NodulePatch(
                    hu=np.clip(patch, HU_MIN, HU_MAX).astype(np.float32),
                    mask=contour_mask(_read_contour(row["contour_xy"], corner_yx), patch.shape),
                    corner_yx=corner_yx,
                    patient_id=row["patient_id"],
                    sop_instance_uid=row["SOPInstanceUID"],
                    pixel_spacing_mm=float(row["pixel_spacing_mm"]),
                    ratings={name: float(row[name]) for name in NODULE_FEATURES},
                )
            )
    return patches


def _read_contour(text: str, corner_yx: tuple[int, int]) -> list[tuple[float, float]]:
    """Points (column, row) in the patch, of a text "x;y|x;y|...|" in pixels of the slice."""
    points = []
    for point in text.strip("|").split("|"):
        x, y = point.split(";")
        points.append((float(x) - corner_yx[1], float(y) - corner_yx[0]))
    return points
