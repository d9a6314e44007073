"""One guidance evaluation (one nodule, four features) against one U-Net step at 128x128 latents.

    python tests/benchmarks/bench_guidance.py

It measures the shipped sizes and the thesis' full sizes (random weights) in joint and sequential order, alternating in
one process, and prints medians of ratios. Autoencoder and classifiers are in channels-last memory format, as
`lsdm-generate` runs them, and, where it says so, in the default format.
"""

import argparse
import time

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler

from lsdm_diffusers import LSDMGuidedPipeline, NoduleClassifier, SpadeUNet2DModel, small_checkpoint
from lsdm_diffusers.guidance import frozen
from lsdm_diffusers.guidance_methods.classifier import ClassifierGuidance
from lsdm_diffusers.guidance_methods.step import GuidedStep
from lsdm_diffusers.nodule_batch import batch_nodules, requested_nodules
from lsdm_diffusers.nodule_features import NODULE_FEATURES

MAP_SIZE, LATENT_SIZE = 512, 128
STEPS, STEP = 25, 10  # the step in the middle of a run that is measured
FEATURES = {"malignancy": "malignant", "lobulation": 4, "spiculation": 4, "texture": 4}


def full_size() -> LSDMGuidedPipeline:
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


def measure(
    name: str, pipe: LSDMGuidedPipeline, repeats: int, memory_format: torch.memory_format = torch.channels_last
) -> None:
    for module in (pipe.vae, *pipe.classifiers.values()):
        module.to(memory_format=memory_format)
    labels = np.full((MAP_SIZE, MAP_SIZE), 4, dtype=np.uint8)
    labels[240:260, 250:270] = 7
    latents = torch.randn(1, 3, LATENT_SIZE, LATENT_SIZE)
    requests = requested_nodules(labels[None], FEATURES)
    nodules = batch_nodules(requests, labels.shape, 1, pipe.vae_scale_factor, torch.device("cpu"))
    pipe.scheduler.set_timesteps(STEPS)
    timestep = pipe.scheduler.timesteps[STEP]
    prediction_type = pipe.scheduler.config.prediction_type
    guidance = {
        order: ClassifierGuidance(
            nodules, pipe.classifiers, pipe.vae, pipe.scheduler, prediction_type, order, tuple(latents.shape)
        )
        for order in ("joint", "sequential")
    }
    step = GuidedStep(STEP, timestep, latents, latents, latents, {}, dict.fromkeys(NODULE_FEATURES, 1.0))
    with torch.no_grad(), frozen(*guidance["joint"].modules):
        modulation = pipe.unet.compute_modulation(torch.from_numpy(labels)[None].long(), LATENT_SIZE)
        runs = {
            "step": lambda: pipe.unet(torch.cat([latents, latents], dim=1), timestep, modulation=modulation),
            "joint": lambda: guidance["joint"].gradient(step),
            "sequential": lambda: guidance["sequential"].gradient(step),
        }
        seconds = {kind: [] for kind in runs}
        for repeat in range(repeats + 1):
            for kind, run in runs.items():
                start = time.perf_counter()
                run()
                if repeat:  # the first run of each warms up
                    seconds[kind].append(time.perf_counter() - start)
    ratio = {kind: np.median(np.array(seconds[kind]) / np.array(seconds["step"])) for kind in ("joint", "sequential")}
    print(
        f"{name}: step {np.median(seconds['step']):.3f} s; joint / step {ratio['joint']:.2f}; "
        f"sequential / step {ratio['sequential']:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="measured runs of each")
    args = parser.parse_args()
    shipped = LSDMGuidedPipeline.from_pretrained(small_checkpoint())
    measure("shipped sizes", shipped, args.repeats)
    measure("shipped sizes, default memory format", shipped, args.repeats, torch.contiguous_format)
    measure("full sizes", full_size(), args.repeats)


if __name__ == "__main__":
    main()
