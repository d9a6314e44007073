"""The console command `lsdm-synthesize`: labelled sets of synthetic slices, on one process or many.

Torch and diffusers take seconds to import, so the arguments are read and checked as far as possible before that.
"""

import argparse
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..command_line import HUB_ID, OneLineParser, check_writable, load_pipeline
from ..ct_limits import DEFAULT_PIXEL_SPACING, check_pixel_spacing
from ..version import __version__

if TYPE_CHECKING:
    from .job import ShardResult

EPILOG = """
examples:
  lsdm-synthesize --num_slices 20 --output_dir set
  lsdm-synthesize --maps lung-ct-small/data --split train --num_slices 1000 --workers 2 --output_dir set
  lsdm-synthesize --maps maps --recipe recipe.yaml --ray_address auto --workers 64 --gpus_per_worker 1 --output_dir set

A recipe, with the defaults:

  num_slices: 100
  rows_per_shard: 16                 # of a parquet file, the unit of work
  seed: 0
  nodules_per_slice: {1: 1.0}        # number: share of the slices
  keep_nodules: false                # those that the maps have; otherwise lung takes their place
  diameter_mm: lidc                  # or [low, high]
  malignant: 0.5                     # share of new nodules; null draws malignancy as LIDC-IDRI has it
  guided_features: [malignancy, texture, lobulation, spiculation]
  guidance_method: null              # the checkpoint's
  guidance_scale: null               # the checkpoint's
  unguided: 0.0                      # share of slices sampled without guidance
  num_inference_steps: 25
  grain: 0                           # CT noise; [low, high] draws its level
  validation: 0                      # share of split validation, with maps of patients of its own

The folder gets data/*.parquet, which `datasets.load_dataset` and the training scripts read, README.md,
samples.png and failed.csv. The same arguments give the same slices, however many workers there are and however often
a run is cut off; started again, it goes on. Not for clinical use.
"""
LIBRARIES = ("datasets", "pyarrow", "yaml")


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line, or `arguments` instead of it."""
    parser = OneLineParser(
        prog="lsdm-synthesize",
        description="Make a labelled set of synthetic slices: nodules with sizes, shapes and ratings of LIDC-IDRI are "
        "drawn into semantic maps, and a slice is sampled of each.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(
        "--maps", help="folder of maps (PNG, .npy, NIfTI), or folder or Hub id of a dataset; default: the shipped maps"
    )
    parser.add_argument("--split", default="train", help="of a dataset (default train)")
    parser.add_argument(
        "--pixel_spacing",
        type=float,
        default=DEFAULT_PIXEL_SPACING,
        help="edge of a pixel in mm, of maps whose file states none (default %(default)g)",
    )
    parser.add_argument("--recipe", help="YAML file; what it does not state is as below")
    parser.add_argument("--num_slices", type=int, help="instead of the recipe's")
    parser.add_argument("--seed", type=int, help="instead of the recipe's")
    parser.add_argument(
        "--pretrained_model_name_or_path", help="folder or Hub id of a pipeline; default: the shipped small checkpoint"
    )
    parser.add_argument("--device", help="torch device; default: cuda where there is one, otherwise cpu")
    parser.add_argument(
        "--strict", action="store_true", help="leave out slices that do not show a nodule of their map"
    )
    work = parser.add_argument_group("work")
    work.add_argument(
        "--workers", type=int, default=1, help="processes; more than one need the extra scale (default 1)"
    )
    work.add_argument("--ray_address", help="of a Ray cluster to join, such as auto; default: this machine alone")
    work.add_argument("--gpus_per_worker", type=float, default=0, help="share of a GPU for each worker (default 0)")
    work.add_argument(
        "--threads",
        type=int,
        default=1,
        help="CPU threads of each worker; another number changes the last bits of slices (default 1)",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the set")
    return parser.parse_args(arguments)


def checked_recipe(args: argparse.Namespace) -> dict[str, Any]:
    """The values of the recipe, with those of the command line.

    Raises:
        ValueError: for bad arguments and a bad recipe.
    """
    from .recipe import make_recipe, read_recipe

    for library in LIBRARIES:
        if importlib.util.find_spec(library) is None:
            raise ValueError(f'{library} is not installed: pip install "lsdm_diffusers[scale]"')
    for name in ("workers", "threads"):
        if getattr(args, name) < 1:
            raise ValueError(f"`--{name}` is {getattr(args, name)}, but at least 1 is needed.")
    if args.gpus_per_worker < 0:
        raise ValueError(f"`--gpus_per_worker` is {args.gpus_per_worker:g}, but at least 0 is needed.")
    check_pixel_spacing(args.pixel_spacing)
    if uses_ray(args) and importlib.util.find_spec("ray") is None:
        raise ValueError('`--workers` above 1 need ray: pip install "lsdm_diffusers[scale]"')
    checkpoint = args.pretrained_model_name_or_path
    if checkpoint is not None and not Path(checkpoint).is_dir() and not HUB_ID.fullmatch(checkpoint):
        raise ValueError(
            f"`--pretrained_model_name_or_path` is {checkpoint}, but that is neither a folder here nor the id "
            "(owner/name) of a pipeline on the Hub."
        )
    values = {} if args.recipe is None else read_recipe(args.recipe)
    for name in ("num_slices", "seed"):
        if getattr(args, name) is not None:
            values[name] = getattr(args, name)
    make_recipe(values)
    return values


def uses_ray(args: argparse.Namespace) -> bool:
    """Whether the work is given to Ray's workers."""
    return args.workers > 1 or args.ray_address is not None


def synthesize(args: argparse.Namespace) -> None:
    """Check the arguments and make what is missing of the set.

    Raises:
        ValueError, OSError: for a bad argument, before anything is written.
    """
    values = checked_recipe(args)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # before torch is imported

    import torch
    from tqdm.auto import tqdm

    from ..checkpoint import small_checkpoint
    from ..evaluation.images import weights_digest
    from .job import Job, pin_job, read_result, run_locally, run_on_ray, write_failures
    from .maps import open_maps
    from .set_card import write_card, write_samples

    maps = open_maps(args.maps, args.split, args.pixel_spacing)
    checkpoint = args.pretrained_model_name_or_path or str(small_checkpoint())
    if Path(checkpoint).is_dir():
        checkpoint = str(Path(checkpoint).resolve())
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    source = args.maps if args.maps is None or not Path(args.maps).exists() else str(Path(args.maps).resolve())
    job = Job(
        str(args.output_dir.resolve()),
        values,
        source,
        args.split,
        args.pixel_spacing,
        checkpoint,
        device,
        args.threads,
        args.strict,
    )
    digest = weights_digest(load_pipeline(checkpoint, None, "cpu"))
    if not args.output_dir.exists():
        try:
            check_writable(args.output_dir)
        except ValueError as error:
            raise ValueError(str(error).replace("`--output`", "`--output_dir`")) from None
    pin_job(job, maps, {"weights": digest, "version": __version__})

    shards = range(job.checked_recipe.num_shards)
    results = {shard: result for shard in shards if (result := read_result(job, shard)) is not None}
    missing = [shard for shard in shards if shard not in results]
    done = sum(result.rows + len(result.failed) for result in results.values())
    with tqdm(total=job.checked_recipe.num_slices, initial=done, desc="slices", unit="slice") as progress:

        def note(result: "ShardResult") -> None:
            results[result.shard] = result
            progress.update(result.rows + len(result.failed))
            progress.set_postfix(missed=sum(r.missed for r in results.values()))

        if uses_ray(args):
            run_on_ray(job, missing, args.workers, args.gpus_per_worker, args.ray_address, note)
        else:
            run_locally(job, missing, note)
    made = [results[shard] for shard in shards]
    failed = write_failures(job, made)
    write_samples(job, shards)
    write_card(job, made, maps.name)
    rows, missed = sum(result.rows for result in made), sum(result.missed for result in made)
    print(f"{rows} slices in {args.output_dir}; {missed} do not show a nodule of their map; {failed} left out")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; `arguments` instead of those of the command line."""
    args = parse_args(arguments)
    try:
        synthesize(args)
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"lsdm-synthesize: {error}") from None


if __name__ == "__main__":
    main()
