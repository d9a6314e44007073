"""A drawing function for each of the thesis' Figures 5.1 to 5.9; images are in the lung window."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ...hounsfield import hu_from_scaled
from ...nodule_crop import CROP
from ...nodule_features import HIGHEST_RATING, LOWEST_RATING, NODULE_FEATURES
from ..gradients import image_gradient, latent_gradient, noisy_nodules
from ..images import guidable_features, reconstruct
from ..metrics import psnr
from ..panels import panel_grid, show_hu, show_map
from ..slices import pixels_from_hu
from ..windows import NoduleWindow, centred_window
from .source import MALIGNANCIES, FigureSource, true_ratings

GUIDANCE_DIFFERENCE_HU = 300  # limit of the colours of what guidance changes
MALIGNANCY_DIFFERENCE_HU = 600  # of malignant minus benign
RECONSTRUCTION_DIFFERENCE_HU = 100
GRADIENT_QUANTILE = 0.995  # of |gradient|: the limit of its colours, so that one pixel does not set it
LARGEST_NODULES = 2  # of each map in Figure 5.3
RATING_COLUMNS = HIGHEST_RATING - LOWEST_RATING + 1


def show_difference(axis: Axes, difference_hu: np.ndarray, limit_hu: float = GUIDANCE_DIFFERENCE_HU) -> None:
    axis.imshow(difference_hu, cmap="RdBu_r", vmin=-limit_hu, vmax=limit_hu)


def add_difference_bar(figure: Figure, axes: Sequence[Axes] | np.ndarray, limit_hu: float) -> None:
    """Add a colour bar of differences in HU at the right of the axes."""
    figure.set_figwidth(figure.get_figwidth() + 0.8)
    colours = ScalarMappable(Normalize(-limit_hu, limit_hu), "RdBu_r")
    bar = figure.colorbar(colours, ax=axes, shrink=0.6, pad=0.01, aspect=30)
    bar.set_label("difference, HU", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def add_box(axis: Axes, window: tuple[slice, slice], width: float) -> None:
    """Outline a window of the image in red."""
    rows, columns = window
    edges = columns.stop - columns.start, rows.stop - rows.start
    corner = (columns.start, rows.start)
    axis.add_patch(Rectangle(corner, *edges, fill=False, edgecolor="tab:red", linewidth=width))


def show_real_nodules(source: FigureSource, axes: Sequence[Axes] | np.ndarray) -> None:
    """Draw in each axis the real crop of a window with the outline of the drawn nodule."""
    for axis, window in zip(axes, source.windows, strict=True):
        show_hu(axis, window.crop(window.hu))
        axis.contour(window.crop(window.mask()), levels=[0.5], colors=["tab:orange"], linewidths=0.9)


def write_ratings(axis: Axes, window: NoduleWindow) -> None:
    """Write the nodule's ratings into an axis, a line each."""
    lines = [f"{feature} {window.ratings[feature]:g}" for feature in NODULE_FEATURES if window.ratings[feature]]
    axis.text(0.5, 0.5, "\n".join(lines), ha="center", va="center", fontsize=8)


def set_titles(axes: Sequence[Axes] | np.ndarray, titles: Sequence[str], size: int = 9) -> None:
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=size)


def draw_reconstructions(source: FigureSource) -> Figure:
    """Figure 5.1: slices and what the autoencoder makes of them."""
    figure, axes = panel_grid(len(source.slices), 5, 2.3)
    for ct_slice, line in zip(source.slices, axes, strict=True):
        pixels = pixels_from_hu([ct_slice.hu])
        reconstruction = reconstruct(source.pipe.vae, pixels).float().cpu().clamp(-1, 1)
        decibels = float(psnr(pixels, reconstruction)[0])
        rebuilt_hu = hu_from_scaled(reconstruction[0, 0].numpy())
        difference = rebuilt_hu - ct_slice.hu
        box = centred_window(ct_slice.hu.shape, ct_slice.nodules[0].centroid_yx, min(ct_slice.hu.shape) // 4)
        images = (ct_slice.hu, rebuilt_hu, ct_slice.hu[box], rebuilt_hu[box])
        for axis, image in zip(line[:4], images, strict=True):
            show_hu(axis, image)
        for axis in line[:2]:
            add_box(axis, box, 1.2)
        show_difference(line[4], difference[box], RECONSTRUCTION_DIFFERENCE_HU)
        line[0].set_ylabel(f"PSNR {decibels:.1f} dB\nmean |error| {np.abs(difference).mean():.1f} HU", fontsize=8)
    boxes = ("original, box", "reconstruction, box", "reconstruction - original")
    set_titles(axes[0], ("original", "reconstruction", *boxes))
    add_difference_bar(figure, axes[:, 4], RECONSTRUCTION_DIFFERENCE_HU)
    return figure


def sample_methods(source: FigureSource) -> dict[str, list[np.ndarray]]:
    """{method: a slice in HU of each map}: real, baselines, LSDM, LSDM guided by all true ratings."""
    methods = {"real": [ct_slice.hu for ct_slice in source.slices]}
    for name, pipe in source.baselines.items():
        methods[name] = source.sample_slices(pipe)
    methods["LSDM"] = source.sample_slices(source.pipe)
    guidable = guidable_features(source.pipe)
    if guidable:
        methods["LSDM, guided"] = source.sample_slices(source.pipe, guidable)
    return methods


def draw_slices(source: FigureSource) -> Figure:
    """Figure 5.2: the same maps by every method, whole slices."""
    methods = sample_methods(source)
    figure, axes = panel_grid(len(source.slices), 1 + len(methods), 2.6)
    for index, (ct_slice, line) in enumerate(zip(source.slices, axes, strict=True)):
        show_map(line[0], ct_slice.semantic_map)
        for axis, images in zip(line[1:], methods.values(), strict=True):
            show_hu(axis, images[index])
        for axis in line:
            for nodule in ct_slice.nodules:
                add_box(axis, centred_window(ct_slice.hu.shape, nodule.centroid_yx, CROP), 0.9)
    set_titles(axes[0], ("semantic map", *methods), 10)
    return figure


def draw_largest_nodules(source: FigureSource) -> Figure:
    """Figure 5.3: the largest nodules of Figure 5.2 by every method."""
    methods = sample_methods(source)
    depicted = []
    for index, ct_slice in enumerate(source.slices):
        largest = sorted(ct_slice.nodules, key=lambda nodule: -nodule.area)[:LARGEST_NODULES]
        depicted += [(index, nodule) for nodule in largest]
    figure, axes = panel_grid(1 + len(methods), len(depicted), 1.7)
    for (index, nodule), column in zip(depicted, axes.T, strict=True):
        labels = source.slices[index].semantic_map
        window = centred_window(labels.shape, nodule.centroid_yx, min(CROP, *labels.shape))
        show_map(column[0], labels[window])
        for axis, images in zip(column[1:], methods.values(), strict=True):
            show_hu(axis, images[index][window])
            axis.contour(nodule.mask(labels.shape)[window], levels=[0.5], colors=["tab:orange"], linewidths=0.6)
    for axis, title in zip(axes[:, 0], ("semantic map", *methods), strict=True):
        axis.set_ylabel(title, fontsize=10)
    return figure


def draw_image_gradients(source: FigureSource) -> Figure:
    """Figure 5.4: gradients of the malignancy classifier with respect to the decoded noisy crop."""
    source.guidable("5.4", ("malignancy",))

    def gradient(images: torch.Tensor, latents: torch.Tensor, timestep: int, malignant: bool) -> np.ndarray:
        g: np.ndarray = image_gradient(source.pipe, images, timestep, malignant).cpu().numpy()
        return g

    return draw_gradients(source, gradient, as_colours=False)


def draw_latent_gradients(source: FigureSource) -> Figure:
    """Figure 5.5: the same gradients with respect to the latents, as guidance applies them."""
    source.guidable("5.5", ("malignancy",))
    masks = [window.crop(window.mask()) for window in source.windows]

    def gradient(images: torch.Tensor, latents: torch.Tensor, timestep: int, malignant: bool) -> np.ndarray:
        g: np.ndarray = latent_gradient(source.pipe, latents, timestep, malignant, masks).cpu().numpy()
        return g

    return draw_gradients(source, gradient, as_colours=True)


def draw_gradients(
    source: FigureSource, gradient: Callable[[torch.Tensor, torch.Tensor, int, bool], np.ndarray], as_colours: bool
) -> Figure:
    """For each nodule the lines D(z_t), benign and malignant; a column for each timestep.

    Args:
        source: what the figures are drawn from.
        gradient: of images, latents, timestep and whether malignant: (N, c, h, w).
        as_colours: whether three channels are drawn as colours around grey; otherwise their mean is drawn.
    """
    crops = [window.crop(window.hu) for window in source.windows]
    figure, axes = panel_grid(3 * len(crops), 1 + len(source.timesteps), 1.45)
    for column, timestep in enumerate(source.timesteps, start=1):
        latents, images = noisy_nodules(source.pipe, crops, timestep, source.seed)
        by_malignancy = {
            malignancy: gradient(images, latents, timestep, malignancy == "malignant") for malignancy in MALIGNANCIES
        }
        images_hu = hu_from_scaled(images[:, 0].cpu().numpy())
        for number, image in enumerate(images_hu):
            lines = axes[3 * number : 3 * number + 3, column]
            show_hu(lines[0], image)
            for axis, malignancy in zip(lines[1:], MALIGNANCIES, strict=True):
                show_gradient(axis, by_malignancy[malignancy][number], as_colours)
        axes[0, column].set_title(f"t = {timestep}", fontsize=9)
    show_real_nodules(source, axes[::3, 0])
    axes[0, 0].set_title("real", fontsize=9)
    for number, window in enumerate(source.windows):
        first = axes[3 * number : 3 * number + 3, 0]
        for axis, label in zip(first, ("$D(z_t)$", *MALIGNANCIES), strict=True):
            axis.set_ylabel(label, fontsize=9)
        for axis in first[1:]:
            axis.spines[:].set_visible(False)
        write_ratings(first[1], window)
    return figure


def show_gradient(axis: Axes, gradient: np.ndarray, as_colours: bool) -> None:
    """Draw a gradient (c, h, w) on a scale of its own, with its maximum."""
    limit = max(float(np.quantile(np.abs(gradient), GRADIENT_QUANTILE)), float(np.finfo(np.float32).tiny))
    if as_colours and len(gradient) == 3:
        axis.imshow(np.clip(0.5 + gradient.transpose(1, 2, 0) / (2 * limit), 0, 1))
    else:
        axis.imshow(gradient.mean(axis=0), cmap="RdBu_r", vmin=-limit, vmax=limit)
    text = f"max {np.abs(gradient).max():.2g}"
    axis.text(0.97, 0.03, text, transform=axis.transAxes, ha="right", va="bottom", fontsize=6)


def draw_settings(source: FigureSource) -> Figure:
    """Figure 5.6: guidance by one feature, and by all of them, sequentially or jointly."""
    guidable, scale = source.guidable("5.6"), source.guidance_scale
    unguided = source.sample_nodules()
    columns = {}
    for feature in guidable:
        images = source.sample_nodules(f"true-{feature}", true_ratings([feature]), scale)
        columns[f"{feature}\nalone"] = images
    for order in ("sequential", "joint"):
        columns[f"all,\n{order}"] = source.sample_nodules("true-all", true_ratings(guidable), scale, order)
    figure, axes = panel_grid(2 * len(source.windows), 2 + len(columns), 1.5)
    show_real_nodules(source, axes[::2, 0])
    for number, window in enumerate(source.windows):
        upper, lower = axes[2 * number], axes[2 * number + 1]
        show_hu(upper[1], unguided[number])
        for axis, below, images in zip(upper[2:], lower[2:], columns.values(), strict=True):
            show_hu(axis, images[number])
            show_difference(below, images[number] - unguided[number])
        write_ratings(lower[0], window)
        lower[1].text(0.5, 0.5, "guided\n- unguided", ha="center", va="center", fontsize=8)
        for axis in lower[:2]:
            axis.axis("off")
    set_titles(axes[0], ("real", "unguided", *columns))
    add_difference_bar(figure, axes[:, -1], GUIDANCE_DIFFERENCE_HU)
    return figure


def draw_ratings(source: FigureSource) -> Figure:
    """Figure 5.7: each feature alone at each of its ratings; malignancy at benign and malignant."""
    guidable, scale = source.guidable("5.7"), source.feature_scale
    unguided = source.sample_nodules()
    figure, axes = panel_grid(len(guidable) * len(source.windows), 2 + RATING_COLUMNS, 1.5)
    for axis in axes.ravel():
        axis.spines[:].set_visible(False)
    for line, feature in enumerate(guidable):
        places: Mapping[str | int, int] = {value: 1 + value for value in range(LOWEST_RATING, HIGHEST_RATING + 1)}
        if feature == "malignancy":
            places = {"benign": 2, "malignant": 1 + HIGHEST_RATING}
        for value, column in places.items():
            images = source.sample_value(feature, value, scale)
            for number, image in enumerate(images):
                axis = axes[len(guidable) * number + line, column]
                show_hu(axis, image)
                axis.set_title(f"{value}", fontsize=9)
        for number in range(len(source.windows)):
            axes[len(guidable) * number + line, 2].set_ylabel(feature, fontsize=9)
    for number, window in enumerate(source.windows):
        first = axes[len(guidable) * number, :2]
        show_hu(first[0], window.crop(window.hu))
        show_hu(first[1], unguided[number])
        set_titles(first, ("real", "unguided"))
    return figure


def draw_ladder(source: FigureSource) -> Figure:
    """Figure 5.8: the ladder of guidance scales for benign and malignant."""
    source.guidable("5.8", ("malignancy",))
    unguided = source.sample_nodules()
    figure, axes = panel_grid(2 * len(source.windows), 2 + len(source.scales), 1.45)
    for line, malignancy in enumerate(MALIGNANCIES):
        for column, scale in enumerate(source.scales, start=2):
            for number, image in enumerate(source.sample_value("malignancy", malignancy, scale)):
                show_hu(axes[2 * number + line, column], image)
        for number, image in enumerate(unguided):
            axis = axes[2 * number + line, 1]
            show_hu(axis, image)
            axis.set_ylabel(malignancy, fontsize=9)
    show_real_nodules(source, axes[::2, 0])
    for number, window in enumerate(source.windows):
        write_ratings(axes[2 * number + 1, 0], window)
        axes[2 * number + 1, 0].axis("off")
    set_titles(axes[0], ("real", "unguided", *(f"s = {scale:g}" for scale in source.scales)))
    return figure


def draw_benign_and_malignant(source: FigureSource) -> Figure:
    """Figure 5.9: benign and malignant at one scale, and their difference."""
    source.guidable("5.9", ("malignancy",))
    scale = source.feature_scale
    unguided = source.sample_nodules()
    benign, malignant = (source.sample_value("malignancy", malignancy, scale) for malignancy in MALIGNANCIES)
    figure, axes = panel_grid(len(source.windows), 5, 1.9)
    show_real_nodules(source, axes[:, 0])
    for number, line in enumerate(axes):
        for axis, images in zip(line[1:4], (benign, unguided, malignant), strict=True):
            show_hu(axis, images[number])
        show_difference(line[4], malignant[number] - benign[number], MALIGNANCY_DIFFERENCE_HU)
    titles = ("real", f"benign, s = {scale:g}", "unguided", f"malignant, s = {scale:g}", "malignant - benign")
    set_titles(axes[0], titles)
    add_difference_bar(figure, axes[:, 4], MALIGNANCY_DIFFERENCE_HU)
    return figure


class ThesisFigure(NamedTuple):
    """A figure of the thesis.

    Args:
        draw: its drawing function.
        caption: what it shows.
        scale: attribute of `FigureSource` that holds the guidance scale which the caption names, or None.
        is_sampled: whether its images depend on scheduler, steps and seed.
    """

    draw: Callable[[FigureSource], Figure]
    caption: str
    scale: str | None = None
    is_sampled: bool = True


FIGURES = {
    "5.1": ThesisFigure(
        draw_reconstructions,
        "Slices, their reconstruction by the autoencoder, and a part of both (box) with the difference.",
        is_sampled=False,
    ),
    "5.2": ThesisFigure(
        draw_slices,
        "The same maps by every method, from the same noise. Guidance is by the true ratings of every feature with a "
        "classifier. Boxes: nodules.",
        "guidance_scale",
    ),
    "5.3": ThesisFigure(
        draw_largest_nodules,
        "The largest nodules of Fig. 5.2, 64x64 pixels, with the outline that the map draws.",
        "guidance_scale",
    ),
    "5.4": ThesisFigure(
        draw_image_gradients,
        "Gradients of log p(benign) and log p(malignant) with respect to the decoded noisy crop: red is brighter. "
        "Each panel has its own scale.",
        is_sampled=False,
    ),
    "5.5": ThesisFigure(
        draw_latent_gradients,
        "The same with respect to the latents and inside the nodule mask, as guidance applies them: channels as "
        "colours around grey, which is 0.",
        is_sampled=False,
    ),
    "5.6": ThesisFigure(
        draw_settings,
        "Guidance by the true ratings: one feature, all of them one after the other (sequential) or at once (joint); "
        "below, what it changes.",
        "guidance_scale",
    ),
    "5.7": ThesisFigure(
        draw_ratings, "Each feature alone at each of its ratings, from the same noise.", "feature_scale"
    ),
    "5.8": ThesisFigure(draw_ladder, "The ladder of guidance scales s for benign and malignant, from the same noise."),
    "5.9": ThesisFigure(
        draw_benign_and_malignant, "Benign and malignant from the same noise, and their difference.", "feature_scale"
    ),
}
