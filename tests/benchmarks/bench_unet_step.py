"""Time a step of `SpadeUNet2DModel` against diffusers' `UNet2DModel` of equal widths.

    python tests/benchmarks/bench_unet_step.py

The networks run in turn in one process. For each latent size, the script prints:

* seconds of a step of the plain U-Net (median);
* the step with reused and with recomputed modulation over the plain step of the same round (median of the ratios);
* the largest difference between the outputs of reused and recomputed modulation;
* the memory that the modulation of one map holds.
"""

import argparse
import time

import numpy as np
import torch
from diffusers import UNet2DModel

from lsdm_diffusers import SpadeUNet2DModel
from lsdm_diffusers.labels import NUM_LABELS

VAE_FACTOR = 4  # pixels along the edge of a latent
TIMESTEP = 7  # any: the time of a step does not depend on it


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256, 384], help="channels of each level")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="height and width of the latents")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds, after one round that is not timed")
    return parser.parse_args()


@torch.no_grad()
def measure(spade: SpadeUNet2DModel, plain: UNet2DModel, size: int, repeats: int) -> str:
    """Time the networks on latents of that edge; the result is one line of text."""
    sample = torch.randn(1, 6, size, size)
    labels = torch.randint(0, NUM_LABELS, (1, VAE_FACTOR * size, VAE_FACTOR * size))
    modulation = spade.compute_modulation(labels, size)
    runs = {
        "plain": lambda: plain(sample, TIMESTEP).sample,
        "reused": lambda: spade(sample, TIMESTEP, modulation=modulation).sample,
        "recomputed": lambda: spade(sample, TIMESTEP, semantic_map=labels).sample,
    }
    difference = (runs["reused"]() - runs["recomputed"]()).abs().max().item()
    seconds = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat > 0:
                seconds[name].append(time.perf_counter() - start)
    tensors = [tensor for block in modulation for norm in block for tensor in norm]
    memory = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20
    ratio = {name: np.median(np.divide(seconds[name], seconds["plain"])) for name in ("reused", "recomputed")}
    return (
        f"latent {size}x{size}: plain {np.median(seconds['plain']):.3f} s; reused / plain {ratio['reused']:.3f}; "
        f"recomputed / plain {ratio['recomputed']:.3f}; reused - recomputed {difference:.1e}; "
        f"modulation {memory:.0f} MiB"
    )


def main() -> None:
    args = parse_args()
    levels = len(args.widths)
    spade = SpadeUNet2DModel(block_out_channels=args.widths, attention_levels=[False] * levels).eval()
    plain = UNet2DModel(
        in_channels=6,
        out_channels=3,
        block_out_channels=args.widths,
        layers_per_block=2,
        down_block_types=["DownBlock2D"] * levels,
        up_block_types=["UpBlock2D"] * levels,
        attention_head_dim=32,
    ).eval()
    for size in args.sizes:
        print(measure(spade, plain, size, args.repeats), flush=True)


if __name__ == "__main__":
    main()
