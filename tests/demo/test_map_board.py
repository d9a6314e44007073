"""The board's value, and the functions that it calls."""

import base64

import pytest

from lsdm_diffusers.demo.packed_array import pack_array, unpack_array
from lsdm_diffusers.semantic_map import find_nodules
from tests.page_server import small_map, write_map

pytest.importorskip("gradio", reason="needs the extra `demo`")
from lsdm_diffusers.demo.map_board import read_board, read_upload, stamp  # noqa: E402


def test_board_value():
    labels = small_map()
    value = {"map": pack_array(labels), "pixel_spacing": 0.5, "features": [{"malignancy": "benign", "texture": None}]}
    semantic_map, spacing, features = read_board(value)
    assert (semantic_map == labels).all() and spacing == 0.5 and features == [{"malignancy": "benign"}]
    wrong = labels.copy()
    wrong[0, 0] = 9
    for changes, sentence in (
        ({"map": pack_array(wrong)}, "value 9"),
        ({"features": [{}, {}]}, "2 nodules are given, but the map has 1"),
        ({"features": [{"malignancy": "certainly"}]}, "certainly"),
        ({"features": [{"colour": 3}]}, "colour"),
        ({"pixel_spacing": "wide"}, "wide"),
    ):
        with pytest.raises(ValueError, match=sentence):
            read_board({**value, **changes})


def test_stamp_answers_a_map_or_a_sentence():
    request = {
        "map": pack_array(small_map()),
        "y": 80,
        "x": 80,
        "diameter_mm": 10,
        "pixel_spacing": 0.7,
        "malignancy": "benign",
        "seed": 1,
    }
    labels = unpack_array(stamp({**request, "shape": "smooth"})["map"], "uint8")
    assert [nodule.label for nodule in find_nodules(labels)] == [7, 5]
    for changes in (
        {"shape": "square"},
        {"shape": "smooth", "x": 5000},
        {"shape": "smooth", "diameter_mm": None},
        {"shape": "smooth", "map": 3},
    ):
        assert stamp({**request, **changes})["error"]


def test_a_nodule_without_room_is_refused_in_words_for_people():
    request = {"map": pack_array(small_map()), "diameter_mm": 10, "pixel_spacing": 0.7, "malignancy": 4, "seed": 1}
    for y, x, diameter, sentence in (
        (3.19771, 60, 10, "outside the lungs"),  # near the edge of the map
        (12, 60, 10, "outside the lungs"),  # on the body
        (46, 46, 10, "a nodule already"),
        (54, 46, 10, "A nodule of 10 mm does not fit"),  # in the lung, but it touches the nodule
        (60, 90, 60, "A nodule of 60 mm does not fit"),
    ):
        error = stamp({**request, "y": y, "x": x, "diameter_mm": diameter, "shape": "smooth"})["error"]
        assert sentence in error and "`" not in error and "lick" in error


def test_upload_answers_a_map_or_a_sentence(tmp_path):
    data = base64.b64encode(write_map(tmp_path / "map.png").read_bytes()).decode()
    answer = read_upload({"name": "../../map.png", "data": data})
    assert (unpack_array(answer["map"], "uint8") == small_map()).all() and answer["message"]
    assert read_upload({"name": "map.png", "data": data[: len(data) // 8 * 4]})["error"]
