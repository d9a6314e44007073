"""The report of a run: control.json, control.md and the pictures."""

from pathlib import Path

from ...io.atomic_write import write_atomically
from ..tables import write_json
from .arms import Pole
from .image_tables import locality_table, obedience_table, plausibility_table
from .judge_tables import (
    ceiling_table,
    correlations_table,
    cross_feature_table,
    method_table,
    own_rating_table,
    transfer_table,
)
from .pictures import save_pictures
from .response_tables import response_tables, sham_table, texture_table
from .results import ControlResults
from .table import Table


def control_tables(results: ControlResults) -> list[Table]:
    """Every table of the report."""
    return [
        ceiling_table(results),
        method_table(results),
        own_rating_table(results),
        *response_tables(results),
        transfer_table(results),
        cross_feature_table(results),
        correlations_table(results),
        sham_table(results),
        obedience_table(results),
        plausibility_table(results, Pole.LOW),
        plausibility_table(results, Pole.HIGH),
        locality_table(results),
        texture_table(results),
    ]


def write_report(results: ControlResults, setting: str, folder: Path, num_nodules: int) -> str:
    """Write control.json, control.md and the pictures.

    Args:
        results: of a run.
        setting: a paragraph that says how the images were made and judged.
        folder: for the files.
        num_nodules: nodules in ladder.png and controls.png.

    Returns:
        The text of control.md.
    """
    tables = control_tables(results)
    content = {table.title: {"caption": table.caption, "rows": table.rows} for table in tables}
    write_json(folder / "control.json", {"setting": setting, "tables": content})
    text = "\n".join(["# Control", "", setting, "", *(table.markdown() for table in tables)])
    write_atomically(folder / "control.md", text.encode())
    save_pictures(results, folder, num_nodules)
    return text
