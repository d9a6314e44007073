"""Turn a folder of public TCIA lung CT into the dataset of the small checkpoint.

    python training/recipes/lung-ct-small/prepare_dataset.py --data_dir ../shared/data --output_dir lung-ct-small-data

The folder holds one sub-folder per collection, as its README says: whole axial slices (DICOM, also inside .tar.xz archives) and
`lidc-nodule-patches/` with 71x71 crops in HU around rated LIDC-IDRI nodules (`patches_hu.npz`, `index.csv`). The result loads with
`datasets.load_dataset(output_dir)`; each row has a `kind`:

* `slice`: a whole axial slice with its semantic map (labels 0..4; the nodules of LIDC-IDRI-0001 painted in);
* `slice_with_nodules`: the same slice with rated nodules of patients of the same split set into its lungs: whole slices with
  annotated nodules are rare, and a model that has seen nodules in crops alone draws them faintly in whole slices;
* `nodule`: a 64x64 crop centred at a rated nodule, painted from its contour.

Patients, not slices, are split; `splits.json` lists the patients of each split.
"""

import argparse
import csv
import hashlib
import json
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pydicom
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter, median_filter
from skimage.morphology import disk, opening, remove_small_objects
from tqdm.auto import tqdm

from lsdm_diffusers.hounsfield import HU_MAX, HU_MIN
from lsdm_diffusers.labels import SemanticLabel
from lsdm_diffusers.segmentation import contour_mask, paint_nodules, semantic_map_from_hu

RATINGS = ("malignancy", "lobulation", "spiculation", "texture")
FEATURES = Features(
    {
        "image": Image(),  # 16-bit, HU + 1024, HU clipped to [-1024, 800]
        "semantic_map": Image(),  # 8-bit, the label 0..7
        "kind": Value("string"),
        "patient_id": Value("string"),
        "pixel_spacing_mm": Value("float32"),
        "nodules": List(
            {
                "patient_id": Value("string"),
                "centroid_yx": List(Value("float32"), length=2),
                **{rating: Value("float32") for rating in RATINGS},
            }
        ),
    }
)


def in_validation(patient_id: str, percent: int) -> bool:
    """Whether a patient belongs to the validation split: fixed by the patient id alone, whatever else is in the folder."""
    return int(hashlib.sha256(patient_id.encode()).hexdigest(), 16) % 100 < percent


def read_slices(data_dir: Path):
    """Yield (patient id, SOP instance UID, HU, pixel spacing) of every axial CT slice in the folder and its archives."""
    with tempfile.TemporaryDirectory() as unpacked:
        for archive in sorted(data_dir.glob("*/*.tar.xz")):
            with tarfile.open(archive) as tar:
                tar.extractall(Path(unpacked) / archive.parent.name, filter="data")
        files = sorted(path for root in (data_dir, Path(unpacked)) for path in root.rglob("*.dcm"))
        if not files:
            raise SystemExit(f"--data_dir {data_dir} holds no DICOM files (*.dcm) and no .tar.xz archives of them.")
        for path in tqdm(files, desc="slices"):
            dicom = pydicom.dcmread(path)
            hu = dicom.pixel_array.astype(np.float32) * float(dicom.RescaleSlope) + float(dicom.RescaleIntercept)
            yield (
                str(dicom.PatientID),
                str(dicom.SOPInstanceUID),
                np.clip(hu, HU_MIN, HU_MAX),
                float(dicom.PixelSpacing[0]),
            )


def read_nodules(folder: Path) -> list[dict]:
    """The rated nodules: HU patch, mask from the contour, ratings, patient."""
    hu = np.load(folder / "patches_hu.npz")["hu"]
    nodules = []
    with open(folder / "index.csv", newline="") as file:
        for patch, row in zip(hu, csv.DictReader(file), strict=True):
            origin = np.array([float(row["col0"]), float(row["row0"])])
            contour = (
                np.array([[float(v) for v in point.split(";")] for point in row["contour_xy"].strip("|").split("|")])
                - origin
            )
            nodules.append(
                {
                    "hu": np.clip(patch, HU_MIN, HU_MAX).astype(np.float32),
                    "mask": contour_mask(contour, patch.shape),
                    "patient_id": row["patient_id"],
                    "sop_instance_uid": row["SOPInstanceUID"],
                    "origin_yx": (int(row["row0"]), int(row["col0"])),
                    "pixel_spacing": float(row["pixel_spacing_mm"]),
                    **{rating: float(row[rating]) for rating in RATINGS},
                }
            )
    return nodules


def patch_semantic_map(nodule: dict) -> np.ndarray:
    """Labels of a patch. It shows no body outline, so lung is what is aerated, with the thin or small tissue inside it (vessels)."""
    hu = median_filter(nodule["hu"], 3)
    tissue = (hu > -475) & ~nodule["mask"]
    wall = opening(np.pad(tissue, 6, mode="edge"), disk(4))[6:-6, 6:-6]
    wall = remove_small_objects(binary_dilation(wall, disk(2)) & tissue, max_size=150)
    labels = np.full(hu.shape, SemanticLabel.LUNG, dtype=np.uint8)
    labels[wall] = SemanticLabel.BODY
    labels[wall & (hu >= 0)] = SemanticLabel.SOFT_TISSUE
    labels[wall & (hu >= 200)] = SemanticLabel.HIGH_DENSITY
    return paint_nodules(labels, [(nodule["mask"], nodule["malignancy"])])


def set_nodules(hu, semantic_map, nodules, generator, count):
    """Copy `count` parenchymal nodules into free places of the lungs, edges blended. Returns HU, map and what was placed."""
    hu, semantic_map = hu.copy(), semantic_map.copy()
    placed = []
    room = distance_transform_edt(semantic_map == SemanticLabel.LUNG)
    for nodule in generator.permutation(np.array(nodules, dtype=object))[: 4 * count]:
        if len(placed) == count:
            break
        mask = np.pad(nodule["mask"], 4)
        rim = binary_dilation(mask, disk(4)) & ~binary_dilation(mask, disk(1))
        patch = np.pad(nodule["hu"], 4, mode="edge")
        if patch[rim].mean() > -650:  # lies against chest wall or mediastinum
            continue
        radius = float(np.sqrt(mask.sum() / np.pi))
        places = np.argwhere(room > radius + 4)
        if not len(places):
            continue
        y, x = places[generator.integers(len(places))]
        blend = np.clip(gaussian_filter(binary_dilation(mask, disk(2)).astype(np.float32), 1.2), 0, 1)
        half = mask.shape[0] // 2
        window = np.s_[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]
        inner = np.s_[max(0, half - y) : half + hu.shape[0] - y, max(0, half - x) : half + hu.shape[1] - x]
        mask, blend, patch = mask[inner][: 2 * half + 1], blend[inner][: 2 * half + 1], patch[inner][: 2 * half + 1]
        hu[window] = blend * patch + (1 - blend) * hu[window]
        semantic_map[window][mask] = SemanticLabel.for_malignancy(nodule["malignancy"])
        room[window] = 0
        placed.append((nodule, (float(y), float(x))))
    return hu, semantic_map, placed


def row(hu, semantic_map, kind, patient_id, pixel_spacing, placed=()):
    return {
        "image": PILImage.fromarray((np.clip(hu, HU_MIN, HU_MAX).round() - HU_MIN).astype(np.uint16)),
        "semantic_map": PILImage.fromarray(semantic_map),
        "kind": kind,
        "patient_id": patient_id,
        "pixel_spacing_mm": pixel_spacing,
        "nodules": [
            {
                "patient_id": nodule["patient_id"],
                "centroid_yx": list(centroid),
                **{rating: nodule[rating] for rating in RATINGS},
            }
            for nodule, centroid in placed
        ],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of the collections")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the dataset")
    parser.add_argument(
        "--validation_percent", type=int, default=15, help="share of the patients kept for validation (default 15)"
    )
    parser.add_argument("--seed", type=int, default=0, help="which nodules are set into which slices, and where")
    args = parser.parse_args()

    nodules = read_nodules(args.data_dir / "lidc-nodule-patches")
    split_of = lambda patient_id: "validation" if in_validation(patient_id, args.validation_percent) else "train"  # noqa: E731
    by_split = {name: [n for n in nodules if split_of(n["patient_id"]) == name] for name in ("train", "validation")}
    of_slice = {}
    for nodule in nodules:
        of_slice.setdefault(nodule["sop_instance_uid"], []).append(nodule)

    rows = {"train": [], "validation": []}
    generator = np.random.default_rng(args.seed)
    for patient_id, sop_instance_uid, hu, pixel_spacing in read_slices(args.data_dir):
        split = split_of(patient_id)
        annotated = of_slice.get(sop_instance_uid, [])
        masks = []
        for nodule in annotated:
            mask = np.zeros(hu.shape, dtype=bool)
            y, x = nodule["origin_yx"]
            mask[y : y + 71, x : x + 71] = nodule["mask"]
            masks.append((mask, nodule["malignancy"]))
        semantic_map = semantic_map_from_hu(hu, pixel_spacing, masks)
        own = [(n, tuple(np.argwhere(mask).mean(axis=0))) for n, (mask, _) in zip(annotated, masks, strict=True)]
        rows[split].append(row(hu, semantic_map, "slice", patient_id, pixel_spacing, own))
        if (semantic_map == SemanticLabel.LUNG).sum() > 8000:
            pasted, pasted_map, placed = set_nodules(
                hu, semantic_map, by_split[split], generator, int(generator.integers(2, 6))
            )
            rows[split].append(row(pasted, pasted_map, "slice_with_nodules", patient_id, pixel_spacing, own + placed))
    for nodule in tqdm(nodules, desc="nodules"):
        centre = np.s_[3:67, 3:67]  # the patch is centred at the nodule, 64x64 is what the classifiers see
        crop = row(
            nodule["hu"][centre],
            patch_semantic_map(nodule)[centre],
            "nodule",
            nodule["patient_id"],
            nodule["pixel_spacing"],
        )
        crop["nodules"] = row(nodule["hu"], nodule["mask"], "", "", 0, [(nodule, (32.0, 32.0))])["nodules"]
        rows[split_of(nodule["patient_id"])].append(crop)

    dataset = DatasetDict(
        {name: Dataset.from_list(split_rows, features=FEATURES) for name, split_rows in rows.items()}
    )
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "data").mkdir(exist_ok=True)
    for name, split in dataset.items():
        split.to_parquet(args.output_dir / "data" / f"{name}-00000-of-00001.parquet")
    splits = {name: sorted({r["patient_id"] for r in split_rows}) for name, split_rows in rows.items()}
    (args.output_dir / "splits.json").write_text(json.dumps(splits, indent=1) + "\n")
    for name, split_rows in rows.items():
        kinds = [r["kind"] for r in split_rows]
        print(
            name,
            f"{len(splits[name])} patients:",
            ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)),
        )


if __name__ == "__main__":
    main()
