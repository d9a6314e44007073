"""Collect outlines of lobulated and spiculated nodules for `reshape_nodule`, from training patients.

    python training/recipes/lung-ct-small/build_outlines.py --data_dir ../shared/data \
        --splits lung-ct-small/data/splits.json --output_file lsdm_diffusers/outlines/lidc.npz

`--data_dir` is that of prepare_dataset.py: `lidc-nodule-patches/index.csv` has the contour that a radiologist drew
around each nodule of LIDC-IDRI (CC BY 3.0), and the readers' mean ratings.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from lsdm_diffusers.nodule_outline import POINT_UNIT, principal_axes

MIN_AREA = 100  # pixels; smaller contours are too coarse
MIN_RATING = 4  # mean of the readers
NUM_POINTS = 96  # of an outline


def read_contour(text: str) -> np.ndarray:
    """The points (N, 2) of a contour written as "x;y|x;y|...|"."""
    return np.array([[float(value) for value in point.split(";")] for point in text.strip("|").split("|")])


def polygon_moments(points: np.ndarray) -> tuple[float, np.ndarray]:
    """Area and centroid of a polygon, by the shoelace formula."""
    following = np.roll(points, -1, axis=0)
    cross = points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]
    area = cross.sum() / 2
    return abs(area), ((points + following) * cross[:, None]).sum(0) / (6 * area)


def normalised(points: np.ndarray) -> np.ndarray:
    """`NUM_POINTS` evenly spread points of the outline: area 1, centroid 0, the long axis along rows."""
    closed = np.concatenate([points, points[:1]])
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))])
    places = np.linspace(0, length[-1], NUM_POINTS, endpoint=False)
    even = np.stack([np.interp(places, length, closed[:, axis]) for axis in (0, 1)], axis=1)
    area, centroid = polygon_moments(even)
    even = (even - centroid) / np.sqrt(area)
    angle, _, _ = principal_axes(even)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    return np.stack([even @ along, even @ across], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of the public collections")
    parser.add_argument("--splits", type=Path, required=True, help="splits.json of the recipe's dataset")
    parser.add_argument("--output_file", type=Path, required=True, help=".npz file to write")
    args = parser.parse_args()
    nodules = pd.read_csv(args.data_dir / "lidc-nodule-patches" / "index.csv")
    training = set(json.loads(args.splits.read_text())["train"])
    marked = (nodules.mean_lobulation >= MIN_RATING) | (nodules.mean_spiculation >= MIN_RATING)
    chosen = nodules[nodules.patient_id.isin(training) & marked]
    contours = [read_contour(text) for text in chosen.contour_xy]
    is_large = np.array([polygon_moments(contour)[0] >= MIN_AREA for contour in contours])
    outlines = np.array([normalised(contour) for contour, large in zip(contours, is_large, strict=True) if large])
    chosen = chosen[is_large]
    args.output_file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        args.output_file,
        points=np.round(outlines * POINT_UNIT).astype(np.int16),
        lobulation=chosen.mean_lobulation.to_numpy(np.float32),
        spiculation=chosen.mean_spiculation.to_numpy(np.float32),
    )
    print(f"{len(outlines)} outlines of {chosen.patient_id.nunique()} patients in {args.output_file}")


if __name__ == "__main__":
    main()
