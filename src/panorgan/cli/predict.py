"""`panorgan predict`: label CTs with a trained model."""

import argparse
from typing import Any

from panorgan.cli.options import folds, names, path, positive
from panorgan.cli.places import check_places
from panorgan.config.registry import AUTO, ENGINES, EXPORTS, SMOOTH
from panorgan.io.gpus import gpus_here
from panorgan.problems import WrongOption


def add(commands: Any) -> None:
    """Add the command to a parser's commands."""
    parser = commands.add_parser("predict", help="label CTs with a trained model")
    parser.add_argument(
        "-i", "--images", type=path, required=True, help="a CT, a folder, or a list of paths (.txt)"
    )
    parser.add_argument("-o", "--output", type=path, required=True, help="folder of label maps")
    parser.add_argument(
        "-m", "--model", type=path, required=True, help="a model's folder: ours or of nnU-Net 2"
    )
    parser.add_argument("--device", default=AUTO, choices=["auto", "cpu", "cuda"])
    parser.add_argument("--engine", default=AUTO, choices=ENGINES, help="as in config")
    parser.add_argument(
        "--precision", default=AUTO, choices=["auto", "fp32", "bf16", "fp16"], help="as in config"
    )
    parser.add_argument(
        "--export",
        default=SMOOTH,
        choices=list(EXPORTS),
        help="smooth interpolates scores, as nnU-Net does; nearest takes labels",
    )
    parser.add_argument("--threads", type=positive, help="CPU threads (default: all)")
    parser.add_argument(
        "--folds", type=folds, help="of nnU-Net's model, e.g. 0,1 (default: the mean of all)"
    )
    parser.add_argument("--labels", type=names, default=[], help="keep these classes only")
    parser.add_argument(
        "--statistics", action="store_true", help="write volumes and mean HU as statistics.csv too"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="take label maps that no report lists for done (those that one lists always are)",
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Run it; the exit code."""
    from panorgan.cli.progress import Bar
    from panorgan.inference.engines.choice import CPU
    from panorgan.inference.files import predict_files
    from panorgan.inference.predictor import Predictor

    if options.output.name.endswith((".nii", ".nii.gz")):
        cure = "name a folder with -o: a label map gets its CT's name there"
        raise WrongOption.one("is the name of a file", cure, file=options.output)
    check_places(options.output)
    predictor = Predictor(
        options.model,
        options.device,
        options.precision,
        engine=options.engine,
        export=options.export,
        threads=options.threads,
        folds=options.folds,
    )
    for note in predictor.model.notes:
        print(note)
    way, bar = predictor.way, Bar()
    if way.device == CPU and options.device == AUTO and gpus_here():
        print("there is a GPU, which only engine torch uses: computing on the CPU")
    print(f"{way.engine} {way.version} on the {way.device}, {way.precision}, {options.export}")
    try:
        report = predict_files(
            options.images,
            options.output,
            predictor,
            bar.say,
            labels=options.labels,
            statistics=options.statistics,
            resume=options.resume,
            show=bar.show,
        )
    finally:
        bar.clear()
    print(f"{options.output}: {len(report['cases'])} label maps and report.json")
    return 0
