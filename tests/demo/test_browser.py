"""The page in Chromium: draw, place nodules, generate, switch windows, compare, download, cancel, wrong input."""

import io
import json
import shutil

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("gradio", reason="needs the extra `demo`")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra `dev`)")

from lsdm_diffusers.hounsfield import WINDOWS, apply_window  # noqa: E402
from lsdm_diffusers.semantic_map import read_semantic_map  # noqa: E402
from tests.page_server import served, small_map, write_map  # noqa: E402

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs the browser chromium (apt-get install chromium)"),
]
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
WAIT = 60_000  # ms; the machine may be busy


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    with served(tmp_path_factory.mktemp("served"), patch) as (url, _):
        yield url
    patch.undo()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def map_file(tmp_path_factory):
    return write_map(tmp_path_factory.mktemp("map") / "map.png")


@pytest.fixture
def page(browser, url, map_file):
    """The page with the small map and few steps; afterwards, it must have had no error and asked no other server."""
    page = open_page(browser, url, width=1440)
    upload(page, map_file)
    page.wait_for_function("document.querySelector('#board canvas.map').width === 128", timeout=WAIT)
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("number input for Steps").fill("6")
    page.get_by_label("number input for Steps").press("Tab")
    yield page
    page.close()
    assert not page.problems


def open_page(browser, url, **size):
    page = browser.new_page(viewport={"height": 1000, **size}, accept_downloads=True)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    server = url.split("/?")[0]

    def note_other_servers(request):
        if not request.url.startswith((server, "data:", "blob:")):
            page.problems.append(request.url)

    page.on("request", note_other_servers)
    page.set_default_timeout(WAIT)
    page.goto(url)
    page.wait_for_selector("#board .nodules > *")
    return page


def upload(page, file):
    page.locator("#board input[type=file]").set_input_files(file)


def canvas(page, selector) -> np.ndarray:
    """RGB of a canvas, (H, W, 3)."""
    code = """(canvas) => {
        const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        return [canvas.height, canvas.width, Array.from(data)];
    }"""
    height, width, values = page.locator(selector).first.evaluate(code)
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


def colour(page, label):
    style = page.locator(f"#board .legend [data-label='{label}'] .swatch").evaluate(
        "(swatch) => swatch.style.background"
    )
    return [int(value) for value in style[4:-1].split(",")]


def click_board(page, x, y):
    """Click on the board; x and y are parts of its edge, 0..1."""
    marks = page.locator("#board canvas.marks")
    marks.evaluate("canvas => canvas.scrollIntoView({block: 'center', behavior: 'instant'})")
    box = marks.bounding_box()
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])


def generate(page, button="#generate"):
    page.locator(button).click()
    page.wait_for_selector("#viewer .progress:not([hidden])")
    page.wait_for_selector("#viewer .progress", state="hidden")
    page.wait_for_selector("#viewer .panel canvas")


def nodules(page) -> int:
    return page.locator("#board .nodule").count()


def test_first_sight(browser, url):
    page = open_page(browser, url, width=1440)
    assert page.get_by_text("Not for clinical use").is_visible()
    assert page.locator("#board .legend button").count() == 8 and nodules(page) >= 1
    for button in ("#generate", "#compare"):
        box = page.locator(button).bounding_box()
        assert box["y"] + box["height"] < 1000
    page.locator("#board .examples button", has_text="Empty thorax").click()
    page.get_by_text("No nodule yet").wait_for()
    page.close()
    assert not page.problems


def test_phone_has_one_column_and_no_sideways_scroll(browser, url):
    page = open_page(browser, url, width=390)
    board, viewer = (page.locator(selector).bounding_box() for selector in ("#board", "#viewer"))
    assert viewer["y"] >= board["y"] + board["height"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_phone_has_its_buttons_in_sight_and_whole_settings(browser, url):
    page = open_page(browser, url, width=390, height=844)
    for button in ("#generate", "#compare"):
        box = page.locator(button).bounding_box()
        assert box["y"] + box["height"] <= 844 and box["x"] >= 0 and box["x"] + box["width"] <= 390
    page.get_by_text("Settings", exact=True).click()
    size = page.get_by_label("Size")
    assert size.evaluate("(field) => field.scrollWidth <= field.clientWidth") and size.input_value() == "as the map"
    page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_ticked_box_is_seen_in_both_themes(browser, url, theme):
    page = open_page(browser, f"{url}/?__theme={theme}", width=1440)
    box = page.locator("#viewer .overlay")
    box.check()
    pixels = np.asarray(PIL.Image.open(io.BytesIO(box.screenshot())).convert("RGB")).astype(int)
    blue = pixels[..., 2] - pixels[..., 0] > 60
    assert blue.mean() > 0.3  # the box has the accent colour, with a white tick in it
    page.close()


def test_a_difference_says_what_it_is_and_a_slice_of_an_earlier_map_is_marked(page, tmp_path):
    page.get_by_label("Also without guidance").check()
    generate(page)
    assert page.locator("#viewer .scale").is_hidden() and page.locator("#viewer .earlier").is_hidden()
    page.locator("#viewer .difference").check()
    assert page.locator("#viewer figcaption").inner_text() == "guided minus unguided"
    scale = page.locator("#viewer .scale").inner_text()
    assert "\u2212250 HU" in scale and "+250 HU" in scale
    with page.expect_download() as download:
        page.locator("#viewer [data-format=map]").click()
    download.value.save_as(tmp_path / "map.png")
    assert (read_semantic_map(tmp_path / "map.png") == small_map()).all()
    generate(page, "#compare")
    page.locator("#viewer .difference").check()
    assert page.locator("#viewer figcaption").all_inner_texts() == ["benign, seed 0", "malignant minus benign, seed 0"]
    page.locator("#board .nodule").get_by_text("Remove").click()
    page.locator("#viewer .earlier", has_text="The map has changed").wait_for()
    page.locator("#board [data-action=undo]").click()
    page.locator("#viewer .earlier").wait_for(state="hidden")


@pytest.mark.parametrize("slider", ["Scale of the other features", "Scale of malignancy"])
def test_a_strong_scale_is_warned_of(page, slider):
    warning = page.locator(".exaggerated")
    assert all(not each.is_visible() for each in warning.all())
    page.get_by_label(f"number input for {slider}").fill("8")
    page.get_by_label(f"number input for {slider}").press("Tab")
    page.locator(".exaggerated:visible").first.wait_for()


def test_draw_erase_undo(page):
    page.locator("#board .legend [data-label='2']").click()
    before = canvas(page, "#board canvas.map")
    click_board(page, 0.7, 0.7)
    drawn = canvas(page, "#board canvas.map")
    assert drawn[90, 90].tolist() == colour(page, 2) and (drawn != before).any(axis=2).sum() > 50
    page.locator("#board [data-tool=eraser]").click()
    click_board(page, 0.7, 0.7)
    assert (canvas(page, "#board canvas.map") == before).all()
    page.locator("#board [data-action=undo]").click()
    assert (canvas(page, "#board canvas.map") == drawn).all()
    page.locator("#board [data-action=undo]").click()
    assert (canvas(page, "#board canvas.map") == before).all()
    page.locator("#board [data-action=redo]").click()
    assert (canvas(page, "#board canvas.map") == drawn).all()


def test_stamp_and_remove_nodules(page):
    assert nodules(page) == 1
    page.locator("#board select.malignancy").select_option("benign")
    page.locator("#board select.shape").select_option("spiculated")
    click_board(page, 0.65, 0.65)
    page.wait_for_function("document.querySelectorAll('#board .nodule').length === 2")
    assert page.locator("#board .nodule").nth(1).locator("[aria-checked=true]").inner_text() == "benign"
    click_board(page, 0.02, 0.02)
    page.locator("#board .message.error").wait_for()
    assert nodules(page) == 2
    page.locator("#board .nodule").first.get_by_text("Remove").click()
    assert nodules(page) == 1


def test_generate_windows_readout_and_downloads(page, tmp_path):
    page.locator("#board .nodule").get_by_text("benign", exact=True).click()
    page.locator("#board .nodule input[type=range]").nth(1).fill("5")
    page.get_by_label("Also without guidance").check()
    generate(page)
    shown = canvas(page, "#viewer .panel canvas")
    page.locator("#viewer .windows").get_by_text("bone").click()
    bone = canvas(page, "#viewer .panel canvas")
    assert (bone != shown).any()
    for control in ("overlay", "difference"):
        page.locator(f"#viewer .{control}").check()
        assert (canvas(page, "#viewer .panel canvas") != bone).any()
        page.locator(f"#viewer .{control}").uncheck()
    page.locator("#viewer .panel canvas").click(position={"x": 30, "y": 300})
    readout = page.locator("#viewer .readout").inner_text()
    assert "HU" in readout and "unguided" in readout
    files = {}
    for format in ("png", "npy", "nifti", "dicom", "json"):
        with page.expect_download() as download:
            page.locator(f"#viewer [data-format={format}]").click()
        files[format] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[format])
    assert np.load(files["npy"]).shape == (128, 128)
    parameters = json.loads(files["json"].read_text())
    assert parameters["nodules"][0]["features"] == {"malignancy": "benign", "spiculation": 5}
    assert parameters["num_inference_steps"] == 6
    import pydicom

    assert (pydicom.dcmread(files["dicom"]).pixel_array == np.load(files["npy"])).all()


def test_several_images_and_comparison(page, tmp_path):
    page.get_by_label("number input for Images").fill("2")
    page.get_by_label("number input for Images").press("Tab")
    generate(page)
    assert page.locator("#viewer .thumbnails button").count() == 2
    with page.expect_download() as download:
        page.locator("#viewer [data-format=npy]").click()
    download.value.save_as(tmp_path / "slice.npy")
    expected = apply_window(np.load(tmp_path / "slice.npy"), next(iter(WINDOWS))).astype(int)
    thumbnail = canvas(page, "#viewer .thumbnails canvas")
    assert np.abs(thumbnail - expected[..., None]).max() <= 1  # the browser rounds half to even, in double precision
    first = canvas(page, "#viewer .panel canvas")
    page.locator("#viewer .thumbnails button").nth(1).click()
    assert (canvas(page, "#viewer .panel canvas") != first).any()
    generate(page, "#compare")
    assert page.locator("#viewer .panel").count() == 2
    captions = page.locator("#viewer figcaption").all_inner_texts()
    assert captions[0].startswith("benign") and captions[1].startswith("malignant")


def test_cancel_and_generate_afterwards(page):
    for label, value in (("Steps", "100"), ("Images", "8")):  # so many that the run is not over before the click
        page.get_by_label(f"number input for {label}").fill(value)
        page.get_by_label(f"number input for {label}").press("Tab")
    page.locator("#generate").click()
    page.locator("#viewer .progress", has_text="of 100").wait_for()  # it samples
    page.locator("#cancel").click()
    page.locator("#viewer .message", has_text="Cancelled").wait_for()
    for label, value in (("Steps", "4"), ("Images", "1")):
        page.get_by_label(f"number input for {label}").fill(value)
        page.get_by_label(f"number input for {label}").press("Tab")
    generate(page)


def test_wrong_input_gets_a_sentence(page, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(write_map(tmp_path / "whole.png", small_map()).read_bytes()[:120])
    upload(page, broken)
    page.locator("#board .message.error", has_text="damaged").wait_for()
    assert nodules(page) == 1  # the board keeps its map
    page.locator("#board .nodule").get_by_text("Remove").click()
    page.locator("#compare").click()
    page.locator("#viewer .message", has_text="no nodule to compare").wait_for()
