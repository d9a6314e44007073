"""Images compared with the real slices of their maps: the real slices themselves have the best figures."""

import numpy as np
import pytest
import torch
from datasets import load_dataset

from lsdm_diffusers.evaluation.slices import slices_with_nodules

comparison = pytest.importorskip(
    "lsdm_diffusers.evaluation.comparison", reason="torchmetrics (the extra eval) is not installed"
)


class MeanAndDeviation(torch.nn.Module):
    """Features of an image that need no network."""

    def forward(self, images):
        return torch.stack([images.mean(dim=(1, 2, 3)), images.std(dim=(1, 2, 3))], dim=1)


@pytest.fixture
def compared(dataset, tmp_path):
    slices = slices_with_nodules(load_dataset(str(dataset), split="validation"))
    return slices, comparison.Comparison(slices, MeanAndDeviation(), tmp_path, None, False, torch.device("cpu"))


def test_the_real_slices_have_no_distance_to_themselves(compared):
    slices, comparison = compared
    figures = comparison.measure([ct_slice.hu for ct_slice in slices])
    assert figures["ssim"] == pytest.approx(1) and figures["hu_distance"] == figures["hu_distance_lung"] == 0
    assert figures["fid"] == pytest.approx(0, abs=1e-6) and figures["nodule_fid"] == pytest.approx(0, abs=1e-6)
    # the yardstick is made of the same figures, without those of pairs
    yardstick = comparison.yardstick(slices)
    assert yardstick == {name: figures[name] for name in figures if name not in ("ssim", "psnr")}


def test_darker_images_are_further_away(compared):
    slices, comparison = compared
    near, far = (comparison.measure([ct_slice.hu - shift for ct_slice in slices]) for shift in (20, 100))
    for name in ("fid", "nodule_fid", "hu_distance"):
        assert near[name] < far[name]
    assert near["psnr"] > far["psnr"]


def test_speeds_are_kept_for_each_step(compared):
    slices, comparison = compared
    comparison.measure([ct_slice.hu for ct_slice in slices])
    comparison.measure([ct_slice.hu + 1 for ct_slice in slices])
    speeds = comparison.speed.images_a_second()
    assert speeds.keys() == {"features", "cached features", "pairs", "obedience"}
    assert all(np.isfinite(speed) and speed > 0 for speed in speeds.values())
