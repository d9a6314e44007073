"""Make one CT slice from a semantic map and save it.

    python examples/01_slice_from_map.py
    python examples/01_slice_from_map.py --semantic_map my_map.png --num_inference_steps 50 --seed 7

A semantic map is a PNG whose pixel values are the labels 0..7: 0 background, 1 body, 2 soft tissue, 3 high density,
4 lung, 5 / 6 / 7 nodule with malignancy below / equal to / above 3. Not for clinical use.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lsdm_diffusers import LSDMGuidedPipeline, find_nodules, small_checkpoint
from lsdm_diffusers.checkpoint import example_map
from lsdm_diffusers.hounsfield import apply_window
from lsdm_diffusers.semantic_map import read_semantic_map, semantic_map_image

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--semantic_map", default=example_map(), help="PNG of labels 0..7; default: the shipped map")
parser.add_argument("--num_inference_steps", type=int, default=25, help="denoising steps (default 25)")
parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same slice (default 0)")
parser.add_argument("--output_dir", type=Path, default=Path("example-output/01"), help="folder for the results")
args = parser.parse_args()

# 1. Read the map. A value that is no label is refused with its name.
semantic_map = read_semantic_map(args.semantic_map)
print(f"map of {semantic_map.shape[1]}x{semantic_map.shape[0]} pixels, {len(find_nodules(semantic_map))} nodule(s)")

# 2. Load the weights that ship in the package. A folder or a Hub id works as well.
pipe = LSDMGuidedPipeline.from_pretrained(small_checkpoint())

# 3. Sample. "hu" gives whole Hounsfield units; "pil" would give 8-bit pictures.
hu = pipe(
    semantic_map,
    num_inference_steps=args.num_inference_steps,
    generator=torch.Generator().manual_seed(args.seed),
    output_type="hu",
).images[0]

# 4. Save the slice as numbers and in two windows, and the map in its colours.
args.output_dir.mkdir(parents=True, exist_ok=True)
np.save(args.output_dir / "slice.npy", hu)
for window in ("lung", "mediastinal"):
    Image.fromarray(apply_window(hu, window)).save(args.output_dir / f"slice-{window}.png")
semantic_map_image(semantic_map).save(args.output_dir / "semantic_map.png")
print(f"saved slice.npy (HU) and pictures in {args.output_dir}/")
