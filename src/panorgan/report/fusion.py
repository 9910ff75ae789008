"""Fused labels: what each class is made of, what was in conflict, and the most doubtful cases."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from panorgan.config.labels import Labels
from panorgan.io.frames import records
from panorgan.report import drawing
from panorgan.report.frames import COMPOSITION, CONFLICTS, SPECKS
from panorgan.report.inputs import TEACHER, Fusion, Gate, Student
from panorgan.report.pictures import MOST, Gallery, Scans, learnt_layers
from panorgan.report.show import draw_scan
from panorgan.run.store import ShardReader
from panorgan.stages import AUTOMATIC, LABEL, SOURCE

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
    parts = COMPOSITION.read(*fusion.composition)
    sources = [source for source in SOURCES if (parts["source"] == source).any()]
    return {
        "title": fusion.title,
        "cases": len(fusion.reader.cases),
        "sources": [drawing.SOURCE_COLOURS[SOURCES[source]] for source in sources],
        "classes": composition_by_class(parts, sources, labels),
        "conflicts": conflicts_by_pair(CONFLICTS.read(*fusion.conflicts), labels),
    }


def count_specks(fusion: Fusion, labels: Labels) -> list[dict[str, Any]]:
    """Specks by class over all cases, as these labels were made without them."""
    return records(_total(SPECKS.read(*fusion.specks), ["name"], labels))


def composition_by_class(
    parts: pd.DataFrame, sources: Sequence[str], labels: Labels
) -> list[dict[str, Any]]:
    """Volume and share of every source in every class, over all cases."""
    colours = {source: drawing.SOURCE_COLOURS[SOURCES[source]][1] for source in sources}
    titles = {label.name: (label.title, label.colour) for label in labels.labels}
    if "ignored" in sources:
        titles["ignored"] = ("Ignored", colours["ignored"])
    volumes = parts.groupby(["name", "source"])["ml"].sum().unstack()
    volumes = volumes.reindex(index=list(titles), columns=list(sources)).fillna(0.0)
    totals = volumes.sum(axis=1)
    shares = volumes.div(totals.where(totals > 0, 1.0), axis=0)
    return [
        {"title": title, "colour": colour, "ml": totals[name]}
        | {
            "parts": [
                {
                    "colour": colours[source],
                    "ml": volumes.at[name, source],
                    "share": shares.at[name, source],
                }
                for source in sources
            ]
        }
        for name, (title, colour) in titles.items()
    ]


def conflicts_by_pair(conflicts: pd.DataFrame, labels: Labels) -> dict[str, Any]:
    """Conflicts summed over the cases, the largest volume first."""
    told = conflicts.assign(lost_input=conflicts["lost_input"].map(INPUT_TEXTS))
    pairs = _total(told, ["kept_name", "lost_name", "lost_input"], labels)
    first = records(pairs.head(MOST_CONFLICTS))
    return {"rows": first, "count": len(pairs), "ml": sum(pairs["ml"])}


def _total(rows: pd.DataFrame, keys: list[str], labels: Labels) -> pd.DataFrame:
    """Rows summed over the cases: cases, voxels, ml; the largest first."""
    titles = {label.name: label.title for label in labels.labels}
    totals = rows.assign(**{key: rows[key].replace(titles) for key in keys}).groupby(keys)
    totals = totals.agg(cases=("case", "nunique"), voxels=("voxels", "sum"), ml=("ml", "sum"))
    # The groups are sorted by their keys.
    return totals.sort_values("ml", ascending=False, kind="stable").reset_index()


def telling_case(tables: Sequence[str]) -> str:
    """The training case whose label has most sources, and of those most pseudo-tumour."""
    volumes = COMPOSITION.read(*tables).groupby(["case", "source"])["ml"].sum().unstack()
    tumour = volumes.reindex(columns=["tumour_pseudo"])["tumour_pseudo"].fillna(0.0)
    ranks = pd.DataFrame({"sources": volumes.count(axis=1), "tumour": tumour})
    return ranks.sort_values(["sources", "tumour"], ascending=False, kind="stable").index[0]


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
    rows = rows[rows["doubt"] > 0].sort_values(["doubt", "case"], ascending=[False, True])
    corrected = rows["case"].map(lambda case: _is_corrected(case, learnt.reader)).astype(bool)
    rows = rows[~corrected]
    shown: list[dict[str, Any]] = []
    for row in records(rows.head(MOST_DOUBTFUL)):
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
                "doubt": row["doubt"],
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
        "corrected": int(corrected.sum()),
        "file": config["corrections"],
        "example": f"case\tlabel\tnote\n{example}\tcorrected/{example}.nii.gz\twhat was wrong",
    }


def _is_corrected(case: str, reader: ShardReader) -> bool:
    return case in reader and case + AUTOMATIC in reader.checksums(case)
