"""Tables of what guidance changes in a nodule: the response to its scale, and what random or shuffled gradients do."""

from collections.abc import Mapping

import numpy as np

from ...nodule_features import NODULE_FEATURES
from ..agreement import rank_correlation
from ..bootstrap import patient_bootstrap
from ..measures import NODULE_TISSUE_HU, REACH_MM, SHAPE_MEASURES
from ..obedience import equal_area_diameter
from .arms import REAL, SHAM_KINDS, UNGUIDED, Arm, ArmKind, Pole, guided, low_and_high
from .measurements import MEASURE_TITLES
from .results import ControlResults
from .table import Cell, Row, Table

DENSITY_AND_SIZE = {"Δ area [mm²]": "area_mm2", "Δ mean [HU]": "mean_hu", "Δ spread [HU]": "spread_hu"}
DIAMETERS = (6.0, 8.0)  # mm, between the size classes of the Fleischner guidelines (MacMahon et al. 2017)
SIZE_CLASSES = ("< 6 mm", "6 to 8 mm", "≥ 8 mm")
FEWEST_SCALES = 3  # a rank correlation over fewer scales says nothing
AREA = f"tissue (HU > {NODULE_TISSUE_HU:g}) within {REACH_MM:g} mm of the drawn nodule"


def dose_table(results: ControlResults, feature: str) -> Table:
    """The response of size, density, shape and scores to the guidance scale of one feature."""
    scores = {"Δ judge": f"judge {feature}", "Δ guiding classifier": f"classifier {feature}"}
    scales = results.scales(feature)
    rows: dict[str, Row] = {UNGUIDED.label: {"area [px]": results.estimate("area_px", UNGUIDED)}}
    for pole in Pole:
        arms = [guided(feature, pole, scale) for scale in scales]
        for arm in arms:
            row: dict[str, Cell] = {"area [px]": results.estimate("area_px", arm)}
            row |= {title: results.estimate(measure, arm, UNGUIDED) for title, measure in DENSITY_AND_SIZE.items()}
            row |= {f"Δ {MEASURE_TITLES[measure]}": results.gain(measure, arm) for measure in SHAPE_MEASURES}
            rows[arm.label] = row | {title: results.gain(measure, arm) for title, measure in scores.items()}
        if len(scales) >= FEWEST_SCALES:
            columns = {"area [px]": "area_px", "Δ area [mm²]": "area_mm2", "Δ mean [HU]": "mean_hu"} | scores
            rows[_trend_label(arms)] = {
                title: _trend(scales, [float(np.nanmean(results.measurements[measure][arm])) for arm in arms])
                for title, measure in columns.items()
            }
    caption = (
        f"{results.size}. Area: {AREA}. Δ: guided minus unguided, from the same noise. Shape, margin, judge and "
        "guiding classifier in standard deviations of the real nodules; shape and margin of the nodules that both "
        "arms show."
    )
    return Table(f"Dose-response: {feature}", caption, rows)


def _trend_label(arms: list[Arm]) -> str:
    return f"Spearman of the mean over s, {arms[0].title}"


def _trend(scales: list[float], means: list[float]) -> float:
    return rank_correlation(np.array(scales), np.array(means))


def area_by_size_table(results: ControlResults) -> Table:
    """The response of the area to guided malignancy, for nodules that the map draws small, medium and large.

    Below it: what makes real nodules of these sizes malignant in the readers' eyes.
    """
    nodules, real = results.nodules, results.real
    size_class = _size_classes(nodules.drawn, nodules.pixel_spacing)
    real_size_class = _size_classes(real.drawn, real.pixel_spacing)
    present = np.unique(size_class)
    members = {SIZE_CLASSES[number]: size_class == number for number in present}
    real_members = {SIZE_CLASSES[number]: real_size_class == number for number in present}
    area = results.measurements["area_px"]

    def area_row(arm: Arm) -> Row:
        return {
            name: patient_bootstrap(area[arm][inside], nodules.patients[inside]) for name, inside in members.items()
        }

    rows: dict[str, Row] = {
        "nodules": _counts(members),
        REAL.label: area_row(REAL),
        UNGUIDED.label: area_row(UNGUIDED),
    }
    scales = results.scales("malignancy")
    for pole in Pole:
        arms = [guided("malignancy", pole, scale) for scale in scales]
        rows |= {arm.label: area_row(arm) for arm in arms}
        if len(scales) >= FEWEST_SCALES:
            rows[_trend_label(arms)] = {
                name: _trend(scales, [area[arm][inside].mean() for arm in arms]) for name, inside in members.items()
            }
    rows["real nodules of any map"] = _counts(real_members)
    for measure in ("area_mm2", "mean_hu", "margin_hu_per_mm"):
        values, ratings = results.real_measurements[measure], real.ratings["malignancy"]
        row: dict[str, Cell] = {}
        for name, inside in real_members.items():
            measured = inside & np.isfinite(values)
            row[name] = rank_correlation(values[measured], ratings[measured])
        rows[f"Spearman of their {MEASURE_TITLES[measure]} and malignancy"] = row
    caption = (
        f"{results.size}; {results.real_size}. Area in pixels: {AREA}. Classes by the diameter of the circle of the "
        "drawn area. The last rows: what makes real nodules malignant in the readers' eyes."
    )
    return Table("Area by the size that the map draws", caption, rows)


def _size_classes(drawn: np.ndarray, pixel_spacing: np.ndarray) -> np.ndarray:
    """The index in `SIZE_CLASSES` of each drawn nodule, (N,)."""
    diameters = [equal_area_diameter(mask, spacing) for mask, spacing in zip(drawn, pixel_spacing, strict=True)]
    return np.digitize(diameters, DIAMETERS)


def _counts(members: Mapping[str, np.ndarray]) -> Row:
    return {name: str(int(inside.sum())) for name, inside in members.items()}


def sham_table(results: ControlResults) -> Table:
    """Guided malignancy beside random gradients, and beside those of a classifier trained on shuffled labels."""
    scale = results.sham_scale
    kinds = [ArmKind.GUIDED, *SHAM_KINDS, ArmKind.SHUFFLED]
    pairs = [low_and_high("malignancy", scale, kind) for kind in kinds]
    pairs = [pair for pair in pairs if pair[0] in results.arms]
    rows: dict[str, Row] = {}
    for arm in [arm for pair in pairs for arm in pair]:
        change = results.estimate("change inside", arm)
        rows[arm.label] = {"change inside [HU]": change} | _difference_row(results, arm, UNGUIDED)
    for low, high in pairs:
        rows[f"{high.label} minus {low.title}"] = _difference_row(results, high, low)
    caption = (
        f"{results.size}, s = {scale:g}. Sham: random gradients of the norm that malignancy's has at the same "
        "latents, inside the same mask; + has the norm of malignant, - the opposite direction with that of benign; "
        "drawn anew at each step, or held. Shuffled: gradients of a classifier that was trained on permuted "
        "labels. Change inside: mean |guided - unguided| in the drawn nodule. Δ: against no guidance, or between "
        "the two directions; judge and classifier in standard deviations of the real nodules."
    )
    return Table("Sham and shuffled guidance", caption, rows)


def _difference_row(results: ControlResults, arm: Arm, base: Arm) -> dict[str, Cell]:
    row: dict[str, Cell] = {title: results.estimate(measure, arm, base) for title, measure in DENSITY_AND_SIZE.items()}
    for scorer in ("judge", "classifier"):
        row[f"Δ {scorer}"] = results.gain(f"{scorer} malignancy", arm, base)
    return row


def texture_table(results: ControlResults) -> Table:
    """Whether texture 1 becomes ground glass and texture 5 solid: the density inside the drawn nodule."""
    rows: dict[str, Row] = {}
    for scale in results.scales("texture"):
        low, high = low_and_high("texture", scale)
        is_lower = results.measurements["mean_hu"][low] < results.measurements["mean_hu"][high]
        rows[f"s = {scale:g}"] = {
            low.title: results.estimate("mean_hu", low),
            UNGUIDED.label: results.estimate("mean_hu", UNGUIDED),
            high.title: results.estimate("mean_hu", high),
            "1 minus 5": results.estimate("mean_hu", low, high),
            "share lower": float(is_lower.mean()),
        }
    caption = f"{results.size}. Share lower: of nodules that have a lower mean HU with texture 1 than with texture 5."
    return Table("Texture: mean HU inside the drawn nodule", caption, rows)


def response_tables(results: ControlResults) -> list[Table]:
    """The dose-response of every feature; after that of malignancy, the areas by size."""
    tables = [dose_table(results, feature) for feature in NODULE_FEATURES]
    return [tables[0], area_by_size_table(results), *tables[1:]]
