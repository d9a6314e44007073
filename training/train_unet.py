r"""Train the SPADE U-Net of the latent semantic diffusion model (thesis, eq. 3.1, Algorithm 1) and save the pipeline.

    accelerate launch training/train_unet.py --dataset_name lung-ct-small-data --pretrained_vae lung-ct-small/vae \
        --output_dir lung-ct-small/unet --block_out_channels 32 64 128 192 --attention_levels 0 0 0 1 \
        --layers_per_block 1 --norm_num_groups 16 --attention_head_dim 16 --spade_hidden_channels 24 \
        --prediction_type v_prediction

    # the LDM baseline: the same U-Net without SPADE
    accelerate launch training/train_unet.py --dataset_name lung-ct-small-data --pretrained_vae lung-ct-small/vae \
        --output_dir lung-ct-small/ldm --spade_blocks none

Every row is encoded once and kept in <output_dir>/latents. Training draws crops of these latents, so that it sees the
latents of whole slices, as sampling does. If the dataset has crops around nodules (rows of `kind` nodule), a share of
the steps, --nodule_probability, is trained on them.
"""

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_snr
from PIL import Image

from lsdm_diffusers import LSDMGuidedPipeline, SpadeUNet2DModel
from lsdm_diffusers.hub.publishing import (
    add_hub_arguments,
    forget_origins,
    open_model_repository,
    upload_model,
    write_model_card,
)
from lsdm_diffusers.labels import PALETTE, SemanticLabel
from lsdm_diffusers.nodule_features import NODULE_FEATURES
from lsdm_diffusers.training.data import (
    add_data_arguments,
    open_splits,
    spread_over_patients,
    validation_slices,
)
from lsdm_diffusers.training.decoder_feature_loss import DecoderFeatureLoss, predicted_clean_latents
from lsdm_diffusers.training.encoded_rows import RowEncoder, RowPool, cached_pools, live_pools
from lsdm_diffusers.training.latent_batches import Batch, BatchPlan, drop_labels, drop_ratings, stack_rows
from lsdm_diffusers.training.run_arguments import RunSettings, add_optimisation_arguments, add_run_arguments
from lsdm_diffusers.training.runs import TrainingRun

NUM_VALIDATION_ROWS = 32  # of each pool, for the validation loss
VALIDATION_BATCH_SIZE = 4
VALIDATION_TIMESTEPS = (50, 950)  # the first and the last of a validation batch, the others evenly between
VALIDATION_SAMPLING_STEPS = 20
DECODER_LOSS_TIMESTEPS = 200  # below these, the prediction of the clean latents is sharp
SAMPLE_SIZE = 512  # pixels, the edge of a CT slice; the U-Net's config stores it in latents


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
        "--cache_latents",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Encode every row once, keep the latents in a file and in memory (0.3 to 0.4 MB for a view of 512x512). "
        "Off: encode rows each time that they are drawn. Default: on.",
    )
    data.add_argument(
        "--augmentation_views",
        type=int,
        default=1,
        help="Times that each row is encoded: as it is, and then mirrored, turned, scaled, and changed in HU as "
        "scanners differ. Default: %(default)s, no augmentation.",
    )
    data.add_argument(
        "--max_slices_per_patient",
        type=int,
        default=None,
        help="Train on at most this many slices of a patient, evenly spread over them. Default: all.",
    )
    data.add_argument(
        "--balance_patients",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Draw patients alike, and then one of their rows: slices of one series resemble each other. Off: draw "
        "rows alike. Default: on.",
    )
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
    data.add_argument(
        "--window_probability",
        type=float,
        default=0.0,
        help="Share of the steps, 0..1, that are trained on windows of slices with a nodule in them, which show its "
        "surroundings. Default: %(default)s.",
    )
    data.add_argument(
        "--window_size", type=int, default=128, help="Edge of these windows, pixels. Default: %(default)s."
    )
    model = parser.add_argument_group("model")
    model.add_argument("--pretrained_vae", type=Path, required=True, help="Folder of the trained autoencoder.")
    model.add_argument(
        "--pretrained_unet",
        type=Path,
        default=None,
        help="Folder of a U-Net whose weights the training begins with. Its sizes replace those of the flags below.",
    )
    model.add_argument(
        "--block_out_channels",
        type=int,
        nargs="+",
        default=[128, 256, 384],
        help="Channels of each level, multiples of --norm_num_groups. Each level but the last halves the size. "
        "Default: 128 256 384.",
    )
    model.add_argument(
        "--attention_levels",
        type=int,
        nargs="+",
        default=[0, 0, 1],
        help="1 for each level with self-attention, else 0. Default: 0 0 1.",
    )
    model.add_argument(
        "--layers_per_block", type=int, default=2, help="ResNet blocks of a level. Default: %(default)s."
    )
    model.add_argument(
        "--norm_num_groups", type=int, default=32, help="Groups of the group normalisation. Default: %(default)s."
    )
    model.add_argument(
        "--attention_head_dim",
        type=int,
        default=32,
        help="Channels of an attention head, a divisor of the channels of its level. Default: %(default)s.",
    )
    model.add_argument(
        "--spade_blocks",
        choices=["all", "mid_up", "up", "none"],
        default="all",
        help="Blocks that the semantic map modulates. none is the LDM baseline. Default: %(default)s.",
    )
    model.add_argument(
        "--spade_hidden_channels",
        type=int,
        default=128,
        help="Channels between the map and gamma and beta. Default: %(default)s.",
    )
    model.add_argument(
        "--nodule_ratings",
        action="store_true",
        help="Give the U-Net four rating channels, in which it sees the ratings of the nodules. Each is dropped for "
        "0.2 of the samples and all for 0.1; where that of malignancy is dropped, the map does not tell it either.",
    )
    model.add_argument(
        "--prediction_type",
        choices=["epsilon", "v_prediction"],
        default="epsilon",
        help="What the U-Net predicts: the noise, or v (Salimans and Ho 2022). Default: %(default)s.",
    )
    optimisation = add_optimisation_arguments(
        parser,
        batch="slice crops per process and backward pass; nodule crops fill the same number of pixels",
        train_batch_size=8,
        max_train_steps=100000,
        learning_rate=1e-4,
        lr_warmup_steps=100,
    )
    optimisation.add_argument(
        "--adam_weight_decay", type=float, default=1e-2, help="Weight decay of AdamW. Default: %(default)s."
    )
    optimisation.add_argument(
        "--nodule_weight",
        type=float,
        default=1.0,
        help="Weight of nodule latents in the loss; all others have 1. Default: %(default)s.",
    )
    optimisation.add_argument(
        "--snr_gamma",
        type=float,
        default=None,
        help="Gamma of min-SNR weighting of the loss (Hang et al. 2023), above 0; 5 is usual. Default: no weighting.",
    )
    optimisation.add_argument(
        "--decoder_loss_weight",
        type=float,
        default=0.0,
        help="Weight of the error that the decoder's features show in the predicted clean latents, at timesteps below "
        "200. It costs about as much as those steps. Default: %(default)s, without it.",
    )
    optimisation.add_argument(
        "--label_dropout",
        type=float,
        default=0.0,
        help="Share of the samples, 0..1, whose map is dropped: for half of them the whole map, for the others one of "
        "its labels. Default: %(default)s.",
    )
    run = add_run_arguments(parser, contents="checkpoints, latents, log.jsonl, pictures and pipeline/")
    run.add_argument(
        "--latents_dir", type=Path, default=None, help="Folder of the encoded rows. Default: <output_dir>/latents."
    )
    run.add_argument(
        "--num_validation_images",
        type=int,
        default=2,
        help="Slices that are sampled for each validation-N.png. Default: %(default)s.",
    )
    add_hub_arguments(parser)
    args = parser.parse_args()
    for name in ("label_dropout", "nodule_probability", "window_probability"):
        if not 0 <= getattr(args, name) <= 1:
            raise SystemExit(f"--{name} is {getattr(args, name)}, but 0..1 is needed.")
    if args.augmentation_views < 1:
        raise SystemExit(f"--augmentation_views is {args.augmentation_views}, but at least 1 is needed.")
    if args.decoder_loss_weight < 0:
        raise SystemExit(f"--decoder_loss_weight is {args.decoder_loss_weight}, but a number of at least 0 is needed.")
    if args.snr_gamma is not None and args.snr_gamma <= 0:
        raise SystemExit(f"--snr_gamma is {args.snr_gamma}, but a number above 0 is needed.")
    if args.nodule_ratings and args.spade_blocks == "none":
        raise SystemExit("--nodule_ratings gives ratings to SPADE blocks; it cannot be used with --spade_blocks none.")
    if args.max_slices_per_patient is not None and args.max_slices_per_patient < 1:
        raise SystemExit(f"--max_slices_per_patient is {args.max_slices_per_patient}, but at least 1 is needed.")
    if args.streaming and args.max_slices_per_patient is not None:
        raise SystemExit("--streaming reads the rows once; it cannot be used with --max_slices_per_patient.")
    if args.streaming and not args.cache_latents:
        raise SystemExit("--streaming reads the rows once, to encode them; it cannot be used with --no-cache_latents.")
    return args


def open_pools(
    args: argparse.Namespace, run: TrainingRun, dataset: dict[str, Any], vae: AutoencoderKL
) -> dict[str, dict[str, RowPool]]:
    """The encoded rows of each split, by pool: "slices" and "nodules"."""
    encoder = RowEncoder(vae, args.seed, args.augmentation_views, args.blank_background, args.nodule_ratings)
    latents_dir = args.latents_dir or args.output_dir / "latents"
    pools = {}
    for split, rows in dataset.items():
        if split == "train" and not args.cache_latents:
            pools[split] = live_pools(rows, encoder)
            continue
        size = [args.streaming, args.max_train_samples] if args.streaming else len(rows)
        limit, split_encoder = None, encoder
        if split != "train":
            limit, split_encoder = NUM_VALIDATION_ROWS, replace(encoder, views=1)
        with run.accelerator.main_process_first():  # the other processes read what the main one has encoded
            pools[split] = cached_pools(latents_dir / f"{split}.safetensors", rows, split_encoder, size, limit)
    return pools


def diffusion_loss(
    unet: torch.nn.Module,
    batch: Batch,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    scheduler: DDPMScheduler,
    nodule_weight: float = 1.0,
    snr_gamma: float | None = None,
    with_ratings: bool = False,
    decoder_loss: DecoderFeatureLoss | None = None,
    decoder_loss_weight: float = 0.0,
) -> torch.Tensor:
    """The weighted mean squared error of the predicted noise or v (thesis, eq. 3.1), and what the decoder sees of it.

    The weight of nodule latents does not move the optimum, because it depends on the map alone, which is a condition.
    """
    noisy = scheduler.add_noise(batch["latents"], noise, timesteps)
    conditions = {"semantic_map": batch["labels"]} | ({"nodule_ratings": batch["ratings"]} if with_ratings else {})
    output = unet(torch.cat([noisy, batch["map_latents"]], dim=1), timesteps, **conditions).sample
    predicts_v = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(batch["latents"], noise, timesteps) if predicts_v else noise
    is_nodule = (batch["labels"] >= SemanticLabel.NODULE_BENIGN)[:, None].float()
    weight = 1 + (nodule_weight - 1) * is_nodule
    if snr_gamma is not None:  # min(SNR, gamma) is the weight of x0; here it is that of the noise or of v
        snr = compute_snr(scheduler, timesteps)
        weight = weight * (snr.clamp(max=snr_gamma) / (snr + 1 if predicts_v else snr))[:, None, None, None]
    output = output.float()
    loss = (weight * (output - target) ** 2).mean()
    is_sharp = timesteps < DECODER_LOSS_TIMESTEPS
    if decoder_loss is not None and decoder_loss_weight and is_sharp.any():
        clean = predicted_clean_latents(output[is_sharp], noisy[is_sharp], timesteps[is_sharp], scheduler)
        seen = decoder_loss(clean, batch["latents"][is_sharp])
        loss = loss + decoder_loss_weight * is_sharp.float().mean() * seen
    return loss


@torch.no_grad()
def validation_loss(unet: Any, pools: dict[str, RowPool], scheduler: DDPMScheduler, seed: int) -> float:
    """Mean loss over the validation rows, at fixed noise and timesteps."""
    losses = []
    for pool in pools.values():
        generator = torch.Generator().manual_seed(seed)
        for start in range(0, len(pool), VALIDATION_BATCH_SIZE):
            stop = min(start + VALIDATION_BATCH_SIZE, len(pool))
            batch = stack_rows([pool[index] for index in range(start, stop)])
            noise = torch.randn(batch["latents"].shape, generator=generator).to(unet.device)
            timesteps = torch.linspace(*VALIDATION_TIMESTEPS, len(noise)).long().to(unet.device)
            batch = {name: tensor.to(unet.device) for name, tensor in batch.items()}
            with_ratings = unet.config.rating_channels > 0
            loss = diffusion_loss(unet, batch, noise, timesteps, scheduler, with_ratings=with_ratings)
            losses.append(loss.item())
    return float(np.mean(losses))


def sampling_pipeline(vae: AutoencoderKL, unet: SpadeUNet2DModel, scheduler: DDPMScheduler) -> LSDMGuidedPipeline:
    """The pipeline that is saved, with a fast sampler."""
    # Karras et al. 2022: more of the steps are spent at little noise, where soft tissue gets its texture
    sampler = DPMSolverMultistepScheduler.from_config(scheduler.config, use_karras_sigmas=True)
    return LSDMGuidedPipeline(vae=vae, unet=unet, scheduler=sampler)


def draw_samples(pipeline: LSDMGuidedPipeline, maps: Sequence[np.ndarray], path: Path) -> None:
    """Write a picture with the maps in the upper row and a sample of each below it."""
    if not maps:
        return
    pipeline.set_progress_bar_config(disable=True)
    columns = []
    for labels in maps:
        generator = torch.Generator().manual_seed(0)
        images = pipeline(
            labels, num_inference_steps=VALIDATION_SAMPLING_STEPS, generator=generator, return_dict=False
        )[0]
        columns.append(np.concatenate([PALETTE[labels], np.asarray(images[0].convert("RGB"))]))
    Image.fromarray(np.concatenate(columns, axis=1)).save(path)


def publish(args: argparse.Namespace, run: TrainingRun, figures: dict[str, float], repository: Any) -> None:
    """Write the model card into the saved pipeline, and upload both if there is a repository."""
    folder, picture = args.output_dir / "pipeline", args.output_dir / f"validation-{run.step}.png"
    forget_origins(folder)
    if picture.is_file():
        shutil.copy(picture, folder / "validation.png")
    write_model_card(
        folder,
        script="train_unet.py",
        title="Lung CT from semantic maps",
        summary="Latent semantic diffusion model for lung CT: a slice from a semantic map.",
        dataset=args.dataset_name or args.train_data_dir,
        arguments=vars(args),
        step=run.step,
        figures=figures,
        example="from lsdm_diffusers import LSDMGuidedPipeline\n\n"
        f'pipe = LSDMGuidedPipeline.from_pretrained("{repository[1] if repository else "path or Hub id"}")\n'
        'pipe("map.png").images[0].save("ct.png")',
        picture="validation.png" if picture.is_file() else None,
    )
    if repository:
        upload_model(repository, folder)


def build_unet(args: argparse.Namespace, vae: AutoencoderKL, factor: int) -> SpadeUNet2DModel:
    """The U-Net to train, from `--pretrained_unet` or with the sizes of the flags."""
    if args.pretrained_unet is not None:
        unet = SpadeUNet2DModel.from_pretrained(args.pretrained_unet)
        if args.nodule_ratings and not unet.config.rating_channels:
            trained = unet.state_dict()
            unet = SpadeUNet2DModel.from_config(unet.config, rating_channels=len(NODULE_FEATURES))
            unet.load_state_dict(trained, strict=False)  # the new weights begin at zero
    else:
        unet = SpadeUNet2DModel(
            sample_size=SAMPLE_SIZE // factor,
            in_channels=2 * vae.config.latent_channels,
            out_channels=vae.config.latent_channels,
            block_out_channels=args.block_out_channels,
            attention_levels=[bool(attend) for attend in args.attention_levels],
            layers_per_block=args.layers_per_block,
            norm_num_groups=args.norm_num_groups,
            attention_head_dim=args.attention_head_dim,
            spade_blocks=args.spade_blocks,
            spade_hidden_channels=args.spade_hidden_channels,
            rating_channels=len(NODULE_FEATURES) if args.nodule_ratings else 0,
        )
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet.train()


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
        vae = AutoencoderKL.from_pretrained(args.pretrained_vae).requires_grad_(False).eval().to(accelerator.device)
        source = args.dataset_name or args.train_data_dir
        dataset = open_splits(source, args.streaming, args.max_train_samples, args.seed)
        if args.max_slices_per_patient is not None:
            dataset["train"] = spread_over_patients(dataset["train"], args.max_slices_per_patient)
        pools = open_pools(args, run, dataset, vae)
    except ValueError as error:
        raise SystemExit(f"train_unet.py: {error}") from None
    validation_rows = validation_slices(dataset["validation"], args.num_validation_images)
    validation_maps = [np.asarray(row["semantic_map"]) for row in validation_rows]

    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    unet = build_unet(args, vae, factor)
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
    unet, optimizer = accelerator.prepare(unet, optimizer)
    model = accelerator.unwrap_model(unet)
    pipeline = sampling_pipeline(vae, model, scheduler)
    run.start(model, [schedule], "lsdm-unet", vars(args))

    plan = BatchPlan(
        crop_edge=args.crop_size // factor,
        batch_size=args.train_batch_size,
        nodule_probability=args.nodule_probability,
        window_probability=args.window_probability,
        window_edge=args.window_size // factor,
        balance_patients=args.balance_patients,
        seed=args.seed,
    )
    decoder_loss = DecoderFeatureLoss(vae)
    figures: dict[str, float] = {}
    while run.step < args.max_train_steps:
        batch = plan.draw(pools["train"], run.batch_number)
        dropout_generator = np.random.default_rng((args.seed, run.batch_number, 1))
        if args.nodule_ratings:
            drop_ratings(batch, dropout_generator)
        if args.label_dropout:
            drop_labels(batch, args.label_dropout, dropout_generator)
        batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        generator = run.noise_generator()
        noise = torch.randn(batch["latents"].shape, generator=generator).to(accelerator.device)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(noise),), generator=generator)
        timesteps = timesteps.to(accelerator.device)
        with accelerator.accumulate(unet):
            loss = diffusion_loss(
                unet,
                batch,
                noise,
                timesteps,
                scheduler,
                args.nodule_weight,
                args.snr_gamma,
                args.nodule_ratings,
                decoder_loss,
                args.decoder_loss_weight,
            )
            run.check_finite(loss=loss)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(unet.parameters(), args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        if run.advance({"loss": loss}) and run.validation_is_due:
            with run.averaged_weights():
                figures = {"train_loss": run.mean_losses()["loss"]}
                figures["validation_loss"] = validation_loss(model, pools["validation"], scheduler, args.seed)
                draw_samples(pipeline, validation_maps, args.output_dir / f"validation-{run.step}.png")
                pipeline.save_pretrained(args.output_dir / "pipeline")
            run.log(figures)

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with run.averaged_weights():
            pipeline.save_pretrained(args.output_dir / "pipeline")
        publish(args, run, figures, repository)
    accelerator.end_training()


if __name__ == "__main__":
    main()
