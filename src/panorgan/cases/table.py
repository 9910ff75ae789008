"""The case table: what a user says about each case, and how cases are dealt into shards."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from hashlib import blake2b
from pathlib import Path

from panorgan.cases.folders import LONGEST_NAME
from panorgan.config.labels import Labels
from panorgan.io.tables import read_table, why_no_text, write_table
from panorgan.problems import Problem, Problems

SCOPE = "tumour_scope"
COLUMNS = ("case", "image", "label", "split", "source", "patient", "annotated", "organs", SCOPE)
REQUIRED = ("case", "image", "label", "split", "source")
SPLITS = ("train", "validation", "test")
EVALUATED = SPLITS[1:]
"""Those that are predicted and scored."""
KINDS = ("labelled", "unlabelled", "validation", "test")
"""Of shards: training cases without a label teach no teacher, so they are apart."""
ENDINGS = ("_seg", "_source", "_image", "_label", "_organs", "_automatic")
"""What names of files add to the case's name: no name of a case may end so."""
BLOCK = 16
"""So many cases with consecutive numbers are in one shard."""
NUMBER = re.compile(r"[0-9]+")
CASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Case:
    """One line of the case table, with paths that can be opened from the working directory.

    `label` and `organs` (the organ pseudo-label) are empty where there is none; `annotated` is
    the text as typed: class names or values, `all`, `none`, or empty for the source's rule;
    `tumour_scope` likewise lists the organs in which annotators looked for tumours.
    """

    case: str
    image: str
    label: str
    split: str
    source: str
    patient: str = ""
    annotated: str = ""
    organs: str = ""
    tumour_scope: str = ""

    @property
    def line(self) -> str:
        """All that the table says of the case."""
        return "\t".join(vars(self).values())

    @property
    def files(self) -> tuple[str, ...]:
        """The volumes that the case has."""
        return tuple(path for path in (self.image, self.label, self.organs) if path)


def read_cases(table: str | Path, labels: Labels) -> list[Case]:
    """The cases of a table, sorted by name; relative paths start at the table's folder.

    Raises
    ------
    Problems
        Every fault of the table at once: missing table or columns, bad or repeated names,
        unknown splits or class names, no image.
    """
    if not Path(table).exists():
        cure = "write one with `panorgan init FOLDER -o TABLE`, or set `cases` in the config"
        raise Problems.one("there is no such case table", cure, file=table)
    rows = read_table(table)
    _check_header(table, rows)
    folder = os.path.dirname(table)
    problems: list[Problem] = []
    cases = []
    for row in rows:
        row = {key: value.strip() for key, value in row.items()}
        problems += [Problem(row["case"], str(table), *fault) for fault in _faults(row, labels)]
        for column in ("image", "label", "organs"):
            if row.get(column):
                row[column] = os.path.normpath(os.path.join(folder, row[column]))
        cases.append(Case(**row))
    for name, count in Counter(case.case for case in cases).items():
        if count > 1:
            cause = f"the name stands on {count} lines"
            problems.append(Problem(name, str(table), cause, "give each case a name of its own"))
    if problems:
        raise Problems(problems)
    return sorted(cases, key=lambda case: case.case)


def check_names(named: Iterable[str], cases: Collection[str], case: str, file: str) -> None:
    """Problems if some names are no case's, with the nearest that is one.

    Parameters
    ----------
    named
        The names.
    cases
        Those of the case table.
    case, file
        Where the names stand; without `case` each problem is that of the name.
    """
    problems = []
    for name in sorted(set(named) - set(cases)):
        near = get_close_matches(name, cases, n=1)
        cure = f"did you mean '{near[0]}'?" if near else "remove it"
        problems.append(Problem(case or name, file, f"'{name}' is no case of the case table", cure))
    if problems:
        raise Problems(problems)


def _check_header(table: str | Path, rows: Sequence[dict[str, str]]) -> None:
    if not rows:
        raise Problems.one("has no cases", "add a line for each case", file=table)
    missing = [column for column in REQUIRED if column not in rows[0]]
    if missing:
        cause = f"lacks the column {', '.join(missing)}"
        cure = f"the header is: {' '.join(COLUMNS)}, separated by tabs"
        raise Problems.one(cause, cure, file=table)
    for column in rows[0]:
        if column not in COLUMNS:
            near = get_close_matches(column, COLUMNS, n=1)
            cure = f"did you mean '{near[0]}'?" if near else "remove it"
            raise Problems.one(f"has an unknown column '{column}'", cure, file=table)


def _faults(row: dict[str, str], labels: Labels) -> Iterable[tuple[str, str]]:
    if not CASE_NAME.fullmatch(row["case"]):
        yield f"'{row['case']}' is no case name", "use letters, digits, '.', '_' and '-'"
    if len(row["case"]) > LONGEST_NAME:
        yield f"the case's name is longer than {LONGEST_NAME} characters", "give it a shorter one"
    if row["case"].endswith(ENDINGS):
        yield f"a case's name must not end in {', '.join(ENDINGS)}", "files of two cases would mix"
    if not row["image"]:
        yield "has no image", "name its CT in the column image"
    if row["split"] not in SPLITS:
        yield f"split is '{row['split']}'", f"it must be one of {', '.join(SPLITS)}"
    if not row["source"]:
        yield "has no source", "name its data set in the column source"
    if row["split"] == "validation" and not row["label"]:
        yield "is a validation case without a label", "add its label or use the split test"
    for column in ("source", "patient"):
        if fault := why_no_text(row.get(column, "")):
            yield f"its {column} {fault}", f"write another name in the column {column}"
    annotated, scope = row.get("annotated", ""), row.get(SCOPE, "")
    if not annotated and not scope:
        return
    try:
        looked_for = labels.parse(annotated)
    except ValueError as error:
        yield f"annotated: {error}", "mend the column annotated"
    else:
        if scope and (not row["label"] or (annotated and labels.tumour not in looked_for)):
            cure = f"empty its {SCOPE}, or add {labels.tumour_name} to its annotated classes"
            yield f"has a {SCOPE}, but {labels.tumour_name} is not annotated in it", cure
    try:
        labels.parse_scope(scope)
    except ValueError as error:
        yield f"{SCOPE}: {error}", f"mend the column {SCOPE}"


def write_cases(table: str | Path, cases: Iterable[Case]) -> None:
    """Write a case table; paths become relative to its folder.

    The column `tumour_scope` is left out where no case has one.
    """
    cases = list(cases)
    columns = COLUMNS if any(case.tumour_scope for case in cases) else COLUMNS[:-1]
    folder = Path(table).absolute().parent

    def row(case: Case) -> dict[str, str]:
        values = {column: getattr(case, column) for column in columns}
        for column in ("image", "label", "organs"):
            if values[column]:
                values[column] = os.path.relpath(Path(values[column]).absolute(), folder)
        return values

    write_table(table, columns, map(row, cases))


def shard_names(kind: str, count: int) -> list[str]:
    """Names of the shards of a kind, e.g. ``labelled-00`` … ``labelled-35``."""
    return [f"{kind}-{index:02d}" for index in range(count)]


def shard_of(case: Case, counts: Mapping[str, int]) -> str:
    """The shard of a case: by its name alone, so that a new case moves no other.

    Cases whose names differ only in their number are in the order of their numbers: `BLOCK` of them
    in one shard, the next ones in the next shard. So cases that are numbered on from others are in
    few shards, and shards are even. Which shard the first ones are in follows from the rest of the
    name.

    A shard is of one of `KINDS`, of each of which `counts` has the number of shards.
    """
    kind = case.split
    if kind == "train":
        kind = "labelled" if case.label else "unlabelled"
    name = case.case
    # Its last number, but rather a patient's than that of a scan or version of a single digit.
    found = max(NUMBER.finditer(name), key=lambda one: (len(one[0]) > 1, one.start()), default=None)
    block = 0
    if found:
        name = f"{name[: found.start()]}#{name[found.end() :]}"
        block = int(found[0]) // BLOCK
    return f"{kind}-{(_hash(name) + block) % counts[kind]:02d}"


@cache
def _hash(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")


def fold_of(group: str, folds: int) -> int:
    """The fold, from 1 to `folds`, of a case or of a patient: a stable hash of the name.

    Its salt makes it independent of `shard_of`, so that a shard has cases of every fold.
    """
    digest = blake2b(group.encode(), digest_size=8, salt=b"fold").digest()
    return 1 + int.from_bytes(digest, "big") % folds
