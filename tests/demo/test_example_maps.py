"""The maps that the page offers."""

import PIL.Image
import pytest

from lsdm_diffusers.demo.example_maps import example_maps
from lsdm_diffusers.semantic_map import find_nodules, read_semantic_map


@pytest.mark.parametrize("title", example_maps())
def test_each_example_is_a_map_with_a_pixel_spacing(title):
    path = example_maps()[title]
    labels = read_semantic_map(path)
    assert labels.shape == (512, 512)
    assert bool(find_nodules(labels)) == ("nodule" in title and "no nodule" not in title)
    with PIL.Image.open(path) as image:
        assert 0.5 < float(image.info["pixel_spacing_mm"]) < 1
