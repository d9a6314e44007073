"""One row of a set: its map with new nodules, and its slice. A row depends on its number and the recipe alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Features, Value

from ..data.dataset import FEATURES, encode_row
from ..evaluation.obedience import nodule_obedience
from ..io.nodule_stamp import NoduleDoesNotFit, stamp_nodule
from ..labels import SemanticLabel
from ..nodule_features import NODULE_FEATURES
from ..nodule_outline import MIN_AREA, OUTLINE_FEATURES
from ..semantic_map import find_nodules
from .maps import MapSource, SourceMap, without_nodules
from .recipe import LIDC, Recipe, lidc_nodules, row_generator

MAX_TRIES = 60  # places that are tried for a nodule
SPICULATED_FROM = 3.5  # ratings from which the drawn outline is spiculated, or lobulated
GROUND_GLASS_BELOW = 3  # texture; tissue above -500 HU is not looked for in ground glass
SET_FEATURES = Features(
    {
        **FEATURES,
        "row": Value("int64"),  # its number; the same recipe gives the same row
        "source": Value("string"),  # name of the map
        "arm": Value("string"),  # "guided" or "unguided"
        "seed": Value("int64"),  # of the noise
        "grain": Value("float32"),
        "missed_nodules": Value("int32"),  # that the map has and the slice does not show
        "synthetic": Value("bool"),
    }
)


class RowFailed(ValueError):
    """A row that cannot be made; the message says why."""


@dataclass(frozen=True)
class PlannedRow:
    """What a row is made from.

    Args:
        source: the map.
        labels: with the new nodules, (H, W).
        entries: of the new nodules: masks and ratings.
        guided: whether guidance is on.
        seed: of the noise.
        grain: its level.
    """

    source: SourceMap
    labels: np.ndarray
    entries: tuple[tuple[np.ndarray, dict[str, float]], ...]
    guided: bool
    seed: int
    grain: float


def plan_row(recipe: Recipe, maps: MapSource, row: int) -> PlannedRow:
    """Choose a map of the row's split, and draw the row's nodules into it.

    Raises:
        RowFailed: where a nodule finds no place.
    """
    choice = row_generator(recipe.seed, row, "map")
    # every map comes once before the first comes again
    split = recipe.split_of(row // recipe.rows_per_shard)
    pool = maps.split_pools(recipe.validation, recipe.seed)[split]
    round_of, place = divmod(row, len(pool))
    source = maps[pool[int(row_generator(recipe.seed, round_of, "order").permutation(len(pool))[place])]]
    labels = source.labels if recipe.keep_nodules else without_nodules(source.labels)
    if not (labels == SemanticLabel.LUNG).any():
        raise RowFailed(f"map {source.name} shows no lung")
    shares = recipe.nodules_per_slice or {1: 1.0}
    count = int(choice.choice(list(shares), p=list(shares.values())))
    entries = []
    for _ in range(count):
        drawn, entry = _drawn_nodule(recipe, labels, source.pixel_spacing, choice)
        entries.append((drawn != labels, entry))
        labels = drawn
    guided = bool(choice.random() >= recipe.unguided) and bool(entries)
    return PlannedRow(
        source, labels, tuple(entries), guided, int(choice.integers(2**31)), float(choice.uniform(*recipe.grain))
    )


def _drawn_nodule(
    recipe: Recipe, labels: np.ndarray, pixel_spacing: float, choice: np.random.Generator
) -> tuple[np.ndarray, dict[str, float]]:
    """The map with one more nodule, and its diameter and ratings."""
    table = lidc_nodules()
    allowed = np.ones(len(table["malignancy"]), dtype=bool)
    if recipe.malignant is not None:
        is_malignant = choice.random() < recipe.malignant
        wanted = SemanticLabel.NODULE_MALIGNANT if is_malignant else SemanticLabel.NODULE_BENIGN
        allowed = np.array([SemanticLabel.for_malignancy(value) == wanted for value in table["malignancy"]])
    index = int(choice.choice(np.flatnonzero(allowed)))
    entry = {name: float(values[index]) for name, values in table.items()}
    if recipe.diameter_mm != LIDC:
        assert not isinstance(recipe.diameter_mm, str)
        entry["diameter_mm"] = float(choice.uniform(*recipe.diameter_mm))
    shape: Any = "smooth"
    if entry["spiculation"] >= SPICULATED_FROM:
        shape = "spiculated"
    elif entry["lobulation"] >= SPICULATED_FROM:
        shape = "lobulated"
    lung = np.argwhere(labels == SemanticLabel.LUNG)
    for _ in range(MAX_TRIES):
        row, column = lung[choice.integers(len(lung))]
        try:
            drawn = stamp_nodule(
                labels,
                (float(row), float(column)),
                entry["diameter_mm"],
                pixel_spacing,
                shape,
                entry["malignancy"],
                int(choice.integers(2**31)),
            )
        except NoduleDoesNotFit:
            continue
        return drawn, entry
    raise RowFailed(f"no place for a nodule of {entry['diameter_mm']:.1f} mm in {MAX_TRIES} tries")


def _wishes(recipe: Recipe, plan: PlannedRow) -> list[dict[str, float]]:
    """What each nodule of the map is asked for, in the order of `find_nodules`."""
    wishes = []
    height, width = plan.labels.shape
    for nodule in find_nodules(plan.labels):
        mask = nodule.mask((height, width))
        entry = next((entry for drawn, entry in plan.entries if (drawn & mask).any()), None)
        names = () if entry is None else recipe.guided_features
        wish = {name: entry[name] for name in names if entry is not None}
        if nodule.area < MIN_AREA:
            wish = {name: value for name, value in wish.items() if name not in OUTLINE_FEATURES}
        wishes.append(wish)
    return wishes


def make_row(pipe: Any, recipe: Recipe, maps: MapSource, row: int, strict: bool = False) -> dict[str, Any]:
    """Make a row.

    Args:
        pipe: an `LSDMGuidedPipeline`.
        recipe: of the set.
        maps: to start from.
        row: its number.
        strict: refuse a slice that does not show a nodule of its map.

    Returns:
        The columns of `SET_FEATURES`.

    Raises:
        RowFailed: where a nodule finds no place, or with `strict`.
    """
    plan = plan_row(recipe, maps, row)
    options: dict[str, Any] = {}
    if plan.guided:
        scales = recipe.guidance_scale or pipe.recommended_scales(recipe.guidance_method)
        options = {"nodule_features": [_wishes(recipe, plan)], "guidance_scale": scales}
        options["guidance_method"] = recipe.guidance_method
    output = pipe(
        plan.labels,
        num_inference_steps=recipe.num_inference_steps,
        generator=torch.Generator().manual_seed(plan.seed),
        grain=plan.grain,
        output_type="hu",
        **options,
    )
    hu, labels, spacing = output.images[0], output.semantic_maps[0], plan.source.pixel_spacing
    nodules = find_nodules(labels)
    obedience = nodule_obedience(labels, hu, spacing)
    entries, missed = [], 0
    for number, (nodule, figures) in enumerate(zip(nodules, obedience, strict=True)):
        mask = nodule.mask((labels.shape[0], labels.shape[1]))
        entry = next((entry for drawn, entry in plan.entries if (drawn & mask).any()), None)
        solid = entry is None or entry["texture"] >= GROUND_GLASS_BELOW
        missed += int(solid and figures["missed_nodules"])
        entries.append(
            {
                "nodule_id": f"{row}-{number}",
                "annotation_ids": [],
                "centroid_yx": list(nodule.centroid_yx),
                "box_yxyx": list(nodule.box_yxyx),
                "diameter_mm": 2 * float(np.sqrt(nodule.area / np.pi)) * spacing,
                "num_readers": None,
                **{name: None if entry is None else entry[name] for name in NODULE_FEATURES},
                **{f"{name}_ratings": [] for name in NODULE_FEATURES},
            }
        )
    if strict and missed:
        raise RowFailed(f"{missed} of {len(nodules)} nodules are not seen in the slice")
    return encode_row(
        hu,
        labels,
        patient_id=plan.source.patient_id,
        pylidc_scan_id=None,
        series_instance_uid="",
        sop_instance_uid="",
        slice_index=row,
        slice_z_mm=None,
        pixel_spacing_mm=spacing,
        slice_thickness_mm=None,
        contrast_used=None,
        nodules=entries,
        row=row,
        source=plan.source.name,
        arm="guided" if plan.guided else "unguided",
        seed=plan.seed,
        grain=plan.grain,
        missed_nodules=missed,
        synthetic=True,
    )
