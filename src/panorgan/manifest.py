"""The manifest: what is known of every case and class, from the case table and the real labels.

A class of a case is *annotated* (labelled wherever it is), *absent* (annotators looked and found
none) or *unknown*. Selection, fusion and scores derive from this table alone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from panorgan.cases import Case, fold_of
from panorgan.labels import Labels, read_yaml
from panorgan.problems import Problem, Problems
from panorgan.tables import read_table, write_table
from panorgan.volumes import (
    Volume,
    VolumeError,
    geometry_hash,
    read_frame,
    read_image,
    read_label,
    voxel_hash,
)

ANNOTATED, ABSENT, UNKNOWN = "annotated", "absent", "unknown"
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
)
"""What the index records of a case; shape and spacing are those of the canonical (RAS) array."""

PLACES = ("case", "split", "shard", "source", "patient", "image", "label", "organs")
SUSPECT_COLUMNS = ("case", "file", "cause")


class Source(BaseModel):
    """What a data set annotates."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    annotated: Annotated[list[str | int] | str, Field(description="class names, `all` or `none`")]


class Sources(BaseModel):
    """The rules of `config/sources.yaml` by name of the data set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: dict[str, Source] = {}


def load_sources(path: str | Path, labels: Labels) -> dict[str, list[str]]:
    """Names of the annotated classes of every data set that has a rule.

    Raises
    ------
    Problems
        If the file is missing, no YAML, breaks its form or names an unknown class.
    """
    rules = read_yaml(Path(path), Sources, "sources")
    named = {}
    for name, rule in rules.sources.items():
        listed = rule.annotated
        text = listed if isinstance(listed, str) else ",".join(map(str, listed))
        try:
            named[name] = [label.name for label in labels.parse(text)]
        except ValueError as error:
            raise Problems.one(f"{name}: {error}", "mend it", file=path) from None
    return named


@dataclass(frozen=True)
class Entry:
    """One line of the manifest."""

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
        """Values of the classes that nobody looked for, ascending."""
        return tuple(value for value, state in sorted(self.states.items()) if state == UNKNOWN)

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
    sources: Mapping[str, Sequence[str]],
    labels: Labels,
    min_ml: float,
) -> tuple[dict[int, str], list[str]]:
    """The state of every class of a case, and what looks suspicious.

    What annotators looked for comes from the case's own `annotated`, else from its source's rule,
    else validation and test cases are taken for fully annotated; of these classes the missing
    ones are absent. Without any rule the values that occur with `min_ml` are annotated and no
    class is absent.
    """
    states = dict.fromkeys(labels.values, UNKNOWN)
    suspects: list[str] = []
    if not case.label:
        return states, suspects
    looked_for: list[str] | None = None
    if case.annotated:
        looked_for = [label.name for label in labels.parse(case.annotated)]
    elif case.source in sources:
        looked_for = list(sources[case.source])
    elif case.split != "train":
        looked_for = list(labels.names)
    for label in labels.labels:
        volume = values.get(label.value, 0) * voxel_ml
        if looked_for is None:
            if volume > 0 and volume >= min_ml:
                states[label.value] = ANNOTATED
            elif volume > 0:
                suspects.append(f"only {volume:.3f} ml of {label.name}: not taken as annotated")
        elif label.name in looked_for:
            states[label.value] = ANNOTATED if volume > 0 else ABSENT
        elif volume > 0:
            suspects.append(
                f"{volume:.3f} ml of {label.name}, which is not annotated in this case: left out"
            )
    return states, suspects


def build_manifest(
    cases: Iterable[Case],
    facts: Mapping[str, Mapping[str, str]],
    shards: Mapping[str, str],
    sources: Mapping[str, Sequence[str]],
    labels: Labels,
    min_ml: float,
) -> tuple[list[Entry], list[dict[str, str]]]:
    """Entries of the usable cases, sorted by name, and the suspects.

    Parameters
    ----------
    cases
        The case table.
    facts
        What the index recorded of each usable case; cases without facts are left out.
    shards
        The shard of each case.
    """
    entries, suspects = [], []
    for case in sorted(cases, key=lambda case: case.case):
        if case.case not in facts:
            continue
        fact = facts[case.case]
        states, doubts = class_states(
            case,
            parse_values(fact["label_values"]),
            float(fact["voxel_ml"]),
            sources,
            labels,
            min_ml,
        )
        suspects += [{"case": case.case, "file": case.label, "cause": doubt} for doubt in doubts]
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
            )
        )
    return entries, suspects


def same_images(
    cases: Iterable[Case], facts: Mapping[str, Mapping[str, str]]
) -> tuple[list[Problem], list[dict[str, str]]]:
    """Images and patients that occur more than once.

    Returns
    -------
    problems
        One for each training case whose image or patient is in another split too, and for each
        validation case that is also a test case: scores on it would be worthless.
    suspects
        Repeated images inside one split.
    """
    usable = sorted((case for case in cases if case.case in facts), key=lambda case: case.case)
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in usable:
        groups.setdefault(("image", facts[case.case]["image_hash"]), []).append(case)
        if case.patient:
            groups.setdefault(("patient", case.patient), []).append(case)
    problems: dict[str, Problem] = {}
    suspects = []
    for (kind, _), members in groups.items():
        for case in members:
            for other in members:
                if _rank(case) < _rank(other) and case.case not in problems:
                    cause = f"same {kind} as {other.case}, which is a {other.split} case"
                    cure = "remove one of the two from the case table"
                    problems[case.case] = Problem(case.case, case.image, cause, cure)
                elif kind == "image" and case.split == other.split and case.case < other.case:
                    cause = f"same image as {other.case}"
                    suspects.append({"case": case.case, "file": case.image, "cause": cause})
    return sorted(problems.values()), suspects


def _rank(case: Case) -> int:
    return ("train", "validation", "test").index(case.split)


def write_manifest(path: str | Path, entries: Iterable[Entry], labels: Labels) -> None:
    """Write the manifest: a line a case, a column a class."""
    rows = (
        {place: getattr(entry, place) for place in PLACES}
        | {label.name: entry.states[label.value] for label in labels.labels}
        | dict(entry.facts)
        for entry in entries
    )
    write_table(path, (*PLACES, *labels.names, *FACTS), rows)


def read_manifest(
    path: str | Path, labels: Labels, *, shard: str = "", split: str = ""
) -> list[Entry]:
    """Entries of a manifest, of one shard or split where asked."""
    return [
        Entry(
            **{place: row[place] for place in PLACES},
            facts={fact: row[fact] for fact in FACTS},
            states={label.value: row[label.name] for label in labels.labels},
        )
        for row in read_table(path)
        if (not shard or row["shard"] == shard) and (not split or row["split"] == split)
    ]
