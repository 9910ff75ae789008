"""`panorgan init`: write the case table of FLARE-style folders."""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from panorgan.cli.options import path
from panorgan.cli.places import check_places
from panorgan.config.labels import load_labels
from panorgan.problems import Problem, Problems


def add(commands: Any) -> None:
    """Add the command to a parser's commands."""
    parser = commands.add_parser("init", help="write the case table of FLARE-style folders")
    parser.add_argument("folder", type=path, help="holds imagesTr…, labelsTr…, imagesVal, …")
    parser.add_argument(
        "-o", "--output", type=path, default=Path("data/cases.tsv"), help="default: %(default)s"
    )
    parser.add_argument("--organs", type=path, help="folder of organ pseudo-labels, CASE.nii.gz")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Run it; the exit code."""
    from panorgan.cases.checks import find_flare_cases
    from panorgan.cases.folders import cases_in
    from panorgan.cases.table import Case, read_cases, write_cases
    from panorgan.io.writing import making_folder

    if options.output.exists():
        raise Problems.one("exists already", "name another with -o", file=options.output)
    check_places(options.output)
    found, left_out = find_flare_cases(options.folder)
    problems = [
        Problem(case.name, str(case.label), "no image for this label", "add it or remove the label")
        for case in found
        if case.image is None
    ]
    for name, count in Counter(case.name for case in found).items():
        if count > 1:
            cause = f"is the name of {count} cases in {options.folder}"
            problems.append(Problem(name, "", cause, "rename the files of one of them"))
    pseudo: dict[str, Path] = {}
    if options.organs:
        pseudo, wrong = cases_in(options.organs)
        problems += [problem for problem in wrong if problem.case]
        left_out += [problem for problem in wrong if not problem.case]
    if problems:
        raise Problems(problems + left_out)
    cases = [
        Case(
            case=case.name,
            image=str(case.image),
            label=str(case.label or ""),
            split="test" if case.split == "validation" and not case.label else case.split,
            source=case.source,
            organs=str(pseudo.get(case.name, "")) if case.split == "train" else "",
        )
        for case in found
    ]
    without = [case.case for case in cases if case.split == "train" and not case.organs]
    if options.organs and len(without) == sum(case.split == "train" for case in cases):
        cure = "it must hold CASE.nii.gz for the training cases"
        raise Problems.one("has no organ pseudo-label of any case", cure, file=options.organs)
    with making_folder(options.output.parent):
        write_cases(options.output, cases)
        try:
            read_cases(options.output, load_labels())
        except Problems:
            options.output.unlink()
            raise
    labelled = sum(bool(case.label) for case in cases)
    print(f"{options.output}: {len(cases)} cases, {labelled} with a label")
    for split in ("train", "validation", "test"):
        print(f"  {split}: {sum(case.split == split for case in cases)}")
    moved = [case.name for case in found if case.split == "validation" and not case.label]
    if moved:
        print(f"  validation cases without a label, taken as test cases: {len(moved)}")
    for source in sorted({case.source for case in cases if case.label}):
        bare = [case.case for case in cases if case.source == source and not case.label]
        if bare:
            print(f"  {source}: {len(bare)} images have no label, first {bare[0]}")
    for problem in left_out:
        print(f"  {problem}")
    if strange := sorted({*pseudo} - {case.case for case in cases}):
        print(f"  organ pseudo-labels of no case: {len(strange)}, first {strange[0]}")
    if options.organs and without:
        print(f"  without an organ pseudo-label: {len(without)} training cases, first {without[0]}")
    return 0
