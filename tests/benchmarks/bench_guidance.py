"""One guidance evaluation (one nodule, four features) against one U-Net step at 128x128: python tests/benchmarks/bench_guidance.py

Shipped sizes and the thesis' full sizes (random weights), joint and sequential order; alternating in one process, medians of ratios.
Autoencoder and classifiers in channels-last memory format, as `lsdm-generate` runs them, and, where it says so, in the default format.
"""

import argparse
import time

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler

from lsdm_diffusers import LSDMGuidedPipeline, NoduleClassifier, SpadeUNet2DModel, small_checkpoint
from lsdm_diffusers.nodule_features import NODULE_FEATURES


def full_size():
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=(128, 256, 512),
        layers_per_block=1,
        latent_channels=3,
    )
    classifiers = {
        f"{feature}_classifier": NoduleClassifier(
            feature,
            "classification" if feature == "malignancy" else "regression",
            block_out_channels=(64, 96, 160, 224),
            norm_num_groups=16,
            attention_head_dim=32,
        )
        for feature in NODULE_FEATURES
    }
    scheduler = DPMSolverMultistepScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0205)
    return LSDMGuidedPipeline(vae=vae.eval(), unet=SpadeUNet2DModel().eval(), scheduler=scheduler, **classifiers)


def measure(name, pipe, repeats, memory_format=torch.channels_last):
    pipe.vae.requires_grad_(False).to(memory_format=memory_format)
    for feature in NODULE_FEATURES:
        getattr(pipe, f"{feature}_classifier").to(memory_format=memory_format)
    labels = np.full((512, 512), 4, dtype=np.uint8)
    labels[240:260, 250:270] = 7
    features = {"malignancy": "malignant", "lobulation": 4, "spiculation": 4, "texture": 4}
    pipe._guidance_scale = 1.0
    nodules = pipe._nodule_batch(labels[None], features, 1, (128, 128), torch.device("cpu"))
    pipe.scheduler.set_timesteps(25)
    t, next_t = pipe.scheduler.timesteps[10:12]
    latents = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        modulation = pipe.unet.compute_modulation(torch.from_numpy(labels)[None].long(), 128)
        runs = {
            "step": lambda: pipe.unet(torch.cat([latents, latents], dim=1), t, modulation=modulation),
            "joint": lambda: pipe._guidance(latents, t, next_t, nodules, "joint"),
            "sequential": lambda: pipe._guidance(latents, t, next_t, nodules, "sequential"),
        }
        seconds = {kind: [] for kind in runs}
        for repeat in range(repeats + 1):
            for kind, run in runs.items():
                start = time.perf_counter()
                run()
                if repeat:
                    seconds[kind].append(time.perf_counter() - start)
    ratio = {kind: np.median(np.array(seconds[kind]) / np.array(seconds["step"])) for kind in ("joint", "sequential")}
    print(
        f"{name}: step {np.median(seconds['step']):.3f} s; joint / step {ratio['joint']:.2f}; sequential / step {ratio['sequential']:.2f}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    shipped = LSDMGuidedPipeline.from_pretrained(small_checkpoint())
    measure("shipped sizes", shipped, args.repeats)
    measure("shipped sizes, default memory format", shipped, args.repeats, torch.contiguous_format)
    measure("full sizes", full_size(), args.repeats)


if __name__ == "__main__":
    main()
