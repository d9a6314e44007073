"""The thesis' Figures 5.1 to 5.9, of any checkpoint on any dataset of this project.

    python training/figures.py --dataset_name lung-ct-small-data --output_dir figures
    python training/figures.py --dataset_name lung-ct-small-data --output_dir figures \
        --baselines LDM=ldm/pipeline SPADE=spade-gan/pipeline --which 5.2 5.3

* 5.1: slices and what the autoencoder makes of them;
* 5.2, 5.3: baselines and LSDM, unguided and guided by the true ratings, on the same maps: whole slices, nodules;
* 5.4, 5.5: gradients of the malignancy classifier for benign and malignant, with respect to the image, and with
  respect to the latents as guidance applies them;
* 5.6: settings of guidance: one feature, all, sequential, joint;
* 5.7: each feature at its ratings; 5.8: the ladder of scales; 5.9: benign and malignant at one scale, and their
  difference.

Nodules are sampled in a window of `--window` pixels around them. All pictures of a nodule start from the same noise.
CT is shown in the lung window (level -600 HU, width 1500 HU). Images are kept in `<output_dir>/images`, so that a
figure drawn again costs nothing. Writes `figure-5.N.png`, and `figures.md` with the captions.
"""

import argparse
from pathlib import Path

from accelerate import Accelerator

from lsdm_diffusers import small_checkpoint
from lsdm_diffusers.evaluation.figures.drawing import FIGURES, ThesisFigure
from lsdm_diffusers.evaluation.figures.source import FigureSource
from lsdm_diffusers.evaluation.images import check_run, data_identity, model_paths, open_pipeline
from lsdm_diffusers.evaluation.slices import evenly_spread, slices_with_nodules
from lsdm_diffusers.evaluation.windows import nodule_windows
from lsdm_diffusers.io.atomic_write import write_atomically
from lsdm_diffusers.nodule_crop import CROP
from lsdm_diffusers.training.data import add_data_arguments, open_splits


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = parser.add_argument_group("models")
    models.add_argument(
        "--pretrained_model_name_or_path", help="folder or Hub id of an LSDM pipeline; default: the shipped one"
    )
    models.add_argument(
        "--baselines",
        nargs="*",
        default=[],
        metavar="NAME=PATH",
        help="folders or Hub ids of pipelines to compare with in Figures 5.2 and 5.3",
    )
    parser.add_argument(
        "--which", nargs="+", choices=FIGURES, default=list(FIGURES), help="figures to draw; default: all"
    )
    data = add_data_arguments(parser)
    data.add_argument("--split", default="validation", help="split that slices and nodules are taken from")
    data.add_argument("--num_maps", type=int, default=3, help="number of slices, and of nodules, in a figure")
    data.add_argument(
        "--min_area", type=int, default=60, help="area of the smallest nodule in Figures 5.4 to 5.9, in pixels"
    )
    data.add_argument(
        "--window", type=int, default=256, help="edge of the window around a nodule that is sampled, in pixels"
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--num_inference_steps", type=int, default=25, help="number of denoising steps")
    sampling.add_argument(
        "--guidance_scale", type=float, default=1.0, help="s of the true ratings in Figures 5.2, 5.3 and 5.6"
    )
    sampling.add_argument("--feature_scale", type=float, default=8.0, help="s of Figures 5.7 and 5.9")
    sampling.add_argument(
        "--scales", type=float, nargs="+", default=[0.5, 1, 2, 4, 8, 16, 32], help="scales s of Figure 5.8"
    )
    sampling.add_argument(
        "--timesteps", type=int, nargs="+", default=[20, 100, 200, 300, 400, 600], help="t of Figures 5.4 and 5.5"
    )
    sampling.add_argument("--sample_batch_size", type=int, default=1, help="number of nodules sampled together")
    sampling.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        default="no",
        help="precision of sampling; bf16 needs hardware that supports it",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the figures and their images")
    args = parser.parse_args()
    for flag in ("num_maps", "num_inference_steps", "sample_batch_size"):
        if getattr(args, flag) < 1:
            raise SystemExit(f"--{flag} is {getattr(args, flag)}, but at least 1 is needed.")
    if args.window < CROP:
        raise SystemExit(
            f"--window is {args.window}, but at least the {CROP} pixels around a nodule that the classifiers see are "
            "needed."
        )
    if args.streaming:
        raise SystemExit("--streaming: slices from all over the split are needed, but a stream gives the first ones.")
    return args


def open_source(args: argparse.Namespace) -> FigureSource:
    """Open pipelines and data, before any image is made."""
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    dataset = args.dataset_name or args.train_data_dir
    splits = open_splits(dataset, False, args.max_train_samples, args.seed, args.split, needed=[])
    slices = slices_with_nodules(splits[args.split], args.num_maps)
    large = [
        window for window in nodule_windows(splits[args.split], args.window) if window.nodule.area >= args.min_area
    ]
    if not slices or not large:
        raise ValueError(
            f"the split {args.split} has no slices, or no nodules of --min_area {args.min_area} pixels in --window "
            f"{args.window}."
        )
    pipe = open_pipeline(args.pretrained_model_name_or_path or small_checkpoint()).to(accelerator.device)
    baselines = {
        name: open_pipeline(path).to(accelerator.device) for name, path in model_paths(args.baselines).items()
    }
    check_run(accelerator, args.output_dir, data_identity(dataset, splits, args.split))
    return FigureSource(
        pipe=pipe,
        baselines=baselines,
        slices=slices,
        windows=[large[index] for index in evenly_spread(len(large), args.num_maps)],
        accelerator=accelerator,
        output_dir=args.output_dir,
        split=args.split,
        num_inference_steps=args.num_inference_steps,
        mixed_precision=args.mixed_precision,
        seed=args.seed,
        sample_batch_size=args.sample_batch_size,
        guidance_scale=args.guidance_scale,
        feature_scale=args.feature_scale,
        scales=args.scales,
        timesteps=args.timesteps,
    )


def full_caption(name: str, figure: ThesisFigure, source: FigureSource) -> str:
    """The caption of a figure with its guidance scale and how it was sampled."""
    parts = [f"**figure-{name}.png** (thesis, Fig. {name}).", figure.caption]
    if figure.scale is not None:
        parts.append(f"s = {getattr(source, figure.scale):g}.")
    if figure.is_sampled:
        scheduler = type(source.pipe.scheduler).__name__
        parts.append(f"{scheduler}, {source.num_inference_steps} steps, seed {source.seed}.")
    return " ".join(parts)


def main() -> None:
    args = parse_args()
    captions = []
    try:
        source = open_source(args)
        for name in args.which:
            figure = FIGURES[name].draw(source)
            if source.accelerator.is_main_process:
                file = args.output_dir / f"figure-{name}.png"
                figure.savefig(file, dpi=150)
                captions.append(full_caption(name, FIGURES[name], source))
                print(file)
    except (RuntimeError, ValueError) as error:
        raise SystemExit(f"figures.py: {error}") from None
    if source.accelerator.is_main_process:
        write_atomically(args.output_dir / "figures.md", ("\n\n".join(captions) + "\n").encode())


if __name__ == "__main__":
    main()
