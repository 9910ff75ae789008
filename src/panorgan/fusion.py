"""Fusion of a partial label with pseudo-labels: arrays in, arrays and counts out; or files.

A case's classes are each *annotated* (ground truth wherever labelled), *absent* (annotators looked,
there is none) or *unknown*. Fusion goes voxel by voxel in two stages:

1. **partial label + tumour pseudo-label.** Only annotated classes of the partial label count. Where
   a tumour is predicted, and the case's tumour is unknown, the voxel is tumour.
2. **+ organ pseudo-label.** It fills voxels that are still background, and only with organs that
   are unknown in the case: where annotators said "not liver", a pseudo-liver is wrong.

Each rule is written once, for one voxel. Voxels hold few values, so a rule becomes a small table
over all combinations of its inputs, and one pass over the volume looks every voxel up and counts
the combinations. Whatever is reported comes from those counts.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np

from panorgan.compiled import kernel
from panorgan.labels import Labels
from panorgan.manifest import ABSENT, ANNOTATED, UNKNOWN
from panorgan.problems import Problem, Problems
from panorgan.volumes import Volume, VolumeError, read_label, write_label

INPUTS = ("partial", "tumour", "organs")
SUFFIX = ".nii.gz"


class Source(IntEnum):
    """Where a fused voxel comes from: the values of a source map."""

    BACKGROUND = 0
    GROUND_TRUTH = 1
    TUMOUR_PSEUDO = 2
    ORGAN_PSEUDO = 3
    IGNORED = 4


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
        Class values (0 background, ``labels.ignore`` ignored) and values of `Source`.
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
    """

    label: np.ndarray
    source: np.ndarray
    voxels: Counter[tuple[int, Source]] = field(default_factory=Counter)
    specks: Counter[int] = field(default_factory=Counter)
    conflicts: Counter[tuple[int, int, str]] = field(default_factory=Counter)


def fuse_stage1(
    partial: np.ndarray | None,
    tumour: np.ndarray | None,
    states: Mapping[int, str],
    labels: Labels,
) -> Fused:
    """Partial label and tumour pseudo-label.

    Parameters
    ----------
    partial : uint8 (z, y, x), optional
        Class values; None for an unlabelled case.
    tumour : bool or uint8 (z, y, x), optional
        Predicted tumour, 0 or 1. Without effect where the case's tumour is annotated or absent.
    states : mapping
        ``annotated``, ``absent`` or ``unknown`` for every class value.

    Raises
    ------
    UnexpectedValues
        If the partial label holds a value that is no class, or the mask one other than 0 and 1.
    ValueError
        If states, shapes or dtypes are wrong or both inputs are None.
    """
    rules = _Rules(states, labels)
    inputs = {"partial": (partial, labels.ignore), "tumour": (tumour, 2)}
    label, source, found = _look_up(inputs, rules.stage1)
    fused = Fused(label, source)
    for (given, predicted), voxels in found.items():
        result = rules.stage1(given, predicted)
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

    Parameters
    ----------
    label, source : uint8 (z, y, x)
        Stage 1's label and source map; left as they are.
    organs : uint8 (z, y, x), optional
        Class values. A tumour in it never fills.
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
    inputs = {
        "label": (label, labels.ignore + 1),
        "source": (source, len(Source)),
        "organs": (organs, labels.ignore),
    }
    new_label, new_source, found = _look_up(inputs, rules.stage2)
    fused = Fused(new_label, new_source)
    for (before, origin, organ), voxels in found.items():
        if (before == 0) != (origin == Source.BACKGROUND):
            raise ValueError(
                f"label and source map contradict each other: {voxels} voxels of label {before} "
                f"have source {origin}"
            )
        result = rules.stage2(before, origin, organ)
        fused.voxels[result] += voxels
        rules.count_conflict(fused, result[0], organ, "organs", voxels)
    return fused


def fuse(
    partial: np.ndarray | None,
    tumour: np.ndarray | None,
    organs: np.ndarray | None,
    states: Mapping[int, str],
    labels: Labels,
) -> Fused:
    """Both stages in one pass, where only the end is wanted.

    Equal to `fuse_stage2` of `fuse_stage1`, with the conflicts of both. Parameters and errors are
    theirs; at least one input must be given.
    """
    rules = _Rules(states, labels)
    inputs = {
        "partial": (partial, labels.ignore),
        "tumour": (tumour, 2),
        "organs": (organs, labels.ignore),
    }

    def both(given: int, predicted: int, organ: int) -> tuple[int, Source]:
        return rules.stage2(*rules.stage1(given, predicted), organ)

    label, source, found = _look_up(inputs, both)
    fused = Fused(label, source)
    for (given, predicted, organ), voxels in found.items():
        stage1 = rules.stage1(given, predicted)
        result = rules.stage2(*stage1, organ)
        fused.voxels[result] += voxels
        rules.count_stage1(fused, given, predicted, stage1[0], voxels)
        rules.count_conflict(fused, result[0], organ, "organs", voxels)
    return fused


class _Rules:
    """What happens to one voxel of a case, and what is counted of it."""

    def __init__(self, states: Mapping[int, str], labels: Labels):
        if set(states) != set(labels.values):
            raise ValueError(f"states are of {sorted(states)}, not of the classes {labels.values}")
        wrong = set(states.values()) - {ANNOTATED, ABSENT, UNKNOWN}
        if wrong:
            raise ValueError(f"{sorted(wrong)}: no state of a class")
        self.annotated = {value for value, state in states.items() if state == ANNOTATED}
        self.unknown = {value for value, state in states.items() if state == UNKNOWN}
        self.tumour = labels.tumour.value
        self.ignore = labels.ignore

    def stage1(self, partial: int, tumour: int) -> tuple[int, Source]:
        if tumour and self.tumour in self.unknown:
            return self.tumour, Source.TUMOUR_PSEUDO
        if partial in self.annotated:
            return partial, Source.GROUND_TRUTH
        return 0, Source.BACKGROUND

    def stage2(self, label: int, source: int, organ: int) -> tuple[int, Source]:
        if label == 0 and organ in self.unknown and organ != self.tumour:
            return organ, Source.ORGAN_PSEUDO
        return label, Source(source)

    def count_stage1(self, fused: Fused, partial: int, tumour: int, kept: int, voxels: int) -> None:
        if partial and partial not in self.annotated:
            fused.specks[partial] += voxels
        else:
            self.count_conflict(fused, kept, partial, "partial", voxels)
        if tumour:
            self.count_conflict(fused, kept, self.tumour, "tumour", voxels)

    def count_conflict(self, fused: Fused, kept: int, said: int, by: str, voxels: int) -> None:
        if kept and said and kept != said and kept != self.ignore:
            fused.conflicts[kept, said, by] += voxels


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


def _look_up(
    inputs: Mapping[str, tuple[np.ndarray | None, int]],
    rule: Callable[..., tuple[int, Source]],
) -> tuple[np.ndarray, np.ndarray, dict[tuple[int, ...], int]]:
    """Apply a rule to every voxel of two or three inputs.

    ``inputs`` gives for each its array, or None for all zero, and how many values it may hold,
    from 0 up. Returns label and source map and the voxels of each combination that occurs.
    """
    shape = _common_shape({name: array for name, (array, _) in inputs.items()})
    allowed = [1 if array is None else values for array, values in inputs.values()]
    allowed += [1] * (3 - len(allowed))
    # One more entry along each axis: there the pass counts all values that are not allowed.
    labels_of, sources_of = np.zeros((2, *(values + 1 for values in allowed)), np.uint8)
    counts = np.zeros(labels_of.shape, np.int64)
    results = [rule(*values[: len(inputs)]) for values in product(*map(range, allowed))]
    inner = (slice(-1),) * 3
    labels_of[inner], sources_of[inner] = np.array(results, np.uint8).T.reshape(2, *allowed)

    size = math.prod(shape)
    words = -(-size // 8)
    arrays = [array for array, _ in inputs.values()] + [None] * (3 - len(inputs))
    # Two allocations: numpy gets them zeroed from the system, and pages stay untouched where
    # there is only background.
    label, source = np.zeros(words * 8, np.uint8), np.zeros(words * 8, np.uint8)
    _compiled_pass()(
        *(_as_words(array, words) for array in arrays),
        labels_of,
        sources_of,
        label.view(np.uint64),
        source.view(np.uint64),
        counts,
    )
    counts[0, 0, 0] -= words * 8 - size

    for axis, (name, (array, _)) in enumerate(inputs.items()):
        beyond = allowed[axis]
        if counts.take(beyond, axis).any():
            raise UnexpectedValues(name, (int(v) for v in np.unique(array) if v >= beyond))
    found = {
        tuple(map(int, at[: len(inputs)])): int(counts[tuple(at)]) for at in np.argwhere(counts)
    }
    return label[:size].reshape(shape), source[:size].reshape(shape), found


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


def _as_words(array: np.ndarray | None, words: int) -> np.ndarray:
    """An array's voxels, eight to a 64-bit word, zeros after the last."""
    if array is None:
        return np.zeros(words, np.uint64)
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.size < words * 8:
        flat = np.pad(flat, (0, words * 8 - flat.size))
    return flat.view(np.uint64)


def _pass(first, second, third, labels_of, sources_of, label, source, counts):
    """Look up all voxels. Most words equal the word before: those cost a comparison."""
    byte = np.uint64(255)
    last = (
        np.uint64(labels_of.shape[0] - 1),
        np.uint64(labels_of.shape[1] - 1),
        np.uint64(labels_of.shape[2] - 1),
    )
    start = 0
    while start < first.size:
        a, b, c = first[start], second[start], third[start]
        stop = start + 1
        while stop < first.size and first[stop] == a and second[stop] == b and third[stop] == c:
            stop += 1
        label_word = np.uint64(0)
        source_word = np.uint64(0)
        for k in range(8):
            shift = np.uint64(8 * k)
            at = (
                min((a >> shift) & byte, last[0]),
                min((b >> shift) & byte, last[1]),
                min((c >> shift) & byte, last[2]),
            )
            counts[at] += stop - start
            label_word |= np.uint64(labels_of[at]) << shift
            source_word |= np.uint64(sources_of[at]) << shift
        if label_word or source_word:  # the outputs are zero: leave their background untouched
            for word in range(start, stop):
                label[word] = label_word
                source[word] = source_word
        start = stop


@cache
def _compiled_pass() -> Callable:
    """The pass, compiled or loaded on first use: importing this module loads no numba."""
    from numba import types

    words = types.Array(types.uint64, 1, "C", readonly=True, aligned=False)
    table = types.Array(types.uint8, 3, "C")
    signature = types.void(
        *[words] * 3, *[table] * 2, *[types.uint64[::1]] * 2, types.int64[:, :, ::1]
    )
    return kernel(signature)(_pass)


# Files and folders


@dataclass(frozen=True)
class FusedCase:
    """A case that was fused into a file, and the rows that explain it."""

    case: str
    file: Path
    composition: list[dict]
    conflicts: list[dict]
    specks: list[dict]


@dataclass(frozen=True)
class _Job:
    """One case of `fuse_paths`: what to read, what is known, where label and source map go."""

    case: str
    inputs: dict[str, Path]
    states: dict[int, str]
    targets: list[Path]


def fuse_paths(
    partial: str | Path | None,
    annotated: str,
    tumour: str | Path | None,
    tumour_value: int,
    organs: str | Path | None,
    out: str | Path,
    source_map: str | Path | None,
    labels: Labels,
) -> list[FusedCase]:
    """Fuse files or folders: what ``panorgan fuse`` does.

    The inputs that are given are all files or all folders. A folder holds ``<case>.nii.gz``, and
    the cases are those of all folders together: a case without a partial label is unlabelled, a
    case without its tumour or organ pseudo-label is a problem. Everything is written or, if there
    is any problem, nothing; an existing file is never replaced.

    Parameters
    ----------
    partial, tumour, organs : path, optional
        Partial label, tumour mask and organ pseudo-label; at least one.
    annotated : str
        Comma list of the classes, by name or value, that are annotated in the partial labels.
        Others are unknown there: what partial labels hold of them is left out, and counted as
        specks. In unlabelled cases all are unknown. If the tumour is annotated, labelled cases need
        no tumour mask; one that is there is not read.
    tumour_value : int
        The value that means tumour in the masks, which hold no other but 0.
    out, source_map : path, the latter optional
        Where labels and source maps (values of `Source`) go: files for files, folders for folders.

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
    classes = _annotated_classes(annotated, "partial" in given, labels)
    if not 1 <= tumour_value <= 255:
        raise Problems.one(f"--tumour-value is {tumour_value}", "give a value from 1 to 255")
    jobs = _jobs(given, targets, classes, labels)

    done: list[FusedCase] = []
    problems: list[Problem] = []
    written: list[Path] = []
    try:
        for job in jobs:
            try:
                fused, like = _fuse_files(job, tumour_value, labels)
                if not problems:
                    _write(job, fused, like, written)
            except Problems as found:
                problems += found.problems
                continue
            rows = (
                table(fused, labels, like.grid.voxel_ml)
                for table in (composition, conflicts, specks)
            )
            done.append(FusedCase(job.case, job.targets[0], *rows))
        if problems:
            raise Problems(problems)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return done


def _annotated_classes(annotated: str, has_partial: bool, labels: Labels) -> set[int]:
    try:
        classes = {label.value for label in labels.parse(annotated)}
    except ValueError as error:
        raise Problems.one(f"--annotated: {error}", "mend the list") from None
    if has_partial and not classes:
        cause = "--partial without --annotated: no class of it would be used"
        raise Problems.one(cause, "say which classes are annotated, such as --annotated liver,1,3")
    if classes and not has_partial:
        raise Problems.one("--annotated without --partial", "give both or neither")
    return classes


def _jobs(
    given: dict[str, Path], targets: dict[str, Path], classes: set[int], labels: Labels
) -> list[_Job]:
    in_folders = _are_folders(given)
    cases = _pair(given) if in_folders else {_case_of(next(iter(given.values()))): given}
    problems = []
    jobs = []
    for case, found in sorted(cases.items()):
        known = classes if "partial" in found else set()
        states = {value: ANNOTATED if value in known else UNKNOWN for value in labels.values}
        needed = set(given) - {"partial"}
        if states[labels.tumour.value] == ANNOTATED:
            needed -= {"tumour"}
        for name in sorted(needed - set(found)):
            cause = f"has no {case}{SUFFIX}, which --{' and --'.join(found)} has"
            problems.append(Problem(case, str(given[name]), cause, "add it, or remove the other"))
        inputs = {name: path for name, path in found.items() if name in needed | {"partial"}}
        out = [path / f"{case}{SUFFIX}" if in_folders else path for path in targets.values()]
        jobs.append(_Job(case, inputs, states, out))
    problems += _target_problems(given, targets, in_folders, cases)
    if problems:
        raise Problems(problems)
    return jobs


def _are_folders(given: dict[str, Path]) -> bool:
    if not given:
        raise Problems.one("nothing to fuse", "give --partial, --tumour or --organs")
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
    """The files of every case in some folders; hidden files are no cases."""
    cases: dict[str, dict[str, Path]] = {}
    for name, folder in given.items():
        files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
        uncompressed = [path for path in files if path.suffix == ".nii"]
        if uncompressed:
            cure = f"compress it: folders are paired by <case>{SUFFIX}"
            raise Problems(Problem("", str(path), "ends in .nii", cure) for path in uncompressed)
        found = [path for path in files if path.name.endswith(SUFFIX)]
        if not found:
            raise Problems.one(f"holds no <case>{SUFFIX}", "check the path", file=folder)
        for path in found:
            cases.setdefault(_case_of(path), {})[name] = path
    return cases


def _case_of(path: Path) -> str:
    return path.name.removesuffix(SUFFIX)


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


def _fuse_files(job: _Job, tumour_value: int, labels: Labels) -> tuple[Fused, Volume]:
    """A case fused, and the volume whose geometry it has."""
    found: dict[str, Volume] = {}
    problems = []
    for name, path in job.inputs.items():
        try:
            found[name] = read_label(path)
        except VolumeError as error:
            problems.append(Problem(job.case, str(path), error.cause, error.cure))
    first = next(iter(found), None)
    for name, volume in found.items():
        difference = found[first].grid.difference(volume.grid)
        if difference:
            cause = f"is not on the grid of {job.inputs[first]}: {difference}"
            cure = "resample one of the two"
            problems.append(Problem(job.case, str(job.inputs[name]), cause, cure))
    if problems:
        raise Problems(problems)

    arrays = {name: found[name].array if name in found else None for name in INPUTS}
    try:
        if arrays["tumour"] is not None and tumour_value != 1:
            arrays["tumour"] = _tumour_mask(arrays["tumour"], tumour_value)
        return fuse(**arrays, states=job.states, labels=labels), found[first]
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
    mask = array == value
    if np.count_nonzero(mask) != np.count_nonzero(array):
        raise UnexpectedValues("tumour", (int(v) for v in np.unique(array) if v not in (0, value)))
    return mask


def _write(job: _Job, fused: Fused, like: Volume, written: list[Path]) -> None:
    for path, array in zip(job.targets, (fused.label, fused.source), strict=False):
        written.append(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_label(path, array, like)
        except OSError as error:
            cause = error.strerror or str(error)
            raise Problems.one(cause, "check the folder", case=job.case, file=path) from None
