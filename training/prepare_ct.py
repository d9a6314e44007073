"""Any folder of axial CT in DICOM to a dataset for training: slices with semantic maps, without annotations.

    python training/prepare_ct.py --dicom_dir my-ct --output_dir my-ct-dataset --num_proc 8
    datasets.load_dataset("my-ct-dataset")

The maps are computed from the Hounsfield units (labels 0..4). --semantic_map_dir takes your own maps instead. The map
of a DICOM file `a/b.dcm` of --dicom_dir is the PNG `a/b.png` of that folder, or `<SOPInstanceUID>.png`: grey with the
labels 0..7 as values, or in the colours of the legend. Without it, .npy or NIfTI of that name is read. A map is drawn
on the pixels as the DICOM file stores them. A slice without a map is left out. Nodules (labels 5..7) of such maps are
listed in column `nodules`, without ratings.

Slices of prone patients, and others stored the other way round, are turned by their headers: rows run to the
patient's left, columns to the back. The records in `scans/` list them under `turned`.

The identifiers of the DICOM files (patient, series, slice) and the names of files left out are written into the
dataset. So anonymise first what you will share. The split is by patient, not by slice. All else is as in
prepare_lidc.py: one parquet file for each series; an interrupted run goes on when it is started again; `skipped.csv`
lists what was left out, with the reason.
"""

import argparse
import os
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the series run in parallel, not the steps of one

from lsdm_diffusers.data.ct_folder import ct_row, group_series, series_job
from lsdm_diffusers.data.dataset_card import write_dataset_card
from lsdm_diffusers.data.dataset_report import draw_report
from lsdm_diffusers.data.preparation import (
    Omission,
    PreparationError,
    begin_dataset,
    check_preparation,
    prepare_scans,
    worker_pool,
)
from lsdm_diffusers.io.dicom import index_dicom

SETTINGS = ("max_slice_thickness", "slice_fraction", "validation_fraction", "test_fraction", "seed", "bit_depth")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--dicom_dir", type=Path, required=True, help="folder of the DICOM files, at any depth")
    data.add_argument("--semantic_map_dir", type=Path, help="folder of your own maps (default: maps computed from HU)")
    data.add_argument("--output_dir", type=Path, required=True, help="folder of the dataset; made if absent")
    choice = parser.add_argument_group("choice of slices and split")
    choice.add_argument(
        "--max_slice_thickness",
        type=float,
        help="in mm; thicker slices and those of unknown thickness are left out (default: all are taken)",
    )
    choice.add_argument(
        "--slice_fraction",
        type=float,
        default=1.0,
        help="share of each series' slices, spread evenly, above 0 and up to 1 (default 1: all)",
    )
    choice.add_argument(
        "--validation_fraction",
        type=float,
        default=0.1,
        help="share of the patients for validation, on average, from 0 (default 0.1)",
    )
    choice.add_argument(
        "--test_fraction",
        type=float,
        default=0.0,
        help="share of the patients for the test, on average, from 0 (default 0); the two shares sum to less than 1",
    )
    choice.add_argument("--seed", type=int, default=0, help="of the split: another seed, another split (default 0)")
    images = parser.add_argument_group("images")
    images.add_argument(
        "--bit_depth",
        type=int,
        choices=(16, 8),
        default=16,
        help="of the PNG: 16 (default) keeps each HU of -1024..800; 8 scales them to 0..255, as in the thesis",
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--num_proc", type=int, default=1, help="series at a time (default 1); each takes a core and about 1 GB"
    )
    run.add_argument(
        "--report", action="store_true", help="draw report.png: random slices with their maps and outlines"
    )
    args = parser.parse_args()
    for name in ("dicom_dir", "semantic_map_dir"):
        folder = getattr(args, name)
        if folder is not None and not folder.is_dir():
            parser.error(f"--{name} is {folder}, but that is not a folder")
    try:
        check_preparation(args.slice_fraction, args.validation_fraction, args.test_fraction, args.num_proc)
    except ValueError as error:
        parser.error(str(error))
    return args


def main() -> None:
    args = parse_args()
    settings = {name: getattr(args, name) for name in SETTINGS}
    settings["semantic_map_dir"] = "own maps" if args.semantic_map_dir else "computed maps"
    try:
        begin_dataset(args.output_dir, settings)
    except ValueError as error:
        raise SystemExit(f"prepare_ct.py: {error}") from None

    with worker_pool(args.num_proc) as executor:
        series, faults = index_dicom(args.dicom_dir, executor)
        if not series:
            raise SystemExit(f"--dicom_dir {args.dicom_dir} holds no DICOM file that can be read.")
        groups, without_series = group_series(file for files in series.values() for file in files)
        jobs, omitted_files = [], list(without_series)
        for files in groups.values():
            job, left_out = series_job(
                files,
                args.dicom_dir,
                args.semantic_map_dir,
                args.slice_fraction,
                args.validation_fraction,
                args.test_fraction,
                args.seed,
                executor,
            )
            jobs.append(job)
            omitted_files += left_out

        def relative(path: str) -> str:
            return str(Path(path).relative_to(args.dicom_dir))

        omissions = [Omission("", "", "", relative(path), reason) for path, reason in faults]
        for file, reason in omitted_files:
            omissions.append(Omission(file.patient_id, file.series_instance_uid, "", relative(file.path), reason))
        make_row = partial(
            ct_row,
            dicom_dir=args.dicom_dir,
            semantic_map_dir=args.semantic_map_dir,
            max_slice_thickness=args.max_slice_thickness,
            bit_depth=args.bit_depth,
        )
        try:
            prepared = prepare_scans(jobs, make_row, args.output_dir, executor, omissions)
        except PreparationError as error:
            print(error.prepared)
            raise SystemExit(f"prepare_ct.py: {error}") from None
    print(prepared)

    maps = "given beside the scans" if args.semantic_map_dir else "computed from the Hounsfield units (labels 0..4)"
    write_dataset_card(
        args.output_dir,
        prepared.records,
        args.bit_depth,
        pretty_name="CT slices with semantic maps",
        summary="Axial CT slices with semantic maps, prepared from DICOM.",
        selection=f"Of each series, {100 * args.slice_fraction:g}% of the slices were taken, evenly spread. "
        f"The semantic maps were {maps}. Nodules have no ratings here. Each is counted once in every slice, and its "
        "diameter is that of a disc of its area.",
        licence="That of the scans this was made from.",
        licence_id="other",
        tags=[],
        command="training/prepare_ct.py",
    )
    if args.report:
        print(f"report: {draw_report(args.output_dir)}")


if __name__ == "__main__":
    main()
