"""Fused labels: what each class is made of, what was in conflict, and the most doubtful cases."""

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from panorgan import drawing
from panorgan.labels import Labels
from panorgan.report.inputs import TEACHER, Fusion, Gate, Student, read_rows
from panorgan.report.pictures import MOST, Gallery, Scans, learnt_layers
from panorgan.show import draw_scan
from panorgan.stages import AUTOMATIC, LABEL, SOURCE
from panorgan.store import ShardReader

MOST_CONFLICTS = 15
MOST_DOUBTFUL = 10
SOURCES = {"ground_truth": 1, "tumour_pseudo": 2, "organ_pseudo": 3, "ignored": 4}
"""Names in tables of composition, values in source maps."""
INPUT_TEXTS = {
    "partial": "partial label",
    "tumour": "tumour pseudo-label",
    "organs": "organ pseudo-label",
}


def describe_fusion(fusion: Fusion, labels: Labels) -> dict[str, Any]:
    """What fused labels were made of and what was in conflict."""
    rows = read_rows(fusion.composition)
    present = {row["source"] for row in rows}
    sources = [source for source in SOURCES if source in present]
    return {
        "title": fusion.title,
        "cases": len(fusion.reader.cases),
        "sources": [drawing.SOURCE_COLOURS[SOURCES[source]] for source in sources],
        "classes": composition_by_class(rows, sources, labels),
        "conflicts": conflicts_by_pair(fusion.conflicts, labels),
    }


def count_specks(fusion: Fusion, labels: Labels) -> list[dict[str, Any]]:
    """Specks by class over all cases, as these labels were made without them."""
    return _total(read_rows(fusion.specks), ("name",), labels)


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
    rows = [row | {"lost_input": INPUT_TEXTS[row["lost_input"]]} for row in read_rows(tables)]
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
    for row in read_rows(tables):
        parts[row["case"]][row["source"]] += float(row["ml"])
    return max(sorted(parts), key=lambda name: (len(parts[name]), parts[name]["tumour_pseudo"]))


def describe_doubtful(
    config: Mapping[str, Any],
    main: Student,
    gates: Iterable[Gate],
    learnt: Fusion,
    labels: Labels,
    scans: Scans,
    gallery: Gallery,
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
    shown: list[dict[str, Any]] = []
    for row in rows[:MOST_DOUBTFUL]:
        case = row["case"]
        fused = case in learnt.reader
        files = [learnt.reader.file(case, end) for end in (LABEL, SOURCE)] if fused else []
        image = shlex.quote(scans.entry(case).image)
        picture = None
        if fused and len(shown) < MOST["doubtful cases"]:
            picture = gallery.add(
                "doubtful cases",
                lambda case=case: draw_scan(
                    scans[case],
                    learnt_layers(case, learnt.reader, labels),
                    labels,
                    kind="jpeg",
                    planes=["axial"],
                ),
                f"Training case {case}: an axial slice of CT, fused label and the source of each "
                "voxel",
            )
        shown.append(
            {
                "case": case,
                "doubt": float(row["doubt"]),
                "why": row["why"],
                "dropped": row["reason"] if row["status"] == "drop" else "",
                "commands": [f"itksnap -g {image} -s {shlex.quote(str(path))}" for path in files]
                or [f"itksnap -g {image}"],
                "fused": fused,
                "picture": picture,
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
