"""Make the example maps of the page from public TCIA slices, with their README.

    python demo/make_examples.py --data_dir ../shared/data

`--data_dir` is that of training/recipes/lung-ct-small/prepare_dataset.py. Slices and nodules are of its validation patients, whom the
shipped weights have not seen. Nodules have the outlines that LIDC-IDRI's readers drew, set into lungs of others.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL.PngImagePlugin import PngInfo

sys.path.insert(0, str(Path(__file__).parent.parent / "training" / "recipes" / "lung-ct-small"))
from prepare_dataset import in_validation, read_nodules, read_slices  # noqa: E402

from lsdm_diffusers.demo.example_maps import EXAMPLES, example_maps  # noqa: E402
from lsdm_diffusers.labels import SemanticLabel  # noqa: E402
from lsdm_diffusers.segmentation import paint_nodules, semantic_map_from_hu  # noqa: E402
from lsdm_diffusers.semantic_map import semantic_map_image  # noqa: E402

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

Made by `python demo/make_examples.py` from public slices, as `semantic_map_from_hu` sees them, and from outlines of nodules that the
readers of LIDC-IDRI drew, set into the lungs of other patients. The shipped weights have seen none of these patients.

| map | pixel, mm | slice (SOP instance UID) | nodules |
|---|---|---|---|
{rows}

TCGA-LUAD: CC BY 3.0, doi:10.7937/K9/TCIA.2016.JGNIHEP5. LIDC-IDRI: CC BY 3.0, doi:10.7937/K9/TCIA.2015.LO9QL9SX. LungFCP (TCIA
Lung-Fused-CT-Pathology): CC BY. With thanks to the patients and to TCIA (Clark et al. 2013, doi:10.1007/s10278-013-9622-7). Do not try
to identify participants.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of the collections")
    args = parser.parse_args()

    nodules = read_nodules(args.data_dir / "lidc-nodule-patches")
    slices = {uid: (patient, hu, spacing) for patient, uid, hu, spacing in read_slices(args.data_dir)}
    rows = []
    paths = {path.stem: path for path in example_maps().values()}
    for name in EXAMPLES.values():
        uid, placed = SOURCES[name]
        patient, hu, spacing = slices[uid]
        semantic_map = semantic_map_from_hu(hu, spacing)
        patients, told = [patient], []
        for nodule_patient, uid_end, (y, x) in placed:
            (nodule,) = (
                n for n in nodules if n["patient_id"] == nodule_patient and n["sop_instance_uid"].endswith(uid_end)
            )
            mask = np.zeros(semantic_map.shape, dtype=bool)
            mask[y - 35 : y + 36, x - 35 : x + 36] = nodule["mask"]
            if (semantic_map[mask] != SemanticLabel.LUNG).any():
                raise SystemExit(f"{name}: the nodule at ({y}, {x}) does not lie in lung.")
            semantic_map = paint_nodules(semantic_map, [(mask, nodule["malignancy"])])
            ratings = ", ".join(
                f"{rating} {nodule[rating]:g}" for rating in ("malignancy", "lobulation", "spiculation", "texture")
            )
            patients.append(nodule_patient)
            told.append(f"{nodule_patient}, {2 * np.sqrt(mask.sum() / np.pi) * spacing:.0f} mm, {ratings}")
        if not all(in_validation(patient, 15) for patient in patients):
            raise SystemExit(f"{name}: {patients} are not all patients of the validation split.")
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        text = PngInfo()
        text.add_text("pixel_spacing_mm", f"{spacing:.4f}")
        semantic_map_image(semantic_map).save(paths[name], optimize=True, pnginfo=text)
        rows.append(f"| {name}.png | {spacing:.3f} | {patient} ({uid}) | {'; '.join(told) or 'none'} |")
    (paths[name].parent / "README.md").write_text(README.format(rows="\n".join(rows)))


if __name__ == "__main__":
    main()
