"""The command-line tool `panorgan`: what people do outside the workflow too."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from panorgan import __version__
from panorgan.labels import load_labels
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="panorgan", description="Tools around the panorgan workflow."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    init = commands.add_parser("init", help="write the case table of FLARE-style folders")
    init.add_argument("folder", type=Path, help="holds imagesTr…, labelsTr…, imagesVal, …")
    init.add_argument(
        "-o", "--output", type=Path, default=Path("data/cases.tsv"), help="default: %(default)s"
    )
    init.add_argument("--organs", type=Path, help="folder of organ pseudo-labels, CASE.nii.gz")
    init.set_defaults(command=_init)

    check = commands.add_parser("check", help="check volumes, folders or a case table")
    check.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    check.set_defaults(command=_check)

    fuse = commands.add_parser("fuse", help="fuse partial labels and pseudo-labels")
    fuse.add_argument("--partial", type=Path, help="partial label, or a folder of them")
    fuse.add_argument(
        "--annotated", default="none", help="classes annotated in it, by name or value: 1,spleen"
    )
    fuse.add_argument("--tumour", type=Path, help="tumour mask, or a folder of them")
    fuse.add_argument(
        "--tumour-value", type=int, default=1, help="value of tumour in the mask (default: 1)"
    )
    fuse.add_argument("--organs", type=Path, help="organ pseudo-label, or a folder of them")
    fuse.add_argument("-o", "--output", type=Path, required=True)
    fuse.add_argument("--source-map", type=Path, help="where to write what each voxel is from")
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

    evaluate = commands.add_parser("evaluate", help="score a folder of predictions: DSC and NSD")
    evaluate.add_argument("-p", "--predictions", type=Path, required=True)
    evaluate.add_argument("-r", "--references", type=Path, required=True)
    evaluate.add_argument("-o", "--output", type=Path, required=True, help="a new folder")
    evaluate.add_argument(
        "--profile",
        default="flare23-2023",
        choices=["flare23-2023", "flare23-2024", "corrected"],
        help="rules of the challenge in 2023, since 2024, or without their quirks",
    )
    evaluate.set_defaults(command=_evaluate)

    describe = commands.add_parser("describe", help="what a model or a recipe is, as JSON")
    what = describe.add_mutually_exclusive_group(required=True)
    what.add_argument("model", nargs="?", type=Path, metavar="MODEL", help="a model's folder")
    what.add_argument("--recipe", choices=["teacher", "student"], help="of the config")
    describe.add_argument("--config", type=Path, help="laid over the defaults, as --configfile")
    describe.set_defaults(command=_describe)

    convert = commands.add_parser("convert", help="models of nnU-Net 1 and 2 into ours, and back")
    convert.add_argument("source", type=Path, help="folder of a trained model")
    convert.add_argument("-o", "--output", type=Path, required=True, help="a new folder or file")
    convert.add_argument(
        "--to",
        default="panorgan",
        choices=["panorgan", "nnunet", "onnx"],
        help="our model folder, one for nnUNetv2_predict, or (ours only) an ONNX file "
        "(default: %(default)s)",
    )
    convert.add_argument("--fold", help="of a foreign model (default: all, else the only one)")
    convert.add_argument(
        "--classes", help="names of a foreign model's classes, in the order of their values"
    )
    convert.set_defaults(command=_convert)
    return parser


def _init(options: argparse.Namespace) -> int:
    from panorgan.cases import Case, read_cases, write_cases
    from panorgan.checks import find_flare_cases

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
    from panorgan.checks import check_paths

    checked, problems = check_paths(options.paths, load_labels())
    for problem in problems:
        print(problem)
    print(f"{checked} checked, {len(problems)} problems")
    return 1 if problems else 0


def _fuse(options: argparse.Namespace) -> int:
    from panorgan.fusion import fuse_paths

    fused = fuse_paths(
        partial=options.partial,
        annotated=options.annotated,
        tumour=options.tumour,
        tumour_value=options.tumour_value,
        organs=options.organs,
        out=options.output,
        source_map=options.source_map,
        labels=load_labels(),
    )
    for case in fused:
        for speck in case.specks:
            print(f"{case.case}: {speck['ml']:.3f} ml of {speck['name']} left out: not annotated")
    print(f"{options.output}: {len(fused)} fused")
    return 0


def _predict(options: argparse.Namespace) -> int:
    from panorgan.predict import Predictor, predict_files

    predictor = Predictor(options.model, options.device, options.precision)
    report = predict_files(options.images, options.output, predictor)
    print(f"{options.output}: {len(report['cases'])} label maps and report.json")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from panorgan.metrics import evaluate_folders, write_scores

    if options.output.exists():
        raise Problems.one("exists already", "name another with -o", file=options.output)
    rows, summary = evaluate_folders(
        options.predictions, options.references, load_labels(), options.profile
    )
    write_scores(rows, summary, options.output)
    print(f"{options.output}: cases.csv and summary.json of {summary['cases']} cases")
    return 0


def _describe(options: argparse.Namespace) -> int:
    from panorgan.describe import as_json, describe_model, describe_recipe

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
    from panorgan.nnunet.convert import convert

    classes = options.classes and [name.strip() for name in options.classes.split(",")]
    lines = convert(
        options.source, options.output, to=options.to, fold=options.fold, classes=classes
    )
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
