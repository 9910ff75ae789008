"""From raw volumes to the manifest: index every case once, then decide what can be used."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from panorgan.cases.checks import inspect_case
from panorgan.cases.corrections import CORRECTED_COLUMNS, read_corrections
from panorgan.cases.intensities import class_histograms, save_histograms
from panorgan.cases.manifest import (
    FACTS,
    FOR_SUSPECTS,
    SUSPECT_COLUMNS,
    Entry,
    Rule,
    build_manifest,
    load_sources,
    read_manifest,
    same_images,
    values_text,
    write_manifest,
)
from panorgan.cases.places import class_places, places_text
from panorgan.cases.sides import body_midline
from panorgan.cases.table import Case, check_names, read_cases, shard_of
from panorgan.config.labels import load_labels
from panorgan.io.stamps import STAMPS, Stamp, write_stamps
from panorgan.io.tables import read_table, write_table
from panorgan.io.volumes import (
    Volume,
    canonical_shape,
    canonical_spacing,
    geometry_hash,
    write_image,
    write_label,
)
from panorgan.io.writing import write_text
from panorgan.problems import Problem, Problems, shown
from panorgan.run.store import BAD, Result, ShardOutput, ShardReader, Work, key_of, run_shard
from panorgan.stages import HISTOGRAMS, LABEL, VERSIONS

PROBLEM_COLUMNS = ("file", "cause", "cure")
REPAIRED_COLUMNS = ("case", "file", "shift_mm")


def index_cases(
    table: str,
    shard: str,
    shards: Mapping[str, int],
    out: ShardOutput,
    *,
    labels_file: str,
    max_repair_mm: float = 0.0,
) -> int:
    """Read every volume of a shard's cases once and record what they are.

    `table` is the case table, `shards` has the number of shards of each kind. A case that cannot be
    used gets the status ``bad`` and its problems; the job succeeds, so that the problems of all
    shards can be shown together. A volume whose header can be mended without moving a corner by
    more than `max_repair_mm` is copied with the mended one: ``CASE_image.nii.gz``,
    ``CASE_label.nii.gz``, ``CASE_organs.nii.gz``.
    """
    labels = load_labels(labels_file)
    cases = [case for case in read_cases(table, labels) if shard_of(case, shards) == shard]
    by_name = {case.case: case for case in cases}

    def compute(name: str, folder: Path) -> Result:
        case = by_name[name]
        facts, problems = inspect_case(
            name, _path(case.image), _path(case.label), _path(case.organs), labels, max_repair_mm
        )
        if problems:
            rows = [{"file": p.file, "cause": p.cause, "cure": p.cure} for p in problems]
            return Result({"status": BAD, "reason": problems[0].cause}, {"problems": rows})
        if facts.label is not None:
            histograms = class_histograms(facts.image.array, facts.label.array)
            save_histograms(folder / (name + HISTOGRAMS), histograms)
        for kind, (cause, shift) in facts.repairs.items():
            volume = getattr(facts, kind)
            write = write_image if kind == "image" else write_label
            write(folder / mended_name(name, kind), volume.array, volume)
            file = shown(getattr(case, kind))
            print(
                f"{name}: {file}: {cause}; mended in a copy, which moves a corner by {shift:.3g} mm"
            )
        grid = facts.image.grid
        midline = body_midline(facts.image.array, grid)
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
            "repaired": " ".join(f"{kind}:{mm:.3g}" for kind, (_, mm) in facts.repairs.items()),
            "midline_mm": "" if midline is None else f"{midline:.1f}",
            "places": _places(facts.label),
            "organ_places": _places(facts.organs),
            "doubt": "; ".join(facts.doubt or ()),
        }
        return Result(row)

    table = out.store.with_name(out.store.name + STAMPS)
    stamps = write_stamps(table, (path for case in cases for path in case.files))
    return run_shard(
        [Work(case.case, _files(case, stamps), case.image) for case in cases],
        compute,
        out,
        parameters={
            "version": VERSIONS["index"],
            # Which values may stand in a label, and in an organ pseudo-label.
            "values": [labels.values, labels.tumour.value],
            "max_repair_mm": max_repair_mm,
        },
        columns=(*FACTS, *FOR_SUSPECTS),
        details={"problems": PROBLEM_COLUMNS},
    )


def mended_name(case: str, kind: str) -> str:
    """Name of the copy of a volume with a mended header; `kind` is image, label or organs."""
    return f"{case}_{kind}{LABEL}"


def _places(volume: Volume | None) -> str:
    return places_text(class_places(volume.array, volume.grid)) if volume else ""


def _path(path: str) -> Path | None:
    return Path(path) if path else None


def _files(case: Case, stamps: Mapping[str, Stamp]) -> dict[str, object]:
    """The case's files as they lie on the disk: a changed one is read again."""
    named = {"image": case.image, "label": case.label, "organs": case.organs}
    return {kind: [path, *stamps.get(path, [])] for kind, path in named.items()}


def check_cases(
    table: str,
    index_tables: Sequence[str],
    problem_tables: Sequence[str],
    index_folders: Sequence[str],
    *,
    shards: Mapping[str, int],
    labels_file: str,
    sources_file: str,
    min_ml: float,
    bad_cases: str,
    manifest: str,
    excluded: str,
    suspects: str,
    corrected: str,
    repaired: str,
    class_table: str,
    speck_ml: float = 0.0,
    corrections: str = "",
    excluded_names: Sequence[str] = (),
    parts: Mapping[str, str] | None = None,
    index_again: Sequence[str] = (),
    parts_again: Sequence[str] = (),
) -> None:
    """Decide once, for the whole run, which cases are used, and write what is known of them.

    Parameters
    ----------
    table
        The case table.
    index_tables, problem_tables, index_folders
        The index of every shard.
    shards
        Number of shards of each kind.
    bad_cases
        ``stop``: any bad case ends the run; ``exclude``: bad cases are left out and listed.
    manifest, excluded, suspects, corrected, repaired
        The files to write.
    class_table
        Where a copy of the class table is left, for those who look at the run later.
    corrections
        The user's corrections, or empty: they win over everything else.
    excluded_names
        The config's `selection.exclude`.
    parts
        Where each shard's part of the manifest is or will be, in the order of `index_tables`.
    index_again, parts_again
        Files of each shard, in the same order: they ask to index it, or to deal it, again.

    Raises
    ------
    Problems
        All bad cases, if they stop the run, or if no training case is left; names in the config
        or the corrections that are no case's; corrections that contradict the labels; and once, if
        cases of one shard leave out those of another, or no longer do.
    """
    labels = load_labels(labels_file)
    cases = read_cases(table, labels)
    names = {case.case: case for case in cases}
    check_names(excluded_names, names, "config", "selection.exclude")
    known_better = read_corrections(corrections, labels) if corrections else {}
    check_names(known_better, names, "", corrections)
    sources = load_sources(sources_file, labels)
    rows = [row for path in index_tables for row in read_table(path)]
    facts = {row["case"]: row for row in rows if row["status"] == "ok"}
    problems = [Problem(**row) for path in problem_tables for row in read_table(path)]
    repeated, repeated_suspects = same_images(cases, facts)
    problems += repeated
    if problems and bad_cases == "stop":
        for path, again in zip(index_tables, index_again, strict=False):
            if any(row["status"] == BAD for row in read_table(path)):
                _ask_again(again, lambda said: str(int(said or 0) + 1))
        raise Problems(problems)
    for problem in repeated:
        del facts[problem.case]
    places = {case.case: shard_of(case, shards) for case in cases}
    entries, doubts, changes = build_manifest(
        cases, facts, places, sources, labels, min_ml, speck_ml, known_better
    )
    for change in changes:
        note = f" ({change['note']})" if change["note"] else ""
        print("corrected: {case}: {what}: {before} -> {after}".format(**change) + note)
    doubts += _doubtful_sources(entries, sources)
    if not any(entry.split == "train" for entry in entries):
        raise Problems([*problems, Problem("", table, "no training case is left", "add some")])
    if parts:
        _check_parts(parts, parts_again, index_tables, entries)
    write_table(
        suspects, SUSPECT_COLUMNS, sorted(doubts + repeated_suspects, key=lambda row: row["case"])
    )
    write_table(excluded, ("case", *PROBLEM_COLUMNS), map(vars, sorted(problems)))
    write_table(corrected, CORRECTED_COLUMNS, changes)
    write_table(repaired, REPAIRED_COLUMNS, _repairs(entries))
    write_manifest(manifest, _with_mended(entries, index_tables, index_folders), labels)
    write_text(class_table, Path(labels_file).read_text(encoding="utf-8"))


def _ask_again(file: str, change: Callable[[str], str]) -> bool:
    """Have a job run again in the next run, whatever its inputs look like.

    A file that is replaced may have an older date, and a cure may not touch it at all (permissions,
    a file beside it): Snakemake would see no reason. What is asked stands in a file, and is a
    parameter of that job; `change` makes it from what was asked before. Whether it is another.
    """
    path = Path(file)
    before = path.read_text() if path.exists() else ""
    after = change(before)
    if after != before:
        write_text(path, after)
    return after != before


def _check_parts(
    parts: Mapping[str, str],
    parts_again: Sequence[str],
    index_tables: Sequence[str],
    entries: Sequence[Entry],
) -> None:
    """Problems if a part of an earlier run has other cases now, although its shard did not change.

    That is where a case of another shard leaves a case out as its copy. Nobody has planned to deal
    such a shard anew.
    """
    now: dict[str, list[str]] = {}
    for entry in entries:
        now.setdefault(entry.shard, []).append(entry.case)
    problems = []
    places = zip(parts.items(), parts_again, index_tables, strict=True)
    for (shard, part), again, index in places:
        path = Path(part)
        if not path.exists() or path.stat().st_mtime < Path(index).stat().st_mtime:
            continue
        before, wanted = {row["case"] for row in read_table(path)}, now.get(shard, [])
        changed = sorted(before ^ {*wanted})
        if changed and _ask_again(again, lambda _, wanted=wanted: key_of(wanted)):
            cause = "is left out now" if changed[0] in before else "is used again"
            cause = f"{cause}, because of a case of another shard"
            cure = "run the same command again: what depends on it is made anew"
            problems.append(Problem(changed[0], "", cause, cure))
    if problems:
        raise Problems(problems)


def deal_cases(manifest: str, shard: str, *, labels_file: str, part: str) -> None:
    """Write a shard's part of the manifest."""
    labels = load_labels(labels_file)
    entries = [entry for entry in read_manifest(manifest, labels) if entry.shard == shard]
    write_manifest(part, entries, labels)


def _with_mended(
    entries: Sequence[Entry], index_tables: Sequence[str], index_folders: Sequence[str]
) -> Iterator[Entry]:
    """The entries, with the mended copies instead of the files that were refused."""
    index = ShardReader(index_tables, index_folders)
    for entry in entries:
        kinds = [repair.partition(":")[0] for repair in entry.facts["repaired"].split()]
        files = {kind: str(index.file(entry.case, mended_name("", kind))) for kind in kinds}
        yield replace(entry, **files)


def _repairs(entries: Iterable[Entry]) -> Iterator[dict[str, str]]:
    """The files whose headers are mended in a copy, and how far that moves a corner."""
    for entry in entries:
        for repair in entry.facts["repaired"].split():
            kind, _, shift = repair.partition(":")
            yield {"case": entry.case, "file": getattr(entry, kind), "shift_mm": shift}


def _doubtful_sources(
    entries: Sequence[Entry], sources: Mapping[str, Rule]
) -> Iterator[dict[str, str]]:
    """Cases whose source has no rule but nearly the name of one that has."""
    for entry in entries:
        near = get_close_matches(entry.source, sources, n=1, cutoff=0.8)
        if near and entry.source not in sources:
            cause = f"source '{entry.source}' has no rule; was '{near[0]}' meant?"
            yield {"case": entry.case, "file": entry.label, "cause": cause}
