"""The console command `lsdm-edit`: from a series of DICOM to an edited one, with everything beside it."""

import csv
import json
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from lsdm_diffusers import LSDMInpaintPipeline, edit, edit_job
from lsdm_diffusers.edit_requests import read_requests, request_from_mapping
from lsdm_diffusers.io.dicom import read_series

from .conftest import tiny_pipeline
from .synthetic_series import SLICE_SPACING, SPACING, write_series

highdicom = pytest.importorskip("highdicom")
FLAGS = ["--coordinates", "index", "--num_inference_steps", "2", "--grain", "0"]
INSERT = [*FLAGS, "--insert", "2,64,35", "--diameter_mm", "14", "--malignancy", "malignant"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(edit, "load_pipeline", lambda *_: LSDMInpaintPipeline(**tiny_pipeline().components))


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return write_series(tmp_path_factory.mktemp("source") / "scan")


@pytest.fixture(scope="module")
def edited(scan, tmp_path_factory):
    """A series with a nodule inserted."""
    output = tmp_path_factory.mktemp("output") / "edited"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edit, "load_pipeline", lambda *_: LSDMInpaintPipeline(**tiny_pipeline().components))
        run(scan, output, *INSERT)
    return output


def run(scan, output, *arguments):
    edit.main(["--dicom_dir", str(scan), "--output_dir", str(output), *arguments])


def datasets(folder):
    return [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]


def test_untouched_slices_keep_their_bytes_and_the_others_their_pixels_outside(scan, edited):
    mask = np.asarray(nibabel.load(edited / "nodules.nii.gz").dataobj).transpose(2, 1, 0)
    before, after = read_series(scan), read_series(edited / "dicom")
    changed = (before.hu != after.hu).any((1, 2))
    assert changed.tolist() == mask.any((1, 2)).tolist() == [True] * 5 + [False]
    grown = np.stack([near(one) for one in mask > 0])
    np.testing.assert_array_equal(after.hu[~grown], before.hu[~grown])
    last, source = datasets(edited / "dicom")[-1], pydicom.dcmread(scan / "5.dcm")
    assert last.PixelData == source.PixelData
    assert not list(edited.parent.glob(".*.part"))


def near(mask):
    rows, columns = np.nonzero(mask)
    grown = np.zeros(mask.shape, dtype=bool)
    if len(rows):
        grown[rows.min() - 2 : rows.max() + 3, columns.min() - 2 : columns.max() + 3] = True
    return grown


def test_the_new_series_says_what_it_is(scan, edited):
    for index, (dataset, source) in enumerate(zip(datasets(edited / "dicom"), datasets(scan), strict=True)):
        assert dataset.SyntheticData == ("YES" if index < 5 else "NO")
        assert dataset.ImageType[:2] == ["DERIVED", "SECONDARY"] and dataset.ContentQualification == "RESEARCH"
        assert (
            dataset.SOPInstanceUID != source.SOPInstanceUID == dataset.SourceImageSequence[0].ReferencedSOPInstanceUID
        )
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "ImagePositionPatient", "PatientID"):
            assert dataset[keyword] == source[keyword]
        assert "SYNTHETIC" in dataset.SeriesDescription
        said = "inserted, 14 mm, malignancy malignant" in dataset.DerivationDescription
        assert said == (index < 5)
        assert dataset.ContributingEquipmentSequence[-1].Manufacturer == "lsdm_diffusers"
    uids = {dataset.SeriesInstanceUID for dataset in datasets(edited / "dicom")}
    assert len(uids) == 1 and re.fullmatch(r"2\.25\.\d{30,39}", uids.pop())


def test_the_truth_is_written_in_three_forms(edited):
    series = read_series(edited / "dicom")
    mask = np.asarray(nibabel.load(edited / "nodules.nii.gz").dataobj).transpose(2, 1, 0)
    segmentation = highdicom.seg.segread(edited / "nodules.dcm")
    assert segmentation.SyntheticData == "YES" and segmentation.number_of_segments == 1
    assert segmentation.SegmentSequence[0].SegmentLabel == "nodule 1 inserted, 14 mm, malignancy malignant"
    uids = [file.sop_instance_uid for file in series.files[:5]]
    frames = segmentation.get_pixels_by_source_instance(uids, combine_segments=True)
    np.testing.assert_array_equal(frames, mask[:5])
    (row,) = csv.DictReader((edited / "annotations.csv").read_text().splitlines())
    assert row["seriesuid"] == series.series_instance_uid
    expected = (-180 + 35 * SPACING, -170 + 64 * SPACING, -10 + 2 * SLICE_SPACING)
    assert [float(row[f"coord{axis}"]) for axis in "XYZ"] == pytest.approx(expected, abs=SPACING / 2)
    assert float(row["diameter_mm"]) == pytest.approx(14, rel=0.1)
    summary = json.loads((edited / "edits.json").read_text())
    assert summary["edits"][0]["pixels_changed"] > 50 and summary["nodules"][0]["nodule"] == 1
    page = (edited / "report.html").read_text()
    assert "0 changed outside" in page and page.count("data:image/png") == 1


def test_undo_gives_the_source_back(scan, edited, tmp_path):
    folder = shutil.copytree(edited / "dicom", tmp_path / "dicom")
    for entry in json.loads((edited / "undo.json").read_text())["slices"]:
        dataset = pydicom.dcmread(folder / entry["file"])
        y0, x0, y1, x1 = entry["box_yxyx"]
        stored = dataset.pixel_array.copy()
        stored[y0:y1, x0:x1] = entry["stored_before"]
        dataset.set_pixel_data(stored, dataset.PhotometricInterpretation, int(dataset.BitsStored))
        dataset.save_as(folder / entry["file"])
    np.testing.assert_array_equal(read_series(folder).hu, read_series(scan).hu)


def test_nodules_are_listed_and_removed_by_number(edited, tmp_path, capsys):
    mask = edited / "nodules.nii.gz"
    edit.main(["--dicom_dir", str(edited / "dicom"), "--nodule_mask", str(mask), "--list"])
    listed = capsys.readouterr().out.splitlines()[-1].split()
    assert listed[0] == "1" and listed[-1] == "0..4" and float(listed[4]) == pytest.approx(14, rel=0.1)
    output = tmp_path / "without"
    run(edited / "dicom", output, "--nodule_mask", str(mask), "--remove", "1", *FLAGS)
    assert not np.asarray(nibabel.load(output / "nodules.nii.gz").dataobj).any()
    assert not (output / "nodules.dcm").exists()
    assert len((output / "annotations.csv").read_text().splitlines()) == 1
    assert len(datasets(output / "dicom")[0].ContributingEquipmentSequence) == 2


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(scan, tmp_path, monkeypatch):
    edits = tmp_path / "edits.json"
    places = [{"z": 2, "y": 64, "x": 35, "diameter_mm": 12}, {"z": 2, "y": 64, "x": 93, "diameter_mm": 12}]
    edits.write_text(json.dumps(places))
    arguments = ["--edits", str(edits), *FLAGS]
    run(scan, tmp_path / "whole", *arguments)

    drawn = []
    draw = edit_job._draw

    def cut_off(*given):
        if len(drawn) == 1:
            raise KeyboardInterrupt
        drawn.append(given)
        return draw(*given)

    monkeypatch.setattr(edit_job, "_draw", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(scan, tmp_path / "cut", *arguments)
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(edit_job, "_draw", lambda *given: drawn.append(given) or draw(*given))
    run(scan, tmp_path / "cut", *arguments)
    assert len(drawn) == 2  # the first edit was not drawn again
    np.testing.assert_array_equal(read_series(tmp_path / "cut/dicom").hu, read_series(tmp_path / "whole/dicom").hu)
    assert (tmp_path / "cut/annotations.csv").read_text() == (tmp_path / "whole/annotations.csv").read_text()
    run(scan, tmp_path / "cut", *arguments)  # a finished one is left as it is
    assert len(drawn) == 2
    with pytest.raises(SystemExit, match="holds another edited series"):
        run(scan, tmp_path / "cut", *INSERT)


WRONG = {
    "nothing": ([], "nothing to do"),
    "no diameter": (["--insert", "1", "2", "3"], "`--insert` needs `--diameter_mm`"),
    "outside the scan": ([*FLAGS, "--insert", "99", "2", "3", "--diameter_mm", "9"], r"edit 1 .* series has 0..5"),
    "in the body": ([*FLAGS, "--insert", "2,64,64", "--diameter_mm", "9"], r"edit 1 .* would lie in lung"),
    "on top": (["--insert", "2,66,37", *INSERT], r"edit 2 .* would touch another one"),
    "no such nodule": (["--remove", "3"], r"edit 1 \(removed\): nodule 3 is not in the mask; its numbers: none"),
    "no feature": (["--change", "1"], "at least one feature"),
    "a rating": ([*INSERT, "--texture", "9"], "texture"),
    "strength": ([*INSERT, "--strength", "0"], "`--strength` is 0"),
    "steps": ([*INSERT, "--num_inference_steps", "0"], "`--num_inference_steps` is 0"),
    "edits and flags": ([*INSERT, "--edits", "a.csv"], "`--edits` and `--insert` are both given"),
    "no file": (["--edits", "absent.csv"], "no such file"),
    "no mask": (["--remove", "1", "--nodule_mask", "absent.nii"], "`--nodule_mask` is absent.nii"),
    "list": (["--list"], "`--list` needs `--nodule_mask`"),
    "series": ([*INSERT, "--series_instance_uid", "1.9"], "`--dicom_dir`: no series 1.9"),
    "checkpoint": ([*INSERT, "--pretrained_model_name_or_path", "not here"], "neither a folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_gets_one_sentence_and_nothing_is_written(scan, tmp_path, case):
    arguments, message = WRONG[case]
    with pytest.raises(SystemExit) as end:
        run(scan, tmp_path / "output", *arguments)
    assert re.search(message, str(end.value.code)) and "\n" not in str(end.value.code)
    assert not list(tmp_path.iterdir())


def test_output_inside_the_input_or_in_use_is_refused(scan, edited, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    for output, message in (
        (scan / "edited", "may not lie in each other"),
        (scan, "may not lie in each other"),
        (scan.parent, "may not lie in each other"),
        (tmp_path / "used", "is not empty"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(scan, output, *INSERT)
    with pytest.raises(SystemExit, match="`--output_dir` is missing"):
        edit.main(["--dicom_dir", str(scan), *INSERT])
    assert len(list(scan.iterdir())) == 6


def test_a_mask_of_other_pixels_is_refused(scan, edited, tmp_path):
    image = nibabel.load(edited / "nodules.nii.gz")
    values = np.asarray(image.dataobj)
    moved = image.affine.copy()
    moved[0, 3] += SPACING
    for array, affine, message in (
        (values, moved, "affine does not lie on the pixels"),
        (values[:100], image.affine, "has shape"),
        (values + 0.5, image.affine, "whole numbers"),
    ):
        nibabel.Nifti1Image(array, affine).to_filename(tmp_path / "mask.nii")
        with pytest.raises(SystemExit, match=message):
            run(scan, tmp_path / "output", "--nodule_mask", str(tmp_path / "mask.nii"), "--remove", "1")
    (tmp_path / "mask.nii").write_bytes(b"text")
    with pytest.raises(SystemExit, match="no NIfTI file"):
        run(scan, tmp_path / "output", "--nodule_mask", str(tmp_path / "mask.nii"), "--remove", "1")
    # the same mask, stored with other axes, lies at the same place
    turned = nibabel.as_closest_canonical(image)
    turned.to_filename(tmp_path / "turned.nii")
    series = read_series(scan)
    np.testing.assert_array_equal(
        edit_job.read_nodule_mask(tmp_path / "turned.nii", series),
        edit_job.read_nodule_mask(edited / "nodules.nii.gz", series),
    )


def test_edits_are_read_from_csv_and_json(tmp_path):
    table = "action,z,y,x,diameter_mm,nodule,malignancy,texture\ninsert,1,2,3,9,,malignant,5\nremove,,,,,2,,\n"
    (tmp_path / "edits.csv").write_text(table, encoding="utf-8-sig")
    first, second = read_requests(tmp_path / "edits.csv")
    assert first.place == (1, 2, 3) and first.features == {"malignancy": "malignant", "texture": 5.0}
    assert (second.action, second.nodule, second.place) == ("remove", 2, None)
    entries = [{"z": 1, "y": 2, "x": 3, "diameter_mm": 9, "malignancy": "malignant", "texture": 5}]
    (tmp_path / "edits.json").write_text(json.dumps([*entries, {"action": "remove", "nodule": 2}]))
    assert read_requests(tmp_path / "edits.json") == [first, second]
    for text, message in (
        ("[]", "at least one edit"),
        ("{", "neither JSON nor CSV"),
        ('[{"z": 1}]', "edit 1 of .*z, y"),
    ):
        (tmp_path / "wrong.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_requests(tmp_path / "wrong.json")
    (tmp_path / "wrong.csv").write_text("action,nodule\nremove,1,2\n")
    with pytest.raises(ValueError, match="more values than columns"):
        read_requests(tmp_path / "wrong.csv")


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"colour": 1}, "'colour' is unknown"),
        ({"action": "paint"}, "action is 'paint'"),
        ({"z": "a", "y": 1, "x": 1, "diameter_mm": 9}, "z is 'a'"),
        ({"z": "nan", "y": 1, "x": 1, "diameter_mm": 9}, "must be finite"),
        ({"z": 1, "y": 1, "x": 1}, "needs z, y, x and diameter_mm"),
        ({"action": "remove", "nodule": 1.5}, "nodule is 1.5"),
        ({"action": "remove", "nodule": 0}, "from 1"),
        ({"action": "remove", "nodule": 1, "texture": 1}, "has no features"),
        ({"action": "remove", "nodule": 1, "z": 1, "y": 1, "x": 1}, "no place"),
        ({"z": 1, "y": 1, "x": 1, "diameter_mm": 9, "shape": "square"}, "shape is 'square'"),
        ({"z": 1, "y": 1, "x": 1, "diameter_mm": 9, "nodule": 3}, "no number yet"),
        ({"z": 1, "y": 1, "x": 1, "diameter_mm": 9, "texture": 7}, "texture"),
    ],
)
def test_a_bad_edit_is_named(entry, message):
    with pytest.raises(ValueError, match=message):
        request_from_mapping(entry)


def test_help_comes_at_once_and_names_every_flag(capsys):
    with pytest.raises(SystemExit):
        edit.main(["--help"])
    text = capsys.readouterr().out
    assert "--insert Z Y X" in text and "LUNA16" in text
    assert Path(edit.__file__).read_text().count("import torch") == 0


def test_a_scan_stored_in_another_order_is_edited_at_the_same_place(edited, tmp_path):
    turned = write_series(tmp_path / "turned", cosines=(0, 1, 0, 1, 0, 0))
    run(turned, tmp_path / "output", *INSERT)
    straight, other = read_series(edited / "dicom"), read_series(tmp_path / "output/dicom")
    np.testing.assert_array_equal(other.hu, straight.hu)
    masks = [np.asarray(nibabel.load(folder / "nodules.nii.gz").dataobj) for folder in (edited, tmp_path / "output")]
    np.testing.assert_array_equal(masks[0], masks[1])
    segmentation = highdicom.seg.segread(tmp_path / "output/nodules.dcm")
    frames = segmentation.get_pixels_by_source_instance([other.files[2].sop_instance_uid], combine_segments=True)
    np.testing.assert_array_equal(other.orientation.turn(frames[0]), masks[0].transpose(2, 1, 0)[2])
