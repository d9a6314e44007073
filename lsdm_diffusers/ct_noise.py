"""Grain: the noise of CT scanners that an autoencoder smooths away, measured on real slices and added to made ones.

Noise of a reconstructed CT slice is Gaussian to good approximation, with a noise power spectrum that the
reconstruction kernel shapes, and a level that depends on the tissue around and on the dose. What D(E(x)) takes from a
slice x in uniform tissue is most of that noise: `measure_ct_noise` finds its spectrum and its level by tissue, and
`add_grain` draws noise of the same kind.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from .hounsfield import hu_from_scaled, scaled_hu
from .labels import SemanticLabel

NUM_FREQUENCIES = 32  # bins of the spectrum, from 0 to half a cycle per pixel; what lies above takes the last one
NUM_TISSUES = 5  # labels 0..4; noise inside nodules is that of their density
NUM_LEVELS = 11  # quantiles of the level of slices
LEVEL_RANGE = (0.05, 0.95)  # the first and the last quantile; beyond, reconstructions failed or slices are rare
LOWEST_PEAK = 5  # the first bin that the peak of a spectrum may lie in: 0.08 cycles per pixel
WINDOW = 64  # pixels of a window whose spectrum is taken
EDGE_DISTANCE = 2.0  # pixels to the next tissue from which a residual is noise, and no blurred edge
MIN_PIXELS = 200  # of a tissue in a slice, to have a deviation of its own
DEVIATION_OF_MEDIAN = 1.4826  # deviation over median absolute deviation of a Gaussian: outliers are vessels and edges
OUTLIER = 4.0  # deviations at which a residual is cut
LEVEL_LABELS = (SemanticLabel.BODY, SemanticLabel.SOFT_TISSUE, SemanticLabel.LUNG)  # large in each slice
SOLID_HU = -400  # a nodule's pixel below has the noise of lung, one above that of soft tissue


@dataclass(frozen=True)
class CTNoise:
    """What the noise of a set of scanners is like.

    Args:
        power: noise power at `NUM_FREQUENCIES` spatial frequencies, the middles of equal bins from 0 to 0.5 cycles per
            pixel, in any unit.
        deviation_hu: standard deviation in HU inside each label 0..4.
        levels: quantiles, evenly spread over `LEVEL_RANGE`, of a slice's deviation over `deviation_hu`.
    """

    power: tuple[float, ...]
    deviation_hu: tuple[float, ...]
    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        sizes = {"power": NUM_FREQUENCIES, "deviation_hu": NUM_TISSUES, "levels": NUM_LEVELS}
        for name, size in sizes.items():
            values = getattr(self, name)
            is_sound = len(values) == size and all(math.isfinite(value) and value >= 0 for value in values)
            if not is_sound or not any(values):
                raise ValueError(
                    f"`{name}` is {values}, but {size} finite numbers of at least 0, not all 0, are needed."
                )

    @classmethod
    def from_config(cls, config: Mapping[str, Sequence[float]]) -> "CTNoise":
        """Read what `to_config` wrote.

        Raises:
            ValueError: for anything else.
        """
        if set(config) != {"power", "deviation_hu", "levels"}:
            raise ValueError(f"`ct_noise` has {sorted(config)}, but power, deviation_hu and levels are needed.")
        return cls(**{name: tuple(float(value) for value in values) for name, values in config.items()})

    def to_config(self) -> dict[str, list[float]]:
        """Plain lists, for the configuration of a pipeline."""
        return {name: list(values) for name, values in asdict(self).items()}


def check_grain(grain: float, config: Mapping[str, Any] | None) -> None:
    """Raise ValueError for a `grain` that is no number of at least 0, or that needs a noise nobody measured."""
    is_number = isinstance(grain, (int, float, np.number)) and not isinstance(grain, bool)
    if not is_number or not math.isfinite(grain) or grain < 0:
        raise ValueError(f"`grain` is {grain!r}, but a finite number of at least 0 is needed.")
    if grain and not config:
        raise ValueError(
            f"`grain` is {grain}, but this checkpoint has no `ct_noise`; training/measure_ct_noise.py measures it."
        )


def _radial_frequency(height: int, width: int) -> np.ndarray:
    """Spatial frequency of each element of a 2D Fourier transform, in cycles per pixel."""
    return np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])


def noise_field(noise: CTNoise, height: int, width: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Gaussian noise of mean 0 and variance 1 with the noise power spectrum of `noise`.

    Args:
        noise: what was measured.
        height: in pixels.
        width: in pixels.
        generator: the random generator; None takes torch's own.

    Returns:
        (height, width), float32, on the CPU.
    """
    middles = (np.arange(NUM_FREQUENCIES) + 0.5) * (0.5 / NUM_FREQUENCIES)
    power = np.interp(_radial_frequency(height, width), middles, noise.power)
    power[0, 0] = 0  # noise moves no mean
    transfer = torch.from_numpy(np.sqrt(power / power.mean()))
    device = generator.device if generator is not None else "cpu"
    white = torch.randn(height, width, generator=generator, device=device, dtype=torch.float32).cpu()
    return torch.fft.ifft2(torch.fft.fft2(white.double()) * transfer).real.float()


def deviation_map(noise: CTNoise, hu: torch.Tensor, semantic_map: torch.Tensor) -> torch.Tensor:
    """The standard deviation of the noise at each pixel, (H, W), in HU; inside nodules by their density."""
    by_label = torch.tensor(noise.deviation_hu, dtype=torch.float32)
    deviation = by_label[semantic_map.long().clamp(max=NUM_TISSUES - 1)]
    lung, soft = by_label[SemanticLabel.LUNG], by_label[SemanticLabel.SOFT_TISSUE]
    is_nodule = semantic_map >= SemanticLabel.NODULE_BENIGN
    return torch.where(is_nodule, torch.where(hu < SOLID_HU, lung, soft), deviation)


def add_grain(
    hu: torch.Tensor,
    semantic_map: torch.Tensor,
    noise: CTNoise,
    grain: float,
    generator: torch.Generator | None = None,
    level: float | None = None,
) -> torch.Tensor:
    """Add CT noise to a slice: grain * level * deviation * field; level and field are drawn.

    Args:
        hu: the slice, (H, W), float, in HU.
        semantic_map: its labels 0..7, (H, W).
        noise: what was measured.
        grain: 0 returns the slice as it is, 1 adds as much as real slices have, more is like a lower dose.
        generator: the random generator; None takes torch's own.
        level: of this slice, instead of one that is drawn.

    Returns:
        (H, W), float32, not clipped.
    """
    if grain == 0:
        return hu.float()
    device = generator.device if generator is not None else "cpu"
    if level is None:
        quantile = float(torch.rand(1, generator=generator, device=device))
        level = float(np.interp(quantile, np.linspace(0, 1, NUM_LEVELS), noise.levels))
    field = noise_field(noise, hu.shape[0], hu.shape[1], generator)
    return hu.float() + grain * level * deviation_map(noise, hu, semantic_map) * field


def add_grain_to_pixels(
    pixels: torch.Tensor,
    semantic_maps: torch.Tensor,
    noise: CTNoise,
    grain: float,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> torch.Tensor:
    """`add_grain` for slices as pipelines make them.

    Args:
        pixels: (N, 1, H, W) in [-1, 1], on the CPU.
        semantic_maps: labels 0..7, (B, H, W); each map has N / B slices, one after the other.
        noise: what was measured.
        grain: as in `add_grain`.
        generator: one generator, or a list with one per slice.

    Returns:
        (N, 1, H, W), float32, clipped to [-1, 1].
    """
    maps = semantic_maps.cpu().repeat_interleave(len(pixels) // len(semantic_maps), dim=0)
    generators = generator if isinstance(generator, list) else [generator] * len(pixels)
    grained = [
        add_grain(hu_from_scaled(one), labels, noise, grain, own)
        for one, labels, own in zip(pixels[:, 0], maps, generators, strict=True)
    ]
    return scaled_hu(torch.stack(grained)[:, None]).clamp(-1, 1)


def label_deviations(residual: np.ndarray, semantic_map: np.ndarray) -> np.ndarray:
    """Robust standard deviation of a residual inside each label, away from its edges.

    Args:
        residual: real slice minus reconstructed one, (H, W), in HU.
        semantic_map: labels 0..7, (H, W).

    Returns:
        (5,) of the labels 0..4, in HU; nan where a label has too few pixels, and for the background.
    """
    deviations = np.full(NUM_TISSUES, np.nan)
    for label in range(1, NUM_TISSUES):
        inside = distance_transform_edt(np.pad(semantic_map == label, 1))[1:-1, 1:-1] > EDGE_DISTANCE
        if inside.sum() >= MIN_PIXELS:
            values = residual[inside]
            deviations[label] = DEVIATION_OF_MEDIAN * np.median(np.abs(values - np.median(values)))
    return deviations


def relative_level(noise: CTNoise, residual: np.ndarray, semantic_map: np.ndarray) -> float:
    """The level of a slice's noise over that of `noise`; 1 where no tissue is large enough to measure.

    Args:
        noise: what was measured of many slices.
        residual: real slice minus reconstructed one, (H, W), in HU.
        semantic_map: labels 0..7, (H, W).
    """
    deviations = label_deviations(residual, semantic_map)
    ratios = [deviations[label] / noise.deviation_hu[label] for label in LEVEL_LABELS if noise.deviation_hu[label]]
    measured = [ratio for ratio in ratios if np.isfinite(ratio)]
    return float(np.median(measured)) if measured else 1.0


def _window_power(residual: np.ndarray, semantic_map: np.ndarray, deviations: np.ndarray) -> list[np.ndarray]:
    """Noise power of the windows that lie inside the body, (NUM_FREQUENCIES,) each, every window of one variance."""
    by_label = np.full(len(SemanticLabel), np.inf)  # nodules have structure of their own
    by_label[:NUM_TISSUES] = np.where(deviations > 0, deviations, np.inf)
    scale = by_label[semantic_map]
    relative = np.clip(residual / scale, -OUTLIER, OUTLIER)
    taper = np.hanning(WINDOW + 2)[1:-1]
    bins = np.minimum(_radial_frequency(WINDOW, WINDOW) * 2 * NUM_FREQUENCIES, NUM_FREQUENCIES - 1).astype(int)
    sizes = np.bincount(bins.ravel(), minlength=NUM_FREQUENCIES)
    spectra = []
    for top in range(0, residual.shape[0] - WINDOW + 1, WINDOW):
        for left in range(0, residual.shape[1] - WINDOW + 1, WINDOW):
            window = (slice(top, top + WINDOW), slice(left, left + WINDOW))
            if (semantic_map[window] == SemanticLabel.BACKGROUND).any():
                continue
            values = relative[window] - relative[window].mean()
            power = np.abs(np.fft.fft2(values * taper[:, None] * taper)) ** 2
            if power.sum() > 0:
                spectra.append(np.bincount(bins.ravel(), (power / power.sum()).ravel(), NUM_FREQUENCIES) / sizes)
    return spectra


def _without_structure(power: np.ndarray) -> np.ndarray:
    """Cut what anatomy leaves at low frequencies: noise of filtered back-projection rises in proportion there."""
    frequency = np.arange(NUM_FREQUENCIES) + 0.5
    peak = LOWEST_PEAK + int(np.argmax(power[LOWEST_PEAK:]))
    limit = power[peak] * frequency / frequency[peak]
    return np.where(np.arange(NUM_FREQUENCIES) < peak, np.minimum(power, limit), power)


def measure_ct_noise(slices: Iterable[tuple[np.ndarray, np.ndarray]]) -> CTNoise:
    """Measure spectrum, deviation by tissue and levels of the noise that reconstructions lack.

    Args:
        slices: residual (real minus reconstructed, (H, W), in HU) and labels (H, W) of each slice.

    Raises:
        ValueError: if there is no window of 64x64 pixels inside a body, or no lung or soft tissue.
    """
    by_slice, spectra = [], []
    for residual, semantic_map in slices:
        deviations = label_deviations(residual, semantic_map)
        by_slice.append(deviations)
        spectra += _window_power(residual, semantic_map, deviations)
    table = np.array(by_slice).reshape(-1, NUM_TISSUES)
    found = np.isfinite(table).any(0)
    if not spectra or not found[[SemanticLabel.LUNG, SemanticLabel.SOFT_TISSUE]].all():
        raise ValueError(
            "`slices` show no lung, no soft tissue or no 64x64 pixels of body, so no noise can be measured."
        )
    deviation = np.zeros(NUM_TISSUES)
    deviation[found] = np.nanmedian(table[:, found], axis=0)
    measured = [label for label in LEVEL_LABELS if found[label] and deviation[label] > 0]
    ratios = table[:, measured] / deviation[measured]
    levels = np.nanmedian(ratios[np.isfinite(ratios).any(1)], axis=1)
    power = _without_structure(np.mean(spectra, axis=0))
    return CTNoise(
        power=tuple(float(f"{value:.4g}") for value in power / power.mean()),
        deviation_hu=tuple(round(float(value), 2) for value in deviation),
        levels=tuple(round(float(value), 3) for value in np.quantile(levels, np.linspace(*LEVEL_RANGE, NUM_LEVELS))),
    )
