"""The square window around a nodule that the classifiers see, in pixels and in latents: the one definition."""

CROP = 64  # edge in pixels of what the classifiers see; thesis, section 3.4.1


def square_window(
    centre_yx: tuple[float, float], size: tuple[int, int], edge: int, factor: int = 1
) -> tuple[int, int, int, int]:
    """A square window centred at a point as well as whole pixels allow, moved inside the frame at the border.

    Args:
        centre_yx: row and column in pixels of the image; whole numbers are the centres of pixels.
        size: height and width of the frame, in pixels, or in latents of `factor` pixels.
        edge: of the window, in the units of `size`.
        factor: pixels of one latent; 1 for a window in pixels.

    Returns:
        (y0, x0, y1, x1), half-open, in the units of `size`.

    Raises:
        ValueError: for a frame smaller than the window.

    >>> square_window((100, 2), (512, 512), edge=64)
    (69, 0, 133, 64)
    """
    if min(size) < edge:
        raise ValueError(f"`size` is {tuple(size)}, but a frame of at least {edge}x{edge} is needed.")
    # Pixel centre p lies at latent coordinate (p + 0.5) / factor. Rounding half up keeps Python's round-to-even out.
    start_y, start_x = (int((c + 0.5) / factor - edge / 2 + 0.5) for c in centre_yx)
    y = min(max(start_y, 0), size[0] - edge)
    x = min(max(start_x, 0), size[1] - edge)
    return y, x, y + edge, x + edge


def crop_box(centroid_yx: tuple[float, float], latent_size: tuple[int, int], factor: int) -> tuple[int, int, int, int]:
    """The window of 64x64 pixels around a nodule, in latents: (y0, x0, y1, x1), half-open.

    Args:
        centroid_yx: centroid of the nodule in pixels.
        latent_size: height and width of the latents.
        factor: down-sampling f of the autoencoder; 1 gives the window in pixels.

    Raises:
        ValueError: for a map smaller than 64x64 pixels.
    """
    if min(latent_size) < CROP // factor:
        raise ValueError(
            f"`semantic_map` is smaller than the {CROP}x{CROP} pixels around a nodule that the classifiers see."
        )
    return square_window(centroid_yx, latent_size, CROP // factor, factor)
