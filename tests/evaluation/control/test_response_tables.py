"""Tables of what guidance changes in a nodule."""

import numpy as np
import pytest

from lsdm_diffusers.evaluation.control.response_tables import area_by_size_table


def test_areas_by_size_stand_beside_what_makes_real_nodules_malignant(results):
    """Drawn squares are 3.2 and 9.5 mm across; of real nodules, the small ones are the denser the more benign."""
    ratings, signs = results.real.ratings["malignancy"], np.repeat([-1, 1], 4)
    results.real_measurements["area_mm2"] = ratings
    results.real_measurements["mean_hu"] = signs * ratings
    results.real_measurements["margin_hu_per_mm"] = np.array([np.nan, *range(7)])
    rows = area_by_size_table(results).rows
    assert rows["nodules"] == {"< 6 mm": "4", "≥ 8 mm": "8"}
    assert rows["real nodules of any map"] == {"< 6 mm": "4", "≥ 8 mm": "4"}
    assert rows["real"]["< 6 mm"]["mean"] == 20
    assert rows["malignant s=1"]["≥ 8 mm"]["mean"] == 60
    assert rows["Spearman of their mean HU and malignancy"] == pytest.approx({"< 6 mm": -1, "≥ 8 mm": 1})
    assert rows["Spearman of their margin and malignancy"]["< 6 mm"] == pytest.approx(1)
