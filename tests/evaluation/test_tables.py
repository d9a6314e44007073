"""Tables, estimates and files of results."""

import json

import numpy as np

from lsdm_diffusers.evaluation.tables import format_estimate, markdown_table, write_json


def test_numbers_are_written_as_they_are():
    lines = markdown_table(["arm", "area"], [["none", "79.0"], ["guided", "7e3"]]).splitlines()
    assert len(lines) == 4 and "| 79.0 " in lines[2] and "| 7e3 " in lines[3]


def test_an_estimate_without_an_interval_is_its_mean():
    assert format_estimate({"mean": 0.5, "interval": [0.25, 0.75]}, "+.2f") == "+0.50 (+0.25 ... +0.75)"
    assert format_estimate({"mean": 0.5, "interval": [np.nan, np.nan]}) == "0.500"


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "results.json", {"mean": 1.0, "interval": [float("nan"), float("inf")]})
    assert json.loads((tmp_path / "results.json").read_text()) == {"mean": 1.0, "interval": [None, None]}
