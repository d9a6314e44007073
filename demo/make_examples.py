"""Make the example maps of the page from public TCIA slices, with their README.

    python demo/make_examples.py --data_dir ../shared/data

`--data_dir` is that of training/recipes/lung-ct-small/prepare_dataset.py. Slices and nodules are of its validation
patients, whom the shipped weights have not seen. Nodules have the outlines that LIDC-IDRI's readers drew, and lie in
the lungs of other patients.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL.PngImagePlugin import PngInfo

from lsdm_diffusers.data.tcia import (
    CollectionSlice,
    NodulePatch,
    in_validation,
    read_collection_slices,
    read_nodule_patches,
)
from lsdm_diffusers.demo.example_maps import EXAMPLES, example_maps
from lsdm_diffusers.io.atomic_write import part_file, write_atomically
from lsdm_diffusers.labels import SemanticLabel
from lsdm_diffusers.segmentation import paint_nodules, semantic_map_from_hu
from lsdm_diffusers.semantic_map import semantic_map_image

VALIDATION_PERCENT = 15  # of the recipe
LUNG_FCP = "1.3.6.1.4.1.14519.5.2.1.5826.1402."
TCGA = "1.3.6.1.4.1.14519.5.2.1.7777.9002."
SOURCES = {  # name: SOP instance UID of the slice; nodules: patient, end of the SOP instance UID, centre (row, column)
    "upper-lobes": (LUNG_FCP + "349217155605096123720476932872", [("LIDC-IDRI-0347", "348659371018", (240, 180))]),
    "hila": (
        TCGA + "344366264182580194366818703313",
        [("LIDC-IDRI-0491", "677956405096", (200, 370)), ("LIDC-IDRI-0855", "366992177855", (290, 110))],
    ),
    "heart": (TCGA + "286246980247988648385138791559", [("LIDC-IDRI-0770", "036563712255", (300, 130))]),
    "lung-bases": (TCGA + "887588414258296001435739142396", [("LIDC-IDRI-0910", "250353235223", (300, 380))]),
    "aortic-arch": (TCGA + "115462956085965085692250804130", []),
    "empty-thorax": (LUNG_FCP + "142061305748911917019380353496", []),
}
README = """# Example maps

`python demo/make_examples.py` made these maps. The anatomy is what `semantic_map_from_hu` sees in public CT slices.
The nodules are outlines that the readers of LIDC-IDRI drew, set into the lungs of other patients. The shipped weights
have seen none of these patients.

| map | pixel, mm | slice (SOP instance UID) | nodules |
|---|---|---|---|
{rows}

Sources: TCGA-LUAD (CC BY 3.0, doi:10.7937/K9/TCIA.2016.JGNIHEP5), LIDC-IDRI (CC BY 3.0,
doi:10.7937/K9/TCIA.2015.LO9QL9SX), LungFCP of TCIA's Lung-Fused-CT-Pathology (CC BY). With thanks to the patients and
to TCIA (Clark et al. 2013, doi:10.1007/s10278-013-9622-7). Do not try to identify participants.
"""


def find_patch(patches: list[NodulePatch], patient_id: str, uid_end: str) -> NodulePatch:
    """The one patch of a patient in the slice whose SOP instance UID ends so."""
    (patch,) = (
        patch for patch in patches if patch.patient_id == patient_id and patch.sop_instance_uid.endswith(uid_end)
    )
    return patch


def make_example(name: str, path: Path, ct: CollectionSlice, patches: list[NodulePatch]) -> str:
    """Write one example map; returns its row of the README's table."""
    uid, nodules = SOURCES[name]
    semantic_map = semantic_map_from_hu(ct.hu, ct.pixel_spacing_mm)
    patients, descriptions = [ct.patient_id], []
    for patient_id, uid_end, (y, x) in nodules:
        patch = find_patch(patches, patient_id, uid_end)
        half = patch.mask.shape[0] // 2
        mask = patch.mask_at((y - half, x - half), semantic_map.shape)
        if (semantic_map[mask] != SemanticLabel.LUNG).any():
            raise SystemExit(f"{name}: the nodule at ({y}, {x}) does not lie in lung.")
        semantic_map = paint_nodules(semantic_map, [(mask, patch.ratings["malignancy"])])
        diameter_mm = 2 * np.sqrt(mask.sum() / np.pi) * ct.pixel_spacing_mm
        ratings = ", ".join(f"{feature} {rating:g}" for feature, rating in patch.ratings.items())
        patients.append(patient_id)
        descriptions.append(f"{patient_id}, {diameter_mm:.0f} mm, {ratings}")
    if not all(in_validation(patient, VALIDATION_PERCENT) for patient in patients):
        raise SystemExit(f"{name}: {patients} are not all patients of the validation split.")
    text = PngInfo()
    text.add_text("pixel_spacing_mm", f"{ct.pixel_spacing_mm:.4f}")
    with part_file(path) as part:
        semantic_map_image(semantic_map).save(part, format="png", optimize=True, pnginfo=text)
    return (
        f"| {name}.png | {ct.pixel_spacing_mm:.3f} | {ct.patient_id} ({uid}) | {'; '.join(descriptions) or 'none'} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of the collections")
    args = parser.parse_args()

    try:
        patches = read_nodule_patches(args.data_dir / "lidc-nodule-patches")
        needed = {uid for uid, _ in SOURCES.values()}
        slices = {
            ct.sop_instance_uid: ct for ct in read_collection_slices(args.data_dir) if ct.sop_instance_uid in needed
        }
    except (OSError, ValueError) as error:
        raise SystemExit(f"make_examples.py: {error}") from None
    paths = {path.stem: path for path in example_maps().values()}
    rows = [make_example(name, paths[name], slices[SOURCES[name][0]], patches) for name in EXAMPLES.values()]
    folder = next(iter(paths.values())).parent
    write_atomically(folder / "README.md", README.format(rows="\n".join(rows)).encode())


if __name__ == "__main__":
    main()
