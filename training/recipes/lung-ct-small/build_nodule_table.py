"""Write the sizes and ratings of real nodules that `lsdm-synthesize` draws from, of training patients.

    python training/recipes/lung-ct-small/build_nodule_table.py --data_dir ../shared/data \
        --splits lung-ct-small/data/splits.json --output_file lsdm_diffusers/synthesis/lidc_nodules.csv

`--data_dir` is that of prepare_dataset.py: `lidc-nodule-patches/index.csv` has the contour that a radiologist drew
around each nodule of LIDC-IDRI (CC BY 3.0), and the readers' mean ratings.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from build_outlines import polygon_moments, read_contour

from lsdm_diffusers.nodule_features import NODULE_FEATURES

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data_dir", type=Path, required=True, help="folder with lidc-nodule-patches/index.csv")
parser.add_argument("--splits", type=Path, required=True, help="splits.json of the prepared dataset")
parser.add_argument("--output_file", type=Path, required=True, help="the table")
args = parser.parse_args()

train = set(json.loads(args.splits.read_text())["train"])
index = pd.read_csv(args.data_dir / "lidc-nodule-patches" / "index.csv")
index = index[index["patient_id"].isin(train)]
areas = np.array([polygon_moments(read_contour(text))[0] for text in index["contour_xy"]])
table = pd.DataFrame({"diameter_mm": 2 * np.sqrt(areas / np.pi) * index["pixel_spacing_mm"].to_numpy()})
for name in NODULE_FEATURES:
    table[name] = index[f"mean_{name}"].to_numpy()
table = table[(table["diameter_mm"] >= 3) & (table["diameter_mm"] <= 40)]
table.round(2).sort_values(list(table)).to_csv(args.output_file, index=False)
print(f"{len(table)} nodules of {index['patient_id'].nunique()} patients in {args.output_file}")
