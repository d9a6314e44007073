"""Train on synthetic nodules, test on real ones: what samples are worth to a classifier of malignancy.

    python training/evaluate_usefulness.py --dataset_name lung-ct-small-data --output_dir usefulness

A small network judges clean 64x64 crops: rating >= 3 or <= 2. It is trained from random weights on 10, 25, 50 and 100% of the real training
nodules, alone or with help - classic augmentation, oversampling of the minority, synthetic nodules from maps of the same patients, with and
without guidance - and on synthetic nodules alone; each for the same number of steps and with several seeds. It is tested on the real nodules of
`--split`. A synthetic nodule is sampled from the map of a real training nodule, has that nodule's rating for a label, and is guided by its true
ratings. The generator has seen all training nodules: the question is what it can stand in for, not whether it finds information of its own.
Images and scores are kept, so that an interrupted run goes on. Writes `usefulness.json`, `usefulness.md`, `usefulness.png` and `nodules.png`.
Intervals: 95%, over patients.
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from matplotlib.figure import Figure
from torch import nn
from tqdm.auto import tqdm

from lsdm_diffusers import small_checkpoint
from lsdm_diffusers.evaluation.bootstrap import auc_bootstrap
from lsdm_diffusers.evaluation.images import check_run, data_identity, image_folder, open_pipeline
from lsdm_diffusers.evaluation.windows import nodule_windows, sample_windows
from lsdm_diffusers.hounsfield import scaled_hu
from lsdm_diffusers.io.atomic_write import part_file, write_atomically
from lsdm_diffusers.labels import PALETTE
from lsdm_diffusers.models.nodule_classifier import STEP_WIDTH
from lsdm_diffusers.nodule_crop import CROP
from lsdm_diffusers.nodule_features import NODULE_FEATURES
from lsdm_diffusers.training.data import add_data_arguments, open_splits

HELP = {  # arm: (augmentation, oversampling, synthetic nodules)
    "real alone": (False, False, None),
    "augmentation": (True, False, None),
    "oversampling": (False, True, None),
    "unguided synthetic": (False, False, "unguided"),
    "guided synthetic": (False, False, "guided"),
    "augmentation + guided synthetic": (True, False, "guided"),
}
ALONE = {"unguided synthetic alone": "unguided", "guided synthetic alone": "guided"}
QUESTIONS = {">= 3 against <= 2": (3, "auc"), ">= 4 against <= 2": (4, "auc_clear")}  # of the rating


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pretrained_model_name_or_path",
        default=None,
        help="folder or Hub id of a pipeline; default: the shipped one",
    )
    parser.add_argument(
        "--num_synthetic",
        type=int,
        default=600,
        help="training maps, from all over the split, that nodules are sampled from",
    )
    parser.add_argument(
        "--features", nargs="+", choices=NODULE_FEATURES, default=["malignancy"], help="ratings that guide"
    )
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="s")
    parser.add_argument("--num_inference_steps", type=int, default=15, help="denoising steps")
    parser.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        default="no",
        help="of sampling; bf16 needs hardware for it",
    )
    parser.add_argument("--sample_batch_size", type=int, default=16, help="nodules sampled together")
    data = add_data_arguments(parser)
    data.add_argument(
        "--split", default="validation", help="split of the real nodules that the classifiers are tested on"
    )
    data.add_argument(
        "--fractions",
        type=float,
        nargs="+",
        default=[0.1, 0.25, 0.5, 1.0],
        help="of the real training nodules, by whole patients",
    )
    classifier = parser.add_argument_group("classifier")
    classifier.add_argument("--max_train_steps", type=int, default=600, help="steps of each training")
    classifier.add_argument("--train_batch_size", type=int, default=32)
    classifier.add_argument("--learning_rate", type=float, default=1e-3)
    classifier.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of subsets, initial weights and batches"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the synthetic nodules' noise, and of --max_train_samples"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="for images, scores and results")
    return parser.parse_args()


class DensitySteps(nn.Module):
    """Adds channels with smooth steps at some HU: batch norms forget how dense a thing is."""

    def __init__(self, thresholds=(-700.0, -400.0, -100.0, 100.0, 300.0)):
        super().__init__()
        self.register_buffer("steps_at", scaled_hu(torch.tensor(thresholds))[None, :, None, None])

    def forward(self, crops):
        return torch.cat([crops, torch.tanh((crops - self.steps_at) / STEP_WIDTH)], dim=1)


def crop_network():
    """Density steps, four strided convolutions with batch norms, pooling, a linear layer: crops (B, 1, 64, 64) in [-1, 1] to logits (B, 1)."""
    layers, channels = [DensitySteps()], 6
    for width, kernel in ((16, 5), (32, 3), (64, 3), (128, 3)):
        layers += [
            nn.Conv2d(channels, width, kernel, stride=2, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, 1))


def augmented(crops, generator):
    """Flips, quarter turns, shifts of up to 4 pixels, and changes of brightness (30 HU) and contrast (5%): a new view of each crop."""
    turns = torch.randint(4, (len(crops),), generator=generator).tolist()
    crops = torch.stack([crop.rot90(number, (1, 2)) for crop, number in zip(crops, turns, strict=True)])
    flipped = torch.rand(len(crops), generator=generator) < 0.5
    crops = torch.where(flipped[:, None, None, None], crops.flip(3), crops)
    padded = F.pad(crops, (4, 4, 4, 4), mode="replicate")
    corners = torch.randint(9, (len(crops), 2), generator=generator).tolist()
    crops = torch.stack([crop[:, y : y + CROP, x : x + CROP] for crop, (y, x) in zip(padded, corners, strict=True)])
    contrast, brightness = torch.randn(2, len(crops), 1, 1, 1, generator=generator)
    return crops * (1 + 0.05 * contrast) + brightness * (30 / 912)


def trained_scores(args, crops, malignant, test, augment, oversample, seed, device):
    """Logits of the test crops by a network trained on crops (N, 1, 64, 64) and their labels (N,)."""
    torch.manual_seed(seed)
    network = crop_network().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=args.max_train_steps)
    generator = torch.Generator().manual_seed(seed)
    share = malignant.mean()
    weights = (
        torch.where(malignant > 0, 1 / share.clamp(min=1e-6), 1 / (1 - share).clamp(min=1e-6))
        if oversample
        else torch.ones(len(crops))
    )
    for _ in range(args.max_train_steps):
        chosen = torch.multinomial(weights, args.train_batch_size, replacement=True, generator=generator)
        batch = augmented(crops[chosen], generator) if augment else crops[chosen]
        loss = F.binary_cross_entropy_with_logits(network(batch.to(device))[:, 0], malignant[chosen].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return network.eval()(test.to(device))[:, 0].cpu().numpy()


def first_patients(windows, fraction, seed):
    """Indices of a fraction of the nodules: those of patients in a random order, so that none is cut but the last."""
    patients = np.array([window.patient_id for window in windows])
    every = np.unique(patients)
    rank = dict(zip(every, np.random.default_rng(seed).permutation(len(every)), strict=True))
    order = np.argsort([rank[patient] for patient in patients], kind="stable")
    return np.sort(order[: max(2, round(fraction * len(windows)))])


def as_crops(images):
    return torch.from_numpy(scaled_hu(np.stack(images).astype(np.float32)))[:, None]


def labels_of(windows):
    return torch.tensor([float(window.ratings["malignancy"] >= 3) for window in windows])


def main():
    args = parse_args()
    if not all(0 < fraction <= 1 for fraction in args.fractions):
        raise SystemExit(f"--fractions is {args.fractions}, but numbers above 0 and up to 1 are needed.")
    for flag in ("num_synthetic", "max_train_steps", "train_batch_size", "num_inference_steps", "sample_batch_size"):
        if getattr(args, flag) < 1:
            raise SystemExit(f"--{flag} is {getattr(args, flag)}, but at least 1 is needed.")
    if args.streaming or args.split == "train":
        raise SystemExit(
            f"--{'streaming' if args.streaming else 'split train'}: real training nodules are held in memory, and tested on others."
        )
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    pipe = open_pipeline(args.pretrained_model_name_or_path or small_checkpoint()).to(accelerator.device)
    lacking = [feature for feature in args.features if getattr(pipe, f"{feature}_classifier", None) is None]
    if lacking:
        raise SystemExit(f"--features has {lacking[0]}, but the pipeline has no {lacking[0]}_classifier.")
    splits = open_splits(args)
    windows, tested = (
        [w for w in nodule_windows(splits[name], CROP) if w.ratings["malignancy"]] for name in ("train", args.split)
    )
    if not windows or not tested:
        raise SystemExit(
            f"The dataset {args.dataset_name or args.train_data_dir} has a split without rated nodules, which cannot be evaluated."
        )

    chosen = [
        windows[int(i)] for i in np.linspace(0, len(windows) - 1, min(args.num_synthetic, len(windows))).astype(int)
    ]
    check_run(
        accelerator, args.output_dir, data_identity(args.dataset_name or args.train_data_dir, splits, args.split)
    )
    root = image_folder(args.output_dir, pipe, args.num_inference_steps, args.mixed_precision) / "train-64"
    guidance = "+".join(args.features) + f"-s{args.guidance_scale:g}"
    sampling = {
        "seed": args.seed,
        "batch_size": args.sample_batch_size,
        "num_inference_steps": args.num_inference_steps,
    }
    synthetic = {"unguided": sample_windows(accelerator, pipe, chosen, root / "none", **sampling)}
    features = lambda window: {f: window.ratings[f] for f in args.features if window.ratings[f]}  # noqa: E731
    synthetic["guided"] = sample_windows(
        accelerator, pipe, chosen, root / guidance, features, guidance_scale=args.guidance_scale, **sampling
    )
    if not accelerator.is_main_process:
        return

    real, malignant = as_crops([window.hu for window in windows]), labels_of(windows)
    made, made_malignant = {name: as_crops(images) for name, images in synthetic.items()}, labels_of(chosen)
    test = as_crops([window.hu for window in tested])
    ours = {
        name: value
        for name, value in vars(args).items()
        if name not in ("output_dir", "seeds", "fractions", "sample_batch_size")
    }
    scores_folder = args.output_dir / "scores" / hashlib.sha256(f"{root} {ours}".encode()).hexdigest()[:8]

    runs = [(arm, fraction) for fraction in args.fractions for arm in HELP] + [(arm, 0.0) for arm in ALONE]
    scores = {run: [] for run in runs}
    for (arm, fraction), seed in tqdm([(run, seed) for run in runs for seed in args.seeds], desc="classifiers"):
        file = scores_folder / f"{arm.replace(' ', '-')}-{fraction:g}-seed-{seed}.npy"
        if not file.exists():
            augment, oversample, kind = HELP.get(arm) or (False, False, ALONE[arm])
            subset = first_patients(windows, fraction, seed) if fraction else []
            crops, labels = real[subset], malignant[subset]
            if kind:  # no map or rating of a patient outside the fraction
                of_patients = (
                    {windows[i].patient_id for i in subset} if fraction else {window.patient_id for window in chosen}
                )
                its = [i for i, window in enumerate(chosen) if window.patient_id in of_patients]
                crops, labels = torch.cat([crops, made[kind][its]]), torch.cat([labels, made_malignant[its]])
            with part_file(file) as part, open(part, "wb") as opened:
                np.save(
                    opened, trained_scores(args, crops, labels, test, augment, oversample, seed, accelerator.device)
                )
        scores[arm, fraction].append(np.load(file, allow_pickle=False))

    results = evaluated(tested, scores)
    patients = len({window.patient_id for window in tested})
    setting = f"{len(windows)} real training nodules, {len(chosen)} synthetic ones from as many of their maps, of which those of its "
    setting += f"patients go with a share of the real ones ({args.num_inference_steps} steps; "
    setting += f"guided by {', '.join(args.features)}, s = {args.guidance_scale:g}); tested on {len(tested)} real nodules of {patients} patients "
    setting += f"(split {args.split}); {len(args.seeds)} seed(s), {args.max_train_steps} steps of {args.train_batch_size} each"
    report = {"setting": setting, "results": results}
    write_atomically(args.output_dir / "usefulness.json", (json.dumps(report, indent=1) + "\n").encode())
    table = markdown(results, setting)
    write_atomically(args.output_dir / "usefulness.md", table.encode())
    draw(results, args.output_dir / "usefulness.png")
    draw_nodules(chosen, synthetic, args.output_dir / "nodules.png")
    print(table)


def evaluated(tested, scores):
    """AUC of each arm and fraction for both questions, its deviation over seeds, and its differences from `real alone` and `augmentation`."""
    rating = np.array([window.ratings["malignancy"] for window in tested])
    patients = np.array([window.patient_id for window in tested])
    results = []
    for (arm, fraction), of_seed in scores.items():
        entry = {"arm": arm, "fraction": fraction}
        for low, name in QUESTIONS.values():
            judged = (rating >= low) | (rating <= 2)
            positive, who = rating[judged] >= low, patients[judged]
            if positive.all() or not positive.any():
                raise SystemExit("The tested nodules are all of one class, so that there is no AUC.")
            own = np.stack(of_seed)[:, judged]
            by_seed = [auc_bootstrap(some, positive, who, repetitions=1)["mean"] for some in own]
            entry[name] = {
                **auc_bootstrap(own, positive, who),
                "deviation": float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else 0.0,
            }
            for other in ("real alone", "augmentation"):
                if fraction and arm != other:
                    less = np.stack(scores[other, fraction])[:, judged]
                    entry[f"{name}_minus_{other.replace(' ', '_')}"] = auc_bootstrap(own, positive, who, less)
        results.append(entry)
    return results


def markdown(results, setting):
    """A row for each arm, a column for each fraction of the real nodules; a table for each question, and the differences."""
    fractions = [fraction for fraction in dict.fromkeys(entry["fraction"] for entry in results) if fraction]
    at = {(entry["arm"], entry["fraction"]): entry for entry in results}
    lines = [setting + ". In brackets 95% intervals over patients, after ± the deviation over seeds.", ""]

    def rows(name, signed):
        for arm in HELP:
            cells = [at[arm, fraction].get(name) for fraction in fractions]
            if any(cells):
                yield arm, [cell_text(cell, signed) for cell in cells]

    def cell_text(cell, signed):
        sign = "+" if signed else ""
        low, high = (f"{bound:{sign}.3f}" for bound in cell["interval"])
        return f"{cell['mean']:{sign}.3f}" + ("" if signed else f" ± {cell['deviation']:.3f}") + f" ({low} ... {high})"

    for question, (_, name) in QUESTIONS.items():
        for title, key in (("AUC", name), ("AUC minus that of the real nodules alone", f"{name}_minus_real_alone")):
            lines += [
                f"## {title}, malignancy {question}",
                "",
                "| | " + " | ".join(f"{fraction:.0%} real" for fraction in fractions) + " |",
            ]
            lines += [
                "|---" * (1 + len(fractions)) + "|",
                *(f"| {arm} | " + " | ".join(c) + " |" for arm, c in rows(key, key != name)),
                "",
            ]
        lines += [f"{arm}: AUC {cell_text(at[arm, 0.0][name], False)}.\n" for arm in ALONE]
    key = "auc_minus_augmentation"
    lines += [
        "## AUC minus that of augmentation, malignancy >= 3 against <= 2",
        "",
        "| | " + " | ".join(f"{f:.0%} real" for f in fractions) + " |",
    ]
    lines += [
        "|---" * (1 + len(fractions)) + "|",
        *(f"| {arm} | " + " | ".join(cells) + " |" for arm, cells in rows(key, True)),
        "",
    ]
    return "\n".join(lines)


def draw(results, path):
    """AUC against the share of real nodules, a line for each arm with its interval over patients; synthetic nodules alone as dotted lines."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    panels = figure.subplots(1, 2)
    for axis, (question, (_, name)) in zip(panels, QUESTIONS.items(), strict=True):
        for number, arm in enumerate(HELP):
            points = [(entry["fraction"], entry[name]) for entry in results if entry["arm"] == arm]
            # a little beside each other, so that the bars can be told apart
            x = [fraction * 1.03 ** (number - len(HELP) / 2) for fraction, _ in points]
            y = [area["mean"] for _, area in points]
            bars = np.abs(np.array([area["interval"] for _, area in points]).T - y)
            axis.errorbar(x, y, bars, fmt="o-", markersize=4, linewidth=1.2, elinewidth=0.7, label=arm)
        for number, arm in enumerate(ALONE):
            area = next(entry[name]["mean"] for entry in results if entry["arm"] == arm)
            axis.axhline(area, color=f"C{number + 3}", linestyle=":", label=arm)
        fractions = sorted({entry["fraction"] for entry in results if entry["fraction"]})
        axis.set_xscale("log")
        axis.set_xticks(fractions, [f"{fraction:.0%}" for fraction in fractions])
        axis.set_xticks([], minor=True)
        axis.set_xlabel("share of the real training nodules")
        axis.set_ylabel("AUC on real nodules of other patients")
        axis.set_title(f"malignancy {question}", fontsize=10)
        axis.grid(alpha=0.3)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9
    )
    figure.savefig(path, dpi=110)


def draw_nodules(windows, synthetic, path):
    """Map, real nodule and its two synthetic ones, for nodules from all over."""
    shown = np.linspace(0, len(windows) - 1, min(10, len(windows))).astype(int)
    figure = Figure(figsize=(1.5 * len(shown), 6.6), layout="constrained")
    rows = {
        "map": [PALETTE[window.semantic_map] for window in windows],
        "real": [window.hu for window in windows],
        **synthetic,
    }
    panels = figure.subplots(len(rows), len(shown), squeeze=False)
    for axes, (name, images) in zip(panels, rows.items(), strict=True):
        for axis, i in zip(axes, shown, strict=True):
            axis.imshow(images[i], cmap="gray", vmin=-1350, vmax=150)
            axis.set_xticks([])
            axis.set_yticks([])
        axes[0].set_ylabel(name, fontsize=10)
    for axis, i in zip(panels[0], shown, strict=True):
        axis.set_title(f"malignancy {windows[i].ratings['malignancy']:g}", fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
