"""The end of a run: the report of one HTML file, the picture and the summary for the terminal."""

import csv
import json
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from panorgan import drawing, plots
from panorgan.config import MARGINAL, Arm, load_config, students, teachers, trained_students
from panorgan.labels import Labels, load_labels
from panorgan.manifest import Entry, read_manifest
from panorgan.metrics import NOT_SCORED, Row, read_scores
from panorgan.pages import cut, describe_data, duration, percent, render, spread
from panorgan.selection import needs_tumour
from panorgan.store import ShardReader, file_checksum
from panorgan.tables import read_table, replacing, write_text
from panorgan.volumes import Volume, canonical_spacing, read_label, to_canonical

LABEL, SOURCE, AUTOMATIC = ".nii.gz", "_source.nii.gz", "_automatic.nii.gz"
SOURCES = {"ground_truth": 1, "tumour_pseudo": 2, "organ_pseudo": 3, "ignored": 4}
"""Names in tables of composition, values in source maps."""

MOST_CONFLICTS = 15
MOST_DOUBTFUL, MOST_DRAWN = 10, 3
TUMOUR_WEIGHT = 3.0
"""A tumour, or what is ignored, attracts the slices of a picture as much as this many organs."""

SCORED_SPLITS = ("validation", "test")
SYNTHETIC = "synthetic data, not for clinical use"
FREE_NOTE = "a tumour-free case counts 100 for the tumour if none is predicted, else 0"
STATUS_TEXTS = {
    "scored": "in both",
    "both_empty": "in neither",
    "missed": "missed",
    "false_positive": "false positive",
    "not_scored": "unknown",
}
LABEL_TEXTS = {
    "partial": "Partial labels",
    "stage1": "Stage 1: partial labels + tumour pseudo-labels",
    "stage2": "Stage 2: + organ pseudo-labels",
    "gated": "Gated: without what the gate does not trust",
    "noise": "Noise: shuffled organ pseudo-labels",
}
LATER_TEXTS = LABEL_TEXTS | {"stage2": "Stage 2: partial labels + pseudo-labels"}
"""After the first round, when both kinds of pseudo-labels are put in at once."""
INPUT_TEXTS = {
    "partial": "partial label",
    "tumour": "tumour pseudo-label",
    "organs": "organ pseudo-label",
}
TEACHER, GATED = "teacher", "gated"
ACTION_TEXTS = {"keep": "kept", "clean": "removed", "ignore": "ignored"}
PUBLISHED = (
    ("Reference method (team zzm3zz), FLARE23 validation set", (88.53, 30.47, 84.38, 89.28)),
    ("Winner of FLARE23, hidden test set", (92.3, 64.9, None, None)),
)
"""What, and in percent: DSC of organs and tumour, DSC and NSD of all; as their authors say."""


@dataclass(frozen=True)
class Student:
    """One trained student and what was measured of it."""

    arm: Arm
    model: Path
    table: Path
    scores: Mapping[str, list[Row]]
    summaries: Mapping[str, dict[str, Any]]
    predictions: ShardReader
    efficiency: list[dict[str, str]]

    @property
    def title(self) -> str:
        return self.arm.title


@dataclass(frozen=True)
class Gate:
    """What a round's gate decided on the pseudo-labels of `origin`: the teacher, or a variant."""

    round: int
    origin: str
    summary: Mapping[str, Any]
    cases: list[dict[str, str]]
    decisions: list[dict[str, str]]


@dataclass(frozen=True)
class Fusion:
    """The tables of one round's fused labels, a path a shard."""

    round: int
    labels: str
    composition: list[str]
    conflicts: list[str]
    reader: ShardReader

    @property
    def title(self) -> str:
        if self.round == 1:
            return LABEL_TEXTS[self.labels]
        return f"Round {self.round}, {LATER_TEXTS[self.labels].lower()}"


def write_report(
    config: Mapping[str, Any],
    files: Mapping[str, Any],
    *,
    report: str,
    picture: str,
    summary: str,
) -> None:
    """Write a run's report, its one picture and its summary.

    Parameters
    ----------
    config
        The config that the run was made with.
    files
        What the rule reads, by name. The cases: manifest, excluded, suspects, corrected,
        repaired. The teacher: selection, teacher, teacher_table, teacher_scores, teacher_summary.
        Of every round's gates, in ``round-R/gate/ORIGIN``: decisions, gate_cases, gate_summaries.
        Of all fused labels, in ``round-R/fusion/LABELS``: composition, conflicts, specks (not of
        stage 2 in the first round), fused, fused_folders. Of the students, in
        ``round-R/KIND/VARIANT/seed-S``: students, student_tables, scores, summaries (in a folder
        a split), predictions, prediction_folders, efficiency.
    report, picture, summary
        The files to write: HTML, PNG, plain text.
    """
    labels = load_labels(config["labels"])
    entries = read_manifest(files["manifest"], labels)
    by_name = {entry.case: entry for entry in entries}
    students = read_students(config, files)
    main = main_student(students)
    gates = read_gates(files)
    fusions = read_fusions(files)
    learnt = next(
        one for one in fusions if (one.round, one.labels) == (main.arm.round, main.arm.labels)
    )
    ranking = rank_cases(main.scores["validation"], labels)
    examples = chosen_examples(ranking)
    ct = drawing.Layer("CT")
    pictures = {
        case: _draw(
            by_name[case], [ct, *_predicted(by_name[case], main, labels)], labels, kind="jpeg"
        )
        for case in examples
    }
    fused = telling_case(learnt.composition)
    fused_layers = _fused(fused, learnt.reader, labels)
    page = render(
        "report.html.j2",
        run=config["run"],
        status_texts=STATUS_TEXTS,
        synthetic=SYNTHETIC if config["phantom"] else "",
        facts=run_facts(config, files, entries),
        checksums=run_checksums(files, students),
        data=describe_data(entries, labels),
        excluded=cut(read_table(files["excluded"]), files["excluded"]),
        suspects=cut(read_table(files["suspects"]), files["suspects"]),
        corrected=cut(read_table(files["corrected"]), files["corrected"]),
        repaired=cut(read_table(files["repaired"]), files["repaired"]),
        selection=describe_selection(files["selection"]),
        teacher=describe_teacher(files, labels),
        pseudo_tumours=describe_pseudo_tumours(gates, entries, labels),
        gates=[describe_gate(gate, students, labels) for gate in gates],
        rounds=describe_rounds(config, gates),
        sources=[drawing.SOURCE_COLOURS[value] for value in SOURCES.values()],
        fusions=[describe_fusion(one, labels) for one in fusions],
        specks=count_specks(files["specks"], labels),
        learnt=learnt.title,
        doubtful=describe_doubtful(config, main, gates, learnt, by_name, labels),
        fused=by_name[fused],
        fused_picture=_draw(by_name[fused], [ct, *fused_layers], labels, kind="jpeg"),
        models=[describe_model(student.title, student.model, labels) for student in students],
        main=main.title,
        headline=main.summaries["validation"],
        tables=[score_table(split, students, labels) for split in SCORED_SPLITS],
        published=[] if config["phantom"] else PUBLISHED,
        plots=score_plots(main, labels),
        cases=scores_by_case(ranking, main.scores["validation"], labels),
        examples=examples,
        pictures=pictures,
        efficiency=[describe_efficiency(student) for student in students],
    )
    # The median case; without scores any predicted one, without predictions a fused label.
    shown = median_case(ranking) if ranking else next(iter(main.predictions.cases), fused)
    layers = fused_layers if shown == fused else _predicted(by_name[shown], main, labels)
    title = f"{config['run']}: {shown}" + (f" ({SYNTHETIC})" if config["phantom"] else "")
    with replacing(picture) as temporary:
        temporary.write_bytes(
            _draw(by_name[shown], layers, labels, title=title, planes=("axial", "coronal"))
        )
    write_text(report, page)
    write_text(summary, summary_text(config, students, gates, labels, [report, picture]))


def read_students(config: Mapping[str, Any], files: Mapping[str, Any]) -> list[Student]:
    """Every student that is a result of the run, with its part of the files."""
    found = []
    for arm in students(load_config(config)):

        def own(name: str, kind: str, arm: Arm = arm) -> list[str]:
            place = f"/{arm.place.format(kind)}/"
            return [path for path in files[name] if place in path]

        scores, summaries = own("scores", "scores"), own("summaries", "scores")
        found.append(
            Student(
                arm=arm,
                model=Path(*own("students", "student")),
                table=Path(*own("student_tables", "student")),
                scores={Path(path).parent.name: read_scores(path) for path in scores},
                summaries={Path(path).parent.name: _read_json(path) for path in summaries},
                predictions=ShardReader(
                    own("predictions", "predictions"), own("prediction_folders", "predictions")
                ),
                efficiency=_rows(own("efficiency", "predictions")),
            )
        )
    return found


def main_student(found: Sequence[Student]) -> Student:
    """The last round's of stage 2, else of the gate, else the first; of several seeds the first."""

    def rank(student: Student) -> tuple[int, int]:
        order = (GATED, "stage2")
        variant = student.arm.variant
        return student.arm.round, order.index(variant) if variant in order else -1

    return max(found, key=rank)


def read_gates(files: Mapping[str, Any]) -> list[Gate]:
    """The gate of every round and origin, the first round first."""
    tables = {
        (kind, Path(path).parent): path
        for kind in ("gate_cases", "decisions")
        for path in files[kind]
    }
    gates = []
    for path in files["gate_summaries"]:
        folder = Path(path).parent
        gates.append(
            Gate(
                round=_round(folder),
                origin=folder.name,
                summary=_read_json(path),
                cases=read_table(tables["gate_cases", folder]),
                decisions=read_table(tables["decisions", folder]),
            )
        )
    return sorted(gates, key=lambda gate: (gate.round, gate.origin))


def read_fusions(files: Mapping[str, Any]) -> list[Fusion]:
    """All fused labels of the run, by round and in the order in which they are made."""
    places = {Path(path).parent for path in files["composition"]}
    order = list(LABEL_TEXTS)

    def own(name: str, place: Path) -> list[str]:
        return [path for path in files[name] if Path(path).parent == place]

    fusions = [
        Fusion(
            round=_round(place),
            labels=place.name,
            composition=own("composition", place),
            conflicts=own("conflicts", place),
            reader=ShardReader(own("fused", place), own("fused_folders", place)),
        )
        for place in places
    ]
    return sorted(fusions, key=lambda one: (one.round, order.index(one.labels)))


def _round(place: Path) -> int:
    """Of a folder ``round-R/KIND/NAME``."""
    return int(place.parts[-3].removeprefix("round-"))


def _read_json(path: str | Path) -> dict[str, Any]:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _rows(tables: Iterable[str]) -> list[dict[str, str]]:
    return [row for table in tables for row in read_table(table)]


# The run


def run_facts(
    config: Mapping[str, Any], files: Mapping[str, Any], entries: Sequence[Entry]
) -> list[tuple[str, str]]:
    """The run in ten lines: what, how much."""
    splits = Counter(entry.split for entry in entries)
    sources = len({entry.source for entry in entries})
    excluded = len(read_table(files["excluded"]))
    cards = [_read_json(Path(files["teacher"]) / "card.json")]
    cards += [_read_json(Path(model) / "card.json") for model in files["students"]]
    versions = {name: text for card in cards for name, text in card.get("versions", {}).items()}
    hours = [card["hours"] for card in cards if "hours" in card]
    devices = {f"{c['device']} ({c['precision']})" for c in cards if "device" in c}
    organs = config["pseudo_labels"]["organs"]
    return [
        (
            "Cases",
            f"{splits['train']} training, {splits['validation']} validation, {splits['test']} "
            f"test, from {sources} sources; {excluded} excluded",
        ),
        ("Teacher", _recipe_text(config["teacher"])),
        ("Student", _recipe_text(config["student"])),
        ("Labels learnt", ", ".join(config["student"]["variants"])),
        *_rounds_fact(config),
        ("Organ pseudo-labels", ORGANS_FROM.get(organs, organs)),
        (
            "Seeds",
            f"teacher {config['teacher']['seed']}, "
            f"student {', '.join(map(str, config['student']['seeds']))}",
        ),
        ("Training time", training_time(config, hours)),
        ("Trained on", "; ".join(sorted(devices)) or "not recorded"),
        ("Scores by the rules", config["evaluation"]["profile"]),
        ("Versions", ", ".join(f"{name} {text}" for name, text in versions.items())),
    ]


def _rounds_fact(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    rounds, folds = config["rounds"], config["folds"]
    if rounds == 1:
        return []
    who = "one network" if folds == 1 else f"{folds} networks, each for the cases it did not see"
    return [("Rounds", f"{rounds}, cases relabelled by {who}")]


def training_time(config: Mapping[str, Any], hours: Sequence[float]) -> str:
    """The sum of some hours, and how many of the run's networks it leaves out."""
    if not hours:
        return "not recorded"
    checked = load_config(config)
    others = {*trained_students(checked)} - {*students(checked)}
    more = len(others) + len(teachers(checked)) - 1
    helpers = f"without {more} networks that only make or judge pseudo-labels"
    return f"{duration(sum(hours))} {helpers if more else 'in all'}"


ORGANS_FROM = {
    "cases": "those of the case table",
    MARGINAL: "by a student that learnt from the partial labels with the marginal loss",
}


def _recipe_text(recipe: Mapping[str, Any]) -> str:
    training, optimizer = recipe["training"], recipe["training"]["optimizer"]
    return (
        f"{recipe['network']['name']}, {_times(recipe['patch_size'])} voxels of "
        f"{_times(recipe['spacing_mm'])} mm, batch size {recipe['batch_size']}; "
        f"{training['epochs']} epochs of {training['iterations']} iterations, "
        f"{optimizer['name']}, rate {optimizer['learning_rate']:g}"
    )


def _times(numbers: Iterable[float]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)


def run_checksums(files: Mapping[str, Any], students: Sequence[Student]) -> list[tuple[str, str]]:
    """Checksums that tell two runs apart: of the manifest and of every model's weights."""
    models = [("teacher's weights", files["teacher_table"])]
    models += [(f"student's weights, {student.title}", student.table) for student in students]
    return [
        ("manifest.tsv", file_checksum(files["manifest"])),
        *((name, read_table(table)[0]["checksum"]) for name, table in models),
    ]


# The teacher


def describe_selection(tables: Sequence[str]) -> dict[str, Any]:
    """Which training cases teach, and why the others do not."""
    rows = sorted(_rows(tables), key=lambda row: row["case"])
    selected = [row for row in rows if row["status"] == "ok"]
    others = [row for row in rows if row["status"] != "ok"]
    # A reason may hold a volume: those belong together.
    reasons = Counter(
        "tumour below selection.min_tumour_ml"
        if "min_tumour_ml" in row["reason"]
        else row["reason"]
        for row in others
    )
    return {
        "selected": cut(selected, "teacher/labels"),
        "others": cut(others, "teacher/labels"),
        "reasons": reasons.most_common(),
        "ml": spread(float(row["tumour_ml"]) for row in selected),
    }


def describe_teacher(files: Mapping[str, Any], labels: Labels) -> dict[str, Any]:
    """The teacher's model and its own scores on the validation cases."""
    return {
        "model": describe_model("Teacher", Path(files["teacher"]), labels),
        "summary": _read_json(files["teacher_summary"]),
        "cases": cut(read_scores(files["teacher_scores"]), files["teacher_scores"]),
    }


def describe_model(title: str, model: Path, labels: Labels) -> dict[str, Any]:
    """What a model's card says and its learning curves."""
    card = _read_json(model / "card.json")
    rows = read_progress(model / "progress.csv")
    facts = {
        "parameters": f"{card['parameters']:,}" if "parameters" in card else None,
        "training cases": card.get("cases"),
        "epochs": card.get("epochs"),
        "training time": duration(card["hours"]) if "hours" in card else None,
        "precision": card.get("precision"),
        "device": card.get("device"),
        "seconds an epoch, median": f"{np.median([r['seconds'] for r in rows]):.1f}"
        if rows and "seconds" in rows[0]
        else None,
    }
    return {
        "title": title,
        "facts": {name: value for name, value in facts.items() if value is not None},
        "curves": plots.draw_curves(rows, labels) if rows else None,
    }


def read_progress(path: Path) -> list[dict[str, float]]:
    """A training's rows as numbers, NaN for empty fields; none where there is no such file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [
            {name: float(value) if value else np.nan for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


# Pseudo-labels and the gate


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


def describe_gate(gate: Gate, found: Iterable[Student], labels: Labels) -> dict[str, Any]:
    """What a gate says in words, its decisions by reason, and whether a student learnt by it."""
    arms = {student.arm for student in found}
    who = "the teacher's" if gate.origin == TEACHER else f"the student's ({gate.origin})"
    dropped = Counter(row["reason"] for row in gate.cases if row["status"] == "drop")
    return {
        "title": f"Round {gate.round}: {who} pseudo-labels",
        "text": gate.summary["text"],
        "used": gate.origin in (TEACHER, GATED)
        and any((arm.round, arm.variant) == (gate.round, GATED) for arm in arms),
        "rows": decisions_by_reason(gate.decisions, labels),
        "dropped": [{"cases": n, "reason": text} for text, n in _by_template(dropped, labels)],
    }


def decisions_by_reason(
    decisions: Iterable[Mapping[str, str]], labels: Labels
) -> list[dict[str, Any]]:
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


def _by_template(counts: Mapping[str, int], labels: Labels) -> list[tuple[str, int]]:
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


def describe_doubtful(
    config: Mapping[str, Any],
    main: Student,
    gates: Iterable[Gate],
    learnt: Fusion,
    by_name: Mapping[str, Entry],
    labels: Labels,
) -> dict[str, Any]:
    """The most doubtful cases of the main student's labels, with what opens them.

    Cases with a corrected label are counted and left out: somebody has looked.
    """
    origin = TEACHER if main.arm.round == 1 else main.arm.variant
    rows = next(
        gate.cases for gate in gates if (gate.round, gate.origin) == (main.arm.round, origin)
    )
    rows = [row for row in rows if float(row["doubt"]) > 0]
    corrected = {row["case"] for row in rows if _is_corrected(row["case"], learnt.reader)}
    rows = sorted(
        (row for row in rows if row["case"] not in corrected),
        key=lambda row: (-float(row["doubt"]), row["case"]),
    )
    shown = []
    for row in rows[:MOST_DOUBTFUL]:
        case = row["case"]
        entry, fused = by_name[case], case in learnt.reader
        files = [learnt.reader.file(case, end) for end in (LABEL, SOURCE)] if fused else []
        image = shlex.quote(entry.image)
        drawn = fused and len(shown) < MOST_DRAWN
        layers = [drawing.Layer("CT"), *_fused(case, learnt.reader, labels)] if drawn else []
        shown.append(
            {
                "case": case,
                "doubt": float(row["doubt"]),
                "why": row["why"],
                "dropped": row["reason"] if row["status"] == "drop" else "",
                "commands": [f"itksnap -g {image} -s {shlex.quote(str(path))}" for path in files]
                or [f"itksnap -g {image}"],
                "fused": fused,
                "picture": _draw(entry, layers, labels, kind="jpeg", planes=["axial"])
                if drawn
                else None,
            }
        )
    example = shown[0]["case"] if shown else ""
    return {
        "cases": shown,
        "count": len(rows),
        "corrected": len(corrected),
        "file": config["corrections"],
        "example": f"case\tlabel\tnote\n{example}\tcorrected/{example}.nii.gz\twhat was wrong",
    }


def _is_corrected(case: str, reader: ShardReader) -> bool:
    return case in reader and case + AUTOMATIC in reader.checksums(case)


# Fusion


def describe_fusion(fusion: Fusion, labels: Labels) -> dict[str, Any]:
    """What fused labels were made of and what was in conflict."""
    rows = _rows(fusion.composition)
    present = {row["source"] for row in rows}
    sources = [source for source in SOURCES if source in present]
    return {
        "title": fusion.title,
        "cases": len(fusion.reader.cases),
        "sources": [drawing.SOURCE_COLOURS[SOURCES[source]] for source in sources],
        "classes": composition_by_class(rows, sources, labels),
        "conflicts": conflicts_by_pair(fusion.conflicts, labels),
    }


def count_specks(tables: Sequence[str], labels: Labels) -> list[dict[str, Any]]:
    """Specks by class over all cases; every fusion finds the same ones, so one is counted."""
    place = min(Path(table).parent for table in tables)
    rows = _rows(table for table in tables if Path(table).parent == place)
    return _total(rows, ("name",), labels)


def composition_by_class(
    rows: Iterable[Mapping[str, str]], sources: Sequence[str], labels: Labels
) -> list[dict[str, Any]]:
    """Volume and share of every source in every class, over all cases."""
    volumes: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        volumes[row["name"]][row["source"]] += float(row["ml"])
    colours = {source: drawing.SOURCE_COLOURS[SOURCES[source]][1] for source in sources}
    titles = {label.name: (label.title, label.colour) for label in labels.labels}
    if "ignored" in sources:
        titles["ignored"] = ("Ignored", colours["ignored"])
    table = []
    for name, (title, colour) in titles.items():
        total = sum(volumes[name].values())
        parts = [
            {
                "colour": colours[source],
                "ml": volumes[name][source],
                "share": volumes[name][source] / total if total else 0.0,
            }
            for source in sources
        ]
        table.append({"title": title, "colour": colour, "ml": total, "parts": parts})
    return table


def conflicts_by_pair(tables: Sequence[str], labels: Labels) -> dict[str, Any]:
    """Conflicts summed over the cases, the largest volume first."""
    rows = [row | {"lost_input": INPUT_TEXTS[row["lost_input"]]} for row in _rows(tables)]
    pairs = _total(rows, ("kept_name", "lost_name", "lost_input"), labels)
    return {"rows": pairs[:MOST_CONFLICTS], "count": len(pairs), "ml": sum(p["ml"] for p in pairs)}


def _total(
    rows: Iterable[Mapping[str, str]], keys: Sequence[str], labels: Labels
) -> list[dict[str, Any]]:
    """Rows summed over the cases: cases, voxels, ml; the largest first."""
    titles = {label.name: label.title for label in labels.labels}
    groups: dict[tuple[str, ...], list[Mapping[str, str]]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    totals = [
        {key: titles.get(name, name) for key, name in zip(keys, names, strict=True)}
        | {
            "cases": len({row["case"] for row in found}),
            "voxels": sum(int(row["voxels"]) for row in found),
            "ml": sum(float(row["ml"]) for row in found),
        }
        for names, found in groups.items()
    ]
    return sorted(totals, key=lambda row: (-row["ml"], *(row[key] for key in keys)))


def telling_case(tables: Sequence[str]) -> str:
    """The training case whose label has most sources, and of those most pseudo-tumour."""
    parts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in _rows(tables):
        parts[row["case"]][row["source"]] += float(row["ml"])
    return max(sorted(parts), key=lambda name: (len(parts[name]), parts[name]["tumour_pseudo"]))


# Scores


def rank_cases(rows: Sequence[Row], labels: Labels) -> dict[str, float]:
    """Mean organ DSC of every case, the worst case first."""
    organs = {label.value for label in labels.organs}
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["value"] in organs and row["status"] != NOT_SCORED:
            values[row["case"]].append(row["dsc"])
    means = {case: float(np.mean(found)) for case, found in values.items()}
    return dict(sorted(means.items(), key=lambda item: (item[1], item[0])))


def median_case(ranking: Mapping[str, float]) -> str:
    """The case in the middle of a ranking, the lower of two."""
    cases = list(ranking)
    return cases[(len(cases) - 1) // 2]


def chosen_examples(ranking: Mapping[str, float]) -> dict[str, str]:
    """The worst, the median and the best case and what each is; each case once."""
    cases = list(ranking)
    if not cases:
        return {}
    chosen = {cases[0]: "worst", median_case(ranking): "median", cases[-1]: "best"}
    return {case: chosen[case] for case in cases if case in chosen}


def scores_by_case(
    ranking: Mapping[str, float], rows: Sequence[Row], labels: Labels
) -> list[dict[str, Any]]:
    """A row a case, the worst first: mean organ scores, and what became of its tumour."""
    table = []
    for case, dsc in ranking.items():
        own = [row for row in rows if row["case"] == case and row["status"] != NOT_SCORED]
        organs = [row for row in own if row["value"] != labels.tumour.value]
        tumour = [row for row in own if row["value"] == labels.tumour.value]
        table.append(
            {
                "case": case,
                "dsc": dsc,
                "nsd": float(np.mean([row["nsd"] for row in organs])),
                "lowest": min(organs, key=lambda row: row["dsc"]),
                "tumour": tumour[0] if tumour else None,
            }
        )
    return table


def score_table(split: str, students: Sequence[Student], labels: Labels) -> dict[str, Any]:
    """A split's scores: a row a class or mean, a cell a student; no rows without labels."""
    scored = [student for student in students if student.summaries[split]["cases"]]
    summaries = [student.summaries[split] for student in scored]
    return {
        "split": split,
        "students": [student.title for student in scored],
        "cases": summaries[0]["cases"] if scored else 0,
        "rows": [
            {"title": title, "colour": colour, "cells": [pick(summary) for summary in summaries]}
            for title, colour, pick in score_rows(labels)
        ],
        "free": [summary["tumour"]["tumour_free"] for summary in summaries],
    }


def score_rows(labels: Labels) -> list[tuple[str, str, Callable[[dict], dict]]]:
    """Rows of a table of scores: title, colour (of means none), and where a summary has them."""
    return [
        *(
            (label.title, label.colour, lambda summary, name=label.name: summary["classes"][name])
            for label in labels.labels
        ),
        ("Mean of the organs", "", lambda summary: summary["organs"]),
        ("Mean of all classes", "", lambda summary: summary["all"]),
        (
            f"{labels.tumour.title}, only cases with one",
            "",
            lambda summary: summary["tumour"]["positive"],
        ),
    ]


def score_plots(student: Student, labels: Labels) -> dict[str, bytes]:
    """Scores of the validation cases by class, as pictures."""
    drawn = {}
    for score in ("dsc", "nsd"):
        values = {
            label.title: [
                row[score]
                for row in student.scores["validation"]
                if row["value"] == label.value and row["status"] != NOT_SCORED
            ]
            for label in labels.labels
        }
        values = {title: found for title, found in values.items() if found}
        colours = {label.title: label.colour for label in labels.labels}
        if values:
            drawn[score.upper()] = plots.draw_scores(values, colours, score.upper())
    return drawn


def describe_efficiency(student: Student) -> dict[str, Any]:
    """Seconds and memory of a student's predictions."""
    rows = student.efficiency

    def over_cases(column: str, digits: int) -> str:
        return spread((float(row[column]) for row in rows if row.get(column)), digits)

    return {
        "title": student.title,
        "cases": len(rows),
        "devices": ", ".join(sorted({row["device"] for row in rows})),
        "seconds": {
            name: over_cases(f"{name}_s", 2)
            for name in ("preprocess", "network", "export", "total")
        },
        "ram": over_cases("peak_ram_mb", 0),
        "gpu": over_cases("peak_gpu_mb", 0),
    }


def summary_text(
    config: Mapping[str, Any],
    students: Sequence[Student],
    gates: Sequence[Gate],
    labels: Labels,
    paths: Sequence[str],
) -> str:
    """The teacher's false tumours and scores by class for the terminal, and where the report is."""
    lines = [f"run {config['run']}" + (f" ({SYNTHETIC})" if config["phantom"] else "")]
    lines += [gate.summary["text"][0] for gate in gates if gate.origin == TEACHER]
    for student in students:
        scored = [
            student.summaries[split] | {"split": split}
            for split in SCORED_SPLITS
            if student.summaries[split]["cases"]
        ]
        lines += ["", f"student {student.title}"]
        if not scored:
            lines.append("no labelled validation or test cases: no scores")
            continue
        rows = score_rows(labels)
        width = max(len(title) for title, *_ in rows)
        heads = (f"{summary['split']}, cases: {summary['cases']}" for summary in scored)
        lines.append(" " * width + "".join(f"{head:>24}" for head in heads))
        lines.append(" " * width + f"{'DSC %':>9}{'NSD %':>8}{'cases':>7}" * len(scored))
        for title, _, pick in rows:
            cells = "".join(
                f"{percent(cell['dsc']):>9}{percent(cell['nsd']):>8}{cell.get('cases', ''):>7}"
                for cell in map(pick, scored)
            )
            lines.append(f"{title:{width}}{cells}".rstrip())
    if any(
        _has_tumour_free(student.summaries[split])
        for student in students
        for split in SCORED_SPLITS
    ):
        lines += ["", FREE_NOTE]
    return "\n".join([*lines, "", *paths, ""])


def _has_tumour_free(summary: Mapping[str, Any]) -> bool:
    return summary["tumour"]["tumour_free"]["cases"] > 0


# Pictures of cases


def _canonical(volume: Volume) -> np.ndarray:
    return to_canonical(volume.array, volume.grid)


def _draw(entry: Entry, layers: Sequence[drawing.Layer], labels: Labels, **how: Any) -> bytes:
    """A picture of a case, sliced where the first label map shows most, tumours above all."""
    image = entry.read_image()
    first = next(layer.label for layer in layers if layer.label is not None)
    return drawing.draw_case(
        _canonical(image),
        canonical_spacing(image.grid),
        layers,
        position=drawing.telling_position(
            first, dict.fromkeys((labels.tumour.value, labels.ignore), TUMOUR_WEIGHT)
        ),
        **how,
    )


def _predicted(entry: Entry, student: Student, labels: Labels) -> list[drawing.Layer]:
    """Reference, where there is one, and prediction."""
    colours = drawing.class_colours(labels)
    prediction = read_label(student.predictions.file(entry.case, LABEL))
    layers = [drawing.Layer("Prediction", _canonical(prediction), colours)]
    if entry.label:
        layers.insert(0, drawing.Layer("Reference", _canonical(entry.read_label()), colours))
    return layers


def _fused(case: str, reader: ShardReader, labels: Labels) -> list[drawing.Layer]:
    """A training case's label and where it comes from."""
    label, source = (_canonical(read_label(reader.file(case, end))) for end in (LABEL, SOURCE))
    ignored = drawing.SOURCE_COLOURS[SOURCES["ignored"]]
    colours = drawing.class_colours(labels) | {labels.ignore: ignored}
    return [
        drawing.Layer("Fused label", label, colours),
        drawing.Layer("Where it comes from", source, drawing.SOURCE_COLOURS),
    ]
