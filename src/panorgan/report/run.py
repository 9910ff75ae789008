"""The run at a glance: ten lines of facts, and what was left out, changed or repaired."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from panorgan.cases.manifest import Entry
from panorgan.cases.table import EVALUATED
from panorgan.config.registry import CASES, MARGINAL, NONE
from panorgan.config.settings import load_config, students, teachers, trained_students
from panorgan.fusing.components import CLEAN, IGNORE
from panorgan.fusing.gate import Rule
from panorgan.io.formats import duration
from panorgan.io.tables import read_table
from panorgan.report.gates import ACTION_TEXTS, dropped
from panorgan.report.inputs import Gate, Student, read_json, read_rows
from panorgan.run.store import file_checksum
from panorgan.scoring.metrics import NOT_SCORED

ORGANS_FROM = {
    CASES: "those of the case table",
    NONE: "none: what is unknown is learnt as background",
    MARGINAL: "by a student that learnt from the partial labels with the marginal loss",
}
MOST_REASONS = 3
"""Told at a glance; the list that is linked has all."""


def run_facts(
    config: Mapping[str, Any], files: Mapping[str, Any], entries: Sequence[Entry]
) -> list[tuple[str, str]]:
    """The run in lines: what it is, and a text."""
    splits = Counter(entry.split for entry in entries)
    sources = len({entry.source for entry in entries})
    cards = model_cards(files)
    versions = {name: text for card in cards for name, text in card.get("versions", {}).items()}
    hours = [card["hours"] for card in cards if "hours" in card]
    devices = {f"{c['device']} ({c['precision']})" for c in cards if "device" in c}
    organs = config["pseudo_labels"]["organs"]
    return [
        (
            "Cases",
            f"{splits['train']} training, {splits['validation']} validation, {splits['test']} "
            f"test, from {sources} sources",
        ),
        ("Teacher", _recipe_text(config["teacher"])),
        ("Student", _recipe_text(config["student"])),
        ("Labels learnt", f"{', '.join(config['student']['variants'])}{_rounds_text(config)}"),
        ("Organ pseudo-labels", ORGANS_FROM.get(organs, organs)),
        (
            "Seeds",
            f"teacher {config['teacher']['seed']}, "
            f"student {', '.join(map(str, config['student']['seeds']))}",
        ),
        (
            "Training",
            f"{training_time(config, hours)}, on {'; '.join(sorted(devices)) or 'not recorded'}",
        ),
        ("Scored by the rules", config["evaluation"]["profile"]),
        ("Versions", ", ".join(f"{name} {text}" for name, text in versions.items())),
    ]


def model_cards(files: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cards of the teacher and of the students."""
    return [
        read_json(Path(model) / "card.json") for model in (files["teacher"], *files["students"])
    ]


def _rounds_text(config: Mapping[str, Any]) -> str:
    rounds, folds = config["rounds"], config["folds"]
    if rounds == 1:
        return ""
    who = "one network" if folds == 1 else f"{folds} networks, each for the cases it did not see"
    return f"; {rounds} rounds, cases relabelled by {who}"


def training_time(config: Mapping[str, Any], hours: Sequence[float]) -> str:
    """The sum of some hours, and how many of the run's networks it leaves out."""
    if not hours:
        return "time not recorded"
    checked = load_config(config)
    others = {*trained_students(checked)} - {*students(checked)}
    more = len(others) + len(teachers(checked)) - 1
    helpers = f"without {more} networks that only make or judge pseudo-labels"
    return f"{duration(sum(hours))} {helpers if more else 'in all'}"


def _recipe_text(recipe: Mapping[str, Any]) -> str:
    training, optimizer = recipe["training"], recipe["training"]["optimizer"]
    return (
        f"{recipe['network']['name']}, {_times(recipe['patch_size'])} voxels of "
        f"{_times(recipe['spacing_mm'])} mm, batch size {recipe['batch_size']}; "
        f"{training['epochs']} epochs of {training['iterations']} iterations, "
        f"{optimizer['name']}, rate {optimizer['learning_rate']:g}"
    )


def _times(numbers: Iterable[float]) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(f"{number:g}" for number in numbers)


def run_checksums(files: Mapping[str, Any], found: Sequence[Student]) -> list[tuple[str, str]]:
    """Checksums that tell two runs apart: of the manifest and of every model's weights."""
    models = [("teacher's weights", files["teacher_table"])]
    models += [(f"student's weights, {student.title}", student.table) for student in found]
    return [
        ("manifest.tsv", file_checksum(files["manifest"])),
        *((name, read_table(table)[0]["checksum"]) for name, table in models),
    ]


def left_out(
    files: Mapping[str, Any],
    entries: Iterable[Entry],
    main: Student,
    gates: Iterable[Gate],
    specks: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """What was excluded, skipped, changed or repaired: what, how many, why, where the list is.

    Every kind has a row, those of which there are none too; `why` has the most frequent reasons.
    """
    selection = [row for row in read_rows(files["selection"]) if row["status"] != "ok"]
    without = [entry for entry in entries if entry.split in EVALUATED and not entry.label]
    unknown = sum(int((main.scores[split]["status"] == NOT_SCORED).sum()) for split in EVALUATED)
    rows = [
        _row("Cases excluded", "#excluded", _column(files["excluded"], "cause")),
        _row("Cases with something suspicious", "#suspects", _suspects(files)),
        _row("Corrections by hand", "#corrected", _column(files["corrected"], "what")),
        _row("Headers repaired, in copies", "#repaired", _repaired(files)),
        _row(
            "Training cases that the teacher does not learn from",
            "#teacher",
            [row["reason"] for row in selection],
        ),
        _specks_row(specks),
        *(row for gate in gates if gate.used([main.arm]) for row in _gate_rows(gate)),
        _row(
            "Validation and test cases without a label",
            "#results",
            ["predicted, not scored"] * len(without),
        ),
        _row(
            "Classes of labelled cases that are not scored",
            "#results",
            ["unknown in the case: in no mean"] * unknown,
        ),
    ]
    return rows


def _column(table: str, name: str) -> list[str]:
    return [row[name] for row in read_table(table)]


def _suspects(files: Mapping[str, Any]) -> list[str]:
    return _column(files["suspects"], "cause")


def _repaired(files: Mapping[str, Any]) -> list[str]:
    return ["axes were not perpendicular, or placed no voxel"] * len(read_table(files["repaired"]))


def _specks_row(specks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "what": "Voxels of classes that are not annotated in their case, set to background",
        "count": sum(row["voxels"] for row in specks),
        "why": "; ".join(f"{row['name']} ({row['voxels']})" for row in specks[:MOST_REASONS]),
        "link": "#specks",
    }


def _gate_rows(gate: Gate) -> list[dict[str, Any]]:
    """Pieces of pseudo-labels that are not learnt, and cases that are not."""
    link, of = f"#gate-{gate.name}", f", round {gate.round}" if gate.round > 1 else ""
    used = gate.decisions[gate.decisions["rule"] != Rule.UNUSED]
    return [
        *(
            _row(
                f"Pieces of pseudo-labels {ACTION_TEXTS[action]} by the gate{of}",
                link,
                [Rule(name).text for name in used.loc[used["action"] == action, "rule"]],
            )
            for action in (CLEAN, IGNORE)
        ),
        _row(f"Cases dropped by the gate{of}", link, dropped(gate)),
    ]


def _row(what: str, link: str, reasons: Sequence[str]) -> dict[str, Any]:
    # Causes that differ in numbers only belong together.
    found = Counter(re.sub(r"[\d.,]*\d", "…", reason) for reason in reasons).most_common()
    why = [f"{text} ({count})" if len(found) > 1 else text for text, count in found]
    more = len(why) - MOST_REASONS
    why = why[:MOST_REASONS] + ([f"{more} other reasons"] if more > 0 else [])
    return {"what": what, "count": len(reasons), "why": "; ".join(why), "link": link}
