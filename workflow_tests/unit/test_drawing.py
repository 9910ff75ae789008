"""Pictures of cases: the right side on the right side, in the right shape and colour."""

import io

import numpy as np
import pytest
from PIL import Image

from panorgan.drawing import Layer, class_colours, draw_case, telling_position, windowed
from panorgan.labels import load_labels

LABELS = load_labels()
AIR, TISSUE = -1000, 240


def pixels(picture: bytes) -> np.ndarray:
    """uint8 (rows, columns, RGB)."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


def bright(picture: bytes) -> np.ndarray:
    """Where a picture of one panel is white, its writing left out: (rows, columns)."""
    shown = pixels(picture)[:, :, 0] > 200
    rows, columns = shown.shape
    shown[: rows // 10] = False
    shown[:, : columns // 12] = shown[:, -columns // 12 :] = False
    return shown


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_right_anterior_and_superior_are_where_radiologists_expect_them(plane):
    image = np.full((40, 40, 40), AIR, np.int16)
    image[26:34, 26:34, 26:34] = TISSUE  # superior, anterior, right of the middle
    picture = draw_case(image, (1, 1, 1), [Layer("CT")], position=(30, 30, 30), planes=[plane])
    rows, columns = np.nonzero(bright(picture))
    height, width = bright(picture).shape
    assert columns.mean() < width * 0.4  # right, and anterior in the sagittal plane
    assert rows.mean() < height * 0.45  # anterior, and superior in the others


def test_slices_have_the_right_aspect_ratio():
    image = np.full((30, 60, 60), AIR, np.int16)
    image[10:20, 20:40, 20:40] = TISSUE
    picture = draw_case(image, (5, 1, 1), [Layer("CT")], position=(15, 30, 30), planes=["coronal"])
    rows, columns = np.nonzero(bright(picture))
    # 10 slices of 5 mm by 20 voxels of 1 mm
    assert np.ptp(rows) / np.ptp(columns) == pytest.approx(50 / 20, rel=0.05)


def test_label_is_drawn_where_it_is_in_its_colour():
    image = np.full((10, 40, 40), 40, np.int16)
    label = np.zeros(image.shape, np.uint8)
    label[5, 5:15, 5:15] = LABELS.by_name("ivc").value  # posterior left
    layers = [Layer("Reference", label, class_colours(LABELS))]
    shown = pixels(draw_case(image, (1, 1, 1), layers, position=(5, 20, 20), planes=["axial"]))
    blue = shown[:, :, 2].astype(int) - shown[:, :, 0] > 20
    panel = blue[: int(len(blue) * 0.75)]  # without the legend
    rows, columns = np.nonzero(panel)
    assert columns.mean() > panel.shape[1] * 0.6
    assert rows.mean() > panel.shape[0] * 0.5


def test_equal_input_gives_equal_bytes():
    image = np.zeros((8, 9, 10), np.int16)
    first, second = (draw_case(image, (1, 1, 1), [Layer("CT")], position=(4, 4, 4)) for _ in "ab")
    assert first == second
    assert first.startswith(b"\x89PNG")
    jpeg = draw_case(image, (1, 1, 1), [Layer("CT")], position=(4, 4, 4), kind="jpeg")
    assert Image.open(io.BytesIO(jpeg)).format == "JPEG"


def test_far_slices_are_left_out_but_never_the_shown_one():
    image = np.full((100, 20, 20), AIR, np.int16)
    label = np.zeros(image.shape, np.uint8)
    label[45:55, 5:15, 5:15] = 1
    near = [Layer("Reference", label, class_colours(LABELS))]
    heights = [
        pixels(draw_case(image, (5, 5, 5), near, position=(z, 10, 10), planes=["coronal"])).shape[0]
        for z in (50, 0)
    ]
    assert heights[0] < heights[1]


def test_another_grid_is_refused():
    with pytest.raises(ValueError, match="Prediction: shape"):
        draw_case(
            np.zeros((3, 4, 5), np.int16),
            (1, 1, 1),
            [Layer("Prediction", np.zeros((3, 4, 6), np.uint8), {})],
            position=(1, 1, 1),
        )


def test_telling_position_is_where_most_classes_are():
    label = np.zeros((4, 5, 6), np.uint8)
    label[1, 2, 3] = 1
    label[1, 2, 4] = 2
    label[3, 0, 0] = 3
    assert telling_position(label) == (1, 2, 0)  # no column has two: the first that has one
    assert telling_position(label, {3: 3.0}) == (3, 0, 0)
    assert telling_position(np.zeros((4, 5, 6), np.uint8)) == (2, 2, 3)


def test_window_is_that_of_soft_tissue():
    grey = windowed(np.array([-1000, -160, 40, 240, 3000], np.int16))
    assert grey.tolist() == [0, 0, 0.5, 1, 1]
