"""Pictures of cases: the right side on the right side, in the right shape and colour."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from panorgan.config.labels import load_labels
from panorgan.io.volumes import canonical_spacing, from_canonical, new_volume, to_canonical
from panorgan.report.drawing import (
    CAPTION_INCHES,
    CELL_INCHES,
    PANEL_INCHES,
    Layer,
    class_colours,
    draw_case,
    draw_piece,
    draw_structure,
    fullest_point,
    telling_position,
    windowed,
)

LABELS = load_labels()
AIR, TISSUE = -1000, 240
GREY = 40
"""HU in the middle of the window."""

AORTA, TUMOUR = LABELS.by_name("aorta").value, LABELS.tumour.value
PLANES = ("axial", "coronal", "sagittal")


def pixels(picture: bytes) -> np.ndarray:
    """uint8 (rows, columns, RGB)."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


def bright(picture: bytes) -> np.ndarray:
    """Where a picture of one panel is white, its writing left out: (rows, columns)."""
    shown = pixels(picture)[:, :, 0] > 200
    rows, columns = shown.shape
    shown[: rows // 10] = False
    shown[-rows // 3 :] = False
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


def test_far_slices_are_left_out_of_the_right_end():
    """What is bright above the labels stays at the top of the picture."""
    image = np.full((100, 20, 20), AIR, np.int16)
    image[60:63] = TISSUE
    label = np.zeros(image.shape, np.uint8)
    label[45:55, 5:15, 5:15] = 1
    layers = [Layer("Reference", label, class_colours(LABELS))]
    shown = pixels(draw_case(image, (2, 5, 5), layers, position=(50, 10, 10), planes=["coronal"]))
    rows = np.flatnonzero((shown.min(axis=2) > 127).sum(axis=1) > shown.shape[1] * 0.8)
    # Slices 25 to 74 are shown, 37 of them above the middle of the labels: 62 is 12 from the top.
    panel = 50 * 2 / 100 * PANEL_INCHES * 130
    assert len(rows) == pytest.approx(panel * 3 / 50, abs=3)
    assert rows[0] == pytest.approx((0.28 + CAPTION_INCHES) * 130 + panel * 12 / 50, abs=4)


def test_overview_has_a_scale_bar():
    image = np.full((10, 100, 100), AIR, np.int16)
    picture = draw_case(image, (5, 4, 4), [Layer("CT")], position=(5, 50, 50), planes=["axial"])
    # 100 mm of 400; 0.08 inches are below the panel.
    assert longest_run(pixels(picture)[-40:-10]) == pytest.approx(PANEL_INCHES * 130 / 4, abs=3)


# Contours


def longest_run(rows: np.ndarray) -> int:
    """The longest horizontal line of white pixels in (rows, columns, RGB)."""
    best = 0
    for row in rows.min(axis=2) > 200:
        edges = np.flatnonzero(np.diff(np.r_[0, row.astype(int), 0]))
        best = max(best, *(edges[1::2] - edges[::2]), 0)
    return best


def panels(picture: bytes, count: int = 3) -> list[np.ndarray]:
    """The squares of a row, from the left, each (side, side, RGB)."""
    shown = pixels(picture)
    inch = shown.shape[1] / (count * (CELL_INCHES + 0.06) + 0.06)
    side, gap = CELL_INCHES * inch, 0.06 * inch
    top = round((0.32 + CAPTION_INCHES) * inch)  # below the title
    lefts = [round(gap + number * (side + gap)) for number in range(count)]
    return [shown[top : top + round(side), left : left + round(side)] for left in lefts]


def inner(panel: np.ndarray) -> np.ndarray:
    """A square without its writing."""
    side = len(panel)
    return panel[side // 8 : -side // 8, side // 8 : -side // 8]


def red(panel: np.ndarray) -> np.ndarray:
    """Where a picture has the aorta's colour."""
    panel = panel.astype(int)
    return panel[:, :, 0] - panel[:, :, 2] > 60


def white(panel: np.ndarray) -> np.ndarray:
    return panel.min(axis=2) > 200


def extents(mask: np.ndarray) -> tuple[int, int]:
    """Height and width of what is true in a mask, in pixels."""
    return tuple(int(np.ptp(places)) + 1 for places in np.nonzero(mask))


def box(shape: tuple[int, ...], *ranges: tuple[int, int], value: int = AORTA) -> np.ndarray:
    """A label map with a box from and up to these indices."""
    label = np.zeros(shape, np.uint8)
    label[tuple(slice(*found) for found in ranges)] = value
    return label


def structure(prediction, reference, spacing=(1, 1, 1), value=AORTA, image=None, **how) -> bytes:
    if image is None:
        image = np.full(prediction.shape, GREY, np.int16)
    return draw_structure(
        image, spacing, prediction, reference, value, LABELS, **{"kind": "png"} | how
    )


CUBE = (100, 100, 100)
MIDDLE = ((40, 60), (40, 60), (40, 60))
PIXELS_A_MM = CELL_INCHES * 110 / 80


class TestStructure:
    def test_contour_has_the_size_of_the_structure(self):
        for panel in panels(structure(box(CUBE, *MIDDLE), None)):
            assert extents(red(inner(panel))) == pytest.approx([20 * PIXELS_A_MM] * 2, abs=3)

    def test_contour_has_the_right_shape_on_thick_slices(self):
        """6 slices of 5 mm, 20 rows of 1 mm and 20 columns of 0.5 mm."""
        label = box((30, 100, 200), (10, 16), (40, 60), (80, 100))
        found = [
            extents(red(inner(panel))) for panel in panels(structure(label, None, (5, 1, 0.5)))
        ]
        mm = [(20, 10), (30, 10), (30, 20)]
        assert found == [
            pytest.approx([length * PIXELS_A_MM for length in size], abs=3) for size in mm
        ]

    def test_right_anterior_and_superior_are_where_radiologists_expect_them(self):
        label = box(CUBE, *MIDDLE)
        image = np.full(CUBE, GREY, np.int16)
        image[52:56, 52:56, 52:56] = TISSUE  # superior, anterior, right of the middle
        label[53, 53, 53] = 0  # so that the slices go through it
        picture = structure(label, box(CUBE, *MIDDLE), image=image)
        for panel in panels(picture):
            rows, columns = np.nonzero(white(inner(panel)[80:-80, 80:-80]))
            assert rows.mean() < 50
            assert columns.mean() < 50

    def test_reference_is_dashed_and_prediction_solid(self):
        """Of a tumour, which is white in both, so that only the form can tell them apart."""
        full, none = box(CUBE, *MIDDLE, value=TUMOUR), np.zeros(CUBE, np.uint8)
        predicted = structure(full, none, value=TUMOUR)
        missed = structure(none, full, value=TUMOUR)
        for solid, dashed in zip(panels(predicted), panels(missed), strict=True):
            share = white(inner(dashed)).sum() / white(inner(solid)).sum()
            assert 0.4 < share < 0.8  # eight of thirteen
            assert extents(white(inner(dashed))) == pytest.approx(
                extents(white(inner(solid))), abs=8
            )
            assert inner(dashed).min() < 30  # the halo
            assert inner(solid).min() > 90

    def test_both_can_be_seen_where_they_agree(self):
        label = box(CUBE, *MIDDLE)
        for panel in panels(structure(label, label)):
            assert red(inner(panel)).sum() > 200
            assert white(inner(panel)).sum() > 200

    def test_slices_go_through_the_largest_disagreement(self):
        reference = box(CUBE, (20, 80), (40, 60), (40, 60))
        prediction = reference.copy()
        prediction[70, 45:50, 45:50] = 0
        prediction[30, 45, 45] = 0
        image = np.full(CUBE, GREY, np.int16)
        image[70, 46:49, 46:49] = TISSUE
        shown = panels(structure(prediction, reference, image=image))[0]
        side = len(shown)
        assert white(shown[side // 3 : -side // 3, side // 3 : -side // 3]).sum() > 200

    def test_crop_contains_all_of_the_structure_on_the_slice(self):
        """Far parts widen the square: 50 mm, and a margin of 25 mm on each side."""
        label = box(CUBE, *MIDDLE) + box(CUBE, (40, 60), (40, 60), (80, 90))
        for panel, width in zip(panels(structure(label, None))[:2], (50, 50), strict=True):
            side = 50 + 2 * 25
            assert extents(red(panel))[1] == pytest.approx(len(panel) * width / side, abs=3)

    @pytest.mark.parametrize("corner", [0, 95])
    def test_structure_at_the_border(self, corner):
        ranges = [(corner, corner + 5)] * 3
        for panel in panels(structure(box(CUBE, *ranges), None)):
            assert extents(red(panel)) == pytest.approx([5 * PIXELS_A_MM] * 2, abs=4)

    def test_one_voxel_can_be_seen(self):
        for panel in panels(structure(box(CUBE, (50, 51), (50, 51), (50, 51)), None)):
            assert red(panel).sum() >= 10

    def test_an_arrow_points_at_what_is_tiny(self):
        for count, pointed in ((1, True), (20, False)):
            label = box(CUBE, *[(50 - count // 2, 51 + count // 2)] * 3)
            for panel in panels(structure(label, None)):
                assert white(inner(panel)).any() == pointed
        row, column = (
            places.mean()
            for places in np.nonzero(
                white(inner(panels(structure(box(CUBE, (50, 51), (50, 51), (50, 51)), None))[0]))
            )
        )
        half = len(inner(panel)) / 2
        assert row < half < column  # it comes from above and from the right

    def test_one_slice(self):
        axial, *others = panels(structure(box((1, 100, 100), (0, 1), (40, 60), (40, 60)), None))
        assert extents(red(axial)) == pytest.approx([20 * PIXELS_A_MM] * 2, abs=3)
        for panel in others:
            assert extents(red(panel)) == pytest.approx([PIXELS_A_MM, 20 * PIXELS_A_MM], abs=4)

    def test_one_column(self):
        axial = panels(structure(box((40, 100, 1), (10, 30), (40, 60), (0, 1)), None))[0]
        assert extents(red(axial)) == pytest.approx([20 * PIXELS_A_MM, PIXELS_A_MM], abs=4)

    def test_nothing_of_it_anywhere_shows_the_whole_slice(self):
        none = np.zeros((20, 50, 50), np.uint8)
        axial = panels(structure(none, none, (2, 4, 4)))[0]
        assert axial[len(axial) // 4, 5].max() > 90
        assert not red(axial).any()

    @pytest.mark.parametrize(("size", "bar", "side"), [(20, 20, 80), (48, 20, 98), (4, 20, 80)])
    def test_scale_bar(self, size, bar, side):
        ranges = [(50 - size // 2, 50 + size // 2)] * 3
        for panel in panels(structure(box(CUBE, *ranges), None, (1.0, 1.0, 1.0))):
            assert longest_run(panel[-16:-4]) == pytest.approx(len(panel) * bar / side, abs=3)

    def test_other_classes_are_faint(self):
        kidney = LABELS.by_name("left_kidney")
        label = box(CUBE, *MIDDLE)
        beside = label + box(CUBE, (40, 60), (40, 60), (64, 68), value=kidney.value)
        alone, more = (panels(structure(one, None))[0] for one in (label, beside))
        strong = panels(structure(beside, None, value=kidney.value))[0]
        changed = np.abs(more.astype(int) - alone).max(axis=2)
        assert 30 < changed.max() < np.abs(strong.astype(int) - 128).max() * 0.9

    @pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "ILP"])
    def test_stored_order_does_not_matter(self, axes):
        rng = np.random.default_rng(0)
        image = rng.integers(-200, 300, (20, 30, 40)).astype(np.int16)
        label = box(image.shape, (5, 12), (10, 20), (15, 25))
        spacing = (3.0, 2.0, 1.0)
        expected = structure(label, None, spacing, image=image)
        grid = stored(axes, image.shape, spacing)
        array, mask = (from_canonical(one, grid) for one in (image, label))
        seen = [to_canonical(np.ascontiguousarray(one), grid) for one in (array, mask)]
        assert structure(seen[1], None, canonical_spacing(grid), image=seen[0]) == expected

    def test_equal_input_gives_equal_bytes(self):
        label = box(CUBE, *MIDDLE)
        for kind, start in (("png", b"\x89PNG"), ("jpeg", b"\xff\xd8")):
            first, second = (structure(label, label, kind=kind, title="a") for _ in "ab")
            assert first == second
            assert first.startswith(start)


def stored(axes: str, shape: tuple[int, ...], spacing: tuple[float, ...]):
    """The grid of a volume of a canonical shape whose x, y and z point along these axes."""
    places = [("LR".find(axis), "PA".find(axis), "IS".find(axis)) for axis in axes]
    affine, size, step = np.eye(4), [], []
    for column, signs in enumerate(places):
        row = next(row for row, sign in enumerate(signs) if sign >= 0)
        affine[:3, column] = 0.0
        affine[row, column] = spacing[2 - row] * (1 if signs[row] else -1)
        size.append(shape[2 - row])
        step.append(spacing[2 - row])
    return new_volume(np.zeros(size[::-1], np.uint8), step[::-1], affine).grid


class TestOutline:
    """The reference of an overview, over the prediction."""

    def draw(self, label, outline) -> np.ndarray:
        layers = [Layer("Prediction", label, class_colours(LABELS), outline)]
        image = np.full(label.shape, GREY, np.int16)
        picture = draw_case(image, (1, 1, 1), layers, position=(5, 20, 20), planes=["axial"])
        return pixels(picture)[:-150]  # without the legend

    def test_is_dashed_where_the_label_is_solid(self):
        some, none = box((10, 40, 40), (3, 8), (10, 30), (10, 30)), np.zeros((10, 40, 40), np.uint8)
        solid, dashed = self.draw(some, none), self.draw(none, some)
        share = red(dashed).sum() / (red(solid) & (solid[:, :, 1] < 60)).sum()
        assert 0.3 < share < 0.9
        assert extents(red(dashed)) == pytest.approx(extents(red(solid)), abs=8)

    def test_is_not_filled(self):
        some, none = box((10, 40, 40), (3, 8), (10, 30), (10, 30)), np.zeros((10, 40, 40), np.uint8)
        middle = [
            picture[len(picture) // 2, picture.shape[1] // 2]
            for picture in (self.draw(some, none), self.draw(none, some))
        ]
        assert middle[0][0] > middle[0][2]
        assert len({*middle[1].tolist()}) == 1


class TestPiece:
    def test_is_outlined_in_its_surroundings(self):
        mask = box((80, 300, 300), (30, 50), (140, 160), (200, 220)) > 0
        image = np.full(mask.shape, GREY, np.int16)
        found = panels(draw_piece(image, (1, 1, 1), mask, "title", "png", "#d62728"), 2)
        for panel in found:
            # 200 mm are shown.
            assert extents(red(panel)) == pytest.approx([len(panel) / 10] * 2, abs=3)

    def test_equal_input_gives_equal_bytes(self):
        mask = box((8, 9, 10), (2, 4), (3, 5), (4, 6)) > 0
        image = np.zeros(mask.shape, np.int16)
        first, second = (draw_piece(image, (3, 2, 2), mask) for _ in "ab")
        assert first == second
        assert first.startswith(b"\xff\xd8")


class TestFullestPoint:
    def test_is_in_the_middle_of_the_larger_piece(self):
        small = box((20, 20, 20), (10, 14), (2, 5), (2, 5))
        large = box((20, 20, 20), (10, 13), (9, 16), (8, 15))
        assert fullest_point(small + large > 0) == (10, 12, 11)

    def test_is_on_the_axial_slice_that_has_most(self):
        mask = box((20, 20, 20), (2, 12), (5, 8), (5, 8)) + box(
            (20, 20, 20), (17, 18), (2, 7), (2, 7)
        )
        assert fullest_point(mask > 0) == (17, 4, 4)

    def test_of_a_rim_is_the_middle_of_what_it_is_around(self):
        z, y, x = np.indices((9, 20, 20))
        distance = np.hypot(y - 9, x - 9)  # so round that the rim hangs together by its corners
        organ = (distance < 7) & (z > 1) & (z < 7)
        rim = organ & (distance >= 6)
        assert fullest_point(rim, organ) == (2, 9, 9)
        assert rim[fullest_point(rim)]

    def test_middle_if_empty(self):
        assert fullest_point(np.zeros((4, 5, 7), bool)) == (2, 2, 3)

    @given(arrays(bool, st.tuples(*[st.integers(1, 6)] * 3)))
    def test_is_in_the_mask(self, mask):
        assert mask[fullest_point(mask)] or not mask.any()


def test_another_grid_is_refused():
    image, label = np.zeros((3, 4, 5), np.int16), np.zeros((3, 4, 6), np.uint8)
    for layer in (Layer("Prediction", label, {}), Layer("Prediction", image, {}, label)):
        with pytest.raises(ValueError, match="Prediction: shape"):
            draw_case(image, (1, 1, 1), [layer], position=(1, 1, 1))
    for maps in ((label, None), (image, label)):
        with pytest.raises(ValueError, match=r"(Prediction|Reference): shape"):
            draw_structure(image, (1, 1, 1), *maps, 1, LABELS)
    with pytest.raises(ValueError, match="mask: shape"):
        draw_piece(image, (1, 1, 1), label > 0)


def test_one_slice_leaves_room_for_the_writing():
    """The strip is in the middle of a panel that is half an inch high, its bar below it."""
    image = np.full((1, 50, 50), GREY, np.int16)
    layers = [Layer("CT")]
    shown = pixels(draw_case(image, (1, 4, 4), layers, position=(0, 25, 25), planes=["coronal"]))
    assert len(shown) == pytest.approx((0.28 + CAPTION_INCHES + 0.5 + 0.08) * 130, abs=2)
    bar = max(range(len(shown)), key=lambda row: longest_run(shown[row : row + 1]))
    column = shown[:, shown.shape[1] // 3].max(axis=1)
    strip = np.flatnonzero((column > 60) & (column < 180))
    assert strip.max() < bar - 5
