"""Train on synthetic nodules, test on real ones: what are samples worth to a classifier of malignancy?

    python training/evaluate_usefulness.py --dataset_name lung-ct-small-data --output_dir usefulness

A small network judges clean crops of 64x64 pixels: malignancy rated >= 3 or <= 2. It is trained from random weights on
10, 25, 50 and 100% of the real training nodules, alone or with help: classic augmentation, oversampling of the
minority, or synthetic nodules from maps of the same patients, with and without guidance. It is also trained on
synthetic nodules alone. Each training has the same number of steps and is repeated with several seeds. The test is on
the real nodules of `--split`.

A synthetic nodule is sampled from the map of a real training nodule. It has that nodule's rating as its label and is
guided by its true ratings. The generator has seen all training nodules. So the question is what it can stand in for,
not whether it finds information of its own.

Images and scores are kept, so an interrupted run continues where it stopped. Writes `usefulness.json`,
`usefulness.md`, `usefulness.png` and `nodules.png`. Intervals are 95%, over patients.
"""

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from datasets import Dataset
from diffusers import DiffusionPipeline
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn
from tqdm.auto import tqdm

from lsdm_diffusers import small_checkpoint
from lsdm_diffusers.evaluation.bootstrap import Estimate, auc_bootstrap
from lsdm_diffusers.evaluation.images import (
    check_run,
    data_identity,
    guidable_features,
    image_folder,
    open_pipeline,
)
from lsdm_diffusers.evaluation.panels import panel_grid, show_hu, show_map
from lsdm_diffusers.evaluation.slices import evenly_spread, pixels_from_hu
from lsdm_diffusers.evaluation.tables import format_estimate, markdown_table, write_json
from lsdm_diffusers.evaluation.windows import NoduleWindow, nodule_windows, sample_windows
from lsdm_diffusers.hounsfield import HU_RANGE, scaled_hu
from lsdm_diffusers.io.atomic_write import part_file, write_atomically
from lsdm_diffusers.models.nodule_classifier import STEP_WIDTH
from lsdm_diffusers.nodule_crop import CROP
from lsdm_diffusers.nodule_features import (
    CLEARLY_MALIGNANT_RATING,
    INDETERMINATE_RATING,
    NODULE_FEATURES,
    is_malignant,
    whole_rating,
)
from lsdm_diffusers.training.data import add_data_arguments, open_splits

UNGUIDED, GUIDED = "unguided", "guided"


class Help(NamedTuple):
    """What a training gets besides its real nodules."""

    augments: bool = False
    oversamples: bool = False
    synthetic: str | None = None  # UNGUIDED or GUIDED


REAL_ALONE, AUGMENTATION = "real alone", "augmentation"
HELPED_ARMS = {
    REAL_ALONE: Help(),
    AUGMENTATION: Help(augments=True),
    "oversampling": Help(oversamples=True),
    "unguided synthetic": Help(synthetic=UNGUIDED),
    "guided synthetic": Help(synthetic=GUIDED),
    "augmentation + guided synthetic": Help(augments=True, synthetic=GUIDED),
}
SYNTHETIC_ARMS = {  # without any real nodule
    "unguided synthetic alone": Help(synthetic=UNGUIDED),
    "guided synthetic alone": Help(synthetic=GUIDED),
}
DENSITY_STEPS_HU = (-700.0, -400.0, -100.0, 100.0, 300.0)
MAX_SHIFT_PIXELS = 4
CONTRAST_DEVIATION = 0.05
BRIGHTNESS_DEVIATION_HU = 30
DEPICTED_NODULES = 10  # columns of nodules.png


class Question(NamedTuple):
    """What the classifiers are tested on: ratings of at least `malignant_from` against benign ones."""

    title: str
    malignant_from: int
    key: str  # in usefulness.json


QUESTIONS = (
    Question(">= 3 against <= 2", INDETERMINATE_RATING, "auc"),
    Question(">= 4 against <= 2", CLEARLY_MALIGNANT_RATING, "auc_clear"),
)


class Run(NamedTuple):
    """The trainings of one arm with one share of the real nodules; 0 for none."""

    arm: str
    fraction: float


@dataclass
class Answer:
    """The AUC of a run, and its difference from other arms with the same share of real nodules.

    Args:
        auc: mean over seeds, with its interval over patients.
        deviation: standard deviation over seeds.
        minus: {other arm: difference of the AUC}.
    """

    auc: Estimate
    deviation: float
    minus: dict[str, Estimate]


Answers = dict[Run, dict[str, Answer]]  # {run: {key of the question: answer}}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pretrained_model_name_or_path", help="folder or Hub id of a pipeline; default: the shipped one"
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--num_synthetic",
        type=int,
        default=600,
        help="number of training maps, evenly spread over the split, that synthetic nodules are sampled from",
    )
    sampling.add_argument(
        "--features",
        nargs="+",
        choices=NODULE_FEATURES,
        default=["malignancy"],
        help="features whose true ratings guide the guided synthetic nodules",
    )
    sampling.add_argument("--guidance_scale", type=float, default=1.0, help="guidance scale s of these")
    sampling.add_argument("--num_inference_steps", type=int, default=15, help="number of denoising steps")
    sampling.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        default="no",
        help="precision of sampling; bf16 needs hardware that supports it",
    )
    sampling.add_argument("--sample_batch_size", type=int, default=16, help="number of nodules sampled together")
    data = add_data_arguments(parser)
    data.add_argument("--split", default="validation", help="split whose real nodules the classifiers are tested on")
    data.add_argument(
        "--fractions",
        type=float,
        nargs="+",
        default=[0.1, 0.25, 0.5, 1.0],
        help="shares of the real training nodules, above 0 and up to 1, taken by whole patients",
    )
    classifier = parser.add_argument_group("classifier")
    classifier.add_argument("--max_train_steps", type=int, default=600, help="number of steps of each training")
    classifier.add_argument("--train_batch_size", type=int, default=32, help="number of crops a step")
    classifier.add_argument("--learning_rate", type=float, default=1e-3, help="peak of the one-cycle schedule")
    classifier.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of subsets, initial weights and batches"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the synthetic nodules' noise, and of the rows that --max_train_samples draws",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of images, scores and results")
    args = parser.parse_args()
    if not all(0 < fraction <= 1 for fraction in args.fractions):
        raise SystemExit(f"--fractions is {args.fractions}, but numbers above 0 and up to 1 are needed.")
    for flag in ("num_synthetic", "max_train_steps", "train_batch_size", "num_inference_steps", "sample_batch_size"):
        if getattr(args, flag) < 1:
            raise SystemExit(f"--{flag} is {getattr(args, flag)}, but at least 1 is needed.")
    if args.streaming:
        raise SystemExit("--streaming: all training nodules are held in memory, which a stream does not allow.")
    if args.split == "train":
        raise SystemExit("--split train: the classifiers are tested on other nodules than they are trained on.")
    return args


class DensitySteps(nn.Module):
    """Adds channels with smooth steps at some HU, since batch norms forget how dense a thing is."""

    steps_at: torch.Tensor

    def __init__(self, thresholds_hu: Sequence[float] = DENSITY_STEPS_HU) -> None:
        super().__init__()
        self.register_buffer("steps_at", scaled_hu(torch.tensor(thresholds_hu))[None, :, None, None])

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return torch.cat([crops, torch.tanh((crops - self.steps_at) / STEP_WIDTH)], dim=1)


def crop_network() -> nn.Sequential:
    """Density steps, four strided convolutions with batch norms, pooling and a linear layer.

    Crops (B, 1, 64, 64) in [-1, 1] to logits (B, 1).
    """
    layers: list[nn.Module] = [DensitySteps()]
    channels = 1 + len(DENSITY_STEPS_HU)
    for width, kernel in ((16, 5), (32, 3), (64, 3), (128, 3)):
        layers += [
            nn.Conv2d(channels, width, kernel, stride=2, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, 1))


def augment(crops: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A new view of each crop: flips, quarter turns, shifts, and changes of brightness and contrast."""
    turns = torch.randint(4, (len(crops),), generator=generator).tolist()
    crops = torch.stack([crop.rot90(number, (1, 2)) for crop, number in zip(crops, turns, strict=True)])
    flipped = torch.rand(len(crops), generator=generator) < 0.5
    crops = torch.where(flipped[:, None, None, None], crops.flip(3), crops)
    padded = F.pad(crops, (MAX_SHIFT_PIXELS,) * 4, mode="replicate")
    corners = torch.randint(2 * MAX_SHIFT_PIXELS + 1, (len(crops), 2), generator=generator).tolist()
    crops = torch.stack([crop[:, y : y + CROP, x : x + CROP] for crop, (y, x) in zip(padded, corners, strict=True)])
    contrast, brightness = torch.randn(2, len(crops), 1, 1, 1, generator=generator)
    return crops * (1 + CONTRAST_DEVIATION * contrast) + brightness * (2 * BRIGHTNESS_DEVIATION_HU / HU_RANGE)


def train_and_score(
    args: argparse.Namespace,
    crops: torch.Tensor,
    labels: torch.Tensor,
    test_crops: torch.Tensor,
    given: Help,
    seed: int,
    device: torch.device,
) -> np.ndarray:
    """Logits (M,) of the test crops by a network trained on crops (N, 1, 64, 64) and their labels 0 or 1, (N,)."""
    torch.manual_seed(seed)
    network = crop_network().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=args.max_train_steps)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.ones(len(crops))
    if given.oversamples:
        share = labels.mean()
        weights = torch.where(labels > 0, 1 / share.clamp(min=1e-6), 1 / (1 - share).clamp(min=1e-6))
    for _ in range(args.max_train_steps):
        drawn = torch.multinomial(weights, args.train_batch_size, replacement=True, generator=generator)
        batch = augment(crops[drawn], generator) if given.augments else crops[drawn]
        loss = F.binary_cross_entropy_with_logits(network(batch.to(device))[:, 0], labels[drawn].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        logits: np.ndarray = network.eval()(test_crops.to(device))[:, 0].cpu().numpy()
    return logits


def draw_patients(windows: Sequence[NoduleWindow], fraction: float, seed: int) -> np.ndarray:
    """Indices of a fraction of the nodules, two at least: those of the first patients in a random order."""
    patients = np.array([window.patient_id for window in windows])
    names = np.unique(patients)
    rank = dict(zip(names, np.random.default_rng(seed).permutation(len(names)), strict=True))
    order = np.argsort([rank[patient] for patient in patients], kind="stable")
    return np.sort(order[: max(2, round(fraction * len(windows)))])


def malignancy_labels(windows: Sequence[NoduleWindow]) -> torch.Tensor:
    """1 for a rating of at least 3, 0 for a lower one, (N,) float32."""
    return torch.from_numpy(is_malignant([window.ratings["malignancy"] for window in windows]).astype(np.float32))


class Trainings:
    """The trainings of all runs, whose scores are kept in files.

    Args:
        args: of the script.
        windows: the real training nodules.
        mapped: those of them whose maps gave synthetic nodules.
        synthetic: {UNGUIDED or GUIDED: an image in HU of each of `mapped`}.
        tested: the real nodules of the test.
        scores_folder: keeps the scores.
        device: of the networks.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        windows: Sequence[NoduleWindow],
        mapped: Sequence[NoduleWindow],
        synthetic: Mapping[str, Sequence[np.ndarray]],
        tested: Sequence[NoduleWindow],
        scores_folder: Path,
        device: torch.device,
    ) -> None:
        self.args, self.windows, self.mapped, self.folder, self.device = args, windows, mapped, scores_folder, device
        self.crops, self.labels = pixels_from_hu([window.hu for window in windows]), malignancy_labels(windows)
        self.synthetic_crops = {name: pixels_from_hu(images) for name, images in synthetic.items()}
        self.synthetic_labels = malignancy_labels(mapped)
        self.test_crops = pixels_from_hu([window.hu for window in tested])

    def score(self, run: Run, seed: int) -> np.ndarray:
        """Logits (M,) of the tested nodules; the network is trained where its scores are not kept yet."""
        file = self.folder / f"{run.arm.replace(' ', '-')}-{run.fraction:g}-seed-{seed}.npy"
        if not file.exists():
            given = {**HELPED_ARMS, **SYNTHETIC_ARMS}[run.arm]
            crops, labels = self.training_data(run, given, seed)
            scores = train_and_score(self.args, crops, labels, self.test_crops, given, seed, self.device)
            with part_file(file) as part, open(part, "wb") as opened:
                np.save(opened, scores)
        scores = np.load(file, allow_pickle=False)
        return scores

    def training_data(self, run: Run, given: Help, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Crops and labels of a training. A patient outside the fraction lends it neither map nor rating."""
        subset = draw_patients(self.windows, run.fraction, seed) if run.fraction else np.zeros(0, dtype=int)
        crops, labels = self.crops[subset], self.labels[subset]
        if given.synthetic is None:
            return crops, labels
        patients = {window.patient_id for window in self.mapped}
        if run.fraction:
            patients = {self.windows[index].patient_id for index in subset}
        allowed = [index for index, window in enumerate(self.mapped) if window.patient_id in patients]
        crops = torch.cat([crops, self.synthetic_crops[given.synthetic][allowed]])
        return crops, torch.cat([labels, self.synthetic_labels[allowed]])


def answer_questions(tested: Sequence[NoduleWindow], scores: Mapping[Run, Sequence[np.ndarray]]) -> Answers:
    """The AUC of every run for each question, and its differences from the real nodules alone and augmentation."""
    ratings = whole_rating([window.ratings["malignancy"] for window in tested])
    patients = np.array([window.patient_id for window in tested])
    answers: Answers = {}
    for run, scores_by_seed in scores.items():
        answers[run] = {}
        for question in QUESTIONS:
            asked = (ratings >= question.malignant_from) | (ratings < INDETERMINATE_RATING)
            positive, asked_patients = ratings[asked] >= question.malignant_from, patients[asked]
            if positive.all() or not positive.any():
                raise ValueError("the tested nodules are all of one class, so that there is no AUC.")
            run_scores = np.stack(scores_by_seed)[:, asked]
            by_seed = [auc_bootstrap(s, positive, asked_patients, repetitions=1)["mean"] for s in run_scores]
            minus = {}
            for other in (REAL_ALONE, AUGMENTATION):
                if run.fraction and run.arm != other:
                    other_scores = np.stack(scores[Run(other, run.fraction)])[:, asked]
                    minus[other] = auc_bootstrap(run_scores, positive, asked_patients, other_scores)
            answers[run][question.key] = Answer(
                auc=auc_bootstrap(run_scores, positive, asked_patients),
                deviation=float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else 0.0,
                minus=minus,
            )
    return answers


def auc_cell(answer: Answer) -> str:
    low, high = answer.auc["interval"]
    return f"{answer.auc['mean']:.3f} ± {answer.deviation:.3f} ({low:.3f} ... {high:.3f})"


def auc_table(answers: Answers, question: Question, fractions: Sequence[float]) -> str:
    """A row for each arm with real nodules, a column for each share of them."""
    rows = [
        [arm, *(auc_cell(answers[Run(arm, fraction)][question.key]) for fraction in fractions)] for arm in HELPED_ARMS
    ]
    return markdown_table(["", *(f"{fraction:.0%} real" for fraction in fractions)], rows)


def difference_table(answers: Answers, question: Question, other: str, fractions: Sequence[float]) -> str:
    """AUC minus that of another arm: a row for each arm, a column for each share of real nodules."""
    rows = []
    for arm in HELPED_ARMS:
        if arm != other:
            differences = [answers[Run(arm, fraction)][question.key].minus[other] for fraction in fractions]
            rows.append([arm, *(format_estimate(difference, "+.3f") for difference in differences)])
    return markdown_table(["", *(f"{fraction:.0%} real" for fraction in fractions)], rows)


def report_text(answers: Answers, setting: str, fractions: Sequence[float]) -> str:
    lines = [f"{setting}. In brackets 95% intervals over patients, after ± the deviation over seeds.", ""]
    for question in QUESTIONS:
        lines += [f"## AUC, malignancy {question.title}", "", auc_table(answers, question, fractions), ""]
        lines += [f"## AUC minus that of the real nodules alone, malignancy {question.title}", ""]
        lines += [difference_table(answers, question, REAL_ALONE, fractions), ""]
        lines += [f"{arm}: AUC {auc_cell(answers[Run(arm, 0.0)][question.key])}.\n" for arm in SYNTHETIC_ARMS]
    lines += [f"## AUC minus that of augmentation, malignancy {QUESTIONS[0].title}", ""]
    lines += [difference_table(answers, QUESTIONS[0], AUGMENTATION, fractions), ""]
    return "\n".join(lines)


def answers_as_json(answers: Answers) -> list[dict[str, Any]]:
    entries = []
    for run, by_question in answers.items():
        entry: dict[str, Any] = {"arm": run.arm, "fraction": run.fraction}
        for key, answer in by_question.items():
            entry[key] = {**answer.auc, "deviation": answer.deviation}
            for other, difference in answer.minus.items():
                entry[f"{key}_minus_{other.replace(' ', '_')}"] = difference
        entries.append(entry)
    return entries


def draw_answers(file: Path, answers: Answers, fractions: Sequence[float]) -> None:
    """AUC against the share of real nodules, a panel for each question."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    panels = figure.subplots(1, len(QUESTIONS))
    for axis, question in zip(panels, QUESTIONS, strict=True):
        draw_question(axis, question, answers, fractions)
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(file, dpi=110)


def draw_question(axis: Axes, question: Question, answers: Answers, fractions: Sequence[float]) -> None:
    """A line for each arm with its interval over patients; synthetic nodules alone as dotted lines."""
    for number, arm in enumerate(HELPED_ARMS):
        areas = [answers[Run(arm, fraction)][question.key].auc for fraction in fractions]
        # A little beside each other, so that the bars can be told apart.
        places = [fraction * 1.03 ** (number - len(HELPED_ARMS) / 2) for fraction in fractions]
        means = np.array([area["mean"] for area in areas])
        bars = np.abs(np.array([area["interval"] for area in areas]).T - means)
        axis.errorbar(places, means, bars, fmt="o-", markersize=4, linewidth=1.2, elinewidth=0.7, label=arm)
    first_colour = list(HELPED_ARMS).index("unguided synthetic")
    for number, arm in enumerate(SYNTHETIC_ARMS):
        area = answers[Run(arm, 0.0)][question.key].auc["mean"]
        axis.axhline(area, color=f"C{first_colour + number}", linestyle=":", label=arm)
    axis.set_xscale("log")
    axis.set_xticks(fractions, [f"{fraction:.0%}" for fraction in fractions])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("share of the real training nodules")
    axis.set_ylabel("AUC on real nodules of other patients")
    axis.set_title(f"malignancy {question.title}", fontsize=10)
    axis.grid(alpha=0.3)


def draw_nodules(file: Path, windows: Sequence[NoduleWindow], synthetic: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Map, real nodule and its two synthetic ones, for nodules from all over the split."""
    depicted = evenly_spread(len(windows), DEPICTED_NODULES)
    images = {"real": [window.hu for window in windows], **synthetic}
    figure, panels = panel_grid(1 + len(images), len(depicted), width=1.5)
    for axis, index in zip(panels[0], depicted, strict=True):
        show_map(axis, windows[index].semantic_map)
        axis.set_title(f"malignancy {windows[index].ratings['malignancy']:g}", fontsize=8)
    for axes, row in zip(panels[1:], images.values(), strict=True):
        for axis, index in zip(axes, depicted, strict=True):
            show_hu(axis, row[index])
    for axis, name in zip(panels[:, 0], ("map", *images), strict=True):
        axis.set_ylabel(name, fontsize=10)
    figure.savefig(file, dpi=110)


def open_windows(args: argparse.Namespace, splits: Mapping[str, Dataset]) -> tuple[list[NoduleWindow], ...]:
    """The rated nodules of the training split, and those of the tested split."""
    windows, tested = (
        [window for window in nodule_windows(splits[name], CROP) if window.ratings["malignancy"]]
        for name in ("train", args.split)
    )
    if not windows or not tested:
        dataset = args.dataset_name or args.train_data_dir
        raise ValueError(f"the dataset {dataset} has a split without rated nodules, which cannot be evaluated.")
    return windows, tested


def sample_synthetic(
    args: argparse.Namespace,
    accelerator: Accelerator,
    pipe: DiffusionPipeline,
    windows: Sequence[NoduleWindow],
    root: Path,
) -> dict[str, list[np.ndarray]]:
    """A nodule of each window's map in HU, unguided and guided by its true ratings."""
    common = {
        "seed": args.seed,
        "batch_size": args.sample_batch_size,
        "num_inference_steps": args.num_inference_steps,
    }

    def true_ratings(window: NoduleWindow) -> dict[str, float]:
        return {feature: window.ratings[feature] for feature in args.features if window.ratings[feature]}

    guided_folder = root / f"{'+'.join(args.features)}-s{args.guidance_scale:g}"
    return {
        UNGUIDED: sample_windows(accelerator, pipe, windows, root / "none", **common),
        GUIDED: sample_windows(
            accelerator, pipe, windows, guided_folder, true_ratings, guidance_scale=args.guidance_scale, **common
        ),
    }


def describe_setting(
    args: argparse.Namespace,
    windows: Sequence[NoduleWindow],
    mapped: Sequence[NoduleWindow],
    tested: Sequence[NoduleWindow],
) -> str:
    patients = len({window.patient_id for window in tested})
    return "; ".join(
        [
            f"{len(windows)} real training nodules",
            f"{len(mapped)} synthetic ones from as many of their maps; a share of the real nodules goes with the "
            "synthetic ones of its patients",
            f"{args.num_inference_steps} steps, guided by {', '.join(args.features)}, s = {args.guidance_scale:g}",
            f"tested on {len(tested)} real nodules of {patients} patients (split {args.split})",
            f"{len(args.seeds)} seed(s), {args.max_train_steps} steps of {args.train_batch_size} each",
        ]
    )


def scores_name(args: argparse.Namespace, root: Path) -> str:
    """Name of the folder of scores that these settings and synthetic nodules give."""
    without = ("output_dir", "seeds", "fractions", "sample_batch_size")  # they change no single training
    settings = {name: value for name, value in vars(args).items() if name not in without}
    return hashlib.sha256(f"{root} {settings}".encode()).hexdigest()[:8]


def main() -> None:
    args = parse_args()
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    dataset = args.dataset_name or args.train_data_dir
    try:  # everything that can be wrong, before any image is made
        pipe = open_pipeline(args.pretrained_model_name_or_path or small_checkpoint()).to(accelerator.device)
        missing = [feature for feature in args.features if feature not in guidable_features(pipe)]
        if missing:
            raise ValueError(f"--features has {missing[0]}, but the pipeline has no {missing[0]}_classifier.")
        splits = open_splits(dataset, False, args.max_train_samples, args.seed, args.split, needed=["train"])
        windows, tested = open_windows(args, splits)
        check_run(accelerator, args.output_dir, data_identity(dataset, splits, args.split))
    except (RuntimeError, ValueError) as error:
        raise SystemExit(f"evaluate_usefulness.py: {error}") from None
    mapped = [windows[index] for index in evenly_spread(len(windows), args.num_synthetic)]
    root = image_folder(args.output_dir, pipe, args.num_inference_steps, args.mixed_precision) / f"train-{CROP}"
    synthetic = sample_synthetic(args, accelerator, pipe, mapped, root)
    if not accelerator.is_main_process:
        return

    scores_folder = args.output_dir / "scores" / scores_name(args, root)
    trainings = Trainings(args, windows, mapped, synthetic, tested, scores_folder, accelerator.device)
    runs = [Run(arm, fraction) for fraction in args.fractions for arm in HELPED_ARMS]
    runs += [Run(arm, 0.0) for arm in SYNTHETIC_ARMS]
    scores: dict[Run, list[np.ndarray]] = {run: [] for run in runs}
    for run, seed in tqdm([(run, seed) for run in runs for seed in args.seeds], desc="classifiers"):
        scores[run].append(trainings.score(run, seed))
    try:
        answers = answer_questions(tested, scores)
    except ValueError as error:
        raise SystemExit(f"evaluate_usefulness.py: {error}") from None

    setting = describe_setting(args, windows, mapped, tested)
    fractions = list(dict.fromkeys(args.fractions))
    write_json(args.output_dir / "usefulness.json", {"setting": setting, "results": answers_as_json(answers)})
    text = report_text(answers, setting, fractions)
    write_atomically(args.output_dir / "usefulness.md", text.encode())
    draw_answers(args.output_dir / "usefulness.png", answers, fractions)
    draw_nodules(args.output_dir / "nodules.png", mapped, synthetic)
    print(text)


if __name__ == "__main__":
    main()
