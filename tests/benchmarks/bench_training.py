"""Time training steps at the sizes of the small recipe, on random slices of 512x512 pixels.

    python tests/benchmarks/bench_training.py

All steps of a model run in turn in one process. The script prints medians:

* seconds of a step of the autoencoder, a classifier and the U-Net, and the share of it spent on its data;
* the step of the SPADE U-Net over that of diffusers' `UNet2DModel` of equal widths, in float32 and bfloat16, and over
  itself in bfloat16 and with channels last;
* slices a second with latents cached, and with latents encoded as they are drawn.
"""

import argparse
import importlib.util
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from datasets import Dataset
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DModel
from PIL import Image

from lsdm_diffusers import NoduleClassifier, SpadeUNet2DModel, small_checkpoint
from lsdm_diffusers.training.autoencoder_loss import AutoencoderLoss
from lsdm_diffusers.training.encoded_rows import CachedRows, RowEncoder, encode_rows, live_pools
from lsdm_diffusers.training.latent_batches import BatchPlan

TRAINING = Path(__file__).parents[2] / "training"
SLICE_SIZE = 512
VAE_FACTOR = 4
NUM_CROPS = 1836  # training nodules of the small recipe
WIDTHS = {"block_out_channels": (32, 64, 128, 192), "layers_per_block": 1, "norm_num_groups": 16}
WIDTHS |= {"attention_head_dim": 16}

Seconds = dict[str, list[float]]


def script(name: str) -> ModuleType:
    """A training script as a module."""
    spec = importlib.util.spec_from_file_location(name, TRAINING / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def backward(model: torch.nn.Module, loss: torch.Tensor) -> None:
    loss.backward()
    model.zero_grad(set_to_none=True)


def print_step(name: str, data: list[float], step: list[float]) -> None:
    """Print the median step without its data, and the share of the data in both; the first round is not counted."""
    data_seconds, step_seconds = np.array(data[1:]), np.array(step[1:])
    share = 100 * np.median(data_seconds / (data_seconds + step_seconds))
    print(f"{name}: step {np.median(step_seconds):.3f} s, of which data {share:.2f}%", flush=True)


def time_autoencoder(vae: AutoencoderKL, repeats: int, generator: np.random.Generator) -> None:
    """Steps on four crops of 96 pixels."""
    training_batch = script("train_autoencoder").training_batch
    slices = [generator.standard_normal((SLICE_SIZE, SLICE_SIZE), dtype=np.float32) for _ in range(16)]
    args = SimpleNamespace(seed=0, crop_size=96, train_batch_size=4, streaming=False)
    loss_module, data, step = AutoencoderLoss(vae, 1e-4, difference_weight=1.0), [], []
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        pixels = training_batch(slices, [], repeat, args)
        data.append(time.perf_counter() - start)
        noise = torch.randn(len(pixels), 3, *(edge // VAE_FACTOR for edge in pixels.shape[-2:]))
        start = time.perf_counter()
        backward(vae, loss_module(pixels, noise)[0])
        step.append(time.perf_counter() - start)
    print_step("autoencoder, four crops of 96 pixels", data, step)


def time_classifier(vae: AutoencoderKL, scheduler: DDPMScheduler, repeats: int) -> None:
    """Steps on 32 nodule crops."""
    noisy_crops = script("train_classifier").noisy_crops
    classifier = NoduleClassifier(feature="malignancy", block_out_channels=(12, 24, 48, 96))
    latents, probabilities = torch.randn(4, NUM_CROPS, 3, 16, 16), np.full(NUM_CROPS, 1 / NUM_CROPS)
    data, step = [], []
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        chosen = np.random.default_rng(repeat).choice(NUM_CROPS, size=32, p=probabilities)
        batch, timesteps, noise = latents[0, chosen], torch.randint(1000, (32,)), torch.randn(32, 3, 16, 16)
        data.append(time.perf_counter() - start)
        start = time.perf_counter()
        images = noisy_crops(batch, noise, timesteps, scheduler, vae)
        backward(classifier, classifier(images, timesteps).prediction.sum())
        step.append(time.perf_counter() - start)
    print_step("classifier, 32 crops", data, step)


def unet_steps(unet_script: ModuleType, scheduler: DDPMScheduler) -> dict[str, Callable[..., None]]:
    """Training steps by name, each a function of a batch, its noise and its timesteps."""
    spade = SpadeUNet2DModel(attention_levels=(False, False, False, True), spade_hidden_channels=24, **WIDTHS)
    down_blocks = ["DownBlock2D"] * 3 + ["AttnDownBlock2D"]
    up_blocks = ["AttnUpBlock2D"] + ["UpBlock2D"] * 3
    plain = UNet2DModel(
        in_channels=6, out_channels=3, down_block_types=down_blocks, up_block_types=up_blocks, **WIDTHS
    )

    def spade_step(batch, noise, timesteps):
        backward(spade, unet_script.diffusion_loss(spade, batch, noise, timesteps, scheduler))

    def plain_step(batch, noise, timesteps):
        noisy = scheduler.add_noise(batch["latents"], noise, timesteps)
        output = plain(torch.cat([noisy, batch["map_latents"]], dim=1), timesteps).sample
        velocity = scheduler.get_velocity(batch["latents"], noise, timesteps)
        backward(plain, (output - velocity).square().mean())

    def channels_last_step(batch, noise, timesteps):
        spade.to(memory_format=torch.channels_last)
        moved = {}
        for name, tensor in batch.items():
            is_image = tensor.ndim == 4
            moved[name] = tensor.contiguous(memory_format=torch.channels_last) if is_image else tensor
        spade_step(moved, noise, timesteps)
        spade.to(memory_format=torch.contiguous_format)

    def in_bfloat16(step):
        def bfloat16_step(*inputs):
            with torch.autocast("cpu", torch.bfloat16):
                step(*inputs)

        return bfloat16_step

    return {
        "spade": spade_step,
        "plain": plain_step,
        "spade, channels last": channels_last_step,
        "spade, bfloat16": in_bfloat16(spade_step),
        "plain, bfloat16": in_bfloat16(plain_step),
    }


def time_unet(vae: AutoencoderKL, scheduler: DDPMScheduler, repeats: int, generator: np.random.Generator) -> None:
    """Steps on one whole slice, with latents cached and encoded as they are drawn."""
    unet_script = script("train_unet")
    labels = Image.fromarray(generator.integers(0, 5, (SLICE_SIZE, SLICE_SIZE)).astype(np.uint8))
    image = Image.fromarray(generator.integers(0, 1800, (SLICE_SIZE, SLICE_SIZE)).astype(np.uint16))
    rows = Dataset.from_list([{"image": image, "semantic_map": labels}] * 8)
    encoder = RowEncoder(vae, blank_background=True)
    pools = {
        "cached": {"slices": CachedRows(encode_rows(rows, encoder)["slices"])},
        "encoded as drawn": live_pools(rows, encoder),
    }
    plan = BatchPlan(crop_edge=SLICE_SIZE // VAE_FACTOR, batch_size=1)
    steps, seconds = unet_steps(unet_script, scheduler), defaultdict(list)
    for repeat in range(repeats + 1):
        for name, pool in pools.items():
            start = time.perf_counter()
            batch = plan.draw(pool, repeat)
            seconds[name].append(time.perf_counter() - start)
        noise, timesteps = torch.randn_like(batch["latents"]), torch.randint(1000, (1,))
        for name, step in steps.items():
            start = time.perf_counter()
            step(batch, noise, timesteps)
            seconds[name].append(time.perf_counter() - start)
    for name in pools:
        print_step(f"U-Net, one slice of 512 pixels, latents {name}", seconds[name], seconds["spade"])
    print_ratios({name: values[1:] for name, values in seconds.items()})


def print_ratios(seconds: Seconds) -> None:
    """Print the U-Net's steps over each other, and slices a second."""
    pairs = [
        ("spade", "plain"),
        ("spade, bfloat16", "plain, bfloat16"),
        ("spade, bfloat16", "spade"),
        ("spade, channels last", "spade"),
    ]
    for name, yardstick in pairs:
        ratio = np.median(np.divide(seconds[name], seconds[yardstick]))
        print(f"U-Net step, one whole slice: {name} / {yardstick} {ratio:.2f}")
    cached, live = (1 / np.median(np.add(seconds[name], seconds["spade"])) for name in ("cached", "encoded as drawn"))
    print(f"slices a second: cached {cached:.2f}, encoded as drawn {live:.2f}, ratio {cached / live:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=6, help="timed rounds, after one round that is not timed")
    args = parser.parse_args()
    generator = np.random.default_rng(0)
    vae = AutoencoderKL.from_pretrained(small_checkpoint(), subfolder="vae")
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.0015,
        beta_end=0.0205,
        prediction_type="v_prediction",
        clip_sample=False,
    )
    time_autoencoder(vae, args.repeats, generator)
    vae.requires_grad_(False).eval()
    time_classifier(vae, scheduler, args.repeats)
    time_unet(vae, scheduler, args.repeats, generator)


if __name__ == "__main__":
    main()
