"""`lsdm-generate --volume`: neighbouring slices of a volume of maps."""

import argparse
import json
from pathlib import Path
from typing import Any

from .command_line import check_formats, check_writable, load_pipeline, requested_features, requested_method
from .version import __version__

CUTS = ("axial", "coronal", "sagittal")


def write_cuts(path: Path, labels: Any, hu: Any, stretch: float) -> None:
    """Draw the three cuts through the middle of a volume, the map above the slices.

    Args:
        path: of the PNG.
        labels: (Z, H, W).
        hu: (Z, H, W).
        stretch: distance of neighbouring slices over the edge of a pixel.
    """
    import numpy as np
    from matplotlib.figure import Figure

    from .hounsfield import WINDOWS
    from .io.atomic_write import part_file
    from .labels import PALETTE

    level, width = WINDOWS["lung"]
    depth, height, columns = hu.shape
    figure = Figure(figsize=(12, 8), layout="constrained")
    for row, volume in zip(figure.subplots(2, len(CUTS)), (labels, hu), strict=True):
        cuts = (volume[depth // 2], volume[::-1, height // 2], volume[::-1, :, columns // 2])
        for axis, cut, name in zip(row, cuts, CUTS, strict=True):
            shown = PALETTE[cut] if volume is labels else np.asarray(cut)
            aspect = 1.0 if name == "axial" else stretch
            axis.imshow(shown, cmap="gray", vmin=level - width / 2, vmax=level + width / 2, aspect=aspect)
            axis.set_title(name)
            axis.axis("off")
    with part_file(path) as part:
        figure.savefig(part, dpi=80, format="png")


def generate_volume(args: argparse.Namespace) -> list[Path]:
    """Check the arguments, sample the slices of a volume and write them; returns the files.

    Raises:
        ValueError, OSError: for a bad argument, before anything is written.
    """
    if args.semantic_map is None or not Path(args.semantic_map).exists():
        raise ValueError(f"`--semantic_map` is {args.semantic_map}, but a NIfTI file or a folder of maps is needed.")
    if args.num_images != 1:
        raise ValueError(f"`--num_images` is {args.num_images}, but a volume is made once.")
    formats = [name for name in dict.fromkeys(args.format) if name != "png"]
    check_formats(["nifti", *formats])
    check_writable(args.output)
    if args.num_inference_steps < 1:
        raise ValueError(f"`--num_inference_steps` is {args.num_inference_steps}, but at least 1 is needed.")
    features = requested_features(args)

    import numpy as np
    import torch

    from .checkpoint import small_checkpoint
    from .io.volume_files import read_map_volume, save_dicom_series, save_nifti_volume

    maps = read_map_volume(args.semantic_map, args.pixel_spacing, args.slice_spacing_mm)
    checkpoint = args.pretrained_model_name_or_path or small_checkpoint()
    pipe: Any = load_pipeline(str(checkpoint), args.scheduler, args.device)
    pipe.set_progress_bar_config(leave=False, desc="slice")
    method = requested_method(args.guidance_method)
    recommended = pipe.recommended_scales(method)
    scales = recommended if args.guidance_scale is None else dict.fromkeys(recommended, args.guidance_scale)
    output = pipe(
        maps.labels,
        nodule_features=features or None,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=scales if features else 1.0,
        guidance_order=args.guidance_order,
        guidance_method=method,
        generator=torch.Generator().manual_seed(args.seed),
        output_type="hu",
        grain=args.grain,
        volume=True,
        slice_spacing_mm=maps.slice_spacing,
    )
    hu, drawn = output.images.astype(np.int16), output.semantic_maps
    folder: Path = args.output
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in ("volume.nii.gz", "semantic_maps.nii.gz", "cuts.png", "parameters.json")]
    save_nifti_volume(hu, files[0], maps.affine)
    save_nifti_volume(drawn, files[1], maps.affine)
    write_cuts(files[2], drawn, hu, maps.slice_spacing / maps.pixel_spacing)
    if "npy" in formats:
        np.save(folder / "volume.npy", hu)
        files.append(folder / "volume.npy")
    if "dicom" in formats:
        files += save_dicom_series(hu, folder / "dicom", maps.affine, maps.pixel_spacing, maps.slice_spacing)
    parameters = {
        **vars(args),
        "scheduler": type(pipe.scheduler).__name__,
        "pretrained_model_name_or_path": str(checkpoint),
        "pixel_spacing": maps.pixel_spacing,
        "slice_spacing_mm": maps.slice_spacing,
        "nodule_features": features,
        "guidance_scale": {feature: scales[feature] for feature in features},
        "versions": {"lsdm_diffusers": __version__, "torch": torch.__version__},
    }
    files[3].write_text(json.dumps(parameters, indent=1, default=str) + "\n")
    return files
