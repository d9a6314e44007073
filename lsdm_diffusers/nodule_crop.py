"""The square window around a nodule that the classifiers see, in pixels and in latents: the one definition."""

from collections.abc import Sequence

CROP = 64  # edge in pixels of what the classifiers see; thesis, section 3.4.1


def square_window(
    centre_yx: Sequence[float], size: Sequence[int], edge: int, factor: int = 1
) -> tuple[int, int, int, int]:
    """The square window whose centre is nearest to a point; at the border it is moved inside the frame.

    Args:
        centre_yx: row and column in pixels of the image; whole numbers are the centres of pixels.
        size: height and width of the frame, in pixels, or in latents of `factor` pixels.
        edge: height and width of the window, in the units of `size`.
        factor: pixels along the edge of one latent; 1 for a window in pixels.

    Returns:
        (y0, x0, y1, x1), half-open, in the units of `size`.

    Raises:
        ValueError: for a frame smaller than the window.

    >>> square_window((100, 2), (512, 512), edge=64)
    (69, 0, 133, 64)
    """
    height, width = size
    if min(height, width) < edge:
        raise ValueError(f"`size` is {height}x{width}, but a frame of at least {edge}x{edge} is needed.")

    def start(centre: float, limit: int) -> int:
        # The centre of pixel p lies at latent coordinate (p + 0.5) / factor.
        first = (centre + 0.5) / factor - edge / 2
        # `int(... + 0.5)` rounds halves up. `round` would send them to the nearest even number.
        return min(max(int(first + 0.5), 0), limit - edge)

    y, x = start(centre_yx[0], height), start(centre_yx[1], width)
    return y, x, y + edge, x + edge


def crop_box(centroid_yx: Sequence[float], latent_size: Sequence[int], factor: int) -> tuple[int, int, int, int]:
    """The window of 64x64 pixels around a nodule, in latents: (y0, x0, y1, x1), half-open.

    Args:
        centroid_yx: row and column of the nodule's centroid, in pixels.
        latent_size: height and width of the latents.
        factor: down-sampling f of the autoencoder; 1 gives the window in pixels.

    Raises:
        ValueError: for latents that cover less than 64x64 pixels.

    >>> crop_box((100, 2), (128, 128), factor=4)
    (17, 0, 33, 16)
    """
    height, width = latent_size
    if min(height, width) < CROP // factor:
        raise ValueError(
            f"`semantic_map` is {height * factor}x{width * factor} pixels, but at least the {CROP}x{CROP} pixels "
            "around a nodule that the classifiers see are needed."
        )
    return square_window(centroid_yx, latent_size, CROP // factor, factor)
