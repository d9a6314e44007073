"""Edit a CT slice: insert a nodule, make it malignant and ground glass, and remove it again.

    python examples/07_edit_a_slice.py --dicom scan/slice-042.dcm --centre 260 150
    python examples/07_edit_a_slice.py

Outside the nodule and 2 pixels around it, every Hounsfield unit stays as it is. Without --dicom the program makes a
synthetic slice first, so that it runs without any data. It needs pydicom: pip install ".[demo]". Not for clinical use.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from lsdm_diffusers import LSDMInpaintPipeline, change_nodule, insert_nodule, remove_nodule, small_checkpoint
from lsdm_diffusers.checkpoint import example_map
from lsdm_diffusers.hounsfield import WINDOWS
from lsdm_diffusers.io.dicom import read_slice
from lsdm_diffusers.semantic_map import find_nodules, read_semantic_map

CLOSE_UP = 96  # pixels; edge of the pictures

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--dicom", help="an axial slice of chest CT; default: a synthetic one")
parser.add_argument("--centre", type=float, nargs=2, default=(300, 160), help="row and column (default 300 160)")
parser.add_argument("--diameter_mm", type=float, default=14, help="of the nodule (default 14)")
parser.add_argument("--num_inference_steps", type=int, default=25, help="denoising steps (default 25)")
parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same slice (default 0)")
parser.add_argument("--output_dir", type=Path, default=Path("example-output/07"), help="folder for the results")
args = parser.parse_args()

pipe = LSDMInpaintPipeline.from_pretrained(small_checkpoint())
semantic_map, pixel_spacing = None, 0.7
if args.dicom is not None:
    slice_file = read_slice(args.dicom)
    hu, pixel_spacing = slice_file.hu, slice_file.pixel_spacing_mm
else:
    from lsdm_diffusers import LSDMGuidedPipeline

    semantic_map = read_semantic_map(example_map())
    sampler: Any = LSDMGuidedPipeline(**pipe.components)
    generator = torch.Generator().manual_seed(args.seed)
    steps = args.num_inference_steps
    hu = sampler(semantic_map, num_inference_steps=steps, generator=generator, output_type="hu").images[0]


def options():
    return {
        "pixel_spacing": pixel_spacing,
        "semantic_map": semantic_map,
        "num_inference_steps": args.num_inference_steps,
        "generator": torch.Generator().manual_seed(args.seed),  # the same noise, so that edits can be compared
    }


wish = {"malignancy": "benign", "texture": 5}
inserted = insert_nodule(pipe, hu, tuple(args.centre), args.diameter_mm, wish, **options())
new = (inserted.semantic_map >= 5) & inserted.mask
changed = change_nodule(pipe, inserted.hu, new, {"malignancy": "malignant", "texture": 1}, **options())
removed = remove_nodule(pipe, inserted.hu, new, **options())

args.output_dir.mkdir(parents=True, exist_ok=True)
pictures = {"before": hu, "inserted": inserted.hu, "ground glass": changed.hu, "removed": removed.hu}
nodule = max(find_nodules(np.where(new, 7, 4).astype(np.uint8)), key=lambda found: found.area)
y, x = (
    min(max(round(c) - CLOSE_UP // 2, 0), size - CLOSE_UP)
    for c, size in zip(nodule.centroid_yx, hu.shape, strict=True)
)
level, width = WINDOWS["lung"]
figure = Figure(figsize=(2.6 * len(pictures), 2.9), layout="constrained")
for axis, (name, picture) in zip(figure.subplots(1, len(pictures)), pictures.items(), strict=True):
    outside = int((picture != hu)[~inserted.mask].sum())
    print(f"{name:13s} mean of the nodule {picture[new].mean():6.0f} HU, {outside} pixels changed outside the mask")
    close_up = picture[y : y + CLOSE_UP, x : x + CLOSE_UP]
    axis.imshow(close_up, cmap="gray", vmin=level - width / 2, vmax=level + width / 2)
    axis.set_title(name, fontsize=9)
    axis.axis("off")
    np.save(args.output_dir / f"{name.replace(' ', '-')}.npy", picture)
figure.savefig(args.output_dir / "edits.png", dpi=100)
print(f"saved {args.output_dir}/edits.png and the slices in HU")
