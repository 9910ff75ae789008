"""What is checked about volumes: the same in the workflow's index and in `panorgan check`."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from re import fullmatch
from typing import TypeVar

import numpy as np

from panorgan.cases.folders import IMAGE_ENDING, left_out_above, stem_of, twin_of, volumes_in
from panorgan.cases.hounsfield import is_empty, not_hounsfield
from panorgan.cases.table import Case, read_cases
from panorgan.config.labels import Labels
from panorgan.config.settings import Manifest
from panorgan.io.failures import Failures
from panorgan.io.volumes import (
    Volume,
    VolumeError,
    mend_image,
    mend_label,
    read_image,
    read_label,
    voxel_hash,
)
from panorgan.problems import Problem, Problems

FLARE_FOLDER = r"(images|labels)((?:Tr|Val|Ts)\w*|)"
SPLITS = {"Tr": "train", "Va": "validation", "Ts": "test", "": "train"}
SPLIT_ORDER = ("test", "validation", "train", "")

InSplit = TypeVar("InSplit")
Owner = TypeVar("Owner")


# ---------------------------------------------------------------------------------------------
# One case


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """What a case's volumes are, read once.

    Attributes
    ----------
    image, label, organs
        None where the case has none.
    label_values
        Voxels of each value but 0 that occurs in the label.
    image_hash, label_hash, organs_hash
        `voxel_hash` of the volumes; empty where the case has none.
    repairs
        Of each volume whose header was mended: why, and by how many mm a corner moved at most.
    doubt
        Cause and cure if the image's numbers do not look like HU.
    """

    image: Volume | None
    label: Volume | None
    organs: Volume | None
    label_values: dict[int, int]
    image_hash: str
    label_hash: str
    organs_hash: str
    repairs: dict[str, tuple[str, float]]
    doubt: tuple[str, str] | None


def inspect_case(
    case: str,
    image: Path | None,
    label: Path | None,
    organs: Path | None,
    labels: Labels,
    max_repair_mm: float = 0.0,
) -> tuple[CaseFacts | None, list[Problem]]:
    """Read and check a case's volumes.

    Parameters
    ----------
    case
        Its name, for the problems.
    image, label, organs
        Its CT, its label map and its organ pseudo-label; None where it has none.
    max_repair_mm
        Headers are mended if that moves no corner further; 0: never.

    Returns
    -------
    facts
        None if there is a problem.
    problems
    """
    named = {"image": image, "label": label, "organs": organs}
    files = {kind: Path(path) for kind, path in named.items() if path is not None}
    volumes: dict[str, Volume] = {}
    repairs: dict[str, tuple[str, float]] = {}
    faults: list[tuple[str, str, str]] = []
    for kind, path in files.items():
        if twin := twin_of(path):
            faults.append((kind, *_two_of_one(twin)))
        try:
            volumes[kind], repair = _read(kind, path, max_repair_mm)
            if repair:
                repairs[kind] = repair
        except VolumeError as error:
            faults.append((kind, error.cause, error.cure))

    counts = {
        kind: value_counts(volumes[kind].array) for kind in ("label", "organs") if kind in volumes
    }
    allowed = {"label": labels.values, "organs": [organ.value for organ in labels.organs]}
    for kind, found in counts.items():
        if strange := {v: n for v, n in found.items() if v not in allowed[kind]}:
            faults.append((kind, *_strange_values(strange, max(allowed[kind]))))
    doubt = None
    if "image" in volumes:
        if empty := is_empty(volumes["image"].array):
            faults.append(("image", *empty))
        else:
            doubt = not_hounsfield(volumes["image"].array)
    first = next(iter(volumes), "")
    for kind, volume in volumes.items():
        if difference := volumes[first].grid.difference(volume.grid):
            cause = f"is not on the grid of its {first}: {difference}"
            faults.append((kind, cause, f"pair it with the right {first}, or resample it"))
    if faults:
        faults += [("image", *doubt)] if doubt else []
        return None, [Problem(case, str(files[kind]), *fault) for kind, *fault in faults]
    hashes = {kind: voxel_hash(volume) for kind, volume in volumes.items()}
    facts = CaseFacts(
        **{kind: volumes.get(kind) for kind in named},
        label_values=counts.get("label", {}),
        **{f"{kind}_hash": hashes.get(kind, "") for kind in named},
        repairs=repairs,
        doubt=doubt,
    )
    return facts, []


def _two_of_one(twin: Path) -> tuple[str, str]:
    """Cause and cure of a volume that is there twice, compressed and not."""
    cause = f"stands beside {twin.name}, and some programs read that one instead"
    return cause, "remove one of the two"


def _read(kind: str, path: Path, max_repair_mm: float) -> tuple[Volume, tuple[str, float] | None]:
    """A volume, and why its header had to be mended and by how many mm, if it had to be."""
    read, mend = (read_image, mend_image) if kind == "image" else (read_label, mend_label)
    try:
        return read(path), None
    except VolumeError as error:
        if not max_repair_mm:
            raise
        refusal = error
    try:
        volume, shift = mend(path)
    except VolumeError:
        raise refusal from None
    if shift > max_repair_mm:
        cause = (
            f"{refusal.cause}; to mend that would move a corner by {shift:.3g} mm, more than "
            f"manifest.max_repair_mm ({max_repair_mm:g})"
        )
        raise VolumeError(cause, refusal.cure)
    return volume, (refusal.cause, shift)


def value_counts(array: np.ndarray) -> dict[int, int]:
    """Voxels of each value but 0."""
    counts = np.zeros(256, np.int64)
    for plane in array:  # bincount makes 64-bit numbers of all that it gets
        counts += np.bincount(plane.ravel(), minlength=256)
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts) if value}


def _strange_values(strange: dict[int, int], most: int) -> tuple[str, str]:
    """Cause and cure of label values that have no meaning."""
    listed = [
        f"{value} in {count:,} voxel{'s' * (count > 1)}" for value, count in sorted(strange.items())
    ]
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    cause = f"holds values outside 0 to {most}: {', '.join(listed[:5])}{more}"
    return cause, f"map them to classes or to 0; a CT is named CASE{IMAGE_ENDING}.nii.gz"


def find_repeats(keyed: Iterable[tuple[str, InSplit]]) -> Iterator[tuple[InSplit, InSplit]]:
    """Cases with a key that another one has.

    Parameters
    ----------
    keyed
        What is to be unique, such as the hash of an image, and a case: all that has a `split`
        (may be empty).

    Yields
    ------
    case, other
        Each case but the one that is kept of those with its key, and that one: it is of the most
        important split (test before validation before training), and the first of these.
    """
    groups: dict[str, list[InSplit]] = {}
    for key, case in keyed:
        groups.setdefault(key, []).append(case)
    for group in groups.values():
        kept, *rest = sorted(group, key=lambda case: SPLIT_ORDER.index(case.split))
        yield from ((case, kept) for case in rest)


def find_shared(
    labels: Iterable[tuple[str, str, Owner]],
) -> Iterator[tuple[Owner, Owner]]:
    """Labels that several images have, although each should have its own.

    Parameters
    ----------
    labels
        What tells a label: the hash of its voxels or, as empty ones may be alike, its path; what
        tells its image; and whose it is.

    Yields
    ------
    owner, other
        Each whose label another image has too, and the first of those.
    """
    groups: dict[str, list[tuple[str, Owner]]] = {}
    for label, image, owner in labels:
        groups.setdefault(label, []).append((image, owner))
    for group in groups.values():
        for image, owner in group:
            if other := next((found for other, found in group if other != image), None):
                yield owner, other


def shared_label(case: str, path: str | Path, other: str) -> Problem:
    """What is wrong with a label that is the label of another image too."""
    cause = f"is the label of {other} too, which is another image"
    cure = "pair each image with its own, or name one patient for both if it is right"
    return Problem(case, str(path), cause, cure)


def patients_in_two_splits(cases: Iterable[Case]) -> Iterator[Problem]:
    """Cases of a table whose patient is in a more important split too."""
    for case, other in find_repeats((case.patient, case) for case in cases if case.patient):
        if case.split != other.split:
            yield shared(case, other, "patient")


def shared(case: Case, other: Case, what: str) -> Problem:
    """What is wrong with a case of a table that has something in common with another split."""
    cause = f"same {what} as {other.case}, which is a {other.split} case"
    return Problem(case.case, case.image, cause, "remove one of the two from the case table")


# ---------------------------------------------------------------------------------------------
# Many cases


@dataclass
class FoundCase:
    """A case as its files' names and folders tell it; `split` and `source` may be empty."""

    name: str
    split: str
    source: str
    image: Path | None = None
    label: Path | None = None
    organs: Path | None = None
    extra: list[tuple[str, Path]] = field(default_factory=list)

    @property
    def files(self) -> list[Path]:
        return [path for path in (self.image, self.label, self.organs) if path is not None]


def find_flare_cases(folder: str | Path) -> tuple[list[FoundCase], list[Problem]]:
    """Cases of FLARE-style folders, sorted by name, and what of these folders is left out.

    Parameters
    ----------
    folder
        Holds folders such as ``imagesTr2200`` and ``labelsTr2200``, ``imagesTr1800``,
        ``imagesVal`` and ``labelsVal``, ``imagesTs``, or just ``images`` and ``labels``. Images
        are ``CASE_0000.nii.gz``, labels ``CASE.nii.gz``; ``.nii`` will do. What follows
        ``images`` is the case's source and tells its split.

    Returns
    -------
    cases
        A label without an image is a case without an image.
    left_out
        As `panorgan.cases.folders.volumes_in` tells it.

    Raises
    ------
    Problems
        If the folder is missing or holds no such case, or two files are the same case's image.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise Problems.one("is no folder", "check the path", file=folder)
    files: list[Path] = []
    problems: list[Problem] = []
    left_out = [*left_out_above(folder, FLARE_FOLDER)]
    for place in sorted(folder.glob("*")):
        if place.is_dir() and fullmatch(FLARE_FOLDER, place.name):
            try:
                found, wrong = volumes_in(place)
            except Problems as error:
                problems += error.problems
                continue
            files += found
            left_out += wrong
    cases = _pair(files)
    problems += [problem for case in cases for problem in _extra_files(case)]
    problems += [
        Problem(case.name, str(path), *_two_of_one(twin))
        for case in cases
        for path in case.files
        if (twin := twin_of(path))
    ]
    if problems:
        raise Problems(problems + left_out)
    if not cases:
        cause = "holds no folder such as imagesTr or imagesTr2200 with .nii.gz files in it"
        cure = "check the path and the folders' names"
        raise Problems([*left_out, Problem("", str(folder), cause, cure)])
    return sorted(cases, key=lambda case: case.name), sorted(left_out)


def check_paths(paths: Sequence[str | Path], labels: Labels) -> tuple[int, list[Problem]]:
    """Check volumes, folders of volumes and case tables.

    A volume whose name ends in ``_0000``, or whose folder's name starts with ``images``, is an
    image, any other a label. Images and labels of one case are compared if they lie in one folder
    or in folders such as ``imagesTr`` and ``labelsTr``; a label without its image is a problem
    where the labels beside it have theirs.

    Parameters
    ----------
    paths
        Volumes, folders (searched with all below them) and case tables (``.tsv``).

    Returns
    -------
    checked
        Number of volumes.
    problems
        Sorted; repeated images among them.
    """
    listed: list[FoundCase] = []
    volumes: dict[str, Path] = {}
    below: set[Path] = set()
    problems: list[Problem] = []
    for path in map(Path, paths):
        if path.suffix == ".tsv":
            try:
                rows = read_cases(path, labels)
                listed += _from_table(rows)
                problems += patients_in_two_splits(rows)
            except Problems as error:
                problems += error.problems
        elif os.path.isdir(path):
            found, wrong = volumes_in(path, below=True)
            if not found and not wrong:
                wrong = [Problem("", str(path), "holds no .nii.gz or .nii file", "check the path")]
            problems += wrong
            volumes |= {os.path.abspath(volume): volume for volume in found}
            below |= {volume for volume in found if volume.parent != path}
        else:
            volumes[os.path.abspath(path)] = path
    paired = _pair(volumes.values())
    problems += _labels_without_image(paired, below)
    problems += [problem for case in paired for problem in _extra_files(case)]
    images: list[tuple[str, FoundCase]] = []
    labelled: list[tuple[str, str, tuple[FoundCase, Path]]] = []
    failures = Failures()
    most = Manifest().max_repair_mm
    for case in listed + paired:
        files = (case.image, case.label, case.organs)
        with failures.of(case.name, next(iter(case.files), "")):
            facts, wrong = inspect_case(case.name, *files, labels, most)
            problems += wrong
            if facts:
                problems += _repairs(case, facts.repairs, most)
            if facts and facts.doubt:
                problems.append(Problem(case.name, str(case.image), *facts.doubt))
            if facts and facts.image:
                images.append((facts.image_hash, case))
                labelled += _labels_of(case, facts)
    problems += failures.problems
    problems += (_same_image(*pair) for pair in find_repeats(images))
    problems += (
        shared_label(case.name, path, other.name)
        for (case, path), (other, _) in find_shared(labelled)
    )
    checked = sum(len(case.files) for case in listed + paired)
    return checked, sorted(set(problems))


def _labels_of(
    case: FoundCase, facts: CaseFacts
) -> Iterator[tuple[str, str, tuple[FoundCase, Path]]]:
    """A case's labels, as `find_shared` takes them."""
    for volume, key, path in (
        (facts.label, facts.label_hash, case.label),
        (facts.organs, facts.organs_hash, case.organs),
    ):
        if volume is not None:
            own = key if volume.array.any() else os.path.abspath(path)
            yield own, facts.image_hash, (case, path)


def _same_image(case: FoundCase, other: FoundCase) -> Problem:
    cause, cure = f"is the same image as {other.image}", "remove one"
    if case.split != other.split:
        cause, cure = f"{cause}, a {other.split} case", f"{cure}: scores on it mean nothing"
    return Problem(case.name, str(case.image), cause, cure)


def _repairs(
    case: FoundCase, repairs: dict[str, tuple[str, float]], most: float
) -> Iterator[Problem]:
    """Headers that other programs refuse, but not the workflow."""
    for kind, (cause, shift) in repairs.items():
        cure = (
            f"the workflow mends this in a copy, which moves a corner by {shift:.3g} mm (it may be "
            f"manifest.max_repair_mm: {most:g})"
        )
        yield Problem(case.name, str(getattr(case, kind)), cause, cure)


def _from_table(rows: Iterable[Case]) -> Iterator[FoundCase]:
    for case in rows:
        files = {kind: getattr(case, kind) for kind in ("image", "label", "organs")}
        files = {kind: Path(file) for kind, file in files.items() if file}
        yield FoundCase(case.case, case.split, case.source, **files)


def _pair(files: Iterable[Path]) -> list[FoundCase]:
    """The cases that some files belong to, in the files' order."""
    cases: dict[tuple[object, ...], FoundCase] = {}
    for path in files:
        folder = Path(os.path.abspath(path)).parent
        stem = stem_of(path.name)
        is_image = folder.name.startswith("images")
        is_image |= stem.endswith(IMAGE_ENDING) and not folder.name.startswith("labels")
        name = stem.removesuffix(IMAGE_ENDING) if is_image else stem
        split = source = ""
        if flare := fullmatch(FLARE_FOLDER, folder.name):
            split, source = SPLITS[flare[2][:2]], flare[2] or folder.parent.name or folder.name
        case = cases.setdefault((*_place(path), name), FoundCase(name, split, source))
        kind = "image" if is_image else "label"
        other = getattr(case, kind)
        if other is None:
            setattr(case, kind, path)
        elif other.name + ".gz" == path.name:
            setattr(case, kind, path)  # `inspect_case` tells that there are two
        elif other.name != path.name + ".gz":
            case.extra.append((kind, path))
    return list(cases.values())


def _place(path: Path) -> tuple[Path, str | None]:
    """What the files of one case have in common beside its name."""
    folder = Path(os.path.abspath(path)).parent
    for above in (folder, *folder.parents):
        if match := fullmatch(r"(images|labels)(.*)", above.name):
            return above.parent / folder.relative_to(above), match[2]
    return folder, None


def _labels_without_image(cases: Sequence[FoundCase], below: set[Path]) -> Iterator[Problem]:
    """Labels that should have an image: others beside them have one, or the folder was asked for
    in which ``labelsTr`` lies, not ``labelsTr`` itself."""
    with_images = {_place(case.image) for case in cases if case.image}
    for case in cases:
        if case.label and not case.image:
            is_flare = case.label in below and fullmatch(FLARE_FOLDER, case.label.parent.name)
            if is_flare or _place(case.label) in with_images:
                cure = f"add {case.name}{IMAGE_ENDING}.nii.gz, or remove the label"
                yield Problem(case.name, str(case.label), "no image for this label", cure)


def _extra_files(case: FoundCase) -> Iterator[Problem]:
    for kind, path in case.extra:
        cause = f"is a second {kind} of the case, beside {getattr(case, kind).name}"
        yield Problem(case.name, str(path), cause, "keep one of the two")
