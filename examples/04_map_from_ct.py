"""Make a semantic map from a CT slice in DICOM, and a new slice from that map.

    python examples/04_map_from_ct.py --dicom scan/slice-042.dcm
    python examples/04_map_from_ct.py

Without --dicom the program makes a synthetic slice first and saves it as DICOM, so that it runs without any data.
It needs pydicom: pip install ".[demo]". Not for clinical use.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from lsdm_diffusers import LSDMGuidedPipeline, semantic_map_from_hu, small_checkpoint
from lsdm_diffusers.checkpoint import example_map
from lsdm_diffusers.evaluation.obedience import label_dice
from lsdm_diffusers.io.dicom import read_slice
from lsdm_diffusers.io.export import save_dicom
from lsdm_diffusers.labels import LABEL_NAMES
from lsdm_diffusers.semantic_map import semantic_map_image

MULTIPLE = 32  # height and width of a map must be multiples of it, for the shipped weights

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--dicom", type=Path, help="an axial slice of chest CT; default: a synthetic one")
parser.add_argument("--num_inference_steps", type=int, default=25, help="denoising steps (default 25)")
parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same slice (default 0)")
parser.add_argument("--output_dir", type=Path, default=Path("example-output/04"), help="folder for the results")
args = parser.parse_args()
args.output_dir.mkdir(parents=True, exist_ok=True)
pipe = LSDMGuidedPipeline.from_pretrained(small_checkpoint())


def sample(semantic_map, seed: int) -> np.ndarray:
    """The slice (H, W) of a map, in HU."""
    generator = torch.Generator().manual_seed(seed)
    steps = args.num_inference_steps
    return pipe(semantic_map, num_inference_steps=steps, generator=generator, output_type="hu").images[0]


dicom = args.dicom
if dicom is None:
    dicom = args.output_dir / "synthetic.dcm"
    save_dicom(sample(example_map(), args.seed), dicom, pixel_spacing=0.7)
    print(f"made {dicom}, a slice of the shipped map")

# 1. Read the slice. The pixel spacing matters: sizes in the segmentation are in mm.
ct = read_slice(str(dicom))
height, width = (size - size % MULTIPLE for size in ct.hu.shape)
hu = ct.hu[:height, :width]

# 2. Segment it: HU thresholds for tissue, K-means and morphology for the lungs. Nodules are not found: draw them.
semantic_map = semantic_map_from_hu(hu, ct.pixel_spacing_mm)
semantic_map_image(semantic_map).save(args.output_dir / "map.png")
for label, name in enumerate(LABEL_NAMES):
    share = (semantic_map == label).mean()
    if share:
        print(f"label {label}, {name}: {share:.1%} of the pixels")

# 3. Make a new slice of the same anatomy, and check whether it obeys the map.
new = sample(semantic_map, args.seed + 1)
np.save(args.output_dir / "new-slice.npy", new)
for name, dice in label_dice(semantic_map, new, ct.pixel_spacing_mm).items():
    print(f"{name} between the map and the new slice: {dice:.3f}")
