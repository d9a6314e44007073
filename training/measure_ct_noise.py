"""Measure the CT noise that an autoencoder smooths away, for `grain=` of the pipeline.

    python training/measure_ct_noise.py --dataset_name lung-ct-small/data --pretrained_vae lung-ct-small/vae \
        --output_file lung-ct-small/ct_noise.json

Real slices of training patients are encoded and decoded. What is missing afterwards in uniform tissue is noise: its
power spectrum, its standard deviation inside each label, and how much its level differs between slices are written to
a JSON file. `pipe.register_to_config(ct_noise=json.load(file))` gives it to a pipeline. Beside the file, a picture of
the same name shows spectrum and deviations.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from lsdm_diffusers.ct_noise import LEVEL_RANGE, NUM_FREQUENCIES, CTNoise, measure_ct_noise
from lsdm_diffusers.data.dataset import row_kinds, slice_pixels
from lsdm_diffusers.evaluation.images import reconstruct
from lsdm_diffusers.evaluation.slices import evenly_spread
from lsdm_diffusers.hounsfield import HU_RANGE
from lsdm_diffusers.io.atomic_write import write_atomically
from lsdm_diffusers.labels import SemanticLabel
from lsdm_diffusers.training.data import open_splits


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True, help="folder or Hub id of the dataset")
    parser.add_argument("--split", default="train", help="split whose slices are measured (default: train)")
    parser.add_argument("--pretrained_vae", required=True, help="folder of the autoencoder, or of a pipeline's vae")
    parser.add_argument(
        "--slices_per_patient", type=int, default=5, help="at most this many slices of each patient (default: 5)"
    )
    parser.add_argument("--output_file", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    if args.slices_per_patient < 1:
        raise SystemExit(f"--slices_per_patient is {args.slices_per_patient}, but at least 1 is needed.")
    return args


def residuals(rows: Any, vae: AutoencoderKL, slices_per_patient: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Real minus reconstructed slice in HU, and its labels, of slices evenly spread over each patient."""
    patients = np.array(rows["patient_id"])
    is_slice = row_kinds(rows) != "nodule"
    chosen = []
    for patient in np.unique(patients):
        indices = np.flatnonzero(is_slice & (patients == patient))
        chosen += [int(indices[position]) for position in evenly_spread(len(indices), slices_per_patient)]
    for index in tqdm(chosen, desc="slices"):
        row = rows[index]
        semantic_map = np.asarray(row["semantic_map"])
        pixels = torch.from_numpy(slice_pixels(row["image"], semantic_map, blank_background=True))[None, None]
        residual = (pixels - reconstruct(vae, pixels).clamp(-1, 1))[0, 0] * (HU_RANGE / 2)
        yield residual.numpy(), semantic_map


def draw(noise: CTNoise, file: Path) -> None:
    """Spectrum, deviation by label and levels as a picture."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    spectrum, deviations, levels = figure.subplots(1, 3)
    spectrum.plot((np.arange(NUM_FREQUENCIES) + 0.5) / (2 * NUM_FREQUENCIES), noise.power)
    spectrum.set(title="Noise power, in any unit", xlabel="cycles per pixel")
    names = [label.name.lower().replace("_", " ") for label in SemanticLabel]
    deviations.bar(names[1 : len(noise.deviation_hu)], noise.deviation_hu[1:])
    deviations.set(title="Standard deviation, HU")
    levels.plot(np.linspace(*LEVEL_RANGE, len(noise.levels)), noise.levels)
    levels.set(title="Level of a slice over the median", xlabel="share of slices below")
    figure.savefig(file, dpi=90)


def main() -> None:
    args = parse_args()
    try:
        rows = open_splits(args.dataset_name, split=args.split, needed=[])[args.split]
        vae = AutoencoderKL.from_pretrained(args.pretrained_vae).float().eval()
        noise = measure_ct_noise(residuals(rows, vae, args.slices_per_patient))
    except (OSError, ValueError) as error:
        raise SystemExit(f"measure_ct_noise.py: {error}") from None
    write_atomically(args.output_file, (json.dumps(noise.to_config()) + "\n").encode())
    draw(noise, args.output_file.with_suffix(".png"))
    by_label = {SemanticLabel(label).name.lower(): value for label, value in enumerate(noise.deviation_hu[1:], 1)}
    print(f"deviation in HU: {by_label}; levels {noise.levels[0]} to {noise.levels[-1]}; wrote {args.output_file}")


if __name__ == "__main__":
    main()
