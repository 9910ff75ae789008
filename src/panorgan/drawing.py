"""Pictures: CT slices with labels as PNG, plots of scores as SVG.

Volumes are (z, y, x) in RAS order. Slices are shown as radiologists expect them: the patient's
right on the left side of the picture, anterior and superior up, in the right aspect ratio.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from panorgan.labels import Labels

PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}
"""The axis of (z, y, x) that a plane is perpendicular to."""

SIDES = {"axial": "RL", "coronal": "RL", "sagittal": "AP"}
"""What lies at the left and at the right edge of a slice of each plane."""

SOFT_TISSUE = (400.0, 40.0)
"""Width and level of the window in HU."""

SOURCE_COLOURS = {
    1: ("Ground truth", "#0072b2"),
    2: ("Tumour pseudo-label", "#d55e00"),
    3: ("Organ pseudo-label", "#f0e442"),
    4: ("Ignored", "#999999"),
}
"""Title and colour of a source map's values; apart for the colour-blind too (Okabe and Ito)."""

FILL_OPACITY = 0.25
PANEL_INCHES = 3.7
DPI = 130
MARGIN_MM = 40.0
"""Above and below the labels; what is further away is not shown."""


@dataclass(frozen=True)
class Layer:
    """What one column of a picture shows over the CT.

    Attributes
    ----------
    title
        Written above the column.
    label : uint8 (z, y, x) or None
        None shows the CT alone.
    colours
        Title and colour of the values that are shown.
    """

    title: str
    label: np.ndarray | None = None
    colours: Mapping[int, tuple[str, str]] | None = None


def class_colours(labels: Labels) -> dict[int, tuple[str, str]]:
    """Title and colour of every class, as `Layer` wants them."""
    return {label.value: (label.title, label.colour) for label in labels.labels}


def windowed(hu: np.ndarray, width: float = SOFT_TISSUE[0], level: float = SOFT_TISSUE[1]):
    """HU as float32 grey values between 0 and 1, of the same shape."""
    low = np.float32(level - width / 2)
    return np.clip((hu.astype(np.float32) - low) / np.float32(width), 0, 1)


def telling_position(label: np.ndarray, weights: Mapping[int, float] | None = None):
    """Where the slices of the three planes show most of what a label map holds.

    On each axis the slice is taken on which the classes' areas, each relative to the class's
    largest area on that axis, have the largest sum.

    Parameters
    ----------
    label : uint8 (z, y, x)
    weights
        Of the values, where they are not 1.

    Returns
    -------
    tuple of int
        (z, y, x); the middle of the volume where the label map is empty.
    """
    weights = weights or {}
    sums = [np.zeros(size) for size in label.shape]
    for value in np.unique(label[label > 0]):
        mask = label == value
        for axis, total in enumerate(sums):
            areas = mask.sum(axis=tuple({0, 1, 2} - {axis}))
            total += weights.get(int(value), 1.0) * areas / areas.max()
    return tuple(
        int(total.argmax()) if total.any() else size // 2
        for total, size in zip(sums, label.shape, strict=True)
    )


def draw_case(
    image: np.ndarray,
    spacing: Sequence[float],
    layers: Sequence[Layer],
    *,
    position: Sequence[int],
    planes: Iterable[str] = tuple(PLANES),
    title: str = "",
    kind: str = "png",
) -> bytes:
    """A picture of a case: a row a plane, a column a layer, the legend below.

    Parameters
    ----------
    image : (z, y, x)
        HU in RAS order.
    spacing
        mm (z, y, x).
    layers
        Label maps on the image's grid and their titles.
    position
        (z, y, x) voxel through which the slices go.
    planes
        Names from `PLANES`.
    title
        Written above all.
    kind
        ``png``, or ``jpeg`` for a third of the size.

    Returns
    -------
    bytes
        The file; equal input gives equal bytes.

    Raises
    ------
    ValueError
        If a layer has another shape than the image.
    """
    for layer in layers:
        if layer.label is not None and layer.label.shape != image.shape:
            raise ValueError(f"{layer.title}: shape {layer.label.shape}, image {image.shape}")
    planes = list(planes)
    first, last = _shown_slices(layers, position[0], image.shape[0], spacing[0])
    position = (position[0] - first, position[1], position[2])
    image = image[first:last]
    size_mm = [count * step for count, step in zip(image.shape, spacing, strict=True)]
    scale = PANEL_INCHES / max(size_mm[1:])
    heights = [size_mm[1] * scale if plane == "axial" else size_mm[0] * scale for plane in planes]
    shown: set[tuple[str, str]] = set()
    gap, head = 0.08, 0.28 + (0.3 if title else 0.0)
    foot = 0.95
    width = len(layers) * (PANEL_INCHES + gap) + gap
    height = head + sum(heights) + gap * len(planes) + foot
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="black")
    if title:
        figure.text(0.5, 1 - 0.06 / height, title, color="white", ha="center", va="top", size=12)
    for column, layer in enumerate(layers):
        left = gap + column * (PANEL_INCHES + gap)
        figure.text(
            (left + PANEL_INCHES / 2) / width,
            1 - (head - 0.06) / height,
            layer.title,
            color="white",
            ha="center",
            va="bottom",
            size=11,
        )
        top = height - head
        for plane, row_height in zip(planes, heights, strict=True):
            top -= row_height
            panel_width = size_mm[1 if plane == "sagittal" else 2] * scale
            box = (left + (PANEL_INCHES - panel_width) / 2, top, panel_width, row_height)
            axes = figure.add_axes(
                (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
            )
            label = None if layer.label is None else layer.label[first:last]
            _draw_slice(axes, plane, image, label, layer.colours or {}, spacing, position, shown)
            top -= gap
    _draw_legends(figure, layers, shown, foot / height)
    return _pixels(figure, kind)


def _shown_slices(
    layers: Sequence[Layer], position: int, count: int, thickness: float
) -> tuple[int, int]:
    """The range of axial slices with labels and a margin: a long scan would be all thorax."""
    used = np.zeros(count, bool)
    for layer in layers:
        if layer.label is not None:
            used |= layer.label.any(axis=(1, 2))
    if not used.any():
        return 0, count
    used[position] = True
    margin = round(MARGIN_MM / thickness)
    found = np.flatnonzero(used)
    return max(0, int(found[0]) - margin), min(count, int(found[-1]) + 1 + margin)


def _draw_slice(
    axes: Axes,
    plane: str,
    image: np.ndarray,
    label: np.ndarray | None,
    colours: Mapping[int, tuple[str, str]],
    spacing: Sequence[float],
    position: Sequence[int],
    shown: set[tuple[str, str]],
) -> None:
    axis = PLANES[plane]
    index = position[axis]

    def cut(array: np.ndarray) -> np.ndarray:
        return np.take(array, index, axis)[::-1, ::-1]

    high, wide = (step for other, step in enumerate(spacing) if other != axis)
    grey = cut(image)
    extent = (0, grey.shape[1] * wide, grey.shape[0] * high, 0)
    axes.imshow(
        windowed(grey), cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="bilinear"
    )
    if label is not None:
        flat = np.pad(cut(label), 1)
        x = (np.arange(flat.shape[1]) - 0.5) * wide
        y = (np.arange(flat.shape[0]) - 0.5) * high
        fill = np.zeros((256, 4), np.float32)
        for value, (title, colour) in colours.items():
            mask = flat == value
            if mask.any():
                shown.add((title, colour))
                fill[value] = to_rgba(colour, FILL_OPACITY)
                axes.contour(x, y, mask, [0.5], colors=[colour], linewidths=1.1)
        axes.imshow(fill[flat[1:-1, 1:-1]], extent=extent, interpolation="nearest")
    axes.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[])
    axes.set_axis_off()
    style = {
        "color": "white",
        "transform": axes.transAxes,
        "path_effects": [withStroke(linewidth=2, foreground="black")],
    }
    for place, align, side in zip((0.015, 0.985), ("left", "right"), SIDES[plane], strict=True):
        axes.text(place, 0.5, side, ha=align, va="center", size=12, weight="bold", **style)
    axes.text(0.015, 0.98, plane, ha="left", va="top", size=8, **style)


def _draw_legends(
    figure: Figure, layers: Sequence[Layer], shown: set[tuple[str, str]], height: float
) -> None:
    """A legend for each set of colours, below the columns up to the last one that uses it."""
    ends: list[tuple[Mapping[int, tuple[str, str]], int]] = []
    for column, layer in enumerate(layers, 1):
        if layer.colours:
            if ends and ends[-1][0] == layer.colours:
                ends.pop()
            ends.append((layer.colours, column))
    start = 0
    for colours, end in ends:
        handles = [
            Patch(facecolor=colour, edgecolor="white", linewidth=0.5, label=title)
            for title, colour in colours.values()
            if (title, colour) in shown
        ]
        share = (end - start) / len(layers)
        if handles:
            figure.legend(
                handles=handles,
                loc="center",
                bbox_to_anchor=(start / len(layers), 0.0, share, height),
                ncols=max(1, int(figure.get_figwidth() * share / 1.8)),
                frameon=False,
                labelcolor="white",
                fontsize=9,
                handlelength=1.2,
                columnspacing=1.2,
            )
        start = end


def _pixels(figure: Figure, kind: str, background: str = "black") -> bytes:
    details = {"jpeg": {"quality": 90, "subsampling": 0}, "png": {}}[kind]
    metadata = {"Software": None} if kind == "png" else None
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, facecolor=background, metadata=metadata, pil_kwargs=details)
    return buffer.getvalue()


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
    with matplotlib.rc_context({"svg.hashsalt": "panorgan", "font.size": 9}):
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
        axes.grid(axis="x", color="#ddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        return _svg(figure)


def _spread_apart(values: Sequence[float]) -> np.ndarray:
    """Offsets between -0.2 and 0.2 that keep equal values from hiding each other."""
    order = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return ((order * 0.618034) % 1 - 0.5) * 0.4


def draw_curves(
    rows: Sequence[Mapping[str, float]],
    labels: Labels,
    prefix: str = "dice_",
    kind: str = "svg",
) -> bytes:
    """A network's learning curves: losses, and the pseudo-Dice of each class.

    Parameters
    ----------
    rows
        Of a model's ``progress.csv``, as numbers; NaN where a field was empty.
    labels
        Gives titles and colours; the tumour is dashed.
    prefix
        Of the columns of pseudo-Dice.
    kind
        ``svg`` or ``png``.

    Returns
    -------
    bytes
        The file; equal input gives equal bytes.
    """
    with matplotlib.rc_context({"svg.hashsalt": "panorgan", "font.size": 9}):
        figure = Figure(figsize=(10.5, 3.6), layout="constrained")
        losses, dice = figure.subplots(1, 2, width_ratios=(1, 1.35))
        epochs = [row["epoch"] for row in rows]
        for name, title, colour in (
            ("train_loss", "training", "#0072b2"),
            ("validation_loss", "validation", "#d55e00"),
        ):
            losses.plot(epochs, [row[name] for row in rows], label=title, color=colour, lw=1.4)
        losses.set(xlabel="epoch", ylabel="loss")
        losses.legend(frameon=False)
        for label in labels.labels:
            if prefix + label.name in rows[0]:
                tumour = label == labels.tumour
                style = {"color": "black", "ls": "--"} if tumour else {"color": label.colour}
                values = [row[prefix + label.name] for row in rows]
                dice.plot(epochs, values, label=label.title, lw=1.3, **style)
        dice.set(xlabel="epoch", ylabel="pseudo-Dice (validation)", ylim=(0, 1))
        dice.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        for axes in (losses, dice):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(color="#ddd", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        return _svg(figure) if kind == "svg" else _pixels(figure, kind, "white")


def _svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
