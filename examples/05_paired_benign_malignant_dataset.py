"""Make a small dataset of pairs: the same anatomy and noise, once with benign and once with malignant nodules.

    python examples/05_paired_benign_malignant_dataset.py
    python examples/05_paired_benign_malignant_dataset.py --semantic_maps maps/*.png --seeds 0 1 2 3

The two maps of a pair differ by the label of their nodules alone: 5 (malignancy below 3) or 7 (above 3). On top of it,
--guidance_scale guides the nodules to the same class by the malignancy classifier; 0 leaves the map to decide.
The folder opens with `datasets.load_dataset("imagefolder", data_dir=...)`: columns `image` (HU + 1024 in 16 bits),
`semantic_map`, `pair`, `malignancy`, `seed`, `guidance_scale` and `synthetic`. Not for clinical use.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lsdm_diffusers import LSDMGuidedPipeline, SemanticLabel, find_nodules, small_checkpoint
from lsdm_diffusers.demo.example_maps import example_maps
from lsdm_diffusers.semantic_map import read_semantic_map, semantic_map_image

CLASSES = {"benign": SemanticLabel.NODULE_BENIGN, "malignant": SemanticLabel.NODULE_MALIGNANT}
HU_OFFSET = 1024  # a 16-bit PNG holds HU + 1024

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--semantic_maps", type=Path, nargs="+", help="PNGs of labels 0..7; default: the page's examples")
parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one pair for each map and seed (default 0)")
parser.add_argument("--guidance_scale", type=float, default=1.0, help="s (default 1)")
parser.add_argument("--num_inference_steps", type=int, default=25, help="denoising steps (default 25)")
parser.add_argument("--output_dir", type=Path, default=Path("example-output/05"), help="folder for the dataset")
args = parser.parse_args()
for folder in ("images", "maps"):
    (args.output_dir / folder).mkdir(parents=True, exist_ok=True)

pipe = LSDMGuidedPipeline.from_pretrained(small_checkpoint())
rows = []
for path in args.semantic_maps or example_maps().values():
    semantic_map = read_semantic_map(path)
    if not find_nodules(semantic_map):
        print(f"{path.name} has no nodule and is left out")
        continue
    is_nodule = semantic_map >= SemanticLabel.NODULE_BENIGN
    pair = [np.where(is_nodule, label, semantic_map).astype(np.uint8) for label in CLASSES.values()]
    for seed in args.seeds:
        slices = pipe(
            pair,
            nodule_features=[{"malignancy": name} for name in CLASSES],
            guidance_scale=args.guidance_scale,
            num_inference_steps=args.num_inference_steps,
            generator=[torch.Generator().manual_seed(seed) for _ in pair],  # the same noise for both
            output_type="hu",
        ).images
        for name, labels, hu in zip(CLASSES, pair, slices, strict=True):
            image_file, map_file = (f"{folder}/{path.stem}-seed-{seed}-{name}.png" for folder in ("images", "maps"))
            Image.fromarray((hu + HU_OFFSET).astype(np.uint16)).save(args.output_dir / image_file)
            semantic_map_image(labels).save(args.output_dir / map_file)
            rows.append(
                {
                    "image_file_name": image_file,
                    "semantic_map_file_name": map_file,
                    "pair": f"{path.stem}-seed-{seed}",
                    "malignancy": name,
                    "seed": seed,
                    "guidance_scale": args.guidance_scale,
                    "synthetic": True,
                }
            )
        print(f"{path.stem}, seed {seed}: done")

if not rows:
    raise SystemExit("No map has a nodule (labels 5..7), so there is nothing to pair.")
with open(args.output_dir / "metadata.csv", "w", newline="") as file:
    writer = csv.DictWriter(file, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
print(f"{len(rows)} slices in {args.output_dir}/, described in metadata.csv")
