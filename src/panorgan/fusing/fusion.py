"""Fusion of a partial label with pseudo-labels: arrays in, arrays and counts out; or files.

A case's classes are each *annotated* (ground truth wherever labelled), *absent* (annotators looked,
there is none) or *unknown*. At every voxel each input claims at most one class:

* the **partial label** claims annotated classes only;
* the **tumour pseudo-label** claims the tumour where that is unknown, or where annotators did not
  look for it: outside the *scope* that a case may have;
* the **organ pseudo-label** claims organs that are unknown in the case: where annotators said "not
  liver", a pseudo-liver is wrong.

What a gate does not trust is *ignored*: such a voxel claims to be ignored instead of a class. An
`Order` says which claim wins. In all of them the organ pseudo-label fills what is left, so fusion
can go in two stages: partial label + tumour pseudo-label, then + organ pseudo-label.

Each rule is written once, for one voxel. Voxels hold few values, so a rule becomes a small table
over all combinations of its inputs, and one pass over the volume looks every voxel up and counts
the combinations. Whatever is reported comes from those counts. What depends on more than a voxel,
whether a piece of tumour lies where it is admitted, is settled before the pass.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np

from panorgan.cases.annotations import Annotations, Known
from panorgan.cases.folders import cases_in, stem_of
from panorgan.cases.manifest import ABSENT, ANNOTATED, UNKNOWN
from panorgan.config.labels import Labels, check_predicted
from panorgan.config.registry import ORDERS, REFERENCE, Source
from panorgan.io.failures import Failures
from panorgan.io.volumes import Volume, VolumeError, read_label, write_label
from panorgan.io.writing import making_folder
from panorgan.problems import Problem, Problems, WrongOption

INPUTS = ("partial", "tumour", "organs")
SUFFIX = ".nii.gz"
IGNORED_TUMOUR = 2
"""Value of an ignored voxel in a tumour mask."""


class UnexpectedValues(ValueError):
    """An input holds values that mean nothing in it."""

    def __init__(self, input: str, values: Iterable[int]):
        self.input = input
        self.values = tuple(values)
        super().__init__(f"{input} holds {', '.join(map(str, self.values))}: of no meaning there")


@dataclass(frozen=True)
class Fused:
    """A fused volume and the counts that explain it.

    Attributes
    ----------
    label, source : uint8 (z, y, x)
        Class values (0 background, ``labels.ignore`` ignored) and values of `Source`; no source
        map where none was asked for.
    voxels : Counter
        ``(value, source) -> voxels`` of the whole volume, background included.
    specks : Counter
        ``value -> voxels`` of the partial label that were set to background because the class is
        not annotated in the case. Stage 2 sees no partial label and has none.
    conflicts : Counter
        ``(kept value, lost value, losing input) -> voxels``. A conflict is a voxel where an input
        (``partial``, ``tumour`` or ``organs``) says a class and the stage's result is *another*
        class. Background on either side is no conflict, nor is a speck, nor an ignored voxel.
        Stage 2 counts what ``organs`` lost; what was lost in stage 1 is in stage 1's counts.
    outside : int
        Voxels of the tumour mask, ignored ones too, in pieces that were not admitted. They count
        nowhere else.
    """

    label: np.ndarray
    source: np.ndarray | None
    voxels: Counter[tuple[int, Source]] = field(default_factory=Counter)
    specks: Counter[int] = field(default_factory=Counter)
    conflicts: Counter[tuple[int, int, str]] = field(default_factory=Counter)
    outside: int = 0


def fuse_stage1(
    partial: np.ndarray | None,
    tumour: np.ndarray | None,
    states: Mapping[int, str],
    labels: Labels,
    order: str = REFERENCE,
    scope: Collection[int] | None = None,
    organs: np.ndarray | None = None,
) -> Fused:
    """Partial label and tumour pseudo-label.

    Parameters
    ----------
    partial : uint8 (z, y, x), optional
        Class values; None for an unlabelled case.
    tumour : bool or uint8 (z, y, x), optional
        Predicted tumour: 0, 1, or 2 for ignored. Without effect where the case's tumour is
        annotated or absent, unless there is a scope.
    states : mapping
        ``annotated``, ``absent`` or ``unknown`` for every class value.
    order : str
        A name of `ORDERS`.
    scope : values of organs, optional
        Where annotators looked for tumours; None: everywhere. Without effect where the tumour is
        unknown. See `admitted`.
    organs : uint8 (z, y, x), optional
        Organ pseudo-label, to tell where organs are; it fills nothing here, and is not needed
        unless the order asks for organs or there is a scope.

    Raises
    ------
    UnexpectedValues
        If the partial label holds a value that is no class, the mask one other than 0, 1 and 2,
        or the organ pseudo-label one that is neither a class nor ignored.
    ValueError
        If states, order, shapes or dtypes are wrong or both inputs are None.
    """
    rules = _Rules(states, labels, order, scope)
    _common_shape({"partial": partial, "tumour": tumour, "organs": organs})
    tumour, outside = rules.admit(tumour, partial, organs)
    inputs = {"partial": (partial, labels.ignore), "tumour": (tumour, IGNORED_TUMOUR + 1)}
    label, source, found = _look_up(inputs, rules.fused)
    fused = Fused(label, source, outside=outside)
    for (given, predicted), voxels in found.items():
        result = rules.fused(given, predicted)
        fused.voxels[result] += voxels
        rules.count_stage1(fused, given, predicted, result[0], voxels)
    return fused


def fuse_stage2(
    label: np.ndarray,
    source: np.ndarray,
    organs: np.ndarray | None,
    states: Mapping[int, str],
    labels: Labels,
) -> Fused:
    """The result of stage 1, its background filled by an organ pseudo-label.

    The same whatever order and scope stage 1 had.

    Parameters
    ----------
    label, source : uint8 (z, y, x)
        Stage 1's label and source map; left as they are.
    organs : uint8 (z, y, x), optional
        Class values, or ``labels.ignore``: a voxel that stays ignored, if it was background and
        an organ is unknown. A tumour in it never fills.
    states : mapping
        ``annotated``, ``absent`` or ``unknown`` for every class value.

    Raises
    ------
    UnexpectedValues
        If an input holds a value that means nothing in it.
    ValueError
        If states, shapes or dtypes are wrong, or label and source map contradict each other.
    """
    rules = _Rules(states, labels)
    values = labels.ignore + 1
    inputs = {
        "label": (label, values),
        "source": (source, len(Source)),
        "organs": (organs, values),
    }

    def rule(before: int, origin: int, organ: int) -> tuple[int, Source]:
        return (before, Source(origin)) if before else rules.fused(0, 0, organ)

    new_label, new_source, found = _look_up(inputs, rule)
    fused = Fused(new_label, new_source)
    for (before, origin, organ), voxels in found.items():
        if (before == 0) != (origin == Source.BACKGROUND):
            raise ValueError(
                f"label and source map contradict each other: {voxels} voxels of label {before} "
                f"have source {origin}"
            )
        result = rule(before, origin, organ)
        fused.voxels[result] += voxels
        rules.count_conflict(fused, result[0], organ, "organs", voxels)
    return fused


def fuse(
    partial: np.ndarray | None,
    tumour: np.ndarray | None,
    organs: np.ndarray | None,
    states: Mapping[int, str],
    labels: Labels,
    order: str = REFERENCE,
    scope: Collection[int] | None = None,
    *,
    with_source: bool = True,
) -> Fused:
    """Both stages in one pass, where only the end is wanted.

    Equal to `fuse_stage2` of `fuse_stage1`, with the conflicts of both. Parameters and errors are
    theirs; at least one input must be given. Without `with_source` no source map is made.
    """
    rules = _Rules(states, labels, order, scope)
    _common_shape({"partial": partial, "tumour": tumour, "organs": organs})
    tumour, outside = rules.admit(tumour, partial, organs)
    inputs = {
        "partial": (partial, labels.ignore),
        "tumour": (tumour, IGNORED_TUMOUR + 1),
        "organs": (organs, labels.ignore + 1),
    }
    label, source, found = _look_up(inputs, rules.fused, with_source)
    fused = Fused(label, source, outside=outside)
    for (given, predicted, organ), voxels in found.items():
        result = rules.fused(given, predicted, organ)
        fused.voxels[result] += voxels
        rules.count_stage1(fused, given, predicted, rules.fused(given, predicted)[0], voxels)
        rules.count_conflict(fused, result[0], organ, "organs", voxels)
    return fused


class _Rules:
    """What happens to one voxel of a case, and what is counted of it."""

    def __init__(
        self,
        states: Mapping[int, str],
        labels: Labels,
        order: str = REFERENCE,
        scope: Collection[int] | None = None,
    ):
        if set(states) != set(labels.values):
            raise ValueError(f"states are of {sorted(states)}, not of the classes {labels.values}")
        wrong = set(states.values()) - {ANNOTATED, ABSENT, UNKNOWN}
        if wrong:
            raise ValueError(f"{sorted(wrong)}: no state of a class")
        if order not in ORDERS:
            raise ValueError(f"'{order}' is no order; known: {', '.join(ORDERS)}")
        self.tumour = labels.tumour.value
        self.ignore = labels.ignore
        self.annotated = {value for value, state in states.items() if state == ANNOTATED}
        self.unknown_organs = {
            value for value, state in states.items() if state == UNKNOWN and value != self.tumour
        }
        looked_for = states[self.tumour] != UNKNOWN
        self.scope = set(scope) if scope is not None and looked_for else None
        if self.scope is not None and not self.scope <= {*labels.values} - {self.tumour}:
            raise ValueError(f"the scope {sorted(self.scope)} does not consist of organs")
        self.adds_tumours = not looked_for or self.scope is not None
        self.order = ORDERS[order]

    def fused(self, partial: int, tumour: int, organ: int = 0) -> tuple[int, Source]:
        """The class of a voxel, and whose claim that was."""
        claims = {
            Source.GROUND_TRUTH: partial if partial in self.annotated else 0,
            Source.TUMOUR_PSEUDO: self._tumour_claim(tumour),
            Source.ORGAN_PSEUDO: self._organ_claim(organ),
        }
        for source in self.order.priority:
            if claims[source] == self.ignore:
                return self.ignore, Source.IGNORED
            if claims[source]:
                return claims[source], source
        return 0, Source.BACKGROUND

    def _tumour_claim(self, tumour: int) -> int:
        if not tumour or not self.adds_tumours:
            return 0
        return self.ignore if tumour == IGNORED_TUMOUR else self.tumour

    def _organ_claim(self, organ: int) -> int:
        trusted = organ in self.unknown_organs
        return organ if trusted or (organ == self.ignore and self.unknown_organs) else 0

    def count_stage1(self, fused: Fused, partial: int, tumour: int, kept: int, voxels: int) -> None:
        if partial and partial not in self.annotated:
            fused.specks[partial] += voxels
        else:
            self.count_conflict(fused, kept, partial, "partial", voxels)
        if tumour and tumour != IGNORED_TUMOUR:
            self.count_conflict(fused, kept, self.tumour, "tumour", voxels)

    def count_conflict(self, fused: Fused, kept: int, said: int, by: str, voxels: int) -> None:
        if kept and said and kept != said and self.ignore not in (kept, said):
            fused.conflicts[kept, said, by] += voxels

    def admit(
        self,
        tumour: np.ndarray | None,
        partial: np.ndarray | None,
        organs: np.ndarray | None,
    ) -> tuple[np.ndarray | None, int]:
        """A tumour mask without the pieces that may not be where they are, and their voxels.

        A piece consists of voxels of one value, 1 or 2, that hang together by faces, edges or
        corners; to touch is to have such a neighbour. With `Order.inside_organs` a piece must
        overlap or touch an organ, annotated or, where that is unknown, pseudo-labelled. With a
        scope it must neither overlap nor touch an organ of the scope, annotated or
        pseudo-labelled, nor an annotated tumour: there annotators have decided. If nothing says
        where an organ of the scope is, no piece is admitted.
        """
        if tumour is None or not self.adds_tumours:
            return tumour, 0
        if not self.order.inside_organs and self.scope is None:
            return tumour, 0
        _check_values("tumour", tumour, IGNORED_TUMOUR + 1)
        if organs is not None:
            _check_values("organs", organs, self.ignore + 1)
        tumour = tumour.view(np.uint8)
        box = _box_around(tumour)
        if box is None:
            return tumour, 0
        from panorgan.fusing.hanging import number_pieces

        given = (None if array is None else array[box] for array in (partial, organs))
        partial, organs = given
        crop = tumour[box].copy()
        pieces = np.zeros(crop.shape, np.int32)
        pieces[crop > 0] = number_pieces(crop)[0]
        admitted = np.ones(int(pieces.max()) + 1, np.bool_)
        if self.order.inside_organs:
            places = _near((partial, self.annotated - {self.tumour}), (organs, self.unknown_organs))
            admitted &= _touched(pieces, places)
        if self.scope is not None:
            searched = self.annotated & (self.scope | {self.tumour})
            places = _near((partial, searched), (organs, self.scope))
            admitted &= ~_touched(pieces, places)
            if organs is None and self.scope & self.unknown_organs:
                admitted[:] = False
        kept = np.zeros_like(tumour)
        kept[box] = crop * admitted[pieces]
        return kept, int(np.count_nonzero(crop) - np.count_nonzero(kept[box]))


def _box_around(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The box that holds all of a mask and its neighbours; None if the mask is empty."""
    box: list[slice] = []
    for axis, size in enumerate(mask.shape):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        at = np.flatnonzero(mask[tuple(box)].any(others))
        if not at.size:
            return None
        box.append(slice(max(int(at[0]) - 1, 0), min(int(at[-1]) + 2, size)))
    return tuple(box)


def _near(*inputs: tuple[np.ndarray | None, Collection[int]]) -> np.ndarray | bool:
    """Where some inputs hold some values, and the 26 neighbours of each such voxel."""
    found: np.ndarray | bool = False
    for array, values in inputs:
        if array is not None:
            found = np.isin(array, list(values)) | found
    if found is False:
        return False
    for axis in range(found.ndim):
        line = np.moveaxis(found, axis, 0)
        before = line.copy()
        line[1:] |= before[:-1]
        line[:-1] |= before[1:]
    return found


def _touched(pieces: np.ndarray, places: np.ndarray | bool) -> np.ndarray:
    """For each piece whether any of its voxels is at one of the places."""
    touched = np.zeros(int(pieces.max()) + 1, np.bool_)
    if places is not False:
        touched[np.unique(pieces[places])] = True
    return touched


# The tables


def composition(fused: Fused, labels: Labels, voxel_ml: float) -> list[dict]:
    """What each class was made of: a row per class and source that occur, background left out.

    Columns: value, name, source (``ground_truth``, ``tumour_pseudo``, ``organ_pseudo``,
    ``ignored``), voxels, ml. ``voxel_ml`` is the volume of one voxel in ml.
    """
    return [
        {
            "value": value,
            "name": _name(value, labels),
            "source": source.name.lower(),
            **_amount(voxels, voxel_ml),
        }
        for (value, source), voxels in sorted(fused.voxels.items())
        if value
    ]


def conflicts(fused: Fused, labels: Labels, voxel_ml: float) -> list[dict]:
    """Where an input said another class than the result (`Fused` says when exactly).

    Columns: kept, kept_name, lost, lost_name, lost_input, voxels, ml.
    """
    return [
        {
            "kept": kept,
            "kept_name": _name(kept, labels),
            "lost": lost,
            "lost_name": _name(lost, labels),
            "lost_input": lost_input,
            **_amount(voxels, voxel_ml),
        }
        for (kept, lost, lost_input), voxels in sorted(fused.conflicts.items())
    ]


def specks(fused: Fused, labels: Labels, voxel_ml: float) -> list[dict]:
    """Classes of the partial label that were set to background: value, name, voxels, ml."""
    return [
        {"value": value, "name": _name(value, labels), **_amount(voxels, voxel_ml)}
        for value, voxels in sorted(fused.specks.items())
    ]


def _name(value: int, labels: Labels) -> str:
    return "ignored" if value == labels.ignore else labels.by_value(value).name


def _amount(voxels: int, voxel_ml: float) -> dict:
    return {"voxels": voxels, "ml": round(voxels * voxel_ml, 6)}


# The pass over the volume

BLOCK = 1 << 20
"""Voxels that are looked up at a time; a multiple of 8. They stay in the processor's cache."""


def _look_up(
    inputs: Mapping[str, tuple[np.ndarray | None, int]],
    rule: Callable[..., tuple[int, Source]],
    with_source: bool = True,
) -> tuple[np.ndarray, np.ndarray | None, dict[tuple[int, ...], int]]:
    """Apply a rule to every voxel of some inputs.

    ``inputs`` gives for each its array, or None for all zero, and how many values it may hold,
    from 0 up. The rule makes background of zeros. Returns label and source map and the voxels of
    each combination that occurs.
    """
    shape = _common_shape({name: array for name, (array, _) in inputs.items()})
    allowed = [1 if array is None else values for array, values in inputs.values()]
    combinations = list(product(*map(range, allowed)))
    results = np.array([rule(*values) for values in combinations], np.uint8)
    labels_of, sources_of = np.ascontiguousarray(results.T)
    counts = np.zeros(len(combinations), np.int64)

    size = math.prod(shape)
    given = [
        (name, np.ascontiguousarray(array).view(np.uint8).reshape(-1), values)
        for name, (array, values) in inputs.items()
        if array is not None
    ]
    # numpy gets these zeroed from the system: pages of background alone are never touched.
    label = np.zeros(size, np.uint8)
    source = np.zeros(size, np.uint8) if with_source else None
    room = np.empty(min(BLOCK, size + 7) // 8, np.uint64)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        blocks = [_as_words(flat[start:stop]) for _, flat, _ in given]
        # Most of a CT is background: of eight voxels at a time one comparison tells that.
        foreground = np.bitwise_or(blocks[0], blocks[-1], out=room[: len(blocks[0])])
        for block in blocks[1:-1]:
            foreground |= block
        at = np.flatnonzero(foreground != 0)
        if not at.size:
            continue
        words = [block[at] for block in blocks]
        # Of words that are alike and follow each other one is looked up.
        first = np.ones(at.size, np.bool_)
        np.logical_or.reduce([word[1:] != word[:-1] for word in words], out=first[1:])
        runs = np.flatnonzero(first)
        lengths = np.diff(runs, append=at.size)
        index = np.zeros(8 * runs.size, np.intp)
        for word, (name, flat, values) in zip(words, given, strict=True):
            voxels = word[runs].view(np.uint8)
            if voxels.max() >= values:
                _check_values(name, flat, values)
            index *= values
            index += voxels
        counts += np.bincount(index, np.repeat(lengths, 8), len(counts)).astype(np.int64)
        _put(label[start:stop], at, labels_of[index], lengths)
        if source is not None:
            _put(source[start:stop], at, sources_of[index], lengths)
    counts[0] = size - counts[1:].sum()  # zeros were left out, and words filled up with them

    found = {combinations[at]: int(counts[at]) for at in np.flatnonzero(counts)}
    maps = (array if array is None else array.reshape(shape) for array in (label, source))
    return *maps, found


def _common_shape(arrays: Mapping[str, np.ndarray | None]) -> tuple[int, ...]:
    given = {name: array for name, array in arrays.items() if array is not None}
    if not given:
        raise ValueError(f"nothing to fuse: {' and '.join(arrays)} are None")
    for name, array in given.items():
        if array.dtype not in (np.uint8, np.bool_):
            raise ValueError(f"{name} is {array.dtype}, not uint8")
    if len({array.shape for array in given.values()}) > 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in given.items())
        raise ValueError(f"shapes differ: {shapes}")
    return next(iter(given.values())).shape


def _check_values(name: str, array: np.ndarray, values: int) -> None:
    beyond = [int(value) for value in np.unique(array) if value >= values]
    if beyond:
        raise UnexpectedValues(name, beyond)


def _as_words(flat: np.ndarray) -> np.ndarray:
    """Voxels, eight to a 64-bit word, zeros after the last."""
    missing = -len(flat) % 8
    return (np.pad(flat, (0, missing)) if missing else flat).view(np.uint64)


def _put(target: np.ndarray, at: np.ndarray, voxels: np.ndarray, lengths: np.ndarray) -> None:
    """Write voxels, eight to a word and each word repeated, into the words `at`, ascending."""
    words = np.repeat(voxels.view(np.uint64), lengths)
    whole = len(target) // 8
    if at[-1] == whole:  # a word that the target has only a part of
        target[8 * whole :] = words[-1:].view(np.uint8)[: len(target) - 8 * whole]
        at, words = at[:-1], words[:-1]
    target[: 8 * whole].view(np.uint64)[at] = words


# Files and folders


@dataclass(frozen=True)
class FusedCase:
    """A case that was fused into a file, and the rows that explain it.

    `outside_ml` is the volume of pseudo-tumour that was not admitted where it was.
    """

    case: str
    file: Path
    composition: list[dict]
    conflicts: list[dict]
    specks: list[dict]
    outside_ml: float


@dataclass(frozen=True)
class _Job:
    """One case of `fuse_paths`: what to read, what is known, where label and source map go."""

    case: str
    inputs: dict[str, Path]
    given: dict[str, Path]
    annotations: Annotations
    order: str
    targets: list[Path]


def fuse_paths(
    partial: str | Path | None,
    annotated: str,
    tumour: str | Path | None,
    tumour_value: int | str,
    organs: str | Path | None,
    out: str | Path,
    source_map: str | Path | None,
    labels: Labels,
    order: str = REFERENCE,
) -> list[FusedCase]:
    """Fuse files or folders: what ``panorgan fuse`` does.

    The inputs that are given are all files or all folders. A folder holds ``<case>.nii.gz`` or
    ``<case>.nii``, and nothing else that could be a case's; the cases are those of all folders
    together: a case without a partial label is unlabelled, a case without a pseudo-label that could
    add something is a problem. Everything is written or, if there is any problem, nothing; an
    existing file is never replaced. Two threads read.

    Parameters
    ----------
    partial, tumour, organs : path, optional
        Partial label, tumour mask and organ pseudo-label; at least one.
    annotated : str
        Comma list of the classes, by name or value, that are annotated in the partial labels.
        Others are unknown there: what partial labels hold of them is left out, and counted as
        specks. Or a case table (``.tsv``), which says for each case what is annotated, absent or
        unknown, and where annotators looked for tumours, as in the workflow. In unlabelled cases
        all is unknown. Where no tumour can be added, no tumour mask is needed, and one that is
        there is not read.
    tumour_value : int or str
        The value that means tumour in the masks, which hold no other but 0; or a class by name.
    out, source_map : path, the latter optional
        Where labels and source maps (values of `Source`) go: files for files, folders for folders.
    order : str
        A name of `ORDERS`.

    Returns
    -------
    list of FusedCase
        Sorted by case.

    Raises
    ------
    Problems
        All that is wrong with paths, pairs, files, grids and values.
    """
    paths = {"partial": partial, "tumour": tumour, "organs": organs}
    given = {name: Path(path) for name, path in paths.items() if path is not None}
    targets = {"-o": Path(out)}
    if source_map is not None:
        targets["--source-map"] = Path(source_map)
    annotations = _annotations(annotated, "partial" in given, labels)
    value = _tumour_value(tumour_value, labels)
    if ORDERS[order].inside_organs and not {"partial", "organs"} & set(given):
        cause = f"--order {order} needs to know where organs are"
        raise WrongOption.one(cause, "give --organs or --partial, or another order")
    if "organs" in given:
        check_predicted(given["organs"], labels)
    jobs = _jobs(given, targets, annotations, order)

    done: list[FusedCase] = []
    failures = Failures()
    written: list[Path] = []
    with ExitStack() as folders:
        for folder in sorted({path.parent for job in jobs for path in job.targets}):
            folders.enter_context(making_folder(folder))
        try:
            for job in jobs:
                with failures.of(job.case, next(iter(job.inputs.values()))):
                    fused, like = _fuse_files(job, value, labels)
                    if not failures.problems:
                        _write(job, fused, like, written)
                    done.append(_told(job, fused, labels, like.grid.voxel_ml))
            failures.check()
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
            raise
    return done


def _told(job: _Job, fused: Fused, labels: Labels, voxel_ml: float) -> FusedCase:
    rows = (table(fused, labels, voxel_ml) for table in (composition, conflicts, specks))
    outside_ml = _amount(fused.outside, voxel_ml)["ml"]
    return FusedCase(job.case, job.targets[0], *rows, outside_ml)


def _annotations(text: str, has_partial: bool, labels: Labels) -> Annotations:
    annotations = Annotations(text, labels)
    if has_partial and not annotations.listed:
        cause = "--partial without --annotated: no class of it would be used"
        cure = "say which classes are annotated, such as --annotated liver,1,3"
        raise WrongOption.one(cause, cure)
    if annotations.listed and not has_partial:
        raise WrongOption.one("--annotated without --partial", "give both or neither")
    return annotations


def _tumour_value(text: int | str, labels: Labels) -> int:
    cure = "give a number from 1 to 255, or one class's name"
    try:
        value = int(text)
    except ValueError:
        try:
            found = labels.parse(str(text))
        except ValueError as error:
            raise WrongOption.one(f"--tumour-value: {error}", cure) from None
        if len(found) != 1:
            raise WrongOption.one(f"--tumour-value is {text}", cure) from None
        return found[0].value
    if not 1 <= value <= 255:
        raise WrongOption.one(f"--tumour-value is {value}", cure)
    return value


def _jobs(
    given: dict[str, Path], targets: dict[str, Path], annotations: Annotations, order: str
) -> list[_Job]:
    in_folders = _are_folders(given)
    cases = _pair(given) if in_folders else {stem_of(next(iter(given.values())).name): given}
    problems: list[Problem] = []
    jobs = []
    for case, found in sorted(cases.items()):
        out = [path / f"{case}{SUFFIX}" if in_folders else path for path in targets.values()]
        try:
            known = annotations.of(case, found.get("partial"))
        except Problems as error:
            problems += error.problems
            continue
        job = _Job(case, found, given, annotations, order, out)
        problems += _missing(job, known)
        jobs.append(job)
    problems += _target_problems(given, targets, in_folders, cases)
    if problems:
        raise Problems(problems)
    return jobs


def _are_folders(given: dict[str, Path]) -> bool:
    if not given:
        raise WrongOption.one("nothing to fuse", "give --partial, --tumour or --organs")
    missing = [path for path in given.values() if not path.exists()]
    if missing:
        raise Problems(
            Problem("", str(path), "does not exist", "check the path") for path in missing
        )
    folders = {name: path.is_dir() for name, path in given.items()}
    if len(set(folders.values())) > 1:
        kinds = (f"--{name} is a {'folder' if is_ else 'file'}" for name, is_ in folders.items())
        raise Problems.one(", ".join(kinds), "give files only or folders only")
    return all(folders.values())


def _pair(given: dict[str, Path]) -> dict[str, dict[str, Path]]:
    """The files of every case in some folders."""
    cases: dict[str, dict[str, Path]] = {}
    problems: list[Problem] = []
    for name, folder in given.items():
        found, wrong = cases_in(folder)
        problems += wrong
        for case, path in found.items():
            cases.setdefault(case, {})[name] = path
    if problems:
        raise Problems(problems)
    return cases


def _target_problems(
    given: dict[str, Path], targets: dict[str, Path], in_folders: bool, cases: Iterable[str]
) -> Iterator[Problem]:
    if len({path.resolve() for path in targets.values()}) < len(targets):
        yield Problem("", str(targets["-o"]), "is both -o and --source-map", "name two places")
    for option, target in targets.items():
        same = [name for name, path in given.items() if path.resolve() == target.resolve()]
        there = [case for case in sorted(cases) if os.path.lexists(target / f"{case}{SUFFIX}")]
        if same:
            cause, cure = (
                f"{option} is also --{same[0]}",
                "inputs are never written to: name another",
            )
        elif in_folders and target.exists() and not target.is_dir():
            cause, cure = f"{option} is a file", "name a folder, since the inputs are folders"
        elif in_folders and there:
            cause = f"{option} already holds {there[0]}{SUFFIX}"
            cause += f" and {len(there) - 1} more of the files to write" if there[1:] else ""
            cure = "remove them or name another folder: nothing is replaced"
        elif not in_folders and target.is_dir():
            cause, cure = f"{option} is a folder", "name a file, since the inputs are files"
        elif not in_folders and not target.name.endswith(SUFFIX):
            cause, cure = f"{option} does not end in {SUFFIX}", f"name a file <case>{SUFFIX}"
        elif not in_folders and os.path.lexists(target):
            cause, cure = f"{option} exists", "remove it or name another: nothing is replaced"
        else:
            continue
        yield Problem("", str(target), cause, cure)


def _adds_tumours(known: Known, labels: Labels) -> bool:
    states, scope = known
    return states[labels.tumour.value] == UNKNOWN or scope is not None


def _missing(job: _Job, known: Known) -> Iterator[Problem]:
    """Pseudo-labels that a case should have, as far as is known of it."""
    labels = job.annotations.labels
    (states, scope), adds_tumours = known, _adds_tumours(known, labels)
    unknown = [organ for organ in labels.organs if states[organ.value] == UNKNOWN]
    for name, wanted in {"tumour": adds_tumours, "organs": bool(unknown)}.items():
        if wanted and name in job.given and name not in job.inputs:
            cause = f"has no {job.case}{SUFFIX}, which --{' and --'.join(job.inputs)} has"
            cure = "add it, or remove the other"
            yield Problem(job.case, str(job.given[name]), cause, cure)
    if "organs" in job.given or "tumour" not in job.inputs or not adds_tumours:
        return
    nowhere = [organ.name for organ in unknown if scope is not None and organ.value in scope]
    file = str(job.inputs["tumour"])
    if nowhere:
        looked_in = ", ".join(labels.by_value(value).name for value in sorted(scope))
        cause = f"tumours were looked for in {looked_in} only, and nothing says where "
        cause += f"{', '.join(nowhere)} is"
        yield Problem(job.case, file, cause, "give --organs")
    elif ORDERS[job.order].inside_organs and len(unknown) == len(labels.organs):
        cause = f"--order {job.order}: nothing says where organs are in this case"
        yield Problem(job.case, file, cause, "give --organs, or another order")


def read_together(
    files: Mapping[str, Path], case: str, threads: int = 2
) -> tuple[dict[str, Volume], list[Problem]]:
    """Read label maps at once: those that can be read, by name, and what is wrong with others."""

    def read(path: Path) -> Volume | Problem:
        try:
            return read_label(path)
        except VolumeError as error:
            return Problem(case, str(path), error.cause, error.cure)

    if min(len(files), threads) > 1:
        with ThreadPoolExecutor(threads) as pool:
            results = list(pool.map(read, files.values()))
    else:
        results = list(map(read, files.values()))
    read_ones = dict(zip(files, results, strict=True))
    return (
        {name: found for name, found in read_ones.items() if isinstance(found, Volume)},
        [found for found in results if isinstance(found, Problem)],
    )


def _fuse_files(job: _Job, tumour_value: int, labels: Labels) -> tuple[Fused, Volume]:
    """A case fused, and the volume whose geometry it has."""
    path = job.inputs.get("partial")
    found, problems = read_together({"partial": path} if path else {}, job.case)
    known = job.annotations.of(job.case, path, found["partial"].array if found else None)
    if found:
        problems += _missing(job, known)
    rest = {name: file for name, file in job.inputs.items() if name != "partial"}
    if not _adds_tumours(known, labels):
        rest.pop("tumour", None)
    others, faults = read_together(rest, job.case)
    found |= others
    problems += faults
    first = next(iter(found), None)
    for name, volume in found.items():
        difference = found[first].grid.difference(volume.grid)
        if difference:
            cause = f"is not on the grid of {job.inputs[first]}: {difference}"
            cure = "resample one of the two"
            problems.append(Problem(job.case, str(job.inputs[name]), cause, cure))
    if not problems and first is None:
        cause = "its tumour is known, and there is nothing else to fuse"
        problems.append(Problem(job.case, "", cause, "leave it out"))
    if problems:
        raise Problems(problems)

    arrays = {name: found[name].array if name in found else None for name in INPUTS}
    states, scope = known
    try:
        if arrays["tumour"] is not None:
            arrays["tumour"] = _tumour_mask(arrays["tumour"], tumour_value)
        with_source = len(job.targets) > 1
        fused = fuse(
            **arrays,
            states=states,
            labels=labels,
            order=job.order,
            scope=scope,
            with_source=with_source,
        )
        return fused, found[first]
    except UnexpectedValues as error:
        values = ", ".join(map(str, error.values))
        if error.input == "tumour":
            cause = f"holds {values} beside 0 and the tumour's {tumour_value}"
            cure = "say with --tumour-value which value means tumour; a mask holds no other"
        else:
            cause = f"holds {values}: no class"
            cure = f"map it to a class, 1 to {max(labels.values)}, or to 0"
        raise Problems.one(cause, cure, case=job.case, file=job.inputs[error.input]) from None


def _tumour_mask(array: np.ndarray, value: int) -> np.ndarray:
    """1 where a mask holds the tumour's value. Here 2 is a value like others, not ignored."""
    if value == 1 and array.max(initial=0) <= 1:
        return array
    mask = array == value
    if np.count_nonzero(mask) != np.count_nonzero(array):
        raise UnexpectedValues("tumour", (int(v) for v in np.unique(array) if v not in (0, value)))
    return mask


def _write(job: _Job, fused: Fused, like: Volume, written: list[Path]) -> None:
    for path, array in zip(job.targets, (fused.label, fused.source), strict=False):
        written.append(path)
        write_label(path, array, like)
