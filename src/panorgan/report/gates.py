"""Pseudo-labels: what the gate decided on their pieces, with pictures, and how stable they are."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from panorgan.cases.manifest import Entry
from panorgan.cases.selection import needs_tumour
from panorgan.config.labels import Labels
from panorgan.config.settings import Arm
from panorgan.fusing.components import CLEAN, IGNORE, KEEP
from panorgan.fusing.gate import DROP
from panorgan.io.formats import number, spread
from panorgan.io.frames import records
from panorgan.io.volumes import Volume, read_label
from panorgan.report import drawing
from panorgan.report.frames import DECISIONS
from panorgan.report.inputs import TEACHER, Gate
from panorgan.report.pictures import Gallery, Scans, piece_of
from panorgan.stages import LABEL

ACTION_TEXTS = {KEEP: "kept", CLEAN: "removed", IGNORE: "ignored"}
NOT_USED = "not used"
"""How the reason begins for a piece of a class that annotators looked for in the case."""


def describe_pseudo_tumours(
    gates: Iterable[Gate], entries: Iterable[Entry], labels: Labels
) -> dict[str, Any]:
    """In how many training cases the tumour is unknown, and in how many the teacher saw one."""
    unknown = {entry.case for entry in entries if needs_tumour(entry, labels)}
    teacher = [gate.decisions for gate in gates if gate.origin == TEACHER]
    found = pd.concat([DECISIONS.frame(), *teacher])
    found = found[(found["name"] == labels.tumour.name) & found["case"].isin(unknown)]
    volumes = found.groupby("case")["ml"].sum()
    return {"unknown": len(unknown), "found": len(volumes), "ml": spread(volumes)}


def describe_gate(
    gate: Gate, arms: Iterable[Arm], labels: Labels, scans: Scans, gallery: Gallery
) -> dict[str, Any]:
    """What a gate says in words, decisions by reason, pieces, and whether `arms` learnt by it."""
    who = "the teacher's" if gate.origin == TEACHER else f"the student's ({gate.origin})"
    return {
        "name": gate.name,
        "title": f"Round {gate.round}: {who} pseudo-labels",
        "text": gate.summary["text"],
        "used": gate.used(arms),
        "rows": decisions_by_reason(gate.decisions, labels),
        "dropped": [
            {"cases": count, "reason": text}
            for text, count in by_template(Counter(dropped(gate)), labels)
        ],
        "pieces": draw_pieces(gate, labels, scans, gallery),
    }


def dropped(gate: Gate) -> list[str]:
    """Of each case that is not learnt from where the gate is obeyed, why."""
    return gate.cases.loc[gate.cases["status"] == DROP, "reason"].tolist()


def decisions_by_reason(decisions: pd.DataFrame, labels: Labels) -> list[dict[str, Any]]:
    """Pieces by kind, action and reason: cases, pieces, ml; the largest volume first of each."""
    table = []
    for kind, action, found in _by_kind(decisions, ACTION_TEXTS, labels):
        alike = _alike(found["reason"].unique(), labels)
        texts = {reason: text for text, reasons in alike for reason in reasons}
        rows = found.groupby(found["reason"].map(texts)).agg(
            cases=("case", "nunique"), pieces=("case", "size"), ml=("ml", "sum")
        )
        # The groups are sorted by their reasons.
        rows = rows.sort_values("ml", ascending=False, kind="stable").reset_index()
        own = {"kind": kind, "action": ACTION_TEXTS[action]}
        table += [own | row for row in records(rows)]
    return table


def _by_kind(
    decisions: pd.DataFrame, actions: Iterable[str], labels: Labels
) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Pieces of tumours, then of organs, by action."""
    tumour = decisions["name"] == labels.tumour.name
    for kind, own in (("tumour", decisions[tumour]), ("organs", decisions[~tumour])):
        for action in actions:
            yield kind, action, own[own["action"] == action]


def by_template(counts: Mapping[str, int], labels: Labels) -> list[tuple[str, int]]:
    """Counts of texts that differ in numbers and classes only, summed; the most frequent first."""
    found = [(text, sum(counts[one] for one in alike)) for text, alike in _alike(counts, labels)]
    return sorted(found, key=lambda item: (-item[1], item[0]))


def _alike(reasons: Iterable[str], labels: Labels) -> Iterator[tuple[str, list[str]]]:
    """Reasons that differ in numbers and names of classes only, and what all of a group say.

    A threshold is the same in all of a group and stays in its text; what was measured becomes an
    ellipsis.
    """
    names = "|".join(sorted(map(re.escape, labels.names), key=len, reverse=True))
    varying = re.compile(rf"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|\b(?:{names})\b)")
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for reason in sorted(reasons):
        groups[tuple(varying.split(reason)[::2])].append(reason)
    for alike in groups.values():
        parts = zip(*(varying.split(reason) for reason in alike), strict=True)
        yield "".join(part[0] if len({*part}) == 1 else "…" for part in parts), alike


def telling_pieces(decisions: pd.DataFrame, labels: Labels) -> list[tuple[str, dict[str, Any]]]:
    """Pieces that show what the gate does, and what each is: first those of tumours.

    Of tumours and of organs the largest piece that is ignored, the largest that is removed, and of
    those kept the one in the middle by volume. Pieces that nothing is filled from do not count.
    """
    used = decisions[~decisions["reason"].str.startswith(NOT_USED)]
    used = used.sort_values(["ml", "case", "component"], ascending=[False, True, True])
    chosen = []
    for kind, action, found in _by_kind(used, (IGNORE, CLEAN, KEEP), labels):
        if len(found):
            largest = action != KEEP
            title = f"{ACTION_TEXTS[action]} {kind.removesuffix('s')}".capitalize()
            title += ", the largest" if largest else ", one of middle size"
            at = 0 if largest else len(found) // 2
            chosen += [(title, row) for row in records(found.iloc[[at]])]
    return chosen


def draw_pieces(gate: Gate, labels: Labels, scans: Scans, gallery: Gallery) -> list[dict[str, Any]]:
    """The pictures of `telling_pieces`, those for which there is room."""
    drawn = []
    for title, row in telling_pieces(gate.decisions, labels):
        label = labels.by_value(row["value"])
        about = f"{label.title}, {number(float(row['ml']), 2)} ml"

        def draw(row: Mapping[str, str] = row, about: str = about) -> bytes:
            scan = scans[row["case"]]
            value, volume = judged_map(gate, scans.entry(row["case"]), row["value"], labels)
            mask = piece_of(volume, value, row["component"])
            title = f"{row['case']}: {about}"
            colour = labels.by_value(row["value"]).colour
            return drawing.draw_piece(scan.image, scan.spacing, mask, title, colour=colour)

        alt = f"{title}: {about}, training case {row['case']}, outlined on CT"
        if picture := gallery.add("pieces of pseudo-labels", draw, alt):
            drawn.append(
                {
                    "title": title,
                    "case": row["case"],
                    "about": about,
                    "reason": row["reason"],
                    "picture": picture,
                }
            )
    return drawn


def judged_map(gate: Gate, entry: Entry, value: int, labels: Labels) -> tuple[int, Volume]:
    """The pseudo-label in which the gate judged a class of a case, and its value there."""
    maps = gate.pseudo_labels
    if value == labels.tumour.value:
        return maps.tumour_value, read_label(maps.tumours.file(entry.case, LABEL))
    if maps.organs is None:
        return value, entry.read_organs()
    return value, read_label(maps.organs.file(entry.case, LABEL))


def describe_rounds(config: Mapping[str, Any], gates: Iterable[Gate]) -> dict[str, Any] | None:
    """How much the pseudo-labels changed from round to round; None with one round."""
    if config["rounds"] == 1:
        return None
    rows = []
    for gate in gates:
        changes = gate.cases["instability"].dropna()
        if len(changes):
            rows.append(
                {
                    "round": gate.round,
                    "origin": gate.origin,
                    "cases": len(changes),
                    "instability": spread(changes, 3),
                }
            )
    return {"rows": rows, "folds": config["folds"]}
