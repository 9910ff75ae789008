"""From raw volumes to the manifest: index every case once, then decide what can be used."""

import os
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from panorgan.cases import Case, read_cases, shard_of
from panorgan.checks import inspect_case
from panorgan.intensities import class_histograms, save_histograms
from panorgan.labels import load_labels
from panorgan.manifest import (
    FACTS,
    SUSPECT_COLUMNS,
    Entry,
    build_manifest,
    load_sources,
    same_images,
    values_text,
    write_manifest,
)
from panorgan.problems import Problem, Problems
from panorgan.stages import HISTOGRAMS, VERSIONS
from panorgan.store import BAD, Result, ShardOutput, Work, run_shard
from panorgan.tables import read_table, write_table
from panorgan.volumes import canonical_shape, canonical_spacing, geometry_hash

PROBLEM_COLUMNS = ("file", "cause", "cure")


def index_cases(cases: Sequence[Case], labels_file: str, out: ShardOutput) -> None:
    """Read every volume of a shard's cases once and record what they are.

    A case that cannot be used gets the status ``bad`` and its problems; the job succeeds, so
    that the manifest can show the problems of all shards together.
    """
    labels = load_labels(labels_file)
    by_name = {case.case: case for case in cases}

    def compute(name: str, folder: Path) -> Result:
        case = by_name[name]
        facts, problems = inspect_case(
            name, _path(case.image), _path(case.label), _path(case.organs), labels
        )
        if problems:
            rows = [{"file": p.file, "cause": p.cause, "cure": p.cure} for p in problems]
            return Result({"status": BAD, "reason": problems[0].cause}, {"problems": rows})
        if facts.label is not None:
            histograms = class_histograms(facts.image.array, facts.label.array)
            save_histograms(folder / (name + HISTOGRAMS), histograms)
        grid = facts.image.grid
        row = {
            "orientation": grid.orientation,
            "shape_zyx": " ".join(map(str, canonical_shape(grid))),
            "spacing_mm_zyx": " ".join(f"{size:.6g}" for size in canonical_spacing(grid)),
            "voxel_ml": f"{grid.voxel_ml:.9g}",
            "grid": geometry_hash(facts.image),
            "image_hash": facts.image_hash,
            "label_hash": facts.label_hash,
            "organs_hash": facts.organs_hash,
            "label_values": values_text(facts.label_values),
        }
        return Result(row)

    run_shard(
        [Work(case.case, _files(case)) for case in cases],
        compute,
        out,
        parameters={"version": VERSIONS["index"], "labels": labels.model_dump(mode="json")},
        columns=FACTS,
        details={"problems": PROBLEM_COLUMNS},
    )


def _path(path: str) -> Path | None:
    return Path(path) if path else None


def _files(case: Case) -> dict[str, object]:
    """The case's files as they lie on the disk: a touched one is read again."""

    def stamp(path: str) -> list[object]:
        try:
            status = os.stat(path)
        except OSError:
            return [path]
        return [path, status.st_size, status.st_mtime_ns]

    return {"image": stamp(case.image), "label": stamp(case.label), "organs": stamp(case.organs)}


def collect_manifest(
    table: str,
    index_tables: Sequence[str],
    problem_tables: Sequence[str],
    *,
    shards: Mapping[str, int],
    labels_file: str,
    sources_file: str,
    min_ml: float,
    bad_cases: str,
    manifest: str,
    excluded: str,
    suspects: str,
) -> None:
    """Decide once, for the whole run, which cases are used, and write what is known of them.

    Parameters
    ----------
    table
        The case table.
    index_tables, problem_tables
        The index of every shard.
    shards
        Number of shards for training and for evaluation cases.
    bad_cases
        ``stop``: any bad case ends the run; ``exclude``: bad cases are left out and listed.
    manifest, excluded, suspects
        The files to write.

    Raises
    ------
    Problems
        All bad cases, if they stop the run, or if no training case is left.
    """
    labels = load_labels(labels_file)
    cases = read_cases(table, labels)
    rows = [row for path in index_tables for row in read_table(path)]
    facts = {row["case"]: row for row in rows if row["status"] == "ok"}
    problems = [Problem(**row) for path in problem_tables for row in read_table(path)]
    repeated, repeated_suspects = same_images(cases, facts)
    problems += repeated
    if problems and bad_cases == "stop":
        _forget_bad_shards(index_tables)
        raise Problems(problems)
    for problem in repeated:
        del facts[problem.case]
    sources = load_sources(sources_file, labels)
    places = {case.case: shard_of(case.case, case.split, **shards) for case in cases}
    entries, doubts = build_manifest(cases, facts, places, sources, labels, min_ml)
    doubts += _doubtful_sources(entries, sources)
    if not any(entry.split == "train" for entry in entries):
        raise Problems([*problems, Problem("", table, "no training case is left", "add some")])
    write_table(
        suspects, SUSPECT_COLUMNS, sorted(doubts + repeated_suspects, key=lambda row: row["case"])
    )
    write_table(excluded, ("case", *PROBLEM_COLUMNS), map(vars, sorted(problems)))
    write_manifest(manifest, entries, labels)


def _doubtful_sources(
    entries: Sequence[Entry], sources: Mapping[str, Sequence[str]]
) -> Iterator[dict[str, str]]:
    """Cases whose source has no rule but nearly the name of one that has."""
    for entry in entries:
        near = get_close_matches(entry.source, sources, n=1, cutoff=0.8)
        if near and entry.source not in sources:
            cause = f"source '{entry.source}' has no rule; was '{near[0]}' meant?"
            yield {"case": entry.case, "file": entry.label, "cause": cause}


def _forget_bad_shards(index_tables: Sequence[str]) -> None:
    """Let the next run look at the shards with bad cases again, however these are repaired.

    A file may be replaced by one with an older date, or the cure may not touch it at all
    (permissions, a file beside it): Snakemake would see no reason to index again.
    """
    for path in index_tables:
        if any(row["status"] == BAD for row in read_table(path)):
            os.unlink(path)
