"""Measure what guidance does to nodules of validation patients: area against the scale for malignancy, density for texture.

    python training/recipes/lung-ct-small/measure_guidance.py --dataset_name lung-ct-small-data --output_dir guided
    torchrun --nproc_per_node 2 training/recipes/lung-ct-small/measure_guidance.py ...   # shares the nodules among processes

One nodule of a map at a time is guided, in a window of `--window` pixels around it; every arm starts from the same noise. Area: pixels above
-400 HU within 6 pixels of the drawn nodule. Density: mean HU inside the drawn nodule. Cut off, it goes on where it was; it ends with
`guidance.json`, `guidance.png` (the ladder of scales of the first nodules, as the thesis' Fig. 5.8) and `dose.png`. Intervals are 95%,
from a bootstrap over patients.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from datasets import load_dataset
from matplotlib.figure import Figure
from scipy.ndimage import binary_dilation, distance_transform_edt
from scipy.stats import spearmanr
from skimage.morphology import disk
from tqdm.auto import tqdm

from lsdm_diffusers import LSDMGuidedPipeline, find_nodules, small_checkpoint
from lsdm_diffusers.metrics import patient_bootstrap
from lsdm_diffusers.nodule_windows import centred_window, rated
from lsdm_diffusers.semantic_map import PALETTE


def arms_of(scales, texture_scale):
    """Name of each arm: the features asked for and the scale."""
    arms = {"none": (None, 0.0)}
    arms |= {f"{kind} s={scale:g}": ({"malignancy": kind}, scale) for scale in scales for kind in ("benign", "malignant")}
    return arms | {f"texture {rating} s={texture_scale:g}": ({"texture": rating}, texture_scale) for rating in (1, 5)}


def measured_nodule(generate, labels, nodules, index, arms):
    """Figures of each arm, and its picture, for nodule `index` of a map."""
    mask = nodules[index].mask(labels.shape)
    near, far = binary_dilation(mask, disk(6)), distance_transform_edt(~mask) > 32
    figures, pictures = {}, {}
    for name, (features, scale) in arms.items():
        hu = generate(labels, features and [[features if i == index else {} for i in range(len(nodules))]], scale).astype(int)
        pictures[name] = hu
        figures[name] = {"area": int((hu[near] > -400).sum()), "hu": float(hu[mask].mean())}
        figures[name]["elsewhere"] = float(np.abs(hu - pictures["none"])[far].mean())
    return figures, pictures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--pretrained_model_name_or_path", default=None, help="default: the shipped checkpoint")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.5, 1, 2, 4, 8, 16, 32], help="s of malignancy guidance")
    parser.add_argument("--texture_scale", type=float, default=8, help="s of texture guidance")
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--window", type=int, default=256, help="edge of the window around a nodule, pixels")
    parser.add_argument("--max_nodules", type=int, default=None, help="default: all of the validation maps")
    parser.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], default="no", help="bf16 needs hardware for it")
    parser.add_argument("--num_pictures", type=int, default=4, help="nodules in guidance.png")
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()

    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    run = {name: str(value) for name, value in vars(args).items() if name not in ("output_dir", "max_nodules", "num_pictures")}
    run_file = args.output_dir / "run.json"
    if run_file.exists() and json.loads(run_file.read_text()) != run:
        raise SystemExit(f"--output_dir {args.output_dir} has figures of other flags, which {run_file} names; take another folder.")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        run_file.write_text(json.dumps(run, indent=1) + "\n")
    pipe = LSDMGuidedPipeline.from_pretrained(args.pretrained_model_name_or_path or small_checkpoint()).to(accelerator.device)
    pipe.set_progress_bar_config(disable=True)
    arms = arms_of(args.scales, args.texture_scale)

    def generate(semantic_map, features, scale):
        with accelerator.autocast():
            return pipe(semantic_map, features, args.num_inference_steps, scale, generator=torch.Generator().manual_seed(0), output_type="hu").images[
                0
            ]

    validation = load_dataset(args.dataset_name, split="validation")
    work = []
    for row in np.flatnonzero(np.array(validation["kind"]) == "slice_with_nodules"):
        labels = np.asarray(validation[int(row)]["semantic_map"])
        work += [(int(row), nodule) for nodule in find_nodules(labels)]
    work = work[: args.max_nodules]

    def saved():
        lines = [line for file in sorted(args.output_dir.glob("nodules-*.jsonl")) for line in file.read_text().splitlines()]
        return {(entry["row"], tuple(entry["centroid_yx"])): entry for entry in map(json.loads, lines)}

    done = saved()
    todo = [(number, *nodule) for number, nodule in enumerate(work) if (nodule[0], tuple(map(float, nodule[1].centroid_yx))) not in done]
    accelerator.wait_for_everyone()
    with (
        accelerator.split_between_processes(todo) as own,
        open(args.output_dir / f"nodules-{accelerator.process_index}.jsonl", "a") as file,
    ):
        for number, row, nodule in tqdm(own, desc="nodules", disable=not accelerator.is_local_main_process):
            entry = validation[row]
            labels = np.asarray(entry["semantic_map"])
            window = centred_window(labels.shape, nodule.centroid_yx, args.window)
            labels = np.ascontiguousarray(labels[window])
            nodules = find_nodules(labels)
            centre = np.subtract(nodule.centroid_yx, [edge.start for edge in window])
            index = int(np.argmin([np.hypot(*np.subtract(other.centroid_yx, centre)) for other in nodules]))
            figures, pictures = measured_nodule(generate, labels, nodules, index, arms)
            if number < args.num_pictures:
                small = centred_window(labels.shape, centre, 64)
                shown = {name: hu[small].astype(np.int16) for name, hu in pictures.items()}
                np.savez_compressed(args.output_dir / f"nodule-{number}.npz", map=labels[small], **shown)
            patient = rated(entry, nodule)["patient_id"]
            line = {"row": row, "centroid_yx": [float(c) for c in nodule.centroid_yx], "patient_id": patient, "arms": figures}
            print(json.dumps(line), file=file, flush=True)
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return

    entries = list(saved().values())
    patients = np.array([entry["patient_id"] for entry in entries])
    column = {f: {name: np.array([entry["arms"][name][f] for entry in entries]) for name in arms} for f in ("area", "hu", "elsewhere")}
    summary = {"nodules": len(entries), "patients": len(np.unique(patients)), "area_px": {}, "spearman_of_mean_area": {}}
    for name in arms:
        if not name.startswith("texture"):
            summary["area_px"][name] = patient_bootstrap(column["area"][name], patients)
    for kind in ("benign", "malignant"):
        means = [summary["area_px"]["none"]["mean"], *(summary["area_px"][f"{kind} s={scale:g}"]["mean"] for scale in args.scales)]
        summary["spearman_of_mean_area"][kind] = float(spearmanr(args.scales, means[1:])[0])
    ground_glass, solid = (column["hu"][f"texture {rating} s={args.texture_scale:g}"] for rating in (1, 5))
    summary["texture_hu"] = {"texture 1": patient_bootstrap(ground_glass, patients), "none": patient_bootstrap(column["hu"]["none"], patients)}
    summary["texture_hu"] |= {"texture 5": patient_bootstrap(solid, patients), "1 minus 5": patient_bootstrap(ground_glass - solid, patients)}
    summary["texture_hu"]["share_lower"] = float((ground_glass < solid).mean())
    summary["change_beyond_32px_hu"] = {name: float(column["elsewhere"][name].mean()) for name in arms if name != "none"}
    (args.output_dir / "guidance.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for kind, colour in (("malignant", "tab:red"), ("benign", "tab:blue")):
        areas = [summary["area_px"][f"{kind} s={scale:g}"] for scale in args.scales]
        axis.plot(args.scales, [area["mean"] for area in areas], "o-", color=colour, label=kind)
        axis.fill_between(args.scales, *zip(*(area["interval"] for area in areas), strict=True), color=colour, alpha=0.15)
    axis.axhline(summary["area_px"]["none"]["mean"], color="grey", linestyle=":", label="no guidance")
    axis.set_xscale("log", base=2)
    axis.set_xticks(args.scales, [f"{scale:g}" for scale in args.scales])
    axis.set_xlabel("guidance scale s")
    axis.set_ylabel("nodule area above -400 HU [pixels]")
    axis.legend()
    figure.savefig(args.output_dir / "dose.png", dpi=100)
    order = [*(f"benign s={s:g}" for s in reversed(args.scales)), "none", *(f"malignant s={s:g}" for s in args.scales)]
    order += [f"texture {rating} s={args.texture_scale:g}" for rating in (1, 5)]
    files = sorted(args.output_dir.glob("nodule-*.npz"))
    figure = Figure(figsize=(1.3 * (1 + len(order)), 1.5 * len(files)), layout="constrained")
    for axes, file in zip(np.atleast_2d(figure.subplots(len(files), 1 + len(order))), files, strict=True):
        with np.load(file) as pictures:
            axes[0].imshow(PALETTE[pictures["map"]])
            for axis, name in zip(axes[1:], order, strict=True):
                axis.imshow(pictures[name], cmap="gray", vmin=-1350, vmax=150)
                axis.set_title(name.replace(" s=", "\ns = "), fontsize=8)
        for axis in axes:
            axis.axis("off")
    figure.savefig(args.output_dir / "guidance.png", dpi=80)


if __name__ == "__main__":
    main()
