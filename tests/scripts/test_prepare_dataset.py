"""The recipe's prepare_dataset.py: a small folder of collections to rows of three kinds."""

import json
import runpy
import sys

import numpy as np
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard

from lsdm_diffusers.labels import SemanticLabel

from ..conftest import TRAINING
from ..data.test_tcia import write_collections
from ..synthetic_dicom import thorax_hu, write_segmentation, write_slice

SCRIPT = TRAINING / "recipes" / "lung-ct-small" / "prepare_dataset.py"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_a_folder_of_collections_becomes_a_dataset(tmp_path, monkeypatch, capsys):
    """The patient of the nodule falls into validation, the other one into training."""
    write_collections(tmp_path / "collections")
    output_dir = tmp_path / "dataset"
    run(
        monkeypatch,
        *("--data_dir", tmp_path / "collections"),
        *("--output_dir", output_dir),
        *("--validation_percent", 50),
    )
    printed = capsys.readouterr().out
    assert "train 1 patients: 1 slice, 1 slice_with_nodules\n" in printed
    assert "validation 1 patients: 1 slice, 1 slice_with_nodules, 1 nodule\n" in printed
    assert json.loads((output_dir / "splits.json").read_text()) == {"train": ["p2"], "validation": ["p1"]}

    card = DatasetCard.load(output_dir / "README.md")
    assert "| LIDC-IDRI | CC BY 3.0 | doi:10.7937/K9/TCIA.2015.LO9QL9SX | 0 | 1 | 1 |" in card.text
    assert "| a-collection | unknown: to be filled in |  | 0 | 1 | 1 |" in card.text
    assert "| b-collection | unknown: to be filled in |  | 1 | 0 | 1 |" in card.text

    splits = load_dataset(str(output_dir), cache_dir=str(tmp_path / "cache"))
    rows = {split: {row["kind"]: row for row in rows} for split, rows in splits.items()}
    for split, expected, nodule_pixels in (("train", thorax_hu(2), 0), ("validation", thorax_hu(), 121)):
        row = rows[split]["slice"]
        np.testing.assert_array_equal(np.asarray(row["image"], dtype=int) - 1024, np.clip(expected, -1024, 800))
        malignant = np.asarray(row["semantic_map"]) == SemanticLabel.NODULE_MALIGNANT
        assert malignant.sum() == nodule_pixels and len(row["nodules"]) == (nodule_pixels > 0)
    assert rows["train"]["slice_with_nodules"]["nodules"] == []  # no nodule is of a patient of this split
    _, pasted = rows["validation"]["slice_with_nodules"]["nodules"]
    y, x = map(int, pasted["centroid_yx"])
    assert np.asarray(rows["validation"]["slice_with_nodules"]["semantic_map"])[y, x] == SemanticLabel.NODULE_MALIGNANT
    crop = rows["validation"]["nodule"]
    assert crop["image"].size == (64, 64) and crop["nodules"][0]["centroid_yx"] == [32, 32]
    assert np.asarray(crop["semantic_map"])[32, 32] == SemanticLabel.NODULE_MALIGNANT


def test_segmented_tumours_become_malignant_nodules_without_ratings(tmp_path, monkeypatch):
    write_collections(tmp_path / "collections")
    tumour = np.zeros((512, 512), dtype=bool)
    tumour[240:260, 130:150] = True
    tumour[100, 100:104] = True  # a frayed end
    frames = {(-180.0, -180.0, 0.0): tumour}
    folder = tmp_path / "collections" / "c-collection"
    write_slice(folder / "1.dcm", thorax_hu(), PatientID="p3", SOPInstanceUID="1.3", FrameOfReferenceUID="1.5")
    write_segmentation(folder / "seg.dcm", frames, frame_of_reference="1.5")
    run(
        monkeypatch,
        *("--data_dir", tmp_path / "collections"),
        *("--output_dir", tmp_path / "dataset"),
        *("--validation_percent", 50),
    )
    splits = load_dataset(str(tmp_path / "dataset"), cache_dir=str(tmp_path / "cache"))
    rows = [row for split in splits.values() for row in split if row["patient_id"] == "p3" and row["kind"] == "slice"]
    labels = np.asarray(rows[0]["semantic_map"])
    assert (labels == SemanticLabel.NODULE_MALIGNANT).sum() == 400 and labels[250, 140] == 7
    (nodule,) = rows[0]["nodules"]
    assert nodule["centroid_yx"] == [249.5, 139.5] and nodule["malignancy"] is None and nodule["texture"] is None


def test_a_split_without_patients_is_refused(tmp_path, monkeypatch):
    write_collections(tmp_path)
    with pytest.raises(SystemExit, match="--validation_percent is 0, which leaves no patient for validation"):
        run(monkeypatch, "--data_dir", tmp_path, "--output_dir", tmp_path / "dataset", "--validation_percent", 0)
    assert not (tmp_path / "dataset").exists()


def test_an_empty_folder_is_named_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="prepare_dataset.py: .*lidc-nodule-patches"):
        run(monkeypatch, "--data_dir", tmp_path, "--output_dir", tmp_path / "dataset")
