"""The writers of results: tables in Markdown, estimates with their intervals, and files of JSON."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..io.atomic_write import write_atomically
from .bootstrap import Estimate


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown, its columns padded to equal width.

    Args:
        headers: one for each column.
        rows: one value for each column; numbers are written as they are, so format them before.

    >>> print(markdown_table(["arm", "area"], [["none", "79.0"]]))
    | arm   | area   |
    |-------|--------|
    | none  | 79.0   |
    """
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def format_estimate(estimate: Estimate, number_format: str = ".3f") -> str:
    """A mean and its interval as a cell of a table; the mean alone where there is no interval.

    >>> format_estimate({"mean": 0.5, "interval": [0.25, 0.75]}, ".2f")
    '0.50 (0.25 ... 0.75)'
    """
    mean = format(estimate["mean"], number_format)
    if any(math.isnan(bound) for bound in estimate["interval"]):
        return mean
    return f"{mean} ({' ... '.join(format(bound, number_format) for bound in estimate['interval'])})"


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write results as JSON, whole or not at all; NaN and infinity, which JSON does not have, become null."""
    without_nan = json.loads(json.dumps(content), parse_constant=lambda _: None)
    write_atomically(file, (json.dumps(without_nan, indent=1) + "\n").encode())
