"""The picture of a prepared dataset: histograms only where nodules are rated."""

import pytest
from matplotlib.figure import Figure

from lsdm_diffusers.data.dataset_report import draw_ratings
from lsdm_diffusers.nodule_features import NODULE_FEATURES

RATED = {"nodule_id": "1", **dict.fromkeys(NODULE_FEATURES, 4.0)}
UNRATED = {"nodule_id": "2", **dict.fromkeys(NODULE_FEATURES)}


@pytest.mark.parametrize(
    ("nodules", "titles"),
    [
        ([], []),
        ([[], [UNRATED]], []),
        ([[RATED], [RATED, UNRATED]], [f"{name}, 1 nodules" for name in NODULE_FEATURES]),
    ],
)
def test_there_are_histograms_where_there_are_ratings(nodules, titles):
    figure = Figure()
    draw_ratings(figure, nodules, "2 slices")
    assert [axes.get_title() for axes in figure.axes[:-1]] == titles
    assert figure.axes[-1].get_legend().get_title().get_text() == "2 slices"
