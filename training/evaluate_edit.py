"""Measure edits of real slices: nodules inserted and removed.

    python training/evaluate_edit.py --dataset_name lung-ct-small/data --output_dir edited

Nodules of `--diameters_mm` are inserted into the lungs of real slices, solid and as ground glass, and nodules of real
slices are removed. Writes `edit.json`, `edit.md` and the pictures `inserted.png` and `removed.png`:

- pixels outside the mask that changed;
- Dice of the inserted nodule with its mask, error of its diameter, and its mean HU;
- the seam: mean squared step of HU across the edge of the mask over the one just inside; and over that across the same
  edge in the slice as it was;
- what the lung measures where a nodule was removed, beside the lung around it;
- seconds of an edit, and over those of a whole slice of the same steps.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scipy.ndimage import distance_transform_edt, gaussian_gradient_magnitude
from tqdm.auto import tqdm

from lsdm_diffusers import LSDMGuidedPipeline, LSDMInpaintPipeline, insert_nodule, remove_nodule, small_checkpoint
from lsdm_diffusers.data.dataset import row_kinds
from lsdm_diffusers.evaluation.obedience import nodule_obedience
from lsdm_diffusers.evaluation.panels import panel_grid, show_hu
from lsdm_diffusers.evaluation.slices import EvaluationSlice, evenly_spread, read_slice
from lsdm_diffusers.evaluation.tables import markdown_table, write_json
from lsdm_diffusers.evaluation.windows import centred_window
from lsdm_diffusers.io.atomic_write import write_atomically
from lsdm_diffusers.labels import SemanticLabel
from lsdm_diffusers.semantic_map import find_nodules
from lsdm_diffusers.training.data import open_splits

TEXTURES = {"solid": 5, "ground glass": 1}
ROOM = 4  # pixels of lung beyond an inserted nodule
RING = (6, 16)  # pixels around a removed nodule whose lung it is compared with
SEAM_DEPTH = 3  # pixels inside the edge of a mask whose steps are compared with those across it
MIN_REMOVED_PIXELS = 40  # smaller nodules leave no lung to measure
DEPICTED, CLOSE_UP = 6, 96  # rows of the pictures, and their edge in pixels


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True, help="folder or Hub id of the dataset")
    parser.add_argument("--split", default="validation", help="split whose slices are edited (default: validation)")
    parser.add_argument("--num_slices", type=int, default=24, help="slices of each kind of edit (default: 24)")
    parser.add_argument(
        "--diameters_mm", type=float, nargs="+", default=[6, 10, 14, 20], help="of inserted nodules, in turn"
    )
    parser.add_argument(
        "--pretrained_model_name_or_path", help="folder or Hub id of a pipeline; default: the shipped checkpoint"
    )
    parser.add_argument("--num_inference_steps", type=int, default=25, help="denoising steps (default: 25)")
    parser.add_argument("--seed", type=int, default=0, help="of places and noise (default: 0)")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the report")
    args = parser.parse_args()
    for name in ("num_slices", "num_inference_steps"):
        if getattr(args, name) < 1:
            raise SystemExit(f"--{name} is {getattr(args, name)}, but at least 1 is needed.")
    return args


def chosen_slices(rows: Dataset, with_nodules: bool, number: int) -> Iterator[EvaluationSlice]:
    """At most `number` whole slices with or without nodules in their maps, evenly spread."""
    is_slice = np.flatnonzero(row_kinds(rows) != "nodule")
    has_nodule = np.array([np.asarray(rows[int(index)]["semantic_map"]).max() >= 5 for index in is_slice])
    found = is_slice[has_nodule == with_nodules]
    for position in evenly_spread(len(found), number):
        yield read_slice(rows[int(found[position])], position)


def free_place(semantic_map: np.ndarray, radius: float, generator: np.random.Generator) -> tuple[int, int] | None:
    """A random pixel of a lung with room for a nodule of a radius in pixels; None where there is none."""
    room = distance_transform_edt(semantic_map == SemanticLabel.LUNG)
    places = np.argwhere(room > radius + ROOM)
    return tuple(places[generator.integers(len(places))]) if len(places) else None


def squared_steps(hu: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Mean squared difference of neighbouring pixels, one in each mask."""
    steps = []
    for axis in (0, 1):
        ahead = [np.roll(array, -1, axis) for array in (hu, first, second)]
        pairs = (first & ahead[2]) | (second & ahead[1])
        steps.append(((ahead[0] - hu)[pairs]) ** 2)
    return float(np.concatenate(steps).mean())


def seam(before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """The step across the edge of a mask, over that just inside, and over that in the slice as it was."""
    border = mask & (distance_transform_edt(mask) <= SEAM_DEPTH)
    across = squared_steps(after, mask, ~mask)
    return {
        "seam_over_inside": across / squared_steps(after, border, border),
        "seam_over_before": across / squared_steps(before, mask, ~mask),
    }


def hole_against_ring(after: np.ndarray, semantic_map: np.ndarray, hole: np.ndarray) -> dict[str, float]:
    """Mean, deviation and mean gradient of HU where a nodule was, and in the lung around."""
    distance = distance_transform_edt(~hole)
    ring = (distance > RING[0]) & (distance <= RING[1]) & (semantic_map == SemanticLabel.LUNG)
    gradient = gaussian_gradient_magnitude(after, 1)
    figures: dict[str, Any] = {}
    for name, where in (("hole", hole), ("ring", ring)):
        figures |= {f"{name}_mean_hu": after[where].mean(), f"{name}_deviation_hu": after[where].std()}
        figures[f"{name}_gradient"] = gradient[where].mean()
    return {name: float(value) for name, value in figures.items()}


def means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}


def save_picture(file: Path, rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str]) -> None:
    figure, axes = panel_grid(len(rows), len(titles), width=2.0)
    for line, images in zip(axes, rows, strict=True):
        for axis, image in zip(line, images, strict=True):
            show_hu(axis, image)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    figure.savefig(file, dpi=90)


def main() -> None:
    args = parse_args()
    try:
        rows = open_splits(args.dataset_name, split=args.split, needed=[])[args.split]
    except ValueError as error:
        raise SystemExit(f"evaluate_edit.py: {error}") from None
    pipe = LSDMInpaintPipeline.from_pretrained(args.pretrained_model_name_or_path or small_checkpoint())
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.to(memory_format=torch.channels_last)  # faster on a CPU
    places = np.random.default_rng(args.seed)
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in (*TEXTURES, "removed")}
    pictures: dict[str, list[list[np.ndarray]]] = {"inserted": [], "removed": []}
    seconds = []

    def options(number: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(1000 * args.seed + number)
        return {"generator": generator, "num_inference_steps": args.num_inference_steps}

    plain = list(chosen_slices(rows, False, args.num_slices))
    for number, each in enumerate(tqdm(plain, desc="inserted")):
        diameter = args.diameters_mm[number % len(args.diameters_mm)]
        place = free_place(each.semantic_map, diameter / each.pixel_spacing / 2, places)
        if place is None:
            continue
        shown = [each.hu[centred_window(each.hu.shape, place, CLOSE_UP)]]
        for name, texture in TEXTURES.items():
            wish = {"malignancy": "malignant" if number % 2 else "benign", "texture": texture}
            start = time.perf_counter()
            edit = insert_nodule(
                pipe,
                each.hu,
                place,
                diameter,
                wish,
                "smooth",
                each.pixel_spacing,
                each.semantic_map,
                **options(number),
            )
            seconds.append(time.perf_counter() - start)
            (nodule,) = find_nodules(edit.semantic_map)
            figures = nodule_obedience(edit.semantic_map, edit.hu, each.pixel_spacing)[0]
            figures["mean_hu"] = float(edit.hu[nodule.mask(edit.hu.shape)].mean())
            figures["changed_outside"] = float((edit.hu != each.hu)[~edit.mask].sum())
            measured[name].append(figures | seam(each.hu, edit.hu, edit.mask))
            shown.append(edit.hu[centred_window(each.hu.shape, place, CLOSE_UP)])
        pictures["inserted"].append(shown)

    for number, each in enumerate(tqdm(list(chosen_slices(rows, True, args.num_slices)), desc="removed")):
        nodule = max(each.nodules, key=lambda found: found.area)
        if nodule.area < MIN_REMOVED_PIXELS:
            continue
        hole = nodule.mask(each.hu.shape)
        edit = remove_nodule(pipe, each.hu, hole, each.pixel_spacing, each.semantic_map, **options(number))
        figures = hole_against_ring(edit.hu, edit.semantic_map, hole)
        figures["changed_outside"] = float((edit.hu != each.hu)[~edit.mask].sum())
        measured["removed"].append(figures | seam(each.hu, edit.hu, edit.mask))
        window = centred_window(each.hu.shape, nodule.centroid_yx, CLOSE_UP)
        pictures["removed"].append([each.hu[window], edit.hu[window]])

    whole_slice = LSDMGuidedPipeline(**pipe.components)
    whole_slice.set_progress_bar_config(disable=True)
    start = time.perf_counter()
    whole_slice(plain[0].semantic_map, num_inference_steps=args.num_inference_steps, output_type="hu")
    whole_seconds = time.perf_counter() - start

    results = {name: {"edits": len(rows), **means(rows)} for name, rows in measured.items()}
    speed = {"seconds_of_an_edit": float(np.median(seconds)), "seconds_of_a_slice": whole_seconds}
    speed["ratio"] = speed["seconds_of_an_edit"] / whole_seconds
    write_json(args.output_dir / "edit.json", {"results": results, "speed": speed})
    names = list(dict.fromkeys(name for summary in results.values() for name in summary))
    lines = [[name, *(f"{s[name]:.3g}" if name in s else "" for s in results.values())] for name in names]
    text = f"{markdown_table(['', *results], lines)}\n\n" + ", ".join(f"{k} {v:.2f}" for k, v in speed.items()) + "\n"
    write_atomically(args.output_dir / "edit.md", text.encode())
    for name, titles in (("inserted", ["before", *TEXTURES]), ("removed", ["before", "after"])):
        spread = [pictures[name][index] for index in evenly_spread(len(pictures[name]), DEPICTED)]
        if spread:
            save_picture(args.output_dir / f"{name}.png", spread, titles)
    print(text)


if __name__ == "__main__":
    main()
