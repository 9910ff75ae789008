"""The manifest: what is known of every case and class, from the case table and the real labels.

A class of a case is *annotated* (labelled wherever it is), *absent* (annotators looked and found
none) or *unknown*. Selection, fusion and scores derive from this table alone.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from panorgan.cases.checks import (
    find_repeats,
    find_shared,
    patients_in_two_splits,
    shared,
    shared_label,
)
from panorgan.cases.corrections import Correction, scope_text
from panorgan.cases.numbering import doubtful_numbers
from panorgan.cases.places import parse_places
from panorgan.cases.sides import doubtful_sides
from panorgan.cases.table import SCOPE, Case, fold_of
from panorgan.config.labels import ABSENT, ANNOTATED, UNKNOWN, Labels, Table, read_table_of
from panorgan.io.tables import read_table, write_table
from panorgan.io.volumes import (
    Volume,
    VolumeError,
    geometry_hash,
    read_frame,
    read_image,
    read_label,
    voxel_hash,
)
from panorgan.problems import Problem, Problems

FACTS = (
    "orientation",
    "shape_zyx",
    "spacing_mm_zyx",
    "voxel_ml",
    "grid",
    "image_hash",
    "label_hash",
    "organs_hash",
    "label_values",
    "repaired",
)
"""What the index records of a case; shape and spacing are those of the canonical (RAS) array."""

FOR_SUSPECTS = ("midline_mm", "places", "organ_places", "doubt")
"""What it records beside these: RAS mm, to find organs that are something else, and what is
implausible about the image's numbers."""

PLACES = ("case", "split", "shard", "source", "patient", "image", "label", "organs")
SUSPECT_COLUMNS = ("case", "file", "cause", "obstacle")
"""Of what looks wrong; `obstacle` says what stands in a run's way if it is, or is empty."""
MISNUMBERED = "labels seem to be mirrored, or numbered otherwise than the class table"
NO_HU = "images seem to hold no HU"


def _listed(value: object) -> str:
    """A list of classes as people type it in a table: YAML may have it as a list."""
    parts = value if isinstance(value, list) else [value]
    if any(isinstance(part, bool) or not isinstance(part, str | int) for part in parts):
        raise ValueError("is no list of classes; write [liver, spleen], all or none")
    return ",".join(map(str, parts))


Listed = Annotated[str, BeforeValidator(_listed)]


class Source(Table):
    """What a data set annotates."""

    annotated: Annotated[Listed, Field(description="class names, `all` or `none`")]
    tumour_scope: Annotated[
        Listed, Field(description="organs in which tumours were looked for; `all`: everywhere")
    ] = "all"


class Sources(Table):
    """The rules of `config/sources.yaml`."""

    sources: dict[str, Source] = Field({}, description="by name of the data set")


@dataclass(frozen=True)
class Rule:
    """What the annotators of a data set looked for.

    Attributes
    ----------
    annotated
        Names of classes.
    scope
        Values of the organs in which they looked for tumours; None: everywhere.
    """

    annotated: tuple[str, ...]
    scope: tuple[int, ...] | None = None


def load_sources(path: str | Path, labels: Labels) -> dict[str, Rule]:
    """The rule of every data set that has one.

    Raises
    ------
    Problems
        If the file is missing, no YAML, breaks its form, names an unknown class, or has a scope
        of tumours without tumours.
    """
    rules = read_table_of(path, Sources, "sources").sources
    known: dict[str, Rule] = {}
    problems = []
    for name, rule in rules.items():
        try:
            annotated = tuple(label.name for label in labels.parse(rule.annotated))
            scope = labels.parse_scope(rule.tumour_scope or "none")
        except ValueError as error:
            problems.append(Problem("", str(path), f"{name}: {error}", "mend it"))
            continue
        if scope is not None and labels.tumour_name not in annotated:
            cause = f"{name}: has a tumour_scope, but {labels.tumour_name} is not annotated"
            cure = f"remove the scope, or add {labels.tumour_name} to `annotated`"
            problems.append(Problem("", str(path), cause, cure))
        known[name] = Rule(annotated, scope)
    if problems:
        raise Problems(problems)
    return known


@dataclass(frozen=True)
class Entry:
    """One line of the manifest.

    `scope` holds the values of the organs in which annotators looked for tumours; None:
    everywhere, or nowhere if the tumour is unknown. `tumour` is the tumour's value.
    """

    case: str
    split: str
    shard: str
    source: str
    patient: str
    image: str
    label: str
    organs: str
    facts: Mapping[str, str]
    states: Mapping[int, str]
    scope: tuple[int, ...] | None = None
    tumour: int = 0

    @property
    def label_values(self) -> dict[int, int]:
        """Voxels of every value that occurs in the label."""
        return parse_values(self.facts["label_values"])

    @property
    def shape(self) -> tuple[int, ...]:
        """(z, y, x) of the canonical array."""
        return tuple(int(size) for size in self.facts["shape_zyx"].split())

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm (z, y, x) of the canonical array."""
        return tuple(float(size) for size in self.facts["spacing_mm_zyx"].split())

    @property
    def unknown(self) -> tuple[int, ...]:
        """Values of the classes that may be where the label says nothing, ascending.

        Nobody looked for them; or it is the tumour, and where they looked there was none.
        """
        states = dict(self.states)
        if self.scope is not None and states[self.tumour] == ABSENT:
            states[self.tumour] = UNKNOWN
        return tuple(value for value, state in sorted(states.items()) if state == UNKNOWN)

    @property
    def unjudged(self) -> tuple[int, ...]:
        """Values of the classes of which a prediction cannot be judged by the label, ascending.

        The unknown ones, and the tumour if annotators did not look for it everywhere.
        """
        scoped = set() if self.scope is None else {self.tumour}
        return tuple(sorted({*self.unknown, *scoped}))

    def fold(self, folds: int) -> int:
        """The fold, from 1 to `folds`, in which the case is; cases of one patient are in one."""
        return fold_of(self.patient or self.case, folds)

    def volume_ml(self, value: int) -> float:
        """Annotated volume of a class."""
        return self.label_values.get(value, 0) * float(self.facts["voxel_ml"])

    def frame(self) -> Volume:
        """Where the image's voxels lie: what labels of this case are written like."""
        return self._same_grid(self._open(self.image, read_frame))

    def read_image(self) -> Volume:
        """The case's CT; Problems if it is not the one that was indexed."""
        return self._same_grid(self._read(self.image, "image_hash", read_image))

    def read_label(self) -> Volume:
        """The case's label; Problems if it is not the one that was indexed."""
        return self._read(self.label, "label_hash", read_label)

    def read_organs(self) -> Volume:
        """The case's organ pseudo-label; Problems if it is not the one that was indexed."""
        return self._read(self.organs, "organs_hash", read_label)

    def _open(self, path: str, reader: Callable[[str], Volume]) -> Volume:
        try:
            return reader(path)
        except VolumeError as error:
            raise Problems.one(error.cause, error.cure, case=self.case, file=path) from None

    def _read(self, path: str, fact: str, reader: Callable[[str], Volume]) -> Volume:
        volume = self._open(path, reader)
        if voxel_hash(volume) != self.facts[fact]:
            raise self._changed(path)
        return volume

    def _same_grid(self, image: Volume) -> Volume:
        if geometry_hash(image) != self.facts["grid"]:
            raise self._changed(self.image)
        return image

    def _changed(self, path: str) -> Problems:
        cure = "index it again: remove results/RUN/cases/index and run the same command"
        return Problems.one("has changed since it was indexed", cure, case=self.case, file=path)


def values_text(values: Mapping[int, int]) -> str:
    """Voxel counts by value as a table's field, e.g. ``1:5120 14:77``."""
    return " ".join(f"{value}:{count}" for value, count in sorted(values.items()))


def parse_values(text: str) -> dict[int, int]:
    """The inverse of `values_text`."""
    return {int(value): int(count) for value, count in (pair.split(":") for pair in text.split())}


def class_states(
    case: Case,
    values: Mapping[int, int],
    voxel_ml: float,
    sources: Mapping[str, Rule],
    labels: Labels,
    min_ml: float,
    speck_ml: float = 0.0,
    settled: Collection[int] = (),
) -> tuple[dict[int, str], tuple[int, ...] | None, list[str]]:
    """The state of every class of a case, the scope of its tumours, and what looks suspicious.

    What annotators looked for comes from the case's own `annotated`, else from its source's rule,
    else validation and test cases are taken for fully annotated; of these classes the missing
    ones are absent. Without any rule the values that occur with `min_ml` are annotated and no
    class is absent. The scope likewise comes from the case's own `tumour_scope`, else from its
    source's rule.

    Parameters
    ----------
    values
        Voxels of every value that occurs in the case's label.
    sources
        The rules by name of the data set.
    min_ml
        The least volume with which a class without a rule counts as annotated.
    speck_ml
        An annotated class below it is a suspect.
    settled
        Values of classes that a person has looked at: they are no suspects.

    Returns
    -------
    states
        By value.
    scope
        Values of organs; None for everywhere, and where nobody looked for tumours.
    suspects
        A sentence each.

    Raises
    ------
    Problems
        If the case has a scope of its own, but nobody looked for tumours.
    """
    states = dict.fromkeys(labels.values, UNKNOWN)
    suspects: list[str] = []
    if not case.label:
        return states, None, suspects
    looked_for: Sequence[str] | None = None
    expected = ""
    rule = sources.get(case.source)
    if case.annotated:
        looked_for = [label.name for label in labels.parse(case.annotated)]
        expected = "named in the case's `annotated`, but missing in its label"
    elif rule:
        looked_for = rule.annotated
        expected = f"annotated in {case.source}, but missing in this case"
    elif case.split != "train":
        looked_for = labels.names
    missing = []
    for label in labels.labels:
        volume = values.get(label.value, 0) * voxel_ml
        doubts = suspects if label.value not in settled else []
        if looked_for is not None and label.name not in looked_for:
            if volume > 0:
                doubts.append(
                    f"{volume:.3f} ml of {label.name}, which is not annotated in this case: left "
                    "out"
                )
        elif looked_for is None and 0 < volume < min_ml:
            doubts.append(f"only {volume:.3f} ml of {label.name}: not taken as annotated")
        elif volume > 0:
            states[label.value] = ANNOTATED
            if volume < speck_ml:
                doubts.append(f"only {volume:.3f} ml of {label.name}: a speck?")
        elif looked_for is not None:
            states[label.value] = ABSENT
            if label != labels.tumour and label.value not in settled:
                missing.append(label.name)
    if missing and expected:
        suspects.append(f"{', '.join(missing)}: {expected}")
    if states[labels.tumour.value] == UNKNOWN:
        if case.tumour_scope:
            cause = f"has a {SCOPE}, but nothing says that annotators looked for tumours in it"
            cure = f"add {labels.tumour_name} to its column `annotated`, or empty its {SCOPE}"
            raise Problems.one(cause, cure, case=case.case)
        return states, None, suspects
    if case.tumour_scope:
        return states, labels.parse_scope(case.tumour_scope), suspects
    return states, rule.scope if rule else None, suspects


def build_manifest(
    cases: Iterable[Case],
    facts: Mapping[str, Mapping[str, str]],
    shards: Mapping[str, str],
    sources: Mapping[str, Rule],
    labels: Labels,
    min_ml: float,
    speck_ml: float = 0.0,
    corrections: Mapping[str, Correction] | None = None,
) -> tuple[list[Entry], list[dict[str, str]], list[dict[str, str]]]:
    """Entries of the usable cases, sorted by name, the suspects, and what corrections changed.

    Parameters
    ----------
    cases
        The case table.
    facts
        What the index recorded of each usable case; cases without facts are left out.
    shards
        The shard of each case.
    sources, labels, min_ml, speck_ml
        As in `class_states`.
    corrections
        By case; they win.

    Returns
    -------
    entries
    suspects
        Rows with `SUSPECT_COLUMNS`.
    corrected
        Rows with `CORRECTED_COLUMNS`.

    Raises
    ------
    Problems
        Scopes and corrections that contradict what else is known, of all cases.
    """
    entries, suspects, corrected = [], [], []
    problems: list[Problem] = []
    corrections = corrections or {}
    for case in sorted(cases, key=lambda case: case.case):
        if case.case not in facts:
            continue
        fact = facts[case.case]
        values, voxel_ml = parse_values(fact["label_values"]), float(fact["voxel_ml"])
        correction = corrections.get(case.case, Correction(case.case))
        settled = correction.states(labels)
        try:
            states, scope, doubts = class_states(
                case, values, voxel_ml, sources, labels, min_ml, speck_ml, settled
            )
            states, scope, changes = correction.apply(
                states, scope, values, labels, labelled=bool(case.label)
            )
        except Problems as error:
            problems += error.problems
            continue
        corrected += changes
        suspects += [{"case": case.case, "file": case.label, "cause": doubt} for doubt in doubts]
        if fact["doubt"]:
            doubt = {"case": case.case, "file": case.image, "cause": fact["doubt"]}
            suspects.append(doubt | {"obstacle": NO_HU})
        annotated = {value for value, state in states.items() if state == ANNOTATED} - {*settled}
        for file, found, counted, of in (
            (case.label, fact["places"], values, annotated),
            (case.organs, fact["organ_places"], {}, labels.values),
        ):
            suspects += [
                {"case": case.case, "file": file, "cause": doubt, "obstacle": MISNUMBERED}
                for doubt in _misplaced(fact, found, counted, labels, of)
            ]
        entries.append(
            Entry(
                case=case.case,
                split=case.split,
                shard=shards[case.case],
                source=case.source,
                patient=case.patient,
                image=case.image,
                label=case.label,
                organs=case.organs,
                facts={key: fact[key] for key in FACTS},
                states=states,
                scope=scope,
                tumour=labels.tumour.value,
            )
        )
    if problems:
        raise Problems(problems)
    return entries, suspects, corrected


def _misplaced(
    fact: Mapping[str, str],
    places: str,
    voxels: Mapping[int, int],
    labels: Labels,
    of: Collection[int],
) -> list[str]:
    """What is said of the places, and where voxels are counted of the sizes, of some classes."""
    midline = float(fact["midline_mm"]) if fact["midline_mm"] else None
    found, voxel_ml = parse_places(places), float(fact["voxel_ml"])
    centres = {value: place.centre for value, place in found.items()}
    return [
        *doubtful_sides(centres, midline, labels, of),
        *doubtful_numbers(found, voxels, voxel_ml, labels, of),
    ]


def same_images(
    cases: Iterable[Case], facts: Mapping[str, Mapping[str, str]]
) -> tuple[list[Problem], list[dict[str, str]]]:
    """Images, patients and labels that occur more than once.

    Returns
    -------
    problems
        One for each training case whose image or patient is in another split too, and for each
        validation case that is also a test case: scores on it would be worthless. And one for each
        case whose label or organ pseudo-label is that of another image too, unless both are images
        of one patient: of a wrong pair nobody knows which it is.
    suspects
        Images that are repeated inside one split, and in no other; the same label for several
        images of a patient.
    """
    usable = [case for case in cases if case.case in facts]
    # The last name is kept, and the others are told.
    usable.sort(key=lambda case: case.case, reverse=True)
    problems: dict[str, Problem] = {}
    suspects = []
    for case, other in find_repeats((facts[case.case]["image_hash"], case) for case in usable):
        if case.split == other.split:
            cause = f"same image as {other.case}"
            suspects.append({"case": case.case, "file": case.image, "cause": cause})
        else:
            problems[case.case] = shared(case, other, "image")
    for problem in patients_in_two_splits(usable):
        problems.setdefault(problem.case, problem)
    labelled = [one for case in usable[::-1] for one in _labels_of(case, facts[case.case])]
    for (case, path), (other, _) in find_shared(labelled):
        problem = shared_label(case.case, path, other.case)
        if case.patient and case.patient == other.patient:
            suspects.append({"case": case.case, "file": path, "cause": problem.cause})
        else:
            problems.setdefault(case.case, problem)
    return sorted(problems.values()), suspects


def _labels_of(case: Case, fact: Mapping[str, str]) -> Iterator[tuple[str, str, tuple[Case, str]]]:
    """A case's labels, as `find_shared` takes them."""
    for path, key, filled in (
        (case.label, fact["label_hash"], fact["places"]),
        (case.organs, fact["organs_hash"], fact["organ_places"]),
    ):
        if path:
            yield key if filled else path, fact["image_hash"], (case, path)


def write_manifest(path: str | Path, entries: Iterable[Entry], labels: Labels) -> None:
    """Write the manifest: a line a case, a column a class."""
    rows = (
        {place: getattr(entry, place) for place in PLACES}
        | {label.name: entry.states[label.value] for label in labels.labels}
        | {SCOPE: scope_text(entry.scope, labels)}
        | dict(entry.facts)
        for entry in entries
    )
    write_table(path, (*PLACES, *labels.names, SCOPE, *FACTS), rows)


def read_manifest(
    parts: str | Path | Iterable[str | Path], labels: Labels, *, split: str = ""
) -> list[Entry]:
    """Entries of the manifest, or of some shards' parts of it, of one split where asked."""
    parts = [parts] if isinstance(parts, (str, Path)) else parts
    return [
        Entry(
            **{place: row[place] for place in PLACES},
            facts={fact: row[fact] for fact in FACTS},
            states={label.value: row[label.name] for label in labels.labels},
            scope=labels.parse_scope(row[SCOPE]),
            tumour=labels.tumour.value,
        )
        for part in parts
        for row in read_table(part)
        if not split or row["split"] == split
    ]
