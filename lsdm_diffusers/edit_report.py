"""The page that shows what `lsdm-edit` changed: each slice before, after, and the difference."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .hounsfield import WINDOWS
from .io.atomic_write import write_atomically
from .io.dicom.series import CtSeries
from .nodule_crop import square_window

CLOSE_UP = 96  # pixels; edge of the pictures at least
MARGIN = 24  # pixels around an edit
DIFFERENCE_HU = 600  # white and black of the pictures of differences
INCHES, DPI = 2.2, 90
STYLE = "body{font-family:sans-serif;max-width:60em;margin:2em auto;padding:0 1em}img{max-width:100%}td{padding:0 1em}"


def _rows_png(series: CtSeries, hu: np.ndarray, part: Sequence[slice]) -> str:
    """Before, after and difference of the slices of an edit as a PNG in base64."""
    slices = range(part[0].start, part[0].stop)
    centre = tuple((side.start + side.stop - 1) / 2 for side in part[1:])
    extent = max(side.stop - side.start for side in part[1:]) + 2 * MARGIN
    edge = min(max(CLOSE_UP, extent), *hu.shape[1:])
    y0, x0, y1, x1 = square_window((centre[0], centre[1]), hu.shape[1:], edge)
    level, width = WINDOWS["lung"]
    figure = Figure(figsize=(3 * INCHES, len(slices) * INCHES + 0.3), layout="constrained")
    axes = figure.subplots(len(slices), 3, squeeze=False)
    for row, index in zip(axes, slices, strict=True):
        before, after = (volume[index, y0:y1, x0:x1].astype(np.int32) for volume in (series.hu, hu))
        for axis, picture in zip(row[:2], (before, after), strict=True):
            axis.imshow(picture, cmap="gray", vmin=level - width / 2, vmax=level + width / 2)
        row[2].imshow(after - before, cmap="gray", vmin=-DIFFERENCE_HU, vmax=DIFFERENCE_HU)
        row[0].set_title(f"slice {index}, z = {series.place_of((index, 0, 0))[0]:g} mm", fontsize=8)
        row[1].set_title("after", fontsize=8)
        row[2].set_title(f"difference, -{DIFFERENCE_HU}..{DIFFERENCE_HU} HU", fontsize=8)
        for axis in row:
            axis.axis("off")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def write_report(
    path: Path,
    series: CtSeries,
    hu: np.ndarray,
    changed: np.ndarray,
    pictures: Sequence[tuple[str, Sequence[slice]]],
    entries: Sequence[dict[str, Any]],
) -> None:
    """Write one HTML file with its pictures inside.

    Args:
        path: of the file.
        series: the source.
        hu: (Z, H, W), with all edits.
        changed: boolean (Z, H, W).
        pictures: title and part of the series of each edit.
        entries: what `edits.json` says of each edit.
    """
    outside = int((series.hu != hu)[~changed].sum())
    facts = [
        ("source series", series.series_instance_uid),
        ("slices", f"{len(hu)}, of which {int(changed.any((1, 2)).sum())} changed"),
        ("pixels", f"{int(changed.sum())} inside the masks; {outside} changed outside"),
        ("pixel, slice spacing", f"{series.pixel_spacing_mm:g} mm, {series.slice_spacing_mm:g} mm"),
    ]
    parts = [f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in facts]
    body = [f"<table>{''.join(parts)}</table>"]
    for (title, part), entry in zip(pictures, entries, strict=True):
        mean = f"mean of the nodule {entry['mean_hu_before']:.0f} HU before, {entry['mean_hu_after']:.0f} HU after"
        body.append(f"<h2>{html.escape(title)}</h2><p>{mean}</p>")
        body.append(f'<img alt="{html.escape(title)}" src="data:image/png;base64,{_rows_png(series, hu, part)}">')
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Edited series</title><style>{STYLE}</style>"
        "<h1>Edited series</h1><p><b>Synthetic. Not for clinical use.</b> Pictures in the lung window; before is the "
        f"source, after is the series with all edits.</p>{''.join(body)}</html>\n"
    )
    write_atomically(path, page.encode())
