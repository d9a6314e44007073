"""Tables in Markdown."""

import pytest

from lsdm_diffusers.evaluation.control.table import Table, cell_text

NAN = float("nan")


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("12", "12"),
        (123.4, "123"),
        (-12.34, "-12.3"),
        (NAN, "–"),
        ({"mean": 0.744, "interval": [0.689, 0.8]}, "0.74 [0.69, 0.80]"),
        ({"mean": 0.744, "interval": [NAN, NAN]}, "0.74"),
    ],
)
def test_cells(cell, text):
    assert cell_text(cell) == text


def test_a_row_may_lack_columns():
    lines = Table("Title", "Caption.", {"a": {"x": 1.0}, "b": {"y": "text"}}).markdown().splitlines()
    assert lines[:4] == ["## Title", "", "Caption.", ""]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:]]
    assert cells[0] == ["", "x", "y"]
    assert cells[2:] == [["a", "1.00", ""], ["b", "", "text"]]
