"""Train the SPADE U-Net of the latent semantic diffusion model (thesis, eq. 3.1, Algorithm 1) and save the whole pipeline.

    accelerate launch training/train_unet.py --dataset_name lung-ct-small-data --pretrained_vae lung-ct-small/vae \
        --output_dir lung-ct-small/unet --block_out_channels 32 64 128 192 --attention_levels 0 0 0 1 --layers_per_block 1 \
        --norm_num_groups 16 --attention_head_dim 16 --spade_hidden_channels 24 --prediction_type v_prediction

Every row is encoded once (`--random_flip`: half of them mirrored) and kept in `<output_dir>/latents`, unless `--no-cache_latents`; training
draws crops of those latents, so that what it sees is what whole-slice sampling sees. Where a recipe's dataset has crops around nodules
(`kind` nodule), `--nodule_probability` of the steps takes those.
`--spade_blocks none` trains the LDM baseline.
"""

import argparse
import hashlib
import json
import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel, compute_snr
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from lsdm_diffusers import LSDMGuidedPipeline, SpadeUNet2DModel
from lsdm_diffusers.data.dataset import pixels_of, row_kinds
from lsdm_diffusers.hub.publishing import (
    add_hub_arguments,
    forget_origins,
    open_model_repository,
    upload_model,
    write_model_card,
)
from lsdm_diffusers.labels import NUM_LABELS, PALETTE, SemanticLabel
from lsdm_diffusers.training.data import add_data_arguments, crop_corner, open_splits, rows_of_kind, spread_rows

NUM_VALIDATION_ROWS = 32  # of each kind, for the validation loss


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = add_data_arguments(parser)
    data.add_argument(
        "--crop_size", type=int, default=512, help="edge of the random crops of slices, pixels; 512 is whole slices"
    )
    data.add_argument(
        "--cache_latents",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="encode every row once, to disk, and keep the latents in memory (0.3 MB a slice of 512x512); off: encode rows as they are drawn",
    )
    data.add_argument("--random_flip", action="store_true", help="mirror half of the rows, left to right")
    data.add_argument(
        "--blank_background", action="store_true", help="set table and clothes, which no label tells, to -1024 HU"
    )
    data.add_argument(
        "--nodule_probability", type=float, default=0.25, help="share of the steps that take crops around nodules"
    )
    model = parser.add_argument_group("model")
    model.add_argument("--pretrained_vae", type=Path, required=True, help="folder of the trained autoencoder")
    model.add_argument(
        "--pretrained_unet",
        type=Path,
        default=None,
        help="go on from this U-Net; its own sizes hold, not the flags below",
    )
    model.add_argument(
        "--block_out_channels",
        type=int,
        nargs="+",
        default=[128, 256, 384],
        help="widths, multiples of --norm_num_groups; each level but the last halves the size",
    )
    model.add_argument(
        "--attention_levels", type=int, nargs="+", default=[0, 0, 1], help="1 for each level with self-attention"
    )
    model.add_argument("--layers_per_block", type=int, default=2, help="ResNet blocks of a level")
    model.add_argument("--norm_num_groups", type=int, default=32, help="groups of the group norms")
    model.add_argument(
        "--attention_head_dim", type=int, default=32, help="channels of an attention head, a divisor of the widths"
    )
    model.add_argument(
        "--spade_blocks",
        choices=["all", "mid_up", "up", "none"],
        default="all",
        help="where the map modulates; none is the LDM baseline",
    )
    model.add_argument(
        "--spade_hidden_channels", type=int, default=128, help="of the convolution from the map to gamma and beta"
    )
    model.add_argument(
        "--prediction_type",
        choices=["epsilon", "v_prediction"],
        default="epsilon",
        help="what the U-Net predicts: the noise, or v (Salimans and Ho 2022)",
    )
    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument(
        "--train_batch_size",
        type=int,
        default=8,
        help="slice crops a step; nodule crops fill the same number of pixels",
    )
    optimisation.add_argument("--max_train_steps", type=int, default=100000, help="optimiser steps")
    optimisation.add_argument("--learning_rate", type=float, default=1e-4, help="after warm-up")
    optimisation.add_argument(
        "--lr_scheduler", default="constant_with_warmup", help="a name that diffusers.optimization.get_scheduler knows"
    )
    optimisation.add_argument("--lr_warmup_steps", type=int, default=100, help="optimiser steps")
    optimisation.add_argument("--adam_weight_decay", type=float, default=1e-2, help="of AdamW")
    optimisation.add_argument("--nodule_weight", type=float, default=1.0, help="loss weight of nodule latents")
    optimisation.add_argument(
        "--snr_gamma", type=float, default=None, help="min-SNR weighting of the loss (Hang et al. 2023); 5 is usual"
    )
    optimisation.add_argument(
        "--label_dropout",
        type=float,
        default=0.0,
        help="share of samples whose map is dropped: half of them whole, half of them one label, which becomes background",
    )
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
        "--ema_max_decay", type=float, default=0.9999, help="limit of the ramp (1 + n) / (10 + n)"
    )
    optimisation.add_argument("--seed", type=int, default=0, help="of weights, draws and noise")
    run = parser.add_argument_group("run")
    run.add_argument(
        "--output_dir", type=Path, required=True, help="for checkpoints, latents, log.jsonl, pictures and pipeline/"
    )
    run.add_argument(
        "--latents_dir", type=Path, default=None, help="where the encoded rows are kept; default <output_dir>/latents"
    )
    run.add_argument("--validation_steps", type=int, default=500, help="validate and save every so many steps")
    run.add_argument("--num_validation_images", type=int, default=2, help="samples in each validation-N.png")
    run.add_argument("--checkpointing_steps", type=int, default=250, help="write checkpoint-N every so many steps")
    run.add_argument("--checkpoints_total_limit", type=int, default=2, help="how many checkpoint-N are kept")
    run.add_argument(
        "--resume_from_checkpoint", default=None, help='a folder "checkpoint-N"; "latest" starts anew if there is none'
    )
    run.add_argument("--report_to", default=None, help="tensorboard, wandb or trackio")
    add_hub_arguments(parser)
    return parser.parse_args()


def source_of(vae, split, args):
    """A hash of what the encoded rows depend on: autoencoder, flags, and the data, by its size and a few of its rows."""
    digest = hashlib.sha256(b"".join(tensor.cpu().numpy().tobytes() for tensor in vae.state_dict().values()))
    if args.streaming:
        size, few = [args.streaming, args.max_train_samples], split.take(3)
    else:
        size, few = len(split), split.select(sorted({0, len(split) // 2, len(split) - 1}))
    digest.update(repr([args.seed, args.random_flip, args.blank_background, vae.config.scaling_factor, size]).encode())
    for row in few.select_columns(["image", "semantic_map"]):
        digest.update(row["image"].tobytes() + row["semantic_map"].tobytes())
    return digest.hexdigest()


@torch.no_grad()
def encode_row(row, index, kind, vae, args):
    """Latents of the image and of the map (both scaled), and the map at latent resolution; by --random_flip, half of the rows are mirrored."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    labels = np.asarray(row["semantic_map"])
    pixels = pixels_of(row["image"], labels, args.blank_background and kind != "nodule")
    if args.random_flip and np.random.default_rng((args.seed, index)).integers(2):
        pixels, labels = pixels[:, ::-1], labels[:, ::-1]
    both = torch.from_numpy(np.stack([pixels, labels * np.float32(2 / (NUM_LABELS - 1)) - 1]))[:, None]
    encoded = (vae.encode(both.to(vae.device)).latent_dist.mode() * vae.config.scaling_factor).half().cpu()
    small = torch.nn.functional.max_pool2d(torch.from_numpy(labels.copy()).float()[None, None], factor)[0, 0]
    return {"latents": encoded[0], "map_latents": encoded[1], "labels": small.to(torch.uint8)}


def checked(row, shape):
    """The encoded row, if it is of this shape."""
    if row["labels"].shape != shape:
        raise ValueError(
            f"`--dataset_name` has slices of {tuple(shape)} and of {tuple(row['labels'].shape)} latents, but training needs one size."
        )
    return row


class EncodedRows:
    """Rows of one size, encoded each time that one is asked for."""

    def __init__(self, split, vae, args):
        self.split, self.vae, self.args = split, vae, args
        self.kinds = row_kinds(split)
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        width, height = split[0]["semantic_map"].size
        self.shape = height // factor, width // factor

    def __len__(self):
        return len(self.split)

    def __getitem__(self, index):
        return checked(encode_row(self.split[index], index, self.kinds[index], self.vae, self.args), self.shape)


class CachedRows:
    """Encoded rows of one size, stacked, in memory."""

    def __init__(self, rows):
        self.rows = rows
        self.shape = tuple(rows["labels"].shape[1:])

    def __len__(self):
        return len(self.rows["labels"])

    def __getitem__(self, index):
        return {name: tensor[index] for name, tensor in self.rows.items()}


def encoded(split, limit, vae, args):
    """Rows of kind "nodule" and all others, at most `limit` of each, encoded and stacked; a kind of which there are none is absent."""
    rows = {"nodules": [], "slices": []}
    for row in tqdm(split, desc="encode", mininterval=5):
        kind = row.get("kind", "slice")
        of_kind = rows["nodules" if kind == "nodule" else "slices"]
        if limit is None or len(of_kind) < limit:
            of_kind.append(encode_row(row, len(of_kind), kind, vae, args))
            checked(of_kind[-1], of_kind[0]["labels"].shape)
        elif "kind" not in row or min(map(len, rows.values())) == limit:
            break
    return {
        name: {part: torch.stack([row[part] for row in some]) for part in some[0]}
        for name, some in rows.items()
        if some
    }


def training_batch(pools, step, args, factor):
    """Crops of latents for one step, drawn from the step's own random generator, so that a resumed run sees the same data."""
    generator = np.random.default_rng((args.seed, step))
    from_nodules = "nodules" in pools and ("slices" not in pools or generator.random() < args.nodule_probability)
    pool = pools["nodules" if from_nodules else "slices"]
    height, width = pool.shape
    edge = min(args.crop_size // factor, height, width)
    count = (
        args.train_batch_size * max(1, (args.crop_size // factor // edge) ** 2)
        if from_nodules
        else args.train_batch_size
    )
    batch = []
    for index in generator.integers(len(pool), size=count):
        row = pool[int(index)]
        y, x = crop_corner(row["labels"].numpy(), edge, generator)
        batch.append({name: tensor[..., y : y + edge, x : x + edge] for name, tensor in row.items()})
    return stacked(batch)


def stacked(rows):
    """A batch of encoded rows as the U-Net takes them."""
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return {name: tensor.long() if name == "labels" else tensor.float() for name, tensor in batch.items()}


def drop_labels(batch, share, generator):
    """Drop the map of `share` of the samples, half of them whole, half of them one of its labels: background in SPADE, 0 in E(m)."""
    for labels, map_latents in zip(batch["labels"], batch["map_latents"], strict=True):
        if generator.random() < share:
            whole = generator.random() < 0.5
            gone = (
                torch.ones_like(labels, dtype=torch.bool)
                if whole
                else labels == generator.choice(labels.unique().numpy())
            )
            labels[gone] = SemanticLabel.BACKGROUND
            map_latents[:, gone] = 0


def diffusion_loss(unet, batch, noise, timesteps, scheduler, nodule_weight=1.0, snr_gamma=None):
    """Eq. 3.1, for the noise or for v. Weighting nodule latents leaves the optimum as it is: the map, a condition, sets the weight."""
    noisy = scheduler.add_noise(batch["latents"], noise, timesteps)
    output = unet(torch.cat([noisy, batch["map_latents"]], dim=1), timesteps, semantic_map=batch["labels"]).sample
    v_prediction = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(batch["latents"], noise, timesteps) if v_prediction else noise
    weight = 1 + (nodule_weight - 1) * (batch["labels"] >= SemanticLabel.NODULE_BENIGN)[:, None].float()
    if snr_gamma is not None:  # min(SNR, gamma), the weight of x0, in terms of the noise or of v
        snr = compute_snr(scheduler, timesteps)
        weight = weight * (snr.clamp(max=snr_gamma) / (snr + 1 if v_prediction else snr))[:, None, None, None]
    return (weight * (output.float() - target) ** 2).mean()


@torch.no_grad()
def validation_loss(unet, pools, scheduler, args):
    """Mean loss over validation rows, four at a time, at fixed noise and timesteps."""
    losses = []
    for pool in pools:
        generator = torch.Generator().manual_seed(args.seed)
        for index in range(0, len(pool), 4):
            batch = stacked([pool[i] for i in range(index, min(index + 4, len(pool)))])
            noise = torch.randn(batch["latents"].shape, generator=generator)
            timesteps = torch.linspace(50, 950, len(noise)).long()
            batch = {k: v.to(unet.device) for k, v in batch.items()}
            losses.append(
                diffusion_loss(unet, batch, noise.to(unet.device), timesteps.to(unet.device), scheduler).item()
            )
    return float(np.mean(losses))


def validation_picture(pipeline, maps, path):
    """Samples for `maps` beside the maps."""
    if not maps:
        return
    images = [
        np.concatenate([PALETTE[m], np.stack([np.asarray(image)] * 3, -1)])
        for m, image in maps_and_samples(pipeline, maps)
    ]
    Image.fromarray(np.concatenate(images, axis=1)).save(path)


def maps_and_samples(pipeline, maps):
    pipeline.set_progress_bar_config(disable=True)
    for semantic_map in maps:
        generator = torch.Generator().manual_seed(0)
        yield semantic_map, pipeline(semantic_map, num_inference_steps=20, generator=generator).images[0]


def main():
    args = parse_args()
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=args.report_to,
        project_dir=args.output_dir,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(days=1))
        ],  # the other processes wait while one encodes the rows
    )
    if not 0 <= args.label_dropout <= 1:
        raise SystemExit(f"--label_dropout is {args.label_dropout}, but 0..1 is needed.")
    if args.snr_gamma is not None and args.snr_gamma <= 0:
        raise SystemExit(f"--snr_gamma is {args.snr_gamma}, but a number above 0 is needed.")
    if args.streaming and not args.cache_latents:
        raise SystemExit(
            "--streaming goes through the rows once, to encode them; it cannot be used with --no-cache_latents."
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
    latents_dir = args.latents_dir or args.output_dir / "latents"

    vae = AutoencoderKL.from_pretrained(args.pretrained_vae).requires_grad_(False).eval().to(accelerator.device)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    dataset = open_splits(args)
    pools = {}
    for split, rows in dataset.items():
        if split == "train" and not args.cache_latents:
            of_kind = {
                "nodules": np.flatnonzero(row_kinds(rows) == "nodule"),
                "slices": np.flatnonzero(row_kinds(rows) != "nodule"),
            }
            pools[split] = {
                name: EncodedRows(rows.select(chosen), vae, args) for name, chosen in of_kind.items() if len(chosen)
            }
            continue
        file = latents_dir / f"{split}.safetensors"
        with accelerator.main_process_first():
            source = source_of(vae, rows, args)
            if not file.exists():
                pool = encoded(rows, None if split == "train" else NUM_VALIDATION_ROWS, vae, args)
                latents_dir.mkdir(parents=True, exist_ok=True)
                tensors = {f"{name}.{part}": tensor for name, parts in pool.items() for part, tensor in parts.items()}
                save_file(tensors, f"{file}.part", {"source": source})
                Path(f"{file}.part").rename(file)  # an interrupted run leaves no half file behind
            with safe_open(file, "pt") as saved:
                if (saved.metadata() or {}).get("source") != source:
                    raise SystemExit(
                        f"{file} was encoded by another autoencoder, from other data or with other flags; remove it."
                    )
                pools[split] = {
                    name: CachedRows(
                        {part: saved.get_tensor(f"{name}.{part}") for part in ("latents", "map_latents", "labels")}
                    )
                    for name in ("slices", "nodules")
                    if f"{name}.labels" in saved.keys()
                }
    whole = rows_of_kind(dataset["validation"], lambda kind: kind != "nodule")
    with_nodules = spread_rows(whole.filter(bool, input_columns="nodules"), args.num_validation_images)
    validation_maps = [
        np.asarray(row["semantic_map"]) for row in with_nodules or spread_rows(whole, args.num_validation_images)
    ]

    if args.pretrained_unet is not None:
        unet = SpadeUNet2DModel.from_pretrained(args.pretrained_unet)
    else:
        unet = SpadeUNet2DModel(
            sample_size=512 // factor,
            in_channels=2 * vae.config.latent_channels,
            out_channels=vae.config.latent_channels,
            block_out_channels=args.block_out_channels,
            attention_levels=[bool(attend) for attend in args.attention_levels],
            layers_per_block=args.layers_per_block,
            norm_num_groups=args.norm_num_groups,
            attention_head_dim=args.attention_head_dim,
            spade_blocks=args.spade_blocks,
            spade_hidden_channels=args.spade_hidden_channels,
        )
    unet.train()
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.0015,
        beta_end=0.0205,
        clip_sample=False,
        prediction_type=args.prediction_type,
    )
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.learning_rate, weight_decay=args.adam_weight_decay)
    schedule = get_scheduler(
        args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps
    )
    ema = EMAModel(unet.parameters(), decay=args.ema_max_decay if args.use_ema else 0)  # decay 0 follows the weights
    unet, optimizer = accelerator.prepare(unet, optimizer)
    ema.to(accelerator.device)
    accelerator.register_for_checkpointing(ema, schedule)
    if args.report_to:
        accelerator.init_trackers("lsdm-unet", config={k: str(v) for k, v in vars(args).items()})

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

    model = accelerator.unwrap_model(unet)

    def pipeline():
        # Karras et al. 2022: more of the steps at little noise, which gives soft tissue its texture
        sampler = DPMSolverMultistepScheduler.from_config(scheduler.config, use_karras_sigmas=True)
        return LSDMGuidedPipeline(vae=vae, unet=model, scheduler=sampler)

    log = open(args.output_dir / "log.jsonl", "a") if accelerator.is_main_process else None
    progress = tqdm(
        total=args.max_train_steps, initial=step, disable=not accelerator.is_local_main_process, mininterval=5
    )
    recent, figures = [], {}
    micro_step = step * args.gradient_accumulation_steps
    while step < args.max_train_steps:
        data_step = micro_step * accelerator.num_processes + accelerator.process_index
        batch = training_batch(pools["train"], data_step, args, factor)
        if args.label_dropout:
            drop_labels(batch, args.label_dropout, np.random.default_rng((args.seed, data_step, 1)))
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + data_step)
        noise = torch.randn(batch["latents"].shape, generator=generator).to(accelerator.device)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(noise),), generator=generator).to(
            accelerator.device
        )
        batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        with accelerator.accumulate(unet):
            loss = diffusion_loss(unet, batch, noise, timesteps, scheduler, args.nodule_weight, args.snr_gamma)
            if not torch.isfinite(loss):
                raise RuntimeError(
                    f"The loss is {loss.item()} at step {step}; the last good checkpoint is in {args.output_dir}."
                )
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(unet.parameters(), args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        micro_step += 1
        if not accelerator.sync_gradients:
            continue
        schedule.step()
        ema.step(model.parameters())
        step += 1
        recent.append(loss.item())
        progress.update()
        progress.set_postfix(loss=float(np.mean(recent[-50:])), refresh=False)
        accelerator.log({"loss": loss.item()}, step=step)
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
            ema.store(model.parameters())
            ema.copy_to(model.parameters())
            model.eval()
            held_out = validation_loss(model, pools["validation"].values(), scheduler, args)
            figures = {"train_loss": float(np.mean(recent[-200:])), "validation_loss": held_out}
            validation_picture(pipeline(), validation_maps, args.output_dir / f"validation-{step}.png")
            pipeline().save_pretrained(args.output_dir / "pipeline")
            ema.restore(model.parameters())
            model.train()
            accelerator.log(figures, step=step)
            elapsed = {"step": step, "seconds": round(progress.format_dict["elapsed"]), **figures}
            print(json.dumps(elapsed), file=log, flush=True)
            tqdm.write(str(elapsed))

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        ema.copy_to(model.parameters())
        model.eval()
        pipeline().save_pretrained(args.output_dir / "pipeline")
        folder, picture = args.output_dir / "pipeline", args.output_dir / f"validation-{step}.png"
        forget_origins(folder)
        if picture.is_file():
            shutil.copy(picture, folder / "validation.png")
        example = "from lsdm_diffusers import LSDMGuidedPipeline\n\n"
        example += (
            f'pipe = LSDMGuidedPipeline.from_pretrained("{repository[1] if repository else "path or Hub id"}")\n'
        )
        example += 'pipe("map.png").images[0].save("ct.png")'
        summary = "Latent semantic diffusion model for lung CT: a slice from a semantic map."
        write_model_card(
            folder,
            script="train_unet.py",
            title="Lung CT from semantic maps",
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
