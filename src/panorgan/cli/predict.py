"""`panorgan predict`: label CTs with a trained model."""

import argparse
from typing import Any

from panorgan.cli.options import path
from panorgan.cli.places import check_places
from panorgan.problems import WrongOption


def add(commands: Any) -> None:
    """Add the command to a parser's commands."""
    parser = commands.add_parser("predict", help="label CTs with a trained model")
    parser.add_argument("-i", "--images", type=path, required=True, help="a CT, or a folder")
    parser.add_argument("-o", "--output", type=path, required=True, help="folder of label maps")
    parser.add_argument("-m", "--model", type=path, required=True, help="a model's folder")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument(
        "--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"], help="as in config"
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Run it; the exit code."""
    from panorgan.inference.predict import Predictor, predict_files

    if options.output.name.endswith((".nii", ".nii.gz")):
        cure = "name a folder with -o: a label map gets its CT's name there"
        raise WrongOption.one("is the name of a file", cure, file=options.output)
    check_places(options.output)
    predictor = Predictor(options.model, options.device, options.precision)
    report = predict_files(options.images, options.output, predictor)
    print(f"{options.output}: {len(report['cases'])} label maps and report.json")
    return 0
