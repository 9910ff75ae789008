"""`panorgan show`: pictures of a run's cases or of loose files, drawn as in the report."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from panorgan.cases.manifest import Entry, read_manifest
from panorgan.cases.table import check_names
from panorgan.config.labels import UNKNOWN, Label, Labels, check_predicted, load_labels
from panorgan.config.registry import VARIANTS
from panorgan.config.settings import (
    Arm,
    ablation_arms,
    load_config,
    main_arm,
    read_config_file,
    students,
)
from panorgan.io.failures import Failures
from panorgan.io.tables import read_table
from panorgan.io.volumes import (
    Volume,
    VolumeError,
    canonical_spacing,
    read_image,
    read_label,
    to_canonical,
)
from panorgan.io.writing import making_folder, replacing
from panorgan.problems import Problem, Problems, Stop, WrongOption
from panorgan.report.drawing import (
    SOURCE_COLOURS,
    Layer,
    class_colours,
    draw_case,
    draw_structure,
    telling_position,
)
from panorgan.run.layout import Layout
from panorgan.run.store import ShardReader
from panorgan.stages import LABEL, SOURCE

IGNORED = 4
"""In source maps; its colour is that of the value `ignore` in label maps too."""

TUMOUR_WEIGHT = 3.0
"""A tumour, or what is ignored, attracts the slices of a picture as much as this many organs."""


@dataclass(frozen=True)
class Scan:
    """A CT in RAS order: HU (z, y, x), and its spacing in mm (z, y, x)."""

    image: np.ndarray
    spacing: tuple[float, ...]


def scan_of(image: Volume) -> Scan:
    """A CT as the drawing functions want it."""
    return Scan(canonical(image), canonical_spacing(image.grid))


def canonical(volume: Volume) -> np.ndarray:
    """A volume's voxels in RAS order."""
    return to_canonical(volume.array, volume.grid)


def draw_scan(scan: Scan, layers: Sequence[Layer], labels: Labels, **how: Any) -> bytes:
    """A picture of a case, sliced where the labels show most, tumours above all.

    The labels are those of the first reference that is not empty, else of the first label map.
    """
    references = [layer.outline for layer in layers]
    maps = [*references, *(layer.label for layer in layers)]
    first = next((found for found in maps if found is not None and found.any()), None)
    if first is None:
        position = tuple(size // 2 for size in scan.image.shape)
    else:
        weights = dict.fromkeys((labels.tumour.value, labels.ignore), TUMOUR_WEIGHT)
        position = telling_position(first, weights)
    return draw_case(
        scan.image,
        scan.spacing,
        layers,
        position=position,
        **how,
    )


def shown_colours(labels: Labels) -> dict[int, tuple[str, str]]:
    """Title and colour of every value of a label map that is shown: the classes, and ignored."""
    return class_colours(labels) | {labels.ignore: SOURCE_COLOURS[IGNORED]}


def compared_layers(
    prediction: np.ndarray, reference: np.ndarray | None, labels: Labels
) -> list[Layer]:
    """The CT alone, the reference if there is one, the prediction with the reference's contours."""
    colours = shown_colours(labels)
    layers = [Layer("CT"), Layer("Prediction", prediction, colours, reference)]
    if reference is not None:
        layers.insert(1, Layer("Reference", reference, colours))
    return layers


def fused_layers(label: np.ndarray, source: np.ndarray, labels: Labels) -> list[Layer]:
    """The CT alone, a training case's label, and where it comes from."""
    return [
        Layer("CT"),
        Layer("Fused label", label, shown_colours(labels)),
        Layer("Where it comes from", source, SOURCE_COLOURS),
    ]


@dataclass
class Shown:
    """What there is of a case.

    Attributes
    ----------
    layers
        Columns of its picture.
    maps
        The same for a picture of one class, by name: the label map with solid contours, and
        perhaps a reference for it.
    notes
        For people: who made it, and what there is not.
    """

    layers: list[Layer]
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


# Cases of a run


def show_cases(
    names: Sequence[str], run: Path, out: Path | None, structure: str = ""
) -> Iterator[str]:
    """Draw cases of a run, one after the other.

    Parameters
    ----------
    names
        Of the cases.
    run
        The run's folder, such as ``results/demo``, with the class table that it was made with.
    out
        A new PNG for one case, else a folder; None: ``CASE.png`` in the current folder.
    structure
        A class, by name or value: a picture through it instead of the overview.

    Yields
    ------
    str
        What has been drawn of a case, and what there is not.

    Raises
    ------
    Problems
        Before anything is drawn if a case is unknown or a file exists; of every case that cannot be
        drawn, after all others. After a `Stop`, such as a full disk, none is left.
    """
    names = list(dict.fromkeys(names))
    paths = Layout(run)
    labels = _read_labels(paths)
    label = _parse_class(structure, labels)
    entries = _read_entries(run, paths, labels)
    _check_cases(names, paths, entries)
    files = _new_files(names, out)
    failures = Failures()
    with making_folder(files[names[0]].parent):
        for name, path in files.items():
            entry = entries[name]
            found = _training if entry.split == "train" else _scored
            title = f"{run.absolute().name}: {name}, {entry.split}"
            try:
                with failures.of(name, entry.image):
                    shown = found(entry, paths, label, labels)
                    yield _draw(entry.read_image(), shown, path, title, label, labels)
            except Stop:
                for drawn in files.values():
                    drawn.unlink(missing_ok=True)
                raise
        failures.check()


def _read_labels(paths: Layout) -> Labels:
    cures = {
        paths.case_list: "name the folder of a run with --run, such as results/demo",
        paths.class_table: "copy the class table that the run was made with to there",
        paths.config: "run it again, or copy the config that the run was made with to there",
    }
    for path, cure in cures.items():
        if not Path(path).exists():
            raise Problems.one("is not there", cure, file=path)
    return load_labels(paths.class_table)


def _read_entries(run: Path, paths: Layout, labels: Labels) -> dict[str, Entry]:
    """The manifest; its paths are relative to the folder in which the run was started."""
    started_in = run.absolute().parents[1]

    def placed(path: str) -> str:
        there = started_in / path
        return str(there) if path and there.exists() else path

    return {
        entry.case: replace(entry, image=placed(entry.image), label=placed(entry.label))
        for entry in read_manifest(paths.case_list, labels)
    }


def _check_cases(names: Sequence[str], paths: Layout, entries: Mapping[str, Entry]) -> None:
    excluded = {row["case"]: row for row in read_table(paths.excluded)}
    problems = [
        Problem(name, excluded[name]["file"], f"was excluded: {excluded[name]['cause']}", "")
        for name in names
        if name not in entries and name in excluded
    ]
    if problems:
        raise Problems(problems)
    check_names(names, entries, "", paths.case_list)


def _new_files(names: Sequence[str], out: Path | None) -> dict[str, Path]:
    """The picture of each case."""
    if len(names) == 1 and not (out and out.is_dir()):
        files = {names[0]: out or Path(f"{names[0]}.png")}
    elif out and out.exists() and not out.is_dir():
        raise Problems.one("is a file", "name a folder with -o for several cases", file=out)
    else:
        files = {name: (out or Path()) / f"{name}.png" for name in names}
    for path in files.values():
        _check_new(path)
    return files


def _training(entry: Entry, paths: Layout, wanted: Label | None, labels: Labels) -> Shown:
    """A training case: what annotators drew, and what was fused from it."""
    shown = Shown([Layer("CT")])
    found = _find(paths, entry, lambda arm: paths.fusion(arm.labels, arm.round, entry.shard))
    if found:
        arm, reader = found
        label, source = (canonical(reader.read_label(entry.case, end)) for end in (LABEL, SOURCE))
        shown.layers = fused_layers(label, source, labels)
        shown.maps["Fused label"] = label
        shown.notes.append(f"fused label of {arm.labels}{arm.round_text}")
    else:
        shown.notes.append("no fused label")
    if entry.label:
        given = canonical(entry.read_label())
        shown.layers.insert(1, Layer("Partial label", given, shown_colours(labels)))
        _add_annotated(shown, "Partial label", given, entry, wanted)
    else:
        shown.notes.append("no partial label")
    return shown


def _scored(entry: Entry, paths: Layout, wanted: Label | None, labels: Labels) -> Shown:
    """A validation or test case: the main student's prediction, and the reference."""
    shown = Shown([Layer("CT")])
    found = _find(paths, entry, lambda arm: paths.predictions(*arm.place, entry.shard))
    reference = canonical(entry.read_label()) if entry.label else None
    if found:
        arm, reader = found
        prediction = canonical(reader.read_label(entry.case, LABEL))
        shown.layers = compared_layers(prediction, reference, labels)
        shown.maps["Prediction"] = prediction
        shown.notes.append(f"prediction of {arm.title}")
    else:
        shown.notes.append("no prediction")
        if reference is not None:
            shown.layers.append(Layer("Reference", reference, shown_colours(labels)))
    if reference is not None:
        _add_annotated(shown, "Reference", reference, entry, wanted)
    else:
        shown.notes.append("no reference")
    return shown


def _add_annotated(
    shown: Shown, name: str, array: np.ndarray, entry: Entry, wanted: Label | None
) -> None:
    """Add what annotators drew, unless nobody looked for the class that is wanted."""
    if wanted and entry.states[wanted.value] == UNKNOWN:
        shown.notes.append(f"nobody looked for {wanted.name} in its {name.lower()}")
    else:
        shown.maps[name] = array


def _find(
    paths: Layout, entry: Entry, place: Callable[[Arm], str]
) -> tuple[Arm, ShardReader] | None:
    """The main student's label maps of a case's shard, if they are there and the case in them.

    `place` says where they are.
    """
    config = load_config(read_config_file(paths.config))
    arms = {*students(config), *chain(*ablation_arms(config).values())}
    # Of equal rank, the more complete labels and the lowest seed.
    known = sorted(arms, key=lambda arm: (-list(VARIANTS).index(arm.variant), int(arm.seed)))
    there = [arm for arm in known if Path(place(arm) + ".tsv").exists()]
    if not there:
        return None
    arm = main_arm(there)
    reader = ShardReader([place(arm) + ".tsv"], [place(arm)])
    return (arm, reader) if entry.case in reader else None


# Loose files


def show_files(
    image: Path,
    out: Path,
    labels: Labels,
    *,
    label: Path | None = None,
    reference: Path | None = None,
    structure: str = "",
) -> str:
    """Draw a CT with a label map, a reference, both or neither.

    Parameters
    ----------
    image, label, reference
        Files on one grid.
    out
        A new PNG.
    structure
        A class, by name or value: a picture through it instead of the overview.

    Returns
    -------
    str
        What has been drawn.

    Raises
    ------
    Problems
        If a file cannot be used, grids differ, the PNG exists, or `panorgan predict` has made the
        label map and says of a value that it is another class.
    """
    _check_new(out)
    wanted = _parse_class(structure, labels)
    if label:
        check_predicted(label, labels)
    ct = _read(image, read_image)
    found = {}
    for name, path in (("Prediction", label), ("Reference", reference)):
        if path:
            volume = _read(path, read_label)
            if difference := ct.grid.difference(volume.grid):
                cause = f"is not on the grid of {image}: {difference}"
                raise Problems.one(cause, "resample it, or name its own CT", file=path)
            found[name] = canonical(volume)
    if len(found) == 2:
        layers = compared_layers(*found.values(), labels)
    else:
        found = {"Label" if label else "Reference": array for array in found.values()}
        colours = shown_colours(labels)
        layers = [Layer("CT"), *(Layer(name, array, colours) for name, array in found.items())]
    known = {0, *shown_colours(labels)}
    strange = sorted({value for array in found.values() for value in _values_in(array)} - known)
    shown = Shown(layers, found)
    if strange:
        shown.notes.append(f"not drawn, no class: {', '.join(map(str, strange))}")
    return _draw(ct, shown, out, image.name, wanted, labels)


def _read(path: Path, reader: Callable[[Path], Volume]) -> Volume:
    try:
        return reader(path)
    except VolumeError as error:
        raise Problems.one(error.cause, error.cure, file=path) from None


def _values_in(label: np.ndarray) -> set[int]:
    return {int(value) for plane in label for value in np.unique(plane)}


# Both


def _parse_class(text: str, labels: Labels) -> Label | None:
    """The class that is wanted; None where none is named."""
    try:
        found = labels.parse(text)
    except ValueError as error:
        raise WrongOption.one(str(error), "", file="--class") from None
    if len(found) > 1:
        raise WrongOption.one(f"'{text}' are several classes", "name one", file="--class")
    return found[0] if found else None


def _check_new(path: Path) -> None:
    if path.suffix.lower() != ".png":
        cause = "is no name of a PNG, nor a folder that exists"
        raise WrongOption.one(cause, "name a new .png file with -o", file=path)
    if path.exists():
        raise Problems.one("exists already", "name another with -o", file=path)


def _draw(
    ct: Volume, shown: Shown, path: Path, title: str, wanted: Label | None, labels: Labels
) -> str:
    """Write the picture of a case, or of one class in it, and say what it shows."""
    scan = scan_of(ct)
    if wanted is None:
        parts = [layer.title for layer in shown.layers]
        picture = draw_scan(scan, shown.layers, labels, title=title)
    elif not shown.maps:
        cure = "leave out --class, or name a label map with -l or -r"
        raise Problems.one(f"there is no label map to show {wanted.name} in", cure, case=title)
    else:
        parts = [wanted.title, *shown.maps]
        first, second = [*shown.maps, None][:2]
        picture = draw_structure(
            scan.image,
            scan.spacing,
            shown.maps[first],
            shown.maps.get(second),
            wanted.value,
            labels,
            names=(first, second or ""),
            title=f"{title}: {wanted.title}",
            kind="png",
        )
    with replacing(path) as temporary:
        temporary.write_bytes(picture)
    return "; ".join([f"{path}: {', '.join(parts)}", *shown.notes])
