"""Does guidance steer nodules, or does it only please the classifiers that its gradients come from?

    python training/evaluate_control.py --dataset_name lung-ct-small-data --output_dir control
    torchrun --nproc_per_node 2 training/evaluate_control.py ...   # the processes share the nodules

The design is paired. One nodule of a map at a time is guided, in a window of `--window` pixels around it, and all arms
of that nodule start from the same noise. The arms:

- unguided;
- the label alone: the map's nodule painted as benign and as malignant;
- malignancy by the contrast of these labels, at each of `--contrast_scales`;
- malignancy guided by its classifier to benign and to malignant, at each of `--scales`;
- for a U-Net that sees ratings, each feature by its rating, at each of `--rating_scales`;
- texture, spiculation and lobulation guided to 1 and to 5;
- sham: random gradients with the norm of malignancy's inside the same mask, in two opposite directions, drawn anew at
  each step or held;
- with `--shuffled_classifier`, malignancy guided by a classifier that was trained on shuffled labels.

`--output_dir` keeps the images. A run that was cut off goes on where it stopped, and arms that a flag adds later cost
only themselves. The report is `control.md` and `control.json`, with the pictures `dose.png`, `matrix.png`,
`locality.png`, `ladder.png` and `controls.png`.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from datasets import Dataset

from lsdm_diffusers import LSDMGuidedPipeline, NoduleClassifier, small_checkpoint
from lsdm_diffusers.evaluation.control.arms import Arm, planned_arms
from lsdm_diffusers.evaluation.control.measurements import measure_arms, measure_real_nodules, read_real_nodules
from lsdm_diffusers.evaluation.control.report import write_report
from lsdm_diffusers.evaluation.control.results import ControlResults
from lsdm_diffusers.evaluation.control.sampling import ArmSampler
from lsdm_diffusers.evaluation.images import check_run, data_identity, guidable_features, open_pipeline, weights_digest
from lsdm_diffusers.evaluation.judge import NoduleJudge, describe_nodules
from lsdm_diffusers.evaluation.metrics import feature_extractor
from lsdm_diffusers.evaluation.windows import NoduleWindow, nodule_windows
from lsdm_diffusers.nodule_features import NODULE_FEATURES
from lsdm_diffusers.training.data import add_data_arguments, open_splits

SMALLEST_WINDOW = 96  # pixels; the classifiers' crop with a margin, so that its edge has lines beyond it
FULL_SCALES = (2.0, 32.0)  # of texture, spiculation and lobulation, besides --feature_scale


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = add_data_arguments(parser)
    data.add_argument(
        "--split",
        default="validation",
        help="split whose maps are drawn, and whose real nodules the judge is fitted on",
    )
    data.add_argument(
        "--max_nodules", type=int, default=None, help="draw the first nodules of the split only; default: all of them"
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--pretrained_model_name_or_path",
        default=None,
        help="folder or Hub id of the pipeline; default: the checkpoint that the package ships",
    )
    sampling.add_argument("--num_inference_steps", type=int, default=25, help="denoising steps")
    sampling.add_argument("--window", type=int, default=256, help="edge of the window around a nodule, in pixels")
    sampling.add_argument("--seed", type=int, default=0, help="seed of the noise; each nodule has its own noise")
    sampling.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        default="no",
        help="precision of sampling; bf16 needs hardware for it",
    )
    arms = parser.add_argument_group("arms")
    arms.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0],
        help="guidance scales s of malignancy by its classifier",
    )
    arms.add_argument(
        "--contrast_scales", type=float, nargs="*", default=[0.5, 1.0, 2.0], help="guidance scales s of label contrast"
    )
    arms.add_argument(
        "--rating_scales",
        type=float,
        nargs="*",
        default=[1.0, 2.0],
        help="guidance scales s by ratings, for a U-Net that sees them; another one leaves these arms out",
    )
    arms.add_argument(
        "--feature_scale",
        type=float,
        default=8.0,
        help="s of texture, spiculation and lobulation; one of --scales, so that malignancy can be compared",
    )
    arms.add_argument(
        "--full", action="store_true", help="guide texture, spiculation and lobulation at s = 2 and s = 32 as well"
    )
    arms.add_argument(
        "--sham_scale", type=float, default=16.0, help="s of the sham and shuffled arms; one of --scales"
    )
    arms.add_argument(
        "--shuffled_classifier",
        type=Path,
        default=None,
        help="folder of a malignancy classifier that was trained with --shuffle_labels",
    )
    report = parser.add_argument_group("report")
    report.add_argument(
        "--analyse_only",
        action="store_true",
        help="sample nothing; report on the nodules that are kept in every arm, while another run may still go on",
    )
    report.add_argument("--num_pictures", type=int, default=6, help="nodules in ladder.png and controls.png")
    report.add_argument("--output_dir", type=Path, required=True, help="folder for the images and the report")
    args = parser.parse_args()
    for name in ("feature_scale", "sham_scale"):
        if getattr(args, name) not in args.scales:
            raise SystemExit(
                f"--{name} is {getattr(args, name):g}, but one of --scales {args.scales} is needed, "
                "so that malignancy at the same scale stands beside it."
            )
    if args.window < SMALLEST_WINDOW:
        raise SystemExit(f"--window is {args.window}, but at least {SMALLEST_WINDOW} is needed.")
    for name in ("max_nodules", "num_inference_steps", "num_pictures"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise SystemExit(f"--{name} is {getattr(args, name)}, but at least 1 is needed.")
    if args.streaming:
        raise SystemExit("--streaming: nodules are drawn from all over the split; it cannot be evaluated as a stream.")
    return args


def read_windows(split: Dataset, edge: int, max_nodules: int | None) -> list[NoduleWindow]:
    """The windows around the first rated nodules of a split.

    Raises:
        ValueError: where there is none.
    """
    windows = list(nodule_windows(split, edge))
    if not windows:
        raise ValueError(f"the split has no slice of at least {edge}x{edge} pixels with a nodule, but one is needed.")
    rated = [window for window in windows if all(window.ratings[feature] for feature in NODULE_FEATURES)]
    if not rated:
        raise ValueError("the split has nodules without ratings only, which say nothing of control.")
    return rated[:max_nodules]


def open_guided_pipeline(path: str | Path) -> LSDMGuidedPipeline:
    """The pipeline that is evaluated.

    Raises:
        ValueError: for one that lacks a classifier.
    """
    pipe = open_pipeline(path)
    missing = [feature for feature in NODULE_FEATURES if feature not in guidable_features(pipe)]
    if missing:
        needed = ", ".join(NODULE_FEATURES)
        raise ValueError(f"the pipeline has no {missing[0]}_classifier, but all of {needed} are needed.")
    return pipe


def chosen_arms(args: argparse.Namespace, with_ratings: bool) -> list[Arm]:
    """The arms that the flags ask for, of a U-Net that sees ratings or not."""
    feature_scales = {args.feature_scale, *(FULL_SCALES if args.full else ())}
    return planned_arms(
        sorted(set(args.scales)),
        sorted(feature_scales),
        args.sham_scale,
        args.shuffled_classifier is not None,
        sorted(set(args.contrast_scales)),
        sorted(set(args.rating_scales)) if with_ratings else (),
    )


def describe_setting(args: argparse.Namespace, pipe: LSDMGuidedPipeline, windows: Sequence[NoduleWindow]) -> str:
    """How the images were made and judged, in a paragraph."""
    setting = (
        f"{type(pipe.scheduler).__name__}, {args.num_inference_steps} steps, seed {args.seed}. Judge: logistic and "
        "ridge regression on features of EfficientNet-Lite0 (ImageNet, frozen) and the measures. Intervals: 95%, "
        "from a bootstrap over the nodules' patients."
    )
    if any(window.slice_patient_id != window.patient_id for window in windows):  # a recipe pastes nodules into slices
        slice_patients = Counter(window.slice_patient_id for window in windows)
        setting += (
            f" The nodules lie in slices of {len(slice_patients)} patients, {max(slice_patients.values())} of the "
            f"{len(windows)} nodules in slices of the same patient; the intervals do not know of this."
        )
    return setting


def main() -> None:
    args = parse_args()
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    dataset = args.dataset_name or args.train_data_dir
    try:
        splits = open_splits(dataset, False, args.max_train_samples, args.seed, args.split, needed=[])
    except ValueError as error:
        raise SystemExit(str(error)) from None
    try:
        windows = read_windows(splits[args.split], args.window, args.max_nodules)
        if accelerator.is_main_process:  # before any image is made
            extractor = feature_extractor("efficientnet").to(accelerator.device)
            real = read_real_nodules(splits[args.split])
            descriptors = describe_nodules(real.hu, real.drawn, real.pixel_spacing, extractor)
            judge = NoduleJudge(descriptors, real.ratings, real.patients)
    except (RuntimeError, ValueError) as error:
        raise SystemExit(f"--split {args.split} cannot be evaluated: {error}") from None

    source = args.pretrained_model_name_or_path or small_checkpoint()
    try:
        pipe = open_guided_pipeline(source).to(accelerator.device)
    except ValueError as error:
        raise SystemExit(f"--pretrained_model_name_or_path {source}: {error}") from None
    arms = chosen_arms(args, pipe.unet.config.rating_channels > 0)
    shuffled = None
    if args.shuffled_classifier is not None:
        shuffled = NoduleClassifier.from_pretrained(args.shuffled_classifier).eval().to(accelerator.device)

    run = data_identity(dataset, splits, args.split)
    run |= {name: getattr(args, name) for name in ("num_inference_steps", "window", "seed", "mixed_precision")}
    run |= {"weights": weights_digest(pipe)}
    try:
        check_run(accelerator, args.output_dir, run)
    except ValueError as error:
        raise SystemExit(f"--output_dir: {error}") from None

    sampler = ArmSampler(pipe, shuffled, args.output_dir, args.num_inference_steps, args.mixed_precision, args.seed)
    if not args.analyse_only:
        sampler.sample_missing(accelerator, windows, arms)
    if not accelerator.is_main_process:
        return

    complete = sampler.complete(windows, arms)
    if not complete:
        raise SystemExit(f"--output_dir {args.output_dir} has no nodules to analyse; leave --analyse_only out.")
    nodules, measurements = measure_arms(
        complete, arms, lambda arm: sampler.read(complete, arm), judge, extractor, pipe
    )
    real_measurements = measure_real_nodules(real, judge, descriptors, extractor, pipe)
    results = ControlResults(nodules, measurements, real, real_measurements, args.feature_scale, args.sham_scale)
    print(write_report(results, describe_setting(args, pipe, complete), args.output_dir, args.num_pictures))


if __name__ == "__main__":
    main()
