"""Semantic maps made from Hounsfield units: the body, the lungs, tissues, painted nodules, and masks of contours."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.draw import disk, ellipse, polygon2mask
from skimage.measure import euler_number, find_contours, label
from skimage.morphology import erosion

from lsdm_diffusers.labels import SemanticLabel
from lsdm_diffusers.segmentation import body_mask, contour_mask, paint_nodules, semantic_map_from_hu

AIR, LUNG_HU, FAT, SOFT, VESSEL, BONE = -1000, -850, -100, 40, 30, 400
REGIONS = {
    "trachea": disk((215, 256), 11),
    "nodule": disk((300, 145), 9),
    "spine": disk((345, 256), 24),
}


def mask_of(region) -> np.ndarray:
    mask = np.zeros((512, 512), dtype=bool)
    mask[region] = True
    return mask


@pytest.fixture(scope="module")
def phantom() -> np.ndarray:
    """A chest of 512x512 pixels in HU, with noise.

    It has a rim of fat, lungs with vessels and a nodule, a trachea, bones, and a hollow table below.
    """
    hu = np.full((512, 512), AIR, dtype=np.float32)

    def paint(region, value):
        hu[region] = value

    # the table: a hollow crescent, a shell of 300 HU, 12 pixels below the patient
    crescent = (
        mask_of(ellipse(290, 256, 210, 250)) & ~mask_of(ellipse(220, 256, 210, 250)) & (np.arange(512)[:, None] > 400)
    )
    hu[crescent & ~erosion(crescent, np.ones((11, 11)))] = 300

    paint(ellipse(256, 256, 160, 215), FAT)
    paint(ellipse(256, 256, 146, 201), SOFT)
    paint(ellipse(256, 150, 112, 72), LUNG_HU)
    paint(ellipse(256, 362, 112, 72), LUNG_HU)
    random = np.random.default_rng(0)
    for centre in (150, 362):
        for _ in range(25):
            y, x = random.uniform(-85, 85), random.uniform(-45, 45)
            paint(disk((256 + y, centre + x), random.uniform(1.5, 4)), VESSEL)
    paint(REGIONS["trachea"], AIR)
    paint(REGIONS["nodule"], SOFT)
    paint(REGIONS["spine"], BONE)
    for x in (75, 437):
        paint(ellipse(256, x, 30, 7), BONE)  # ribs
    return hu + random.normal(0, 15, hu.shape).astype(np.float32)


@pytest.fixture(scope="module")
def phantom_map(phantom) -> np.ndarray:
    return semantic_map_from_hu(phantom)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_the_lungs_of_the_phantom_are_found_without_holes(phantom_map):
    lungs = phantom_map == SemanticLabel.LUNG
    truth = mask_of(ellipse(256, 150, 112, 72)) | mask_of(ellipse(256, 362, 112, 72))
    assert dice(lungs, truth) > 0.98
    components = label(lungs)
    assert components.max() == 2
    assert euler_number(lungs) == 2  # two pieces, no hole: vessels and nodule belong to the lung
    assert lungs[REGIONS["nodule"]].all()


def test_each_tissue_of_the_phantom_gets_its_label(phantom_map):
    assert (phantom_map[REGIONS["spine"]] == SemanticLabel.HIGH_DENSITY).mean() > 0.95
    mediastinum = (slice(250, 310), slice(245, 268))
    assert (phantom_map[mediastinum] == SemanticLabel.SOFT_TISSUE).mean() > 0.95
    rim = mask_of(ellipse(256, 256, 157, 212)) & ~mask_of(ellipse(256, 256, 149, 204))
    assert (phantom_map[rim] == SemanticLabel.BODY).mean() > 0.95


def test_air_in_the_trachea_and_around_the_patient_is_background(phantom_map):
    assert (phantom_map[disk((215, 256), 8)] == SemanticLabel.BACKGROUND).all()
    assert (phantom_map[REGIONS["trachea"]] != SemanticLabel.LUNG).all()
    assert (phantom_map[~mask_of(ellipse(256, 256, 164, 219))] == SemanticLabel.BACKGROUND).all()


def test_the_table_is_not_body(phantom):
    body = body_mask(phantom)
    patient = mask_of(ellipse(256, 256, 160, 215))
    assert (phantom[425:] > 200).sum() > 3000, "the phantom has no table"
    assert not body[425:].any()
    assert dice(body, patient) > 0.98


@pytest.mark.parametrize(
    ("beside_the_trunk", "is_body"),
    [("arm", True), ("thin slab", False), ("hollow box", False), ("small", False)],
)
def test_of_what_lies_beside_the_trunk_arms_alone_are_body(beside_the_trunk, is_body):
    """A trunk of 126 mm diameter; an arm of 53 mm, a slab of 21 mm, a box with a shell of 10 mm, a finger of 28 mm."""
    hu = np.full((300, 400), AIR, dtype=np.float32)
    hu[disk((150, 110), 90)] = SOFT
    if beside_the_trunk == "arm":
        hu[disk((150, 300), 38)] = SOFT
    elif beside_the_trunk == "thin slab":
        hu[50:250, 280:310] = SOFT
    elif beside_the_trunk == "hollow box":
        hu[110:190, 260:340] = SOFT
        hu[125:175, 275:325] = AIR
    else:
        hu[disk((150, 300), 20)] = SOFT
    body = body_mask(hu)
    assert body[disk((150, 110), 85)].all()
    assert body[:, 220:].any() == is_body


def test_lung_near_the_edge_of_the_image_is_found(phantom, phantom_map):
    """The image cuts the chest wall to 3 mm. Its edge is no skin, so that this is no air under the skin."""
    columns = slice(74, 439)
    cut = semantic_map_from_hu(phantom[:, columns])
    assert dice(cut == SemanticLabel.LUNG, phantom_map[:, columns] == SemanticLabel.LUNG) > 0.99


@pytest.fixture(scope="module")
def chest(phantom, phantom_map) -> np.ndarray:
    """The phantom with what tells cut lung from air outside: mottled lungs, and ribs all around them."""
    random, hu = np.random.default_rng(3), phantom.copy()
    mottle = gaussian_filter(random.normal(size=hu.shape), 5)
    lungs = (phantom_map == SemanticLabel.LUNG) & (phantom < -700)
    hu[lungs] += 50 * (mottle / mottle.std())[lungs]
    for centre in (150, 362):
        for angle in np.arange(0, 2 * np.pi, np.pi / 6):
            place = (256 + 122 * np.sin(angle), centre + 82 * np.cos(angle))
            hu[mask_of(disk(place, 5)) & (phantom_map == SemanticLabel.SOFT_TISSUE)] = BONE
    return hu


def circle(radius: int, centre_x: float = 255.5) -> np.ndarray:
    y, x = np.mgrid[:512, :512]
    return (y - 255.5) ** 2 + (x - centre_x) ** 2 <= radius**2


@pytest.mark.parametrize("padding", [-1024, -2000])
@pytest.mark.parametrize("radius", [130, 150, 165, 185])
def test_lungs_cut_by_a_circular_field_of_view_are_found(chest, phantom_map, radius, padding):
    """Beyond the circle nothing was measured, so nothing is labelled there."""
    view = circle(radius)
    labels = semantic_map_from_hu(np.where(view, chest, padding))
    expected = (phantom_map == SemanticLabel.LUNG) & view
    assert dice(labels == SemanticLabel.LUNG, expected) > 0.98
    assert not (labels[~circle(radius + 2)] != SemanticLabel.BACKGROUND).any()


@pytest.mark.parametrize("columns", [60, 100, 130])
def test_lungs_cut_by_the_border_of_the_image_are_found(chest, phantom_map, columns):
    labels = semantic_map_from_hu(chest[:, columns:])
    assert dice(labels == SemanticLabel.LUNG, phantom_map[:, columns:] == SemanticLabel.LUNG) > 0.98


def test_air_and_table_in_a_small_field_of_view_are_not_lung(chest, phantom_map):
    """A circle that shows the patient from the side: air, skin and the foam of the table reach its edge."""
    foam = chest.copy()
    beside = (phantom_map == SemanticLabel.BACKGROUND) & (np.arange(512)[:, None] > 400)
    foam[beside] = -900 + np.random.default_rng(0).normal(0, 15, beside.sum())
    y, x = np.mgrid[:512, :512]
    view = (y - 380) ** 2 + (x - 256) ** 2 <= 130**2
    labels = semantic_map_from_hu(np.where(view, foam, -1024))
    wrong = (labels == SemanticLabel.LUNG) & (phantom_map != SemanticLabel.LUNG)
    assert wrong.sum() < 0.01 * (phantom_map == SemanticLabel.LUNG).sum()


@pytest.mark.parametrize("lung_hu", [-970, -976, -990, -1010, -1024])
def test_the_darkest_lungs_are_found(phantom, phantom_map, lung_hu):
    """Emphysema, and scanners whose air is off: vessels tell lung from free air, not a limit of HU."""
    lungs = phantom_map == SemanticLabel.LUNG
    dark = np.where(lungs & (phantom < -700), np.clip(phantom + (lung_hu - LUNG_HU), -1024, 800), phantom)
    assert dice(semantic_map_from_hu(dark) == SemanticLabel.LUNG, lungs) > 0.95


@pytest.mark.filterwarnings("ignore:Number of distinct clusters:sklearn.exceptions.ConvergenceWarning")  # of K-means
def test_uniform_lungs_of_a_physical_phantom_are_found():
    """Plain air in two bores of a solid body: without vessels, a pair that fills the chest is its lungs."""
    hu = np.full((512, 512), -1000.0)
    hu[ellipse(256, 256, 160, 215)] = 0
    lungs = mask_of(ellipse(256, 150, 112, 72)) | mask_of(ellipse(256, 362, 112, 72))
    hu[lungs] = -1000
    assert dice(semantic_map_from_hu(hu) == SemanticLabel.LUNG, lungs) > 0.97
    one_bore = hu.copy()
    one_bore[:, 256:][lungs[:, 256:]] = 0  # a stomach full of gas is no pair
    assert not (semantic_map_from_hu(one_bore) == SemanticLabel.LUNG).any()


@pytest.mark.parametrize("radius", [150, 185])
def test_lungs_of_real_slices_cut_by_a_circle_are_found(radius):
    """The first slices of a real series that show much lung."""
    data = Path(__file__).parents[2] / "shared" / "data" / "qin-lung-ct"
    if not data.is_dir():
        pytest.skip("needs the public CT of ../shared/data")
    with tarfile.open(data / "dicom.tar.xz") as tar:
        names = sorted(name for name in tar.getnames() if "QIN-LSC-0049/" in name and "tumour" not in name)
        files = [tar.extractfile(name) for name in names if name.endswith(".dcm")]
        slices = [pydicom.dcmread(io.BytesIO(file.read())) for file in files[::12] if file is not None]
    shares = []
    for ct in slices:
        hu = ct.pixel_array * float(ct.RescaleSlope) + float(ct.RescaleIntercept)
        spacing = float(ct.PixelSpacing[0])
        expected = (semantic_map_from_hu(hu, spacing) == SemanticLabel.LUNG) & circle(radius)
        if expected.sum() > 10000:
            cut = semantic_map_from_hu(np.where(circle(radius), hu, -1024), spacing) == SemanticLabel.LUNG
            shares.append(dice(cut, expected))
    assert len(shares) >= 2 and min(shares) > 0.97, shares


def test_air_under_the_skin_is_not_lung(phantom, phantom_map):
    """Subcutaneous emphysema: pockets of free and mixed air in the fat below the skin; one is open to the outside."""
    hu = phantom.copy()
    pockets = mask_of(ellipse(256, 47, 40, 3)) | mask_of(ellipse(107, 256, 4, 60)) | mask_of(ellipse(404, 300, 6, 30))
    hu[pockets] = np.random.default_rng(1).uniform(-1000, -700, pockets.sum())
    result = semantic_map_from_hu(hu)
    assert not (result[pockets] == SemanticLabel.LUNG).any()
    assert dice(result == SemanticLabel.LUNG, phantom_map == SemanticLabel.LUNG) > 0.999


def test_gas_in_the_bowel_is_not_lung(phantom, phantom_map):
    """Gas of -1000 HU around stool that lifts its mean: by its darkest pixels it is free air."""
    hu = phantom.copy()
    loop = mask_of(disk((290, 256), 14))
    stool = np.random.default_rng(2).random(hu.shape) < 0.2
    hu[loop] = AIR
    hu[loop & stool] = -300
    assert not (semantic_map_from_hu(hu)[loop] == SemanticLabel.LUNG).any()


@pytest.mark.parametrize("turn", [lambda a: a[::-1, ::-1], lambda a: a[:, ::-1]], ids=["by 180 degrees", "mirrored"])
def test_the_map_turns_with_the_slice(phantom, phantom_map, turn):
    turned = turn(semantic_map_from_hu(turn(phantom)))
    for value in np.unique(phantom_map):
        assert dice(turned == value, phantom_map == value) > 0.97, SemanticLabel(value).name


def test_padding_below_the_window_counts_as_air(phantom, phantom_map):
    padded = phantom.copy()
    scan_circle = mask_of(disk((256, 256), 254))
    padded[~scan_circle] = -2048
    result = semantic_map_from_hu(padded)
    assert (result[~scan_circle] == SemanticLabel.BACKGROUND).all()
    np.testing.assert_array_equal(result, semantic_map_from_hu(np.where(scan_circle, phantom, -1024)))
    np.testing.assert_array_equal(semantic_map_from_hu(np.full((64, 64), -3024)), np.zeros((64, 64), np.uint8))


def test_the_map_does_not_depend_on_the_kind_of_array(phantom, phantom_map):
    rounded = np.round(phantom).astype(np.int16)
    expected = semantic_map_from_hu(rounded)
    np.testing.assert_array_equal(semantic_map_from_hu(torch.from_numpy(rounded)), expected)
    halves = torch.from_numpy(rounded).bfloat16()
    np.testing.assert_array_equal(semantic_map_from_hu(halves), semantic_map_from_hu(halves.float()))
    assert (expected == phantom_map).mean() > 0.99


def test_pixel_spacing_scales_the_morphology(phantom, phantom_map):
    """Half the pixels of twice the size show the same chest."""
    coarse = semantic_map_from_hu(phantom[::2, ::2], pixel_spacing=1.4)
    assert dice(coarse == SemanticLabel.LUNG, phantom_map[::2, ::2] == SemanticLabel.LUNG) > 0.97


@pytest.mark.parametrize(("malignancy", "expected"), [(2, 5), (3, 6), (4, 7)])
def test_nodules_are_painted_over_with_their_malignancy(phantom, phantom_map, malignancy, expected):
    nodule = mask_of(REGIONS["nodule"])
    result = semantic_map_from_hu(phantom, nodules=[(nodule, malignancy)])
    np.testing.assert_array_equal(result == expected, nodule)
    np.testing.assert_array_equal(result[~nodule], phantom_map[~nodule])


def test_painting_leaves_the_map_it_was_given(all_labels):
    before = all_labels.copy()
    mask = np.zeros(all_labels.shape, dtype=bool)
    mask[:3] = True
    assert (paint_nodules(all_labels, [(mask, 5)])[:3] == 7).all()
    np.testing.assert_array_equal(all_labels, before)


@pytest.mark.parametrize("mask", [np.ones((4, 4), dtype=bool), np.ones((24, 32), dtype=np.uint8)])
def test_a_wrong_nodule_mask_is_refused(all_labels, mask):
    with pytest.raises(ValueError, match="boolean mask"):
        paint_nodules(all_labels, [(mask, 3)])


@pytest.mark.parametrize("shape", [(8,), (1, 8, 8), (0, 8)])
def test_a_slice_of_other_dimensions_is_refused(shape):
    with pytest.raises(ValueError, match="has shape .*one slice"):
        semantic_map_from_hu(np.zeros(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value):
    hu = np.zeros((16, 16))
    hu[2, 3] = value
    with pytest.raises(ValueError, match="1 values that are not finite"):
        semantic_map_from_hu(hu)


@pytest.mark.parametrize("spacing", [0, -0.7, float("nan"), 0.001, 70])
def test_a_pixel_spacing_that_is_not_positive_is_refused(spacing):
    with pytest.raises(ValueError, match="`pixel_spacing`"):
        semantic_map_from_hu(np.zeros((16, 16)), pixel_spacing=spacing)


@pytest.mark.parametrize("hu", [AIR, 40, -850, 3000])
def test_a_uniform_slice_has_no_lung(hu):
    assert SemanticLabel.LUNG not in semantic_map_from_hu(np.full((96, 96), hu, dtype=np.int16))


def test_the_outline_is_that_of_marching_squares(phantom, phantom_map):
    """`lung_mask` thresholds at 0.5 what marching squares would outline at 0.5: the same pixels lie inside."""
    lungs = phantom_map == SemanticLabel.LUNG
    smooth = gaussian_filter(lungs.astype(np.float32), 0.7)
    inside = np.zeros(lungs.shape, dtype=int)
    for contour in find_contours(smooth, 0.5, positive_orientation="high"):
        y, x = contour.T
        inside += int(np.sign(np.sum(y[:-1] * x[1:] - y[1:] * x[:-1]))) * polygon2mask(lungs.shape, contour)
    np.testing.assert_array_equal(inside != 0, smooth > 0.5)


# Contours


def test_a_contour_mask_includes_outline_and_inside():
    expected = np.zeros((40, 60), dtype=bool)
    expected[5:11, 20:31] = True  # rows 5..10, columns 20..30
    np.testing.assert_array_equal(contour_mask([(20, 5), (30, 5), (30, 10), (20, 10)], (40, 60)), expected)


def test_a_contour_is_the_same_open_and_closed():
    points = [(20, 5), (28, 7), (30, 14), (22, 12)]
    mask = contour_mask(points, (40, 60))
    assert all(mask[y, x] for x, y in points)
    np.testing.assert_array_equal(contour_mask(points + points[:1], (40, 60)), mask)


def test_a_contour_over_the_border_is_cut():
    mask = contour_mask([(-5, -5), (4, -5), (4, 3), (-5, 3)], (16, 16))
    expected = np.zeros((16, 16), dtype=bool)
    expected[:4, :5] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("points", [[(-1, 3)], [(7, 16), (8, 3)], [(16, 3), (8, -0.6)]])
def test_points_outside_the_slice_are_cut(points):
    mask = contour_mask(points, (16, 16))
    assert [tuple(p) for p in np.argwhere(mask)] == [(y, x) for x, y in points if 0 <= x < 16 and 0 <= y < 16]


@pytest.mark.parametrize("points", [[(7, 3)], [(7, 3), (8, 3)]])
def test_a_contour_of_one_or_two_points_is_its_points(points):
    """LIDC's readers drew such contours in the first and last slice of a nodule."""
    expected = np.zeros((16, 16), dtype=bool)
    expected[[y for _, y in points], [x for x, _ in points]] = True
    np.testing.assert_array_equal(contour_mask(points, (16, 16)), expected)
