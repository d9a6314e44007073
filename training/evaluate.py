"""Evaluate pipelines on held-out maps: the thesis' Tables 5.1 and 5.2, and whether the maps are obeyed.

    python training/evaluate.py --pretrained_model_name_or_path lung-ct-small/unet/pipeline ldm/pipeline \
        --dataset_name lung-ct-small-data --arms none malignancy --seeds 0 1 --output_dir evaluated
    torchrun --nproc_per_node 2 training/evaluate.py ...   # shares the images among processes

Every image is made once and kept in `<output_dir>/images`, so that an interrupted run goes on, and a further model, seed or arm costs only its
own images. Arms guide each nodule by the true ratings of the data; pipelines without the classifier have the arm `none` only. Beside the
models stand the real slices: against those of as many training patients' slices (the distance that another set of patients has), and as
they are (what recomputed labels and nodule sizes do to a real slice).

Writes `results.json`, `results.md`, `samples.png`, `nodules.png`, and for each model `model-index-<model>.yml` for its card.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from huggingface_hub import ModelCardData
from matplotlib.figure import Figure

from lsdm_diffusers.data.dataset import blanked, decode_image
from lsdm_diffusers.evaluation.images import (
    check_run,
    data_identity,
    make_missing,
    model_paths,
    noise_seed,
    open_pipeline,
    read_hu,
    sample_hu,
    weights_digest,
)
from lsdm_diffusers.evaluation.metrics import (
    EXTRACTORS,
    feature_extractor,
    image_features,
    frechet_distance,
    kernel_distance,
    paired_metrics,
)
from lsdm_diffusers.evaluation.obedience import hu_by_label, hu_distances, label_dice, nodule_obedience
from lsdm_diffusers.evaluation.slices import read_slice
from lsdm_diffusers.hounsfield import scaled_hu
from lsdm_diffusers.hub.publishing import evaluation_results
from lsdm_diffusers.io.atomic_write import write_atomically
from lsdm_diffusers.labels import PALETTE
from lsdm_diffusers.models.perceptual import perceptual_distance
from lsdm_diffusers.nodule_crop import crop_box
from lsdm_diffusers.nodule_features import NODULE_FEATURES
from lsdm_diffusers.semantic_map import find_nodules
from lsdm_diffusers.training.data import add_data_arguments, open_splits, rows_of_kind

ARMS = ("none", *NODULE_FEATURES, "all")
BETTER = {
    "fid": "low",
    "kid": "low",
    "ssim": "high",
    "ms_ssim": "high",
    "lpips": "low",
    "nodule_fid": "low",
    "nodule_kid": "low",
}
BETTER |= {"hu_distance": "low", "hu_distance_lung": "low"}
BETTER |= {
    "dice_lung": "high",
    "dice_bone": "high",
    "nodule_dice": "high",
    "missed_nodules": "low",
    "diameter_error_mm": "low",
}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = parser.add_argument_group("models")
    models.add_argument(
        "--pretrained_model_name_or_path",
        nargs="+",
        required=True,
        metavar="NAME=PATH",
        help="folders or Hub ids of pipelines; NAME= is optional",
    )
    models.add_argument(
        "--arms", nargs="+", choices=ARMS, default=["none"], help="guidance: off, by one feature, or by all"
    )
    models.add_argument("--guidance_scale", type=float, default=1.0, help="s of the guided arms")
    models.add_argument(
        "--scheduler", default=None, help="name of a diffusers scheduler class; default: each pipeline's own"
    )
    models.add_argument("--num_inference_steps", type=int, default=25, help="denoising steps")
    models.add_argument("--seeds", type=int, nargs="+", default=[0], help="one image of each map and seed")
    models.add_argument("--sample_batch_size", type=int, default=1, help="slices sampled together; all of one size")
    models.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        default="no",
        help="of sampling; bf16 needs hardware for it",
    )
    data = add_data_arguments(parser)
    data.add_argument("--split", default="validation", help="split whose maps are drawn and whose slices are compared")
    data.add_argument(
        "--max_samples", type=int, default=None, help="evaluate on this many slices, evenly spread; default: all"
    )
    metrics = parser.add_argument_group("metrics")
    metrics.add_argument(
        "--blank_background",
        action="store_true",
        help="compare without table and clothes, for models that were trained with this flag",
    )
    metrics.add_argument(
        "--feature_extractor",
        choices=EXTRACTORS,
        default="inception",
        help="network of FID and KID; efficientnet works offline",
    )
    metrics.add_argument("--lpips", action="store_true", help="LPIPS too; fetches VGG weights")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="which training slices stand against the real ones, where --max_train_samples draws",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="for images, features and results")
    return parser.parse_args()


def features_asked(row, arm, pipe):
    """The map's entry of `nodule_features`: for each nodule its true ratings, of the features that the arm guides."""
    return read_slice(row, row["number"]).true_ratings(
        [f for f in NODULE_FEATURES if arm in (f, "all") and getattr(pipe, f"{f}_classifier", None) is not None]
    )


def arms_of(pipe, args):
    """The arms this pipeline can be asked for."""
    able = [f for f in NODULE_FEATURES if getattr(pipe, f"{f}_classifier", None) is not None]
    return [arm for arm in args.arms if arm == "none" or arm in able or arm == "all" and able]


def obedience(rows, slices):
    """How far the labels recomputed from slices (HU) are those of the maps; means over slices and over nodules."""
    figures = {}
    for row, hu in zip(rows, slices, strict=True):
        labels, spacing = np.asarray(row["semantic_map"]), row["pixel_spacing_mm"]
        for measured in (label_dice(labels, hu, spacing), *nodule_obedience(labels, hu, spacing)):
            for name, value in measured.items():
                figures.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in figures.items()}


def density_distances(rows, slices, other_rows, others):
    """Wasserstein-1 of the HU histograms under each label over the deviation of `slices`: mean over labels, and of lung."""
    maps = [[np.asarray(row["semantic_map"]) for row in some] for some in (rows, other_rows)]
    distances = hu_distances(hu_by_label(maps[0], slices), hu_by_label(maps[1], others))
    return {"hu_distance": float(np.mean(list(distances.values())))} | {
        f"hu_distance_{k}": v for k, v in distances.items() if k == "lung"
    }


def crops_of(rows, slices):
    """64x64 pixels around every nodule of the maps, (N, 1, 64, 64) in [-1, 1]."""
    crops = []
    for row, hu in zip(rows, slices, strict=True):
        for nodule in find_nodules(np.asarray(row["semantic_map"])):
            y, x, y1, x1 = crop_box(nodule.centroid_yx, hu.shape, 1)
            crops.append(scaled_hu(hu[y:y1, x:x1].astype(np.float32)))
    return torch.from_numpy(np.stack(crops))[:, None] if crops else None


def as_batch(rows, slices, blank):
    """Slices (HU) as metrics take them, `blanked` where asked."""
    if blank:
        slices = [blanked(hu, np.asarray(row["semantic_map"])) for row, hu in zip(rows, slices, strict=True)]
    return torch.from_numpy(scaled_hu(np.stack(slices).astype(np.float32)))[:, None]


def over_seeds(values):
    """Mean and, where there are several, standard deviation."""
    return {"mean": float(np.mean(values))} | ({"deviation": float(np.std(values, ddof=1))} if len(values) > 1 else {})


def spread(number, limit):
    return np.linspace(0, number - 1, min(number, limit or number)).astype(int)


def set_distances(real, other, extract, prefix=""):
    """FID and KID of two sets of images, cut to the same number."""
    n = min(len(real), len(other))
    a, b = extract(real[:n]), extract(other[:n])
    return {f"{prefix}fid": frechet_distance(a, b), f"{prefix}kid": kernel_distance(a, b)}


def generate_all(args, accelerator, rows):
    """Make every image that is not there yet; returns {(model, arm): {seed: folder}}."""
    folders = {}
    try:
        pipes = {
            name: open_pipeline(path, args.scheduler)
            for name, path in model_paths(args.pretrained_model_name_or_path).items()
        }
    except ValueError as error:
        raise SystemExit(f"evaluate.py: {error}") from None
    for name, pipe in pipes.items():
        pipe = pipe.to(accelerator.device)
        sampler = (
            f"{type(pipe.scheduler).__name__}-{args.num_inference_steps}" if hasattr(pipe, "scheduler") else "one-step"
        )
        for arm in arms_of(pipe, args):
            kind = arm if arm == "none" else f"{arm}-s{args.guidance_scale:g}"
            root = (
                args.output_dir
                / "images"
                / f"{name}-{weights_digest(pipe)}"
                / sampler
                / f"{kind}-{args.mixed_precision}"
            )
            folders[name, arm] = {seed: root / f"seed-{seed}" for seed in args.seeds}

            def make(told, pipe=pipe, arm=arm):
                some = [rows[i] for i, _ in told]
                noise = [noise_seed(seed, row["number"]) for row, (_, seed) in zip(some, told, strict=True)]
                features = None if arm == "none" else [features_asked(row, arm, pipe) for row in some]
                wanted = {
                    "num_inference_steps": args.num_inference_steps,
                    "guidance_scale": args.guidance_scale,
                    "nodule_features": features,
                }
                return sample_hu(pipe, [np.asarray(row["semantic_map"]) for row in some], noise, **wanted)

            wanted = {
                folder / f"{row['number']}.png": (i, seed)
                for seed, folder in folders[name, arm].items()
                for i, row in enumerate(rows)
            }
            make_missing(accelerator, wanted, make, f"{name}, {arm}", args.sample_batch_size)
    return folders


def main():
    args = parse_args()
    if args.streaming:
        raise SystemExit("--streaming: slices are drawn from all over the split; it cannot be evaluated as a stream.")
    try:  # before any image is made
        extractor = feature_extractor(args.feature_extractor)
    except RuntimeError as error:
        raise SystemExit(f"--feature_extractor {args.feature_extractor}: {error}") from None
    try:
        distance = perceptual_distance("lpips") if args.lpips else None
    except RuntimeError as error:
        raise SystemExit(f"--lpips: {error}") from None
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    splits = open_splits(args)
    listing = {
        name: rows_of_kind(splits[name], lambda kind: kind != "nodule").filter(bool, input_columns="nodules")
        for name in {args.split, "train" if args.split != "train" else "validation"}
    }
    if not all(len(split) for split in listing.values()):
        raise SystemExit(
            f"The dataset {args.dataset_name or args.train_data_dir} has a split without nodules, which cannot be evaluated."
        )
    chosen = spread(len(listing[args.split]), args.max_samples)
    rows = [{**listing[args.split][int(i)], "number": int(i)} for i in chosen]
    if len(rows) < 2:
        raise SystemExit(f"--split {args.split} has {len(rows)} slice(s) to evaluate, but FID needs at least 2.")
    try:
        check_run(
            accelerator, args.output_dir, data_identity(args.dataset_name or args.train_data_dir, splits, args.split)
        )
    except ValueError as error:
        raise SystemExit(f"--output_dir: {error}") from None
    folders = generate_all(args, accelerator, rows)
    if not accelerator.is_main_process:
        return

    extractor.to(accelerator.device)
    took = {}

    def extract(images):
        cache, start = args.output_dir / "features", time.perf_counter()
        known = set(cache.glob("*.npy"))
        features = image_features(images.to(accelerator.device), extractor, cache)
        what = "cached features" if known == set(cache.glob("*.npy")) else "features"
        took.setdefault(what, []).append((time.perf_counter() - start, len(images)))
        return features

    def clocked(name, count, run):
        start = time.perf_counter()
        result = run()
        took.setdefault(name, []).append((time.perf_counter() - start, count))
        return result

    def figures_of(slices):
        batch = as_batch(rows, slices, args.blank_background)
        figures = set_distances(real, batch, extract)
        pairs = clocked("pairs", len(slices), lambda: paired_metrics(real, batch, distance))
        figures |= {name: float(values.mean()) for name, values in pairs.items()}
        figures |= set_distances(real_crops, crops_of(rows, slices), extract, "nodule_")
        figures |= density_distances(rows, real_slices, rows, slices)
        return figures | clocked("obedience", len(slices), lambda: obedience(rows, slices))

    real_slices = [decode_image(row["image"]) for row in rows]
    real, real_crops = as_batch(rows, real_slices, args.blank_background), crops_of(rows, real_slices)
    others = next(split for name, split in listing.items() if name != args.split)
    others = [others[int(i)] for i in spread(len(others), len(rows))]
    other_slices = [decode_image(row["image"]) for row in others]
    yardstick = density_distances(rows, real_slices, others, other_slices)
    yardstick |= set_distances(real, as_batch(others, other_slices, args.blank_background), extract)
    yardstick |= set_distances(real_crops, crops_of(others, other_slices), extract, "nodule_") | obedience(
        rows, real_slices
    )
    results = {"real slices": {name: {"mean": value} for name, value in yardstick.items()}}
    shown = {}
    for (name, arm), of_seed in folders.items():
        by_seed = []
        for folder in of_seed.values():
            slices = [read_hu(folder / f"{row['number']}.png") for row in rows]
            by_seed.append(figures_of(slices))
            shown.setdefault(name if arm == "none" else f"{name} + {arm}", slices)
        key = name if arm == "none" else f"{name} + {arm}"
        results[key] = {figure: over_seeds([some[figure] for some in by_seed]) for figure in by_seed[0]}

    speed = {name: sum(n for _, n in pairs) / sum(seconds for seconds, _ in pairs) for name, pairs in took.items()}
    patients = len({row["patient_id"] for row in rows})
    setting = f"{len(rows)} slices of {patients} patients (split {args.split}), {len(real_crops)} nodules, {len(args.seeds)} seed(s); "
    setting += f"{args.num_inference_steps} steps, {args.scheduler or 'own scheduler'}, s = {args.guidance_scale:g}; "
    setting += f"features of {args.feature_extractor}" + (
        "; without table and clothes" if args.blank_background else ""
    )
    dataset = args.dataset_name or args.train_data_dir
    report = {
        "setting": setting,
        "dataset": Path(dataset).name if Path(dataset).exists() else dataset,
        "split": args.split,
    }
    report |= {"feature_extractor": args.feature_extractor, "results": results, "images_a_second": speed}
    write_atomically(args.output_dir / "results.json", (json.dumps(report, indent=1) + "\n").encode())
    table = markdown(results, setting)
    write_atomically(args.output_dir / "results.md", table.encode())
    for key, figures in results.items():
        if key != "real slices":
            evaluated = evaluation_results(figures, report["dataset"], args.split, setting)
            model_index = ModelCardData(model_name=key, eval_results=evaluated).to_yaml() + "\n"
            write_atomically(args.output_dir / f"model-index-{key.replace(' + ', '+')}.yml", model_index.encode())
    pictures(args.output_dir, rows, real_slices, shown)
    print(table)


def cell(figure):
    return f"{figure['mean']:.3f}" + (f" ± {figure['deviation']:.3f}" if "deviation" in figure else "")


def markdown(results, setting):
    """Table 5.1 (whole slices), Table 5.2 (nodule crops) and obedience: a row for each figure, a column for each method."""
    parts = {
        "Whole slices (Table 5.1)": ("fid", "kid", "ssim", "ms_ssim", "lpips", "psnr"),
        "Nodule crops of 64x64 pixels (Table 5.2)": ("nodule_fid", "nodule_kid"),
        "Densities, Wasserstein-1 over the real deviation": ("hu_distance", "hu_distance_lung"),
        "Obedience to the map": ("dice_lung", "dice_bone", "nodule_dice", "diameter_error_mm", "missed_nodules"),
    }
    lines = [
        setting + ".",
        "",
        "`real slices`: distances to as many slices of other patients; obedience of the real slices themselves.",
        "",
    ]
    for title, names in parts.items():
        lines += [f"## {title}", "", "| | " + " | ".join(results) + " |", "|---" * (1 + len(results)) + "|"]
        for name in names:
            if any(name in figures for figures in results.values()):
                cells = [cell(figures[name]) if name in figures else "" for figures in results.values()]
                arrow = {"low": " ↓", "high": " ↑"}.get(BETTER.get(name), "")
                lines.append(f"| {name}{arrow} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def pictures(folder, rows, real, shown):
    """samples.png: map, real and each method for four slices; nodules.png: the same around the first nodule of eight."""
    for file, count, edge in (("samples.png", 4, None), ("nodules.png", 8, 64)):
        picked = spread(len(rows), count)
        figure = Figure(figsize=(2.4 * (2 + len(shown)), 2.6 * len(picked)), layout="constrained")
        for axes, i in zip(np.atleast_2d(figure.subplots(len(picked), 2 + len(shown))), picked, strict=True):
            labels = np.asarray(rows[i]["semantic_map"])
            y, x, y1, x1 = (
                crop_box(find_nodules(labels)[0].centroid_yx, labels.shape, 1) if edge else (0, 0, *labels.shape)
            )
            axes[0].imshow(PALETTE[labels][y:y1, x:x1])
            axes[0].set_title("map", fontsize=9)
            for axis, (name, slices) in zip(axes[1:], {"real": real, **shown}.items(), strict=True):
                axis.imshow(slices[i][y:y1, x:x1], cmap="gray", vmin=-1350, vmax=150)
                axis.set_title(name, fontsize=9)
            for axis in axes:
                axis.axis("off")
        figure.savefig(folder / file, dpi=90)


if __name__ == "__main__":
    main()
