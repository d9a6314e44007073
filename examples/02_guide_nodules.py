"""Guide the nodules of one map in several directions, all from the same noise, and measure what changed.

    python examples/02_guide_nodules.py
    python examples/02_guide_nodules.py --guidance_scale 4 --semantic_map my_map.png

The scale s says how hard guidance pulls: 0 is off, 1 is Bayes' rule, more exaggerates. Without it, each feature has
the scale that suits its method: see docs/guides/guidance.md. Not for clinical use.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lsdm_diffusers import LSDMGuidedPipeline, find_nodules, small_checkpoint
from lsdm_diffusers.checkpoint import example_map
from lsdm_diffusers.hounsfield import apply_window
from lsdm_diffusers.nodule_crop import CROP, square_window
from lsdm_diffusers.semantic_map import read_semantic_map

DIRECTIONS = {
    "unguided": None,
    "benign": {"malignancy": "benign"},
    "malignant": {"malignancy": "malignant"},
    "ground-glass": {"texture": 1},
    "solid": {"texture": 5},
    "spiculated": {"spiculation": 5},
}
ENLARGED = 256  # pixels; edge of a close-up in the picture

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--semantic_map", default=example_map(), help="PNG of labels 0..7 with a nodule")
parser.add_argument("--guidance_scale", type=float, help="s of all features (default: what their methods recommend)")
parser.add_argument("--num_inference_steps", type=int, default=25, help="denoising steps (default 25)")
parser.add_argument("--seed", type=int, default=0, help="the noise that all slices start from (default 0)")
parser.add_argument("--output_dir", type=Path, default=Path("example-output/02"), help="folder for the results")
args = parser.parse_args()

semantic_map = read_semantic_map(args.semantic_map)
nodules = find_nodules(semantic_map)
if not nodules:
    raise SystemExit(f"{args.semantic_map} has no nodule (labels 5..7); examples/03_draw_a_nodule.py draws one.")
largest = max(nodules, key=lambda nodule: nodule.area)
inside = largest.mask(semantic_map.shape)
y0, x0, y1, x1 = square_window(largest.centroid_yx, semantic_map.shape, CROP)

pipe = LSDMGuidedPipeline.from_pretrained(small_checkpoint())
scales = pipe.recommended_scales() if args.guidance_scale is None else args.guidance_scale
close_ups = []
for name, features in DIRECTIONS.items():
    hu = pipe(
        semantic_map,
        nodule_features=features,
        guidance_scale=scales if features else 1.0,
        num_inference_steps=args.num_inference_steps,
        generator=torch.Generator().manual_seed(
            args.seed
        ),  # the same noise each time: slices differ by guidance alone
        output_type="hu",
    ).images[0]
    print(f"{name:13s} mean of the largest nodule {hu[inside].mean():6.0f} HU")
    close_up = Image.fromarray(apply_window(hu[y0:y1, x0:x1], "lung"))
    close_ups.append(np.asarray(close_up.resize((ENLARGED, ENLARGED), Image.Resampling.BICUBIC)))

args.output_dir.mkdir(parents=True, exist_ok=True)
Image.fromarray(np.concatenate(close_ups, axis=1)).save(args.output_dir / "close-ups.png")
print(f"saved {args.output_dir}/close-ups.png, from left to right: {', '.join(DIRECTIONS)}")
