"""Windows of the latents around nodules, in which the U-Net sees other versions of the map."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..guidance import nodule_mask
from ..models.unet_spade import BlockModulation, NormModulation
from ..nodule_batch import NoduleRequest

# tests/benchmarks/bench_windows.py measures the error of windows of several sizes.
SMALLEST_EDGE = 32  # latents
MARGIN = 12  # latents on each side of the guided area, before corners are moved to whole multiples


@dataclass(frozen=True)
class Window:
    """A window of one map's latents, and where nodules are guided in it.

    Args:
        map_index: index of the map.
        box: (y0, x0, y1, x1), half-open, in latents.
        mask: boolean, of the size of the box.
    """

    map_index: int
    box: tuple[int, int, int, int]
    mask: torch.Tensor

    def cut(self, tensor: torch.Tensor, factor: int = 1) -> torch.Tensor:
        """Cut the window out of (..., h, w), whose cells are `factor` latents wide."""
        y0, x0, y1, x1 = (edge // factor for edge in self.box)
        return tensor[..., y0:y1, x0:x1]


def guided_areas(requests: Sequence[NoduleRequest], map_size: tuple[int, int], factor: int) -> list[Window]:
    """Where each nodule is guided: its dilated mask, in one window for each, which is the whole slice.

    Where such areas of a map overlap, a latent belongs to the first of them, so that no latent is guided twice. A
    nodule that has nothing left is left out.

    Args:
        requests: the nodules.
        map_size: H and W in pixels.
        factor: down-sampling f of the autoencoder.
    """
    size = (map_size[0] // factor, map_size[1] // factor)
    taken: dict[int, torch.Tensor] = {}
    areas = []
    for request in requests:
        area = nodule_mask(torch.from_numpy(request.nodule.mask(map_size)), size)
        others = taken.setdefault(request.map_index, torch.zeros_like(area))
        area &= ~others
        others |= area
        if area.any():
            areas.append(Window(request.map_index, (0, 0, *size), area))
    return areas


def whole_slices(areas: Sequence[Window]) -> list[Window]:
    """The areas of `guided_areas`, those of a map together in one window."""
    merged: dict[int, Window] = {}
    for area in areas:
        known = merged.get(area.map_index)
        mask = area.mask if known is None else known.mask | area.mask
        merged[area.map_index] = Window(area.map_index, area.box, mask)
    return list(merged.values())


def window_edge(areas: Sequence[Window], multiple: int) -> int:
    """Edge of square windows that hold each area with its margin; a multiple of `multiple`, in latents."""
    longest = max(last - first for area in areas for first, last in _extents(area.mask))
    return math.ceil(max(longest + 2 * MARGIN, SMALLEST_EDGE) / multiple) * multiple


def close_windows(areas: Sequence[Window], edge: int, multiple: int) -> list[Window]:
    """The areas of `guided_areas`, each in the window around its middle; at the border it is moved inside the slice.

    Args:
        areas: in whole slices of at least `edge` latents.
        edge: of the windows, in latents.
        multiple: what their corners are multiples of.
    """
    windows = []
    for area in areas:
        corner = []
        for (first, last), limit in zip(_extents(area.mask), area.mask.shape, strict=True):
            start = round((first + last - edge) / 2 / multiple) * multiple
            corner.append(min(max(start, 0), limit - edge))
        window = Window(area.map_index, (corner[0], corner[1], corner[0] + edge, corner[1] + edge), area.mask)
        windows.append(Window(window.map_index, window.box, window.cut(area.mask)))
    return windows


def _extents(mask: torch.Tensor) -> list[tuple[int, int]]:
    """First row and the one past the last, and the same of columns, of a mask (h, w) that is not empty."""
    extents = []
    for dim in (1, 0):
        occupied = mask.any(dim).nonzero().flatten()
        extents.append((int(occupied[0]), int(occupied[-1]) + 1))
    return extents


def cut_modulation(
    modulation: Sequence[BlockModulation], windows: Sequence[Window], height: int
) -> tuple[BlockModulation, ...]:
    """The modulation of N windows, out of that of whole maps.

    Args:
        modulation: from `SpadeUNet2DModel.compute_modulation`.
        windows: N of them.
        height: h of the latents.
    """

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        factor = height // tensor.shape[-2]
        return torch.stack([window.cut(tensor[window.map_index], factor) for window in windows])

    def cut_norm(norm: NormModulation) -> NormModulation:
        return cut(norm[0]), cut(norm[1])

    return tuple((cut_norm(first), cut_norm(second)) for first, second in modulation)


def stack_modulations(modulations: Sequence[Sequence[BlockModulation]]) -> tuple[BlockModulation, ...]:
    """One modulation whose batch is that of all `modulations`, one after the other."""

    def stack(norms: Sequence[NormModulation]) -> NormModulation:
        return torch.cat([scale for scale, _ in norms]), torch.cat([shift for _, shift in norms])

    blocks = zip(*modulations, strict=True)
    return tuple((stack([first for first, _ in same]), stack([second for _, second in same])) for same in blocks)
