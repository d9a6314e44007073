"""A folder of TCIA collections: slices in archives, and patches around rated nodules."""

import csv
import tarfile

import numpy as np
import pytest

from lsdm_diffusers.data.tcia import in_validation, read_collection_slices, read_nodule_patches
from lsdm_diffusers.nodule_features import NODULE_FEATURES

from ..synthetic_dicom import thorax_hu, write_segmentation, write_slice

PATCH_EDGE = 71


def write_collections(folder):
    """Two slices of two patients, one of them in an archive, a segmentation, and a nodule of the first slice."""
    slices = folder / "a-collection" / "slices"
    write_slice(slices / "1.dcm", thorax_hu(), PatientID="p1", SOPInstanceUID="1.1")
    write_slice(slices / "seg.dcm", thorax_hu(), PatientID="p1", SOPInstanceUID="1.9", Modality="SEG")
    packed = write_slice(folder / "packed.dcm", thorax_hu(2), PatientID="p2", SOPInstanceUID="1.2")
    (folder / "b-collection").mkdir()
    with tarfile.open(folder / "b-collection" / "dicom.tar.xz", "w:xz") as tar:
        tar.add(packed, "p2/2.dcm")
    packed.unlink()

    patches = folder / "lidc-nodule-patches"
    patches.mkdir()
    hu = np.full((1, PATCH_EDGE, PATCH_EDGE), -850, dtype=np.int16)
    hu[0, 30:41, 30:41] = 30
    hu[0, 0, 0] = -3024  # outside the scan circle
    np.savez(patches / "patches_hu.npz", hu=hu)
    corners = [(130, 230), (140, 230), (140, 240), (130, 240)]
    row = {
        "patient_id": "p1",
        "SOPInstanceUID": "1.1",
        "row0": 200,
        "col0": 100,
        "pixel_spacing_mm": 0.7,
        "contour_xy": "|".join(f"{x};{y}" for x, y in corners) + "|",
        **dict.fromkeys(NODULE_FEATURES, 4),
    }
    with open(patches / "index.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)


def test_slices_are_read_also_from_archives_and_others_passed_over(tmp_path, caplog):
    write_collections(tmp_path)
    slices = list(read_collection_slices(tmp_path))
    assert {(ct.patient_id, ct.sop_instance_uid) for ct in slices} == {("p1", "1.1"), ("p2", "1.2")}
    for ct in slices:
        expected = thorax_hu(2 if ct.patient_id == "p2" else 0)
        np.testing.assert_array_equal(ct.hu, expected)
        assert ct.hu.dtype == np.float32 and ct.pixel_spacing_mm == 0.7
    assert (
        "a-collection/slices/seg.dcm is left out: a segmentation without PerFrameFunctionalGroupsSequence"
        in caplog.text
    )


@pytest.mark.parametrize("turned", [False, True])
def test_tumours_lie_in_the_slices_of_their_plane(tmp_path, turned):
    """Frames are matched by frame of reference and position; a prone slice is turned with its tumour."""
    mask = np.zeros((512, 512), dtype=bool)
    mask[100:120, 300:340] = True
    orientation = [-1, 0, 0, 0, -1, 0] if turned else [1, 0, 0, 0, 1, 0]
    header = {"PatientID": "p1", "FrameOfReferenceUID": "1.5", "ImageOrientationPatient": orientation}
    for number in range(3):
        position = [-170.0, -160.0, 2.5 * number]
        write_slice(
            tmp_path / "c" / f"{number}.dcm",
            thorax_hu(),
            SOPInstanceUID=f"1.{number + 1}",
            ImagePositionPatient=position,
            **header,
        )
    frames = {(-170.0, -160.0, 2.5): mask, (-170.0, -160.0, 5.0): np.zeros_like(mask)}
    write_segmentation(tmp_path / "c" / "tumour-seg" / "seg.dcm", frames, frame_of_reference="1.5")
    tumours = {ct.sop_instance_uid: ct.tumour for ct in read_collection_slices(tmp_path)}
    assert tumours["1.1"] is None and tumours["1.3"] is None
    np.testing.assert_array_equal(tumours["1.2"], mask[::-1, ::-1] if turned else mask)


def test_a_folder_without_slices_is_named(tmp_path):
    with pytest.raises(ValueError, match="`data_dir` is .*holds no DICOM files"):
        read_collection_slices(tmp_path)


def test_a_nodule_patch_has_its_outline_and_ratings(tmp_path):
    write_collections(tmp_path)
    (patch,) = read_nodule_patches(tmp_path / "lidc-nodule-patches")
    assert patch.hu[0, 0] == -1024 and patch.hu[35, 35] == 30
    assert patch.ratings == dict.fromkeys(NODULE_FEATURES, 4.0)
    expected = np.zeros((512, 512), dtype=bool)
    expected[230:241, 130:141] = True  # the outline belongs to the nodule
    np.testing.assert_array_equal(patch.slice_mask((512, 512)), expected)
    np.testing.assert_array_equal(patch.mask_at((201, 100), (512, 512)), np.roll(expected, 1, axis=0))


def test_the_share_of_validation_patients_is_the_asked_one():
    patients = [f"LIDC-IDRI-{number:04d}" for number in range(1000)]
    drawn = [patient for patient in patients if in_validation(patient, 15)]
    assert 120 < len(drawn) < 180
    assert set(drawn) <= {patient for patient in patients if in_validation(patient, 30)}
