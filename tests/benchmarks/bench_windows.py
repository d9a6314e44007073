"""Label contrast in windows: its error against whole slices, and what a guided step costs by each method.

    python tests/benchmarks/bench_windows.py

The error is that of M·[v(m_y) - v(m_ȳ)], relative to the same from whole slices, over the page's example maps with
nodules and four steps of ten, with the shipped weights. "own statistics" evaluates both maps in the window, each group
norm by the window's own mean and deviation; "whole statistics" is what the method does. The costs alternate in one
process and are medians of ratios to an unguided step of a 512x512 map.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

import lsdm_diffusers
from lsdm_diffusers import LSDMGuidedPipeline, small_checkpoint
from lsdm_diffusers.guidance_methods import windows as windows_module
from lsdm_diffusers.guidance_methods.contrast import paint_asked, paint_opposite
from lsdm_diffusers.guidance_methods.map_variants import MapVariant, MapVariants
from lsdm_diffusers.guidance_methods.step import GuidedStep
from lsdm_diffusers.latents import encode_map
from lsdm_diffusers.models.group_norm import recorded_norms
from lsdm_diffusers.nodule_batch import requested_nodules
from lsdm_diffusers.semantic_map import find_nodules, read_semantic_map

EDGES = (16, 24, 32, 40, 48, 64)  # latents
STEPS, MEASURED_STEPS = 10, (1, 4, 7, 9)
EXAMPLES = Path(lsdm_diffusers.__file__).parent / "demo" / "examples"
MALIGNANT = {"malignancy": "malignant"}


def placed_variants(pipe: LSDMGuidedPipeline, maps: list[np.ndarray], requests: list, edge: int) -> MapVariants:
    """Variants of maps in windows of an edge that the method itself might not choose."""
    variants = [MapVariant(torch.from_numpy(each), None, requests) for each in maps]
    with patch.object(windows_module, "SMALLEST_EDGE", edge), patch.object(windows_module, "MARGIN", 0):
        return MapVariants(pipe.unet, pipe.vae, variants, 1)


def window_errors(pipe: LSDMGuidedPipeline, semantic_map: np.ndarray, errors: dict[tuple[str, int], list]) -> None:
    """Append relative error and slope of the windows of one map, for each kind and edge."""
    requests = requested_nodules(semantic_map[None], MALIGNANT)
    asked = paint_asked(semantic_map[None], requests)
    opposite = paint_opposite(asked, requests)
    labels = torch.from_numpy(asked)
    size = (semantic_map.shape[0] // 4, semantic_map.shape[1] // 4)
    map_latents = encode_map(pipe.vae, labels)
    modulation = pipe.unet.compute_modulation(labels.long(), size)
    exact = MapVariants(pipe.unet, pipe.vae, [MapVariant(torch.from_numpy(opposite), None, requests)], 1, False)
    by_edge = {edge: placed_variants(pipe, [asked, opposite], requests, edge) for edge in EDGES}

    def measure(pipe, index, timestep, tensors):
        if index + 1 not in MEASURED_STEPS:
            return {}
        latents, timestep = tensors["latents"], pipe.scheduler.timesteps[index + 1]
        with recorded_norms() as norms:
            output = pipe.unet(torch.cat([latents, map_latents], 1), timestep, modulation=modulation).sample
        step = GuidedStep(index + 1, timestep, latents, latents, output, norms, {})
        true = exact.differences(step)[0]
        for edge, both in by_edge.items():
            if not both.windowed:
                continue
            found = {"whole statistics": both.differences(step)[1]}
            with patch.object(both, "windowed", False):  # the norms then take the window's own statistics
                asked_change, opposite_change = both.differences(step)
            found["own statistics"] = opposite_change - asked_change
            for kind, difference in found.items():
                error = (difference - true).norm() / true.norm()
                slope = (difference * true).sum() / true.square().sum()
                errors[kind, edge].append((error.item(), slope.item()))
        return {}

    generator = torch.Generator().manual_seed(0)
    pipe(
        semantic_map,
        num_inference_steps=STEPS,
        generator=generator,
        output_type="latent",
        callback_on_step_end=measure,
    )


def step_costs(pipe: LSDMGuidedPipeline, num_nodules: int, repeats: int) -> dict[str, float]:
    """Time of a guided step by each method, in unguided steps."""
    labels = np.full((512, 512), 4, dtype=np.uint8)
    for number in range(num_nodules):
        y, x = 80 + 160 * (number // 3), 90 + 150 * (number % 3)
        labels[y : y + 18, x : x + 18] = 7
    calls = {
        "unguided": {},
        "contrast": {"nodule_features": MALIGNANT, "guidance_method": "contrast"},
        "classifier": {"nodule_features": MALIGNANT, "guidance_method": "classifier"},
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}

    def run(name: str) -> None:
        starts: list[float] = []

        def watch(pipe, index, timestep, tensors):
            starts.append(time.perf_counter())
            return {}

        pipe(labels, num_inference_steps=4, output_type="latent", callback_on_step_end=watch, **calls[name])
        seconds[name].append(float(np.median(np.diff(starts))))

    for _ in range(repeats + 1):  # the first run of each warms up
        for name in calls:
            run(name)
    plain = np.array(seconds["unguided"][1:])
    return {name: float(np.median(np.array(values[1:]) / plain)) for name, values in seconds.items()}


@torch.no_grad()
def measure_errors(pipe: LSDMGuidedPipeline) -> None:
    errors: dict[tuple[str, int], list] = defaultdict(list)
    for file in sorted(EXAMPLES.glob("*.png")):
        semantic_map = read_semantic_map(file)
        if find_nodules(semantic_map):
            window_errors(pipe, semantic_map, errors)
    for (kind, edge), values in sorted(errors.items()):
        error, slope = np.array(values).T
        print(
            f"windows of {edge} latents, {kind}: relative error median {np.median(error):.2f}, "
            f"largest {error.max():.2f}; slope median {np.median(slope):.2f} ({len(values)} maps and steps)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="measured runs of each method")
    args = parser.parse_args()
    pipe = LSDMGuidedPipeline.from_pretrained(small_checkpoint())
    pipe.set_progress_bar_config(disable=True)
    measure_errors(pipe)
    for num_nodules in (1, 5):
        costs = step_costs(pipe, num_nodules, args.repeats)
        print(f"{num_nodules} nodules: " + "; ".join(f"{name} {cost:.2f}" for name, cost in costs.items()))


if __name__ == "__main__":
    main()
