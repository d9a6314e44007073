"""Draw a nodule into a map, and make the slice with and without it from the same noise.

    python examples/03_draw_a_nodule.py
    python examples/03_draw_a_nodule.py --centre 250 160 --diameter_mm 14 --shape spiculated --malignancy 5

Not for clinical use.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from lsdm_diffusers import LSDMGuidedPipeline, find_nodules, small_checkpoint
from lsdm_diffusers.checkpoint import example_map
from lsdm_diffusers.io.export import save_png
from lsdm_diffusers.io.nodule_stamp import stamp_nodule
from lsdm_diffusers.semantic_map import read_semantic_map, semantic_map_image

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--semantic_map", default=example_map(), help="PNG of labels 0..7; default: the shipped map")
parser.add_argument("--pixel_spacing", type=float, default=0.7, help="edge of a pixel in mm (default 0.7)")
parser.add_argument("--centre", type=float, nargs=2, default=(330, 160), metavar=("ROW", "COLUMN"), help="in lung")
parser.add_argument("--diameter_mm", type=float, default=12, help="3..60 mm (default 12)")
parser.add_argument("--shape", choices=["smooth", "lobulated", "spiculated"], default="spiculated")
parser.add_argument("--malignancy", type=float, default=4, help="rating 1..5, which gives the label (default 4)")
parser.add_argument("--num_inference_steps", type=int, default=25, help="denoising steps (default 25)")
parser.add_argument("--seed", type=int, default=0, help="of the noise and of the outline (default 0)")
parser.add_argument("--output_dir", type=Path, default=Path("example-output/03"), help="folder for the results")
args = parser.parse_args()

# 1. Draw. The function refuses a nodule that would leave the body or touch another one, and says why.
without = read_semantic_map(args.semantic_map)
try:
    with_nodule = stamp_nodule(
        without,
        args.centre,
        diameter_mm=args.diameter_mm,
        pixel_spacing=args.pixel_spacing,
        shape=args.shape,
        malignancy=args.malignancy,
        seed=args.seed,
    )
except ValueError as error:
    raise SystemExit(str(error)) from None
drawn = with_nodule != without
print(f"the map had {len(find_nodules(without))} nodule(s), now it has {len(find_nodules(with_nodule))}")

# 2. Sample both maps in one call, each from the same noise.
pipe = LSDMGuidedPipeline.from_pretrained(small_checkpoint())
slices = pipe(
    [without, with_nodule],
    num_inference_steps=args.num_inference_steps,
    generator=[torch.Generator().manual_seed(args.seed) for _ in range(2)],
    output_type="hu",
).images

# 3. Compare.
before, after = (hu[drawn].mean() for hu in slices)
print(f"mean HU where the nodule was drawn: {before:.0f} without it, {after:.0f} with it")
args.output_dir.mkdir(parents=True, exist_ok=True)
for name, semantic_map, hu in zip(("without", "with"), (without, with_nodule), slices, strict=True):
    semantic_map_image(semantic_map).save(args.output_dir / f"map-{name}.png")
    save_png(hu, args.output_dir / f"slice-{name}.png")
    np.save(args.output_dir / f"slice-{name}.npy", hu)
print(f"saved maps and slices in {args.output_dir}/")
