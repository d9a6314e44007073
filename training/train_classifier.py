"""Train a noise-aware classifier of one nodule feature (thesis, Fig. 3.4 and section 4.2).

    accelerate launch training/train_classifier.py --dataset_name lung-ct-small-data --pretrained_vae lung-ct-small/vae \
        --feature malignancy --output_dir lung-ct-small/malignancy_classifier

Crop around a rated nodule → E → noise at random t → D → classifier: malignancy in two classes by cross-entropy, the other ratings by
squared error. The rounded ratings 1..5 are drawn with equal probability (`--label_balance` draws them less evenly); the saved weights are
the moving average. `--contrast_jitter` and `--sharpness_jitter` keep it from judging by density and sharpness, which scanner, kernel and
autoencoder change too: its guidance then turns to size and shape.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoencoderKL, DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from scipy.ndimage import gaussian_filter
from tqdm.auto import tqdm

from lsdm_diffusers import NoduleClassifier
from lsdm_diffusers.data.dataset import nodule_crops
from lsdm_diffusers.evaluation.agreement import rating_agreement
from lsdm_diffusers.hounsfield import scaled_hu
from lsdm_diffusers.hub.publishing import add_hub_arguments, open_model_repository, upload_model, write_model_card
from lsdm_diffusers.models.nodule_classifier import OBJECTIVES
from lsdm_diffusers.nodule_features import NODULE_FEATURES
from lsdm_diffusers.training.data import add_data_arguments, open_splits

VALIDATION_TIMESTEPS = (20, 50, 200, 500, 800)
LUNG = scaled_hu(-850)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = add_data_arguments(parser)
    data.add_argument(
        "--augmentation_views",
        type=int,
        default=8,
        help="flips and turns, eight in turn, of each crop that are encoded",
    )
    data.add_argument(
        "--contrast_jitter",
        type=float,
        nargs=2,
        default=[1.0, 1.0],
        metavar=("LOW", "HIGH"),
        help="the contrast of what is denser than lung is multiplied by a number from this range, even in its logarithm, another for each view",
    )
    data.add_argument(
        "--sharpness_jitter",
        type=float,
        default=0.0,
        help="a training crop gains a (crop - blurred crop), a even in ±this, another for each view",
    )
    data.add_argument(
        "--label_balance",
        type=float,
        default=1.0,
        help="a rounded rating that n crops have is drawn with probability ~ n^(1 - this): 1 draws all alike, 0 as the data have them",
    )
    data.add_argument(
        "--shuffle_labels",
        action="store_true",
        help="a control: the ratings are permuted among the training nodules by --seed, and validated against the true ones",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--pretrained_vae", type=Path, required=True, help="folder of the trained autoencoder")
    model.add_argument(
        "--pretrained_classifier",
        type=Path,
        default=None,
        help="begin with this classifier's weights, of the same sizes, and a fresh head",
    )
    model.add_argument("--feature", choices=NODULE_FEATURES, required=True, help="the rating it learns")
    model.add_argument(
        "--objective", choices=OBJECTIVES, help="default: classification for malignancy, regression for the others"
    )
    model.add_argument(
        "--block_out_channels",
        type=int,
        nargs="+",
        default=[24, 48, 72, 96],
        help="widths; four levels take 64x64 pixels to 8x8",
    )
    model.add_argument("--norm_num_groups", type=int, default=12, help="a divisor of every width")
    model.add_argument("--attention_head_dim", type=int, default=24, help="a divisor of the last width")
    model.add_argument("--dropout", type=float, default=0.1, help="in the ResNet blocks")
    model.add_argument(
        "--num_train_timesteps", type=int, default=1000, help="of the noise schedule, which is that of the U-Net"
    )
    model.add_argument(
        "--hu_thresholds",
        type=float,
        nargs="*",
        default=[],
        help="smooth steps of the crop at these HU as further input",
    )
    model.add_argument(
        "--timestep_power",
        type=float,
        default=1.0,
        help="t is T u^this, u uniform: 1 draws all noise levels alike, 2 more low ones",
    )
    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument("--train_batch_size", type=int, default=32, help="crops a process and backward pass")
    optimisation.add_argument("--max_train_steps", type=int, default=1500, help="optimiser steps")
    optimisation.add_argument(
        "--label_smoothing",
        type=float,
        default=0.0,
        help="of the two classes, 0..1: keeps the classifier, and with it guidance, from overconfidence",
    )
    optimisation.add_argument("--learning_rate", type=float, default=5e-4, help="after warm-up")
    optimisation.add_argument(
        "--lr_scheduler", default="cosine", help="a name that diffusers.optimization.get_scheduler knows"
    )
    optimisation.add_argument("--lr_warmup_steps", type=int, default=50, help="optimiser steps")
    optimisation.add_argument("--adam_weight_decay", type=float, default=1e-2, help="of AdamW")
    optimisation.add_argument(
        "--gradient_accumulation_steps", type=int, default=1, help="backward passes an optimiser step"
    )
    optimisation.add_argument("--gradient_checkpointing", action="store_true", help="less memory, more time")
    optimisation.add_argument("--max_grad_norm", type=float, default=1.0, help="gradients are clipped to this norm")
    optimisation.add_argument(
        "--mixed_precision", choices=["no", "fp16", "bf16"], default="no", help="bf16 needs hardware for it"
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
    run.add_argument("--output_dir", type=Path, required=True, help="for checkpoints, weights and validation.json")
    run.add_argument("--validation_steps", type=int, default=250, help="validate and save every so many steps")
    run.add_argument("--checkpointing_steps", type=int, default=500, help="write checkpoint-N every so many steps")
    run.add_argument("--checkpoints_total_limit", type=int, default=2, help="how many checkpoint-N are kept")
    run.add_argument(
        "--resume_from_checkpoint", default=None, help='a folder "checkpoint-N"; "latest" starts anew if there is none'
    )
    run.add_argument("--report_to", default=None, help="tensorboard, wandb or trackio")
    add_hub_arguments(parser)
    args = parser.parse_args()
    args.objective = args.objective or ("classification" if args.feature == "malignancy" else "regression")
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
    return args


def jittered(pixels, contrast, sharpness, generator):
    """Crops (N, H, W) in [-1, 1]: sharpened by up to ± `sharpness`, and what is denser than lung scaled by a factor in the range `contrast`."""
    amount = generator.uniform(-sharpness, sharpness, size=(len(pixels), 1, 1)).astype(np.float32)
    pixels = pixels + amount * (pixels - gaussian_filter(pixels, sigma=(0, 1, 1)))
    factor = np.exp(generator.uniform(*np.log(contrast), size=(len(pixels), 1, 1))).astype(np.float32)
    return (pixels + (factor - 1) * (pixels - LUNG).clip(min=0)).clip(-1, 1)


@torch.no_grad()
def encode_crops(split, vae, feature, views, jitter=lambda pixels, view: pixels):
    """Scaled latents (views, N, c, h, w) of the nodule crops in `views` flips and turns, each jittered, and the rating of each."""
    crops, ratings = [], []
    for crop, nodule in tqdm(nodule_crops(split), desc="nodules", mininterval=5):
        if nodule[feature] is None or not 1 <= nodule[feature] <= 5:
            raise ValueError(
                f"`--dataset_name` has a nodule of {feature} {nodule[feature]}, but a rating 1..5 is needed."
            )
        crops.append(crop)
        ratings.append(nodule[feature])
    if not crops:
        raise ValueError("`--dataset_name` has a split without rated nodules, but training and validation need some.")
    pixels, ratings = np.stack(crops), np.array(ratings)
    latents = []
    for view in tqdm(range(views), desc="encode"):
        turned = np.rot90(jitter(pixels, view), view % 4, axes=(1, 2))
        turned = torch.from_numpy((turned[:, :, ::-1] if view % 8 >= 4 else turned).copy())[:, None]
        batches = [vae.encode(batch.to(vae.device)).latent_dist.mode() for batch in turned.split(64)]
        latents.append(torch.cat(batches) * vae.config.scaling_factor)
    return torch.stack(latents), ratings


def rounded(ratings):
    """1..5, halves up: 2.5 counts as 3 and so as malignant, to avoid false negatives."""
    return np.floor(ratings + 0.5)


def noisy_crops(latents, noise, timesteps, scheduler, vae):
    """x̃_t = D(crop(z_t)): what the classifier sees in training and in sampling alike."""
    with torch.no_grad():
        return vae.decode(scheduler.add_noise(latents, noise, timesteps) / vae.config.scaling_factor).sample


@torch.no_grad()
def validate(classifier, latents, ratings, scheduler, vae, seed):
    """Figures at each noise level of `VALIDATION_TIMESTEPS`, at fixed noise; NaN where the split has one label only."""
    figures = {}
    for t in VALIDATION_TIMESTEPS:
        generator = torch.Generator().manual_seed(seed)
        outputs = []
        for batch in latents.split(64):
            noise = torch.randn(batch.shape, generator=generator).to(batch.device)
            timesteps = torch.full((len(batch),), t, device=batch.device)
            outputs.append(classifier(noisy_crops(batch, noise, timesteps, scheduler, vae), timesteps).float().cpu())
        output = torch.cat(outputs)
        objective = classifier.config.objective
        scores = output[:, 1] - output[:, 0] if objective == "classification" else output
        figures[f"t{t}"] = rating_agreement(scores.double().numpy(), ratings, objective)
    return figures


def main():
    args = parse_args()
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=args.report_to,
        project_dir=args.output_dir,
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
    vae = AutoencoderKL.from_pretrained(args.pretrained_vae).requires_grad_(False).eval()
    vae.to(accelerator.device, memory_format=torch.channels_last)  # decodes faster on a CPU
    dataset = open_splits(args)

    def jitter(pixels, view):
        return jittered(pixels, args.contrast_jitter, args.sharpness_jitter, np.random.default_rng((args.seed, view)))

    latents, ratings = encode_crops(dataset["train"], vae, args.feature, args.augmentation_views, jitter)
    if args.shuffle_labels:
        ratings = np.random.default_rng(args.seed).permutation(ratings)
    validation_latents, validation_ratings = encode_crops(dataset["validation"], vae, args.feature, 1)

    objective = args.objective
    cross_entropy = torch.nn.CrossEntropyLoss(label_smoothing=args.label_smoothing)
    labels = rounded(ratings)
    targets = (labels >= 3).astype(np.int64) if objective == "classification" else ratings.astype(np.float32)
    _, label_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    chance = (counts**-args.label_balance)[label_of]
    chance /= chance.sum()

    classifier = NoduleClassifier(
        feature=args.feature,
        objective=objective,
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
            raise SystemExit(
                f"--pretrained_classifier {args.pretrained_classifier} has other sizes than the flags ask for: {error}"
            ) from None
    classifier.train()
    if args.gradient_checkpointing:
        classifier.enable_gradient_checkpointing()
    scheduler = DDPMScheduler(
        args.num_train_timesteps, beta_start=0.0015, beta_end=0.0205, beta_schedule="scaled_linear", clip_sample=False
    )
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=args.learning_rate, weight_decay=args.adam_weight_decay)
    schedule = get_scheduler(
        args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps
    )
    ema = EMAModel(
        classifier.parameters(), decay=args.ema_max_decay if args.use_ema else 0
    )  # decay 0 follows the weights
    classifier, optimizer = accelerator.prepare(classifier, optimizer)
    ema.to(accelerator.device)
    accelerator.register_for_checkpointing(ema, schedule)
    if args.report_to:
        accelerator.init_trackers("lsdm-classifier", config={k: str(v) for k, v in vars(args).items()})

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
            ema.to(accelerator.device)  # accelerate loads registered objects to the CPU
            step = by_step(folder)

    model = accelerator.unwrap_model(classifier)

    def validate_and_save():
        ema.store(model.parameters())
        ema.copy_to(model.parameters())
        model.eval()
        figures = validate(model, validation_latents[0], validation_ratings, scheduler, vae, args.seed)
        model.save_pretrained(args.output_dir)
        ema.restore(model.parameters())
        model.train()
        accelerator.log(
            {f"{t}/{name}": value for t, of_t in figures.items() for name, value in of_t.items()}, step=step
        )
        with open(args.output_dir / "log.jsonl", "a") as log:
            print(json.dumps({"step": step, "seconds": round(progress.format_dict["elapsed"]), **figures}), file=log)
        tqdm.write(f"step {step}: {figures}")
        return figures

    progress = tqdm(
        total=args.max_train_steps, initial=step, disable=not accelerator.is_local_main_process, mininterval=5
    )
    micro_step = step * args.gradient_accumulation_steps
    while step < args.max_train_steps:
        # drawn from the step's own random generator, so that a resumed run sees the same data
        data_step = micro_step * accelerator.num_processes + accelerator.process_index
        draw = np.random.default_rng((args.seed, data_step))
        chosen = draw.choice(len(chance), size=args.train_batch_size, p=chance)
        batch = latents[draw.integers(len(latents), size=len(chosen)), chosen]
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + data_step)
        noise = torch.randn(batch.shape, generator=generator).to(batch.device)
        timesteps = (
            torch.rand(len(batch), generator=generator) ** args.timestep_power * scheduler.config.num_train_timesteps
        )
        timesteps = timesteps.long().to(batch.device)
        with accelerator.autocast():
            images = noisy_crops(batch, noise, timesteps, scheduler, vae).float()
        target = torch.from_numpy(targets[chosen]).to(batch.device)
        with accelerator.accumulate(classifier):
            # through the prepared model, not `log_prob`: only its forward keeps several processes in step
            output = classifier(images, timesteps).float()
            loss = cross_entropy(output, target) if objective == "classification" else F.mse_loss(output, target)
            if not torch.isfinite(loss):
                raise RuntimeError(
                    f"The loss is {loss.item()} at step {step}; the last good checkpoint is in {args.output_dir}."
                )
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(classifier.parameters(), args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        micro_step += 1
        if not accelerator.sync_gradients:
            continue
        schedule.step()
        ema.step(model.parameters())
        step += 1
        progress.update()
        progress.set_postfix(loss=loss.item(), refresh=False)
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
        if step % args.validation_steps == 0 and step < args.max_train_steps:
            validate_and_save()

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        figures = validate_and_save()
        known = {
            t: {name: None if math.isnan(value) else value for name, value in of_t.items()}
            for t, of_t in figures.items()
        }
        (args.output_dir / "validation.json").write_text(json.dumps({"step": step, **known}, indent=1) + "\n")
        summary = f"Noise-aware classifier of the {args.feature} of lung nodules, which guides a latent semantic diffusion model for lung CT."
        flat = {f"{name} at t = {t[1:]}": value for t, of_t in figures.items() for name, value in of_t.items()}
        write_model_card(
            args.output_dir,
            script="train_classifier.py",
            title=f"{args.feature.capitalize()} of lung nodules",
            summary=summary,
            dataset=args.dataset_name or args.train_data_dir,
            arguments=vars(args),
            step=step,
            figures=flat,
        )
        if repository:
            upload_model(repository, args.output_dir)
    accelerator.end_training()


if __name__ == "__main__":
    main()
