"""Train a noise-aware classifier of one nodule feature (thesis, Fig. 3.4 and section 4.2).

    accelerate launch training/train_classifier.py --dataset_name lung-ct-small-data --pretrained_vae lung-ct-small/vae \
        --feature malignancy --output_dir lung-ct-small/malignancy_classifier

Crop around a rated nodule → E → noise at random t → D → classifier: malignancy in two classes by cross-entropy, the other ratings by
squared error. Labels are drawn with equal probability; the saved weights are the moving average.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import load_dataset
from diffusers import AutoencoderKL, DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from lsdm_diffusers import NoduleClassifier
from lsdm_diffusers.models.nodule_classifier import NODULE_FEATURES
from lsdm_diffusers.semantic_map import HU_MAX, HU_MIN

VALIDATION_TIMESTEPS = (20, 200, 500, 800)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--dataset_name", required=True, help="dataset folder or Hub id; rows of kind nodule: 64x64 crops of one rated nodule")
    model = parser.add_argument_group("model")
    model.add_argument("--pretrained_vae", type=Path, required=True, help="folder of the trained autoencoder")
    model.add_argument("--feature", choices=NODULE_FEATURES, required=True)
    model.add_argument("--block_out_channels", type=int, nargs="+", default=[24, 48, 72, 96])
    model.add_argument("--dropout", type=float, default=0.1)
    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument("--train_batch_size", type=int, default=32)
    optimisation.add_argument("--max_train_steps", type=int, default=1500)
    optimisation.add_argument("--learning_rate", type=float, default=5e-4)
    optimisation.add_argument("--lr_scheduler", default="cosine")
    optimisation.add_argument("--lr_warmup_steps", type=int, default=50)
    optimisation.add_argument("--adam_weight_decay", type=float, default=1e-2)
    optimisation.add_argument("--gradient_accumulation_steps", type=int, default=1)
    optimisation.add_argument("--max_grad_norm", type=float, default=1.0)
    optimisation.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], default=None)
    optimisation.add_argument("--ema_max_decay", type=float, default=0.9999)
    optimisation.add_argument("--seed", type=int, default=0)
    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", type=Path, required=True)
    run.add_argument("--validation_steps", type=int, default=250)
    run.add_argument("--checkpointing_steps", type=int, default=250)
    run.add_argument("--checkpoints_total_limit", type=int, default=2)
    run.add_argument("--resume_from_checkpoint", default=None, help='a folder "checkpoint-N", or "latest"')
    run.add_argument("--report_to", default=None, help="tensorboard, wandb or trackio")
    return parser.parse_args()


@torch.no_grad()
def encode_crops(split, vae, feature, views):
    """Scaled latents (views, N, c, h, w) of the nodule crops in `views` flips and turns, and the rating of each."""
    rows = split.select(np.flatnonzero(np.array(split["kind"]) == "nodule"))
    pixels = np.stack([np.asarray(row["image"], dtype=np.float32) for row in rows]) * (2 / (HU_MAX - HU_MIN)) - 1
    ratings = np.array([row["nodules"][0][feature] for row in rows])
    latents = []
    for view in tqdm(range(views), desc="encode"):
        turned = np.rot90(pixels, view % 4, axes=(1, 2))
        turned = torch.from_numpy((turned[:, :, ::-1] if view >= 4 else turned).copy())[:, None]
        batches = [vae.encode(batch.to(vae.device)).latent_dist.mode() for batch in turned.split(64)]
        latents.append(torch.cat(batches) * vae.config.scaling_factor)
    return torch.stack(latents), ratings


def noisy_crops(latents, noise, timesteps, scheduler, vae):
    """x̃_t = D(crop(z_t)): what the classifier sees in training and in sampling alike."""
    with torch.no_grad():
        return vae.decode(scheduler.add_noise(latents, noise, timesteps) / vae.config.scaling_factor).sample


@torch.no_grad()
def validate(classifier, latents, ratings, scheduler, vae, seed):
    """Figures at each noise level of `VALIDATION_TIMESTEPS`, at fixed noise."""
    figures = {}
    for t in VALIDATION_TIMESTEPS:
        generator = torch.Generator().manual_seed(seed)
        outputs = []
        for batch in latents.split(64):
            noise = torch.randn(batch.shape, generator=generator).to(batch.device)
            timesteps = torch.full((len(batch),), t, device=batch.device)
            outputs.append(classifier(noisy_crops(batch, noise, timesteps, scheduler, vae), timesteps).float().cpu())
        output = torch.cat(outputs)
        if classifier.config.objective == "classification":
            malignant = output.softmax(dim=1)[:, 1].numpy()
            clear = (ratings <= 2) | (ratings >= 4)
            figures[f"t{t}"] = {
                "auc_ge3": float(roc_auc_score(ratings >= 3, malignant)),
                "auc_ge4": float(roc_auc_score(ratings[clear] >= 4, malignant[clear])),
                "accuracy_ge3": float(((malignant > 0.5) == (ratings >= 3)).mean()),
            }
        else:
            predicted = output.numpy()
            figures[f"t{t}"] = {"spearman": float(spearmanr(predicted, ratings)[0]), "mae": float(np.abs(predicted - ratings).mean())}
    return figures


def main():
    args = parse_args()
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=args.report_to,
        project_dir=args.output_dir,
    )
    set_seed(args.seed)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKL.from_pretrained(args.pretrained_vae).requires_grad_(False).eval().to(accelerator.device)
    dataset = load_dataset(args.dataset_name)
    latents, ratings = encode_crops(dataset["train"], vae, args.feature, views=8)
    validation_latents, validation_ratings = encode_crops(dataset["validation"], vae, args.feature, views=1)

    objective = "classification" if args.feature == "malignancy" else "regression"
    targets = (ratings >= 2.5).astype(np.int64) if objective == "classification" else ratings
    labels = targets if objective == "classification" else np.floor(ratings + 0.5)  # 2.5 counts as 3: avoid false negatives
    by_label = [np.flatnonzero(labels == value) for value in np.unique(labels)]

    classifier = NoduleClassifier(args.feature, objective, block_out_channels=args.block_out_channels, dropout=args.dropout)
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0205, clip_sample=False)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=args.learning_rate, weight_decay=args.adam_weight_decay)
    schedule = get_scheduler(args.lr_scheduler, optimizer, args.lr_warmup_steps, args.max_train_steps)
    ema = EMAModel(classifier.parameters(), decay=args.ema_max_decay)
    classifier, optimizer = accelerator.prepare(classifier, optimizer)
    ema.to(accelerator.device)
    accelerator.register_for_checkpointing(ema, schedule)
    if args.report_to:
        accelerator.init_trackers("lsdm-classifier", config={k: str(v) for k, v in vars(args).items()})

    step = 0
    by_step = lambda path: int(path.name.split("-")[1])  # noqa: E731
    if args.resume_from_checkpoint:
        saved = sorted(args.output_dir.glob("checkpoint-*"), key=by_step)
        folder = (saved[-1] if saved else None) if args.resume_from_checkpoint == "latest" else Path(args.resume_from_checkpoint)
        if folder is not None:
            accelerator.load_state(str(folder))
            step = by_step(folder)

    model = accelerator.unwrap_model(classifier)
    progress = tqdm(total=args.max_train_steps, initial=step, disable=not accelerator.is_local_main_process, mininterval=5)
    while step < args.max_train_steps:
        data_step = step * accelerator.num_processes + accelerator.process_index
        draw = np.random.default_rng((args.seed, data_step))
        chosen = np.array([draw.choice(by_label[draw.integers(len(by_label))]) for _ in range(args.train_batch_size)])
        batch = latents[draw.integers(len(latents), size=len(chosen)), chosen]
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + data_step)
        noise = torch.randn(batch.shape, generator=generator).to(batch.device)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(batch),), generator=generator).to(batch.device)
        images = noisy_crops(batch, noise, timesteps, scheduler, vae)
        target = torch.from_numpy(targets[chosen]).to(batch.device)
        with accelerator.accumulate(classifier), accelerator.autocast():
            loss = -model.log_prob(images, timesteps, target).mean()
            if not torch.isfinite(loss):
                raise RuntimeError(f"The loss is {loss.item()} at step {step}; the last good checkpoint is in {args.output_dir}.")
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(classifier.parameters(), args.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        ema.step(model.parameters())
        step += 1
        progress.update()
        progress.set_postfix(loss=loss.item(), refresh=False)
        accelerator.log({"loss": loss.item()}, step=step)
        if not accelerator.is_main_process:
            continue
        if step % args.checkpointing_steps == 0:
            accelerator.save_state(str(args.output_dir / f"checkpoint-{step}"))
            for old in sorted(args.output_dir.glob("checkpoint-*"), key=by_step)[: -args.checkpoints_total_limit]:
                for file in sorted(old.rglob("*"), reverse=True):
                    file.unlink() if file.is_file() else file.rmdir()
                old.rmdir()
        if step % args.validation_steps == 0 or step == args.max_train_steps:
            ema.store(model.parameters())
            ema.copy_to(model.parameters())
            model.eval()
            figures = validate(model, validation_latents[0], validation_ratings, scheduler, vae, args.seed)
            (args.output_dir / "validation.json").write_text(json.dumps({"step": step, **figures}, indent=1) + "\n")
            model.save_pretrained(args.output_dir)
            ema.restore(model.parameters())
            model.train()
            accelerator.log({f"{t}/{name}": value for t, of_t in figures.items() for name, value in of_t.items()}, step=step)
            tqdm.write(f"step {step}: {figures}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
