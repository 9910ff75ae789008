"""How labels come to the image's grid: what nnU-Net's interpolation is worth, and across slices.

    python workflow_tests/benchmarks/export.py [MODEL]

The demo's validation cases as they are, and with every second slice alone and each pixel as four:
then slices lie over three times as far apart as pixels, where nnU-Net takes the nearest one instead
of interpolating. Printed are DSC / NSD in percent, of the organs and of the tumour where there is
one, and by how much the organs' DSC differs from that of the smooth export, case by case.
"""

import argparse
from pathlib import Path

import numpy as np
from air import LABELS, REPOSITORY, Case, scores_text, validation_cases

from panorgan.config.registry import CHALLENGE, NEAREST, SMOOTH
from panorgan.inference.predictor import Predictor
from panorgan.io.volumes import new_volume
from panorgan.nnunet.preprocess import Bands
from panorgan.scoring.metrics import score_case


class Trilinear(Predictor):
    """Interpolates across slices however far apart they lie."""

    def _apart(self, bands: Bands) -> int | None:
        return None


def thick(case: Case) -> Case:
    """Every second slice alone, each pixel as four."""
    image, truth, (z, y, x) = case
    image, truth = (array[::2].repeat(2, 1).repeat(2, 2) for array in (image, truth))
    return image, truth, (2 * z, y / 2, x / 2)


def organs_dsc(rows: list[dict]) -> float:
    return float(np.mean([row["dsc"] for row in rows if row["name"] != LABELS.tumour.name]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    model = REPOSITORY / "docs/demo_model"
    parser.add_argument("model", nargs="?", type=Path, default=model)
    folder = parser.parse_args().model
    ways = {
        "smooth": Predictor(folder, export=SMOOTH),
        "nearest": Predictor(folder, export=NEAREST),
        "trilinear": Trilinear(folder, export=SMOOTH),
    }
    cases = validation_cases()
    for kind, chosen in (("as they are", cases), ("slices far apart", [*map(thick, cases)])):
        by_case: dict[str, list[float]] = {}
        for way, predictor in ways.items():
            rows = []
            for number, (image, truth, spacing) in enumerate(chosen):
                label = predictor.predict(new_volume(np.ascontiguousarray(image), spacing))
                scored = score_case(label, truth, spacing, LABELS, CHALLENGE)
                rows += [{"case": str(number)} | row for row in scored]
                by_case.setdefault(way, []).append(organs_dsc(scored))
            more = np.subtract(by_case[way], by_case["smooth"]) * 100
            print(
                f"{kind}, {way}: organs, tumour {scores_text(rows)}; organs' DSC against smooth "
                f"{more.mean():+.2f} (sd {more.std(ddof=1):.2f}), "
                f"{int((more > 0).sum())} of {len(more)} higher",
                flush=True,
            )


if __name__ == "__main__":
    main()
