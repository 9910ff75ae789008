"""Plots of numbers: scores, learning curves, how quantities are distributed."""

import io
from collections.abc import Mapping, Sequence
from math import ceil

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from panorgan.config.labels import Labels

AS_WRITTEN = {"text.parse_math": False}
"""Setting under which a name with two dollar signs is no formula."""

STYLE = {"svg.hashsalt": "panorgan", "font.size": 9, **AS_WRITTEN}
"""Settings under which equal input gives equal bytes."""

BLUE, ORANGE = "#0072b2", "#d55e00"
"""Apart for the colour-blind too (Okabe and Ito)."""

BINS = 24
LOGARITHMIC = "ml"
"""Volumes spread over orders of magnitude: quantities of this unit have a logarithmic axis."""

ROUND = [factor * 10.0**power for power in range(-6, 7) for factor in (1, 2, 5)]
"""Where a logarithmic axis may begin and end."""

BLOCKS_A_LINE = 3
MOST_NAMED = 3
"""Of the largest missed tumours, the cases' names are written."""


def draw_scores(scores: Mapping[str, Sequence[float]], colours: Mapping[str, str], name: str):
    """Scores of every case by class: a dot a case, a box from quartile to quartile, the median.

    Parameters
    ----------
    scores
        Values between 0 and 1 by the class's title, in the order from top to bottom.
    colours
        Of the titles.
    name
        What the scores are, for the axis.

    Returns
    -------
    bytes
        An SVG; equal input gives equal bytes.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 0.5 + 0.3 * len(scores)), layout="constrained")
        axes = figure.add_subplot()
        for row, (title, values) in enumerate(scores.items()):
            places = row + _spread_apart(values)
            axes.scatter(values, places, s=14, color=colours[title], edgecolor="#333", lw=0.5)
        axes.boxplot(
            list(scores.values()),
            positions=range(len(scores)),
            orientation="horizontal",
            widths=0.6,
            showfliers=False,
            whis=(0, 100),
            medianprops={"color": "black", "linewidth": 1.6},
            boxprops={"color": "#777"},
            whiskerprops={"color": "#777"},
            showcaps=False,
            zorder=1,
        )
        axes.set(xlim=(-0.02, 1.02), ylim=(len(scores) - 0.4, -0.6), xlabel=name)
        axes.set_yticks(range(len(scores)), list(scores))
        _tidy(axes, "x")
        return _saved(figure)


def _spread_apart(values: Sequence[float]) -> np.ndarray:
    """Offsets between -0.2 and 0.2 that keep equal values from hiding each other."""
    order = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return ((order * 0.618034) % 1 - 0.5) * 0.4


def draw_curves(rows: Sequence[Mapping[str, float]], labels: Labels) -> bytes:
    """A network's learning curves: losses, and the pseudo-Dice of each class.

    Parameters
    ----------
    rows
        An epoch each, as numbers; NaN where something was not measured.
    labels
        Gives titles and colours; the tumour is dashed.

    Returns
    -------
    bytes
        A PNG, so that a training of any length is small; equal input gives equal bytes.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.6), layout="constrained")
        losses, dice = figure.subplots(1, 2, width_ratios=(1, 1.35))
        epochs = [row["epoch"] for row in rows]
        for name, title, colour in (
            ("train_loss", "training", BLUE),
            ("validation_loss", "validation", ORANGE),
        ):
            losses.plot(epochs, [row[name] for row in rows], label=title, color=colour, lw=1.4)
        losses.set(xlabel="epoch", ylabel="loss")
        losses.legend(frameon=False)
        for label in labels.labels:
            if (name := f"dice_{label.name}") in rows[0]:
                tumour = label == labels.tumour
                style = {"color": "black", "ls": "--"} if tumour else {"color": label.colour}
                values = [row[name] for row in rows]
                dice.plot(epochs, values, label=label.title, lw=1.3, **style)
        dice.set(xlabel="epoch", ylabel="pseudo-Dice (validation)", ylim=(0, 1))
        dice.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        for axes in (losses, dice):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            _tidy(axes, "both")
        return _saved(figure, "png")


def draw_histograms(
    groups: Mapping[str, Mapping[str, Sequence[float]]], units: Mapping[str, str]
) -> bytes:
    """How quantities are distributed: a block a quantity, in it a histogram a group.

    Parameters
    ----------
    groups
        Values by quantity and group (split), both named for people. The bins of a quantity are
        the same in all its groups.
    units
        Of the quantities that have one. Those in ml have a logarithmic axis; there, what is not
        positive counts to the first bin.

    Returns
    -------
    bytes
        An SVG; equal input gives equal bytes.
    """
    names = list(dict.fromkeys(name for found in groups.values() for name in found))
    columns = min(len(groups), BLOCKS_A_LINE)
    lines = ceil(len(groups) / columns)
    with matplotlib.rc_context(STYLE):
        size = (3.2 * columns, lines * (0.55 + 0.8 * len(names)))
        figure = Figure(figsize=size, layout="constrained")
        blocks = figure.subfigures(lines, columns, squeeze=False).flat
        for block, (quantity, found) in zip(blocks, groups.items(), strict=False):
            unit = units.get(quantity, "")
            edges = bin_edges([v for values in found.values() for v in values], unit)
            rows = block.subplots(len(names), squeeze=False, sharex=True).flat
            for axes, name in zip(rows, names, strict=True):
                values = np.clip(found.get(name, ()), edges[0], edges[-1])
                counts, _ = np.histogram(values, edges)
                bars = {"color": BLUE, "edgecolor": "white", "linewidth": 0.4}
                axes.bar(edges[:-1], counts, np.diff(edges), align="edge", **bars)
                axes.set_title(f"{name}, {_cases(len(values))}", loc="left", size=8)
                axes.set(xlim=edges[[0, -1]], ylim=(0, None if len(values) else 1))
                axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
                if unit == LOGARITHMIC:
                    _make_logarithmic(axes, edges[[0, -1]])
                _tidy(axes, "y")
            axes.set_xlabel(f"{quantity}, {unit}" if unit else quantity)
            block.supylabel("cases", size=8)
        return _saved(figure)


def bin_edges(values: Sequence[float], unit: str) -> np.ndarray:
    """Edges of `BINS` bins that hold all values, evenly spaced on the axis of their unit."""
    if unit == LOGARITHMIC:
        return np.geomspace(*_round_limits(values), BINS + 1)
    low, high = (min(values), max(values)) if len(values) else (0.0, 1.0)
    pad = 0.0 if low < high else max(abs(low) / 10, 0.5)
    return np.linspace(low - pad, high + pad, BINS + 1)


def _round_limits(values: Sequence[float]) -> tuple[float, float]:
    """The next round numbers below and above all positive values."""
    positive = [value for value in values if value > 0] or [1.0]
    low = max((number for number in ROUND if number < min(positive)), default=ROUND[0])
    return low, min((number for number in ROUND if number > max(positive)), default=ROUND[-1])


def draw_tumour_sizes(points: Sequence[tuple[float, float, str]], name: str = "DSC") -> bytes:
    """Tumour scores of the cases that have one, against its volume.

    Parameters
    ----------
    points
        Of each case: the reference's volume in ml, the score between 0 and 1, the case's name.
        Where the score is 0, nothing of the tumour was found: these have another shape, and the
        largest of them their names.
    name
        What the scores are, for the axis.

    Returns
    -------
    bytes
        An SVG; equal input gives equal bytes.
    """
    missed = sorted((point for point in points if point[1] == 0), reverse=True)
    found = [point for point in points if point[1] > 0]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for title, shown, style in (
            ("found", found, {"marker": "o", "color": BLUE, "edgecolor": "#333", "lw": 0.5}),
            ("missed", missed, {"marker": "x", "color": ORANGE, "lw": 1.6}),
        ):
            if shown:
                ml, scores, _ = zip(*shown, strict=True)
                title = f"{title}, {_cases(len(shown))}"
                axes.scatter(ml, scores, s=22, label=title, clip_on=False, **style)
        for ml, score, case in missed[:MOST_NAMED]:
            axes.annotate(
                case,
                (ml, score),
                xytext=(2, 5),
                textcoords="offset points",
                rotation=60,
                rotation_mode="anchor",
                size=7,
            )
        axes.set(xlabel="tumour in the reference, ml", ylabel=name, ylim=(-0.02, 1.02))
        _make_logarithmic(axes, _round_limits([ml for ml, *_ in points]))
        _tidy(axes, "both")
        if points:
            axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return _saved(figure)


def _cases(count: int) -> str:
    return "1 case" if count == 1 else f"{count} cases"


def _make_logarithmic(axes: Axes, limits: Sequence[float]) -> None:
    axes.set(xscale="log", xlim=limits)
    factors = (1, 2, 5) if limits[1] / limits[0] <= 100 else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=factors))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _tidy(axes: Axes, grid: str) -> None:
    axes.grid(axis=grid, color="#ddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _saved(figure: Figure, kind: str = "svg") -> bytes:
    metadata = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[kind]
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=130, metadata=metadata)
    return buffer.getvalue()
