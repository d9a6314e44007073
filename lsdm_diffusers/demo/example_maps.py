"""The semantic maps that the page offers to start from."""

from pathlib import Path

EXAMPLES = {
    "Upper lobes, spiculated malignant nodule": "upper-lobes",
    "Hila, benign and indeterminate nodule": "hila",
    "Heart, small malignant nodule": "heart",
    "Lung bases, lobulated malignant nodule": "lung-bases",
    "Aortic arch, no nodule": "aortic-arch",
    "Empty thorax": "empty-thorax",
}  # title: name of the file; `demo/make_examples.py` of the repository makes them


def example_maps() -> dict[str, Path]:
    """Title and path of each example map: palette PNG of 512x512 labels, whose text "pixel_spacing_mm" is the edge of a pixel.

    `lsdm_diffusers/demo/examples/README.md` says of whom they are.
    """
    folder = Path(__file__).parent / "examples"
    return {title: folder / f"{name}.png" for title, name in EXAMPLES.items()}
