"""Draw the nodule of a map with lobulation and spiculation from 1 to 5: the outlines in the map, and the slices.

    python examples/06_change_an_outline.py
    python examples/06_change_an_outline.py --maps_only   # without sampling

The map draws a nodule's outline, so these two features are drawn into the map (`reshape_nodule`); the pipeline does it
itself with the guidance method "outline", which the shipped checkpoint recommends. Not for clinical use.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from lsdm_diffusers import LSDMGuidedPipeline, find_nodules, reshape_nodule, small_checkpoint
from lsdm_diffusers.checkpoint import example_map
from lsdm_diffusers.hounsfield import WINDOWS
from lsdm_diffusers.labels import PALETTE
from lsdm_diffusers.nodule_crop import CROP, square_window
from lsdm_diffusers.semantic_map import read_semantic_map

RATINGS = (1, 2, 3, 4, 5)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--semantic_map", default=example_map(), help="PNG of labels 0..7 with a nodule of 60 pixels")
parser.add_argument("--maps_only", action="store_true", help="draw the maps alone, without sampling")
parser.add_argument("--num_inference_steps", type=int, default=25, help="denoising steps (default 25)")
parser.add_argument("--seed", type=int, default=0, help="the noise that all slices start from (default 0)")
parser.add_argument("--output_dir", type=Path, default=Path("example-output/06"), help="folder for the results")
args = parser.parse_args()

semantic_map = read_semantic_map(args.semantic_map)
nodule = max(find_nodules(semantic_map), key=lambda found: found.area)
y0, x0, y1, x1 = square_window(nodule.centroid_yx, semantic_map.shape, CROP)
pipe: Any = None if args.maps_only else LSDMGuidedPipeline.from_pretrained(small_checkpoint())
level, width = WINDOWS["lung"]

lines = [(feature, drawn) for feature in ("lobulation", "spiculation") for drawn in ("map", "slice")]
lines = [line for line in lines if pipe is not None or line[1] == "map"]
figure = Figure(figsize=(2 * len(RATINGS), 2.2 * len(lines)), layout="constrained")
axes = figure.subplots(len(lines), len(RATINGS))
for (feature, drawn), row in zip(lines, axes, strict=True):
    for rating, axis in zip(RATINGS, row, strict=True):
        changed, _ = reshape_nodule(semantic_map, nodule, **{feature: rating})
        if drawn == "map":
            axis.imshow(PALETTE[changed[y0:y1, x0:x1]], interpolation="nearest")
            axis.set_title(f"{feature} {rating}", fontsize=9)
        else:
            hu = pipe(
                changed,
                num_inference_steps=args.num_inference_steps,
                generator=torch.Generator().manual_seed(args.seed),  # the same noise: slices differ by the outline
                output_type="hu",
            ).images[0]
            axis.imshow(hu[y0:y1, x0:x1], cmap="gray", vmin=level - width / 2, vmax=level + width / 2)
            tissue = np.mean(hu[changed >= 5])
            axis.set_title(f"{tissue:.0f} HU", fontsize=9)
        axis.axis("off")
args.output_dir.mkdir(parents=True, exist_ok=True)
figure.savefig(args.output_dir / "outlines.png", dpi=80)
print(f"saved {args.output_dir}/outlines.png")
