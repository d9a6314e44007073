"""A table of the report: numbers and estimates by row and column, written in Markdown."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..bootstrap import Estimate
from ..tables import markdown_table

Cell = float | str | Estimate
Row = Mapping[str, Cell]  # {column: cell}


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        title: its heading.
        caption: what it shows, with the number of nodules and patients and the units.
        rows: {row: {column: number, text or estimate}}; a row may lack columns.
    """

    title: str
    caption: str
    rows: Mapping[str, Row]

    def markdown(self) -> str:
        """The table with its heading and its caption."""
        columns = list(dict.fromkeys(column for row in self.rows.values() for column in row))
        lines = [[name, *(cell_text(row.get(column, "")) for column in columns)] for name, row in self.rows.items()]
        return f"## {self.title}\n\n{self.caption}\n\n{markdown_table(['', *columns], lines)}\n"


def cell_text(cell: Cell) -> str:
    """A cell with three significant digits, an estimate with its interval.

    >>> cell_text({"mean": 0.744, "interval": [0.689, 0.8]})
    '0.74 [0.69, 0.80]'
    """
    if isinstance(cell, str):
        return cell
    if isinstance(cell, (int, float)):
        return _number_text(cell)
    if any(math.isnan(bound) for bound in cell["interval"]):
        return _number_text(cell["mean"])
    return f"{_number_text(cell['mean'])} [{', '.join(map(_number_text, cell['interval']))}]"


def _number_text(value: float) -> str:
    if math.isnan(value):
        return "–"
    decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{decimals}f}"
