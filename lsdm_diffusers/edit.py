"""The console command `lsdm-edit`: nodules inserted into, changed in and removed from a series of real CT.

Torch and diffusers take seconds to import, so the arguments are read and checked as far as possible before that.
"""

import argparse
import importlib.util
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command_line import HUB_ID, OneLineParser, check_writable, load_pipeline, requested_features, requested_method
from .edit_requests import EditRequest, read_requests, requests_of_arguments
from .sampling_defaults import NUM_STEPS
from .version import __version__

if TYPE_CHECKING:
    from .io.dicom import CtSeries

EPILOG = """
examples:
  lsdm-edit --dicom_dir scan --insert -120.5 -30 72 --diameter_mm 9 --malignancy malignant --output_dir edited
  lsdm-edit --dicom_dir scan --coordinates index --insert 60,250,140 --diameter_mm 12 --texture 1 --output_dir edited
  lsdm-edit --dicom_dir edited/dicom --nodule_mask edited/nodules.nii.gz --list
  lsdm-edit --dicom_dir edited/dicom --nodule_mask edited/nodules.nii.gz --remove 1 --output_dir without
  lsdm-edit --dicom_dir scan --edits edits.csv --output_dir edited

A file of --edits has the columns action (insert, change, remove), z, y, x, diameter_mm, nodule, shape, seed,
malignancy, lobulation, spiculation, texture; in JSON it is a list of objects with these names. Edits are made in the
order of the file; a nodule that was inserted has the next free number.

The output folder gets dicom/ (a new series), nodules.dcm (DICOM SEG), nodules.nii.gz, annotations.csv (as in LUNA16),
report.html (before, after, difference), edits.json (all parameters) and undo.json (the stored values as they were).
A run that was cut off goes on where it stopped. The input is never changed. Not for clinical use.
"""
LIBRARIES = {"pydicom": "demo", "nibabel": "demo", "highdicom": "edit"}  # and the extras that bring them
PLACE = re.compile(r"-?[\d.]+(?:[eE]-?\d+)?(?:,-?[\d.]+(?:[eE]-?\d+)?){2}")  # three numbers with commas


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line, or `arguments` instead of it."""
    parser = OneLineParser(
        prog="lsdm-edit",
        description="Edit a series of chest CT: insert nodules, change or remove those of a mask. Every pixel outside "
        "of the edits stays as it is.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    source = parser.add_argument_group("source")
    source.add_argument("--dicom_dir", type=Path, required=True, help="folder of the series, axial CT")
    source.add_argument("--series_instance_uid", help="which series, if the folder holds several")
    source.add_argument(
        "--nodule_mask",
        help="NIfTI on the pixels of the series: numbers of its nodules, or 1 for all, whose pieces are then numbered",
    )
    edits = parser.add_argument_group("edits (removals first, then changes, then new nodules)")
    edits.add_argument("--list", action="store_true", help="print the nodules of the mask, and end")
    edits.add_argument(
        "--insert",
        nargs=3,
        type=float,
        action="append",
        metavar=("Z", "Y", "X"),
        help="centre of a new nodule, in a lung; may be given several times",
    )
    edits.add_argument("--change", type=int, action="append", metavar="N", help="draw nodule N of the mask anew")
    edits.add_argument("--remove", type=int, action="append", metavar="N", help="fill nodule N of the mask with lung")
    edits.add_argument("--edits", help="JSON or CSV file of many edits, instead of the three flags above")
    edits.add_argument(
        "--coordinates",
        choices=["mm", "index"],
        default="mm",
        help="of --insert and --edits: the patient's coordinates in mm as in DICOM, --list and LUNA16, z first; or "
        "slice (from the feet, from 0), row and column (default mm)",
    )
    nodules = parser.add_argument_group("nodules (each applies to all nodules of --insert and --change)")
    nodules.add_argument("--diameter_mm", type=float, help="of new nodules, 3..60 mm")
    nodules.add_argument(
        "--shape",
        choices=["smooth", "lobulated", "spiculated"],
        default="smooth",
        help="drawn outline of new nodules (default smooth); --lobulation and --spiculation take those of real ones",
    )
    nodules.add_argument("--malignancy", help='"benign", "malignant" or a rating 1..5')
    nodules.add_argument("--lobulation", type=float, help="rating 1 (none) .. 5 (marked)")
    nodules.add_argument("--spiculation", type=float, help="rating 1 (none) .. 5 (marked)")
    nodules.add_argument("--texture", type=float, help="rating 1 (ground glass) .. 5 (solid)")
    nodules.add_argument(
        "--guidance_scale", type=float, help="of all features; default: what the checkpoint recommends"
    )
    nodules.add_argument("--guidance_method", nargs="+", metavar="FEATURE=METHOD", help="as in lsdm-generate")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--pretrained_model_name_or_path", help="folder or Hub id of a pipeline; default: the shipped small checkpoint"
    )
    sampling.add_argument("--scheduler", help="name of a diffusers scheduler class; default: the checkpoint's own")
    sampling.add_argument(
        "--num_inference_steps", type=int, default=NUM_STEPS, help="denoising steps (default %(default)s)"
    )
    sampling.add_argument(
        "--strength", type=float, default=1.0, help="1 draws anew; less keeps structure of what was there (default 1)"
    )
    sampling.add_argument(
        "--grain",
        type=float,
        help="CT noise of the edited part: 0 none, 1 that of the checkpoint's scanners; default: as the scan shows "
        "around the edit",
    )
    sampling.add_argument("--seed", type=int, default=0, help="the same seed gives the same edit (default 0)")
    sampling.add_argument("--device", help="torch device; default: cuda where there is one, otherwise cpu")
    parser.add_argument("--output_dir", type=Path, help="folder for the results, which must not exist or be empty")
    given = sys.argv[1:] if arguments is None else list(arguments)
    split = [part for word in given for part in (word.split(",") if PLACE.fullmatch(word) else [word])]
    return parser.parse_args(split)


def requests_of(args: argparse.Namespace) -> list[EditRequest]:
    """The edits that the command line asks for.

    Raises:
        ValueError: for none, or bad ones.
    """
    flags = [name for name in ("insert", "change", "remove") if getattr(args, name)]
    if args.edits is not None:
        if flags:
            raise ValueError(f"`--edits` and `--{flags[0]}` are both given, but one of them is needed.")
        return read_requests(args.edits)
    if not flags:
        raise ValueError("nothing to do: one of `--insert`, `--change`, `--remove`, `--edits` or `--list` is needed.")
    if args.insert and args.diameter_mm is None:
        raise ValueError("`--insert` needs `--diameter_mm`.")
    features = requested_features(args)
    return requests_of_arguments(
        args.insert, args.change, args.remove, args.diameter_mm, args.shape, features, args.seed
    )


def check_folders(dicom_dir: Path, output_dir: Path | None) -> None:
    """Raise ValueError for an input that is no folder, or an output that is missing, in the way, or in the input."""
    if not dicom_dir.is_dir():
        raise ValueError(f"`--dicom_dir` is {dicom_dir}, but there is no such folder.")
    if output_dir is None:
        raise ValueError("`--output_dir` is missing.")
    source, target = dicom_dir.resolve(), output_dir.resolve()
    if target == source or source in target.parents or target in source.parents:
        raise ValueError(f"`--output_dir` is {output_dir}, but it and `--dicom_dir` may not lie in each other.")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not (output_dir / "edits.json").is_file():
        raise ValueError(f"`--output_dir` is {output_dir}, but that folder is not empty.")
    try:
        check_writable(output_dir)
    except ValueError as error:
        raise ValueError(str(error).replace("`--output`", "`--output_dir`")) from None


def list_nodules(series: "CtSeries", mask: str) -> None:
    """Print the nodules of a mask."""
    from .edit_job import read_nodule_mask
    from .series_edits import find_nodules_3d

    nodules = read_nodule_mask(mask, series)
    print("nodule        z        y        x  diameter_mm  slices")
    for nodule in find_nodules_3d(nodules, series.pixel_spacing_mm, series.slice_spacing_mm):
        z, y, x = series.place_of(nodule.centre)
        first, last = nodule.slices
        print(f"{nodule.number:6d} {z:8.1f} {y:8.1f} {x:8.1f} {nodule.diameter_mm:12.1f}  {first}..{last}")


def check_arguments(args: argparse.Namespace) -> list[EditRequest]:
    """What the command line asks for; none with `--list`.

    Raises:
        ValueError: for what can be known to be wrong before the series is read.
    """
    for library, extra in LIBRARIES.items():
        if importlib.util.find_spec(library) is None:
            raise ValueError(f'{library} is not installed: pip install "lsdm_diffusers[{extra}]"')
    if args.list:
        if args.nodule_mask is None:
            raise ValueError("`--list` needs `--nodule_mask`.")
        if not args.dicom_dir.is_dir():
            raise ValueError(f"`--dicom_dir` is {args.dicom_dir}, but there is no such folder.")
        return []
    requests = requests_of(args)
    check_folders(args.dicom_dir, args.output_dir)
    if args.num_inference_steps < 1:
        raise ValueError(f"`--num_inference_steps` is {args.num_inference_steps}, but at least 1 is needed.")
    if not 0 < args.strength <= 1:
        raise ValueError(f"`--strength` is {args.strength:g}, but a number above 0 and up to 1 is needed.")
    checkpoint = args.pretrained_model_name_or_path
    if checkpoint is not None and not Path(checkpoint).is_dir() and not HUB_ID.fullmatch(checkpoint):
        raise ValueError(
            f"`--pretrained_model_name_or_path` is {checkpoint}, but that is neither a folder here nor the id "
            "(owner/name) of a pipeline on the Hub."
        )
    return requests


def edit(args: argparse.Namespace) -> None:
    """Check the arguments, then list nodules, or draw the edits and write the output folder.

    Raises:
        ValueError, OSError: for a bad argument, before anything is written.
    """
    requests = check_arguments(args)

    from .io.dicom import read_series

    try:
        series = read_series(args.dicom_dir, args.series_instance_uid)
    except ValueError as error:
        raise ValueError(f"`--dicom_dir`: {error}.") from None
    if args.list:
        list_nodules(series, args.nodule_mask)
        return
    for reason in series.left_out:
        print(f"lsdm-edit: left out {reason}", file=sys.stderr)
    draw_edits(args, series, requests)


def draw_edits(args: argparse.Namespace, series: "CtSeries", requests: Sequence[EditRequest]) -> None:
    """Draw the edits of a series and write the output folder; an output folder of the same edits is left as it is.

    Raises:
        ValueError, OSError: as `edit`.
    """
    import numpy as np

    from .checkpoint import small_checkpoint
    from .edit_job import check_requests, job_digest, read_nodule_mask, run_edits
    from .io.dicom.derived_series import header_warnings
    from .pipeline_lsdm_inpaint import LSDMInpaintPipeline

    nodules = np.zeros(series.hu.shape, dtype=np.int32)
    if args.nodule_mask is not None:
        nodules = read_nodule_mask(args.nodule_mask, series)
    options: dict[str, Any] = {
        "num_inference_steps": args.num_inference_steps,
        "strength": args.strength,
        "grain": args.grain,
        "guidance_method": requested_method(args.guidance_method),
    }
    if args.guidance_scale is not None:
        options["guidance_scale"] = args.guidance_scale
    checkpoint = args.pretrained_model_name_or_path or str(small_checkpoint())
    identity = {**options, "scheduler": args.scheduler, "coordinates": args.coordinates}
    digest = job_digest(series, nodules, requests, identity, checkpoint)
    finished = args.output_dir / "edits.json"
    if finished.is_file():
        if json.loads(finished.read_text()).get("job") != digest:
            raise ValueError(f"`--output_dir` is {args.output_dir}, which holds another edited series.")
        print(f"{args.output_dir} is done")
        return
    for warning in header_warnings(series):
        print(f"lsdm-edit: warning: {warning}", file=sys.stderr)

    def index_of(request: EditRequest) -> tuple[float, float, float]:
        assert request.place is not None
        return request.place if args.coordinates == "index" else series.index_of(request.place)

    pipe: Any = load_pipeline(checkpoint, args.scheduler, args.device, LSDMInpaintPipeline)
    pipe.set_progress_bar_config(leave=False, desc="slice")
    check_requests(pipe, series, nodules, requests, index_of, options["guidance_method"])
    parameters = {
        "dicom_dir": str(args.dicom_dir),
        "nodule_mask": args.nodule_mask,
        "pretrained_model_name_or_path": checkpoint,
        "scheduler": type(pipe.scheduler).__name__,
        "coordinates": args.coordinates,
        "options": options,
    }
    run_edits(pipe, series, nodules, requests, index_of, options, args.output_dir, digest, parameters)
    print(args.output_dir / "report.html")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; `arguments` instead of those of the command line."""
    args = parse_args(arguments)
    try:
        edit(args)
    except (ValueError, OSError) as error:
        raise SystemExit(f"lsdm-edit: {error}") from None


if __name__ == "__main__":
    main()
