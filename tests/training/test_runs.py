"""What a training run prints: lines for people, without dictionaries and nan."""

import math

from lsdm_diffusers.training.runs import figures_text


def test_figures_are_printed_for_people():
    figures = {"t20": {"auc_ge3": 0.81234567, "auc_ge4": math.nan}, "t50": {"mae": math.inf}, "psnr": 38.2}
    text = figures_text("step 500:", figures)
    assert text == "step 500: psnr 38.2\n  t20: auc_ge3 0.8123, auc_ge4 not measured\n  t50: mae not measured"
