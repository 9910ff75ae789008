"""Pictures: CT slices with labels as PNG or JPEG.

Volumes are (z, y, x) in RAS order. Slices are shown as radiologists expect them: the patient's
right on the left side of the picture, anterior and superior up, in the right aspect ratio.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from scipy import ndimage

from panorgan.config.labels import Labels
from panorgan.io.plots import AS_WRITTEN

PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}
"""The axis of (z, y, x) that a plane is perpendicular to."""

SIDES = {"axial": "RL", "coronal": "RL", "sagittal": "AP"}
"""What lies at the left and at the right edge of a slice of each plane."""

COUNTED_FROM = {"axial": "below", "coronal": "behind", "sagittal": "the left"}
"""Where the first slice of each plane lies."""

SOFT_TISSUE = (400.0, 40.0)
"""Width and level of the window in HU."""

SOURCE_COLOURS = {
    1: ("Ground truth", "#0072b2"),
    2: ("Tumour pseudo-label", "#d55e00"),
    3: ("Organ pseudo-label", "#f0e442"),
    4: ("Ignored", "#999999"),
}
"""Title and colour of a source map's values; apart for the colour-blind too (Okabe and Ito)."""

FILL_OPACITY, FAINT = 0.25, 0.6
DASHES = (0, (4.0, 2.5))
"""Of a reference's contour, in widths of its line."""

BARS_MM = (1, 2, 5, 10, 20, 50, 100)
BAR_SHARE = 0.3
"""Lengths of scale bars, and the largest share of a panel's width that one takes."""

JPEG_QUALITY = 82
"""Contours need their full colour, whatever the quality: it is not subsampled."""

DPI = 130
PANEL_INCHES = 3.7
LEAST_INCHES = 0.5
"""Room for the writing on a panel of a few slices."""

CAPTION_INCHES = 0.17
"""Room above a panel."""

MARGIN_MM = 40.0
"""Above and below the labels; what is further away is not shown."""

ROW_DPI = 110
CELL_INCHES = 3.1
"""Side of the squares in pictures of a structure or a piece."""

STRUCTURE_MM, PIECE_MM = 80.0, 200.0
"""The least that a square shows: of a structure, and of a piece whose place one has to see."""

TINY = 0.06
"""Share of the square's side below which an arrow points at what is shown."""

AROUND, AROUND_MM = 0.25, 25.0
"""What a square shows on each side of a structure: a share of its size, and at least this."""


@dataclass(frozen=True)
class Layer:
    """What one column of a picture shows over the CT.

    Attributes
    ----------
    title
        Written above the column.
    label : uint8 (z, y, x) or None
        Filled and with solid contours; None shows the CT alone.
    colours
        Title and colour of the values that are shown.
    outline : uint8 (z, y, x) or None
        The reference where `label` is a prediction: dashed contours with a dark halo.
    """

    title: str
    label: np.ndarray | None = None
    colours: Mapping[int, tuple[str, str]] | None = None
    outline: np.ndarray | None = None

    @property
    def maps(self) -> list[np.ndarray]:
        """The label maps that it has."""
        return [found for found in (self.label, self.outline) if found is not None]


@dataclass(frozen=True)
class Line:
    """How a contour is drawn and what the legend says of it."""

    title: str
    colour: str
    width: float = 1.1
    opacity: float = 1.0
    dashed: bool = False

    @property
    def effects(self) -> list[withStroke]:
        return [withStroke(linewidth=self.width + 1.6, foreground="black")] if self.dashed else []

    def draw(self, axes: Axes, mask: np.ndarray, pixel: tuple[float, float]) -> None:
        """Draw the contour of a bool (rows, columns) mask; `pixel` is height and width in mm."""
        mask = np.pad(mask, 1)
        y, x = ((np.arange(n) - 0.5) * step for n, step in zip(mask.shape, pixel, strict=True))
        style = {"colors": [self.colour], "linewidths": self.width, "alpha": self.opacity}
        lines = axes.contour(
            x, y, mask, [0.5], linestyles=[DASHES if self.dashed else "-"], **style
        )
        lines.set_path_effects(self.effects)

    def handle(self) -> Line2D:
        """For a legend."""
        return Line2D(
            [],
            [],
            label=self.title,
            color=self.colour,
            linewidth=self.width,
            linestyle=DASHES if self.dashed else "-",
            path_effects=self.effects,
        )


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


def fullest_point(mask: np.ndarray, inside: np.ndarray | None = None) -> tuple[int, int, int]:
    """Where three slices show the most of a mask: a point in the axial slice that has most of it.

    There it is the centre of the mask's largest piece, or the nearest voxel to that which is
    inside: the middle of an organ, if the mask is a rim along its border.

    Parameters
    ----------
    mask : bool (z, y, x)
    inside : bool (z, y, x)
        Holds the mask; by default the mask itself.

    Returns
    -------
    tuple of int
        (z, y, x); the middle of the volume where the mask is empty.
    """
    if not mask.any():
        return tuple(size // 2 for size in mask.shape)
    z = int(np.count_nonzero(mask, axis=(1, 2)).argmax())
    pieces, _ = ndimage.label(mask[z], np.ones((3, 3)))
    largest = np.bincount(pieces[mask[z]]).argmax()
    centre = np.argwhere(pieces == largest).mean(axis=0)
    places = np.argwhere((mask if inside is None else inside)[z])
    y, x = places[np.square(places - centre).sum(axis=1).argmin()]
    return z, int(y), int(x)


@rc_context(AS_WRITTEN)
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
        for found in layer.maps:
            _check_shape(layer.title, found, image)
    planes = list(planes)
    count = image.shape[0]
    first, last = _shown_slices(layers, position[0], count, spacing[0])
    size_mm = [length * step for length, step in zip(image.shape, spacing, strict=True)]
    size_mm[0] = (last - first) * spacing[0]
    scale = PANEL_INCHES / max(size_mm[1:])
    panels = [
        (max(high * scale, LEAST_INCHES), wide * scale)
        for high, wide in (_pixel(size_mm, plane) for plane in planes)
    ]
    shown: set[tuple[str, str]] = set()
    gap, head = 0.08, 0.28 + (0.3 if title else 0.0)
    foot = 0.95 if any(layer.colours for layer in layers) else 0.0
    width = len(layers) * (PANEL_INCHES + gap) + gap
    height = head + sum(CAPTION_INCHES + high + gap for high, _ in panels) + foot
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="black")
    _write_title(figure, title)
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
        for plane, (high, wide) in zip(planes, panels, strict=True):
            top -= CAPTION_INCHES + high
            axes = _add_axes(figure, (left + (PANEL_INCHES - wide) / 2, top, wide, high))
            top -= gap
            index, pixel = position[PLANES[plane]], _pixel(spacing, plane)
            ends = (0, image.shape[1]) if plane == "axial" else (count - last, count - first)
            middle = sum(ends) / 2 * pixel[0]
            frame = (0.0, wide / scale, middle - high / 2 / scale, middle + high / 2 / scale)
            _show_slice(axes, plane, image, spacing, index, frame)
            _show_layer(axes, plane, layer, spacing, index, shown)
    _draw_legends(figure, layers, shown, foot / height)
    return _pixels(figure, kind)


def draw_structure(
    image: np.ndarray,
    spacing: Sequence[float],
    prediction: np.ndarray,
    reference: np.ndarray | None,
    value: int,
    labels: Labels,
    *,
    names: tuple[str, str] = ("Prediction", "Reference"),
    title: str = "",
    kind: str = "jpeg",
) -> bytes:
    """One class where it matters: axial, coronal and sagittal slice, cropped to the structure.

    The slices go through the part in which prediction and reference differ most
    (`fullest_point`), and if they nowhere do, or there is no reference, through the fullest part
    of the class. The prediction's contour is solid, the reference's dashed, those of the other
    classes in the prediction are faint.

    Parameters
    ----------
    image : (z, y, x)
        HU in RAS order.
    spacing
        mm (z, y, x).
    prediction, reference : uint8 (z, y, x)
        Label maps on the image's grid; the reference may be None.
    value
        Of the class.
    labels
        Gives titles and colours.
    names
        What the legend calls prediction and reference.
    title
        Written above; by default the class's title.
    kind
        ``jpeg`` or ``png``.

    Returns
    -------
    bytes
        The file; equal input gives equal bytes.

    Raises
    ------
    ValueError
        If a label map has another shape than the image.
    """
    _check_shape(names[0], prediction, image)
    label = labels.by_value(value)
    shown = apart = prediction == value
    lines = [(prediction, value, Line(_named(names[0], shown), label.colour, 1.3))]
    if reference is not None:
        _check_shape(names[1], reference, image)
        true = reference == value
        lines.insert(0, (reference, value, Line(_named(names[1], true), "white", 1.3, dashed=True)))
        shown, apart = shown | true, shown ^ true
    lines += [
        (prediction, other.value, Line(other.title, other.colour, 0.8, FAINT))
        for other in labels.labels
        if other != label
    ]
    position = fullest_point(apart if apart.any() else shown, shown)
    return _draw_row(
        image,
        spacing,
        tuple(PLANES),
        position,
        shown,
        STRUCTURE_MM,
        lines,
        title or label.title,
        kind,
    )


def _named(name: str, mask: np.ndarray) -> str:
    return name if mask.any() else f"{name}: none"


def draw_piece(
    image: np.ndarray,
    spacing: Sequence[float],
    mask: np.ndarray,
    title: str = "",
    kind: str = "jpeg",
    colour: str = "#d55e00",
) -> bytes:
    """A piece of a label in its surroundings: axial and coronal slice through its fullest part.

    Parameters
    ----------
    image : (z, y, x)
        HU in RAS order.
    spacing
        mm (z, y, x).
    mask : bool (z, y, x)
        The piece, on the image's grid.
    title
        Written above.
    kind
        ``jpeg`` or ``png``.
    colour
        Of its contour.

    Returns
    -------
    bytes
        The file; equal input gives equal bytes.

    Raises
    ------
    ValueError
        If the mask has another shape than the image.
    """
    _check_shape("mask", mask, image)
    lines = [(mask, True, Line("", colour, 1.3))]
    position = fullest_point(mask)
    planes = ("axial", "coronal")
    return _draw_row(image, spacing, planes, position, mask, PIECE_MM, lines, title, kind)


@rc_context(AS_WRITTEN)
def _draw_row(
    image: np.ndarray,
    spacing: Sequence[float],
    planes: Sequence[str],
    position: Sequence[int],
    mask: np.ndarray,
    least_mm: float,
    lines: Sequence[tuple[np.ndarray, int, Line]],
    title: str,
    kind: str,
) -> bytes:
    """A row of squares around a mask, one a plane.

    `lines` are label maps, the value to be outlined and how, the most important first; it lies on
    top of the others.
    """
    gap = 0.06
    head = 0.32 if title else 0.0
    foot = 0.75 if any(line.title for *_, line in lines) else 0.0
    width = len(planes) * (CELL_INCHES + gap) + gap
    height = head + CAPTION_INCHES + CELL_INCHES + gap + foot
    figure = Figure(figsize=(width, height), dpi=ROW_DPI, facecolor="black")
    _write_title(figure, title)
    seen: set[Line] = set()
    for column, plane in enumerate(planes):
        box = (gap + column * (CELL_INCHES + gap), foot + gap, CELL_INCHES, CELL_INCHES)
        axes = _add_axes(figure, box)
        index, pixel = position[PLANES[plane]], _pixel(spacing, plane)
        flat = _cut(mask, plane, index)
        frame = _square(flat, pixel, least_mm)
        _show_slice(axes, plane, image, spacing, index, frame)
        _point_at(axes, flat, pixel, frame)
        for array, value, line in reversed(lines):
            flat = _cut(array, plane, index) == value
            if _within(flat, pixel, frame).any():
                line.draw(axes, flat, pixel)
                seen.add(line)
    handles = [
        line.handle() for *_, line in lines if line.title and (line in seen or line.opacity == 1.0)
    ]
    _draw_legend(figure, handles, (0.0, 0.0, 1.0, foot / height))
    return _pixels(figure, kind)


def _check_shape(title: str, label: np.ndarray, image: np.ndarray) -> None:
    if label.shape != image.shape:
        raise ValueError(f"{title}: shape {label.shape}, image {image.shape}")


def _shown_slices(
    layers: Sequence[Layer], position: int, count: int, thickness: float
) -> tuple[int, int]:
    """The range of axial slices with labels and a margin: a long scan would be all thorax."""
    used = np.zeros(count, bool)
    for layer in layers:
        for found in layer.maps:
            used |= found.any(axis=(1, 2))
    if not used.any():
        return 0, count
    used[position] = True
    margin = round(MARGIN_MM / thickness)
    found = np.flatnonzero(used)
    return max(0, int(found[0]) - margin), min(count, int(found[-1]) + 1 + margin)


# Where things lie in a picture of a slice: in mm from its left and from its top.

Frame = tuple[float, float, float, float]
"""What is shown of a slice: left, right, top and bottom."""


def _cut(array: np.ndarray, plane: str, index: int) -> np.ndarray:
    """A slice as (rows, columns) of a picture."""
    return np.take(array, index, PLANES[plane])[::-1, ::-1]


def _pixel(spacing: Sequence[float], plane: str) -> tuple[float, float]:
    """Height and width of a pixel of a slice; of the slice itself from a volume's size."""
    high, wide = (step for axis, step in enumerate(spacing) if axis != PLANES[plane])
    return high, wide


def _square(flat: np.ndarray, pixel: tuple[float, float], least_mm: float) -> Frame:
    """A square around a mask on a slice, inside the slice if it can; all of it for an empty one."""
    sizes = [count * step for count, step in zip(flat.shape, pixel, strict=True)]
    spans = _spans(flat, pixel) if flat.any() else [(0.0, size) for size in sizes]
    longest = max(end - begin for begin, end in spans)
    side = max(least_mm, longest + 2 * max(AROUND_MM, AROUND * longest))
    side = min(side, max(sizes))
    top, left = (
        min(max((begin + end - side) / 2, 0.0), size - side) if side < size else (size - side) / 2
        for (begin, end), size in zip(spans, sizes, strict=True)
    )
    return left, left + side, top, top + side


def _spans(flat: np.ndarray, pixel: tuple[float, float]) -> list[tuple[float, float]]:
    """Top and bottom, left and right of a mask that is not empty."""
    places = (np.flatnonzero(flat.any(axis=axis)) for axis in (1, 0))
    return [
        (float(place[0] * step), float((place[-1] + 1) * step))
        for place, step in zip(places, pixel, strict=True)
    ]


def _within(flat: np.ndarray, pixel: tuple[float, float], frame: Frame) -> np.ndarray:
    """The part of a slice that a frame shows."""
    high, wide = pixel
    left, right, top, bottom = (max(0.0, edge) for edge in frame)
    return flat[int(top // high) : ceil(bottom / high), int(left // wide) : ceil(right / wide)]


# What a picture is made of


def _add_axes(figure: Figure, box: Sequence[float]) -> Axes:
    """A panel; `box` is left, bottom, width and height in inches."""
    width, height = figure.get_size_inches()
    left, bottom, wide, high = box
    return figure.add_axes((left / width, bottom / height, wide / width, high / height))


def _show_slice(
    axes: Axes,
    plane: str,
    image: np.ndarray,
    spacing: Sequence[float],
    index: int,
    frame: Frame,
) -> None:
    """The CT with its sides, its place and a scale bar."""
    left, right, top, bottom = frame
    high, wide = _pixel(spacing, plane)
    grey = _cut(image, plane, index)
    axes.imshow(
        windowed(grey),
        cmap="gray",
        vmin=0,
        vmax=1,
        extent=(0, grey.shape[1] * wide, grey.shape[0] * high, 0),
        interpolation="bilinear",
    )
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.set_axis_off()
    halo = [withStroke(linewidth=2, foreground="black")]
    style = {"color": "white", "transform": axes.transAxes, "path_effects": halo}
    for place, align, side in zip((0.015, 0.985), ("left", "right"), SIDES[plane], strict=True):
        axes.text(place, 0.5, side, ha=align, va="center", size=12, weight="bold", **style)
    axis = PLANES[plane]
    where = (
        f"{plane}, {index + 1}/{image.shape[axis]} from {COUNTED_FROM[plane]}, "
        f"{index * spacing[axis]:.1f} mm"
    )
    axes.annotate(
        where,
        (0, 1),
        xycoords="axes fraction",
        xytext=(1, 2.5),
        textcoords="offset points",
        color="white",
        size=8,
    )
    length = max((bar for bar in BARS_MM if bar <= BAR_SHARE * (right - left)), default=BARS_MM[0])
    style["transform"] = axes.get_xaxis_transform()
    end = right - 0.02 * (right - left)
    bar = {"linewidth": 2.0, "solid_capstyle": "butt"}
    axes.plot([end - length, end], [0.03, 0.03], **bar, **style)
    axes.text(end - length / 2, 0.05, f"{length} mm", ha="center", va="bottom", size=8, **style)


def _point_at(axes: Axes, flat: np.ndarray, pixel: tuple[float, float], frame: Frame) -> None:
    """An arrow to a mask that is too small to be found."""
    if not flat.any():
        return
    spans = _spans(flat, pixel)
    if max(end - begin for begin, end in spans) < TINY * (frame[1] - frame[0]):
        axes.annotate(
            "",
            (spans[1][1], spans[0][0]),
            xytext=(22, 22),
            textcoords="offset points",
            arrowprops={
                "arrowstyle": "->",
                "color": "white",
                "linewidth": 1.3,
                "shrinkB": 3.0,
                "path_effects": [withStroke(linewidth=2.5, foreground="black")],
            },
        )


def _show_layer(
    axes: Axes,
    plane: str,
    layer: Layer,
    spacing: Sequence[float],
    index: int,
    shown: set[tuple[str, str]],
) -> None:
    """A layer's labels on a slice; titles and colours of what is there are added to `shown`."""
    pixel = _pixel(spacing, plane)
    colours = layer.colours or {}
    if layer.label is not None:
        flat = _cut(layer.label, plane, index)
        fill = np.zeros((256, 4), np.float32)
        for value, (title, colour) in colours.items():
            mask = flat == value
            if mask.any():
                shown.add((title, colour))
                fill[value] = to_rgba(colour, FILL_OPACITY)
                Line(title, colour).draw(axes, mask, pixel)
        extent = (0, flat.shape[1] * pixel[1], flat.shape[0] * pixel[0], 0)
        axes.imshow(fill[flat], extent=extent, interpolation="nearest")
    if layer.outline is not None:
        flat = _cut(layer.outline, plane, index)
        for value, (title, colour) in colours.items():
            mask = flat == value
            if mask.any():
                shown.add((title, colour))
                Line(title, colour, dashed=True).draw(axes, mask, pixel)


def _write_title(figure: Figure, title: str) -> None:
    height = figure.get_figheight()
    figure.text(0.5, 1 - 0.06 / height, title, color="white", ha="center", va="top", size=12)


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
        handles: list[Artist] = [
            Patch(facecolor=colour, edgecolor="white", linewidth=0.5, label=title)
            for title, colour in colours.values()
            if (title, colour) in shown
        ]
        if any(layer.outline is not None for layer in layers[start:end]):
            handles.append(Line("Prediction", "white").handle())
            handles.append(Line("Reference", "white", dashed=True).handle())
        share = (end - start) / len(layers)
        _draw_legend(figure, handles, (start / len(layers), 0.0, share, height))
        start = end


def _draw_legend(figure: Figure, handles: Sequence[Artist], box: Sequence[float]) -> None:
    """A legend in the middle of a box: left, bottom, width and height as shares of the figure."""
    if handles:
        figure.legend(
            handles=handles,
            loc="center",
            bbox_to_anchor=box,
            ncols=max(1, int(figure.get_figwidth() * box[2] / 1.8)),
            frameon=False,
            labelcolor="white",
            fontsize=9,
            handlelength=1.6,
            columnspacing=1.2,
        )


def _pixels(figure: Figure, kind: str) -> bytes:
    details = {"jpeg": {"quality": JPEG_QUALITY, "subsampling": 0}, "png": {}}[kind]
    metadata = {"Software": None} if kind == "png" else None
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, facecolor="black", metadata=metadata, pil_kwargs=details)
    return buffer.getvalue()
