"""What the arms of `training/evaluate_control.py` say: tables with intervals over patients, each with its number of nodules and patients."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation
from scipy.stats import spearmanr
from skimage.morphology import disk

from ...hounsfield import HU_MAX, HU_MIN
from ...nodule_features import NODULE_FEATURES, is_malignant
from ..agreement import area_under_curve, rank_correlation, rating_agreement, readers_agreement
from ..bootstrap import patient_bootstrap, patient_bootstrap_of
from ..measures import MEASURES, RING_NAMES
from .arms import KeptNodule, RealNodules

RATED = ("texture", "spiculation", "lobulation")
POLES = {"malignancy": ("benign", "malignant")} | {feature: (f"{feature} 1", f"{feature} 5") for feature in RATED}
BY_NAME = {"judge": "judge", "decoded judge": "judge, through the autoencoder", "classifier": "guiding classifier"}
DIAMETERS = (6.0, 8.0)  # mm, between the size classes of the Fleischner guidelines (MacMahon et al. 2017)
BINS = np.arange(HU_MIN, HU_MAX + 9, 8)  # HU, edges


@dataclass
class Table:
    """A table: {row: {column: number, text, or an estimate {"mean", "interval"}}}."""

    title: str
    caption: str
    rows: dict[str, dict]

    def markdown(self) -> str:
        """The table with its caption, as a card or a README takes it."""
        columns = list(dict.fromkeys(column for row in self.rows.values() for column in row))
        lines = [
            f"## {self.title}",
            "",
            self.caption,
            "",
            "| | " + " | ".join(columns) + " |",
            "|---" * (1 + len(columns)) + "|",
        ]
        lines += [
            f"| {name} | " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |"
            for name, row in self.rows.items()
        ]
        return "\n".join([*lines, ""])


def _number(value):
    return (
        "–"
        if math.isnan(value)
        else f"{value:.0f}"
        if abs(value) >= 100
        else f"{value:.1f}"
        if abs(value) >= 10
        else f"{value:.2f}"
    )


def _cell(value):
    if isinstance(value, dict):
        return f"{_number(value['mean'])} [{', '.join(_number(bound) for bound in value['interval'])}]"
    return value if isinstance(value, str) else _number(value)


def _diameter_mm(drawn, spacing):
    """Of the circle of a mask's area."""
    return 2 * math.sqrt(drawn.sum() / math.pi) * spacing


class ControlReport:
    """Tables of a run.

    Args:
        nodules: what was kept, in the order of the figures.
        figures: {figure: {arm: (N,)}} from `arm_figures`.
        real: the real nodules that the judge was fitted on.
        of_real: {figure: (M,)} from `real_figures`.
        scales: s of the arms of malignancy.
        feature_scales: s of the arms of the other features.
        sham_scale: s of the sham and shuffled arms.
    """

    def __init__(self, nodules, figures, real, of_real, scales, feature_scales, sham_scale):
        self.nodules: list[KeptNodule] = nodules
        self.real: RealNodules = real
        self.figures, self.of_real = dict(figures), of_real
        self.scales, self.feature_scales, self.sham_scale = scales, feature_scales, sham_scale
        self.patients = np.array([nodule.about["patient_id"] for nodule in nodules])
        self.malignant = is_malignant([nodule.about["malignancy"] for nodule in nodules])
        self.size = f"n = {len(nodules)} nodules of {len(np.unique(self.patients))} patients"
        self.real_size = f"n = {len(real.patients)} real nodules of {len(np.unique(real.patients))} patients"
        for of_arm in self.figures.values():  # by the nodule's own rating
            for s in scales:
                of_kind = [of_arm[f"{kind} s={s:g}"] for kind in POLES["malignancy"]]
                of_arm[f"true s={s:g}"] = np.where(self.malignant, of_kind[1], of_kind[0])
                of_arm[f"opposite s={s:g}"] = np.where(self.malignant, of_kind[0], of_kind[1])

    def unit(self, figure):
        """Standard deviation of a figure over the real nodules: what gains of judges are measured in; NaN where these are all alike."""
        return float(np.nanstd(self.of_real[figure])) or math.nan

    def has(self, arm):
        """Whether any nodule has the arm."""
        return arm in self.figures["area_px"]

    def estimate(self, figure, arm, base=None, unit=1.0):
        """Mean of a figure of an arm, or of its difference to that of another arm, over `unit`, with its interval."""
        values = (self.figures[figure][arm] - (self.figures[figure][base] if base else 0)) / unit
        there = np.isfinite(values)
        if not there.any():
            return {"mean": math.nan, "interval": [math.nan, math.nan]}
        return patient_bootstrap(values[there], self.patients[there])

    def gain(self, figure, arm, base="none"):
        """`estimate` of a difference in standard deviations of the real nodules."""
        return self.estimate(figure, arm, base, self.unit(figure))

    def poles(self, feature, s):
        """The arms that ask for the least and the most of a feature."""
        return [f"{pole} s={s:g}" for pole in POLES[feature]]

    def scales_of(self, feature):
        """The s that a feature was guided at."""
        return (
            self.scales
            if feature == "malignancy"
            else sorted(s for s in self.feature_scales if self.has(self.poles(feature, s)[0]))
        )

    def tables(self) -> list[Table]:
        """Every table of the report."""
        doses = [self.dose(feature) for feature in NODULE_FEATURES]
        doses.insert(1, self.area_by_size())
        tables = [
            self.ceiling(),
            self.own_rating(),
            *doses,
            self.transfer(),
            self.matrix(),
            self.rating_correlations(),
            self.controls(),
        ]
        return [*tables, self.obedience(), *self.plausibility(), self.locality(), self.texture()]

    def ceiling(self) -> Table:
        """How well judge, guiding classifier and readers tell the ratings of real nodules."""
        rows = {}
        for feature in NODULE_FEATURES:
            objective = "classification" if feature == "malignancy" else "regression"
            shown = (
                {"auc_ge3": "AUC ≥ 3", "auc_ge4": "AUC ≥ 4"} if feature == "malignancy" else {"spearman": "Spearman"}
            )
            of_readers = [entry.get(f"{feature}_ratings") or [] for entry in self.real.entries]
            readers = readers_agreement(of_readers, feature) if any(len(ratings) > 1 for ratings in of_readers) else {}
            ratings = self.real.ratings[feature]
            for name, label in shown.items():
                # AUC of 4 and 5 leaves out the nodules rated 3
                told = (ratings < 2.5) | (ratings >= 3.5) if name == "auc_ge4" else np.ones(len(ratings), dtype=bool)
                figure, truth = (
                    (area_under_curve, is_malignant(ratings))
                    if feature == "malignancy"
                    else (rank_correlation, ratings)
                )
                row = {}
                for by in ("judge", "decoded judge", "classifier"):
                    scores = self.of_real[f"{by} {feature}"]
                    row[BY_NAME[by]] = patient_bootstrap_of(
                        figure, self.real.patients[told], truth[told], scores[told]
                    )
                    row[f"calibration error, {BY_NAME[by]}"] = rating_agreement(scores, ratings, objective)["ece"]
                row["one reader by the others"] = readers.get(name, "not in the data")
                row["deviation between readers"] = readers.get("deviation", "not in the data")
                rows[f"{feature}, {label}"] = row
        caption = (
            f"{self.real_size}, each judged by models fitted without its patient. Through the autoencoder: the same crops encoded "
            "and decoded, as near as generated ones can come. Calibration of malignancy in probability, of the others in rating."
        )
        return Table("Ceiling of the judges on real nodules", caption, rows)

    def own_rating(self) -> Table:
        """AUC of either judge for the nodule's own rating, when it is guided to it and away from it."""
        names = ["real", "none", *(f"{way} s={s:g}" for way in ("true", "opposite") for s in self.scales)]
        rows = {}
        for arm in names:
            rows[arm] = {}
            for by in ("judge", "classifier"):
                scores = self.figures[f"{by} malignancy"][arm]
                there = np.isfinite(scores)
                truth_and_scores = self.malignant[there], scores[there]
                rows[arm][f"AUC, {by}"] = patient_bootstrap_of(
                    area_under_curve, self.patients[there], *truth_and_scores
                )
        caption = f"{self.size}. AUC of malignancy ≥ 3 as the drawn nodule was rated: the map alone, then guided to that rating or to its opposite."
        return Table("Does the image tell the rating it was drawn from?", caption, rows)

    def dose(self, feature) -> Table:
        """Response to s."""
        columns = {"judge": f"judge {feature}", "guiding classifier": f"classifier {feature}"}
        rows = {"none": {"area [px]": self.estimate("area_px", "none")}}
        scales = self.scales_of(feature)
        for pole in POLES[feature]:
            for s in scales:
                arm = f"{pole} s={s:g}"
                row = {"area [px]": self.estimate("area_px", arm)}
                row |= {
                    f"Δ {figure}": self.estimate(figure, arm, "none")
                    for figure in ("area_mm2", "mean_hu", "spread_hu")
                }
                row |= {
                    f"Δ {figure}": self.gain(figure, arm) for figure in ("circularity", "solidity", "margin_hu_per_mm")
                }
                rows[arm] = row | {f"Δ {name}": self.gain(figure, arm) for name, figure in columns.items()}
            if len(scales) > 2:
                shown = {
                    "area [px]": "area_px",
                    "Δ area_mm2": "area_mm2",
                    "Δ mean_hu": "mean_hu",
                    "Δ judge": f"judge {feature}",
                }
                shown["Δ guiding classifier"] = f"classifier {feature}"
                means = {
                    name: [np.nanmean(self.figures[figure][f"{pole} s={s:g}"]) for s in scales]
                    for name, figure in shown.items()
                }
                rows[f"Spearman of the mean over s, {pole}"] = {
                    name: float(spearmanr(scales, of_s)[0]) for name, of_s in means.items()
                }
        caption = (
            f"{self.size}. Area: HU > -400 within 6 pixels of the drawn nodule. Δ: guided minus unguided, same noise; shape, margin, judge and "
            "guiding classifier in standard deviations of the real nodules; shape and margin of the nodules that both arms show."
        )
        return Table(f"Dose-response: {feature}", caption, rows)

    def area_by_size(self) -> Table:
        """Area over s of nodules that the map draws small and large."""
        drawn = [_diameter_mm(nodule.drawn, nodule.about["pixel_spacing_mm"]) for nodule in self.nodules]
        names = [f"< {DIAMETERS[0]:g} mm", f"{DIAMETERS[0]:g} to {DIAMETERS[1]:g} mm", f"≥ {DIAMETERS[1]:g} mm"]
        columns = {
            name: there
            for number, name in enumerate(names)
            if (there := np.digitize(drawn, DIAMETERS) == number).any()
        }
        area = self.figures["area_px"]

        def row(arm):
            return {name: patient_bootstrap(area[arm][there], self.patients[there]) for name, there in columns.items()}

        rows = {
            "nodules": {name: str(int(there.sum())) for name, there in columns.items()},
            "real": row("real"),
            "none": row("none"),
        }
        for pole in POLES["malignancy"]:
            arms = [f"{pole} s={s:g}" for s in self.scales]
            rows |= {arm: row(arm) for arm in arms}
            if len(arms) > 2:
                means = {name: [area[arm][there].mean() for arm in arms] for name, there in columns.items()}
                rows[f"Spearman of the mean over s, {pole}"] = {
                    name: float(spearmanr(self.scales, of_s)[0]) for name, of_s in means.items()
                }
        of_size = np.digitize(list(map(_diameter_mm, self.real.drawn, self.real.spacing)), DIAMETERS)
        real = {name: of_size == number for number, name in enumerate(names) if name in columns}
        rows["real nodules of any map"] = {name: str(int(there.sum())) for name, there in real.items()}
        for figure, shown in (("area_mm2", "area"), ("mean_hu", "mean HU"), ("margin_hu_per_mm", "margin")):
            values, ratings = self.of_real[figure], self.real.ratings["malignancy"]
            chosen = {name: there & np.isfinite(values) for name, there in real.items()}
            rows[f"Spearman of their {shown} and malignancy"] = {
                name: rank_correlation(values[some], ratings[some]) for name, some in chosen.items()
            }
        caption = (
            f"{self.size}; {self.real_size}. Area in pixels: HU > -400 within 6 pixels of the drawn nodule; by the diameter of the circle of the "
            "drawn area. The last rows: what makes real nodules malignant in the readers' eyes."
        )
        return Table("Area by the size that the map draws", caption, rows)

    def transfer(self) -> Table:
        """The judge's gain over the guiding classifier's."""
        rows = {}
        for feature in NODULE_FEATURES:
            for s in self.scales_of(feature):
                low, high = self.poles(feature, s)
                gains = {
                    by: self.figures[f"{by} {feature}"][high] - self.figures[f"{by} {feature}"][low]
                    for by in ("judge", "classifier")
                }
                there = np.isfinite(gains["judge"])
                gains = {by: values[there] / self.unit(f"{by} {feature}") for by, values in gains.items()}
                row = {f"gain, {by}": patient_bootstrap(values, self.patients[there]) for by, values in gains.items()}
                row["transfer ratio"] = patient_bootstrap(
                    gains["judge"], self.patients[there], denominator=gains["classifier"]
                )
                rows[f"{feature}, s = {s:g}"] = row
        caption = f"{self.size}. Gain: asked for the most minus asked for the least of the feature, in standard deviations of the real nodules. A ratio of "
        return Table(
            "Transfer",
            caption + "1: the judge sees all that the guiding classifier sees; 0: the gradient fooled its classifier.",
            rows,
        )

    def matrix(self) -> Table:
        """What the judge and the measures see when one feature is guided."""
        shown = [*(f"judge {feature}" for feature in NODULE_FEATURES), *MEASURES]
        s = self.feature_scales[0]
        rows = {
            f"guide {f}": {figure: self.gain(figure, *reversed(self.poles(f, s))) for figure in shown}
            for f in NODULE_FEATURES
        }
        caption = f"{self.size}, s = {s:g}. Asked for the most minus asked for the least, in standard deviations of the real nodules."
        return Table("Guide one feature, see the others", caption, rows)

    def rating_correlations(self) -> Table:
        """Correlations of the real ratings, and of the judge's scores of real nodules."""
        columns = {f"rating: {feature}": values for feature, values in self.real.ratings.items()}
        columns |= {f"judge: {feature}": self.of_real[f"judge {feature}"] for feature in NODULE_FEATURES}
        rows = {}
        for feature in NODULE_FEATURES:
            pairs = {name: (columns[f"{name.split(':')[0]}: {feature}"], values) for name, values in columns.items()}
            rows[feature] = {name: float(spearmanr(*pair)[0]) for name, pair in pairs.items()}
        return Table(
            "Correlations (Spearman) of the real ratings, and of the judge's scores", f"{self.real_size}.", rows
        )

    def controls(self) -> Table:
        """Guidance beside what only looks like it."""
        s = self.sham_scale
        pairs = [(f"benign s={s:g}", f"malignant s={s:g}")]
        pairs += [(f"{kind} - s={s:g}", f"{kind} + s={s:g}") for kind in ("sham", "held sham")]
        pairs += [(f"shuffled benign s={s:g}", f"shuffled malignant s={s:g}")]
        compared = [(arm, "none") for pair in pairs for arm in pair] + [(high, low) for low, high in pairs]
        rows = {}
        for arm, base in compared:
            if self.has(arm):
                row = {"|change| inside [HU]": self.estimate("change inside", arm)} if base == "none" else {}
                row |= {
                    f"Δ {figure}": self.estimate(figure, arm, base) for figure in ("area_mm2", "mean_hu", "spread_hu")
                }
                row |= {f"Δ {by}": self.gain(f"{by} malignancy", arm, base) for by in ("judge", "classifier")}
                there = int(np.isfinite(self.figures["area_px"][arm]).sum())
                rows[arm if base == "none" else f"{arm} minus {base.removesuffix(f' s={s:g}')}"] = row | {
                    "nodules": str(there)
                }
        caption = (
            f"{self.size}, s = {s:g}. Sham: random gradients of the norm that malignancy's has at the same latents, inside the same mask; + has "
            "that of malignant, - the opposite direction with that of benign; drawn anew at each step, or held. Shuffled: gradients of a "
            "classifier trained on permuted labels. Δ against no guidance, or between the two directions; judges in standard deviations of the "
            "real nodules."
        )
        return Table("Sham and shuffled guidance", caption, rows)

    def obedience(self) -> Table:
        """Whether the drawn nodule is there."""
        arms = ["real", "none"] + [arm for f in NODULE_FEATURES for s in self.scales_of(f) for arm in self.poles(f, s)]
        arms += [arm for arm in self.figures["area_px"] if "sham" in arm or "shuffled" in arm]
        shown = {"Dice": "nodule_dice", "diameter error [mm]": "diameter_error_mm", "missed": "missed_nodules"}
        rows = {arm: {name: self.estimate(figure, arm) for name, figure in shown.items()} for arm in arms}
        caption = (
            f"{self.size}. Tissue (HU > -500) within 6 pixels against the drawn nodule; missed: Dice below 0.1. Guidance to benign or malignant "
            "is meant to change the size."
        )
        return Table("Obedience to the drawn nodule", caption, rows)

    def plausibility(self) -> list[Table]:
        """HU of nodule, rim and surroundings against real nodules of the class asked for."""
        tables = []
        of_real = is_malignant(self.real.ratings["malignancy"])
        for kind, own in (("benign", ~self.malignant), ("malignant", self.malignant)):
            wanted = of_real if kind == "malignant" else ~of_real
            reference = {
                region: counts[wanted].sum(axis=0)
                for region, counts in hu_counts(self.real.hu, self.real.drawn).items()
            }
            compared = [("real, same place", "real", own), ("none", "none", own)]
            compared += [(f"true s={s:g}", f"{kind} s={s:g}", own) for s in self.scales]
            compared += [(f"opposite s={s:g}", f"{kind} s={s:g}", ~own) for s in self.scales]
            rows = {}
            for name, arm, chosen in compared:
                some = [
                    nodule for nodule, there in zip(self.nodules, chosen, strict=True) if there and arm in nodule.arms
                ]
                if not some:
                    continue
                patients = np.array([nodule.about["patient_id"] for nodule in some])
                counts = hu_counts(
                    np.stack([n.crop(n.arms[arm]) for n in some]), np.stack([n.crop(n.drawn) for n in some])
                )
                rows[name] = {}
                for region, of_nodule in counts.items():
                    distance = lambda counts, other=reference[region]: hu_wasserstein(counts.sum(axis=0), other)  # noqa: E731
                    rows[name][f"W1 {region} [HU]"] = patient_bootstrap_of(distance, patients, of_nodule)
                    strange = of_nodule @ outside_three_deviations(reference[region])
                    rows[name][f"beyond 3σ, {region}"] = patient_bootstrap(
                        strange, patients, denominator=of_nodule.sum(axis=1)
                    )
            caption = (
                f"{int(own.sum())} nodules rated {kind} and {int((~own).sum())} of the opposite class, against {int(wanted.sum())} real nodules "
                f"rated {kind} (of the same patients). Wasserstein-1 of pooled HU in the drawn nodule, its 4-pixel rim, and the rest of 64x64; "
                "share of pixels beyond mean ± 3 deviations of the real ones."
            )
            tables.append(Table(f"HU of nodules guided to be {kind}", caption, rows))
        return tables

    def locality(self) -> Table:
        """How far guidance reaches."""
        arms = [arm for f in NODULE_FEATURES for s in self.scales_of(f) for arm in self.poles(f, s)]
        arms += [arm for arm in self.figures["area_px"] if "sham" in arm or "shuffled" in arm]
        rows = {}
        for arm in arms:
            row = {
                f"{ring} px" if ring != "inside" else ring: self.estimate(f"change {ring}", arm) for ring in RING_NAMES
            }
            energies = [self.figures[name][arm] for name in ("seam", "inside seam")]
            there = np.isfinite(energies[0])
            root = lambda across, inside: math.sqrt(across.mean() / inside.mean()) if inside.any() else math.nan  # noqa: E731
            row["step across the crop's edge / inside"] = patient_bootstrap_of(
                root, self.patients[there], *(e[there] for e in energies)
            )
            rows[arm] = row
        caption = (
            f"{self.size}. Mean |guided - unguided| in HU by the distance from the drawn nodule; root mean square step of that change across the "
            "edge of the classifiers' 64x64 crop over that of the three lines inside: 1 is no seam."
        )
        return Table("Locality", caption, rows)

    def texture(self) -> Table:
        """Ground glass against solid."""
        rows = {}
        for s in self.scales_of("texture"):
            low, high = self.poles("texture", s)
            row = {
                name: self.estimate("mean_hu", arm)
                for name, arm in (("texture 1", low), ("none", "none"), ("texture 5", high))
            }
            row["1 minus 5"] = self.estimate("mean_hu", low, high)
            lower = self.figures["mean_hu"][low] < self.figures["mean_hu"][high]
            rows[f"s = {s:g}"] = row | {"share lower": float(lower[np.isfinite(self.figures["mean_hu"][low])].mean())}
        return Table("Texture: mean HU inside the drawn nodule", f"{self.size}.", rows)


def hu_counts(hu: np.ndarray, drawn: np.ndarray) -> dict[str, np.ndarray]:
    """{"nodule", "rim", "outside": (N, bins)}: histograms of crops (N, H, W) in the drawn nodule, within 4 pixels of it, and beyond."""
    near = np.stack([binary_dilation(mask, disk(4)) for mask in drawn])
    regions = {"nodule": drawn, "rim": near & ~drawn, "outside": ~near}
    return {
        name: np.stack([np.histogram(image[m], BINS)[0] for image, m in zip(hu, masks, strict=True)])
        for name, masks in regions.items()
    }


def hu_wasserstein(counts: np.ndarray, other: np.ndarray) -> float:
    """Wasserstein-1 distance in HU of two histograms over `BINS`: the area between their distribution functions."""
    if not counts.sum() or not other.sum():
        return math.nan
    return float(np.abs(np.cumsum(counts) / counts.sum() - np.cumsum(other) / other.sum()).sum() * np.diff(BINS)[0])


def outside_three_deviations(reference: np.ndarray) -> np.ndarray:
    """Which bins lie beyond mean ± 3 standard deviations of a histogram, (bins,)."""
    middle = (BINS[1:] + BINS[:-1]) / 2
    mean = np.average(middle, weights=reference)
    return np.abs(middle - mean) > 3 * math.sqrt(np.average((middle - mean) ** 2, weights=reference))
