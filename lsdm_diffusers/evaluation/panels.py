"""Panels of the evaluation's pictures: slices in the lung window, maps in their colours."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ..hounsfield import window_limits
from ..labels import PALETTE


def show_hu(axis: Axes, hu: np.ndarray, window: str | tuple[float, float] = "lung") -> None:
    """Draw a slice (H, W) in HU in a viewer's window."""
    centre, width = window_limits(window)
    axis.imshow(hu, cmap="gray", vmin=centre - width / 2, vmax=centre + width / 2)


def show_map(axis: Axes, semantic_map: np.ndarray) -> None:
    """Draw a semantic map (H, W) in the colours of its labels."""
    axis.imshow(PALETTE[semantic_map])


def panel_grid(rows: int, columns: int, width: float = 1.55) -> tuple[Figure, np.ndarray]:
    """A figure of square panels without ticks.

    Args:
        rows: number of panels down the figure.
        columns: number of panels across the figure.
        width: of a panel in inches.

    Returns:
        The figure and its axes, (rows, columns).
    """
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    figure = Figure(figsize=(width * columns + 0.6, width * rows + 0.5), layout=layout)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes
