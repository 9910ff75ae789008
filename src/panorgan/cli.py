"""The command-line tool `panorgan`: what people do outside the workflow too."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from panorgan import __version__
from panorgan.config.labels import load_labels
from panorgan.config.registry import CHALLENGE, ORDERS, PROFILES, REFERENCE
from panorgan.problems import Problem, Problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0 if all is well, 1 with problems, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except Problems as error:
        print("\n".join(map(str, error.problems)), file=sys.stderr)
    except OSError as error:
        if os.environ.get("PANORGAN_TRACEBACK"):
            raise
        place = f"{error.filename}: " if error.filename else ""
        cure = "check the path and whether you may write there"
        print(f"{place}{(error.strerror or str(error)).lower()}; {cure}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    except Exception as error:
        if os.environ.get("PANORGAN_TRACEBACK"):
            raise
        cause = f"unexpected {type(error).__name__}: {error}".splitlines()[0]
        print(f"{cause}; set PANORGAN_TRACEBACK=1 to see where", file=sys.stderr)
    return 1


_ORDERS_HELP = "\n".join(
    fill(order.help, 100, initial_indent=f"  {name:17}", subsequent_indent=" " * 19)
    for name, order in ORDERS.items()
)

_FUSE_HELP = f"""\
Make a full label out of a partial label, a tumour mask and an organ pseudo-label. Any of them may
be missing. Give three files, or three folders of CASE.nii.gz: then the cases are those of all
folders together, and one without a partial label is unlabelled.

What is put where:
  - The partial label counts where its class is annotated (--annotated). Voxels of other classes in
    it are set to background, and reported.
  - The tumour mask puts tumour where the tumour is unknown: not among --annotated. It holds 0 and
    the value of --tumour-value alone. Anything else in it is refused, never guessed.
  - The organ pseudo-label fills what is still background, with organs that are unknown. Tumour in
    it is not used; 15 in it means ignored, and stays 15 in the result.

--order says who wins where the tumour mask meets an annotated organ:
{_ORDERS_HELP}

--annotated TABLE.tsv takes a case table, as `panorgan init` writes it. It has a line for each case,
found by its name. What annotators looked for is said by its column annotated, else by the rule of
its source in the shipped config/sources.yaml, else (training cases) by the values that occur in
the partial label. A class that they looked for and that is missing is absent: it is never added.
With a column tumour_scope they looked for tumours in these organs only: pieces of the tumour mask
are added elsewhere, if they neither overlap nor touch an organ of the scope or an annotated tumour.

Values of a source map: 0 background, 1 ground truth, 2 tumour mask, 3 organ pseudo-label, 4
ignored. All is written with the geometry of the partial label (else of the tumour mask, else of the
organ pseudo-label); all inputs must be on one grid. If anything is wrong nothing is written, and
nothing is ever replaced."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="panorgan", description="Tools around the panorgan workflow."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    labels = argparse.ArgumentParser(add_help=False)
    labels.add_argument(
        "--labels", type=Path, metavar="FILE", help="the class table (default: the shipped one)"
    )

    init = commands.add_parser("init", help="write the case table of FLARE-style folders")
    init.add_argument("folder", type=Path, help="holds imagesTr…, labelsTr…, imagesVal, …")
    init.add_argument(
        "-o", "--output", type=Path, default=Path("data/cases.tsv"), help="default: %(default)s"
    )
    init.add_argument("--organs", type=Path, help="folder of organ pseudo-labels, CASE.nii.gz")
    init.set_defaults(command=_init)

    check = commands.add_parser(
        "check", parents=[labels], help="check volumes, folders or a case table"
    )
    check.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    check.set_defaults(command=_check)

    fuse = commands.add_parser(
        "fuse",
        parents=[labels],
        help="fuse partial labels and pseudo-labels",
        description=_FUSE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fuse.add_argument("--partial", type=Path, help="partial label, or a folder of them")
    fuse.add_argument(
        "--annotated",
        default="none",
        metavar="CLASSES",
        help="classes annotated in the partial labels, by name or value, such as 1,spleen; or a "
        "case table, TABLE.tsv (default: none)",
    )
    fuse.add_argument("--tumour", type=Path, help="tumour mask, or a folder of them")
    fuse.add_argument(
        "--tumour-value",
        default="1",
        metavar="VALUE",
        help="value of tumour in the mask, or a class's name: `tumour` is its value in full label "
        "maps (default: 1)",
    )
    fuse.add_argument("--organs", type=Path, help="organ pseudo-label, or a folder of them")
    fuse.add_argument("-o", "--output", type=Path, required=True, help="a new file, or a folder")
    fuse.add_argument("--source-map", type=Path, help="where to write what each voxel is from")
    fuse.add_argument(
        "--order",
        default=REFERENCE,
        choices=list(ORDERS),
        help="who wins (default: %(default)s)",
    )
    fuse.set_defaults(command=_fuse)

    predict = commands.add_parser("predict", help="label CTs with a trained model")
    predict.add_argument("-i", "--images", type=Path, required=True, help="a CT, or a folder")
    predict.add_argument("-o", "--output", type=Path, required=True, help="folder of label maps")
    predict.add_argument("-m", "--model", type=Path, required=True, help="a model's folder")
    predict.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    predict.add_argument(
        "--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"], help="as in config"
    )
    predict.set_defaults(command=_predict)

    evaluate = commands.add_parser(
        "evaluate", parents=[labels], help="score a folder of predictions: DSC and NSD"
    )
    evaluate.add_argument("-p", "--predictions", type=Path, required=True)
    evaluate.add_argument("-r", "--references", type=Path, required=True)
    evaluate.add_argument("-o", "--output", type=Path, required=True, help="a new folder")
    evaluate.add_argument(
        "--profile",
        default=CHALLENGE,
        choices=list(PROFILES),
        help="rules of the challenge "
        + ", or ".join(profile.title for profile in PROFILES.values())
        + " (default: %(default)s)",
    )
    evaluate.add_argument(
        "--annotated",
        default="all",
        metavar="CLASSES",
        help="classes that the references know, by name or value, such as 1,spleen; or a case "
        "table, TABLE.tsv; others are not scored (default: all)",
    )
    evaluate.set_defaults(command=_evaluate)

    compare = commands.add_parser(
        "compare",
        help="compare two scored runs case by case",
        description="Compare two scored runs case by case: what got better or worse from A to B.",
    )
    for name in "ab":
        compare.add_argument(
            name,
            metavar=name.upper(),
            type=Path,
            help="a folder that panorgan evaluate or the workflow wrote, or its cases.csv",
        )
    compare.add_argument(
        "-o", "--output", type=Path, help="a new folder for classes.tsv, cases.tsv, comparison.json"
    )
    compare.add_argument(
        "--profile",
        choices=list(PROFILES),
        help="compare the scores by these rules (default: those by which both were scored)",
    )
    compare.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="the class table (default: the one that both were scored with)",
    )
    compare.set_defaults(command=_compare)

    show = commands.add_parser(
        "show",
        parents=[labels],
        help="draw cases of a run, or a CT with label maps",
        usage="panorgan show CASE… --run results/RUN [-o FILE|FOLDER] [--class NAME]\n"
        "       panorgan show -i CT [-l LABEL] [-r REFERENCE] -o FILE [--class NAME] "
        "[--labels FILE]",
    )
    show.add_argument("cases", nargs="*", metavar="CASE", help="a name of the run's case table")
    show.add_argument("--run", type=Path, help="a run's folder, such as results/demo")
    show.add_argument("-i", "--image", type=Path, help="a CT of no run")
    show.add_argument("-l", "--label", type=Path, help="a label map on its grid, a prediction say")
    show.add_argument("-r", "--reference", type=Path, help="a reference on its grid")
    show.add_argument(
        "-o",
        "--output",
        type=Path,
        help="a new PNG; of several cases a folder (default: CASE.png in the current folder)",
    )
    show.add_argument(
        "--class", dest="structure", default="", metavar="NAME", help="one structure, close up"
    )
    show.set_defaults(command=_show)

    describe = commands.add_parser("describe", help="what a model or a recipe is, as JSON")
    what = describe.add_mutually_exclusive_group(required=True)
    what.add_argument("model", nargs="?", type=Path, metavar="MODEL", help="a model's folder")
    what.add_argument("--recipe", choices=["teacher", "student"], help="of the config")
    describe.add_argument("--config", type=Path, help="laid over the defaults, as --configfile")
    describe.set_defaults(command=_describe)

    convert = commands.add_parser("convert", help="models of nnU-Net 1 and 2 into ours, and back")
    convert.add_argument("source", type=Path, help="folder of a trained model")
    convert.add_argument("-o", "--output", type=Path, required=True, help="a new folder")
    convert.add_argument(
        "--to",
        default="panorgan",
        choices=["panorgan", "nnunet"],
        help="our model folder, or one for nnUNetv2_predict (default: %(default)s)",
    )
    convert.add_argument("--fold", help="of a foreign model (default: all, else the only one)")
    convert.add_argument(
        "--classes", help="names of a foreign model's classes, in the order of their values"
    )
    convert.set_defaults(command=_convert)
    return parser


def _init(options: argparse.Namespace) -> int:
    from panorgan.cases.checks import find_flare_cases
    from panorgan.cases.table import Case, read_cases, write_cases

    if options.output.exists():
        raise Problems.one("exists already", "name another with -o", file=options.output)
    found = find_flare_cases(options.folder)
    problems = [
        Problem(case.name, str(case.label), "no image for this label", "add it or remove the label")
        for case in found
        if case.image is None
    ]
    for name, count in Counter(case.name for case in found).items():
        if count > 1:
            cause = f"is the name of {count} cases in {options.folder}"
            problems.append(Problem(name, "", cause, "rename the files of one of them"))
    if problems:
        raise Problems(problems)
    pseudo = {case.name: options.organs / f"{case.name}.nii.gz" for case in found if options.organs}
    cases = [
        Case(
            case=case.name,
            image=str(case.image),
            label=str(case.label or ""),
            split="test" if case.split == "validation" and not case.label else case.split,
            source=case.source,
            organs=str(pseudo[case.name])
            if case.split == "train" and case.name in pseudo and pseudo[case.name].exists()
            else "",
        )
        for case in found
    ]
    without = [case.case for case in cases if case.split == "train" and not case.organs]
    if options.organs and len(without) == sum(case.split == "train" for case in cases):
        cure = "it must hold CASE.nii.gz for the training cases"
        raise Problems.one("has no organ pseudo-label of any case", cure, file=options.organs)
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
    if options.organs and without:
        print(f"  without an organ pseudo-label: {len(without)} training cases, first {without[0]}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from panorgan.cases.checks import check_paths

    checked, problems = check_paths(options.paths, load_labels(options.labels))
    for problem in problems:
        print(problem)
    print(f"{checked} checked, {len(problems)} problems")
    return 1 if problems else 0


def _fuse(options: argparse.Namespace) -> int:
    from panorgan.fusing.fusion import fuse_paths

    fused = fuse_paths(
        partial=options.partial,
        annotated=options.annotated,
        tumour=options.tumour,
        tumour_value=options.tumour_value,
        organs=options.organs,
        out=options.output,
        source_map=options.source_map,
        labels=load_labels(options.labels),
        order=options.order,
    )
    for case in fused:
        for speck in case.specks:
            print(f"{case.case}: {speck['ml']:.3f} ml of {speck['name']} left out: not annotated")
        if case.outside_ml:
            why = "not where it may be (--order, tumour_scope)"
            print(f"{case.case}: {case.outside_ml:.3f} ml of the tumour mask left out: {why}")
    print(f"{options.output}: {len(fused)} fused")
    return 0


def _predict(options: argparse.Namespace) -> int:
    from panorgan.inference.predict import Predictor, predict_files

    if options.output.name.endswith((".nii", ".nii.gz")):
        cure = "name a folder with -o: a label map gets its CT's name there"
        raise Problems.one("is the name of a file", cure, file=options.output)
    predictor = Predictor(options.model, options.device, options.precision)
    report = predict_files(options.images, options.output, predictor)
    print(f"{options.output}: {len(report['cases'])} label maps and report.json")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from panorgan.scoring.evaluation import evaluate_folders, summary_lines

    if options.output.exists():
        raise Problems.one("exists already", "name another with -o", file=options.output)
    labels = load_labels(options.labels)
    found = evaluate_folders(
        options.predictions, options.references, labels, options.profile, options.annotated
    )
    found.write(options.output)
    print("\n".join([*found.notes, *summary_lines(found.summary, labels), ""]))
    cases = found.summary["cases"]
    print(f"{options.output}: cases.csv, lesions.csv and summary.json of {cases} cases")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from panorgan.scoring.comparison import compare_paths, comparison_text, write_comparison

    if options.output and options.output.exists():
        raise Problems.one("exists already", "name another with -o", file=options.output)
    labels = load_labels(options.labels) if options.labels else None
    comparison, cases = compare_paths(options.a, options.b, labels, options.profile)
    if options.output:
        write_comparison(comparison, cases, options.output)
    print(comparison_text(comparison))
    if options.output:
        print(f"\n{options.output}: classes.tsv, cases.tsv, comparison.json")
    return 0


def _show(options: argparse.Namespace) -> int:
    from panorgan.report.show import show_cases, show_files

    of_run = options.cases and options.run
    loose = options.image and options.output
    if of_run and not (options.image or options.label or options.reference or options.labels):
        for line in show_cases(options.cases, options.run, options.output, options.structure):
            print(line)
    elif loose and not (options.cases or options.run):
        print(
            show_files(
                options.image,
                options.output,
                load_labels(options.labels),
                label=options.label,
                reference=options.reference,
                structure=options.structure,
            )
        )
    else:
        print("name cases and their --run, or a CT with -i and a PNG with -o", file=sys.stderr)
        return 2
    return 0


def _describe(options: argparse.Namespace) -> int:
    from panorgan.inference.describe import as_json, describe_model, describe_recipe

    if options.recipe:
        facts = describe_recipe(options.recipe, options.config)
    elif options.config:
        print("--config is for a recipe: leave it out, or say --recipe", file=sys.stderr)
        return 2
    else:
        facts = describe_model(options.model)
    print(as_json(facts))
    return 0


def _convert(options: argparse.Namespace) -> int:
    from panorgan.nnunet.models.convert import convert

    classes = options.classes and [name.strip() for name in options.classes.split(",")]
    lines = convert(
        options.source, options.output, to=options.to, fold=options.fold, classes=classes
    )
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
