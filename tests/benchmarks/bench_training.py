"""Training steps of the small recipe's sizes, on made-up slices of 512x512: python tests/benchmarks/bench_training.py

Alternating in one process, medians: the share of a step spent on its data (yardstick: the whole step), the SPADE step against the same step of
diffusers' `UNet2DModel` of equal widths, in bfloat16 and with channels last, and slices a second with latents cached against latents encoded
as they are drawn.
"""

import argparse
import importlib.util
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from datasets import Dataset
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DModel
from PIL import Image

from lsdm_diffusers import NoduleClassifier, SpadeUNet2DModel, small_checkpoint
from lsdm_diffusers.training.autoencoder_loss import AutoencoderLoss

TRAINING = Path(__file__).parents[2] / "training"


def script(name):
    spec = importlib.util.spec_from_file_location(name, TRAINING / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def timed(run):
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def descend(model, loss):
    loss.backward()
    model.zero_grad(set_to_none=True)


def report(name, data, step):
    print(
        f"{name}: step {np.median(step):.3f} s, of which data {100 * np.median(np.array(data) / (np.array(data) + np.array(step))):.2f}%",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=6)
    args = parser.parse_args()
    generator = np.random.default_rng(0)
    autoencoder, unet_script, noisy = (
        script("train_autoencoder"),
        script("train_unet"),
        script("train_classifier").noisy_crops,
    )
    vae = AutoencoderKL.from_pretrained(small_checkpoint(), subfolder="vae")

    slices = [generator.standard_normal((512, 512), dtype=np.float32) for _ in range(16)]
    settings = SimpleNamespace(seed=0, crop_size=96, train_batch_size=4, streaming=False)
    loss, data, step = AutoencoderLoss(vae, 1e-4, difference_weight=1.0), [], []
    for repeat in range(args.repeats + 1):
        seconds, pixels = timed(lambda repeat=repeat: autoencoder.training_batch(slices, [], repeat, settings))
        noise = torch.randn(len(pixels), 3, 24, 24)
        of_step, _ = timed(lambda pixels=pixels, noise=noise: descend(vae, loss(pixels, noise)[0]))
        if repeat:
            data.append(seconds), step.append(of_step)
    report("autoencoder", data, step)

    vae.requires_grad_(False).eval()
    classifier = NoduleClassifier(feature="malignancy", block_out_channels=(12, 24, 48, 96))
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.0015,
        beta_end=0.0205,
        prediction_type="v_prediction",
        clip_sample=False,
    )
    latents, chance, data, step = torch.randn(4, 1836, 3, 16, 16), np.full(1836, 1 / 1836), [], []
    for repeat in range(args.repeats + 1):
        start = time.perf_counter()
        chosen = np.random.default_rng(repeat).choice(1836, size=32, p=chance)
        batch, timesteps, noise = latents[0, chosen], torch.randint(1000, (32,)), torch.randn(32, 3, 16, 16)
        seconds = time.perf_counter() - start
        of_step, _ = timed(
            lambda b=batch, n=noise, t=timesteps: descend(
                classifier, classifier(noisy(b, n, t, scheduler, vae), t).sum()
            )
        )
        if repeat:
            data.append(seconds), step.append(of_step)
    report("classifier", data, step)

    widths = {
        "block_out_channels": (32, 64, 128, 192),
        "layers_per_block": 1,
        "norm_num_groups": 16,
        "attention_head_dim": 16,
    }
    spade = SpadeUNet2DModel(**widths, attention_levels=(False, False, False, True), spade_hidden_channels=24)
    down, up = ["DownBlock2D"] * 3 + ["AttnDownBlock2D"], ["AttnUpBlock2D"] + ["UpBlock2D"] * 3
    plain = UNet2DModel(in_channels=6, out_channels=3, down_block_types=down, up_block_types=up, **widths)
    labels = generator.integers(0, 5, (512, 512)).astype(np.uint8)
    image = Image.fromarray(generator.integers(0, 1800, (512, 512)).astype(np.uint16))
    rows = Dataset.from_list([{"image": image, "semantic_map": Image.fromarray(labels)}] * 8)
    settings = SimpleNamespace(
        seed=0, crop_size=512, train_batch_size=1, nodule_probability=0.0, random_flip=True, blank_background=True
    )
    live = {"slices": unet_script.EncodedRows(rows, vae, settings)}
    cached = {"slices": unet_script.CachedRows(unet_script.encoded(rows, None, vae, settings)["slices"])}

    def spade_step(batch, noise, timesteps):
        descend(spade, unet_script.diffusion_loss(spade, batch, noise, timesteps, scheduler))

    def plain_step(batch, noise, timesteps):
        noisy = scheduler.add_noise(batch["latents"], noise, timesteps)
        output = plain(torch.cat([noisy, batch["map_latents"]], dim=1), timesteps).sample
        descend(plain, (output - scheduler.get_velocity(batch["latents"], noise, timesteps)).square().mean())

    def bfloat16(run):
        def step(*inputs):
            with torch.autocast("cpu", torch.bfloat16):
                run(*inputs)

        return step

    def channels_last_step(batch, noise, timesteps):
        spade.to(memory_format=torch.channels_last)
        spade_step(
            {n: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for n, t in batch.items()},
            noise,
            timesteps,
        )
        spade.to(memory_format=torch.contiguous_format)

    runs = {"spade": spade_step, "plain": plain_step, "spade, channels last": channels_last_step}
    runs |= {"spade, bfloat16": bfloat16(spade_step), "plain, bfloat16": bfloat16(plain_step)}
    seconds = {name: [] for name in ("data", "data, live", *runs)}
    for repeat in range(args.repeats + 1):
        took = {}
        took["data"], batch = timed(lambda repeat=repeat: unet_script.training_batch(cached, repeat, settings, 4))
        took["data, live"], _ = timed(lambda repeat=repeat: unet_script.training_batch(live, repeat, settings, 4))
        noise, timesteps = torch.randn_like(batch["latents"]), torch.randint(1000, (1,))
        for name, run in runs.items():
            took[name], _ = timed(lambda run=run, b=batch, n=noise, t=timesteps: run(b, n, t))
        if repeat:
            for name, value in took.items():
                seconds[name].append(value)
    report("U-Net, latents cached", seconds["data"], seconds["spade"])
    report("U-Net, latents encoded as drawn", seconds["data, live"], seconds["spade"])
    for name, yardstick in (
        ("spade", "plain"),
        ("spade, bfloat16", "plain, bfloat16"),
        ("spade, bfloat16", "spade"),
        ("spade, channels last", "spade"),
    ):
        ratio = np.median(np.array(seconds[name]) / np.array(seconds[yardstick]))
        print(f"U-Net step, one whole slice: {name} / {yardstick} {ratio:.2f}")
    rate = {
        name: 1 / np.median(np.array(seconds[name]) + np.array(seconds["spade"])) for name in ("data", "data, live")
    }
    print(
        f"slices a second: cached {rate['data']:.2f}, encoded as drawn {rate['data, live']:.2f}, ratio {rate['data'] / rate['data, live']:.2f}"
    )


if __name__ == "__main__":
    main()
