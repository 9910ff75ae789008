"""Pseudo-labels: what the gate decided on their pieces, with pictures, and how stable they are."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from panorgan import drawing
from panorgan.components import CLEAN, IGNORE, KEEP
from panorgan.config import Arm
from panorgan.gate import DROP
from panorgan.labels import Labels
from panorgan.manifest import Entry
from panorgan.pages import number, spread
from panorgan.report.inputs import TEACHER, Gate
from panorgan.report.pictures import Gallery, Scans, piece_of
from panorgan.selection import needs_tumour
from panorgan.stages import LABEL
from panorgan.volumes import Volume, read_label

ACTION_TEXTS = {KEEP: "kept", CLEAN: "removed", IGNORE: "ignored"}
NOT_USED = "not used"
"""How the reason begins for a piece of a class that annotators looked for in the case."""
Decisions = Iterable[Mapping[str, str]]


def describe_pseudo_tumours(
    gates: Iterable[Gate], entries: Iterable[Entry], labels: Labels
) -> dict[str, Any]:
    """In how many training cases the tumour is unknown, and in how many the teacher saw one."""
    unknown = {entry.case for entry in entries if needs_tumour(entry, labels)}
    volumes: Counter[str] = Counter()
    for gate in gates:
        if gate.origin == TEACHER:
            for row in gate.decisions:
                if row["name"] == labels.tumour.name and row["case"] in unknown:
                    volumes[row["case"]] += float(row["ml"])
    return {"unknown": len(unknown), "found": len(volumes), "ml": spread(volumes.values())}


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
    return [row["reason"] for row in gate.cases if row["status"] == DROP]


def decisions_by_reason(decisions: Decisions, labels: Labels) -> list[dict[str, Any]]:
    """Pieces by kind, action and reason: cases, pieces, ml; the largest volume first of each."""
    groups: dict[tuple[bool, str], dict[str, list[Mapping[str, str]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in decisions:
        kind = row["name"] != labels.tumour.name, row["action"]
        groups[kind][row["reason"]].append(row)
    table = []
    order = list(ACTION_TEXTS)
    for (organ, action), reasons in sorted(
        groups.items(), key=lambda item: (item[0][0], order.index(item[0][1]))
    ):
        rows = []
        for text, alike in _alike(reasons, labels):
            found = [row for reason in alike for row in reasons[reason]]
            rows.append(
                {
                    "kind": "organs" if organ else "tumour",
                    "action": ACTION_TEXTS[action],
                    "reason": text,
                    "cases": len({row["case"] for row in found}),
                    "pieces": len(found),
                    "ml": sum(float(row["ml"]) for row in found),
                }
            )
        table += sorted(rows, key=lambda row: (-row["ml"], row["reason"]))
    return table


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


def telling_pieces(decisions: Decisions, labels: Labels) -> list[tuple[str, Mapping[str, str]]]:
    """Pieces that show what the gate does, and what each is: first those of tumours.

    Of tumours and of organs the largest piece that is ignored, the largest that is removed, and of
    those kept the one in the middle by volume. Pieces that nothing is filled from do not count.
    """
    groups: dict[tuple[bool, str], list[Mapping[str, str]]] = defaultdict(list)
    for row in decisions:
        if not row["reason"].startswith(NOT_USED):
            groups[row["name"] != labels.tumour.name, row["action"]].append(row)
    chosen = []
    for organ in (False, True):
        for action in (IGNORE, CLEAN, KEEP):
            pieces = sorted(
                groups[organ, action],
                key=lambda row: (-float(row["ml"]), row["case"], int(row["component"])),
            )
            if pieces:
                what = "organ" if organ else "tumour"
                largest = action != KEEP
                title = f"{ACTION_TEXTS[action]} {what}".capitalize()
                title += ", the largest" if largest else ", one of middle size"
                chosen.append((title, pieces[0 if largest else len(pieces) // 2]))
    return chosen


def draw_pieces(gate: Gate, labels: Labels, scans: Scans, gallery: Gallery) -> list[dict[str, Any]]:
    """The pictures of `telling_pieces`, those for which there is room."""
    drawn = []
    for title, row in telling_pieces(gate.decisions, labels):
        label = labels.by_value(int(row["value"]))
        about = f"{label.title}, {number(float(row['ml']), 2)} ml"

        def draw(row: Mapping[str, str] = row, about: str = about) -> bytes:
            scan = scans[row["case"]]
            value, volume = judged_map(gate, scans.entry(row["case"]), int(row["value"]), labels)
            mask = piece_of(volume, value, int(row["component"]))
            title = f"{row['case']}: {about}"
            colour = labels.by_value(int(row["value"])).colour
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
        changes = [float(row["instability"]) for row in gate.cases if row["instability"]]
        if changes:
            rows.append(
                {
                    "round": gate.round,
                    "origin": gate.origin,
                    "cases": len(changes),
                    "instability": spread(changes, 3),
                }
            )
    return {"rows": rows, "folds": config["folds"]}
