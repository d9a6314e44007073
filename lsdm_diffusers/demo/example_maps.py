"""The semantic maps that the page offers to start from."""

import importlib.resources
from pathlib import Path

EXAMPLES = {  # title: file name without suffix
    "Upper lobes, spiculated malignant nodule": "upper-lobes",
    "Hila, benign and indeterminate nodule": "hila",
    "Heart, small malignant nodule": "heart",
    "Lung bases, lobulated malignant nodule": "lung-bases",
    "Aortic arch, no nodule": "aortic-arch",
    "Empty thorax": "empty-thorax",
}


def example_maps() -> dict[str, Path]:
    """Title and path of each example map.

    A map is a palette PNG of 512x512 labels. Its text "pixel_spacing_mm" is the edge of a pixel. The README.md beside
    the maps says whose scans and nodules they show; `demo/make_examples.py` of the repository makes them.
    """
    folder = Path(str(importlib.resources.files(__package__))) / "examples"
    return {title: folder / f"{name}.png" for title, name in EXAMPLES.items()}
