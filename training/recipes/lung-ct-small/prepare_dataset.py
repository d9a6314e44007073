"""Turn a folder of public TCIA lung CT into the dataset of the small checkpoint.

    python training/recipes/lung-ct-small/prepare_dataset.py --data_dir ../shared/data --output_dir lung-ct-small-data

The folder holds one sub-folder for each collection: axial slices (DICOM, also inside .tar.xz archives), and in
`lidc-nodule-patches/` crops of 71x71 pixels in HU around rated LIDC-IDRI nodules (`patches_hu.npz`, `index.csv`). The
result loads with `datasets.load_dataset(output_dir)`. Each row has a `kind`:

* `slice`: a whole axial slice with its semantic map (labels 0..4; painted in are the nodules of LIDC-IDRI-0001, and
  the tumours that QIN LUNG CT outlines, which are cancers: label 7, without ratings);
* `slice_with_nodules`: the same slice with rated nodules pasted into its lungs, which come from patients of the same
  split. Whole slices with annotated nodules are rare, and a model that has seen nodules in crops alone draws them
  faintly in whole slices;
* `nodule`: a crop of 64x64 pixels centred at a rated nodule, painted from its outline.

The split is by patient, not by slice; `splits.json` lists the patients of each split, and the card, `README.md`, the
collections with their licences.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter, label, median_filter
from skimage.morphology import disk, opening, remove_small_objects
from tqdm.auto import tqdm

from lsdm_diffusers.data.tcia import NodulePatch, in_validation, read_collection_slices, read_nodule_patches
from lsdm_diffusers.data.tcia_card import write_tcia_card
from lsdm_diffusers.hounsfield import HU_MAX, HU_MIN
from lsdm_diffusers.io.atomic_write import part_file, write_atomically
from lsdm_diffusers.labels import HIGH_DENSITY_FROM_HU, SOFT_TISSUE_FROM_HU, SemanticLabel
from lsdm_diffusers.nodule_crop import CROP
from lsdm_diffusers.nodule_features import NODULE_FEATURES
from lsdm_diffusers.segmentation import paint_nodules, semantic_map_from_hu

SPLITS = ("train", "validation")
MIN_LUNG_PIXELS = 8000  # a slice with less lung has no room for nodules
NODULES_PER_SLICE = (2, 5)  # lowest and highest number that is pasted
PATCH_TISSUE_HU = -475  # half-way from aerated lung to soft tissue
PATCH_PADDING = 6  # pixels; more than the radius of the opening
MIN_WALL_PIXELS = 151  # of chest wall in a patch; smaller pieces are vessels
PARENCHYMA_HU = -650  # mean around a nodule; above it the nodule lies against chest wall or mediastinum
TUMOUR_RATING = 5  # of malignancy, for the label of a tumour that a segmentation marks
MIN_TUMOUR_PIXELS = 20  # of one piece of a segmentation; smaller ones are its frayed ends
PASTE_MARGIN = 4  # pixels of surroundings that are pasted with a nodule, blended at the edge
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
                **{feature: Value("float32") for feature in NODULE_FEATURES},
            }
        ),
    }
)


def patch_semantic_map(patch: NodulePatch) -> np.ndarray:
    """Labels of a patch, (71, 71).

    A patch shows no outline of the body. So lung is what is aerated, with the thin or small tissue inside it
    (vessels). The rest is chest wall or mediastinum.
    """
    hu = median_filter(patch.hu, 3)
    tissue = (hu > PATCH_TISSUE_HU) & ~patch.mask
    inside = np.s_[PATCH_PADDING:-PATCH_PADDING, PATCH_PADDING:-PATCH_PADDING]
    wall = opening(np.pad(tissue, PATCH_PADDING, mode="edge"), disk(4))[inside]
    wall = remove_small_objects(binary_dilation(wall, disk(2)) & tissue, max_size=MIN_WALL_PIXELS - 1)
    labels = np.full(hu.shape, SemanticLabel.LUNG, dtype=np.uint8)
    labels[wall] = SemanticLabel.BODY
    labels[wall & (hu >= SOFT_TISSUE_FROM_HU)] = SemanticLabel.SOFT_TISSUE
    labels[wall & (hu >= HIGH_DENSITY_FROM_HU)] = SemanticLabel.HIGH_DENSITY
    return paint_nodules(labels, [(patch.mask, patch.ratings["malignancy"])])


def paste_nodules(
    hu: np.ndarray, semantic_map: np.ndarray, patches: list[NodulePatch], generator: np.random.Generator, count: int
) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """Paste up to `count` nodules that lie free in lung into free places of the lungs, edges blended.

    Returns:
        HU, map, and the entries of column `nodules`.
    """
    hu, semantic_map = hu.copy(), semantic_map.copy()
    entries: list[dict[str, Any]] = []
    room = distance_transform_edt(semantic_map == SemanticLabel.LUNG)
    for patch in generator.permutation(np.array(patches, dtype=object))[: 4 * count]:
        if len(entries) == count:
            break
        mask = np.pad(patch.mask, PASTE_MARGIN)
        patch_hu = np.pad(patch.hu, PASTE_MARGIN, mode="edge")
        rim = binary_dilation(mask, disk(4)) & ~binary_dilation(mask, disk(1))
        if patch_hu[rim].mean() > PARENCHYMA_HU:
            continue
        radius = float(np.sqrt(mask.sum() / np.pi))
        places = np.argwhere(room > radius + PASTE_MARGIN)
        if not len(places):
            continue
        y, x = places[generator.integers(len(places))]
        blend = np.clip(gaussian_filter(binary_dilation(mask, disk(2)).astype(np.float32), 1.2), 0, 1)
        # the window of the slice around the place, and the part of the patch that lies inside the frame
        half = mask.shape[0] // 2
        window = np.s_[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]
        inner = np.s_[max(0, half - y) : half + hu.shape[0] - y, max(0, half - x) : half + hu.shape[1] - x]
        mask, blend, patch_hu = (array[inner][: 2 * half + 1] for array in (mask, blend, patch_hu))
        hu[window] = blend * patch_hu + (1 - blend) * hu[window]
        semantic_map[window][mask] = SemanticLabel.for_malignancy(patch.ratings["malignancy"])
        room[window] = 0
        entries.append(nodule_entry(patch, (float(y), float(x))))
    return hu, semantic_map, entries


def nodule_entry(patch: NodulePatch, centroid_yx: tuple[float, float]) -> dict[str, Any]:
    return {"patient_id": patch.patient_id, "centroid_yx": list(centroid_yx), **patch.ratings}


def tumour_masks(tumour: np.ndarray | None) -> list[np.ndarray]:
    """The pieces of a segmented tumour in a slice, each a boolean mask (H, W)."""
    if tumour is None:
        return []
    pieces, _ = label(tumour, np.ones((3, 3)))
    masks = [pieces == number for number in range(1, pieces.max() + 1)]
    return [mask for mask in masks if mask.sum() >= MIN_TUMOUR_PIXELS]


def make_row(
    hu: np.ndarray,
    semantic_map: np.ndarray,
    kind: str,
    patient_id: str,
    pixel_spacing: float,
    nodules: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "image": PILImage.fromarray((np.clip(hu, HU_MIN, HU_MAX).round() - HU_MIN).astype(np.uint16)),
        "semantic_map": PILImage.fromarray(semantic_map),
        "kind": kind,
        "patient_id": patient_id,
        "pixel_spacing_mm": pixel_spacing,
        "nodules": nodules,
    }


def make_crop(patch: NodulePatch) -> dict[str, Any]:
    """The row of kind "nodule": the middle of the patch, where its nodule lies."""
    edge = (patch.hu.shape[0] - CROP) // 2
    middle = np.s_[edge : edge + CROP, edge : edge + CROP]
    entry = nodule_entry(patch, (CROP / 2, CROP / 2))
    labels = patch_semantic_map(patch)[middle]
    return make_row(patch.hu[middle], labels, "nodule", patch.patient_id, patch.pixel_spacing_mm, [entry])


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of the collections")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the dataset; made if absent")
    parser.add_argument(
        "--validation_percent",
        type=int,
        default=15,
        help="share of the patients for validation, on average, 0..100 (default 15)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the nodules pasted into slices, and of their places (default 0)"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()

    def split_of(patient_id: str) -> str:
        return "validation" if in_validation(patient_id, args.validation_percent) else "train"

    try:
        patches = read_nodule_patches(args.data_dir / "lidc-nodule-patches")
        slices = read_collection_slices(args.data_dir)
    except (OSError, ValueError) as error:
        raise SystemExit(f"prepare_dataset.py: {error}") from None
    by_split: dict[str, list[NodulePatch]] = {split: [] for split in SPLITS}
    by_slice: dict[str, list[NodulePatch]] = {}
    for patch in patches:
        by_split[split_of(patch.patient_id)].append(patch)
        by_slice.setdefault(patch.sop_instance_uid, []).append(patch)

    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    generator = np.random.default_rng(args.seed)
    images = [("lidc-nodule-patches", patch.patient_id) for patch in patches]
    for ct in slices:
        split = split_of(ct.patient_id)
        images.append((ct.collection, ct.patient_id))
        painted, annotated = [], []
        for patch in by_slice.get(ct.sop_instance_uid, []):
            mask = ct.orientation.turn(patch.slice_mask(ct.orientation.stored_shape(ct.hu.shape)))
            painted.append((mask, patch.ratings["malignancy"]))
            y, x = np.argwhere(mask).mean(axis=0)
            annotated.append(nodule_entry(patch, (y, x)))
        for mask in tumour_masks(ct.tumour):
            painted.append((mask, TUMOUR_RATING))
            y, x = np.argwhere(mask).mean(axis=0)
            annotated.append(
                {"patient_id": ct.patient_id, "centroid_yx": [y, x], **dict.fromkeys(NODULE_FEATURES, None)}
            )
        semantic_map = semantic_map_from_hu(ct.hu, ct.pixel_spacing_mm, painted)
        rows[split].append(make_row(ct.hu, semantic_map, "slice", ct.patient_id, ct.pixel_spacing_mm, annotated))
        if (semantic_map == SemanticLabel.LUNG).sum() > MIN_LUNG_PIXELS:
            low, high = NODULES_PER_SLICE
            count = int(generator.integers(low, high + 1))
            hu, semantic_map, pasted = paste_nodules(ct.hu, semantic_map, by_split[split], generator, count)
            nodules = annotated + pasted
            rows[split].append(
                make_row(hu, semantic_map, "slice_with_nodules", ct.patient_id, ct.pixel_spacing_mm, nodules)
            )
    for patch in tqdm(patches, desc="nodules"):
        rows[split_of(patch.patient_id)].append(make_crop(patch))

    for split in SPLITS:
        if not rows[split]:
            raise SystemExit(
                f"--validation_percent is {args.validation_percent}, which leaves no patient for {split}."
            )
    patients = {}
    for split in SPLITS:
        patients[split] = sorted({row["patient_id"] for row in rows[split]})
        with part_file(args.output_dir / "data" / f"{split}-00000-of-00001.parquet") as part:
            Dataset.from_list(rows[split], features=FEATURES).to_parquet(part)
        kinds = Counter(row["kind"] for row in rows[split])
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        print(split, f"{len(patients[split])} patients:", counts)
    write_tcia_card(args.output_dir, images, patients, sum(map(len, rows.values())))
    write_atomically(args.output_dir / "splits.json", (json.dumps(patients, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
