"""Semantic maps: reading and checking labels, finding nodules, pooling, and making maps from Hounsfield units."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.draw import disk, ellipse, polygon2mask
from skimage.measure import euler_number, find_contours, label
from skimage.morphology import erosion

from lsdm_diffusers.labels import NUM_LABELS, PALETTE, SemanticLabel, max_pool_one_hot
from lsdm_diffusers.segmentation import body_mask, contour_mask, paint_nodules, semantic_map_from_hu
from lsdm_diffusers.semantic_map import find_nodules, read_semantic_map, semantic_map_image


@pytest.fixture
def labels() -> np.ndarray:
    """A map (24, 32) in which every label occurs."""
    return np.random.default_rng(0).permutation(np.arange(24 * 32) % NUM_LABELS).reshape(24, 32).astype(np.uint8)


# Reading


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int8, np.int32, np.int64])
def test_integer_arrays_are_read(labels, dtype):
    result = read_semantic_map(labels.astype(dtype))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_integer_tensors_are_read(labels, dtype):
    np.testing.assert_array_equal(read_semantic_map(torch.from_numpy(labels).to(dtype)), labels)


def test_a_stack_keeps_its_shape(labels):
    stack = np.stack([labels, labels[::-1]])
    np.testing.assert_array_equal(read_semantic_map(stack), stack)
    np.testing.assert_array_equal(read_semantic_map(torch.from_numpy(stack)), stack)


def test_reading_copies(labels):
    before = labels.copy()
    read_semantic_map(labels)[:] = 0
    np.testing.assert_array_equal(labels, before)


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_grey_image_and_its_png_are_read(labels, tmp_path, kind):
    image = Image.fromarray(labels)
    assert image.mode == "L"
    np.testing.assert_array_equal(read_semantic_map(image), labels)
    image.save(tmp_path / "map.png")
    np.testing.assert_array_equal(read_semantic_map(kind(tmp_path / "map.png")), labels)


def test_the_palette_image_carries_labels_and_colours_through_a_png(labels, tmp_path):
    image = semantic_map_image(labels)
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), labels)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), PALETTE[labels])
    np.testing.assert_array_equal(read_semantic_map(image), labels)
    image.save(tmp_path / "map.png")
    np.testing.assert_array_equal(read_semantic_map(tmp_path / "map.png"), labels)


@pytest.mark.parametrize("present", [[7], [0, 5], [4]])
def test_a_map_of_few_labels_keeps_them_through_a_png(present, tmp_path):
    """A PNG writer may pack a small palette into fewer bits; the indices must survive."""
    sparse = np.resize(np.array(present, dtype=np.uint8), (16, 16))
    semantic_map_image(sparse).save(tmp_path / "map.png", optimize=True)
    np.testing.assert_array_equal(read_semantic_map(tmp_path / "map.png"), sparse)


@pytest.mark.parametrize("wrong", [8, 255, -1])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_value_outside_the_labels_is_named(labels, wrong, as_tensor):
    labels = labels.astype(np.int16)
    labels[3, 5] = wrong
    with pytest.raises(ValueError, match=rf"value {wrong} \(1 pixels.*0\.\.7"):
        read_semantic_map(torch.from_numpy(labels) if as_tensor else labels)


def test_a_wrong_value_of_an_image_is_named():
    with pytest.raises(ValueError, match="value 128 "):
        read_semantic_map(Image.fromarray(np.full((8, 8), 128, dtype=np.uint8)))


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((8, 8), np.float32),
        np.zeros((8, 8), bool),
        torch.zeros(8, 8),
        torch.zeros(8, 8, dtype=torch.bfloat16),
        torch.zeros(8, 8) > 0,
    ],
)
def test_dtypes_other_than_integer_are_refused(source):
    with pytest.raises(ValueError, match="dtype (float|bool).*integer labels"):
        read_semantic_map(source)


@pytest.mark.parametrize("shape", [(8,), (1, 1, 8, 8), (0, 8), ()])
def test_other_dimensions_are_refused(shape):
    with pytest.raises(ValueError, match=r"has shape .*\(H, W\) or \(B, H, W\)"):
        read_semantic_map(np.zeros(shape, dtype=np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "1", "F", "I"])
def test_other_image_modes_are_refused(mode):
    with pytest.raises(ValueError, match=f'mode "{mode}".*"L" or "P"'):
        read_semantic_map(Image.new(mode, (8, 8)))


@pytest.mark.parametrize("source", [None, 3, [[0, 1], [2, 3]], io.BytesIO()])
def test_other_types_are_refused(source):
    with pytest.raises(ValueError, match=type(source).__name__):
        read_semantic_map(source)


def test_an_image_shows_one_map_only(labels):
    with pytest.raises(ValueError, match="one map"):
        semantic_map_image(labels[None])


@pytest.mark.parametrize(
    ("rating", "expected"), [(1, 5), (2, 5), (2.49, 5), (2.5, 6), (3, 6), (3.49, 6), (3.5, 7), (4, 7), (5, 7)]
)
def test_the_label_follows_malignancy(rating, expected):
    assert SemanticLabel.for_malignancy(rating) == expected


@pytest.mark.parametrize("rating", [0, 0.99, 5.01, float("nan")])
def test_a_rating_outside_the_scale_is_refused(rating):
    with pytest.raises(ValueError, match=f"{rating}.*1..5"):
        SemanticLabel.for_malignancy(rating)


# Nodules


def test_nodules_come_in_raster_order_with_their_measures():
    labels = np.full((64, 80), SemanticLabel.LUNG, dtype=np.uint8)
    labels[40:44, 2:5] = 5  # first in column order, last in raster order
    labels[10:14, 60:66] = 7
    labels[10:12, 20:22] = 6
    labels[0, 79] = 5
    nodules = find_nodules(labels)
    assert [(n.label, n.area) for n in nodules] == [(5, 1), (6, 4), (7, 24), (5, 12)]
    assert [n.centroid_yx for n in nodules] == [(0.0, 79.0), (10.5, 20.5), (11.5, 62.5), (41.5, 3.0)]
    assert [n.box_yxyx for n in nodules] == [(0, 79, 1, 80), (10, 20, 12, 22), (10, 60, 14, 66), (40, 2, 44, 5)]
    assert all(isinstance(n.label, SemanticLabel) for n in nodules)


def test_touching_nodules_of_different_labels_stay_apart():
    labels = np.zeros((32, 32), dtype=np.uint8)
    labels[8:12, 8:12] = 5
    labels[8:12, 12:16] = 7
    assert [(n.label, n.centroid_yx, n.area) for n in find_nodules(labels)] == [
        (5, (9.5, 9.5), 16),
        (7, (9.5, 13.5), 16),
    ]


def test_pixels_that_touch_by_a_corner_are_one_nodule():
    assert [n.area for n in find_nodules(np.eye(8, dtype=np.uint8) * 6)] == [8]


def test_a_nodule_knows_its_own_pixels():
    """Another nodule of the same label may lie inside its box."""
    labels = np.zeros((16, 16), dtype=np.uint8)
    labels[2:12, 2] = labels[11, 2:12] = 5
    labels[4, 8] = 5
    long, dot = find_nodules(labels)
    assert (long.mask(labels.shape) | dot.mask(labels.shape)).sum() == (labels == 5).sum() == long.area + dot.area
    assert [tuple(point) for point in np.argwhere(dot.mask(labels.shape))] == [(4, 8)] and not long.mask(labels.shape)[
        4, 8
    ]


def test_no_other_label_is_a_nodule():
    assert find_nodules(np.arange(5, dtype=np.uint8).repeat(4).reshape(4, 5)) == []
    with pytest.raises(ValueError, match="one map"):
        find_nodules(np.zeros((2, 8, 8), dtype=np.uint8))


# Max-pooled one-hot map


@pytest.mark.parametrize("size", [(64, 64), (16, 16), (4, 8), (1, 1)])
def test_pooling_keeps_a_nodule_of_one_pixel(size):
    labels = torch.full((2, 64, 64), int(SemanticLabel.LUNG))
    labels[1, 37, 22] = SemanticLabel.NODULE_BENIGN
    pooled = max_pool_one_hot(labels, size)
    assert pooled.shape == (2, NUM_LABELS, *size) and pooled.dtype == torch.float32
    expected = torch.full((2, *size), int(SemanticLabel.LUNG))
    expected[1, 37 * size[0] // 64, 22 * size[1] // 64] = SemanticLabel.NODULE_BENIGN
    assert torch.equal(pooled.argmax(1), expected)
    assert torch.equal(pooled.sum(1), torch.ones(2, *size))


def test_pooling_to_the_same_size_is_one_hot(labels):
    pooled = max_pool_one_hot(torch.from_numpy(labels)[None], labels.shape)
    assert torch.equal(pooled.argmax(1)[0], torch.from_numpy(labels).long())
    assert pooled.unique().tolist() == [0, 1]


@pytest.mark.parametrize("size", [(7, 8), (8, 12), (128, 128), (0, 8), (-8, 8)])
def test_a_size_that_does_not_divide_is_refused(size):
    with pytest.raises(ValueError, match=f"64x64.*{size[0]}x{size[1]}"):
        max_pool_one_hot(torch.zeros(1, 64, 64, dtype=torch.long), size)


def test_pooling_takes_a_batch_of_maps():
    with pytest.raises(ValueError, match=r"shape \(64, 64\).*\(B, H, W\)"):
        max_pool_one_hot(torch.zeros(64, 64, dtype=torch.long), (8, 8))


# From Hounsfield units

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
    """A chest of 512x512 pixels in HU, with noise: fat rim, lungs with vessels and a nodule, trachea, bones, a hollow table below."""
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


def test_air_under_the_skin_is_not_lung(phantom, phantom_map):
    """Subcutaneous emphysema: pockets of free air and mixed air in the fat beneath the skin, one of them open to it."""
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


def test_painting_leaves_the_map_it_was_given(labels):
    before = labels.copy()
    mask = np.zeros(labels.shape, dtype=bool)
    mask[:3] = True
    assert (paint_nodules(labels, [(mask, 5)])[:3] == 7).all()
    np.testing.assert_array_equal(labels, before)


@pytest.mark.parametrize("mask", [np.ones((4, 4), dtype=bool), np.ones((24, 32), dtype=np.uint8)])
def test_a_wrong_nodule_mask_is_refused(labels, mask):
    with pytest.raises(ValueError, match="boolean mask"):
        paint_nodules(labels, [(mask, 3)])


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
