"""The console command `lsdm-generate`: CT slices from a semantic map, with a preview and every parameter used."""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch

EPILOG = """
examples:
  lsdm-generate --output ct
  lsdm-generate --semantic_map my_map.png --malignancy malignant --spiculation 5 --guidance_scale 8 --output ct
  lsdm-generate --scheduler DDIMScheduler --num_inference_steps 50 --num_images 4 --seed 7 --output ct

For each image: image-N.png (8 bit, -1024..800 HU), image-N.npy (int16 HU), preview-N.png (map | lung window | soft-tissue window); and
semantic_map.png and parameters.json. Not for clinical use.
"""


def parse_args(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="lsdm-generate",
        description="Make lung CT slices from a semantic map: labels 0 background, 1 body, 2 soft tissue, 3 high density, 4 lung, "
        "5/6/7 nodule with malignancy below/equal/above 3.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--semantic_map", help="PNG of labels 0..7; default: the shipped map of LIDC-IDRI-0001")
    parser.add_argument(
        "--pretrained_model_name_or_path", help="folder or Hub id of a pipeline; default: the shipped small checkpoint"
    )
    nodules = parser.add_argument_group("nodules (each guided feature applies to every nodule of the map)")
    nodules.add_argument("--malignancy", help='"benign", "malignant" or a rating 1..5')
    nodules.add_argument("--lobulation", type=float, help="rating 1 (none) .. 5 (marked)")
    nodules.add_argument("--spiculation", type=float, help="rating 1 (none) .. 5 (marked)")
    nodules.add_argument("--texture", type=float, help="rating 1 (ground glass) .. 5 (solid)")
    nodules.add_argument(
        "--guidance_scale", type=float, default=1.0, help="0 is off, 1 is Bayes' rule, more exaggerates (default 1)"
    )
    nodules.add_argument(
        "--guidance_order", choices=["sequential", "joint"], default="sequential", help="default sequential"
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--scheduler", help="name of a diffusers scheduler class; default: the checkpoint's own")
    sampling.add_argument("--num_inference_steps", type=int, default=25, help="denoising steps (default 25)")
    sampling.add_argument("--seed", type=int, default=0, help="same seed, same image (default 0)")
    sampling.add_argument("--num_images", type=int, default=1, help="images of the map (default 1)")
    sampling.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default: cuda where there is one, or cpu",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("lsdm-output"), help="folder for the results (default lsdm-output)"
    )
    return parser.parse_args(arguments)


def preview(semantic_map: np.ndarray, hu: np.ndarray, title: str):
    """Figure: map with palette and legend | CT in lung window | CT in soft-tissue window. Rows are anterior to posterior."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from .hounsfield import WINDOWS
    from .labels import LABEL_NAMES, PALETTE

    figure = Figure(figsize=(15, 5.6), layout="constrained")
    axes = figure.subplots(1, 3)
    axes[0].imshow(PALETTE[semantic_map], interpolation="nearest")
    axes[0].set_title("semantic map")
    present = np.unique(semantic_map)
    handles = [
        Patch(facecolor=PALETTE[label] / 255, edgecolor="grey", label=f"{label} {LABEL_NAMES[label]}")
        for label in present
    ]
    axes[0].legend(handles=handles, loc="upper left", fontsize=7, framealpha=0.8)
    for axis, name, (level, width) in (
        (axes[1], "lung window", WINDOWS["lung"]),
        (axes[2], "soft-tissue window", WINDOWS["mediastinal"]),
    ):
        axis.imshow(hu, cmap="gray", vmin=level - width / 2, vmax=level + width / 2)
        axis.set_title(f"{name} (level {level} HU, width {width} HU)")
    for axis in axes:
        axis.axis("off")
    figure.suptitle(title, fontsize=9)
    return figure


def main(arguments=None) -> None:
    """Run the command; `arguments` instead of those of the command line."""
    args = parse_args(arguments)

    import diffusers
    from PIL import Image

    from .checkpoint import example_map, small_checkpoint
    from .nodule_features import feature_target
    from .pipeline_lsdm import LSDMGuidedPipeline
    from .semantic_map import find_nodules, read_semantic_map, semantic_map_image

    map_path = args.semantic_map or example_map()
    checkpoint = args.pretrained_model_name_or_path or small_checkpoint()
    try:
        semantic_map = read_semantic_map(map_path)
        features = {name: getattr(args, name) for name in ("malignancy", "lobulation", "spiculation", "texture")}
        features = {name: value for name, value in features.items() if value is not None}
        if features.get("malignancy") not in (None, "benign", "malignant"):
            try:
                features["malignancy"] = float(features["malignancy"])
            except ValueError:
                pass  # feature_target names what is allowed
        for name, value in features.items():
            feature_target(name, value)
        if args.num_images < 1:
            raise ValueError(f"`--num_images` is {args.num_images}, but at least 1 is needed.")
        scheduler_class = getattr(diffusers, args.scheduler, None) if args.scheduler else None
        if args.scheduler and not (
            isinstance(scheduler_class, type) and issubclass(scheduler_class, diffusers.SchedulerMixin)
        ):
            raise ValueError(
                f"`--scheduler` is {args.scheduler!r}, but a diffusers scheduler class such as DDIMScheduler is needed."
            )
        if scheduler_class and not hasattr(scheduler_class, "add_noise"):
            raise ValueError(
                f"`--scheduler` is {args.scheduler!r}, but a flow-matching scheduler fits no model of noise or v; take DDIMScheduler."
            )
        if args.output.exists() and not args.output.is_dir():
            raise ValueError(f"`--output` is {args.output}, but that is a file, and a folder is needed.")
        pipe = LSDMGuidedPipeline.from_pretrained(checkpoint).to(args.device)
        for name, component in pipe.components.items():
            if name.endswith("_classifier") and component is not None or name == "vae":
                component.to(memory_format=torch.channels_last)  # makes guidance faster on a CPU
        if scheduler_class:
            pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config)
        result = pipe(
            semantic_map,
            nodule_features=features or None,
            num_inference_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale,
            guidance_order=args.guidance_order,
            num_images_per_map=args.num_images,
            generator=[torch.Generator().manual_seed(args.seed + index) for index in range(args.num_images)],
            output_type="hu",
        ).images
    except (ValueError, OSError) as error:
        raise SystemExit(f"lsdm-generate: {error}") from error

    args.output.mkdir(parents=True, exist_ok=True)
    semantic_map_image(semantic_map).save(args.output / "semantic_map.png")
    wanted = ", ".join(f"{name} {value}" for name, value in features.items()) or "no guidance"
    for index, hu in enumerate(result):
        grey = np.round((hu.astype(np.float32) + 1024) * (255 / 1824)).astype(np.uint8)
        Image.fromarray(grey).save(args.output / f"image-{index}.png")
        np.save(args.output / f"image-{index}.npy", hu)
        title = (
            f"{type(pipe.scheduler).__name__}, {args.num_inference_steps} steps, seed {args.seed + index}; {wanted}"
        )
        title += f", s = {args.guidance_scale:g}" if features else ""
        preview(semantic_map, hu, title).savefig(args.output / f"preview-{index}.png", dpi=110)
    parameters = {
        **{name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
        "semantic_map": str(map_path),
        "pretrained_model_name_or_path": str(checkpoint),
        "scheduler": type(pipe.scheduler).__name__,
        # an infinite limit of some schedulers is no JSON number
        "scheduler_config": {
            k: str(v) if v in (math.inf, -math.inf) else v
            for k, v in pipe.scheduler.config.items()
            if not k.startswith("_")
        },
        "nodule_features": features,
        "nodules": [
            {"label": int(n.label), "centroid_yx": n.centroid_yx, "area": n.area} for n in find_nodules(semantic_map)
        ],
        "seeds": [args.seed + index for index in range(args.num_images)],
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }
    (args.output / "parameters.json").write_text(json.dumps(parameters, indent=1, default=str) + "\n")
    print(f"{len(result)} slice(s) in {args.output}/: image-N.png, image-N.npy (HU), preview-N.png, parameters.json")


if __name__ == "__main__":
    main()
