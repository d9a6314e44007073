"""Does guidance steer nodules, or does it only please the classifiers its gradients come from?

    python training/evaluate_control.py --dataset_name lung-ct-small-data --output_dir control
    torchrun --nproc_per_node 2 training/evaluate_control.py ...   # shares the nodules among processes

A paired design on validation maps: one nodule of a map at a time is guided, in a window of `--window` pixels around it, and every arm of that
nodule starts from the same noise. Arms: none; malignancy (benign, malignant) at every scale; texture, spiculation and lobulation (1, 5);
sham (random gradients of the norm of malignancy's inside the same mask, in two opposite directions, drawn anew at each step or held); and,
with `--shuffled_classifier`, malignancy by a classifier that was trained on shuffled labels. `<output_dir>/nodules` keeps what each nodule
gave, so a run that was cut off goes on, and arms that a flag adds later cost only themselves.
"""

import argparse
import io
import json
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from lsdm_diffusers import LSDMGuidedPipeline, NoduleClassifier, find_nodules, small_checkpoint
from lsdm_diffusers.data.dataset import decode_image
from lsdm_diffusers.evaluation.control.arms import arm_figures, read_kept, read_real, real_figures
from lsdm_diffusers.evaluation.control.pictures import dose_picture, ladder_picture, locality_picture, matrix_picture
from lsdm_diffusers.evaluation.control.report import RATED, ControlReport
from lsdm_diffusers.evaluation.control.sham import ShamGuidedPipeline
from lsdm_diffusers.evaluation.images import check_run, data_identity, weights_digest
from lsdm_diffusers.evaluation.judge import NoduleJudge, describe_nodules
from lsdm_diffusers.evaluation.measures import change_by_distance
from lsdm_diffusers.evaluation.metrics import feature_extractor
from lsdm_diffusers.evaluation.slices import nearest_entry
from lsdm_diffusers.evaluation.windows import centred_window
from lsdm_diffusers.io.atomic_write import write_atomically
from lsdm_diffusers.nodule_crop import crop_box
from lsdm_diffusers.nodule_features import NODULE_FEATURES
from lsdm_diffusers.training.data import add_data_arguments, open_splits, rows_of_kind

KEPT = 96  # edge in pixels of what is kept of each arm: the classifiers' crop with a margin
FULL_SCALES = (2, 32)  # of texture, spiculation and lobulation, besides --feature_scale


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = add_data_arguments(parser)
    data.add_argument(
        "--split",
        default="validation",
        help="split whose maps are drawn and whose real nodules the judge is fitted on",
    )
    data.add_argument("--max_nodules", type=int, default=None, help="default: every nodule of the split's maps")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--pretrained_model_name_or_path",
        default=None,
        help="folder or Hub id of a pipeline; default: the shipped checkpoint",
    )
    sampling.add_argument("--num_inference_steps", type=int, default=25, help="denoising steps")
    sampling.add_argument("--window", type=int, default=256, help="edge of the window around a nodule, pixels")
    sampling.add_argument("--seed", type=int, default=0, help="of the noise; each nodule has its own")
    sampling.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        default="no",
        help="of sampling; bf16 needs hardware for it",
    )
    arms = parser.add_argument_group("arms")
    arms.add_argument(
        "--scales", type=float, nargs="+", default=[0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0], help="s of malignancy"
    )
    arms.add_argument(
        "--feature_scale", type=float, default=8.0, help="s of texture, spiculation and lobulation; one of --scales"
    )
    arms.add_argument("--full", action="store_true", help="these three at s = 2 and 32 too")
    arms.add_argument(
        "--sham_scale", type=float, default=16.0, help="s of the sham and shuffled arms; one of --scales"
    )
    arms.add_argument(
        "--shuffled_classifier",
        type=Path,
        default=None,
        help="folder of a malignancy classifier trained with --shuffle_labels",
    )
    parser.add_argument(
        "--analyse_only",
        action="store_true",
        help="make no arms; judge those that are there, of a run that still goes on too",
    )
    parser.add_argument("--num_pictures", type=int, default=6, help="nodules in ladder.png")
    parser.add_argument("--output_dir", type=Path, required=True, help="for what each nodule gives, and the results")
    args = parser.parse_args()
    for name in ("feature_scale", "sham_scale"):
        if getattr(args, name) not in args.scales:
            raise SystemExit(
                f"--{name} is {getattr(args, name):g}, but one of --scales {args.scales} is needed, to stand beside malignancy."
            )
    if args.window < KEPT:
        raise SystemExit(f"--window is {args.window}, but at least {KEPT} is needed, which is what is kept of it.")
    if args.streaming:
        raise SystemExit("--streaming: nodules are drawn from all over the split; it cannot be evaluated as a stream.")
    return args


def arm_sets(args):
    """{set of arms that is kept in a file of its own: {arm: (kind of guidance, features asked for, s)}}."""
    main = {"none": ("none", None, 0.0)}
    main |= {
        f"{kind} s={s:g}": ("classifier", {"malignancy": kind}, s)
        for s in args.scales
        for kind in ("benign", "malignant")
    }
    three = lambda s: {f"{f} {rating} s={s:g}": ("classifier", {f: rating}, s) for f in RATED for rating in (1, 5)}  # noqa: E731
    sham = {f"{kind} {sign} s={args.sham_scale:g}": (kind, sign) for kind in ("sham", "held sham") for sign in "+-"}
    directions = {"+": {"malignancy": "malignant"}, "-": {"malignancy": "benign"}}
    main |= three(args.feature_scale) | {
        name: (f"{kind} {sign}", directions[sign], args.sham_scale) for name, (kind, sign) in sham.items()
    }
    sets = {"main": main}
    if args.full:
        sets["full"] = {name: arm for s in FULL_SCALES for name, arm in three(s).items()}
    if args.shuffled_classifier:
        kinds = ("benign", "malignant")
        sets["shuffled"] = {
            f"shuffled {kind} s={args.sham_scale:g}": ("shuffled", {"malignancy": kind}, args.sham_scale)
            for kind in kinds
        }
    return sets


def load_pipelines(args, device):
    """The pipeline of each kind of guidance; they share the autoencoder, the U-Net and the scheduler."""
    pipe = LSDMGuidedPipeline.from_pretrained(args.pretrained_model_name_or_path or small_checkpoint()).to(device)
    missing = [f for f in NODULE_FEATURES if f not in pipe.classifiers]
    if missing:
        raise SystemExit(
            f"--pretrained_model_name_or_path has no {missing[0]}_classifier, but all of {', '.join(NODULE_FEATURES)} are needed."
        )
    pipes = {"classifier": pipe, "sham": ShamGuidedPipeline(**pipe.components)}
    if args.shuffled_classifier:
        shuffled = NoduleClassifier.from_pretrained(args.shuffled_classifier).eval().to(device)
        pipes["shuffled"] = LSDMGuidedPipeline(**{**pipe.components, "malignancy_classifier": shuffled})
    for one in pipes.values():
        one.set_progress_bar_config(disable=True)
        for part in (one.vae, *one.classifiers.values()):
            part.to(memory_format=torch.channels_last)  # makes guidance faster on a CPU
    return pipes


class NoduleRun:
    """One nodule of a map in its window: everything that its arms share."""

    def __init__(self, row, nodule, args, pipes, number):
        entry, labels = nearest_entry(row["nodules"], nodule.centroid_yx), np.asarray(row["semantic_map"])
        window = centred_window(labels.shape, nodule.centroid_yx, args.window)
        self.labels = np.ascontiguousarray(labels[window])
        self.nodules = find_nodules(self.labels)
        centre = np.subtract(nodule.centroid_yx, [edge.start for edge in window])
        self.index = int(np.argmin([np.hypot(*np.subtract(other.centroid_yx, centre)) for other in self.nodules]))
        self.mask = self.nodules[self.index].mask(self.labels.shape)
        self.kept = centred_window(self.labels.shape, centre, KEPT)
        self.args, self.pipes, self.seed = args, pipes, args.seed * 1_000_003 + number
        factor = pipes["classifier"].vae_scale_factor
        box = crop_box(self.nodules[self.index].centroid_yx, [edge // factor for edge in self.labels.shape], factor)
        about = {
            "patient_id": entry.get("patient_id") or row["patient_id"],
            "pixel_spacing_mm": row["pixel_spacing_mm"],
        }
        about |= {
            key: value for key, value in entry.items() if key.split("_")[0] in NODULE_FEATURES
        }  # ratings, each reader's where there
        about["classifier_corner_yx"] = [
            corner * factor - edge.start for corner, edge in zip(box, self.kept, strict=False)
        ]
        self.shared = {
            "about": json.dumps(about),
            "semantic_map": self.labels[self.kept],
            "nodule_mask": self.mask[self.kept],
        }
        self.shared["real_hu"] = decode_image(row["image"])[window][self.kept].astype(np.int16)

    def generate(self, kind, features, scale):
        """HU of the window."""
        pipe = self.pipes["sham" if "sham" in kind else "shuffled" if kind == "shuffled" else "classifier"]
        if "sham" in kind:
            pipe.sham_seed, pipe.sham_sign, pipe.sham_held = (
                self.seed,
                -1.0 if kind.endswith("-") else 1.0,
                kind.startswith("held"),
            )
        asked = features and [[features if i == self.index else {} for i in range(len(self.nodules))]]
        noise = torch.Generator().manual_seed(self.seed)
        return pipe(
            self.labels, asked, self.args.num_inference_steps, scale, generator=noise, output_type="hu"
        ).images[0]

    def arms(self, wanted, unguided=None):
        """What is kept of a set of arms; `unguided` is the window of the arm "none", which the main set makes itself."""
        made, changes = {}, []
        for name, how in wanted.items():
            hu = self.generate(*how)
            unguided = hu if unguided is None else unguided
            made[name] = hu[self.kept]
            changes.append(change_by_distance(hu.astype(np.float32) - unguided, self.mask))
        arrays = {
            "arms": list(made),
            "hu": np.stack(list(made.values())),
            "change_by_distance": np.stack(changes).astype(np.float32),
        }
        return arrays | ({**self.shared, "unguided_window": unguided} if "none" in made else {})


def run_of(args, splits, pipes):
    """What the kept nodules were made of, for `check_run`."""
    bound = ("num_inference_steps", "window", "seed", "mixed_precision", "scales", "feature_scale", "sham_scale")
    return (
        data_identity(args.dataset_name or args.train_data_dir, splits, args.split)
        | {name: getattr(args, name) for name in bound}
        | {"weights": weights_digest(pipes["classifier"])}
    )


def generate_all(args, accelerator, rows, pipes):
    """Make the arms of every nodule that are not there yet."""
    work = [(i, nodule) for i, row in enumerate(rows) for nodule in find_nodules(np.asarray(row["semantic_map"]))]
    folder, sets = args.output_dir / "nodules", arm_sets(args)
    numbers = [
        n
        for n in range(len(work[: args.max_nodules]))
        if not all((folder / f"{n:04d}-{name}.npz").exists() for name in sets)
    ]
    seconds, made = 0.0, 0
    accelerator.wait_for_everyone()  # until each has listed them: a nodule made meanwhile would shift the shares
    with accelerator.split_between_processes(numbers) as own:
        for number in tqdm(own, desc="nodules", disable=not accelerator.is_local_main_process):
            row, nodule = work[number]
            nodule = NoduleRun(rows[row], nodule, args, pipes, number)
            unguided = None
            for name, arms in sets.items():
                file = folder / f"{number:04d}-{name}.npz"
                if not file.exists():
                    start = time.perf_counter()
                    with accelerator.autocast():
                        arrays = nodule.arms(arms, unguided)
                    seconds, made = seconds + time.perf_counter() - start, made + len(arms)
                    content = io.BytesIO()
                    np.savez_compressed(content, **arrays)
                    write_atomically(file, content.getvalue())
                if name == "main":
                    with np.load(file) as main:
                        unguided = main["unguided_window"]
    if made:
        print(f"process {accelerator.process_index}: {seconds / made:.2f} s an arm, {made} arms", flush=True)
    accelerator.wait_for_everyone()


def fitted_judge(args, accelerator, split):
    """The judge, and what it was fitted on: (judge, real nodules, their descriptors, network)."""
    try:
        extractor = feature_extractor("efficientnet").to(accelerator.device)
        real = read_real(split)
        descriptors = describe_nodules(real.hu, real.drawn, real.spacing, extractor)
        return NoduleJudge(descriptors, real.ratings, real.patients), real, descriptors, extractor
    except (RuntimeError, ValueError) as error:
        raise SystemExit(f"--split {args.split} cannot be judged: {error}") from None


def analyse(args, accelerator, pipe, rows, judge, real, descriptors, extractor):
    """control.json, control.md and the pictures, of what is there."""
    nodules = read_kept(args.output_dir / "nodules")
    if not nodules:
        raise SystemExit(f"--output_dir {args.output_dir} has no nodules to analyse; leave --analyse_only out.")
    figures = arm_figures(nodules, judge, extractor, pipe)
    feature_scales = [args.feature_scale, *(s for s in FULL_SCALES if s != args.feature_scale)]
    of_real = real_figures(real, judge, descriptors, extractor, pipe)
    report = ControlReport(nodules, figures, real, of_real, args.scales, feature_scales, args.sham_scale)
    tables = report.tables()
    setting = f"{type(pipe.scheduler).__name__}, {args.num_inference_steps} steps, seed {args.seed}. Judge: logistic and ridge regression on "
    setting += "features of EfficientNet-Lite0 (ImageNet, frozen) and the measures. Intervals: 95%, from a bootstrap over the nodules' patients"
    hosts = [row["patient_id"] for row in rows for _ in find_nodules(np.asarray(row["semantic_map"]))][: len(nodules)]
    if hosts != [nodule.about["patient_id"] for nodule in nodules]:  # a recipe sets nodules into slices of others
        most = max(map(hosts.count, set(hosts)))
        setting += f"; the slices that they lie in are of {len(set(hosts))} patients, {most} of the nodules in one's, which no interval knows"
    setting += "."
    content = {
        "setting": setting,
        "tables": {table.title: {"caption": table.caption, "rows": table.rows} for table in tables},
    }
    content = json.loads(json.dumps(content), parse_constant=lambda _: None)  # NaN is no JSON
    write_atomically(args.output_dir / "control.json", (json.dumps(content, indent=1) + "\n").encode())
    text = "\n".join(["# Control", "", setting, "", *(table.markdown() for table in tables)])
    write_atomically(args.output_dir / "control.md", text.encode())
    dose_picture(report).savefig(args.output_dir / "dose.png", dpi=100)
    matrix_picture(report).savefig(args.output_dir / "matrix.png", dpi=100)
    locality_picture(report).savefig(args.output_dir / "locality.png", dpi=100)
    ladder_picture(report, args.num_pictures).savefig(args.output_dir / "ladder.png", dpi=90)
    print(text)


def main():
    args = parse_args()
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    splits = open_splits(args)
    rows = rows_of_kind(splits[args.split], lambda kind: kind != "nodule").filter(bool, input_columns="nodules")
    if any(entry["malignancy"] is None for nodules in rows["nodules"] for entry in nodules):
        raise SystemExit(f"--split {args.split} has nodules without ratings, which say nothing of control.")
    judged = (
        fitted_judge(args, accelerator, splits[args.split]) if accelerator.is_main_process else ()
    )  # before any nodule is made
    pipes = load_pipelines(args, accelerator.device)
    try:
        check_run(accelerator, args.output_dir, run_of(args, splits, pipes))
        if args.shuffled_classifier:
            digest = weights_digest(pipes["shuffled"])
            check_run(accelerator, args.output_dir / "shuffled", {"shuffled classifier": digest})
    except ValueError as error:
        raise SystemExit(f"--output_dir: {error}") from None
    if not args.analyse_only:
        generate_all(args, accelerator, rows, pipes)
    if accelerator.is_main_process:
        analyse(args, accelerator, pipes["classifier"], rows, *judged)


if __name__ == "__main__":
    main()
