"""The pictures of `training/evaluate_control.py`: dose-response, who sees what, how far guidance reaches, and the ladder of scales."""

import numpy as np
from matplotlib.figure import Figure

from ...labels import PALETTE
from ...nodule_crop import CROP
from ...nodule_features import NODULE_FEATURES
from ..measures import RING_NAMES
from .report import POLES, ControlReport

COLOURS = ("tab:blue", "tab:red")


def dose_picture(report: ControlReport) -> Figure:
    """Area, density, judge and guiding classifier against s, a row for each feature; bands are 95% intervals over patients."""
    figure = Figure(figsize=(15, 11), layout="constrained")
    for axes, feature in zip(figure.subplots(4, 4), NODULE_FEATURES, strict=True):
        scales = sorted(report.scales_of(feature))
        shown = {"Δ area [mm²]": ("area_mm2", 1.0), "Δ mean HU": ("mean_hu", 1.0)}
        shown |= {
            f"Δ {by} [deviations]": (f"{by} {feature}", report.unit(f"{by} {feature}"))
            for by in ("judge", "classifier")
        }
        for axis, (label, (name, unit)) in zip(axes, shown.items(), strict=True):
            for pole, colour in zip(POLES[feature], COLOURS, strict=True):
                of_s = [report.estimate(name, f"{pole} s={s:g}", "none", unit) for s in scales]
                low, high = np.transpose([estimate["interval"] for estimate in of_s])
                means = np.array([estimate["mean"] for estimate in of_s])
                if len(scales) > 2:
                    axis.plot(scales, means, "o-", color=colour, label=pole, markersize=4)
                    axis.fill_between(scales, low, high, color=colour, alpha=0.15)
                else:
                    axis.errorbar(
                        scales, means, [means - low, high - means], fmt="o", color=colour, label=pole, capsize=3
                    )
            axis.axhline(0, color="grey", linestyle=":")
            axis.set_xscale("log", base=2)
            axis.set_xticks(report.scales, [f"{s:g}" for s in report.scales])
            axis.set_xlim(min(report.scales) / 1.3, max(report.scales) * 1.3)
            axis.minorticks_off()
            axis.set_title(f"{feature}: {label}", fontsize=10)
        axes[0].legend(fontsize=8, loc="upper left")
    for axis in figure.axes[-4:]:
        axis.set_xlabel("guidance scale s")
    return figure


def matrix_picture(report: ControlReport) -> Figure:
    """What the judge sees of every feature when one is guided, beside the correlations of real ratings and of the judge's scores."""
    s = report.feature_scales[0]
    seen = [
        [report.gain(f"judge {f}", *reversed(report.poles(guided, s)))["mean"] for f in NODULE_FEATURES]
        for guided in NODULE_FEATURES
    ]
    correlations = report.rating_correlations().rows
    panels = {f"guided (rows), s = {s:g}: what the judge sees,\nmost minus least, in deviations": np.array(seen)}
    for by, title in (
        ("rating", "correlations of the real ratings"),
        ("judge", "correlations of the judge's scores\nof real nodules"),
    ):
        panels[title] = np.array([[correlations[a][f"{by}: {b}"] for b in NODULE_FEATURES] for a in NODULE_FEATURES])
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    for axis, (title, values) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        limit = max(1.0, float(np.nanmax(np.abs(values))))
        picture = axis.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
        for (row, column), value in np.ndenumerate(values):
            axis.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                color="white" if abs(value) > 0.6 * limit else "black",
            )
        axis.set_xticks(range(4), NODULE_FEATURES, rotation=20)
        axis.set_yticks(range(4), NODULE_FEATURES)
        axis.set_title(title, fontsize=10)
        figure.colorbar(picture, ax=axis, shrink=0.8)
    return figure


def locality_picture(report: ControlReport) -> Figure:
    """Mean |guided - unguided| by the distance from the nodule: malignancy at all scales, and the other arms."""
    figure = Figure(figsize=(14, 5), layout="constrained")
    graded = [[f"{kind} s={s:g}" for s in report.scales] for kind in POLES["malignancy"]]
    own = {arm for some in graded for arm in some} | {"none", "real"}
    others = [arm for arm in report.figures["area_px"] if arm not in own and not arm.startswith(("true", "opposite"))]
    for axis, title, arms in zip(
        figure.subplots(1, 3, sharey=True), ("benign", "malignant", "other arms"), (*graded, others), strict=True
    ):
        for arm, colour in zip(arms, _colours(len(arms), graded=title != "other arms"), strict=True):
            axis.plot(
                [report.estimate(f"change {ring}", arm)["mean"] for ring in RING_NAMES],
                "o-",
                color=colour,
                label=arm,
                markersize=3,
            )
        axis.set_xticks(range(len(RING_NAMES)), RING_NAMES, rotation=30)
        axis.set_yscale("log")
        axis.set_xlabel("distance from the drawn nodule [pixels]")
        axis.set_title(title, fontsize=10)
        axis.legend(fontsize=6, loc="lower left")
    figure.axes[0].set_ylabel("mean |guided - unguided| [HU]")
    return figure


def _colours(number, graded):
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(0, 0.95, number)) if graded else colormaps["tab20"](np.arange(number) % 20)


def ladder_picture(report: ControlReport, number: int) -> Figure:
    """Map, real slice, and a row of arms from benign to malignant for some nodules of every size (thesis, Fig. 5.8); lung window."""
    order = (
        [f"benign s={s:g}" for s in sorted(report.scales, reverse=True)]
        + ["none"]
        + [f"malignant s={s:g}" for s in sorted(report.scales)]
    )
    order += report.poles("texture", report.feature_scales[0])
    order += [arm for arm in report.figures["area_px"] if arm.startswith(("sham", "shuffled"))]
    by_size = np.argsort([nodule.drawn.sum() for nodule in report.nodules], kind="stable")
    chosen = [
        report.nodules[by_size[i]] for i in np.unique(np.linspace(0, len(by_size) - 1, number + 2).astype(int))[1:-1]
    ] or report.nodules[:1]
    figure = Figure(figsize=(1.2 * (2 + len(order)), 1.35 * len(chosen) + 0.3), layout="constrained")
    axes = np.atleast_2d(figure.subplots(len(chosen), 2 + len(order)))
    for row, nodule in zip(axes, chosen, strict=True):
        y0, x0, y1, x1 = nodule.box
        row[0].imshow(PALETTE[nodule.semantic_map[y0:y1, x0:x1]])
        row[0].text(1, CROP - 3, f"rated {nodule.about['malignancy']:g}", fontsize=6, color="white")
        for axis, arm in zip(row[1:], ["real", *order], strict=True):
            if arm in nodule.arms:
                axis.imshow(nodule.crop(nodule.arms[arm]), cmap="gray", vmin=-1350, vmax=150)
        for axis in row:
            axis.axis("off")
    for axis, title in zip(axes[0], ["map", "real", *order], strict=True):
        axis.set_title(title.replace(" s=", "\ns = "), fontsize=7)
    return figure
