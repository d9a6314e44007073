"""Any folder of axial CT in DICOM to a dataset for training: slices with semantic maps, without annotations (labels 0..4).

    python training/prepare_ct.py --dicom_dir my-ct --output_dir my-ct-dataset --num_proc 8
    datasets.load_dataset("my-ct-dataset")

With --semantic_map_dir, your own maps are taken instead of computed ones: for a DICOM file `a/b.dcm` of --dicom_dir the 8-bit PNG `a/b.png`
of that folder, or `<SOPInstanceUID>.png`, grey or palette, whose pixel values are the labels 0..7; a slice without a map is left out. Nodules
(labels 5..7) of such maps are listed in column `nodules`, with no ratings.

The identifiers of the DICOM files (patient, series, slice) and the names of files left out are written into the dataset: anonymise first what
you will share. Patients, not slices, are split. Everything else is as in prepare_lidc.py: one parquet file for each series, interrupted runs go on,
`skipped.csv` tells what was left out and why.
"""

import argparse
import hashlib
import os
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the series are what runs in parallel

import numpy as np

from lsdm_diffusers.data.dataset import encode_row
from lsdm_diffusers.data.dataset_card import write_dataset_card
from lsdm_diffusers.data.dataset_report import draw_report
from lsdm_diffusers.data.lidc.selection import choose_slices, split_of_patient
from lsdm_diffusers.data.preparation import (
    ScanJob,
    begin_dataset,
    check_arguments,
    prepare_scans,
    signature_of,
    worker_pool,
)
from lsdm_diffusers.io.dicom import DicomError, SliceFile, index_dicom, read_slice, reason_of
from lsdm_diffusers.nodule_features import NODULE_FEATURES
from lsdm_diffusers.segmentation import semantic_map_from_hu
from lsdm_diffusers.semantic_map import find_nodules, read_semantic_map

SETTINGS = ("max_slice_thickness", "slice_fraction", "validation_fraction", "test_fraction", "seed", "bit_depth")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--dicom_dir", type=Path, required=True, help="folder that holds the DICOM files, at any depth")
    data.add_argument(
        "--semantic_map_dir",
        type=Path,
        default=None,
        help="folder of your own semantic maps; default: computed from the HU",
    )
    data.add_argument("--output_dir", type=Path, required=True, help="folder of the dataset")
    choice = parser.add_argument_group("choice")
    choice.add_argument(
        "--max_slice_thickness", type=float, default=None, help="mm; thicker slices are left out; default: none is"
    )
    choice.add_argument(
        "--slice_fraction", type=float, default=1.0, help="share of each series' slices, spread evenly (default: all)"
    )
    choice.add_argument("--validation_fraction", type=float, default=0.1, help="share of the patients (default 0.1)")
    choice.add_argument("--test_fraction", type=float, default=0.0, help="share of the patients (default 0)")
    choice.add_argument("--seed", type=int, default=0, help="which patients go where")
    choice.add_argument(
        "--bit_depth", type=int, choices=(16, 8), default=16, help="16 keeps every HU; 8 is the thesis' image"
    )
    run = parser.add_argument_group("run")
    run.add_argument("--num_proc", type=int, default=1, help="series in parallel; about 1 GB of memory each")
    run.add_argument("--report", action="store_true", help="draw report.png: random slices with maps and outlines")
    args = parser.parse_args()
    for name in ("dicom_dir", "semantic_map_dir"):
        folder = getattr(args, name)
        if folder is not None and not folder.is_dir():
            parser.error(f"--{name} is {folder}, but that is no folder")
    check_arguments(parser, args)
    return args


def series_job(
    patient_id: str, series_instance_uid: str, files: list[SliceFile], args
) -> tuple[ScanJob, list[tuple[SliceFile, str]]]:
    """The job of a series, its slices in the order of z, of which the chosen ones are prepared; and (file, reason) of files left out."""
    by_z, left_out = {}, []
    unique = list({file.key: file for file in reversed(files)}.values())
    for file in sorted(unique, key=lambda file: (file.instance_number, file.path)):
        if file.z_mm is None:
            left_out.append((file, "no position of the slice (ImagePositionPatient)"))
        elif by_z.setdefault(round(file.z_mm, 1), file) is not file:
            left_out.append(
                (file, f"another file of the series, of a lower instance number, lies at z = {file.z_mm:g} mm")
            )
    ordered = [by_z[z] for z in sorted(by_z)]
    chosen = (
        {index: ordered[index] for index in choose_slices(len(ordered), (), args.slice_fraction)} if ordered else {}
    )
    # identifiers of foreign files are no file names
    name = hashlib.sha256(f"{patient_id} {series_instance_uid}".encode("utf-8", "backslashreplace")).hexdigest()[:16]
    split = split_of_patient(patient_id, args.validation_fraction, args.test_fraction, args.seed)
    columns = {"patient_id": patient_id, "pylidc_scan_id": None, "series_instance_uid": series_instance_uid}
    maps = (
        [own_map_path(args.semantic_map_dir, file, args.dicom_dir) for file in chosen.values()]
        if args.semantic_map_dir
        else []
    )
    signature = signature_of(unique, *(path.read_bytes() for path in maps if path is not None))
    return ScanJob(name, series_instance_uid, patient_id, split, columns, chosen, (), signature), left_out


def own_map_path(folder: Path, file: SliceFile, dicom_dir: Path) -> Path | None:
    relative = Path(file.path).relative_to(dicom_dir)
    stem = (
        relative.name[:-4] if relative.suffix.lower() == ".dcm" else relative.name
    )  # a name of numbers and dots has no suffix
    candidates = [folder / relative.parent / f"{stem}.png"]
    if file.sop_instance_uid.replace(".", "").isalnum() and len(file.sop_instance_uid) <= 64:
        candidates.append(folder / f"{file.sop_instance_uid}.png")
    return next((path for path in candidates if path.is_file()), None)


def own_semantic_map(path: Path | None, shape: tuple[int, int]) -> np.ndarray:
    if path is None:
        raise DicomError("no semantic map in --semantic_map_dir")
    try:
        semantic_map = read_semantic_map(path)
    except ValueError as error:
        raise DicomError(f"semantic map {path.name}: {error}") from error
    except Exception as error:  # a broken PNG can raise nearly anything
        raise DicomError(f"semantic map {path.name}: {reason_of(error)}") from error
    if semantic_map.shape != shape:
        raise DicomError(
            f"semantic map {path.name} has {semantic_map.shape[0]}x{semantic_map.shape[1]} pixels, the slice {shape[0]}x{shape[1]}"
        )
    return semantic_map


def unrated_nodules(semantic_map: np.ndarray, sop_instance_uid: str, pixel_spacing_mm: float) -> list[dict]:
    return [
        {
            "nodule_id": f"{sop_instance_uid}-{number}",
            "annotation_ids": [],
            "centroid_yx": list(nodule.centroid_yx),
            "box_yxyx": list(nodule.box_yxyx),
            "diameter_mm": 2 * (nodule.area / np.pi) ** 0.5 * pixel_spacing_mm,
            "num_readers": None,
            **dict.fromkeys(NODULE_FEATURES),
            **{f"{name}_ratings": [] for name in NODULE_FEATURES},
        }
        for number, nodule in enumerate(find_nodules(semantic_map))
    ]


def ct_row(job, index, clock, dicom_dir, semantic_map_dir, max_slice_thickness, bit_depth):
    file = job.files[index]
    with clock("read"):
        ct = read_slice(file.path)
    if max_slice_thickness is not None and not (ct.slice_thickness_mm or np.inf) <= max_slice_thickness:
        seen = "unknown" if ct.slice_thickness_mm is None else f"{ct.slice_thickness_mm:g} mm"
        raise DicomError(f"slice thickness {seen}, but --max_slice_thickness is {max_slice_thickness:g} mm")
    with clock("semantic map"):
        if semantic_map_dir is None:
            semantic_map = semantic_map_from_hu(ct.hu.astype(np.float32), ct.pixel_spacing_mm)
        else:
            semantic_map = own_semantic_map(own_map_path(semantic_map_dir, file, dicom_dir), ct.hu.shape)
        nodules = unrated_nodules(semantic_map, file.sop_instance_uid, ct.pixel_spacing_mm)
    with clock("encode"):
        return encode_row(
            ct.hu,
            semantic_map,
            bit_depth,
            sop_instance_uid=file.sop_instance_uid,
            slice_index=index,
            slice_z_mm=file.z_mm,
            pixel_spacing_mm=ct.pixel_spacing_mm,
            slice_thickness_mm=ct.slice_thickness_mm,
            contrast_used=ct.contrast_used,
            nodules=nodules,
            **job.columns,
        )


def main():
    args = parse_args()
    settings = {name: getattr(args, name) for name in SETTINGS}
    begin_dataset(
        args.output_dir, {**settings, "semantic_map_dir": "own maps" if args.semantic_map_dir else "computed maps"}
    )
    with worker_pool(args.num_proc) as executor:
        series, faults = index_dicom(args.dicom_dir, executor)
        skipped = [("", "", "", str(Path(path).relative_to(args.dicom_dir)), reason) for path, reason in faults]
        if not series:
            raise SystemExit(f"--dicom_dir {args.dicom_dir} holds no DICOM file that can be read.")
        by_patient = {}  # an anonymiser may have given two patients one series UID
        for file in (file for files in series.values() for file in files):
            if file.series_instance_uid:
                by_patient.setdefault((file.patient_id, file.series_instance_uid), []).append(file)
            else:
                skipped.append(
                    (file.patient_id, "", "", str(Path(file.path).relative_to(args.dicom_dir)), "no SeriesInstanceUID")
                )
        jobs = []
        for (patient_id, uid), files in sorted(by_patient.items()):
            job, left_out = series_job(patient_id, uid, files, args)
            jobs.append(job)
            skipped += [
                (patient_id, uid, "", str(Path(file.path).relative_to(args.dicom_dir)), reason)
                for file, reason in left_out
            ]
        folders = {"dicom_dir": args.dicom_dir, "semantic_map_dir": args.semantic_map_dir}
        make_row = partial(ct_row, **folders, max_slice_thickness=args.max_slice_thickness, bit_depth=args.bit_depth)
        records = prepare_scans(jobs, make_row, args.output_dir, executor, skipped)
    write_dataset_card(
        args.output_dir,
        records,
        args.bit_depth,
        pretty_name="CT slices with semantic maps",
        summary="Axial CT slices with semantic maps, prepared from DICOM.",
        selection=f"Of each series, {100 * args.slice_fraction:g}% of the slices were taken, evenly spread. The semantic maps were "
        + ("given beside the scans." if args.semantic_map_dir else "computed from the Hounsfield units (labels 0..4).")
        + " Nodules have no ratings here; each is counted once a slice, and its diameter is that of a disk of its area.",
        licence="That of the scans this was made from.",
        licence_id="other",
        tags=[],
        command="training/prepare_ct.py",
    )
    if args.report:
        print(f"report: {draw_report(args.output_dir)}")


if __name__ == "__main__":
    main()
