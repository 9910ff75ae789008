"""Pseudo-labels: what the gate decided on their pieces, with pictures, and how stable they are."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from panorgan.cases.manifest import Entry
from panorgan.cases.selection import needs_tumour
from panorgan.config.labels import Labels
from panorgan.config.settings import Arm
from panorgan.fusing.components import CLEAN, IGNORE, KEEP
from panorgan.fusing.gate import DROP, Rule
from panorgan.io.formats import number, spread
from panorgan.io.frames import records
from panorgan.io.volumes import Volume
from panorgan.report import drawing
from panorgan.report.frames import DECISIONS
from panorgan.report.inputs import TEACHER, Gate
from panorgan.report.pictures import Gallery, Scans, piece_of
from panorgan.stages import LABEL

ACTION_TEXTS = {KEEP: "kept", CLEAN: "removed", IGNORE: "ignored"}


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
    """What a gate says in words, decisions by rule, pieces, and whether `arms` learnt by it."""
    who = "the teacher's" if gate.origin == TEACHER else f"the student's ({gate.origin})"
    return {
        "name": gate.name,
        "title": f"Round {gate.round}: {who} pseudo-labels",
        "text": gate.summary["text"],
        "used": gate.used(arms),
        "rows": decisions_by_rule(gate.decisions, labels),
        "dropped": [
            {"cases": count, "reason": text} for text, count in Counter(dropped(gate)).most_common()
        ],
        "pieces": draw_pieces(gate, labels, scans, gallery),
    }


def dropped(gate: Gate) -> list[str]:
    """Of each case that is not learnt from where the gate is obeyed, the text of the rule."""
    return [Rule(name).text for name in gate.cases.loc[gate.cases["status"] == DROP, "rule"]]


def decisions_by_rule(decisions: pd.DataFrame, labels: Labels) -> list[dict[str, Any]]:
    """Pieces by kind, action and rule: cases, pieces, ml; the largest volume first of each."""
    table = []
    for kind, action, found in _by_kind(decisions, ACTION_TEXTS, labels):
        rows = found.groupby("rule").agg(
            cases=("case", "nunique"), pieces=("case", "size"), ml=("ml", "sum")
        )
        # The groups are sorted by their rules.
        rows = rows.sort_values("ml", ascending=False, kind="stable").reset_index()
        own = {"kind": kind, "action": ACTION_TEXTS[action]}
        table += [own | {"reason": Rule(row.pop("rule")).text} | row for row in records(rows)]
    return table


def _by_kind(
    decisions: pd.DataFrame, actions: Iterable[str], labels: Labels
) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Pieces of tumours, then of organs, by action."""
    tumour = decisions["name"] == labels.tumour.name
    for kind, own in (("tumour", decisions[tumour]), ("organs", decisions[~tumour])):
        for action in actions:
            yield kind, action, own[own["action"] == action]


def telling_pieces(decisions: pd.DataFrame, labels: Labels) -> list[tuple[str, dict[str, Any]]]:
    """Pieces that show what the gate does, and what each is: first those of tumours.

    Of tumours and of organs the largest piece that is ignored, the largest that is removed, and of
    those kept the one in the middle by volume. Pieces that nothing is filled from do not count.
    """
    used = decisions[decisions["rule"] != Rule.UNUSED]
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
        return maps.tumour_value, maps.tumours.read_label(entry.case, LABEL)
    return value, maps.organs.read(entry)


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
