"""The gate of a whole run: tables of components in, decisions out."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from panorgan.cases.manifest import ABSENT, ANNOTATED, Entry, read_manifest
from panorgan.cases.selection import needs_tumour
from panorgan.config.labels import Labels, load_labels
from panorgan.config.settings import Gate
from panorgan.fusing.gate import (
    DROP,
    KEEP,
    MIN_CASES,
    CaseDecision,
    Component,
    Decision,
    Rule,
    count_actions,
    describe,
    doubts,
    false_positives,
    found_tumours,
    judge_cases,
    judge_organs,
    judge_tumours,
    thresholds,
    write_cases,
    write_decisions,
)
from panorgan.io.tables import read_table
from panorgan.io.writing import write_text
from panorgan.problems import Problem, Problems


def judge_components(
    manifests: Sequence[str],
    components: Sequence[str],
    cases: Sequence[str],
    known: Sequence[str],
    known_cases: Sequence[str],
    *,
    labels_file: str,
    settings: dict[str, Any],
    negatives: bool,
    decisions: str,
    case_table: str,
    summary: str,
    origin: str = "teacher",
) -> None:
    """Decide what of a round's pseudo-labels is trusted, and print what that comes to.

    Parameters
    ----------
    components, cases
        Of each shard the tables of pieces of pseudo-labels and of cases (with `instability`).
    known, known_cases
        The same of training cases in which tumours are known, by networks that did not train on
        them.
    settings
        The config's section `gate`.
    negatives
        Whether tumour-free cases train the teacher.
    decisions, case_table, summary
        The files to write; equal input gives equal bytes. The summary has ``origin``,
        ``negatives``, ``quantile``, ``thresholds``, ``measured_on`` (pieces behind each threshold
        that is a quantile), ``cases`` (``keep`` and ``drop``), ``pieces`` (those that fusion takes,
        of ``tumour`` and ``organ``: pieces and ml by action), ``tumour_free_cases`` (training cases
        without any tumour), ``false_positives``, ``found``, ``organs_not_judged`` and ``text``: the
        same in sentences, the first of them on false positives.
    origin
        Who made the pseudo-labels: ``teacher``, or the variant of a student.

    Raises
    ------
    Problems
        If a table has a case that is no training case, or too few tumours are found for quantiles.
    """
    gate, labels = Gate.model_validate(settings), load_labels(labels_file)
    entries = {entry.case: entry for entry in read_manifest(manifests, labels, split="train")}
    pieces = _pieces(components)
    tumours = [piece for piece in pieces if piece.value == labels.tumour.value]
    organs = [piece for piece in pieces if piece.value != labels.tumour.value]
    judged = [piece for piece in _pieces(known) if piece.value == labels.tumour.value]
    rows, known_rows = _finished(cases), _finished(known_cases)
    _only_training([*pieces, *judged], [*rows, *known_rows], entries)

    limits = thresholds(gate, judged)
    pairs = [(right.value, left.value) for right, left in labels.pairs]
    organ_decisions = judge_organs(organs, gate.organs, pairs)
    used = _used(entries.values(), labels)
    final = [_if_used(one, used) for one in (*judge_tumours(tumours, limits), *organ_decisions)]
    taken = [one for one in final if (one.case, one.value) in used]
    changes = {row["case"]: _instability(row) for row in rows}
    dropped = judge_cases(changes, organ_decisions, gate)
    scores = doubts(changes, taken, tumours, labels.tumour.value)
    verdicts = judge_tumours(judged, limits)
    seen = [entries[row["case"]] for row in known_rows]
    result = {
        "origin": origin,
        "negatives": negatives,
        "quantile": gate.quantile,
        "thresholds": {key: value for key, value in asdict(limits).items() if key != "measured"},
        "measured_on": dict(limits.measured),
        "cases": {KEEP: len(changes) - len(dropped), DROP: len(dropped)},
        "pieces": {
            "tumour": count_actions(one for one in taken if one.value == labels.tumour.value),
            "organ": count_actions(one for one in taken if one.value != labels.tumour.value),
        },
        "tumour_free_cases": sum(_is_free(entry, labels) for entry in entries.values()),
        "false_positives": false_positives(
            judged, verdicts, [entry.case for entry in seen if _is_free(entry, labels)]
        ),
        "found": found_tumours(
            judged,
            verdicts,
            {
                entry.case: entry.volume_ml(labels.tumour.value)
                for entry in seen
                if entry.states[labels.tumour.value] == ANNOTATED
            },
        ),
        "organs_not_judged": _too_rare(organs, labels),
    }
    write_decisions(decisions, final)
    write_cases(
        case_table,
        (
            CaseDecision(
                case,
                DROP if case in dropped else KEEP,
                *dropped.get(case, (Rule.NONE, "")),
                change,
                round(scores[case][0], 3),
                scores[case][1],
            )
            for case, change in changes.items()
        ),
    )
    result["text"] = describe(result)
    write_text(summary, json.dumps(result, indent=2, sort_keys=True) + "\n")
    print("\n".join(result["text"]))


def _pieces(tables: Sequence[str]) -> list[Component]:
    return [Component.from_row(row) for table in tables for row in read_table(table)]


def _finished(tables: Sequence[str]) -> list[dict[str, str]]:
    rows = (row for table in tables for row in read_table(table))
    return [row for row in rows if row["status"] == "ok"]


def _instability(row: dict[str, str]) -> float | None:
    return float(row["instability"]) if row["instability"] else None


def _only_training(
    pieces: Iterable[Component], rows: Iterable[dict[str, str]], training: dict[str, Entry]
) -> None:
    """No threshold, and nothing that is called usual, may come from a validation or test case."""
    named = {piece.case for piece in pieces} | {row["case"] for row in rows}
    cure = "remove this gate's folder and run the same command again"
    problems = [
        Problem(case, "", "is no training case, but in the gate's tables", cure)
        for case in named - training.keys()
    ]
    if problems:
        raise Problems(problems)


def _used(entries: Iterable[Entry], labels: Labels) -> set[tuple[str, int]]:
    """Classes of cases that are filled with pseudo-labels."""
    used = set()
    for entry in entries:
        used |= {(entry.case, value) for value in entry.unknown}
        if needs_tumour(entry, labels):
            used.add((entry.case, labels.tumour.value))
    return used


def _if_used(one: Decision, used: set[tuple[str, int]]) -> Decision:
    """The decision, but nothing is done with a class that fusion does not take from pseudo-labels.

    Ignoring a false liver beside an annotated one would only lose what annotators said there.
    """
    if (one.case, one.value) in used:
        return one
    reason = f"not used: annotators looked for {one.name} in this case"
    return replace(one, action=KEEP, rule=Rule.UNUSED, reason=reason)


def _is_free(entry: Entry, labels: Labels) -> bool:
    """Whether annotators looked for tumours everywhere and found none."""
    everywhere = entry.scope is None
    return entry.states[labels.tumour.value] == ABSENT and everywhere


def _too_rare(organs: Iterable[Component], labels: Labels) -> list[str]:
    """Names of the organs whose size and place too few cases show."""
    found = {(piece.case, piece.value) for piece in organs}
    counts = {value: 0 for _, value in sorted(found, key=lambda place: place[1])}
    for _, value in found:
        counts[value] += 1
    return [labels.by_value(value).name for value, count in counts.items() if count < MIN_CASES]
