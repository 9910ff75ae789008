"""What air around a patient does to a model: scores on the demo's validation cases, padded or not.

    python workflow_tests/benchmarks/air.py [MODEL ...] [--voxels 40]

Each model labels the phantoms as they are and with so many voxels of air more at each side in
plane, cropped as its plan says and, whatever that says, in the other way. Without MODEL it is
docs/demo_model. Printed are DSC and NSD in percent, of the organs and of the tumour where there is
one, and of the case with the fewest the share of voxels whose label the air did not change.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import yaml

from panorgan.cases.phantom import case_files, phantom_cases, write_case
from panorgan.config.labels import load_labels
from panorgan.config.registry import CHALLENGE, CROPS
from panorgan.inference.predictor import Predictor
from panorgan.io.volumes import (
    canonical_spacing,
    new_volume,
    read_image,
    read_label,
    to_canonical,
)
from panorgan.nnunet.cropping import crop_of
from panorgan.scoring.frames import SCORES
from panorgan.scoring.metrics import score_case
from panorgan.scoring.scores import summarise

REPOSITORY = Path(__file__).parents[2]
LABELS = load_labels()

Case = tuple[np.ndarray, np.ndarray, tuple[float, ...]]
"""CT and truth, (z, y, x) with axes RAS, and the spacing."""


def validation_cases() -> list[Case]:
    settings = yaml.safe_load((REPOSITORY / "config/demo.yaml").read_text())["phantom"]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for case in phantom_cases(folder):
            if case.split == "validation":
                write_case(case, **settings)
                files = case_files(case)
                image, truth = read_image(files["image"]), read_label(files["label"])
                arrays = (to_canonical(volume.array, volume.grid) for volume in (image, truth))
                found.append((*arrays, canonical_spacing(image.grid)))
    return found


def measure(predictor: Predictor, cases: list[Case], voxels: int) -> tuple[list[str], float]:
    """Scores of the cases as they are and padded; the smallest share of labels that stay."""
    rows, stay = {0: [], voxels: []}, []
    for number, (image, truth, spacing) in enumerate(cases):
        labels = {}
        for margin in rows:
            around = ((0, 0), (margin, margin), (margin, margin))
            wide = new_volume(np.pad(image, around, constant_values=-1000), spacing)
            labels[margin] = predictor.predict(wide)
            scored = score_case(labels[margin], np.pad(truth, around), spacing, LABELS, CHALLENGE)
            rows[margin] += [{"case": str(number)} | row for row in scored]
        stay.append(float((labels[voxels] == np.pad(labels[0], around)).mean()))
    return [scores_text(rows[margin]) for margin in rows], min(stay)


def scores_text(rows: list[dict]) -> str:
    summary = summarise(SCORES.frame(rows), LABELS, CHALLENGE)
    parts = summary["organs"], summary["tumour"]["positive"]
    return ", ".join(f"{100 * part['dsc']:.1f} / {100 * part['nsd']:.1f}" for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    model = REPOSITORY / "docs/demo_model"
    parser.add_argument("models", nargs="*", type=Path, default=[model], metavar="MODEL")
    parser.add_argument("--voxels", type=int, default=40, help="of air at each side in plane")
    arguments = parser.parse_args()
    cases = validation_cases()
    for folder in arguments.models:
        predictor = Predictor(folder)
        recipe = predictor.model.plan["panorgan"]["recipe"]
        own = crop_of(predictor.model.plan)
        for crop in sorted(CROPS, key=lambda crop: crop != own):
            recipe["crop"] = crop
            (tight, wide), stay = measure(predictor, cases, arguments.voxels)
            print(
                f"{folder}, trained with crop: {own}, labels with {crop}: organs, tumour {tight}; "
                f"with {arguments.voxels} voxels of air more {wide}; labels that stay {stay:.2%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
