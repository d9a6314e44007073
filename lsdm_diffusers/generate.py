"""The console command `lsdm-generate`: CT slices from a semantic map, with a preview and every parameter used.

Torch and diffusers take seconds to import, so the arguments are read and checked as far as possible before that.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command_line import (
    FORMATS,
    HUB_ID,
    OneLineParser,
    check_formats,
    check_writable,
    load_pipeline,
    requested_features,
    requested_method,
)
from .ct_limits import DEFAULT_PIXEL_SPACING, check_pixel_spacing
from .generate_volume import generate_volume
from .sampling_defaults import CLASSIFIER, CONTRAST, EXAGGERATED_SCALES, GRAIN, NUM_STEPS, RECOMMENDED_SCALES
from .version import __version__

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure


EPILOG = """
examples:
  lsdm-generate --output ct
  lsdm-generate --semantic_map my_map.png --spiculation 5 --malignancy malignant --output ct
  lsdm-generate --scheduler DDIMScheduler --num_inference_steps 50 --num_images 4 --seed 7 --output ct

For each image, the files of --format: image-N.png (8 bit, -1024..800 HU), image-N.npy (int16 HU), image-N.nii.gz and
image-N.dcm; and preview-N.png (map | lung window | soft-tissue window). Beside them: semantic_map.png,
parameters.json, and drawn_map.png if guidance changed labels or outlines of nodules.

The shipped weights were trained on pixels of 0.5..1.0 mm, mostly about 0.7 mm. A map whose pixels are far from that
gets a warning; resample it with nearest neighbours. Not for clinical use.
"""
SPACING_TOLERANCE = 1e-3  # a spacing typed with three digits is the same as the file's
PREVIEW_DPI = 110
PREVIEW_INCHES = (15, 5.6)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line, or `arguments` instead of it."""
    parser = OneLineParser(
        prog="lsdm-generate",
        description="Make lung CT slices from a semantic map. Its labels are 0 background, 1 body, 2 soft tissue, "
        "3 high density, 4 lung, and 5/6/7 nodule with malignancy below/equal to/above 3.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(
        "--semantic_map",
        help="PNG of labels 0..7 or in the colours of the legend, .npy of labels, or NIfTI of one slice; default: the "
        "shipped map of LIDC-IDRI-0001",
    )
    parser.add_argument(
        "--pretrained_model_name_or_path", help="folder or Hub id of a pipeline; default: the shipped small checkpoint"
    )
    parser.add_argument(
        "--volume",
        action="store_true",
        help="the map is a volume, a NIfTI file of several slices or a folder of maps in the order of their names: "
        "neighbouring slices agree. Writes volume.nii.gz, semantic_maps.nii.gz and cuts.png; with --format dicom also "
        "a series",
    )
    parser.add_argument(
        "--slice_spacing_mm", type=float, help="distance of the slices of --volume, for a folder of maps"
    )
    nodules = parser.add_argument_group("nodules (each guided feature applies to every nodule of the map)")
    nodules.add_argument("--malignancy", help='"benign", "malignant" or a rating 1..5')
    nodules.add_argument("--lobulation", type=float, help="rating 1 (none) .. 5 (marked)")
    nodules.add_argument("--spiculation", type=float, help="rating 1 (none) .. 5 (marked)")
    nodules.add_argument("--texture", type=float, help="rating 1 (ground glass) .. 5 (solid)")
    nodules.add_argument(
        "--guidance_scale",
        type=float,
        help="strength of the guidance of all features: 0 is off, 1 is Bayes' rule; classifiers exaggerate from "
        f"{EXAGGERATED_SCALES[CLASSIFIER]:g} on, contrast from {EXAGGERATED_SCALES[CONTRAST]:g} on (default: "
        f"{RECOMMENDED_SCALES[CLASSIFIER]:g} for classifiers, {RECOMMENDED_SCALES[CONTRAST]:g} for the other methods)",
    )
    nodules.add_argument(
        "--guidance_method",
        nargs="+",
        metavar="FEATURE=METHOD",
        help="a method for each feature, or one for all. classifier: gradients of the classifiers; contrast: what the "
        "label benign or malignant changes (malignancy only); outline: the outline of a real nodule (lobulation and "
        "spiculation only); classifier_free: what the ratings change (needs a U-Net that sees them); default: what "
        "the checkpoint recommends",
    )
    nodules.add_argument(
        "--guidance_order",
        choices=["sequential", "joint"],
        default="sequential",
        help="malignancy after the other features, or all in one gradient (default sequential)",
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--scheduler", help="name of a diffusers scheduler class; default: the checkpoint's own")
    sampling.add_argument(
        "--num_inference_steps", type=int, default=NUM_STEPS, help="denoising steps (default %(default)s)"
    )
    sampling.add_argument("--seed", type=int, default=0, help="same seed, same image (default 0)")
    sampling.add_argument("--num_images", type=int, default=1, help="images of the map (default 1)")
    sampling.add_argument(
        "--grain",
        type=float,
        default=GRAIN,
        help="CT noise added to the finished slices: 0 none, 1 as much as real slices have, more is like a lower dose "
        "(default %(default)g)",
    )
    sampling.add_argument("--device", help="torch device; default: cuda where there is one, otherwise cpu")
    parser.add_argument(
        "--format",
        nargs="+",
        choices=FORMATS,
        default=["png", "npy"],
        help="formats of the slices; nifti and dicom need the extra demo (default: png npy)",
    )
    parser.add_argument(
        "--pixel_spacing",
        type=float,
        help="edge of a pixel of the map in mm, which NIfTI and DICOM state; the weights expect about 0.7 (default: "
        "what the map's PNG states, otherwise 0.7)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("lsdm-output"), help="folder for the results (default lsdm-output)"
    )
    return parser.parse_args(arguments)


def check_paths(semantic_map: str | None, checkpoint: str | None, output: Path) -> None:
    """Check what the file system can tell about the paths, without reading a file.

    Args:
        semantic_map: path of the map, or None.
        checkpoint: folder or Hub id (owner/name) of the pipeline, or None.
        output: folder for the results, which need not exist.

    Raises:
        ValueError: for a missing file or folder, or a folder that cannot be made or written.
    """
    if semantic_map is not None and not Path(semantic_map).is_file():
        raise ValueError(f"`--semantic_map` is {semantic_map}, but there is no such file.")
    if checkpoint is not None:
        if Path(checkpoint).exists():
            if not (Path(checkpoint) / "model_index.json").is_file():
                raise ValueError(
                    f"`--pretrained_model_name_or_path` is {checkpoint}, but that is no folder of a pipeline: it has "
                    "no model_index.json."
                )
        elif not HUB_ID.fullmatch(checkpoint):
            raise ValueError(
                f"`--pretrained_model_name_or_path` is {checkpoint}, but that is neither a folder here nor the id "
                "(owner/name) of a pipeline on the Hub."
            )
    check_writable(output)


def preview(semantic_map: "np.ndarray", hu: "np.ndarray", title: str) -> "Figure":
    """Figure of the map with palette and legend, the slice in the lung window, and in the soft-tissue window.

    Args:
        semantic_map: labels (H, W); rows go from anterior to posterior.
        hu: the slice, (H, W), in HU.
        title: above the three.
    """
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from .hounsfield import WINDOWS
    from .labels import LABEL_NAMES, PALETTE

    figure = Figure(figsize=PREVIEW_INCHES, layout="constrained")
    axes = figure.subplots(1, 3)
    axes[0].imshow(PALETTE[semantic_map], interpolation="nearest")
    axes[0].set_title("semantic map")
    handles = [
        Patch(facecolor=PALETTE[label] / 255, edgecolor="grey", label=f"{label} {LABEL_NAMES[label]}")
        for label in np.unique(semantic_map)
    ]
    axes[0].legend(handles=handles, loc="upper left", fontsize=7, framealpha=0.8)
    for axis, name, window in ((axes[1], "lung window", "lung"), (axes[2], "soft-tissue window", "mediastinal")):
        level, width = WINDOWS[window]
        axis.imshow(hu, cmap="gray", vmin=level - width / 2, vmax=level + width / 2)
        axis.set_title(f"{name} (level {level} HU, width {width} HU)")
    for axis in axes:
        axis.axis("off")
    figure.suptitle(title, fontsize=9)
    return figure


def save_slices(
    folder: Path,
    maps: "dict[str, np.ndarray]",
    slices: "np.ndarray",
    titles: Sequence[str],
    parameters: dict[str, Any],
    formats: Sequence[str],
    pixel_spacing: float,
) -> list[Path]:
    """Write the maps, each slice with its preview, and the parameters.

    Args:
        folder: is made where it does not exist.
        maps: {name of the file: labels (H, W)}; the previews show the last one.
        slices: (N, H, W), int16, in HU.
        titles: of the previews.
        parameters: content of parameters.json.
        formats: of the slices: "png" (8 bit, -1024..800 HU), "npy", "nifti" and "dicom".
        pixel_spacing: edge of a pixel in mm, 0.1..5, for NIfTI and DICOM.

    Returns:
        The files.
    """
    import PIL.Image

    from .hounsfield import grey_from_hu
    from .io.export import export_ct
    from .semantic_map import semantic_map_image

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    exported = [name for name in dict.fromkeys(formats) if name != "png"]
    for index, (hu, title) in enumerate(zip(slices, titles, strict=True)):
        if "png" in formats:
            files.append(folder / f"image-{index}.png")
            PIL.Image.fromarray(grey_from_hu(hu)).save(files[-1])
        files += export_ct(hu, folder, f"image-{index}", exported, pixel_spacing).values()
        files.append(folder / f"preview-{index}.png")
        preview([*maps.values()][-1], hu, title).savefig(files[-1], dpi=PREVIEW_DPI)
    for name, labels in maps.items():
        files.append(folder / f"{name}.png")
        semantic_map_image(labels).save(files[-1])
    files.append(folder / "parameters.json")
    files[-1].write_text(json.dumps(parameters, indent=1, default=str) + "\n")
    return files


def map_pixel_spacing(path: str, pixel_spacing: float | None) -> float | None:
    """Edge of a pixel of the map in mm, from `--pixel_spacing` or what the map's PNG states; None without both.

    Raises:
        ValueError: for an impossible value in the PNG, or another value than that of the argument.
    """
    from .io.map_upload import png_pixel_spacing

    stated = png_pixel_spacing(path)
    if pixel_spacing is None or stated is None:
        return pixel_spacing or stated
    if not math.isclose(pixel_spacing, stated, rel_tol=SPACING_TOLERANCE):
        raise ValueError(
            f"`--pixel_spacing` is {pixel_spacing:g}, but the file of the map states {stated:g}; leave the argument "
            "out, or change the file's text pixel_spacing_mm."
        )
    return pixel_spacing


def generate(args: argparse.Namespace) -> list[Path]:
    """Check the arguments, sample the slices and write them; returns the files.

    Raises:
        ValueError, OSError: for a bad argument, before anything is written.
    """
    if args.slice_spacing_mm is not None:
        raise ValueError(f"`--slice_spacing_mm` is {args.slice_spacing_mm:g}, but it is for `--volume` alone.")
    check_paths(args.semantic_map, args.pretrained_model_name_or_path, args.output)
    if args.num_images < 1:
        raise ValueError(f"`--num_images` is {args.num_images}, but at least 1 is needed.")
    if args.num_inference_steps < 1:
        raise ValueError(f"`--num_inference_steps` is {args.num_inference_steps}, but at least 1 is needed.")
    check_formats(args.format)
    if args.pixel_spacing is not None:
        check_pixel_spacing(args.pixel_spacing)
    features = requested_features(args)

    import diffusers
    import numpy as np
    import torch

    from .checkpoint import example_map, small_checkpoint
    from .io.map_scale import scale_warning
    from .semantic_map import find_nodules, read_semantic_map

    map_path = args.semantic_map or example_map()
    checkpoint = args.pretrained_model_name_or_path or small_checkpoint()
    semantic_map = read_semantic_map(map_path)
    if semantic_map.ndim != 2:
        raise ValueError(f"`--semantic_map` has shape {semantic_map.shape}, but one map (H, W) is needed.")
    pixel_spacing = map_pixel_spacing(map_path, args.pixel_spacing)
    warning = scale_warning(semantic_map, pixel_spacing)
    if warning is not None:
        print(f"lsdm-generate: warning: {warning}", file=sys.stderr)
    pixel_spacing = pixel_spacing or DEFAULT_PIXEL_SPACING
    pipe = load_pipeline(checkpoint, args.scheduler, args.device)
    guidance_method = requested_method(args.guidance_method)
    methods = pipe.recommended_methods(guidance_method)
    recommended = pipe.recommended_scales(guidance_method)
    scales = recommended if args.guidance_scale is None else dict.fromkeys(recommended, args.guidance_scale)
    seeds = [args.seed + index for index in range(args.num_images)]
    output: Any = pipe(
        semantic_map,
        nodule_features=features or None,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=scales if features else 1.0,
        guidance_order=args.guidance_order,
        guidance_method=guidance_method,
        num_images_per_map=args.num_images,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="hu",
        grain=args.grain,
    )
    drawn_map = output.semantic_maps[0]

    scheduler = type(pipe.scheduler).__name__
    asked = ", ".join(f"{name} {value} (s = {scales[name]:g})" for name, value in features.items()) or "no guidance"
    titles = [f"{scheduler}, {args.num_inference_steps} steps, seed {seed}; {asked}" for seed in seeds]
    parameters = {
        **vars(args),
        "semantic_map": str(map_path),
        "pretrained_model_name_or_path": str(checkpoint),
        "device": str(pipe.device),
        "pixel_spacing": pixel_spacing,
        "scheduler": scheduler,
        "scheduler_config": {
            name: str(value) if value in (math.inf, -math.inf) else value  # an infinite limit is no JSON number
            for name, value in pipe.scheduler.config.items()
            if not name.startswith("_")
        },
        "nodule_features": features,
        "guidance_scale": {feature: scales[feature] for feature in features},
        "guidance_methods": {feature: methods[feature] for feature in features},
        "nodules": [
            {"label": int(nodule.label), "centroid_yx": nodule.centroid_yx, "area": nodule.area}
            for nodule in find_nodules(semantic_map)
        ],
        "seeds": seeds,
        "versions": {"lsdm_diffusers": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__},
    }
    maps = {"semantic_map": semantic_map}
    if not np.array_equal(drawn_map, semantic_map):
        maps["drawn_map"] = drawn_map
    return save_slices(args.output, maps, output.images, titles, parameters, args.format, pixel_spacing)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; `arguments` instead of those of the command line."""
    args = parse_args(arguments)
    try:
        if args.volume:
            files = generate_volume(args)
        else:
            files = generate(args)
    except (ValueError, OSError) as error:
        raise SystemExit(f"lsdm-generate: {error}") from None
    print("\n".join(str(file) for file in files))


if __name__ == "__main__":
    main()
