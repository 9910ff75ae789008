"""Plots of numbers: every number is in them, and what is written says what they are."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panorgan.config.labels import load_labels
from panorgan.io import plots
from panorgan.io.plots import (
    BINS,
    bin_edges,
    draw_curves,
    draw_histograms,
    draw_scores,
    draw_tumour_sizes,
)

LABELS = load_labels()


def texts(svg: bytes) -> list[str]:
    """What is written in a plot: matplotlib adds it as comments to the outlines of the letters."""
    ElementTree.fromstring(svg)
    return re.findall(r"<!-- (.*?) -->", svg.decode())


def dots(svg: bytes) -> list[int]:
    """How many dots each scatter of a plot has."""
    groups = re.split(r'<g id="PathCollection_\d+">', svg.decode())[1:]
    return [len(re.findall(r"<use ", group.split("</g>\n   </g>")[0])) for group in groups]


def test_scores_of_every_case_are_dots():
    scores = {"Liver": [0.9, 0.95, 0.95], "Tumour": [0.0]}
    svg = draw_scores(scores, {"Liver": "#8c564b", "Tumour": "#ffffff"}, "DSC")
    assert {"Liver", "Tumour", "DSC"} <= {*texts(svg)}
    assert svg == draw_scores(scores, {"Liver": "#8c564b", "Tumour": "#ffffff"}, "DSC")


def test_curves_have_what_was_trained_and_a_dashed_tumour(monkeypatch):
    rows = [
        {"epoch": n, "train_loss": 1 / n, "validation_loss": np.nan, "dice_liver": 0.5}
        | {"dice_tumour": 0.1}
        for n in (1, 2, 3)
    ]
    picture = draw_curves(rows, LABELS)
    assert picture.startswith(b"\x89PNG")
    assert picture == draw_curves(rows, LABELS)
    monkeypatch.setattr(plots, "_saved", lambda figure, kind: figure.axes)
    losses, dice = draw_curves(rows, LABELS)
    assert [line.get_label() for line in losses.lines] == ["training", "validation"]
    assert losses.lines[0].get_ydata() == pytest.approx([1, 1 / 2, 1 / 3])
    assert [(line.get_label(), line.get_linestyle()) for line in dice.lines] == [
        ("Liver", "-"),
        ("Tumour", "--"),
    ]


class TestHistograms:
    GROUPS = {  # noqa: RUF012
        "Slices": {"train": [100, 120, 90], "validation": [100]},
        "Tumour": {"train": [0.1, 20, 900]},
    }

    def test_says_quantity_unit_group_and_count(self):
        found = texts(draw_histograms(self.GROUPS, {"Tumour": "ml"}))
        assert {"Slices", "Tumour, ml", "train, 3 cases", "validation, 1 case"} <= {*found}
        assert "validation, 0 cases" in found

    def test_volumes_have_a_logarithmic_axis(self):
        found = texts(draw_histograms(self.GROUPS, {"Tumour": "ml"}))
        assert {"0.1", "1", "10", "100"} <= {*found}

    def test_more_quantities_than_fit_in_a_line(self):
        groups = {f"quantity {n}": {"train": [n]} for n in range(6)}
        assert {*groups} <= {*texts(draw_histograms(groups, {}))}

    def test_equal_input_gives_equal_bytes(self):
        assert draw_histograms(self.GROUPS, {}) == draw_histograms(self.GROUPS, {})

    @given(st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1))
    def test_bins_hold_every_value(self, values):
        edges = bin_edges(values, "mm")
        assert len(edges) == BINS + 1
        assert np.histogram(values, edges)[0].sum() == len(values)

    @given(st.lists(st.floats(1e-4, 1e5), min_size=1))
    def test_bins_of_volumes_grow_evenly(self, values):
        edges = bin_edges(values, "ml")
        assert np.allclose(np.diff(np.log(edges)), np.log(edges[1] / edges[0]))
        assert np.histogram(values, edges)[0].sum() == len(values)

    def test_bins_of_volumes_end_at_round_numbers(self):
        assert bin_edges([0.3, 70], "ml")[[0, -1]] == pytest.approx([0.2, 100])
        assert bin_edges([10, 10], "ml")[[0, -1]] == pytest.approx([5, 20])
        assert bin_edges([0, 3], "ml")[[0, -1]] == pytest.approx([2, 5])
        assert bin_edges([], "ml")[[0, -1]] == pytest.approx([0.5, 2])


class TestTumourSizes:
    POINTS = (
        (10.0, 0.8, "a"),
        (0.5, 0.0, "small"),
        (30.0, 0.0, "large"),
        (2.0, 0.0, "middle"),
        (0.1, 0.0, "tiny"),
    )

    def test_every_case_is_a_dot_of_the_right_kind(self):
        svg = draw_tumour_sizes(self.POINTS)
        assert dots(svg)[:2] == [1, 4]  # then those of the legend
        assert {"found, 1 case", "missed, 4 cases"} <= {*texts(svg)}

    def test_the_largest_missed_ones_are_named(self):
        names = {*texts(draw_tumour_sizes(self.POINTS))}
        assert {"large", "middle", "small"} <= names
        assert not {"a", "tiny"} & names

    @pytest.mark.parametrize("points", [POINTS[:1], POINTS[1:2], ()])
    def test_few_points(self, points):
        assert "DSC" in texts(draw_tumour_sizes(points))

    def test_equal_input_gives_equal_bytes(self):
        assert draw_tumour_sizes(self.POINTS) == draw_tumour_sizes(self.POINTS)
