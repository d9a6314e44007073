r"""Train a noise-aware classifier of one nodule feature (thesis, Fig. 3.4 and section 4.2).

    accelerate launch training/train_classifier.py --dataset_name lung-ct-small-data \
        --pretrained_vae lung-ct-small/vae --feature malignancy --output_dir lung-ct-small/malignancy_classifier

    # another feature, beginning with the weights of the first classifier
    accelerate launch training/train_classifier.py --dataset_name lung-ct-small-data \
        --pretrained_vae lung-ct-small/vae --feature texture --output_dir lung-ct-small/texture_classifier \
        --pretrained_classifier lung-ct-small/malignancy_classifier

A crop around a rated nodule is encoded, noised at a random timestep t and decoded. The classifier sees the decoded
crop and t. It learns malignancy in two classes by cross-entropy, the other ratings by mean squared error. The whole
ratings 1..5 are drawn with equal probability, unless --label_balance is below 1.

Scanner, reconstruction kernel and autoencoder change the density and sharpness of nodules. --contrast_jitter and
--sharpness_jitter keep the classifier from judging by them, so that its guidance changes size and shape instead.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from diffusers import AutoencoderKL, DDPMScheduler
from diffusers.optimization import get_scheduler
from scipy.ndimage import gaussian_filter
from tqdm.auto import tqdm

from lsdm_diffusers import NoduleClassifier
from lsdm_diffusers.data.dataset import nodule_crops, rows_with_nodules
from lsdm_diffusers.evaluation.agreement import rating_agreement
from lsdm_diffusers.hounsfield import scaled_hu
from lsdm_diffusers.hub.publishing import add_hub_arguments, open_model_repository, upload_model, write_model_card
from lsdm_diffusers.latents import decode_latents, encode_pixels
from lsdm_diffusers.models.nodule_classifier import OBJECTIVES
from lsdm_diffusers.nodule_features import (
    BENIGN_CLASS,
    HIGHEST_RATING,
    LOWEST_RATING,
    MALIGNANT_CLASS,
    NODULE_FEATURES,
    is_malignant,
    whole_rating,
)
from lsdm_diffusers.training.data import add_data_arguments, open_splits
from lsdm_diffusers.training.run_arguments import RunSettings, add_optimisation_arguments, add_run_arguments
from lsdm_diffusers.training.runs import TrainingRun

VALIDATION_TIMESTEPS = (20, 50, 200, 500, 800)
ENCODING_BATCH_SIZE = 64  # nodule crops; also that of validation
LUNG_HU = -850  # contrast is jittered above the density of lung, so that lung itself keeps its density
NUM_FLIPS_AND_TURNS = 8  # four quarter turns, mirrored or not
BLUR_PIXELS = 1  # standard deviation of the blur that the sharpness jitter amplifies or takes away


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = add_data_arguments(parser)
    data.add_argument(
        "--augmentation_views",
        type=int,
        default=8,
        help="Number of views of each crop that are encoded, at least 1: the eight flips and quarter turns in turn, "
        "each view with its own jitter. Default: %(default)s.",
    )
    data.add_argument(
        "--contrast_jitter",
        type=float,
        nargs=2,
        default=[1.0, 1.0],
        metavar=("LOW", "HIGH"),
        help="In each view, the contrast of what is denser than lung is multiplied by a factor from this range, whose "
        "logarithm is uniform. Default: 1 1, no jitter.",
    )
    data.add_argument(
        "--sharpness_jitter",
        type=float,
        default=0.0,
        help="In each view, a * (crop - blurred crop) is added to the crop, with a uniform between minus and plus "
        "this number. Default: %(default)s, no jitter.",
    )
    data.add_argument(
        "--label_balance",
        type=float,
        default=1.0,
        help="A whole rating that n crops have is drawn with probability ~ n^(1 - this number): 1 draws all ratings "
        "alike, 0 as often as they occur. Default: %(default)s.",
    )
    data.add_argument(
        "--shuffle_labels",
        action="store_true",
        help="Permute the ratings among the training nodules, as a control. Validation uses the true ratings.",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--pretrained_vae", type=Path, required=True, help="Folder of the trained autoencoder.")
    model.add_argument(
        "--pretrained_classifier",
        type=Path,
        default=None,
        help="Folder of a classifier of the same sizes whose weights the training begins with, except for the head.",
    )
    model.add_argument("--feature", choices=NODULE_FEATURES, required=True, help="The rated feature to learn.")
    model.add_argument(
        "--objective",
        choices=OBJECTIVES,
        help="What the classifier predicts: two classes or the rating. Default: classification for malignancy, "
        "regression for the others.",
    )
    model.add_argument(
        "--block_out_channels",
        type=int,
        nargs="+",
        default=[24, 48, 72, 96],
        help="Channels of each level. Each level but the last halves the size; four take 64x64 pixels to 8x8. "
        "Default: 24 48 72 96.",
    )
    model.add_argument(
        "--norm_num_groups",
        type=int,
        default=12,
        help="Groups of the group normalisation, a divisor of all channel numbers. Default: %(default)s.",
    )
    model.add_argument(
        "--attention_head_dim",
        type=int,
        default=24,
        help="Channels of an attention head, a divisor of the last channel number. Default: %(default)s.",
    )
    model.add_argument(
        "--dropout", type=float, default=0.1, help="Dropout in the ResNet blocks, 0..1. Default: %(default)s."
    )
    model.add_argument(
        "--num_train_timesteps",
        type=int,
        default=1000,
        help="Steps of the noise schedule, which must be that of the U-Net. Default: %(default)s.",
    )
    model.add_argument(
        "--hu_thresholds",
        type=float,
        nargs="*",
        default=[],
        help="Densities in HU. For each, a smooth step of the crop at this density is a further input channel. "
        "Default: none.",
    )
    model.add_argument(
        "--timestep_power",
        type=float,
        default=1.0,
        help="Timesteps are T * u^this number with u uniform in 0..1: 1 draws all noise levels alike, 2 draws more "
        "low ones. Default: %(default)s.",
    )
    optimisation = add_optimisation_arguments(
        parser,
        batch="nodule crops per process and backward pass",
        train_batch_size=32,
        learning_rate=5e-4,
        lr_scheduler="cosine",
        lr_warmup_steps=50,
        mixed_precision="no",
    )
    optimisation.add_argument(
        "--adam_weight_decay", type=float, default=1e-2, help="Weight decay of AdamW. Default: %(default)s."
    )
    optimisation.add_argument(
        "--label_smoothing",
        type=float,
        default=0.0,
        help="Label smoothing of the two classes, 0..1. It makes the classifier, and so its guidance, less "
        "overconfident. Default: %(default)s.",
    )
    add_run_arguments(
        parser,
        contents="checkpoints, weights, log.jsonl and validation.json",
        validation_steps=250,
        checkpointing_steps=500,
    )
    add_hub_arguments(parser)
    args = parser.parse_args()
    args.objective = args.objective or ("classification" if args.feature == "malignancy" else "regression")
    check_arguments(args)
    return args


def check_arguments(args: argparse.Namespace) -> None:
    if args.augmentation_views < 1:
        raise SystemExit(f"--augmentation_views is {args.augmentation_views}, but at least 1 is needed.")
    if not 0 < args.contrast_jitter[0] <= args.contrast_jitter[1]:
        raise SystemExit(f"--contrast_jitter is {args.contrast_jitter}, but 0 < LOW <= HIGH is needed.")
    if args.sharpness_jitter < 0:
        raise SystemExit(f"--sharpness_jitter is {args.sharpness_jitter}, but at least 0 is needed.")
    if not 0 <= args.label_smoothing <= 1:
        raise SystemExit(f"--label_smoothing is {args.label_smoothing}, but 0..1 is needed.")
    if args.label_smoothing and args.objective == "regression":
        raise SystemExit(
            f"--label_smoothing is {args.label_smoothing}, but --objective regression has no classes to smooth."
        )


def check_ratings(splits: Mapping[str, Dataset | IterableDataset], feature: str) -> None:
    """Check the ratings of training and validation, before any image is decoded. A stream is checked as it is read.

    Raises:
        ValueError: for a split without nodules, or with a nodule without a rating 1..5.
    """
    for name in ("train", "validation"):
        split = splits[name]
        if isinstance(split, IterableDataset):
            continue
        ratings: list[float | None] = []
        for nodules in rows_with_nodules(split)["nodules"]:
            ratings += [nodule[feature] for nodule in nodules]
        if not ratings:
            raise ValueError(f"`--dataset_name` has no nodules in the split {name}, but rated ones are needed there.")
        unrated = sum(not is_rating(rating) for rating in ratings)
        if unrated:
            raise ValueError(
                f"`--dataset_name` has {unrated} of {len(ratings)} nodules in the split {name} without a rating 1..5 "
                f"of {feature}, but each nodule needs one; only datasets of prepare_lidc.py have ratings."
            )


def is_rating(value: float | None) -> bool:
    return value is not None and LOWEST_RATING <= value <= HIGHEST_RATING


def rated_crops(split: Dataset | IterableDataset, feature: str) -> tuple[np.ndarray, np.ndarray]:
    """The nodule crops (N, 64, 64) of a split in [-1, 1], and the rating (N,) of each.

    Raises:
        ValueError: if there is no nodule, or one without a rating 1..5.
    """
    crops, ratings = [], []
    for crop, nodule in tqdm(nodule_crops(split), desc="nodules", mininterval=5):
        rating = nodule[feature]
        if not is_rating(rating):
            raise ValueError(f"`--dataset_name` has a nodule of {feature} {rating}, but a rating 1..5 is needed.")
        crops.append(crop)
        ratings.append(rating)
    if not crops:
        raise ValueError("`--dataset_name` has a split without rated nodules, but training and validation need some.")
    return np.stack(crops), np.array(ratings)


def jittered(
    pixels: np.ndarray, contrast: tuple[float, float], sharpness: float, generator: np.random.Generator
) -> np.ndarray:
    """Change sharpness and contrast of each crop by random amounts.

    Args:
        pixels: crops (N, H, W) in [-1, 1].
        contrast: range of the factor by which the density above that of lung is multiplied.
        sharpness: largest amount of the difference from the blurred crop that is added or taken away.
        generator: the random generator.
    """
    shape = (len(pixels), 1, 1)
    amount = generator.uniform(-sharpness, sharpness, size=shape).astype(np.float32)
    pixels = pixels + amount * (pixels - gaussian_filter(pixels, sigma=(0, BLUR_PIXELS, BLUR_PIXELS)))
    low, high = np.log(contrast)
    factor = np.exp(generator.uniform(low, high, size=shape)).astype(np.float32)
    return (pixels + (factor - 1) * (pixels - scaled_hu(LUNG_HU)).clip(min=0)).clip(-1, 1)


def flipped_and_turned(pixels: np.ndarray, view: int) -> np.ndarray:
    """The view of crops (N, H, W): quarter turns for 0..3, the same mirrored for 4..7, and so on."""
    turned = np.rot90(pixels, view % 4, axes=(1, 2))
    return turned[:, :, ::-1] if view % NUM_FLIPS_AND_TURNS >= NUM_FLIPS_AND_TURNS // 2 else turned


@torch.no_grad()
def encode_crops(vae: AutoencoderKL, pixels: np.ndarray) -> torch.Tensor:
    """Scaled latents (N, c, h, w) of crops (N, H, W) in [-1, 1]."""
    batches = torch.from_numpy(np.ascontiguousarray(pixels))[:, None].split(ENCODING_BATCH_SIZE)
    return torch.cat([encode_pixels(vae, batch.to(vae.device)) for batch in batches])


def encode_views(
    vae: AutoencoderKL, pixels: np.ndarray, num_views: int, jitter: Callable[[np.ndarray, int], np.ndarray]
) -> torch.Tensor:
    """Scaled latents (views, N, c, h, w) of crops (N, H, W), which are jittered and then flipped and turned."""
    views = tqdm(range(num_views), desc="encode")
    return torch.stack([encode_crops(vae, flipped_and_turned(jitter(pixels, view), view)) for view in views])


def drawing_probabilities(ratings: np.ndarray, label_balance: float) -> np.ndarray:
    """The probability (N,) that each crop is drawn, by how often its whole rating occurs."""
    _, label_of_crop, counts = np.unique(whole_rating(ratings), return_inverse=True, return_counts=True)
    probability = (counts**-label_balance)[label_of_crop]
    return probability / probability.sum()


def noisy_crops(
    latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, scheduler: DDPMScheduler, vae: AutoencoderKL
) -> torch.Tensor:
    """x̃_t = D(crop(z_t)): what the classifier sees, in training and in sampling."""
    with torch.no_grad():
        return decode_latents(vae, scheduler.add_noise(latents, noise, timesteps))


@torch.no_grad()
def validate(
    classifier: NoduleClassifier,
    latents: torch.Tensor,
    ratings: np.ndarray,
    scheduler: DDPMScheduler,
    vae: AutoencoderKL,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Agreement with the ratings at each of the `VALIDATION_TIMESTEPS`, at fixed noise; NaN for a single label."""
    figures = {}
    for t in VALIDATION_TIMESTEPS:
        generator = torch.Generator().manual_seed(seed)
        outputs = []
        for batch in latents.split(ENCODING_BATCH_SIZE):
            noise = torch.randn(batch.shape, generator=generator).to(batch.device)
            timesteps = torch.full((len(batch),), t, device=batch.device)
            crops = noisy_crops(batch, noise, timesteps, scheduler, vae)
            outputs.append(classifier(crops, timesteps).prediction.float().cpu())
        output = torch.cat(outputs)
        if classifier.config.objective == "classification":
            scores = output[:, MALIGNANT_CLASS] - output[:, BENIGN_CLASS]
        else:
            scores = output
        figures[f"t{t}"] = rating_agreement(scores.double().numpy(), ratings, classifier.config.objective)
    return figures


def build_classifier(args: argparse.Namespace) -> NoduleClassifier:
    """The classifier to train, with the weights of `--pretrained_classifier` but a new head if that is given.

    Raises:
        ValueError: if those weights have other sizes.
    """
    classifier = NoduleClassifier(
        feature=args.feature,
        objective=args.objective,
        block_out_channels=args.block_out_channels,
        norm_num_groups=args.norm_num_groups,
        attention_head_dim=args.attention_head_dim,
        dropout=args.dropout,
        hu_thresholds=args.hu_thresholds,
    )
    if args.pretrained_classifier:
        weights = NoduleClassifier.from_pretrained(args.pretrained_classifier).state_dict()
        weights |= {name: tensor for name, tensor in classifier.state_dict().items() if name.startswith("head.")}
        try:
            classifier.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"--pretrained_classifier {args.pretrained_classifier} has other sizes than the flags ask for: {error}"
            ) from None
    if args.gradient_checkpointing:
        classifier.enable_gradient_checkpointing()
    return classifier.train()


def publish(args: argparse.Namespace, run: TrainingRun, figures: dict[str, dict[str, float]], repository: Any) -> None:
    """Write the model card, and upload weights and card if there is a repository."""
    write_model_card(
        args.output_dir,
        script="train_classifier.py",
        title=f"{args.feature.capitalize()} of lung nodules",
        summary=f"Noise-aware classifier of the {args.feature} of lung nodules, which guides a latent semantic "
        "diffusion model for lung CT.",
        dataset=args.dataset_name or args.train_data_dir,
        arguments=vars(args),
        step=run.step,
        figures={f"{name} at t = {t[1:]}": value for t, group in figures.items() for name, value in group.items()},
    )
    if repository:
        upload_model(repository, args.output_dir)


def main() -> None:
    args = parse_args()
    try:
        run = TrainingRun(RunSettings.from_arguments(vars(args)))
        accelerator = run.accelerator
        source = args.dataset_name or args.train_data_dir
        dataset = open_splits(source, args.streaming, args.max_train_samples, args.seed)
        check_ratings(dataset, args.feature)
        repository = open_model_repository(
            args.push_to_hub and accelerator.is_main_process,
            args.output_dir,
            args.hub_model_id,
            args.hub_token,
            args.hub_private_repo,
        )
        vae = AutoencoderKL.from_pretrained(args.pretrained_vae).requires_grad_(False).eval()
        vae.to(accelerator.device, memory_format=torch.channels_last)  # decodes faster on a CPU
        pixels, ratings = rated_crops(dataset["train"], args.feature)
        validation_pixels, validation_ratings = rated_crops(dataset["validation"], args.feature)
        classifier = build_classifier(args)
    except ValueError as error:
        raise SystemExit(f"train_classifier.py: {error}") from None

    def jitter(pixels: np.ndarray, view: int) -> np.ndarray:
        generator = np.random.default_rng((args.seed, view))
        return jittered(pixels, args.contrast_jitter, args.sharpness_jitter, generator)

    latents = encode_views(vae, pixels, args.augmentation_views, jitter)
    validation_latents = encode_crops(vae, validation_pixels)
    if args.shuffle_labels:
        ratings = np.random.default_rng(args.seed).permutation(ratings)
    probabilities = drawing_probabilities(ratings, args.label_balance)
    if args.objective == "classification":
        targets = np.where(is_malignant(ratings), MALIGNANT_CLASS, BENIGN_CLASS)
        criterion: torch.nn.Module = torch.nn.CrossEntropyLoss(label_smoothing=args.label_smoothing)
    else:
        targets, criterion = ratings.astype(np.float32), torch.nn.MSELoss()

    scheduler = DDPMScheduler(
        args.num_train_timesteps, beta_start=0.0015, beta_end=0.0205, beta_schedule="scaled_linear", clip_sample=False
    )
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=args.learning_rate, weight_decay=args.adam_weight_decay)
    schedule = get_scheduler(
        args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps
    )
    classifier, optimizer = accelerator.prepare(classifier, optimizer)
    model = accelerator.unwrap_model(classifier)
    run.start(model, [schedule], "lsdm-classifier", vars(args))

    def validate_and_save() -> dict[str, dict[str, float]]:
        with run.averaged_weights():
            figures = validate(model, validation_latents, validation_ratings, scheduler, vae, args.seed)
            model.save_pretrained(args.output_dir)
        run.log(figures)
        return figures

    figures: dict[str, dict[str, float]] = {}
    while run.step < args.max_train_steps:
        # these draws depend on seed and batch number only, so that a resumed run sees the same data
        draw = np.random.default_rng((args.seed, run.batch_number))
        chosen = draw.choice(len(probabilities), size=args.train_batch_size, p=probabilities)
        batch = latents[draw.integers(len(latents), size=len(chosen)), chosen]
        generator = run.noise_generator()
        noise = torch.randn(batch.shape, generator=generator).to(batch.device)
        share_of_steps = torch.rand(len(batch), generator=generator) ** args.timestep_power
        timesteps = (share_of_steps * args.num_train_timesteps).long().to(batch.device)
        with accelerator.autocast():
            images = noisy_crops(batch, noise, timesteps, scheduler, vae).float()
        target = torch.from_numpy(targets[chosen]).to(batch.device)
        with accelerator.accumulate(classifier):
            # the prepared model, not `log_prob`: only its forward pass keeps several processes in step
            loss = criterion(classifier(images, timesteps).prediction.float(), target)
            run.check_finite(loss=loss)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(classifier.parameters(), args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        if run.advance({"loss": loss}) and run.validation_is_due:
            figures = validate_and_save()

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        figures = figures or validate_and_save()
        run.write_validation(figures)
        publish(args, run, figures, repository)
    accelerator.end_training()


if __name__ == "__main__":
    main()
