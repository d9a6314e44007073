"""The pictures of the report. All of them can be read at the width of a page, which is about 900 pixels."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...nodule_features import NODULE_FEATURES
from ..measures import RING_NAMES
from ..panels import panel_grid, show_hu, show_map
from ..slices import evenly_spread
from .arms import RATED_FEATURES, REAL, SHAM_KINDS, UNGUIDED, Arm, ArmKind, Pole, guided, low_and_high
from .judge_tables import judge_correlations, rating_correlations
from .response_tables import FEWEST_SCALES
from .results import ControlResults

PAGE = 9.0  # inches across a picture
DOTS_PER_INCH = 100
FONT_SIZE = 8.5  # points: 12 pixels at the width of a page
COLOURS = {Pole.LOW: "tab:blue", Pole.HIGH: "tab:red"}
TITLE_WIDTH = 12  # characters above a panel of the ladder
LADDER_STEPS = 3  # scales that the ladder shows on either side of the unguided image


def save_pictures(results: ControlResults, folder: Path, num_nodules: int) -> None:
    """Write dose.png, matrix.png, locality.png, ladder.png and controls.png.

    Args:
        results: of a run.
        folder: for the files.
        num_nodules: rows of the ladder and of the controls.
    """
    with matplotlib.rc_context({"font.size": FONT_SIZE, "axes.titlesize": "medium"}):
        pictures = {
            "dose": dose_picture(results),
            "matrix": matrix_picture(results),
            "locality": locality_picture(results),
            "ladder": ladder_picture(results, num_nodules),
            "controls": controls_picture(results, num_nodules),
        }
        for name, figure in pictures.items():
            figure.savefig(folder / f"{name}.png", dpi=DOTS_PER_INCH)


def dose_picture(results: ControlResults) -> Figure:
    """Area, density, judge and guiding classifier against s, a row for each feature, with 95% intervals."""
    figure = Figure(figsize=(PAGE, 0.9 * PAGE), layout="constrained")
    scales = sorted({scale for feature in NODULE_FEATURES for scale in results.scales(feature)})
    panels = figure.subplots(len(NODULE_FEATURES), 4, sharex=True)
    for axes, feature in zip(panels, NODULE_FEATURES, strict=True):
        judge, classifier = f"judge {feature}", f"classifier {feature}"
        columns = {
            "Δ area [mm²]": ("area_mm2", 1.0),
            "Δ mean [HU]": ("mean_hu", 1.0),
            "Δ judge [SD]": (judge, results.unit(judge)),
            "Δ classifier [SD]": (classifier, results.unit(classifier)),
        }
        for axis, (title, (measure, unit)) in zip(axes, columns.items(), strict=True):
            for pole in Pole:
                _draw_response(axis, results, feature, pole, measure, unit)
            axis.axhline(0, color="grey", linestyle=":")
            axis.set_title(title)
        axes[0].set_ylabel(feature, fontweight="bold")
        axes[0].legend(loc="best", frameon=False)
    for axis in panels[-1]:
        axis.set_xscale("log", base=2)
        axis.set_xticks(scales, [f"{scale:g}" for scale in scales])
        axis.set_xlim(min(scales) / 1.3, max(scales) * 1.3)
        axis.minorticks_off()
        axis.set_xlabel("guidance scale s")
    return figure


def _draw_response(axis: Axes, results: ControlResults, feature: str, pole: Pole, measure: str, unit: float) -> None:
    """A measure, guided minus unguided, against s; a band for its interval, or bars where there are few scales."""
    scales = results.scales(feature)
    estimates = [results.estimate(measure, guided(feature, pole, scale), UNGUIDED, unit) for scale in scales]
    means = np.array([estimate["mean"] for estimate in estimates])
    low, high = np.transpose([estimate["interval"] for estimate in estimates])
    label, colour = guided(feature, pole, 0).title, COLOURS[pole]
    if len(scales) >= FEWEST_SCALES:
        axis.plot(scales, means, "o-", color=colour, label=label, markersize=3)
        axis.fill_between(scales, low, high, color=colour, alpha=0.15)
    else:
        bars = np.stack([means - low, high - means])
        axis.errorbar(scales, means, bars, fmt="o", color=colour, label=label, capsize=3, markersize=4)


def matrix_picture(results: ControlResults) -> Figure:
    """What the judge sees of each feature when one is guided, beside the correlations in real nodules."""
    gains = np.empty((len(NODULE_FEATURES), len(NODULE_FEATURES)))
    for row, feature in enumerate(NODULE_FEATURES):
        low, high = low_and_high(feature, results.feature_scale)
        gains[row] = [results.gain(f"judge {other}", high, low)["mean"] for other in NODULE_FEATURES]
    panels = {
        f"guided at s = {results.feature_scale:g} (rows):\njudge's gain [SD]": gains,
        "real nodules: correlations\nof the ratings": rating_correlations(results),
        "real nodules: correlations\nof the judge's scores": judge_correlations(results),
    }
    figure = Figure(figsize=(PAGE, 0.42 * PAGE), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        limit = max(1.0, float(np.nanmax(np.abs(values))))
        axis.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if abs(value) > 0.6 * limit else "black"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
        axis.set_xticks(range(len(NODULE_FEATURES)), NODULE_FEATURES, rotation=30, ha="right")
        axis.set_yticks(range(len(NODULE_FEATURES)), NODULE_FEATURES)
        axis.set_title(title)
    return figure


def locality_picture(results: ControlResults) -> Figure:
    """Mean |guided - unguided| by the distance from the nodule: malignancy at all scales, and the other arms."""
    malignancy = {pole: [guided("malignancy", pole, scale) for scale in results.scales("malignancy")] for pole in Pole}
    features = [arm for name in RATED_FEATURES for arm in low_and_high(name, results.feature_scale)]
    controls = [guided("malignancy", pole, results.sham_scale) for pole in Pole]
    controls += [arm for arm in results.arms if arm.kind in (*SHAM_KINDS, ArmKind.SHUFFLED)]
    panels = {
        "guided to be benign": malignancy[Pole.LOW],
        "guided to be malignant": malignancy[Pole.HIGH],
        "guided by the other features": features,
        "sham and shuffled guidance": controls,
    }
    figure = Figure(figsize=(PAGE, 0.8 * PAGE), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    for axis, (title, arms) in zip(axes.ravel(), panels.items(), strict=True):
        is_graded = len({arm.title for arm in arms}) == 1
        for arm, colour in zip(arms, _line_colours(len(arms), is_graded), strict=True):
            means = [results.estimate(f"change {ring}", arm)["mean"] for ring in RING_NAMES]
            axis.plot(RING_NAMES, means, "o-", color=colour, label=arm.label, markersize=3)
        axis.set_yscale("log")
        axis.set_title(title)
        axis.legend(loc="lower left", frameon=False)
    for axis in axes[1]:
        axis.set_xlabel("distance from the drawn nodule [pixels]")
    for axis in axes[:, 0]:
        axis.set_ylabel("mean |guided - unguided| [HU]")
    return figure


def _line_colours(number: int, is_graded: bool) -> np.ndarray:
    """Colours of lines, (number, 4): from dark to light for rising scales, else in pairs for the two poles."""
    return colormaps["viridis"](np.linspace(0, 0.95, number)) if is_graded else colormaps["tab20"](np.arange(number))


def ladder_picture(results: ControlResults, num_nodules: int) -> Figure:
    """Map, real slice, and guidance from benign to malignant, for nodules of all sizes (thesis, Fig. 5.8)."""
    scales = results.scales("malignancy")
    shown = [scales[index] for index in evenly_spread(len(scales), LADDER_STEPS)]
    benign = [guided("malignancy", Pole.LOW, scale) for scale in reversed(shown)]
    malignant = [guided("malignancy", Pole.HIGH, scale) for scale in shown]
    return _nodule_rows(results, [REAL, *benign, UNGUIDED, *malignant], num_nodules)


def controls_picture(results: ControlResults, num_nodules: int) -> Figure:
    """Map, unguided slice, texture 1 and 5, and malignancy beside sham and shuffled guidance of the same scale."""
    arms = [UNGUIDED, *low_and_high("texture", results.feature_scale)]
    arms.append(guided("malignancy", Pole.HIGH, results.sham_scale))
    for kind in (ArmKind.SHAM, ArmKind.SHUFFLED):
        arms += [arm for arm in low_and_high("malignancy", results.sham_scale, kind) if arm in results.arms]
    return _nodule_rows(results, arms, num_nodules)


def _nodule_rows(results: ControlResults, arms: Sequence[Arm], num_nodules: int) -> Figure:
    """A row for each of some nodules of rising size: its map, and its crop in each arm in the lung window."""
    nodules = results.nodules
    by_size = np.argsort(nodules.drawn.sum(axis=(1, 2)), kind="stable")
    inner = evenly_spread(len(by_size), num_nodules + 2)[1:-1]  # neither the smallest nor the largest
    chosen = [by_size[index] for index in inner] or [by_size[0]]
    columns = 1 + len(arms)
    figure, axes = panel_grid(len(chosen), columns, width=PAGE / columns)
    for row, nodule in zip(axes, chosen, strict=True):
        show_map(row[0], nodules.semantic_maps[nodule])
        row[0].set_ylabel(f"rated {nodules.malignancy[nodule]:g}")
        for axis, arm in zip(row[1:], arms, strict=True):
            show_hu(axis, nodules.crops[arm][nodule])
    axes[0, 0].set_title("map")
    for axis, arm in zip(axes[0, 1:], arms, strict=True):
        title = textwrap.fill(arm.title, TITLE_WIDTH)
        axis.set_title(f"{title}\ns = {arm.scale:g}" if arm.feature else title)
    return figure
