"""U-Net step with reused modulation against diffusers' `UNet2DModel` of equal widths: python tests/benchmarks/bench_unet_step.py

Alternating in one process, median of the ratios; also the largest difference of reused to recomputed output and the modulation's memory.
"""

import argparse
import time

import numpy as np
import torch
from diffusers import UNet2DModel

from lsdm_diffusers import SpadeUNet2DModel


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256, 384])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="latent edges")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
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
        sample = torch.randn(1, 6, size, size)
        labels = torch.randint(0, 8, (1, 4 * size, 4 * size))
        with torch.no_grad():
            modulation = spade.compute_modulation(labels, size)
            difference = (
                (spade(sample, 7, modulation=modulation).sample - spade(sample, 7, semantic_map=labels).sample)
                .abs()
                .max()
                .item()
            )
            runs = {
                "plain": lambda sample=sample: plain(sample, 7),
                "reused": lambda sample=sample, modulation=modulation: spade(sample, 7, modulation=modulation),
                "recomputed": lambda sample=sample, labels=labels: spade(sample, 7, semantic_map=labels),
            }
            seconds = {name: [] for name in runs}
            for repeat in range(args.repeats + 1):
                for name, run in runs.items():
                    start = time.perf_counter()
                    run()
                    if repeat:
                        seconds[name].append(time.perf_counter() - start)
        memory = sum(t.numel() * t.element_size() for block in modulation for pair in block for t in pair) / 2**20
        ratio = {
            name: np.median(np.array(seconds[name]) / np.array(seconds["plain"])) for name in ("reused", "recomputed")
        }
        print(
            f"latent {size}x{size}: plain {np.median(seconds['plain']):.3f} s; reused / plain {ratio['reused']:.3f}; recomputed / plain "
            f"{ratio['recomputed']:.3f}; reused - recomputed {difference:.1e}; modulation {memory:.0f} MiB"
        )


if __name__ == "__main__":
    main()
