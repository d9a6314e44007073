"""The one writer of tables in Markdown."""

from collections.abc import Iterable, Sequence

from tabulate import tabulate


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
